// One curve: a uPlot chart of a metric, its standard error as a band, the run compared with dashed, events as marks.

const LINE_WIDTH = 1.5;
export const CHART_HEIGHT = 150;
export const ERROR = ':se'; // the series KEY:se holds the standard errors of the series KEY
const MEASURED = new Set(['dense', 'health', 'global']); // evaluations: few, and told with their error, so never smoothed
const NONE = { step: [], seconds: [], value: [] };

/** Exponential moving average with the start-up bias removed; `weight` in [0, 1). Nulls stay null. */
export function smooth(values, weight) {
  if (weight <= 0) return values;
  let average = 0;
  let mass = 0;
  return values.map((value) => {
    if (value == null) return null;
    average = weight * average + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return average / mass;
  });
}

/** A number for people: fractions as percent, others with four significant digits. */
export function readable(value, isFraction) {
  if (value == null || !Number.isFinite(value)) return '–';
  if (isFraction) return `${(100 * value).toFixed(1)} %`;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4))).replace('-', '−');
}

export function duration(seconds) {
  if (seconds == null) return '–';
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${(seconds / 60).toFixed(seconds < 600 ? 1 : 0)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** Value ± error at each step of `own`: [low, high], null where there is no error; that of a share stays in [0, 1]. */
export function band(own, errors, isFraction) {
  const kept = (value) => (isFraction ? Math.min(1, Math.max(0, value)) : value);
  const of = new Map(errors.step.map((step, i) => [step, errors.value[i]]));
  const at = (sign) => own.value.map((value, i) => {
    const error = of.get(own.step[i]);
    return value == null || error == null ? null : kept(value + sign * error);
  });
  return [at(-1), at(1)];
}

/** Place of the entry of rising `xs` that is nearest to x; -1 for none. */
function nearest(xs, x) {
  let best = -1;
  for (let i = 0; i < xs.length; i++) {
    if (xs[i] != null && (best < 0 || Math.abs(xs[i] - x) < Math.abs(xs[best] - x))) best = i;
  }
  return best;
}

class Card {
  constructor(name, panel) {
    const { element, button } = panel.dom;
    this.name = name;
    this.panel = panel;
    this.node = element('figure', 'mon-card');
    this.node.dataset.name = name;
    this.node.tabIndex = -1;
    this.isFraction = panel.isScore(name);
    this.value = element('span', 'mon-card-value');
    this.other = element('span', 'mon-card-other');
    this.base = element('span', 'mon-card-base');
    this.caption = element('figcaption', 'mon-card-head');
    this.caption.append(this.makeTitle(element, button), this.value, this.other, this.base);
    this.canvas = element('div', 'mon-card-plot');
    this.marks = panel.marks.layer(this);
    this.node.append(this.caption, ...(this.help ? [this.help] : []), this.canvas);
    this.visible = false;
  }

  /** The name in words; of a known gauge a button that tells what it measures. */
  makeTitle(element, button) {
    const label = this.panel.nameOf(this.name);
    const about = this.panel.aboutOf(this.name);
    if (!about) {
      const title = element('span', 'mon-card-name', label);
      title.title = this.name;
      return title;
    }
    const title = button('mon-card-name mon-card-ask', () => {
      this.help.hidden = !this.help.hidden;
      title.setAttribute('aria-expanded', String(!this.help.hidden));
    });
    title.textContent = label;
    title.title = `${this.name}: ${about}`;
    title.setAttribute('aria-expanded', 'false');
    this.help = element('p', 'mon-card-help', about);
    this.help.hidden = true;
    return title;
  }

  get smoothing() {
    return MEASURED.has(this.name.split('/').at(-2)) ? 0 : this.panel.options.smoothing;
  }

  get own() { return this.panel.series[this.name] ?? NONE; }

  get theirs() { return this.panel.other?.series[this.name] ?? NONE; }

  /** x of a run's records on this chart; steps of the other run lie where they belong on this one's axis. */
  xs(columns, other) {
    if (this.panel.options.x !== 'step') return columns.seconds;
    const offset = other ? this.panel.other.offset : 0;
    return offset ? columns.step.map((step) => step + offset) : columns.step;
  }

  /** [x, raw, smoothed, low, high] of a run's records; in log scale only positive values remain. */
  table(columns, errors, other) {
    const fit = (values) => (this.isLog() ? values.map((y) => (y > 0 ? y : null)) : values);
    const raw = fit(columns.value);
    const lines = [this.xs(columns, other), raw, smooth(raw, this.smoothing)];
    return errors ? [...lines, ...band(columns, errors, this.isFraction).map(fit)] : lines;
  }

  /** For each run on this chart: its columns, its standard errors (or none), and whether it is the other one. */
  runs() {
    const { series, other } = this.panel;
    const runs = [{ columns: this.own, errors: series[this.name + ERROR], other: false }];
    if (this.theirs.step.length) runs.push({ columns: this.theirs, errors: other.series[this.name + ERROR], other: true });
    return runs;
  }

  isLog() {
    return this.panel.options.log && [...this.own.value, ...this.theirs.value].some((y) => y > 0);
  }

  draw() {
    this.describe();
    if (!this.visible) return;
    const runs = this.runs();
    const shape = runs.map(({ errors }) => Boolean(errors)).join();
    const tables = runs.map(({ columns, errors, other }) => this.table(columns, errors, other));
    const data = tables.length > 1 ? this.panel.uPlot.join(tables) : tables[0];
    if (shape !== this.shape) this.drop();
    this.shape = shape;
    if (!this.plot) this.make(data, runs);
    else {
      this.plot.setData(data, false);
      this.rescale();
    }
  }

  rescale() {
    const x = this.plot.data[0];
    const whole = { min: x[0], max: x.length > 1 ? x.at(-1) : x[0] + 1 };
    this.plot.setScale('x', this.panel.zoom ?? whole);
  }

  /** uPlot's series and bands: for each run the raw line, the smoothed one, and the edges of its band. */
  lines(runs, data) {
    const { colours, words } = this.panel;
    const smoothing = this.smoothing > 0;
    const series = [{ label: words('curves.step') }];
    const bands = [];
    for (const { errors, other } of runs) {
      const stroke = other ? colours.other : colours.run;
      const dash = other ? [5, 4] : undefined;
      series.push({ stroke, dash, width: smoothing ? 1 : LINE_WIDTH, alpha: smoothing ? 0.28 : 1, spanGaps: false, points: { show: data[0].length < 2 } });
      series.push({ stroke, dash, width: LINE_WIDTH, show: smoothing, points: { show: false } });
      if (!errors) continue;
      const edge = { stroke: 'transparent', width: 0, points: { show: false } };
      series.push(edge, { ...edge });
      bands.push({ series: [series.length - 1, series.length - 2], fill: `${stroke}${other ? '1f' : '2e'}` });
    }
    return { series, bands };
  }

  make(data, runs) {
    const { colours, uPlot } = this.panel;
    const axis = { stroke: colours.quiet, grid: { stroke: colours.line, width: 1 }, ticks: { show: false } };
    const font = '11px system-ui, "Noto Sans", "Noto Sans CJK SC", sans-serif';
    this.plot = new uPlot({
      width: Math.max(120, this.canvas.clientWidth),
      height: CHART_HEIGHT,
      padding: [8, 10, 0, 0],
      legend: { show: false },
      cursor: {
        sync: { key: 'dfw' }, drag: { x: true, y: false, setScale: false }, points: { size: 5, show: (u, i) => this.cursorPoint(u, i) }, y: false,
        bind: { dblclick: (_u, _target, handler) => (event) => { handler(event); this.panel.setZoom(null); } },
      },
      scales: { x: { time: false, auto: false }, y: { distr: this.isLog() ? 3 : 1 } },
      axes: [
        { ...axis, font, size: 24, gap: 3, values: (_u, ticks) => ticks.map((tick) => this.tick(tick)) },
        { ...axis, font, size: 52, gap: 4, values: (_u, ticks) => ticks.map((y) => (y == null ? '' : readable(y, this.isFraction))) },
      ],
      ...this.lines(runs, data),
      hooks: {
        setSelect: [(u) => this.panel.zoomTo(u)],
        draw: [(u) => { this.playhead(u); this.marks.place(u); }],
        setCursor: [(u) => this.describe(u.cursor.idx)],
      },
    }, data, this.canvas);
    this.plot.over.append(this.marks.node);
    this.plot.over.addEventListener('click', () => this.panel.pick(this));
    this.rescale();
  }

  /** A dot under the pointer for lines only: the edges of a band have none. */
  cursorPoint(u, index) {
    if (u.series[index].stroke?.() === 'transparent') return null;
    const point = document.createElement('div');
    point.className = 'u-cursor-pt';
    return point;
  }

  tick(x) {
    if (x == null) return '';
    return this.panel.options.x === 'step' ? String(x).replace('-', '−') : duration(x);
  }

  /** Caption: the value under the cursor, else at the playhead; the other run's beside it; what it was at step 0. */
  describe(index) {
    const { step, words } = this.panel;
    const { own, theirs } = this;
    const x = index == null ? null : this.plot.data[0][index];
    let at = x == null ? own.step.length - 1 : nearest(this.xs(own, false), x);
    if (x == null && step != null) while (at > 0 && own.step[at] > step) at -= 1;
    this.value.textContent = own.step.length ? readable(own.value[at], this.isFraction) : '';
    this.describeOther(x ?? (own.step.length ? this.xs(own, false)[at] : step));
    if (!own.step.length) return void (this.base.textContent = '');
    const start = own.step[0] === 0 && this.isFraction ? own.value[0] : null;
    const where = words('curves.at', { step: own.step[at] });
    const baseline = words('curves.base', { value: readable(start, this.isFraction) });
    this.base.textContent = start == null || own.step[at] === 0 || theirs.step.length ? where : `${where} · ${baseline}`;
  }

  describeOther(x) {
    const { theirs } = this;
    this.other.hidden = !theirs.step.length;
    if (this.other.hidden) return;
    const near = nearest(this.xs(theirs, true), x ?? Infinity);
    this.other.textContent = `B ${readable(theirs.value[near < 0 ? theirs.step.length - 1 : near], this.isFraction)}`;
  }

  playhead(u) {
    const { step, colours, options } = this.panel;
    if (step == null) return;
    let x = step;
    if (options.x !== 'step') {
      const { own } = this;
      const near = own.step.findIndex((known) => known >= step);
      x = own.seconds[near < 0 ? own.seconds.length - 1 : near];
    }
    const left = Math.round(u.valToPos(x, 'x', true));
    if (!(left >= u.bbox.left && left <= u.bbox.left + u.bbox.width)) return;
    u.ctx.save();
    u.ctx.strokeStyle = colours.accent;
    u.ctx.lineWidth = devicePixelRatio;
    u.ctx.beginPath();
    u.ctx.moveTo(left + 0.5, u.bbox.top);
    u.ctx.lineTo(left + 0.5, u.bbox.top + u.bbox.height);
    u.ctx.stroke();
    u.ctx.restore();
  }

  /** x of a step of this run (or of the other) on the chart's axis; null where the axis is time and it is not known. */
  xOf(step, other) {
    if (this.panel.options.x === 'step') return other ? step + this.panel.other.offset : step;
    const columns = other ? this.theirs : this.own;
    const near = nearest(columns.step, step);
    return near < 0 ? null : columns.seconds[near];
  }

  /** Draws the eye here: in sight, ringed for a moment, and the next key press starts from it. */
  attend() {
    this.node.scrollIntoView({ block: 'center' });
    this.node.focus({ preventScroll: true });
  }

  drop() {
    this.plot?.destroy();
    this.plot = null;
  }
}

export default { create: (name, panel) => new Card(name, panel), CHART_HEIGHT, ERROR };
