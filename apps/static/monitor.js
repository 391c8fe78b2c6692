// The monitor page: runs on the left, the shared renderer and the live curves on the stage, one playhead for all.

// Okabe and Ito's set; blue, yellow and black are shifted where they would fade into the ground.
const RUN_COLOURS = {
  light: ['#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#a89b00', '#000000'],
  dark: ['#56a8e6', '#e69f00', '#1fbf94', '#cc79a7', '#9bd4f5', '#ee7733', '#f0e442', '#ffffff'],
};
const LIST_SECONDS = 4;
const THEMES = ['system', 'light', 'dark'];
const VIEWS = ['pictures', 'compare', 'gram', 'curves'];
const FINDINGS_SECONDS = 15;
const STORE = 'dfw';
let element, button, name, icon; // of dom.js: modules loaded from their text cannot import each other

/** What is remembered between visits; storage may be forbidden, then nothing is. */
const memory = {
  read() { try { return JSON.parse(localStorage.getItem(STORE)) ?? {}; } catch { return {}; } },
  write(entry) { try { localStorage.setItem(STORE, JSON.stringify({ ...memory.read(), ...entry })); } catch { /* private mode */ } },
};

/**
 * The address holds run, b (the run compared with), step, probe and patch (row,col; all counted from 1, as the page
 * does) and view, so that a link reopens the same thing.
 */
const address = {
  read: () => Object.fromEntries(new URLSearchParams(location.hash.slice(1))),
  /** {image, row, col} from 0 as written in the address, or null; whether it lies inside is the renderer's to say. */
  patch() {
    const { probe, patch } = address.read();
    const [image, row, col] = `${probe},${patch}`.split(',').map((text) => (/^[1-9]\d{0,5}$/.test(text) ? Number(text) - 1 : NaN));
    return [image, row, col].every(Number.isInteger) ? { image, row, col } : null;
  },
  write(entry) {
    const wanted = new URLSearchParams(Object.entries({ ...address.read(), ...entry }).filter(([, value]) => value != null));
    history.replaceState(null, '', `#${wanted}`);
  },
};

function preferredLanguage(strings) {
  const wanted = memory.read().language ?? navigator.language.slice(0, 2);
  return wanted in strings ? wanted : 'en';
}

const TYPED_INTO = 'input:not([type=range], [type=radio], [type=checkbox]), select, textarea, [contenteditable]:not([contenteditable=false])';

/** Whether a control does something by itself with a key: buttons are pressed, sliders move. */
function means(target, key) {
  if (!target.closest) return false;
  if (/^Arrow(Left|Right)$/.test(key) && target.closest('[role=tablist]')) return true;
  if (key === ' ' || key === 'Enter') return Boolean(target.closest('button, a[href], summary, input'));
  return Boolean(target.closest('input')) && /^(Arrow|Home|End|Page)/.test(key);
}

class Monitor {
  constructor({ modules, createModel, props }) {
    Object.assign(this, { modules, createModel, strings: props.strings });
    ({ element, button, name, icon } = modules.dom);
    this.language = preferredLanguage(this.strings);
    this.theme = memory.read().theme ?? 'system';
    this.view = VIEWS.includes(address.read().view) ? address.read().view : 'pictures';
    this.findings = { found: null, failed: '', asked: -Infinity };
    this.runs = [];
    this.colours = new Map();
    this.run = null;
    this.runId = null;
    this.words = (key, values = {}, fallback = key) => {
      const text = this.strings[this.language][key] ?? fallback;
      return text.replace(/\{(\w+)\}/g, (_all, name) => values[name] ?? '');
    };
    const sheet = element('style');
    sheet.textContent = props.css;
    document.head.append(sheet);
  }

  start() {
    this.build();
    this.systemDark = matchMedia('(prefers-color-scheme: dark)');
    this.systemDark.addEventListener('change', () => this.paint());
    document.addEventListener('keydown', (event) => this.onKey(event), { capture: true });
    addEventListener('hashchange', () => this.followAddress());
    addEventListener('resize', () => { this.showRail(); this.showSide(); });
    this.relabel();
    this.paint();
    this.refreshRuns();
    setInterval(() => !document.hidden && this.refreshRuns(), 1000 * LIST_SECONDS);
    setInterval(() => !document.hidden && this.tick(), 1000);
  }

  // -- structure ---------------------------------------------------------------------------------------------------
  build() {
    this.page = element('div', 'mon-page');
    const { rail, recorded } = this.modules;
    this.rail = rail.create({
      dom: this.modules.dom, words: this.words, colourOf: (id) => this.colourOf(id), onOpen: (id) => this.open(id),
    });
    this.recorded = recorded.create({
      dom: this.modules.dom, words: this.words, onBeat: (step) => this.goTo(step), onShow: () => this.tellStory(), onOwn: (id) => this.open(id),
    });
    for (const kind of ['pointerdown', 'keydown']) document.addEventListener(kind, () => this.touched(), { capture: true });
    this.page.append(this.buildHeader(), this.rail.node, this.recorded.node, this.buildStage(), this.buildHelp());
    // Beside Gradio's container, not in it: its reset of buttons and inputs would override the renderer's own look.
    document.body.append(this.page);
    this.showView();
    this.showRail();
  }

  buildHeader() {
    const header = element('header', 'mon-header');
    this.railButton = button('mon-icon', () => this.toggleRail());
    this.railButton.append(icon('M3 5h14M3 10h14M3 15h14'));
    this.brand = element('span', 'mon-brand');
    this.title = element('h1', 'mon-title');
    this.badge = element('span', 'mon-badge');
    this.tabs = element('div', 'mon-tabs');
    this.tabs.setAttribute('role', 'tablist');
    this.tabButtons = VIEWS.map((view) => {
      const tab = button('mon-tab', () => this.setView(view));
      tab.setAttribute('role', 'tab');
      tab.dataset.view = view;
      return tab;
    });
    this.tabs.append(...this.tabButtons);
    this.tabs.addEventListener('keydown', (event) => this.onTabKey(event));
    this.languageButton = button('mon-text-button', () => this.setLanguage(this.language === 'en' ? 'zh' : 'en'));
    this.themeButton = button('mon-icon', () => this.setTheme(THEMES[(THEMES.indexOf(this.theme) + 1) % THEMES.length]));
    this.verdictsButton = button('mon-text-button mon-verdicts-button', () => this.toggleVerdicts());
    this.helpButton = button('mon-icon mon-help-button', () => this.toggleHelp());
    this.helpButton.textContent = '?';
    const tools = element('div', 'mon-tools');
    tools.append(this.languageButton, this.themeButton, this.helpButton);
    header.append(this.railButton, this.brand, this.title, this.badge, element('span', 'mon-space'), this.verdictsButton, this.tabs, tools);
    // After a click with the mouse the keys belong to the stage again; who came by Tab keeps the focus.
    header.addEventListener('click', (event) => { if (event.detail > 0) event.target.closest('button')?.blur(); });
    return header;
  }

  /** Arrow keys move along the tabs, as tabs do. */
  onTabKey(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    const next = (VIEWS.indexOf(this.view) + by + VIEWS.length) % VIEWS.length;
    this.setView(VIEWS[next]);
    this.tabButtons[next].focus();
    event.preventDefault();
  }

  buildStage() {
    this.stage = element('main', 'mon-stage');
    this.notice = element('div', 'mon-notice');
    this.notice.setAttribute('role', 'status');
    this.notice.hidden = true;
    this.pictures = element('div', 'mon-pictures');
    this.empty = element('div', 'mon-empty');
    this.empty.hidden = true;
    this.pair = this.modules.pair.create({ live: this.modules.live, onChange: () => this.takeOther() });
    this.pair.wish = address.read().b ?? null;
    this.compared = this.buildCompare();
    this.curves = this.buildCurves();
    this.sizes = new ResizeObserver(() => this.fitCurves());
    this.sizes.observe(this.stage);
    const { dom, live, renderer, verdicts } = this.modules;
    this.verdicts = verdicts.create({ dom, words: this.words, parts: renderer.parts, getDiseases: live.getDiseases });
    const panels = { pictures: this.pictures, compare: this.compared, gram: this.pictures, curves: this.curves };
    for (const tab of this.tabButtons) {
      const panel = panels[tab.dataset.view];
      tab.id = `mon-tab-${tab.dataset.view}`;
      panel.id ||= `mon-panel-${tab.dataset.view}`;
      tab.setAttribute('aria-controls', panel.id);
      panel.setAttribute('role', 'tabpanel');
      if (tab.dataset.view !== 'gram') panel.setAttribute('aria-labelledby', tab.id);
    }
    this.stage.append(this.pictures, this.verdicts.node, this.compared, this.curves, this.empty, this.notice);
    return this.stage;
  }

  buildCompare() {
    const { dom, live, pair, compare, compareBar, renderer } = this.modules;
    const { parts } = renderer;
    const layer = element('section', 'mon-layer mon-compare');
    this.compare = compare.create({
      dom, words: this.words, parts, live, pair, language: () => this.language, onPin: (patch) => this.selectPatch(patch),
    });
    this.compareBar = compareBar.create({
      dom, words: this.words, parts, compareModule: compare, onChoose: (id) => this.chooseOther(id), onSwap: () => this.swap(),
      onAlign: (own) => { this.pair.own = own; this.takeOther(); }, onLook: (look) => this.compare.set(look),
    });
    layer.append(this.compareBar.node, this.compare.node);
    return layer;
  }

  buildCurves() {
    const layer = element('section', 'mon-layer mon-curves');
    const bar = element('div', 'mon-curves-bar');
    const body = element('div', 'mon-curves-body');
    const saved = { smoothing: 0.6, log: false, x: 'step', ...memory.read().curves };
    this.smoothLabel = element('label', 'mon-field');
    this.smoothText = element('span');
    this.smoothing = Object.assign(element('input'), { type: 'range', min: 0, max: 0.98, step: 0.02, value: saved.smoothing });
    this.smoothValue = element('output', 'mon-output', Number(saved.smoothing).toFixed(2));
    this.smoothLabel.append(this.smoothText, this.smoothing, this.smoothValue);
    this.logLabel = element('label', 'mon-field');
    this.logBox = Object.assign(element('input'), { type: 'checkbox', checked: saved.log });
    this.logText = element('span');
    this.logLabel.append(this.logBox, this.logText);
    this.axisLabel = element('label', 'mon-field');
    this.axisText = element('span');
    this.axis = element('select');
    this.axis.append(...['step', 'seconds'].map((x) => Object.assign(element('option'), { value: x })));
    this.axis.value = saved.x;
    this.axisLabel.append(this.axisText, this.axis);
    this.resetZoom = button('mon-text-button', () => this.charts.setZoom(null));
    this.resetZoom.hidden = true;
    this.withLabel = element('label', 'mon-field');
    this.withText = element('span');
    this.curvesChooser = this.compareBar.makeChooser((id) => this.chooseOther(id));
    this.compareBar.choices.push(this.curvesChooser);
    this.withKey = element('span', 'mon-line-key');
    this.withLabel.append(this.withText, this.curvesChooser, this.withKey);
    this.sideButton = button('mon-text-button mon-side-button', () => this.toggleSide());
    bar.append(this.smoothLabel, this.axisLabel, this.logLabel, this.withLabel, element('span', 'mon-space'), this.resetZoom, this.sideButton);
    this.buildCharts(body);
    this.side = this.buildSide();
    const main = element('div', 'mon-curves-main');
    main.append(body, this.side.node);
    layer.append(bar, main);
    this.charts.options = saved;
    const change = () => {
      const options = { smoothing: Number(this.smoothing.value), log: this.logBox.checked, x: this.axis.value };
      this.smoothValue.textContent = options.smoothing.toFixed(2);
      memory.write({ curves: options });
      this.charts.set(options.x === this.charts.options.x ? { smoothing: options.smoothing, log: options.log } : options);
    };
    for (const control of [this.smoothing, this.logBox, this.axis]) control.addEventListener('input', change);
    body.addEventListener('zoom', (event) => { this.resetZoom.hidden = !event.detail; });
    return layer;
  }

  buildCharts(body) {
    const { dom, marks, curves, card, uPlot, renderer } = this.modules;
    const say = (entry) => this.sayEvent(entry);
    this.marks = marks.create({ dom, say, onStep: ({ event, other }) => this.goTo(event.step + (other ? this.offset : 0)) });
    this.charts = curves.create({
      el: body, uPlot, dom, cardModule: card, marks: this.marks, words: this.words, isScore: renderer.isScore,
      nameOf: (series) => renderer.seriesName(series, this.language), aboutOf: (series) => this.about(series), onStep: (step) => this.goTo(step),
    });
  }

  buildSide() {
    const { dom, side, renderer } = this.modules;
    return side.create({
      dom, words: this.words, nameOf: (series) => renderer.seriesName(series, this.language), language: () => this.language,
      say: (entry) => renderer.parts.eventWords(entry.event, this.language), onStep: (step, other) => this.goTo(step + (other ? this.offset : 0)),
      onMetric: (metric) => this.showCurve(metric), onLight: (key) => this.marks.light(key),
    });
  }

  /** What a known gauge measures, in words; also for the same gauge of another backbone. */
  about(series) {
    const known = (name) => this.strings[this.language][`gauge.${name}`];
    return known(series) ?? known(series.slice(series.indexOf('/') + 1)) ?? '';
  }

  sayEvent({ event, other }) {
    const { eventWords, stepWords } = this.modules.renderer.parts;
    const where = stepWords(event.step, this.language);
    return `${other ? 'B · ' : ''}${where} · ${eventWords(event, this.language)}`;
  }

  buildHelp() {
    this.help = element('dialog', 'mon-help');
    this.help.addEventListener('click', (event) => { if (event.target === this.help) this.help.close(); });
    return this.help;
  }

  // -- language, theme, view -----------------------------------------------------------------------------------------
  relabel() {
    const say = this.words;
    document.documentElement.lang = this.language === 'zh' ? 'zh-CN' : 'en';
    document.title = say('page.title');
    this.brand.textContent = say('brand');
    name(this.railButton, say('rail.toggle'));
    name(this.languageButton, say('language.other.title'));
    this.languageButton.textContent = say('language.other');
    name(this.helpButton, say('help.title'));
    this.tabs.setAttribute('aria-label', say('view.title'));
    for (const tab of this.tabButtons) tab.textContent = say(`view.${tab.dataset.view}`);
    this.drawCount();
    this.smoothText.textContent = say('curves.smoothing');
    this.logText.textContent = say('curves.log');
    this.axisText.textContent = say('curves.axis');
    for (const option of this.axis.options) option.textContent = say(`curves.axis.${option.value}`);
    this.resetZoom.textContent = say('curves.reset');
    this.withText.textContent = say('compare.with');
    this.sideButton.textContent = say('side.title');
    this.compareBar.relabel();
    this.side.relabel();
    this.compare.relabel();
    this.offerOthers();
    this.labelTheme();
    this.fillHelp();
    this.rail.relabel();
    this.recorded.relabel();
    this.verdictsButton.textContent = say('verdicts.open');
    this.verdictsButton.title = `${say('verdicts.title')}  h`;
    this.verdicts.relabel();
    this.tick();
    this.charts.relabel();
    this.showSide();
    this.fitCurves();
    this.drawEmpty();
  }

  fillHelp() {
    const head = element('h2', '', this.words('help.title'));
    const list = element('dl', 'mon-keys');
    const keys = [
      ['← ↑ → ↓', 'patch'], [`Shift + ${this.words('key.arrows')}`, 'stride'], ['[  ]', 'step'], ['Home  End', 'ends'],
      [this.words('key.space'), 'play'], ['f', 'follow'], ['1 – 9', 'panel'], ['m', 'mode'], ['i', 'grid'], ['c', 'curves'], ['d', 'compare'], ['h', 'verdicts'], ['g', 'gram'],
      ['/', 'search'], ['?', 'help'],
    ];
    for (const [key, action] of keys) {
      list.append(element('dt', '', key), element('dd', '', this.words(`help.${action}`)));
    }
    const note = element('p', 'mon-quiet', this.words('help.zoom'));
    const close = button('mon-text-button', () => this.help.close());
    close.textContent = this.words('help.close');
    this.help.replaceChildren(head, list, note, close);
  }

  setLanguage(language) {
    this.language = language;
    memory.write({ language });
    this.model?.set('language', language);
    this.relabel();
  }

  setTheme(theme) {
    this.theme = theme;
    memory.write({ theme });
    this.labelTheme();
    this.paint();
  }

  labelTheme() {
    const shapes = { system: 'M3 4h14v9H3zM8 17h4M10 13v4', light: 'M10 6.5a3.5 3.5 0 1 0 0 7a3.5 3.5 0 1 0 0-7M10 1.5v2M10 16.5v2M1.5 10h2M16.5 10h2M4 4l1.4 1.4M14.6 14.6L16 16M4 16l1.4-1.4M14.6 5.4L16 4', dark: 'M16.5 12.2A7 7 0 0 1 7.8 3.5a7 7 0 1 0 8.7 8.7z' };
    this.themeButton.replaceChildren(icon(shapes[this.theme]));
    name(this.themeButton, this.words(`theme.${this.theme}`));
  }

  paint() {
    const dark = this.theme === 'dark' || (this.theme === 'system' && this.systemDark?.matches);
    this.page.dataset.theme = dark ? 'dark' : 'light';
    document.body.classList.toggle('dark', dark);
    document.documentElement.style.colorScheme = dark ? 'dark' : 'light';
    this.model?.set('theme', dark ? 'dark' : 'light');
    const style = getComputedStyle(this.page);
    const read = (key) => style.getPropertyValue(key).trim();
    const run = this.colourOf(this.runId);
    const other = this.otherColour(run);
    this.page.style.setProperty('--run-a', run);
    this.page.style.setProperty('--run-b', other);
    this.charts.paint({ run, other, quiet: read('--quiet'), line: read('--line'), accent: read('--accent') });
    this.overlay();
    this.rail.draw();
  }

  /** B's colour, another one than A's even where runs are many. */
  otherColour(run) {
    const set = RUN_COLOURS[this.page.dataset.theme ?? 'light'];
    const own = this.pair.id ? this.colourOf(this.pair.id) : set[1];
    return own === run ? set[(set.indexOf(own) + 1) % set.length] : own;
  }

  setView(view) {
    this.view = view;
    address.write({ view: view === 'pictures' ? null : view });
    this.showView();
  }

  showView() {
    this.page.dataset.view = this.view;
    for (const tab of this.tabButtons) {
      const chosen = tab.dataset.view === this.view;
      tab.setAttribute('aria-selected', String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
    }
    this.pictures.setAttribute('aria-labelledby', `mon-tab-${this.view === 'gram' ? 'gram' : 'pictures'}`);
    this.model?.set('view', this.scene);
    this.cover();
    this.showVerdicts();
    if (this.view !== 'pictures') {
      this.fitCurves();
      this.followOther();
    }
    this.takeOther();
  }

  /** What the renderer shows: the Gram matrix of an image is a picture of its own. */
  get scene() { return this.view === 'gram' ? 'gram' : 'run'; }

  /** What a layer covers takes no focus; the timeline below stays. */
  cover() {
    const covered = !['pictures', 'gram'].includes(this.view);
    for (const part of this.pictures.querySelectorAll('.dfw-top, .dfw-body')) part.inert = covered;
    const view = this.root?.firstElementChild?.view;
    if (!view || view.covered === covered) return;
    view.covered = covered;
    view.onframe = () => this.shareSelection();
    view.schedule();
  }

  toggleSide() {
    this.sideWish = this.curves.classList.contains('mon-no-side');
    memory.write({ side: this.sideWish });
    this.showSide();
  }

  /** The diagnosis beside the curves as wished, else where there is room. */
  showSide() {
    const open = this.sideWish ?? (innerWidth >= 1100 && (memory.read().side ?? true));
    this.curves.classList.toggle('mon-no-side', !open);
    this.sideButton.setAttribute('aria-pressed', String(open));
  }

  /** The layers cover the stage but leave the timeline of the renderer in sight. */
  fitCurves() {
    const timeline = this.pictures.querySelector('.dfw-timeline');
    if (timeline) this.sizes.observe(timeline); // its choices wrap where the window is narrow
    const bottom = timeline ? this.stage.getBoundingClientRect().bottom - timeline.getBoundingClientRect().top : 0;
    for (const layer of [this.curves, this.compared]) layer.style.bottom = `${Math.max(0, bottom)}px`;
    this.cover();
  }

  toggleRail() {
    this.railWish = this.page.classList.contains('mon-no-rail');
    memory.write({ rail: this.railWish });
    this.showRail();
  }

  /** The list of runs as wished; else where there is room and a choice, and always when another run must be chosen. */
  showRail() {
    const own = this.ownRuns().length;
    this.choice ||= own ? own > 1 : this.runs.length > 1; // once open it stays: nothing should jump when a run ends its days
    const usual = innerWidth >= 1100 && (memory.read().rail ?? this.choice);
    this.page.classList.toggle('mon-no-rail', !(this.railWish ?? (Boolean(this.troubled) || usual)));
  }

  toggleHelp() {
    if (this.help.open) this.help.close();
    else this.help.showModal();
  }

  onKey(event) {
    if (!event.isTrusted || event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.(TYPED_INTO)) return;
    if (event.key === '?') this.toggleHelp();
    else if (this.help.open) return; // Escape, Tab and Enter are the dialog's own
    else if (event.key === 'c') this.setView(this.view === 'curves' ? 'pictures' : 'curves');
    else if (event.key === 'd') this.setView(this.view === 'compare' ? 'pictures' : 'compare');
    else if (event.key === 'h') this.toggleVerdicts();
    else if (event.key === 'g') this.setView(this.view === 'gram' ? 'pictures' : 'gram');
    else if (event.key === 'm' && this.view === 'compare') this.compareBar.next();
    else if (event.key === '/') { this.railWish = true; this.showRail(); this.rail.search.focus(); }
    else return this.forward(event);
    event.preventDefault();
    event.stopPropagation();
  }

  /** Keys go to the renderer, wherever the focus is, unless they mean something where they were typed. */
  forward(event) {
    const view = this.root?.firstElementChild;
    if (!view || this.root.contains(event.target) || means(event.target, event.key)) return;
    const copy = new KeyboardEvent('keydown', { key: event.key, shiftKey: event.shiftKey, cancelable: true });
    if (!view.dispatchEvent(copy)) event.preventDefault();
  }

  // -- runs ------------------------------------------------------------------------------------------------------------
  async refreshRuns() {
    try {
      const answer = await this.modules.live.getJson('/api/runs');
      this.folder = answer.folder;
      this.runs = this.rail.runs = answer.runs.map((run) => ({ ...run, received: performance.now() }));
      this.say(null);
    } catch {
      this.say(this.words('notice.offline'));
      return;
    }
    for (const { id } of [...this.runs].sort((a, b) => a.id.localeCompare(b.id))) this.colourOf(id);
    this.rail.draw();
    this.showRail();
    this.drawEmpty();
    this.openFirst();
    this.followOther();
    this.drawRecorded();
    this.drawEvents();
  }

  ownRuns() { return this.runs.filter((run) => !run.recorded); }

  /** The run to begin with; where there is none of the user's own, the recorded story, until one comes. */
  openFirst() {
    const own = this.ownRuns().find(({ status }) => status !== 'unreadable');
    if (this.byItself && own) {
      this.touched();
      this.setView('pictures');
      return void this.open(own.id);
    }
    if (this.runId || !this.runs.length) return;
    const wanted = this.runs.find(({ id }) => id === address.read().run);
    if (wanted || own) return void this.open((wanted ?? own).id);
    if (!this.modules.recorded.story(this.runs)) return void this.open(this.runs[0].id);
    this.byItself = true;
    this.tellStory();
  }

  // -- the recorded runs ---------------------------------------------------------------------------------------------
  /** The stressed run beside its cure. */
  tellStory() {
    const { stressed, cured } = this.modules.recorded.story(this.runs);
    address.write({ run: stressed.id, step: null });
    this.setView('compare');
    this.open(stressed.id);
    this.chooseOther(cured.id);
  }

  /** From the first click or key on nothing moves by itself any more. */
  touched() {
    this.byItself = false;
    this.recorded.stop();
  }

  drawRecorded() {
    const { runs, runId, view, pair } = this;
    const told = this.modules.recorded.story(runs);
    const isRecorded = Boolean(runs.find(({ id }) => id === runId)?.recorded);
    const together = isRecorded && view === 'compare' && runId === told?.stressed.id && pair.id === told?.cured.id;
    const own = this.ownRuns().find(({ status }) => status !== 'unreadable');
    this.recorded.show(isRecorded && told && { step: told.cured.parent.step, together, own: own ? { id: own.id, name: own.name } : null });
  }

  followAddress() {
    const { run, b, step, view } = address.read();
    this.pair.wish = b ?? null;
    if (VIEWS.includes(view ?? 'pictures') && (view ?? 'pictures') !== this.view) { this.view = view ?? 'pictures'; this.showView(); }
    if (run && run !== this.runId && this.runs.some(({ id }) => id === run)) return void this.open(run);
    if (step && this.run?.data.steps.includes(Number(step))) this.goTo(Number(step));
    if (address.patch()) this.selectPatch(address.patch());
    this.followOther();
  }

  colourOf(id) {
    const set = RUN_COLOURS[this.page.dataset.theme ?? 'light'];
    if (!id) return set[0];
    if (!this.colours.has(id)) this.colours.set(id, this.colours.size % set.length);
    return set[this.colours.get(id)];
  }

  /** Once a second: ages grow. */
  tick() {
    this.rail.tick();
    this.drawTitle();
  }

  drawTitle() {
    const run = this.run?.data.run;
    this.title.textContent = run?.name ?? '';
    this.title.title = run?.name ?? '';
    this.badge.hidden = !run;
    if (!run) return;
    const phase = this.words(`phase.${run.phase}`, {}, run.phase);
    const progress = run.steps ? this.words('step.of', { step: run.step, steps: run.steps }) : this.words('step', { step: run.step });
    this.badge.textContent = [phase, this.words(`status.${run.status}`, {}, run.status), progress].join(' · ');
  }

  async open(id) {
    this.close();
    this.runId = this.rail.current = id;
    const former = address.read(); // the step belongs to the run that the address names, and so does the one compared with
    const other = former.run && former.run !== id && !this.swapping;
    address.write({ run: id, step: other ? null : former.step, b: other ? null : former.b });
    if (other) this.pair.wish = null;
    this.rail.draw();
    const token = (this.opening = {});
    const handlers = {
      kin: (data) => this.modules.pair.kinEvents(data.run, this.runs, this.words),
      onChange: (change) => this.opening === token && this.take(change),
      onTrouble: (code, message) => this.opening === token && this.trouble(code, message),
      onLink: (up) => this.opening === token && this.say(up ? null : this.words('notice.offline')),
    };
    try {
      const run = await this.modules.live.openRun(id, handlers);
      if (this.opening !== token) return void run.close();
      this.run = run;
      this.version = run.data.run.version;
      this.charts.zoom = null;
      this.resetZoom.hidden = true;
      this.paint();
      this.take({ data: run.data, rows: true, steps: true, state: true });
      this.followOther();
      this.refreshFindings();
    } catch (error) {
      if (this.opening === token) this.trouble(error.code, error.message);
    }
  }

  close() {
    this.run?.close();
    this.run = null;
    this.unmount();
    this.troubled = null;
    this.pair.close();
    this.findings = { found: null, failed: '', asked: -Infinity };
    this.side.showFindings(null);
    this.charts.update({});
    this.takeOther();
    this.drawEmpty();
    this.drawTitle();
  }

  trouble(code, message) {
    this.close();
    this.troubled = { code, message };
    this.showRail();
    this.drawEmpty();
  }

  take({ data, rows, steps, events, reset }) {
    // Made anew under the same name, or gone back to an earlier step: what is held may be of steps written once more.
    if (data.run.version !== this.version || reset) return void this.open(this.runId);
    this.drawTitle();
    if (rows || steps) this.takeOther();
    if (rows || events) this.refreshFindings();
    if (rows || events) this.drawEvents();
    if (data.steps.length && data.probes && !this.model) this.mount();
    else if (this.model && (steps || rows || events)) this.revise();
    this.drawEmpty();
  }

  // -- the run compared with -----------------------------------------------------------------------------------------
  /** Whether a view is shown in which a second run takes part. */
  get comparing() { return this.view === 'compare' || this.view === 'curves'; }

  get offset() { return this.run ? this.pair.offset(this.run.data.run) : 0; }

  /** Opens B, where a view is shown that needs it. */
  followOther() {
    if (!this.comparing || !this.run) return void this.offerOthers();
    this.pair.follow(this.run.data.run, this.runs);
    this.offerOthers();
  }

  chooseOther(id) {
    this.pair.wish = id;
    this.pair.own = false;
    address.write({ b: id });
    this.followOther();
  }

  /** B becomes A; the step shown of B is kept. */
  async swap() {
    const { id } = this.pair;
    if (!id || !this.run) return;
    const step = this.modules.pair.nearestStep(this.pair.data?.steps ?? [], (this.model?.get('step') ?? 0) - this.offset);
    this.pair.wish = this.runId;
    this.swapping = true;
    address.write({ b: this.runId, step });
    await this.open(id);
    this.swapping = false;
  }

  offerOthers() {
    const a = this.run?.data.run ?? null;
    this.compareBar.offer(this.runs, { a, b: this.pair.id, own: this.pair.own, related: Boolean(a) && this.pair.related(a) });
  }

  /** A or B changed: maps, curves, timeline and events anew. */
  takeOther() {
    const data = this.run?.data ?? null;
    const other = this.pair.data;
    this.offerOthers();
    this.withKey.hidden = !other;
    if (other && this.knownOther !== this.pair.id) this.paint();
    this.knownOther = this.pair.id;
    this.drawRecorded();
    if (this.view === 'curves' && data) this.charts.update(data.series, other && { series: other.series, offset: this.offset });
    if (this.view === 'compare') {
      this.compare.show(this.run, this.pair.run, { offset: this.offset, names: { a: data?.run.name ?? '', b: other?.run.name ?? '' } });
      this.shareSelection();
    }
    this.overlay();
    this.drawEvents();
  }

  /** B's curves on the timeline of A, while a view compares them. */
  overlay() {
    const other = this.comparing ? this.pair.data : null;
    const colour = getComputedStyle(this.page).getPropertyValue('--ink').trim();
    this.model?.set('overlay', other && { series: other.series, offset: this.offset, colour });
  }

  /** What the renderer shows, for the compared maps: its step and its patch. */
  shareSelection() {
    const view = this.root?.firstElementChild?.view;
    if (!view?.begun) return;
    if (this.view === 'pictures') return void this.verdicts.moveTo(view.step, view.pinned);
    if (this.view !== 'compare') return;
    this.compare.moveTo(view.step);
    this.compare.select(view.pinned);
  }

  // -- the four diseases ---------------------------------------------------------------------------------------------
  toggleVerdicts() {
    this.diagnosing = !this.diagnosing;
    if (this.diagnosing && this.view !== 'pictures') this.setView('pictures');
    this.showVerdicts();
  }

  /** Beside the pictures where it was asked for and there are some. */
  showVerdicts() {
    const open = Boolean(this.diagnosing && this.view === 'pictures' && this.model);
    this.page.classList.toggle('mon-diagnosing', open);
    this.verdictsButton.setAttribute('aria-pressed', String(open));
    this.verdicts.show(open ? { id: this.runId, version: this.version } : null);
    this.shareSelection();
  }

  selectPatch(patch) {
    if (!this.model) return;
    this.model.set('selection', patch);
    this.model.save_changes();
  }

  // -- events and findings -------------------------------------------------------------------------------------------
  drawEvents() {
    const { marks, pair } = this.modules;
    const { data } = this.run ?? {};
    const own = data ? [...data.events, ...pair.kinEvents(data.run, this.runs, this.words)] : [];
    const theirs = this.comparing ? this.pair.data?.events : [];
    this.charts.markEvents(marks.marked(own, theirs));
    this.side.showEvents(marks.marked(own, theirs, Infinity));
  }

  /** Asks the doctor, of a growing run at most every `FINDINGS_SECONDS`. */
  async refreshFindings() {
    const { run, findings } = this;
    const wait = findings.asked + 1000 * FINDINGS_SECONDS - performance.now();
    if (!run || findings.pending) return;
    if (wait > 0) {
      findings.pending = setTimeout(() => { findings.pending = null; this.refreshFindings(); }, wait);
      return;
    }
    findings.asked = performance.now();
    try {
      Object.assign(findings, { found: await this.modules.live.getFindings(run.data.run.id), failed: '' });
    } catch (error) {
      Object.assign(findings, { found: null, failed: String(error.message ?? error) });
    }
    if (this.findings !== findings) return;
    this.side.showFindings(findings.found, findings.failed);
    this.drawCount();
  }

  /** How many findings ask for attention, on the tab of the curves. */
  drawCount() {
    const tab = this.tabButtons.find(({ dataset }) => dataset.view === 'curves');
    const { count } = this.side;
    if (count) tab.dataset.count = count;
    else delete tab.dataset.count;
    tab.setAttribute('aria-label', count ? this.words('view.curves.count', { n: count }) : this.words('view.curves'));
  }

  showCurve(metric) {
    if (this.view !== 'curves') this.setView('curves');
    if (!this.charts.focus(metric)) this.say(this.words('findings.no-curve', { metric }));
  }

  /** Tells the renderer that the run grew, at most twice a second. */
  revise() {
    if (this.revising) return;
    this.revising = setTimeout(() => {
      this.revising = null;
      this.model?.set('revision', this.model.get('revision') + 1);
    }, 150);
  }

  // -- the shared renderer -------------------------------------------------------------------------------------------
  async mount() {
    const step = Number(address.read().step);
    const initial = { view: this.scene, language: this.language, theme: this.page.dataset.theme, revision: 0, selection: address.patch(), overlay: null };
    if (this.run.data.steps.includes(step)) initial.step = step;
    this.model = this.createModel(initial, (keys) => this.saved(keys));
    this.model.on('change:step', () => this.charts.moveTo(this.model.get('step')));
    this.root = element('div', 'mon-renderer');
    this.pictures.replaceChildren(this.root);
    const run = this.run;
    this.unrender = await this.modules.renderer.render({ model: this.model, el: this.root, experimental: { invoke: run.invoke } });
    this.fitCurves();
    this.overlay();
    this.showVerdicts();
    if (this.byItself) this.recorded.play(run.data.steps);
  }

  unmount() {
    this.recorded.stop();
    this.unrender?.();
    this.unrender = null;
    this.model?.off();
    this.model = null;
    this.pictures.replaceChildren();
    this.showVerdicts();
  }

  saved(keys) {
    const step = this.model.get('step'); // not the last one: who reloads a page that follows wants to go on following
    if (keys.includes('step')) address.write({ step: step === this.run?.data.steps.at(-1) ? null : step });
    const patch = this.model.get('selection');
    if (keys.includes('selection') && patch) address.write({ probe: patch.image + 1, patch: `${patch.row + 1},${patch.col + 1}` });
  }

  goTo(step) {
    if (!this.model) return;
    const { steps } = this.run.data;
    const near = steps.reduce((best, known) => (Math.abs(known - step) < Math.abs(best - step) ? known : best), steps[0]);
    this.model.set('step', near);
    this.model.save_changes();
  }

  // -- words instead of pictures ---------------------------------------------------------------------------------------
  drawEmpty() {
    const key = this.emptyKey();
    this.page.dataset.empty = key ?? '';
    this.empty.hidden = key === null;
    if (!key) return;
    const body = element('div', 'mon-empty-card');
    const { code, message } = this.troubled ?? {};
    const text = key === 'trouble' ? this.words(`error.${code}`, {}, message) : this.words(`empty.${key}.text`);
    body.append(element('h2', '', this.words(`empty.${key}.title`)), element('p', '', text));
    if (code === 'run-unreadable') body.append(element('p', '', message));
    if (key === 'runs') {
      body.append(element('pre', 'mon-code', 'make demo'), element('p', 'mon-quiet', this.words('empty.runs.folder', { folder: this.folder ?? '' })));
    }
    this.empty.replaceChildren(body);
  }

  emptyKey() {
    if (this.troubled) return 'trouble';
    if (!this.runs.length) return 'runs';
    return this.run && !this.model ? 'probes' : null;
  }

  /** A line over the stage, or none. */
  say(text) {
    this.notice.hidden = !text;
    this.notice.textContent = text ?? '';
  }
}

export default { render: (context) => new Monitor(context).start() };
