// Two runs side by side: the same images, the same patch, the step of each that belongs together, one joint PCA basis,
// one fixed range of similarity, and the difference of the similarity maps (A minus B) under a range of its own.

const RANGES = { unit: [0, 1], signed: [-1, 1] };
const REACHES = [0.25, 0.5, 1];
const GAP = 14;
const INNER = 4;
const LABEL = 34; // pixels for the letters left of the small maps
const CAPTION = 22;
const LEAST = 44; // pixels; smaller maps scroll instead
const MEMORY = 96 * 2 ** 20; // bytes of features kept of each run

/** Small maps: how many images in a row, and the side of one map, so that all rows fit if they can. */
export function fitStrips({ count, rows, width, height, aspect }) {
  let best = { side: 0 };
  for (let lines = 1; lines <= count; lines++) {
    const across = Math.ceil(count / lines);
    const wide = (width - LABEL - (across - 1) * GAP) / across;
    const tall = ((height - (lines - 1) * GAP) / lines - CAPTION - (rows - 1) * INNER) / rows / aspect;
    const side = Math.floor(Math.min(wide, tall));
    if (side > best.side) best = { across, side };
  }
  if (best.side >= LEAST) return best;
  return { across: Math.max(1, Math.floor((width - LABEL + GAP) / (LEAST + GAP))), side: LEAST };
}

/** Mean, least and greatest of a - b. */
export function difference(a, b) {
  let sum = 0;
  let least = Infinity;
  let greatest = -Infinity;
  for (let i = 0; i < a.length; i++) {
    const d = a[i] - b[i];
    sum += d;
    least = Math.min(least, d);
    greatest = Math.max(greatest, d);
  }
  return { mean: sum / a.length, least, greatest };
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const signed = (x, digits = 2) => `${x > 0 ? '+' : ''}${x.toFixed(digits)}`.replace('-', '−');
const plain = (x, digits = 2) => x.toFixed(digits).replace('-', '−');

/** One run's features, near the step that is shown. */
class Side {
  constructor(run, parts, changed) {
    this.run = run;
    this.parts = parts;
    this.kernel = new parts.Kernel();
    this.joint = new WeakMap();
    const load = async (step) => {
      const [, [bytes]] = await run.invoke('probes', { step, dtype: 'int8' });
      return parts.makeFrame(parts.decodeTensors(bytes), step);
    };
    this.frames = new parts.Frames(load, { budget: MEMORY, changed });
    this.frames.setSteps(run.data.steps);
  }

  frame(step) { return this.frames.want(step) ?? this.frames.nearest(step); }

  cosines(frame, index) {
    this.kernel.bind(frame);
    return this.kernel.cosines(index);
  }

  /** RGB under the joint basis, beside those under the run's own, which the page of one run keeps. */
  colours(frame, basis) {
    let own = this.joint.get(frame);
    if (!own) this.joint.set(frame, (own = { ...frame, rgb: null, rgbBasis: null }));
    return this.parts.pcaColours(own, basis);
  }

  close() { this.frames.close(); }
}

/** A map or photo: pixels of the grid, enlarged without smoothing, with the marks of patches above. */
class Cell {
  constructor(view, image, kind, run, side) {
    Object.assign(this, { view, image, kind, run });
    const { element } = view.dom;
    this.node = element('div', 'mon-cell');
    this.node.style.width = `${side}px`;
    this.node.style.aspectRatio = view.aspectRatio;
    this.node.dataset.kind = kind;
    this.picture = kind === 'photo' ? element('img') : element('canvas');
    if (kind === 'photo') Object.assign(this.picture, { alt: '', draggable: false });
    this.query = element('i', 'mon-patch');
    this.match = element('i', 'mon-patch mon-match');
    this.node.append(this.picture, this.match, this.query);
    this.node.addEventListener('pointerdown', (event) => view.pin(this.patchAt(event)));
    this.node.addEventListener('pointermove', (event) => (event.buttons & 1 ? view.pin(this.patchAt(event)) : view.hover(this.patchAt(event))));
    this.node.addEventListener('pointerleave', () => view.hover(null));
  }

  patchAt(event) {
    const box = this.node.getBoundingClientRect();
    const [rows, columns] = this.view.grid;
    const at = (offset, size, count) => Math.max(0, Math.min(count - 1, Math.floor((offset / size) * count)));
    return { image: this.image, row: at(event.clientY - box.top, box.height, rows), col: at(event.clientX - box.left, box.width, columns) };
  }

  photo(url) {
    if (this.url !== url) this.picture.src = this.url = url;
  }

  /** `write(rgba)` fills the pixels of the grid; null leaves the cell empty. */
  draw(write) {
    const [rows, columns] = this.view.grid;
    const { picture } = this;
    if (picture.width !== columns || picture.height !== rows) Object.assign(picture, { width: columns, height: rows });
    const context = picture.getContext('2d');
    if (!write) return void context.clearRect(0, 0, columns, rows);
    this.pixels ??= new ImageData(columns, rows);
    write(this.pixels.data);
    context.putImageData(this.pixels, 0, 0);
  }

  mark(which, patch) {
    const node = this[which];
    node.hidden = !patch;
    if (!patch) return;
    const [rows, columns] = this.view.grid;
    Object.assign(node.style, {
      left: `${(100 * patch.col) / columns}%`, top: `${(100 * patch.row) / rows}%`, width: `${100 / columns}%`, height: `${100 / rows}%`,
    });
  }
}

class Compare {
  /** `onPin(patch)` tells the page which patch was clicked; `words`, `wordsOf` as of the page; `parts` of the renderer. */
  constructor({ dom, words, parts, live, pair, language, onPin }) {
    Object.assign(this, { dom, words, parts, live, pairModule: pair, language, onPin });
    Object.assign(this, { a: null, b: null, basis: null, pinned: null, hovered: null, step: null, cells: [], problem: null });
    Object.assign(this, { strips: 'similarity', range: 'unit', reach: 0.5 });
    this.build();
  }

  build() {
    const { element } = this.dom;
    this.node = element('div', 'mon-compare-body');
    this.node.compare = this; // for tests
    this.note = element('p', 'mon-compare-note');
    this.hero = element('div', 'mon-hero');
    this.rows = element('div', 'mon-strips');
    this.readout = element('p', 'mon-readout');
    this.spoken = element('p', 'mon-unseen'); // said aloud for a patch that was chosen, not for each one passed over
    this.spoken.setAttribute('aria-live', 'polite');
    // One tab stop: the arrow keys move the patch, as everywhere on the page.
    this.hero.tabIndex = 0;
    this.hero.setAttribute('role', 'application');
    this.node.append(this.note, this.hero, this.readout, this.spoken, this.rows);
    this.sized = new ResizeObserver(() => this.layOut());
    this.sized.observe(this.node);
  }

  get probes() { return this.a?.run.data.probes ?? null; }

  get grid() { return this.probes.grid; }

  get aspectRatio() { return `${this.probes.image[1]} / ${this.probes.image[0]}`; }

  // -- what is compared --------------------------------------------------------------------------------------------
  /** Two runs as of live.js, {name, colour} of each, and the step of A at which B's step 0 lies; B may be null. */
  show(a, b, { offset, names }) {
    Object.assign(this, { offset, names });
    const changed = () => this.schedule();
    if (this.a?.run !== a) { this.a?.close(); this.a = a && new Side(a, this.parts, changed); this.basis = null; }
    if (this.b?.run !== b) { this.b?.close(); this.b = b && new Side(b, this.parts, changed); this.basis = null; }
    this.problem = this.trouble();
    for (const side of [this.a, this.b]) if (side && !this.problem) side.frames.setSteps(side.run.data.steps);
    if (!this.problem) this.loadBasis();
    this.layOut();
  }

  /** Why the maps cannot be compared: a key of the words, or null. */
  trouble() {
    const [one, two] = [this.a, this.b].map((side) => side?.run.data.probes);
    if (!this.a || !this.b) return 'choose';
    if (!one || !two) return 'waiting';
    if (one.same !== two.same) return 'images';
    return one.grid.join() === two.grid.join() ? null : 'grids';
  }

  /** The joint basis, again when either run has new steps; none for features of different widths. */
  async loadBasis() {
    const [a, b] = [this.a, this.b];
    const key = [a.run, b.run].map(({ data }) => `${data.run.id}.${data.run.version}.${data.steps.join()}`).join('|');
    if (this.basisKey === key || a.run.data.probes.dim !== b.run.data.probes.dim) return;
    this.basisKey = key;
    try {
      const { info, bytes } = await this.live.getJointBasis(a.run.data.run.id, b.run.data.run.id);
      if (this.a !== a || this.b !== b) return;
      const tensors = this.parts.decodeTensors(bytes);
      this.basis = Object.fromEntries(['mean', 'components', 'range'].map((name) => [name, this.parts.toFloat32(tensors[name])]));
      this.explained = info.explained;
    } catch {
      this.basisKey = null; // asked again with the next step
    }
    this.schedule();
  }

  moveTo(step) {
    this.step = step;
    this.schedule();
  }

  select(patch) {
    this.toSay ||= JSON.stringify(patch) !== JSON.stringify(this.pinned);
    this.pinned = patch;
    this.schedule();
  }

  hover(patch) {
    if (JSON.stringify(patch) === JSON.stringify(this.hovered)) return;
    this.hovered = patch;
    this.schedule();
  }

  pin(patch) {
    this.hovered = null;
    this.toSay = true;
    this.pinned = patch;
    this.onPin(patch);
    this.schedule();
  }

  set(options) {
    Object.assign(this, options);
    this.layOut();
  }

  // -- layout --------------------------------------------------------------------------------------------------------
  /** [kind, run] of the large panels, in their order. */
  heroKinds() {
    return [['photo', ''], ['pca', 'a'], ['pca', 'b'], ['similarity', 'a'], ['similarity', 'b'], ['difference', '']];
  }

  stripKinds() {
    if (this.strips === 'pca') return [['pca', 'a'], ['pca', 'b']];
    return [['similarity', 'a'], ['similarity', 'b'], ['difference', '']];
  }

  layOut() {
    const { clientWidth: width, clientHeight: height } = this.node;
    const key = JSON.stringify([width, height, this.problem, this.names, this.probes, this.strips, this.language(), this.words('compare.pca')]);
    if (key === this.laidOut) return void this.schedule();
    this.laidOut = key;
    this.note.hidden = !this.problem;
    for (const part of [this.hero, this.rows, this.readout]) part.hidden = Boolean(this.problem);
    this.cells = [];
    if (this.problem) return void this.explain();
    if (width < 80) return;
    const [tall, wide] = this.probes.image;
    const aspect = tall / wide;
    const across = width >= 760 ? 6 : 3;
    const share = across === 6 ? 0.36 * height : 0.3 * height;
    const large = Math.max(72, Math.floor(Math.min((width - 40 - (across - 1) * GAP) / across, share / aspect)));
    this.buildHero(large, across);
    const used = (Math.round(large * aspect) + CAPTION + 8) * (6 / across) + 62;
    this.buildStrips(fitStrips({ count: this.probes.count, rows: this.stripKinds().length, width: width - 40, height: height - used, aspect }));
    this.schedule();
  }

  explain() {
    const values = { a: this.names?.a ?? '', b: this.names?.b ?? '' };
    this.note.textContent = this.words(`compare.problem.${this.problem}`, values);
  }

  buildHero(side, across) {
    const { element } = this.dom;
    this.hero.style.gridTemplateColumns = `repeat(${across}, max-content)`;
    this.captions = [];
    this.hero.replaceChildren(...this.heroKinds().map(([kind, run]) => {
      const cell = new Cell(this, null, kind, run, side);
      const caption = element('figcaption', 'mon-hero-caption');
      caption.style.width = `${side}px`;
      this.cells.push(cell);
      this.captions.push({ caption, kind, run, cell });
      const figure = element('figure', 'mon-hero-figure');
      figure.append(cell.node, caption);
      return figure;
    }));
  }

  buildStrips({ across, side }) {
    const { element } = this.dom;
    const kinds = this.stripKinds();
    this.means = [];
    const lines = [];
    for (let from = 0; from < this.probes.count; from += across) {
      const line = element('div', 'mon-strip');
      const labels = element('div', 'mon-strip-labels');
      labels.setAttribute('aria-hidden', 'true');
      labels.append(...kinds.map(([kind, run]) => this.rowLabel(kind, run, side)));
      line.append(labels);
      for (let image = from; image < Math.min(from + across, this.probes.count); image++) line.append(this.column(image, kinds, side));
      lines.push(line);
    }
    this.rows.replaceChildren(...lines);
  }

  rowLabel(kind, run, side) {
    const text = kind === 'difference' ? 'A−B' : run.toUpperCase();
    const label = this.dom.element('span', 'mon-letter', text);
    const [tall, wide] = this.probes.image;
    label.style.height = `${(side * tall) / wide}px`;
    if (run) label.dataset.run = run;
    return label;
  }

  column(image, kinds, side) {
    const { element } = this.dom;
    const figure = element('figure', 'mon-column');
    figure.dataset.image = image;
    for (const [kind, run] of kinds) {
      const cell = new Cell(this, image, kind, run, side);
      this.cells.push(cell);
      figure.append(cell.node);
    }
    const caption = element('figcaption');
    const value = element('span', 'mon-quiet');
    caption.append(element('b', '', String(image + 1)), value);
    caption.style.width = `${side}px`;
    this.means.push(value);
    figure.append(caption);
    return figure;
  }

  // -- drawing -------------------------------------------------------------------------------------------------------
  schedule() {
    this.raf ??= requestAnimationFrame(() => { this.raf = null; this.draw(); });
  }

  /** The step of B that belongs to A's step: the nearest that has features. */
  otherStep() {
    return this.pairModule.nearestStep(this.b.run.data.steps, this.step - this.offset);
  }

  draw() {
    if (this.problem || !this.pinned || this.step == null || !this.cells.length || !this.node.clientWidth) return;
    const a = this.a.frame(this.pairModule.nearestStep(this.a.run.data.steps, this.step));
    const b = this.b.frame(this.otherStep());
    if (!a || !b) return;
    const query = this.hovered ?? this.pinned;
    const [rows, columns] = this.grid;
    const index = (query.image * rows + query.row) * columns + query.col;
    const maps = { a: this.a.cosines(a, index), b: this.b.cosines(b, index) };
    const matches = { a: this.parts.bestMatches(maps.a, a, query), b: this.parts.bestMatches(maps.b, b, query) };
    const rgb = this.basis && { a: this.a.colours(a, this.basis), b: this.b.colours(b, this.basis) };
    const size = rows * columns;
    for (const cell of this.cells) this.drawCell(cell, { query, maps, matches, rgb, size });
    this.describe({ a, b, query, maps, size });
  }

  drawCell(cell, { query, maps, matches, rgb, size }) {
    const hero = this.captions.some(({ cell: large }) => large === cell);
    if (hero) cell.image = query.image;
    const from = cell.image * size;
    if (cell.kind === 'photo') cell.photo(this.photoUrl(cell.image));
    else cell.draw(this.writer(cell, from, size, maps, rgb));
    cell.mark('query', cell.image === query.image ? query : null);
    cell.mark('match', cell.kind === 'similarity' ? matches[cell.run][cell.image] : null);
  }

  writer({ kind, run }, from, size, maps, rgb) {
    const part = (map) => map.subarray(from, from + size);
    if (kind === 'difference') return (rgba) => this.parts.colourDifferences(part(maps.a), part(maps.b), this.reach, rgba);
    if (kind === 'similarity') return (rgba) => this.parts.colourCosines(part(maps[run]), RANGES[this.range], rgba, 255);
    if (!rgb) return null;
    return (rgba) => {
      for (let i = 0, s = 3 * from, p = 0; i < size; i++, s += 3, p += 4) {
        rgba.set(rgb[run].subarray(s, s + 3), p);
        rgba[p + 3] = 255;
      }
    };
  }

  photoUrl(image) {
    const { id, version } = this.a.run.data.run;
    return `/api/runs/${id}/images/${image}.png?v=${version}`;
  }

  // -- words -----------------------------------------------------------------------------------------------------------
  describe({ a, b, query, maps, size }) {
    const part = (map, image) => map.subarray(image * size, (image + 1) * size);
    this.means.forEach((value, image) => {
      value.textContent = signed(difference(part(maps.a, image), part(maps.b, image)).mean);
      value.closest('figure').classList.toggle('mon-chosen', image === query.image);
    });
    const [one, two] = [part(maps.a, query.image), part(maps.b, query.image)];
    const { mean: shift, least, greatest } = difference(one, two);
    const sentence = this.words('compare.readout', {
      image: query.image + 1, row: query.row + 1, col: query.col + 1, a: plain(mean(one)), b: plain(mean(two)),
      difference: signed(shift), least: signed(least), greatest: signed(greatest),
    });
    this.readout.textContent = sentence;
    if (this.toSay && !this.hovered) {
      this.spoken.textContent = sentence;
      this.toSay = false;
    }
    this.caption({ a, b, query });
    this.hero.setAttribute('aria-label', `${this.names.a} / ${this.names.b}. ${sentence} ${this.words('compare.keys')}`);
  }

  caption({ a, b, query }) {
    const steps = { a: this.parts.stepWords(a.step, this.language()), b: this.parts.stepWords(b.step, this.language()) };
    const range = this.range === 'unit' ? '0…1' : '−1…1';
    const said = {
      photo: () => [this.words('compare.image', { image: query.image + 1 }), this.photoCaption(query.image)],
      pca: (run) => [`${run.toUpperCase()} · ${steps[run]}`, this.words(this.basis ? 'compare.pca' : 'compare.no-pca')],
      similarity: (run) => [`${run.toUpperCase()} · ${steps[run]}`, `${this.words('compare.cosine')} ${range}`],
      difference: () => ['A − B', `${this.words('compare.cosine')} −${this.reach}…${this.reach}`],
    };
    for (const { caption, kind, run, cell } of this.captions) {
      const [strong, rest] = said[kind](run);
      const key = `${strong}|${rest}`;
      if (caption.key === key) continue;
      caption.key = key;
      caption.replaceChildren(this.dom.element('b', '', strong), this.dom.element('span', '', rest));
      caption.title = run ? `${this.names[run]} · ${strong} · ${rest}` : `${strong} · ${rest}`;
      cell.node.setAttribute('role', 'img');
      cell.node.setAttribute('aria-label', caption.title);
    }
  }

  photoCaption(image) {
    const caption = this.probes.captions?.[image];
    if (!caption) return '';
    return typeof caption === 'string' ? caption : caption[this.language()] ?? caption.en ?? '';
  }

  relabel() { this.layOut(); }

  close() {
    this.a?.close();
    this.b?.close();
    Object.assign(this, { a: null, b: null, basis: null, basisKey: null, cells: [], problem: 'choose' });
  }
}

/** The colours of a fixed range as a strip. */
function bar(dom, table, low, high) {
  const canvas = Object.assign(dom.element('canvas', 'mon-ramp'), { width: 256, height: 1 });
  const pixels = new ImageData(256, 1);
  for (let i = 0; i < 256; i++) pixels.data.set([table[3 * i], table[3 * i + 1], table[3 * i + 2], 255], 4 * i);
  canvas.getContext('2d').putImageData(pixels, 0, 0);
  const key = dom.element('span', 'mon-key');
  key.append(dom.element('span', '', low), canvas, dom.element('span', '', high));
  return key;
}

export default { create: (options) => new Compare(options), bar, RANGES, REACHES };
