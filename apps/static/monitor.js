// The monitor page: runs on the left, the shared renderer and the live curves on the stage, one playhead for all.

// Okabe and Ito's set; blue, yellow and black are shifted where they would fade into the ground.
const RUN_COLOURS = {
  light: ['#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#a89b00', '#000000'],
  dark: ['#56a8e6', '#e69f00', '#1fbf94', '#cc79a7', '#9bd4f5', '#ee7733', '#f0e442', '#ffffff'],
};
const LIST_SECONDS = 4;
const THEMES = ['system', 'light', 'dark'];
const VIEWS = ['pictures', 'curves'];
const STORE = 'dfw';
let element, button, name, icon; // of dom.js: modules loaded from their text cannot import each other

/** What is remembered between visits; storage may be forbidden, then nothing is. */
const memory = {
  read() { try { return JSON.parse(localStorage.getItem(STORE)) ?? {}; } catch { return {}; } },
  write(entry) { try { localStorage.setItem(STORE, JSON.stringify({ ...memory.read(), ...entry })); } catch { /* private mode */ } },
};

/** The address holds run, step and view, so that a link reopens the same thing. */
const address = {
  read: () => Object.fromEntries(new URLSearchParams(location.hash.slice(1))),
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
    addEventListener('resize', () => this.showRail());
    this.relabel();
    this.paint();
    this.refreshRuns();
    setInterval(() => !document.hidden && this.refreshRuns(), 1000 * LIST_SECONDS);
    setInterval(() => !document.hidden && this.tick(), 1000);
  }

  // -- structure ---------------------------------------------------------------------------------------------------
  build() {
    this.page = element('div', 'mon-page');
    const { rail } = this.modules;
    this.rail = rail.create({
      dom: this.modules.dom, words: this.words, colourOf: (id) => this.colourOf(id), onOpen: (id) => this.open(id),
    });
    this.page.append(this.buildHeader(), this.rail.node, this.buildStage(), this.buildHelp());
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
    this.languageButton = button('mon-text-button', () => this.setLanguage(this.language === 'en' ? 'zh' : 'en'));
    this.themeButton = button('mon-icon', () => this.setTheme(THEMES[(THEMES.indexOf(this.theme) + 1) % THEMES.length]));
    this.helpButton = button('mon-icon mon-help-button', () => this.toggleHelp());
    this.helpButton.textContent = '?';
    const tools = element('div', 'mon-tools');
    tools.append(this.languageButton, this.themeButton, this.helpButton);
    header.append(this.railButton, this.brand, this.title, this.badge, element('span', 'mon-space'), this.tabs, tools);
    // After a click with the mouse the keys belong to the stage again; who came by Tab keeps the focus.
    header.addEventListener('click', (event) => { if (event.detail > 0) event.target.closest('button')?.blur(); });
    return header;
  }

  buildStage() {
    this.stage = element('main', 'mon-stage');
    this.notice = element('div', 'mon-notice');
    this.notice.setAttribute('role', 'status');
    this.notice.hidden = true;
    this.pictures = element('div', 'mon-pictures');
    this.empty = element('div', 'mon-empty');
    this.empty.hidden = true;
    this.curves = this.buildCurves();
    this.sizes = new ResizeObserver(() => this.fitCurves());
    this.sizes.observe(this.stage);
    this.stage.append(this.pictures, this.curves, this.empty, this.notice);
    return this.stage;
  }

  buildCurves() {
    const layer = element('section', 'mon-curves');
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
    bar.append(this.smoothLabel, this.axisLabel, this.logLabel, element('span', 'mon-space'), this.resetZoom);
    layer.append(bar, body);
    const { isScore, seriesName } = this.modules.renderer;
    this.charts = this.modules.curves.create({
      el: body, uPlot: this.modules.uPlot, element, words: this.words, isScore,
      nameOf: (series) => seriesName(series, this.language), onStep: (step) => this.goTo(step),
    });
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
    this.smoothText.textContent = say('curves.smoothing');
    this.logText.textContent = say('curves.log');
    this.axisText.textContent = say('curves.axis');
    for (const option of this.axis.options) option.textContent = say(`curves.axis.${option.value}`);
    this.resetZoom.textContent = say('curves.reset');
    this.labelTheme();
    this.fillHelp();
    this.rail.relabel();
    this.tick();
    this.charts.relabel();
    this.fitCurves();
    this.drawEmpty();
  }

  fillHelp() {
    const head = element('h2', '', this.words('help.title'));
    const list = element('dl', 'mon-keys');
    const keys = [
      ['← ↑ → ↓', 'patch'], [`Shift + ${this.words('key.arrows')}`, 'stride'], ['[  ]', 'step'], ['Home  End', 'ends'],
      [this.words('key.space'), 'play'], ['f', 'follow'], ['1 – 9', 'panel'], ['m', 'mode'], ['i', 'grid'], ['c', 'curves'],
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
    this.charts.paint({ run: this.colourOf(this.runId), quiet: read('--quiet'), line: read('--line'), accent: read('--accent') });
    this.rail.draw();
  }

  setView(view) {
    this.view = view;
    address.write({ view: view === 'pictures' ? null : view });
    this.showView();
  }

  showView() {
    this.page.dataset.view = this.view;
    for (const tab of this.tabButtons) tab.setAttribute('aria-selected', String(tab.dataset.view === this.view));
    if (this.view === 'curves') {
      this.fitCurves();
      if (this.run) this.charts.update(this.run.data.series);
    }
  }

  /** The curves cover the stage but leave the timeline of the renderer in sight. */
  fitCurves() {
    const timeline = this.pictures.querySelector('.dfw-timeline');
    if (timeline) this.sizes.observe(timeline); // its choices wrap where the window is narrow
    const bottom = timeline ? this.stage.getBoundingClientRect().bottom - timeline.getBoundingClientRect().top : 0;
    this.curves.style.bottom = `${Math.max(0, bottom)}px`;
  }

  toggleRail() {
    this.railWish = this.page.classList.contains('mon-no-rail');
    memory.write({ rail: this.railWish });
    this.showRail();
  }

  /** The list of runs as wished; else where there is room and a choice, and always when another run must be chosen. */
  showRail() {
    this.choice ||= this.runs.length > 1; // once open it stays: nothing should jump when a run ends its days
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
    if (!this.runId && this.runs.length) this.open(this.wantedRun());
  }

  wantedRun() {
    const wanted = address.read().run;
    if (this.runs.some((run) => run.id === wanted)) return wanted;
    return (this.runs.find((run) => run.status !== 'unreadable') ?? this.runs[0]).id;
  }

  followAddress() {
    const { run } = address.read();
    if (run && run !== this.runId && this.runs.some(({ id }) => id === run)) this.open(run);
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
    const former = address.read(); // the step belongs to the run that the address names
    address.write({ run: id, step: former.run && former.run !== id ? null : former.step });
    this.rail.draw();
    const token = (this.opening = {});
    const handlers = {
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
    } catch (error) {
      if (this.opening === token) this.trouble(error.code, error.message);
    }
  }

  close() {
    this.run?.close();
    this.run = null;
    this.unmount();
    this.troubled = null;
    this.charts.update({});
    this.drawEmpty();
    this.drawTitle();
  }

  trouble(code, message) {
    this.close();
    this.troubled = { code, message };
    this.showRail();
    this.drawEmpty();
  }

  take({ data, rows, steps, events }) {
    if (data.run.version !== this.version) return void this.open(this.runId); // made anew under the same name
    this.drawTitle();
    if (rows && this.view === 'curves') this.charts.update(data.series);
    if (data.steps.length && data.probes && !this.model) this.mount();
    else if (this.model && (steps || rows || events)) this.revise();
    this.drawEmpty();
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
    const initial = { view: 'run', language: this.language, theme: this.page.dataset.theme, revision: 0, selection: null };
    if (this.run.data.steps.includes(step)) initial.step = step;
    this.model = this.createModel(initial, (keys) => this.saved(keys));
    this.model.on('change:step', () => this.charts.moveTo(this.model.get('step')));
    this.root = element('div', 'mon-renderer');
    this.pictures.replaceChildren(this.root);
    const run = this.run;
    this.unrender = await this.modules.renderer.render({ model: this.model, el: this.root, experimental: { invoke: run.invoke } });
    this.fitCurves();
  }

  unmount() {
    this.unrender?.();
    this.unrender = null;
    this.model?.off();
    this.model = null;
    this.pictures.replaceChildren();
  }

  saved(keys) {
    const step = this.model.get('step'); // not the last one: who reloads a page that follows wants to go on following
    if (keys.includes('step')) address.write({ step: step === this.run?.data.steps.at(-1) ? null : step });
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
