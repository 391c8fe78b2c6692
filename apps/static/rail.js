// The list of runs on the left: name, state, age of the last record; searched with "/". Recorded examples come last.

const UNITS = [[90, 1, 'seconds'], [5400, 60, 'minutes'], [129600, 3600, 'hours'], [Infinity, 86400, 'days']];

class Rail {
  /** `onOpen(id)` is called for a chosen run; `colourOf(id)` gives its colour. */
  constructor({ dom, words, colourOf, onOpen }) {
    Object.assign(this, { dom, words, colourOf, onOpen, runs: [], current: null });
    this.node = dom.element('nav', 'mon-rail');
    this.search = dom.element('input', 'mon-search');
    this.search.type = 'search';
    this.search.addEventListener('input', () => this.draw());
    this.search.addEventListener('keydown', (event) => this.onKey(event));
    this.list = dom.element('div', 'mon-runs');
    this.node.append(this.search, this.list);
  }

  onKey(event) {
    if (event.key === 'Escape') { this.search.value = ''; this.search.blur(); this.draw(); }
    if (event.key === 'Enter') this.list.querySelector('button')?.click();
    event.stopPropagation();
  }

  relabel() {
    this.node.setAttribute('aria-label', this.words('rail.title'));
    this.search.placeholder = this.words('rail.search');
    this.search.setAttribute('aria-label', this.words('rail.search'));
    this.draw();
  }

  draw() {
    const wanted = this.search.value.trim().toLowerCase();
    const shown = this.runs.filter((run) => `${run.name} ${run.phase}`.toLowerCase().includes(wanted));
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    const recorded = shown.filter((run) => run.recorded);
    const head = this.dom.element('h2', 'mon-rail-head', this.words('recorded.runs'));
    this.list.replaceChildren(...shown.filter((run) => !run.recorded).map((run) => this.row(run)));
    if (recorded.length) this.list.append(head, ...recorded.map((run) => this.row(run)));
    if (!shown.length && this.runs.length) this.list.append(this.dom.element('p', 'mon-quiet mon-none', this.words('rail.none')));
    if (focused) this.list.querySelector(`[data-id="${focused}"]`)?.focus();
    this.tick();
  }

  row(run) {
    const { element, button } = this.dom;
    const row = button('mon-run', () => this.onOpen(run.id));
    row.dataset.id = run.id;
    row.setAttribute('aria-current', String(run.id === this.current));
    const dot = element('span', `mon-dot mon-${run.status}`);
    dot.style.setProperty('--run', this.colourOf(run.id));
    const text = element('span', 'mon-run-text');
    const label = element('span', 'mon-run-name', run.name);
    label.title = run.name;
    const state = element('span', 'mon-run-state');
    state.run = run;
    text.append(label, state);
    row.append(dot, text);
    return row;
  }

  /** Once a second: ages grow. */
  tick() {
    for (const state of this.list.querySelectorAll('.mon-run-state')) state.textContent = this.stateOf(state.run);
  }

  stateOf(run) {
    const parts = [run.recorded ? this.words(`phase.${run.phase}`, {}, run.phase) : this.words(`status.${run.status}`, {}, run.status)];
    if (run.age != null) parts.push(this.ago(run.age + (performance.now() - run.received) / 1000));
    return parts.join(' · ');
  }

  ago(seconds) {
    const [, size, unit] = UNITS.find(([limit]) => seconds < limit);
    return this.words(`ago.${unit}`, { n: Math.floor(seconds / size) });
  }
}

export default { create: (options) => new Rail(options) };
