// The Gram matrix of one image at the chosen step, its difference to an anchor step, and how far it has moved over all
// steps. Hovering a cell shows its two patches on the image; hovering the image shows the patch's row.

const MOST = 256; // patches of an image that take part; of larger grids an even subset
const MEMORY = 96 * 2 ** 20; // bytes of features kept
const REACHES = [0.25, 0.5, 1];
const plain = (x, digits = 3) => x.toFixed(digits).replace('-', '−');

/** Places of at most `most` patches of a grid, evenly spread: every stride-th row and column. */
export function chosenPlaces(rows, columns, most = MOST) {
  const stride = Math.ceil(Math.sqrt((rows * columns) / most));
  const places = [];
  for (let row = (stride - 1) >> 1; row < rows; row += stride) {
    for (let col = (stride - 1) >> 1; col < columns; col += stride) places.push(row * columns + col);
  }
  return places;
}

/** Cosines [n * n] between the patches `places` of image `image` of a frame. */
export function gramMatrix(frame, image, places) {
  const { rows, inverse, width } = frame;
  const n = places.length;
  const first = image * frame.height * frame.columns;
  const gram = new Float32Array(n * n);
  for (let i = 0; i < n; i++) {
    const a = first + places[i];
    for (let j = i; j < n; j++) {
      const b = first + places[j];
      let sum = 0;
      for (let k = 0, p = a * width, q = b * width; k < width; k++) sum += rows[p++] * rows[q++];
      gram[i * n + j] = gram[j * n + i] = sum * inverse[a] * inverse[b];
    }
  }
  return gram;
}

/** Mean squared difference of two matrices: the Gram distance (DINOv3, equation 2, as a mean). */
export function gramDistance(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] - b[i]) ** 2;
  return sum / a.length;
}

/** The order of `values` from low to high, as indices. */
export function sorted(values) {
  return Array.from(values.keys()).sort((a, b) => values[a] - values[b]);
}

class Gram {
  /** `onPin(patch)` tells the page which patch was clicked; `parts` of the renderer, `words` as of the page. */
  constructor({ dom, words, parts, language, onPin }) {
    Object.assign(this, { dom, words, parts, language, onPin });
    Object.assign(this, { run: null, step: null, pinned: null, cell: null, anchor: null, order: 'raster', reach: 0.5 });
    this.matrices = new WeakMap();
    this.build();
  }

  build() {
    const { element } = this.dom;
    this.node = element('section', 'mon-layer mon-gram');
    this.node.gram = this; // for tests
    const bar = element('div', 'mon-curves-bar');
    this.anchorField = this.field(bar, (value) => this.set({ anchor: Number(value) }));
    this.orderField = this.field(bar, (value) => this.set({ order: value }));
    this.reachField = this.field(bar, (value) => this.set({ reach: Number(value) }));
    this.note = element('p', 'mon-compare-note');
    this.body = element('div', 'mon-gram-body');
    this.photo = this.panel('photo', 'img');
    this.matrix = this.panel('gram', 'canvas');
    this.difference = this.panel('difference', 'canvas');
    this.curve = this.panel('distance', 'canvas');
    this.marks = ['query', 'match'].map((name) => {
      const mark = element('i', `mon-patch${name === 'match' ? ' mon-match' : ''}`);
      this.photo.frame.append(mark);
      return mark;
    });
    this.readout = element('p', 'mon-gram-readout');
    this.body.append(this.photo.node, this.matrix.node, this.difference.node, this.curve.node);
    this.node.append(bar, this.note, this.body, this.readout);
    this.listen();
    new ResizeObserver(() => this.schedule()).observe(this.node);
  }

  field(bar, onChange) {
    const { element } = this.dom;
    const label = element('label', 'mon-field');
    const text = element('span');
    const control = element('select');
    control.addEventListener('change', () => onChange(control.value));
    label.append(text, control);
    bar.append(label);
    return { text, control };
  }

  panel(kind, tag) {
    const { element } = this.dom;
    const node = element('figure', 'mon-gram-panel');
    node.dataset.kind = kind;
    const frame = element('div', 'mon-gram-frame');
    const picture = element(tag);
    if (tag === 'img') Object.assign(picture, { alt: '', draggable: false });
    else picture.setAttribute('role', 'img');
    const caption = element('figcaption');
    frame.append(picture);
    node.append(frame, caption);
    return { node, frame, picture, caption };
  }

  listen() {
    for (const { frame } of [this.matrix, this.difference]) {
      frame.addEventListener('pointermove', (event) => this.hoverCell(event, frame));
      frame.addEventListener('pointerleave', () => { this.cell = null; this.schedule(); });
      frame.addEventListener('click', (event) => { this.hoverCell(event, frame); this.pinCell(); });
    }
    this.photo.frame.addEventListener('pointerdown', (event) => this.pinAt(event));
    this.photo.frame.addEventListener('pointermove', (event) => { if (event.buttons & 1) this.pinAt(event); });
  }

  // -- what is shown -------------------------------------------------------------------------------------------------
  /** A run as of live.js, or null. */
  show(run) {
    if (this.run !== run || this.version !== run?.data.run.version) {
      this.frames?.close();
      Object.assign(this, { run, version: run?.data.run.version, anchor: null, cell: null });
      this.frames = run && new this.parts.Frames((step) => this.load(run, step), { budget: MEMORY, changed: () => this.schedule() });
    }
    this.frames?.setSteps(run.data.steps);
    this.schedule();
  }

  async load(run, step) {
    const [, [bytes]] = await run.invoke('probes', { step, dtype: 'int8' });
    return this.parts.makeFrame(this.parts.decodeTensors(bytes), step);
  }

  moveTo(step) { this.step = step; this.schedule(); }

  select(patch) { this.pinned = patch; this.schedule(); }

  set(entry) { Object.assign(this, entry); this.schedule(); }

  relabel() { this.labelled = null; this.schedule(); }

  get probes() { return this.run?.data.probes ?? null; }

  get anchorStep() { return this.run.data.steps.includes(this.anchor) ? this.anchor : this.run.data.steps[0]; }

  get places() {
    const [rows, columns] = this.probes.grid;
    const key = `${rows},${columns}`;
    if (this.placesKey !== key) Object.assign(this, { placesKey: key, places_: chosenPlaces(rows, columns) });
    return this.places_;
  }

  matrixOf(frame) {
    let own = this.matrices.get(frame);
    if (!own) this.matrices.set(frame, (own = new Map()));
    const image = this.pinned.image;
    if (!own.has(image)) own.set(image, gramMatrix(frame, image, this.places));
    return own.get(image);
  }

  /** The order of the rows: as the image is read, or by how alike the patches are to the first of the anchor's groups. */
  ordered(anchor) {
    const n = this.places.length;
    if (this.order === 'raster') return Array.from({ length: n }, (_, i) => i);
    const gram = this.matrixOf(anchor); // by the leading eigenvector of the centred matrix, found by power iteration
    const mean = new Float32Array(n).map((_, i) => gram.subarray(i * n, (i + 1) * n).reduce((a, b) => a + b, 0) / n);
    const all = mean.reduce((a, b) => a + b, 0) / n;
    let vector = Float32Array.from({ length: n }, (_, i) => Math.sin(i + 1));
    for (let turn = 0; turn < 40; turn++) {
      const next = new Float32Array(n);
      for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) next[i] += (gram[i * n + j] - mean[i] - mean[j] + all) * vector[j];
      const length = Math.hypot(...next) || 1;
      vector = next.map((x) => x / length);
    }
    return sorted(vector);
  }

  // -- pointing ------------------------------------------------------------------------------------------------------
  hoverCell(event, frame) {
    if (!this.drawn) return;
    const box = frame.getBoundingClientRect();
    const n = this.places.length;
    const at = (offset, size) => Math.max(0, Math.min(n - 1, Math.floor((offset / size) * n)));
    this.cell = [at(event.clientY - box.top, box.height), at(event.clientX - box.left, box.width)].map((i) => this.drawn.order[i]);
    this.schedule();
  }

  pinCell() {
    const columns = this.probes.grid[1];
    const place = this.places[this.cell[0]];
    this.onPin({ image: this.pinned.image, row: Math.floor(place / columns), col: place % columns });
  }

  pinAt(event) {
    const [rows, columns] = this.probes.grid;
    const box = this.photo.frame.getBoundingClientRect();
    const at = (offset, size, count) => Math.max(0, Math.min(count - 1, Math.floor((offset / size) * count)));
    this.cell = null;
    this.onPin({ image: this.pinned.image, row: at(event.clientY - box.top, box.height, rows), col: at(event.clientX - box.left, box.width, columns) });
  }

  /** The chosen patch that lies nearest to `patch`: its index among the places. */
  nearest({ row, col }) {
    const columns = this.probes.grid[1];
    let best = 0;
    let least = Infinity;
    this.places.forEach((place, i) => {
      const far = (Math.floor(place / columns) - row) ** 2 + ((place % columns) - col) ** 2;
      if (far < least) [best, least] = [i, far];
    });
    return best;
  }

  // -- drawing -------------------------------------------------------------------------------------------------------
  schedule() { this.raf ??= requestAnimationFrame(() => { this.raf = null; this.draw(); }); }

  draw() {
    if (!this.node.clientWidth) return;
    const waiting = !this.probes || !this.pinned || this.step == null;
    this.note.hidden = !waiting;
    this.body.hidden = this.readout.hidden = waiting;
    if (waiting) return void (this.note.textContent = this.words('gram.waiting'));
    this.label();
    const now = this.frames.want(this.step) ?? this.frames.nearest(this.step);
    const anchor = this.frames.held.get(this.anchorStep);
    if (!anchor) this.loadAnchor();
    if (!now) return;
    const gram = this.matrixOf(now);
    const base = anchor && this.matrixOf(anchor);
    const order = this.ordered(anchor ?? now);
    this.drawn = { now, anchor, gram, base, order };
    this.fit();
    this.paint(this.matrix.picture, (rgba) => this.parts.colourCosines(this.permuted(gram, order), [-0.2, 1], rgba, 255));
    if (base) this.paint(this.difference.picture, (rgba) => this.parts.colourDifferences(this.permuted(gram, order), this.permuted(base, order), this.reach, rgba));
    this.drawCurve(base);
    this.point();
    this.describe();
  }

  async loadAnchor() {
    if (this.loading) return;
    this.loading = true;
    try {
      this.frames.hold(await this.load(this.run, this.anchorStep));
    } catch { /* asked again with the next drawing */ }
    this.loading = false;
    this.schedule();
  }

  permuted(gram, order) {
    const n = order.length;
    const out = new Float32Array(n * n);
    for (let i = 0, at = 0; i < n; i++) for (let j = 0; j < n; j++) out[at++] = gram[order[i] * n + order[j]];
    return out;
  }

  /** Squares as large as the stage allows. */
  fit() {
    const [tall, wide] = this.probes.image;
    const room = Math.min((this.node.clientWidth - 120) / 3, this.node.clientHeight * 0.52);
    const side = Math.max(120, Math.floor(room));
    this.photo.frame.style.width = `${Math.floor(tall > wide ? (side * wide) / tall : side)}px`;
    this.photo.frame.style.aspectRatio = `${wide} / ${tall}`;
    for (const { frame } of [this.matrix, this.difference]) Object.assign(frame.style, { width: `${side}px`, aspectRatio: '1' });
    const { id, version } = this.run.data.run;
    const url = `/api/runs/${id}/images/${this.pinned.image}.png?v=${version}`;
    if (this.url !== url) this.photo.picture.src = this.url = url;
  }

  paint(canvas, write) {
    const n = this.places.length;
    if (canvas.width !== n) Object.assign(canvas, { width: n, height: n });
    const pixels = new ImageData(n, n);
    write(pixels.data);
    canvas.getContext('2d').putImageData(pixels, 0, 0);
  }

  /** Gram distance to the anchor at every step in memory, and the step that is shown. */
  drawCurve(base) {
    const canvas = this.curve.picture;
    const { clientWidth: width, clientHeight: height } = this.curve.frame;
    if (!base || width < 40) return;
    Object.assign(canvas, { width: width * devicePixelRatio, height: height * devicePixelRatio });
    const points = [...this.frames.held.values()].map((frame) => [frame.step, gramDistance(this.matrixOf(frame), base)]).sort((a, b) => a[0] - b[0]);
    this.points = points;
    const { steps } = this.run.data;
    const span = Math.max(1, steps.at(-1) - steps[0]);
    const top = Math.max(1e-6, ...points.map(([, y]) => y));
    const style = getComputedStyle(this.node);
    const context = canvas.getContext('2d');
    context.scale(devicePixelRatio, devicePixelRatio);
    const x = (step) => 8 + ((step - steps[0]) / span) * (width - 16);
    const y = (value) => height - 6 - (value / top) * (height - 14);
    context.strokeStyle = style.getPropertyValue('--quiet');
    context.beginPath();
    context.moveTo(x(this.drawn.now.step), 0);
    context.lineTo(x(this.drawn.now.step), height);
    context.stroke();
    context.strokeStyle = style.getPropertyValue('--accent');
    context.lineWidth = 2;
    context.beginPath();
    points.forEach(([step, value], i) => (i ? context.lineTo(x(step), y(value)) : context.moveTo(x(step), y(value))));
    context.stroke();
  }

  /** Marks on the image and in the matrices for the two patches that are pointed at. */
  point() {
    const [rows, columns] = this.probes.grid;
    const pair = this.cell ?? [this.nearest(this.pinned), null];
    this.marks.forEach((mark, k) => {
      mark.hidden = pair[k] === null;
      if (mark.hidden) return;
      const place = this.places[pair[k]];
      Object.assign(mark.style, {
        left: `${(100 * (place % columns)) / columns}%`, top: `${(100 * Math.floor(place / columns)) / rows}%`,
        width: `${100 / columns}%`, height: `${100 / rows}%`,
      });
    });
    const n = this.places.length;
    const at = this.drawn.order.indexOf(pair[0]);
    for (const { frame } of [this.matrix, this.difference]) {
      frame.style.setProperty('--row', `${(100 * (at + 0.5)) / n}%`);
    }
  }

  // -- words ---------------------------------------------------------------------------------------------------------
  label() {
    const { steps } = this.run.data;
    const key = JSON.stringify([steps, this.anchorStep, this.order, this.reach, this.language()]);
    if (key === this.labelled) return;
    this.labelled = key;
    const option = (value, text) => Object.assign(this.dom.element('option', '', text), { value });
    this.anchorField.text.textContent = this.words('gram.anchor');
    this.anchorField.control.replaceChildren(...steps.map((step) => option(step, this.words('step', { step }))));
    this.anchorField.control.value = this.anchorStep;
    this.orderField.text.textContent = this.words('gram.order');
    this.orderField.control.replaceChildren(...['raster', 'alike'].map((order) => option(order, this.words(`gram.order.${order}`))));
    this.orderField.control.value = this.order;
    this.reachField.text.textContent = this.words('gram.reach');
    this.reachField.control.replaceChildren(...REACHES.map((reach) => option(reach, `−${reach} … ${reach}`)));
    this.reachField.control.value = this.reach;
  }

  describe() {
    const { now, anchor, gram, base } = this.drawn;
    const say = this.words;
    const image = this.pinned.image + 1;
    const said = { photo: say('compare.image', { image }), gram: say('gram.matrix', { step: now.step }), difference: say('gram.difference', { step: now.step, anchor: anchor?.step ?? '…' }) };
    const distance = base ? plain(gramDistance(gram, base), 4) : '…';
    said.distance = say('gram.distance', { anchor: anchor?.step ?? '…', distance });
    for (const panel of [this.photo, this.matrix, this.difference, this.curve]) {
      const text = said[panel.node.dataset.kind];
      panel.caption.textContent = text;
      panel.picture.setAttribute('aria-label', text);
    }
    const n = this.places.length;
    if (!this.cell) return void (this.readout.textContent = say('gram.hint', { n }));
    const [i, j] = this.cell;
    const columns = this.probes.grid[1];
    const spot = (k) => say('gram.spot', { row: Math.floor(this.places[k] / columns) + 1, col: (this.places[k] % columns) + 1 });
    this.readout.textContent = say('gram.readout', {
      a: spot(i), b: spot(j), cosine: plain(gram[i * n + j]), before: base ? plain(base[i * n + j]) : '…',
    });
  }

  close() {
    this.frames?.close();
    Object.assign(this, { run: null, frames: null, drawn: null });
  }
}

export default { create: (options) => new Gram(options), chosenPlaces, gramMatrix, gramDistance, sorted };
