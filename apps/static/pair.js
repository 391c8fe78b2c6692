// The second run: which one it is by default, where its steps lie on the axis of the first, and its data, kept current.

const isRecorded = ({ id }, runs) => Boolean(runs.find((one) => one.id === id)?.recorded);

/**
 * Runs that `run` was forked from or that were forked from it; the parent first, then the youngest child. Runs that ship
 * with the workbench are kin of each other only, whatever their names.
 */
export function kinOf(run, runs) {
  const others = runs.filter((one) => one.id !== run.id && isRecorded(one, runs) === isRecorded(run, runs));
  const parents = others.filter((one) => one.name === run.parent?.run);
  const children = others.filter((one) => one.parent?.run === run.name);
  return { parents, children };
}

/** Of `run` and all it was forked from: Map of name -> where its step 0 lies on the axis of `run` (0 or below). */
function ancestry(run, runs) {
  const found = new Map();
  let at = 0;
  for (let one = run; one && !found.has(one.name); one = kinOf(one, runs).parents[0]) {
    found.set(one.name, at);
    if (!one.parent) break;
    at -= one.parent.step;
    if (!kinOf(one, runs).parents.length) found.set(one.parent.run, at); // gone from the folder, but known by name
  }
  return found;
}

/** The step of A at which B's step 0 lies: a fork counts from 0, from the step its parent had done; 0 for strangers. */
export function offsetOf(a, b, runs) {
  if (isRecorded(a, runs) !== isRecorded(b, runs)) return 0;
  const [ofA, ofB] = [ancestry(a, runs), ancestry(b, runs)];
  for (const [name, at] of ofA) if (ofB.has(name)) return at - ofB.get(name);
  return 0;
}

/** Of the rising `steps` the one nearest to `step`, the earlier of two; null for none. */
export function nearestStep(steps, step) {
  let best = null;
  for (const known of steps) if (best === null || Math.abs(known - step) < Math.abs(best - step)) best = known;
  return best;
}

/** Events that follow from who was forked from whom, for the curves of `run`; `words` as of the page. */
export function kinEvents(run, runs, words) {
  const events = [];
  if (run.parent) events.push({ step: 0, level: 'info', kind: 'parent', text: words('kin.parent', run.parent), time: '' });
  for (const { name, parent } of kinOf(run, runs).children) {
    events.push({ step: parent.step, level: 'info', kind: 'fork', text: name, time: '' });
  }
  return events;
}

class Pair {
  /** `onChange(pair)` is called when the second run or its data changed. */
  constructor({ live, onChange }) {
    Object.assign(this, { live, onChange, run: null, id: null, wish: null, own: false, runs: [] });
  }

  /** The run to compare `a` with: what was wished ("none" is a wish, too), else its parent, else a fork of it. */
  wantedId(a, runs) {
    if (this.wish === 'none') return null;
    if (runs.some(({ id, status }) => id === this.wish && id !== a.id && status !== 'unreadable')) return this.wish;
    const { parents, children } = kinOf(a, runs);
    return [...parents, ...children].find(({ status }) => status !== 'unreadable')?.id ?? null;
  }

  /** Opens the second run where it is not the one that is open. */
  async follow(a, runs) {
    this.runs = runs;
    const id = a ? this.wantedId(a, runs) : null;
    if (id === this.id) return;
    this.close();
    this.id = id;
    this.onChange(this);
    if (!id) return;
    const token = (this.opening = {});
    const lost = () => this.opening === token && this.leave();
    const changed = ({ data, reset }) => {
      if (this.opening !== token) return;
      if (this.run && (reset || data.run.version !== this.version)) this.close(); // other features: opened anew
      this.onChange(this);
      this.follow(a, this.runs);
    };
    try {
      const run = await this.live.openRun(id, { onChange: changed, onTrouble: lost, onLink: () => {} });
      if (this.opening !== token) return void run.close();
      this.run = run;
      this.version = run.data.run.version;
      this.onChange(this);
    } catch {
      lost();
    }
  }

  /** The second run went away: the page goes on without it. */
  leave() {
    this.close();
    this.wish = 'none';
    this.onChange(this);
  }

  close() {
    this.opening = null;
    this.run?.close();
    this.run = null;
    this.id = null;
  }

  get data() { return this.run?.data ?? null; }

  /** Where B's step 0 lies on A's axis; 0 when the same steps are compared. */
  offset(a) {
    return this.data && !this.own ? offsetOf(a, this.data.run, this.runs) : 0;
  }

  /** Whether the two are kin, so that the steps could also be counted from the fork. */
  related(a) {
    return Boolean(this.data) && offsetOf(a, this.data.run, this.runs) !== 0;
  }
}

export default { create: (options) => new Pair(options), kinOf, kinEvents, offsetOf, nearestStep };
