// The runs that ship with the workbench: which two tell the story, the line above them, and their playing by itself.

const BEAT = 450; // milliseconds a step
const REST = 4; // beats on the last step before it begins anew

/** The recorded cure and the run it cures, {stressed, cured}; null when none of that kind is there. */
export function story(runs) {
  const recorded = runs.filter((run) => run.recorded);
  const cured = recorded.find(({ phase }) => phase === 'anchor');
  const stressed = recorded.find(({ name }) => name === cured?.parent?.run);
  return stressed ? { stressed, cured } : null;
}

class Recorded {
  /** `onBeat(step)` moves the playhead; `onShow()` shows the two runs side by side; `onOwn(id)` opens a run of the user's. */
  constructor({ dom, words, onBeat, onShow, onOwn }) {
    Object.assign(this, { dom, words, onBeat, onShow, onOwn, shown: null });
    this.node = dom.element('aside', 'mon-recorded-bar');
    this.node.hidden = true;
  }

  relabel() {
    this.drawn = null;
    this.draw();
  }

  /** `shown` is false, or {step, together, own}: of the fork, whether the two are in sight, a run of the user's or null. */
  show(shown) {
    this.shown = shown;
    this.draw();
  }

  draw() {
    const wanted = JSON.stringify([this.shown, this.words('recorded.title')]);
    if (wanted === this.drawn) return;
    this.drawn = wanted;
    this.node.hidden = !this.shown;
    if (!this.shown) return void this.node.replaceChildren();
    const { element, button } = this.dom;
    const { step, together, own } = this.shown;
    const text = element('p', '', this.words(together ? 'recorded.together' : 'recorded.text', { step }));
    text.prepend(element('b', '', this.words('recorded.title')));
    this.node.replaceChildren(text);
    const offer = (words, onClick) => {
      const made = button('mon-small-button', onClick);
      made.textContent = words;
      this.node.append(made);
    };
    if (!together) offer(this.words('recorded.show'), () => this.onShow());
    if (own) offer(this.words('recorded.own', { name: own.name }), () => this.onOwn(own.id));
  }

  /** Plays `steps` over and over until `stop`; not for who wants no motion. */
  play(steps) {
    this.stop();
    if (steps.length < 2 || matchMedia('(prefers-reduced-motion: reduce)').matches) return;
    let beat = 0;
    this.timer = setInterval(() => {
      if (document.hidden) return;
      this.onBeat(steps[Math.min(beat, steps.length - 1)]);
      beat = (beat + 1) % (steps.length + REST);
    }, BEAT);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
  }
}

export default { create: (options) => new Recorded(options), story };
