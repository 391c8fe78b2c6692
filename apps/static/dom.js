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

export default { element, button, name, icon };
