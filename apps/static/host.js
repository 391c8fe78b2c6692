// Runs inside gr.HTML's js_on_load: loads our ES modules from their own text and starts the entry module.
// `element` is the component's root. The three constants are written in by apps/host.py.
const SOURCES = /*SOURCES*/{};
const ENTRY = /*ENTRY*/"";
const PROPS = /*PROPS*/{};

/** The part of anywidget's model that the shared renderer uses; `save_changes` calls what `onSave` was given. */
function createModel(initial, onSave = () => {}) {
  const state = { ...initial };
  const listeners = new Map();
  let changed = new Set();
  const fire = (event) => [...(listeners.get(event) ?? [])].forEach((listener) => listener());
  return {
    get: (key) => state[key],
    set(key, value) {
      if (Object.is(state[key], value)) return;
      state[key] = value;
      changed.add(key);
      fire(`change:${key}`);
      fire('change');
    },
    on(events, listener) {
      for (const event of events.split(' ')) {
        if (!listeners.has(event)) listeners.set(event, new Set());
        listeners.get(event).add(listener);
      }
    },
    off(events, listener) {
      for (const event of (events ?? [...listeners.keys()].join(' ')).split(' ')) {
        if (listener) listeners.get(event)?.delete(listener);
        else listeners.delete(event);
      }
    },
    save_changes() {
      const keys = [...changed];
      changed = new Set();
      if (keys.length) onSave(keys, state);
    },
  };
}

/** Imports every module text through a Blob URL, so it works under any mount path and stays byte for byte the file. */
async function loadModules(sources) {
  const urls = {};
  const modules = {};
  await Promise.all(Object.entries(sources).map(async ([name, text]) => {
    urls[name] = URL.createObjectURL(new Blob([text], { type: 'text/javascript' }));
    modules[name] = (await import(urls[name])).default;
  }));
  return { urls, modules };
}

const root = element.querySelector('.mon-host');
if (!root.dataset.started) {
  root.dataset.started = '1';
  loadModules(SOURCES).then(({ urls, modules }) => {
    root.moduleUrls = urls;
    return modules[ENTRY].render({ el: root, modules, createModel, props: PROPS });
  }).catch((error) => {
    root.textContent = `The page could not start: ${error}`;
    console.error(error);
  });
}
