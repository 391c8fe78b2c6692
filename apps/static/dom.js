// Making elements; text only ever enters through textContent.

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function button(className, onClick) {
  const made = element('button', className);
  made.type = 'button';
  made.addEventListener('click', onClick);
  return made;
}

function name(control, text) {
  control.title = text;
  control.setAttribute('aria-label', text);
}

function icon(path) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', '0 0 20 20');
  svg.setAttribute('aria-hidden', 'true');
  const line = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  line.setAttribute('d', path);
  svg.append(line);
  return svg;
}

/** Puts text on the clipboard; false where the browser forbids it (then nothing is there). */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { /* not a secure context, or refused: the older way */ }
  const field = Object.assign(element('textarea', 'mon-copied'), { value: text, readOnly: true });
  const focused = document.activeElement;
  document.body.append(field);
  field.select();
  const done = document.execCommand('copy');
  field.remove();
  focused?.focus();
  return done;
}

/** A button that copies `text` and says for a while whether it could. */
function copyButton(text, words, label) {
  const made = button('mon-small-button', async () => {
    made.textContent = words(await copy(text) ? 'copy.done' : 'copy.failed');
    setTimeout(() => { made.textContent = words(label); }, 2000);
  });
  made.textContent = words(label);
  return made;
}

export default { element, button, name, icon, copyButton };
