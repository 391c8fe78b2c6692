// Beside the curves: the advised Gram teacher, what the run doctor found, and the list of events. Text only.

const LISTED = 200;

class Side {
  /** `onStep(step, other)` moves the playhead, `onMetric(name)` shows a curve, `onLight(key)` makes an event stand out. */
  constructor({ dom, words, nameOf, say, language, onStep, onMetric, onLight }) {
    Object.assign(this, { dom, words, nameOf, say, language, onStep, onMetric, onLight });
    Object.assign(this, { entries: [], found: null, failed: '' });
    const { element } = dom;
    this.node = element('aside', 'mon-side');
    this.advice = element('section', 'mon-advice');
    this.findings = element('section', 'mon-findings');
    this.events = element('section', 'mon-events');
    this.node.append(this.advice, this.findings, this.events);
  }

  relabel() {
    this.node.setAttribute('aria-label', this.words('side.title'));
    this.drawn = null;
    this.draw();
  }

  /** Events as of marks.js. */
  showEvents(entries) {
    this.entries = entries;
    this.draw();
  }

  /** Findings as of the route, null while they are on their way; `failed` says why there are none. */
  showFindings(found, failed = '') {
    Object.assign(this, { found, failed });
    this.draw();
  }

  /** How many findings ask for attention. */
  get count() {
    return (this.found ?? []).filter(({ level }) => ['warn', 'error'].includes(level)).length;
  }

  /** Anew where something changed; the focus stays on what had it. */
  draw() {
    const wanted = JSON.stringify([this.entries.map(({ key }) => key), this.found, this.failed, this.language()]);
    if (wanted === this.drawn) return;
    this.drawn = wanted;
    const focused = this.node.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
    this.drawAdvice();
    this.drawFindings();
    this.drawEvents();
    if (focused) [...this.node.querySelectorAll('[data-focus]')].find((node) => node.dataset.focus === focused)?.focus();
  }

  heading(text, count) {
    const head = this.dom.element('h2', 'mon-side-head', text);
    if (count) head.append(this.dom.element('span', 'mon-count', String(count)));
    return head;
  }

  stepButton(step, other = false) {
    const made = this.dom.button('mon-link', () => this.onStep(step, other));
    made.textContent = this.words('step', { step });
    return made;
  }

  // -- the advised teacher -------------------------------------------------------------------------------------------
  drawAdvice() {
    const advising = ({ event, other }) => !other && event.kind === 'dense-peak' && (event.command || event.advised_step != null);
    const event = this.entries.filter(advising).at(-1)?.event;
    this.advice.hidden = !event;
    if (!event) return void this.advice.replaceChildren();
    const { element } = this.dom;
    const parts = [this.heading(this.words('advice.title')), element('p', '', this.adviceWords(event))];
    if (event.advised_step != null) {
      const line = element('p', 'mon-advised');
      line.append(element('span', '', this.words('advice.teacher')), this.stepButton(event.advised_step));
      parts.push(line);
    }
    if (event.command) {
      const copy = this.dom.copyButton(event.command, this.words, 'copy.command');
      copy.dataset.focus = 'copy-command';
      parts.push(element('pre', 'mon-code mon-command', event.command), copy);
    }
    this.advice.replaceChildren(...parts);
  }

  adviceWords(event) {
    const values = {
      series: event.series ? this.nameOf(event.series) : this.words('advice.dense'), peak: event.peak_step, since: event.since,
      confidence: event.confidence == null ? '' : `${Math.round(100 * event.confidence)} %`,
    };
    const said = [event.peak_step != null && 'advice.peak', event.since != null && 'advice.since', event.confidence != null && 'advice.confidence'];
    return said.filter(Boolean).map((key) => this.words(key, values)).join(' · ') || event.text;
  }

  // -- findings ----------------------------------------------------------------------------------------------------------
  drawFindings() {
    const { element } = this.dom;
    const { found, failed } = this;
    const parts = [this.heading(this.words('findings.title'), found?.length)];
    if (failed) parts.push(element('p', 'mon-quiet', this.words('findings.failed')), element('p', 'mon-quiet', failed));
    else if (found === null) parts.push(element('p', 'mon-quiet', this.words('findings.waiting')));
    else if (!found.length) parts.push(element('p', 'mon-quiet', this.words('findings.none')));
    else parts.push(...found.map((finding, place) => this.finding(finding, place)));
    this.findings.replaceChildren(...parts);
  }

  finding({ rule, level, title, text, fix, metric, steps, source }, place) {
    const { element } = this.dom;
    const language = this.language();
    const box = element('article', 'mon-finding');
    box.dataset.level = level;
    const head = element('h3', '', title[language] || rule);
    head.prepend(element('span', 'mon-level', this.words(`level.${level}`)));
    box.append(head, element('p', '', text[language]));
    const evidence = element('p', 'mon-evidence');
    if (metric) {
      const show = this.dom.button('mon-link', () => this.onMetric(metric));
      show.textContent = this.words('findings.curve', { metric: this.nameOf(metric) });
      show.dataset.focus = `curve ${rule} ${place}`;
      evidence.append(show);
    }
    evidence.append(...steps.slice(0, 6).map((step) => this.stepButton(step)));
    if (evidence.childNodes.length) box.append(evidence);
    if (fix[language] && level !== 'fine') box.append(this.fix(fix[language], `${rule} ${place}`));
    const origin = [source && this.words('findings.source', { source }), rule].filter(Boolean).join(' · ');
    box.append(element('p', 'mon-source', origin));
    return box;
  }

  fix(text, key) {
    const { element } = this.dom;
    const box = element('div', 'mon-fix');
    const copy = this.dom.copyButton(text, this.words, 'copy.fix');
    copy.dataset.focus = `fix ${key}`;
    box.append(element('p', '', text), copy);
    return box;
  }

  // -- events ------------------------------------------------------------------------------------------------------------
  drawEvents() {
    const { element } = this.dom;
    const shown = [...this.entries].reverse().slice(0, LISTED);
    const list = element('ol', 'mon-event-list');
    list.append(...shown.map((entry) => this.event(entry)));
    const left = this.entries.length - shown.length;
    const body = shown.length ? [list] : [element('p', 'mon-quiet', this.words('events.none'))];
    if (left) body.push(element('p', 'mon-quiet', this.words('events.earlier', { n: left })));
    this.events.replaceChildren(this.heading(this.words('events.title'), this.entries.length), ...body);
  }

  event(entry) {
    const { element, button } = this.dom;
    const { event, other, key } = entry;
    const row = button('mon-event', () => this.onStep(event.step, other));
    row.dataset.level = event.level;
    row.dataset.focus = key;
    row.append(element('span', 'mon-event-step', `${other ? 'B ' : ''}${event.step.toLocaleString('en-US')}`), element('span', '', this.say(entry, false)));
    for (const on of ['pointerenter', 'focus']) row.addEventListener(on, () => this.onLight(key));
    for (const off of ['pointerleave', 'blur']) row.addEventListener(off, () => this.onLight(null));
    const item = element('li');
    item.append(row);
    return item;
  }
}

export default { create: (options) => new Side(options) };
