// Events on the curves: a line and a sign at their step, their words on hover; and the choice of which are shown.

const MOST = 60;
const QUIET = new Set(['saved', 'started', 'finished', 'resumed']);
const QUIET_OF_OTHER = new Set([...QUIET, 'fork', 'parent']);

/** 0 for what must be seen first. */
export function rank({ level, kind }) {
  if (level === 'error' || kind === 'dense-peak') return 0;
  if (level === 'warn') return 1;
  return QUIET.has(kind) ? 3 : 2;
}

/**
 * The events worth a mark, at most `most` of them, in the order of steps: never "saved"; of the other run only what
 * warns. What must be seen first goes first, of equals the latest.
 */
export function marked(own, theirs = [], most = MOST) {
  const events = [
    ...own.filter(({ kind }) => kind !== 'saved').map((event) => ({ event, other: false })),
    ...theirs.filter(({ kind, level }) => !QUIET_OF_OTHER.has(kind) && level !== 'info').map((event) => ({ event, other: true })),
  ];
  const kept = [...events].sort((a, b) => rank(a.event) - rank(b.event) || b.event.step - a.event.step).slice(0, most);
  return kept.sort((a, b) => a.event.step - b.event.step).map((entry) => ({ ...entry, key: keyOf(entry) }));
}

const keyOf = ({ event, other }) => JSON.stringify([other, event.step, event.kind, event.text]);

/** The marks of one chart: buttons over its plot, out of the tab order; the list of events is the keyboard's way. */
class Layer {
  constructor(card, marks) {
    Object.assign(this, { card, marks, drawn: null });
    this.node = marks.dom.element('div', 'mon-marks');
  }

  place(u) {
    if (this.drawn !== this.marks.entries) this.build();
    const width = u.bbox.width / devicePixelRatio;
    for (const mark of this.node.children) {
      const { event, other } = mark.entry;
      const x = this.card.xOf(event.step, other);
      const left = x == null ? -1 : u.valToPos(x, 'x');
      mark.hidden = !(left >= -0.5 && left <= width + 0.5);
      mark.style.left = `${left}px`;
      mark.classList.toggle('mon-mark-left', left > width / 2);
    }
  }

  build() {
    const { dom, entries, onStep } = this.marks;
    this.drawn = entries;
    this.node.replaceChildren(...entries.map((entry) => {
      const mark = dom.button('mon-mark', (click) => { click.stopPropagation(); onStep(entry); });
      const said = this.marks.say(entry);
      Object.assign(mark.dataset, { level: entry.event.level, kind: entry.event.kind, run: entry.other ? 'b' : 'a' });
      mark.tabIndex = -1;
      mark.setAttribute('aria-label', said);
      mark.append(dom.element('span', 'mon-mark-words', said));
      mark.entry = entry;
      return mark;
    }));
  }
}

class Marks {
  /** `say(entry)` gives an event in words; `onStep(entry)` goes to where it happened. */
  constructor({ dom, say, onStep }) {
    Object.assign(this, { dom, say, onStep, entries: [], layers: new Set() });
  }

  layer(card) {
    const layer = new Layer(card, this);
    this.layers.add(layer);
    return layer;
  }

  forget() { this.layers.clear(); }

  /** Returns whether something changed. */
  set(entries) {
    const key = JSON.stringify(entries.map((entry) => entry.key));
    if (key === this.known) return false;
    this.known = key;
    this.entries = entries;
    return true;
  }

  /** The same events in other words (another language). */
  relabel() { this.entries = [...this.entries]; }

  /** One event stands out on all charts, or none. */
  light(key) {
    for (const { node } of this.layers) {
      for (const mark of node.children) mark.classList.toggle('mon-lit', mark.entry.key === key);
    }
  }
}

export default { create: (options) => new Marks(options), marked, rank };
