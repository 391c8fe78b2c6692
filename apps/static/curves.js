// Live curves: one small chart per metric (card.js), grouped by the part of its name before the first "/".
// Zoom is shared by all charts and survives updates; the playhead is the step the whole page shows.

const GROUP_ORDER = ['dense', 'health', 'global', 'loss', 'gram', 'contrast', 'teacher', 'queue', 'gradient_norm', 'rate', 'speed'];
const FIRST = new Set(['dense/patch_knn', 'loss/total']); // of their groups

function groupOf(name) {
  const parts = name.split('/');
  return parts.length > 1 ? parts.slice(0, -1).join('/') : 'other';
}

function rank(group) {
  const place = GROUP_ORDER.indexOf(group.split('/').at(-1));
  return (group.includes('/') ? 100 : 0) + (place < 0 ? GROUP_ORDER.length : place);
}

function byGroup(names) {
  const groups = new Map();
  for (const name of [...names].sort((a, b) => FIRST.has(b) - FIRST.has(a) || a.localeCompare(b))) {
    const group = groupOf(name);
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push(name);
  }
  return [...groups].sort(([a], [b]) => rank(a) - rank(b) || a.localeCompare(b));
}

class Panel {
  /** `nameOf(series)` and `aboutOf(series)` give a metric's name and what it measures; `marks` is of marks.js. */
  constructor({ el, uPlot, dom, cardModule, marks, words, nameOf, aboutOf, isScore, onStep }) {
    Object.assign(this, { el, uPlot, dom, cardModule, marks, words, nameOf, aboutOf, isScore, onStep });
    Object.assign(this, { series: {}, other: null, step: null, zoom: null, cards: new Map() });
    this.options = { smoothing: 0.6, log: false, x: 'step' };
    this.colours = { run: '#0072b2', other: '#e69f00', quiet: '#64748b', line: '#e2e8f0', accent: '#0d9488' };
    this.seen = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) this.show(target.card, isIntersecting);
    }, { root: el, rootMargin: '100px' });
    this.sized = new ResizeObserver(() => this.resize());
    this.sized.observe(el);
  }

  show(card, visible) {
    card.visible = visible;
    if (visible) card.draw();
  }

  /**
   * New or longer series; `other` is the run compared with, {series, offset}, or null. Charts are made again only when
   * the set of names changed. Standard errors have no chart of their own.
   */
  update(series, other = null) {
    Object.assign(this, { series, other });
    const { ERROR } = this.cardModule;
    const known = [series, other?.series ?? {}].flatMap((all) => Object.keys(all).filter((name) => all[name].step.length));
    const names = [...new Set(known)].filter((name) => !name.endsWith(ERROR));
    if (names.length !== this.cards.size || names.some((name) => !this.cards.has(name))) this.layOut(names);
    this.cards.forEach((card) => card.draw());
  }

  layOut(names) {
    this.seen.disconnect();
    const closed = new Set([...this.el.querySelectorAll('details:not([open])')].map((group) => group.dataset.name));
    this.cards.forEach((card) => card.drop());
    this.cards.clear();
    this.marks.forget();
    this.el.replaceChildren(...byGroup(names).map(([group, members]) => this.group(group, members, !closed.has(group))));
  }

  group(name, members, open) {
    const { element } = this.dom;
    const box = element('details', 'mon-group');
    box.dataset.name = name;
    box.open = open;
    const head = element('summary', 'mon-group-head', this.words(`group.${name}`, {}, name));
    head.append(element('span', 'mon-count', String(members.length)));
    const grid = element('div', 'mon-cards');
    for (const member of members) {
      const card = this.cardModule.create(member, this);
      card.node.card = card;
      this.cards.set(member, card);
      this.seen.observe(card.node);
      grid.append(card.node);
    }
    box.append(head, grid);
    return box;
  }

  set(options) {
    Object.assign(this.options, options);
    if ('x' in options) this.zoom = null;
    this.remake();
  }

  paint(colours) {
    this.colours = colours;
    this.remake();
  }

  remake() {
    this.cards.forEach((card) => { card.drop(); card.draw(); });
  }

  relabel() {
    const names = [...this.cards.keys()];
    this.marks.relabel();
    this.layOut(names);
  }

  moveTo(step) {
    this.step = step;
    this.cards.forEach((card) => { card.describe(); if (card.visible) card.plot?.redraw(false, false); });
  }

  zoomTo(u) {
    if (u.select.width < 4) return;
    const min = u.posToVal(u.select.left, 'x');
    const max = u.posToVal(u.select.left + u.select.width, 'x');
    u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.setZoom({ min, max });
  }

  setZoom(zoom) {
    this.zoom = zoom;
    this.el.dispatchEvent(new CustomEvent('zoom', { detail: zoom }));
    this.cards.forEach((card) => card.plot && card.rescale());
  }

  /** A click on a chart moves the playhead of the whole page. */
  pick(card) {
    const index = card.plot.cursor.idx;
    if (index == null) return;
    const x = card.plot.data[0][index];
    if (this.options.x === 'step') return void this.onStep(x);
    const { step, seconds } = card.own;
    const near = seconds.reduce((best, known, i) => (Math.abs(known - x) < Math.abs(seconds[best] - x) ? i : best), 0);
    if (step.length) this.onStep(step[near]);
  }

  /** Other events: the marks on all charts anew. */
  markEvents(entries) {
    if (this.marks.set(entries)) this.cards.forEach((card) => card.plot?.redraw(false, false));
  }

  /** Opens the group of a metric and brings its chart into sight; false when there is no such chart. */
  focus(name) {
    const card = this.cards.get(name);
    if (!card) return false;
    const group = card.node.closest('details');
    if (group) group.open = true;
    card.attend();
    return true;
  }

  resize() {
    for (const card of this.cards.values()) {
      const width = card.canvas.clientWidth;
      if (card.plot && width && width !== card.plot.width) card.plot.setSize({ width, height: this.cardModule.CHART_HEIGHT });
    }
  }

  close() {
    this.seen.disconnect();
    this.sized.disconnect();
    this.cards.forEach((card) => card.drop());
  }
}

export default { create: (options) => new Panel(options) };
