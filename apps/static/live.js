// The page's side of the HTTP routes: one run's data, kept current by server-sent deltas.

async function getJson(url) {
  const answer = await fetch(url);
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(body.message ?? answer.statusText), { code: body.error ?? 'unknown' });
  return body;
}

async function getBytes(url) {
  const answer = await fetch(url);
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(body.message ?? answer.statusText), { code: body.error ?? 'unknown' });
}

/** The summary with its series in an object without a prototype: a metric may be called "constructor". */
async function getSummary(base) {
  const data = await getJson(`${base}/summary`);
  return { ...data, series: Object.assign(Object.create(null), data.series) };
}

function appendColumns(series, delta) {
  for (const [name, columns] of Object.entries(delta)) {
    const known = (series[name] ??= { step: [], seconds: [], value: [] });
    for (const key of ['step', 'seconds', 'value']) for (const x of columns[key]) known[key].push(x);
  }
}

/**
 * The summary without what the page itself says about the run, and with what it knows of the run's kin; a new object,
 * so that changes can be told.
 */
function forRenderer(data, kin) {
  const { id, steps } = data.run;
  const events = kin.length ? [...data.events, ...kin].sort((a, b) => a.step - b.step) : data.events;
  return { ...data, events, run: { id, steps, name: '', phase: '', status: '' } };
}

/**
 * Opens a run. `onChange({data, rows, steps, state, reset})` says what a delta brought (`reset`: the run went back to an
 * earlier step, so features that are held may have been written anew), `onTrouble(code, message)` that the
 * run is gone or unreadable, `onLink(up)` whether the server answers; `kin(data)` gives events that the page knows of
 * the run's forks. Returns {data, invoke, close}.
 */
async function openRun(id, { onChange, onTrouble, onLink, kin = () => [] }) {
  const base = `/api/runs/${id}`;
  let data = await getSummary(base);
  let source = null;
  let cursor = data.cursor;
  let closed = false;

  async function reload() {
    try {
      data = await getSummary(base);
      cursor = data.cursor;
      if (!closed) onChange({ data, rows: true, steps: true, state: true, reset: true });
    } catch (error) {
      if (!closed) onTrouble(error.code, error.message);
    }
  }

  function take(delta) {
    if (delta.reset) return void reload().then(restart);
    cursor = delta.cursor;
    const steps = delta.steps.join() !== data.steps.join();
    const state = delta.run.status !== data.run.status;
    const rows = Object.keys(delta.series).length > 0;
    appendColumns(data.series, delta.series);
    data.events.push(...delta.events);
    data.steps = delta.steps;
    if (delta.probes) data.probes = delta.probes;
    Object.assign(data.run, delta.run);
    data.received = performance.now();
    onChange({ data, rows, steps, state, events: delta.events.length > 0 });
  }

  function listen() {
    if (source || closed || document.hidden) return;
    source = new EventSource(`${base}/stream?cursor=${cursor}`);
    source.onmessage = (event) => { onLink(true); take(JSON.parse(event.data)); };
    source.onopen = () => onLink(true);
    source.onerror = () => { if (!closed) onLink(false); if (source?.readyState === EventSource.CLOSED) retryLater(); };
    source.addEventListener('gone', (event) => {
      hush();
      const detail = JSON.parse(event.data);
      onTrouble(detail.error, detail.message);
    });
  }
  function hush() { source?.close(); source = null; }
  function restart() { hush(); listen(); }
  function retryLater() { hush(); setTimeout(listen, 2000); }
  // A hidden tab holds no connection: browsers allow six per server, and nobody is looking.
  const onVisible = () => (document.hidden ? hush() : listen());
  document.addEventListener('visibilitychange', onVisible);
  data.received = performance.now();
  listen();

  const version = () => `v=${data.run.version}`;
  const view = (buffer) => new DataView(buffer);
  /** What the shared renderer calls: (name, message) -> [json, DataView[]]. */
  async function invoke(name, message = {}) {
    if (name === 'summary') return [forRenderer(data, kin(data)), []];
    if (name === 'image') {
      const answer = await getBytes(`${base}/images/${message.index}.png?${version()}`);
      return [{ index: message.index, type: 'image/png' }, [view(await answer.arrayBuffer())]];
    }
    if (name === 'probes') {
      const dtype = message.dtype ?? 'int8';
      const answer = await getBytes(`${base}/probes/${message.step}?dtype=${dtype}`);
      return [{ step: message.step, dtype }, [view(await answer.arrayBuffer())]];
    }
    if (name === 'basis') {
      const answer = await getBytes(`${base}/basis`);
      return [JSON.parse(answer.headers.get('x-basis')), [view(await answer.arrayBuffer())]];
    }
    throw new Error(`the page has no data called ${name}; it has summary, image, probes and basis`);
  }
  function close() {
    closed = true;
    hush();
    document.removeEventListener('visibilitychange', onVisible);
  }
  return { get data() { return data; }, invoke, close };
}

/** One PCA basis for two runs: {info, bytes}. */
async function getJointBasis(first, second) {
  const answer = await getBytes(`/api/runs/${first}/basis/${second}`);
  return { info: JSON.parse(answer.headers.get('x-basis')), bytes: await answer.arrayBuffer() };
}

/** The four diseases on one probe image, image and patch "row,column" from 0: {info, bytes}. */
async function getDiseases(id, step, image, patch) {
  const answer = await getBytes(`/api/runs/${id}/diseases/${step}/${image}?patch=${patch}`);
  return { info: JSON.parse(answer.headers.get('x-verdicts')), bytes: await answer.arrayBuffer() };
}

const getFindings = async (id) => (await getJson(`/api/runs/${id}/findings`)).findings;

export default { getJson, getJointBasis, getFindings, getDiseases, openRun };
