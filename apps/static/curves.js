// Live curves: one small uPlot chart per metric, grouped by the part of its name before the first "/".
// Zoom is shared by all charts and survives updates; the playhead is the step the whole page shows.

const GROUP_ORDER = ['dense', 'loss', 'global', 'health', 'contrast', 'teacher', 'queue', 'gradient_norm', 'rate', 'speed'];
const FIRST = new Set(['dense/patch_knn', 'loss/total']); // of their groups
const ERROR_SUFFIX = ':se'; // a name with it holds the standard errors of the name without it: no curve of its own
const LINE_WIDTH = 1.5;
const CHART_HEIGHT = 150;

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

function duration(seconds) {
  if (seconds == null) return '–';
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${(seconds / 60).toFixed(seconds < 600 ? 1 : 0)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

class Card {
  constructor(name, panel) {
    const { element } = panel;
    this.name = name;
    this.panel = panel;
    this.node = element('figure', 'mon-card');
    this.isFraction = panel.isScore(name);
    this.title = element('span', 'mon-card-name', panel.nameOf(name));
    this.title.title = name;
    this.value = element('span', 'mon-card-value');
    this.base = element('span', 'mon-card-base');
    this.caption = element('figcaption', 'mon-card-head');
    this.caption.append(this.title, this.value, this.base);
    this.canvas = element('div', 'mon-card-plot');
    this.node.append(this.caption, this.canvas);
    this.visible = false;
  }

  /** [x, raw, smoothed] for uPlot; in log scale only positive values remain. */
  columns() {
    const { series, options } = this.panel;
    const { step, seconds, value } = series[this.name];
    const raw = this.isLog() ? value.map((y) => (y > 0 ? y : null)) : value;
    return [options.x === 'step' ? step : seconds, raw, smooth(raw, options.smoothing)];
  }

  isLog() {
    return this.panel.options.log && this.panel.series[this.name].value.some((y) => y > 0);
  }

  draw() {
    this.describe();
    if (!this.visible) return;
    const data = this.columns();
    if (!this.plot) this.make(data);
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

  make(data) {
    const { colours, uPlot, words } = this.panel;
    const axis = { stroke: colours.quiet, grid: { stroke: colours.line, width: 1 }, ticks: { show: false } };
    const font = '11px system-ui, "Noto Sans", "Noto Sans CJK SC", sans-serif';
    const smoothing = this.panel.options.smoothing > 0;
    this.plot = new uPlot({
      width: Math.max(120, this.canvas.clientWidth),
      height: CHART_HEIGHT,
      padding: [8, 10, 0, 0],
      legend: { show: false },
      cursor: {
        sync: { key: 'dfw' }, drag: { x: true, y: false, setScale: false }, points: { size: 5 }, y: false,
        bind: { dblclick: (_u, _target, handler) => (event) => { handler(event); this.panel.setZoom(null); } },
      },
      scales: { x: { time: false, auto: false }, y: { distr: this.isLog() ? 3 : 1 } },
      axes: [
        { ...axis, font, size: 24, gap: 3, values: (_u, ticks) => ticks.map((tick) => this.tick(tick)) },
        { ...axis, font, size: 52, gap: 4, values: (_u, ticks) => ticks.map((y) => (y == null ? '' : readable(y, this.isFraction))) },
      ],
      series: [
        { label: words('curves.step') },
        { stroke: colours.run, width: 1, alpha: smoothing ? 0.28 : 1, points: { show: data[0].length < 2 } },
        { stroke: colours.run, width: LINE_WIDTH, show: smoothing, points: { show: false } },
      ],
      hooks: {
        setSelect: [(u) => this.panel.zoomTo(u)],
        draw: [(u) => this.playhead(u)],
        setCursor: [(u) => this.describe(u.cursor.idx)],
      },
    }, data, this.canvas);
    this.plot.over.addEventListener('click', () => this.panel.pick(this));
    this.rescale();
  }

  tick(x) {
    if (x == null) return '';
    return this.panel.options.x === 'step' ? String(x) : duration(x);
  }

  /** Caption: the value under the cursor, else at the playhead; and the value at step 0 to compare with. */
  describe(index) {
    const { series, step, words } = this.panel;
    const own = series[this.name];
    let at = index;
    if (at == null) {
      at = own.step.length - 1;
      if (step != null) while (at > 0 && own.step[at] > step) at -= 1;
    }
    this.value.textContent = readable(own.value[at], this.isFraction);
    const start = own.step[0] === 0 && this.isFraction ? own.value[0] : null;
    const where = words('curves.at', { step: own.step[at] });
    const baseline = words('curves.base', { value: readable(start, this.isFraction) });
    this.base.textContent = start == null || own.step[at] === 0 ? where : `${where} · ${baseline}`;
  }

  playhead(u) {
    const { step, colours, options, series } = this.panel;
    if (step == null) return;
    let x = step;
    if (options.x !== 'step') {
      const own = series[this.name];
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

  drop() {
    this.plot?.destroy();
    this.plot = null;
  }
}

class Panel {
  constructor({ el, uPlot, element, words, nameOf, isScore, onStep }) {
    Object.assign(this, { el, uPlot, element, words, nameOf, isScore, onStep, series: {}, step: null, zoom: null, cards: new Map() });
    this.options = { smoothing: 0.6, log: false, x: 'step' };
    this.colours = { run: '#0072b2', quiet: '#64748b', line: '#e2e8f0', accent: '#0d9488' };
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

  /** New or longer series. Charts are made again only when the set of names changed. */
  update(series) {
    this.series = series;
    const names = Object.keys(series).filter((name) => series[name].step.length && !name.endsWith(ERROR_SUFFIX));
    if (names.length !== this.cards.size || names.some((name) => !this.cards.has(name))) this.layOut(names);
    this.cards.forEach((card) => card.draw());
  }

  layOut(names) {
    this.seen.disconnect();
    const closed = new Set([...this.el.querySelectorAll('details:not([open])')].map((group) => group.dataset.name));
    this.cards.forEach((card) => card.drop());
    this.cards.clear();
    this.el.replaceChildren(...byGroup(names).map(([group, members]) => this.group(group, members, !closed.has(group))));
  }

  group(name, members, open) {
    const { element } = this;
    const box = element('details', 'mon-group');
    box.dataset.name = name;
    box.open = open;
    const head = element('summary', 'mon-group-head', this.words(`group.${name}`, {}, name));
    head.append(element('span', 'mon-count', String(members.length)));
    const grid = element('div', 'mon-cards');
    for (const member of members) {
      const card = new Card(member, this);
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
    if (index != null) this.onStep(this.series[card.name].step[index]);
  }

  resize() {
    for (const card of this.cards.values()) {
      const width = card.canvas.clientWidth;
      if (card.plot && width && width !== card.plot.width) card.plot.setSize({ width, height: CHART_HEIGHT });
    }
  }

  close() {
    this.seen.disconnect();
    this.sized.disconnect();
    this.cards.forEach((card) => card.drop());
  }
}

export default { create: (options) => new Panel(options), smooth, readable };
