// Beside the pictures: which of the four diseases the chosen image shows at the chosen step, each with its picture.

const WAIT = 220; // milliseconds without a change before the server is asked
const ORDER = ['present', 'undecided', 'absent'];
const plain = (x) => (Math.abs(x) >= 100 ? x.toFixed(0) : x.toFixed(2)).replace('-', '−');

class Verdicts {
  /** `parts` of the renderer; `getDiseases(id, step, image, patch)` of live.js. */
  constructor({ dom, words, parts, getDiseases }) {
    Object.assign(this, { dom, words, parts, getDiseases, run: null, wish: null, told: null, failed: '' });
    this.node = dom.element('aside', 'mon-verdicts');
    this.node.hidden = true;
  }

  get open() { return !this.node.hidden; }

  relabel() {
    this.node.setAttribute('aria-label', this.words('verdicts.title'));
    this.draw();
  }

  /** Opens for `run` ({id, version}), closes for null. */
  show(run) {
    this.node.hidden = !run;
    const changed = run?.id !== this.run?.id || run?.version !== this.run?.version;
    this.run = run;
    if (changed) Object.assign(this, { wish: null, told: null, failed: '' });
    this.draw();
  }

  /** The step and {image, row, col} that are looked at; asked for once they rest. */
  moveTo(step, patch) {
    if (!this.open || step == null || !patch) return;
    const wish = { id: this.run.id, version: this.run.version, step, image: patch.image, patch: `${patch.row},${patch.col}` };
    if (JSON.stringify(wish) === JSON.stringify(this.wish)) return;
    this.wish = wish;
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.ask(wish), this.told ? WAIT : 0);
  }

  /** One question at a time: what was wished for meanwhile is asked afterwards. */
  async ask(wish) {
    if (this.asking || this.wish !== wish) return;
    this.asking = true;
    await this.answer(wish);
    this.asking = false;
    if (this.wish && this.wish !== wish) this.ask(this.wish);
  }

  async answer(wish) {
    try {
      const { info, bytes } = await this.getDiseases(wish.id, wish.step, wish.image, wish.patch);
      if (this.wish !== wish) return;
      Object.assign(this, { told: { ...info, patch: wish.patch, pictures: this.parts.decodeTensors(bytes) }, failed: '' });
    } catch (error) {
      if (this.wish !== wish) return;
      Object.assign(this, { told: null, failed: String(error.message ?? error) });
    }
    this.draw();
  }

  draw() {
    if (!this.open) return void this.node.replaceChildren();
    const { element } = this.dom;
    const parts = [element('h2', 'mon-side-head', this.words('verdicts.title'))];
    if (this.failed) parts.push(element('p', 'mon-quiet', this.words('verdicts.failed')), element('p', 'mon-quiet', this.failed));
    else if (!this.told) parts.push(element('p', 'mon-quiet', this.words('verdicts.waiting')));
    else {
      const sorted = [...this.told.verdicts].sort((a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state));
      parts.push(element('p', 'mon-quiet', this.about()), ...sorted.map((verdict) => this.verdict(verdict)));
    }
    this.node.replaceChildren(...parts);
  }

  /** What was looked at, and with what it was compared. */
  about() {
    const { step, image, reference, noise } = this.told;
    const said = [this.words('verdicts.where', { image: image + 1, step })];
    said.push(reference === null ? this.words('verdicts.no-reference') : this.words('verdicts.reference', { step: reference }));
    if (!noise) said.push(this.words('verdicts.no-noise'));
    return said.join(' ');
  }

  verdict({ disease, state, value, threshold, range }) {
    const { element } = this.dom;
    const box = element('article', 'mon-verdict');
    box.dataset.state = state;
    const head = element('h3', '', this.words(`disease.${disease}`));
    head.prepend(element('span', 'mon-level', this.words(`verdicts.${state}`)));
    const limit = threshold === null ? this.words('verdicts.never') : this.words('verdicts.from', { threshold: plain(threshold) });
    const alone = disease === 'lost-locality' && this.told.reference === null;
    const number = element('p', '', `${alone ? this.words('verdicts.alone') : this.words(`number.${disease}`)} `);
    number.append(element('b', '', plain(value)), ` (${limit})`);
    const pictures = element('div', 'mon-verdict-pictures');
    const before = this.told.pictures[`${disease}.before`];
    if (before) pictures.append(this.picture(before, range, this.words('verdicts.before')));
    const shown = before ? this.words('verdicts.after') : this.words(`picture.${disease}`);
    pictures.append(this.picture(this.told.pictures[disease], range, shown));
    const words = element('div', 'mon-verdict-words');
    words.append(head, number);
    if (state === 'present') words.append(element('p', 'mon-quiet', this.words(`cure.${disease}`)));
    box.append(words, pictures);
    return box;
  }

  picture(tensor, range, words) {
    const { element } = this.dom;
    const [rows, columns] = tensor.shape;
    const figure = element('figure', 'mon-verdict-picture');
    const canvas = Object.assign(element('canvas'), { width: columns, height: rows });
    canvas.setAttribute('role', 'img');
    const said = `${words}, ${plain(range[0])} … ${plain(range[1])}`;
    canvas.setAttribute('aria-label', said);
    const pixels = new ImageData(columns, rows);
    this.parts.colourCosines(this.parts.toFloat32(tensor), range, pixels.data);
    canvas.getContext('2d').putImageData(pixels, 0, 0);
    figure.append(canvas, element('figcaption', 'mon-quiet', said));
    return figure;
  }
}

export default { create: (options) => new Verdicts(options) };
