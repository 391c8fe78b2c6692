// The line above the compared maps: which runs, how steps are matched, what the small maps show, the fixed ranges.

function field(dom, control) {
  const label = dom.element('label', 'mon-field');
  const text = dom.element('span');
  label.append(text, control);
  return { label, text, control };
}

class CompareBar {
  /** `onChoose(id or "none")`, `onSwap()`, `onAlign(own)` and `onLook({strips, range, reach})` tell what was chosen. */
  constructor({ dom, words, parts, compareModule, onChoose, onSwap, onAlign, onLook }) {
    Object.assign(this, { dom, words, parts, compareModule, choices: [] });
    const { element, button } = dom;
    this.look = { strips: 'similarity', range: 'unit', reach: 0.5 };
    this.node = element('div', 'mon-curves-bar mon-compare-bar');
    this.nameA = element('span', 'mon-name');
    this.a = element('span', 'mon-run-key');
    this.a.append(element('b', 'mon-letter', 'A'), this.nameA);
    this.b = element('span', 'mon-run-key');
    this.chooser = this.makeChooser(onChoose);
    this.b.append(element('b', 'mon-letter', 'B'), this.chooser);
    this.a.firstChild.dataset.run = 'a';
    this.b.firstChild.dataset.run = 'b';
    this.swap = button('mon-icon', onSwap);
    this.swap.append(dom.icon('M4 7h12l-3-3M16 13H4l3 3'));
    this.align = field(dom, this.select(['fork', 'own'], (value) => onAlign(value === 'own')));
    const change = (entry) => { Object.assign(this.look, entry); this.drawKeys(); onLook(this.look); };
    this.strips = field(dom, this.select(['similarity', 'pca'], (strips) => change({ strips })));
    this.range = field(dom, this.select(['unit', 'signed'], (range) => change({ range })));
    this.reach = field(dom, this.select(compareModule.REACHES.map(String), (reach) => change({ reach: Number(reach) })));
    this.reach.control.value = '0.5';
    this.keyA = element('span', 'mon-keys-row');
    this.keyD = element('span', 'mon-keys-row');
    this.range.label.append(this.keyA);
    this.reach.label.append(this.keyD);
    this.node.append(this.a, this.swap, this.b, this.align.label, element('span', 'mon-space'), this.strips.label, this.range.label, this.reach.label);
  }

  /** A list of the runs to compare with; the page has one here and one above the curves. */
  makeChooser(onChoose) {
    const chooser = this.dom.element('select', 'mon-choose');
    chooser.addEventListener('change', () => onChoose(chooser.value));
    return chooser;
  }

  select(values, onChange) {
    const control = this.dom.element('select');
    control.append(...values.map((value) => Object.assign(this.dom.element('option'), { value })));
    control.addEventListener('change', () => onChange(control.value));
    return control;
  }

  /** The next thing for the small maps to show (key "m"). */
  next() {
    const { control } = this.strips;
    control.value = control.value === 'pca' ? 'similarity' : 'pca';
    control.dispatchEvent(new Event('change'));
  }

  /** Which runs there are to compare with. An open list is left alone while nothing changes. */
  offer(runs, { a, b, own, related }) {
    this.nameA.textContent = a?.name ?? '';
    this.nameA.title = a?.name ?? '';
    this.align.label.hidden = !related;
    this.align.control.value = own ? 'own' : 'fork';
    this.swap.disabled = !b;
    const known = JSON.stringify([runs.map(({ id, name, status }) => [id, name, status === 'unreadable']), a?.id, this.words('compare.none')]);
    for (const chooser of [this.chooser, ...this.choices]) {
      if (chooser.known !== known) this.fill(chooser, runs.filter((run) => run.id !== a?.id && run.status !== 'unreadable'));
      chooser.known = known;
      chooser.value = b ?? 'none';
    }
  }

  fill(chooser, runs) {
    const option = (value, text) => Object.assign(this.dom.element('option', '', text), { value });
    chooser.replaceChildren(option('none', this.words('compare.none')), ...runs.map(({ id, name }) => option(id, name)));
  }

  relabel() {
    const say = this.words;
    for (const chooser of [this.chooser, ...this.choices]) chooser.setAttribute('aria-label', say('compare.with'));
    this.dom.name(this.swap, say('compare.swap'));
    this.align.text.textContent = say('compare.align');
    this.strips.control.setAttribute('aria-label', say('compare.strips'));
    this.strips.control.title = say('compare.strips');
    this.range.text.textContent = say('compare.range');
    this.reach.text.textContent = say('compare.reach');
    for (const option of this.align.control.options) option.textContent = say(`compare.align.${option.value}`);
    for (const option of this.strips.control.options) option.textContent = say(`compare.strips.${option.value}`);
    for (const option of this.range.control.options) option.textContent = option.value === 'unit' ? '0 … 1' : '−1 … 1';
    for (const option of this.reach.control.options) option.textContent = `−${option.value} … ${option.value}`;
    this.drawKeys();
  }

  drawKeys() {
    const { bar } = this.compareModule;
    const { SEQUENTIAL, DIVERGING } = this.parts;
    const [low, high] = this.compareModule.RANGES[this.look.range];
    this.keyA.replaceChildren(bar(this.dom, SEQUENTIAL, String(low).replace('-', '−'), String(high)));
    this.keyD.replaceChildren(bar(this.dom, DIVERGING, 'B', 'A'));
    this.keyD.title = `${this.words('compare.less')} · ${this.words('compare.more')}`;
  }
}

export default { create: (options) => new CompareBar(options) };
