// Elements and texts. What comes from the file is only ever set as text, never as markup.

/** An element: `on…` are listeners, other attributes are set as they are; children are elements or texts. */
function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.flat().filter(Boolean));
  return node;
}

/** A number with its thousands apart. */
const group = (n) => String(n).replace(/\B(?=(\d{3})+(?:\.|$))/g, ' ');
const many = (n, one, more) => `${group(n)} ${n === 1 ? one : more || `${one}s`}`;

/** A time or a length of time. */
function time(ns) {
  const sign = ns < 0 ? '−' : '';
  const abs = Math.abs(ns);
  const trim = (value) => value.toFixed(value >= 100 ? 1 : 2).replace(/\.?0+$/, '');
  if (abs < 1000) return `${sign}${abs} ns`;
  if (abs < 1e6) return `${sign}${trim(abs / 1e3)} µs`;
  if (abs < 1e9) return `${sign}${trim(abs / 1e6)} ms`;
  return `${sign}${trim(abs / 1e9)} s`;
}

function size(bytes) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${Number.isInteger(value) ? value : value.toFixed(value < 10 ? 2 : 1)} ${units[unit]}`;
}

const hex = (value) => `0x${value.toString(16)}`;
/** A 64-bit number from its halves, exact. */
const hex64 = (lo, hi) => (hi ? `0x${hi.toString(16)}${lo.toString(16).padStart(8, '0')}` : `0x${lo.toString(16)}`);

/** Tells people who can't see the page. */
function say(text) {
  document.getElementById('status').textContent = text;
}

/** A button that copies a text; where the clipboard is closed it selects the text instead. */
function copyButton(text, beside) {
  const button = el('button', { type: 'button', class: 'copy', 'aria-label': `Copy ${text}` }, 'copy');
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = 'copied';
    } catch {
      if (beside) getSelection().selectAllChildren(beside);
      button.textContent = 'selected';
    }
    setTimeout(() => { button.textContent = 'copy'; }, 1500);
  });
  return button;
}

function token(text) {
  const code = el('code', { class: 'token' }, text);
  return el('span', { class: 'token-row' }, code, copyButton(text, code));
}

function panel(title, note, ...children) {
  const id = `h-${title.toLowerCase().replace(/[^a-z]+/g, '-')}`;
  return el('section', { class: 'panel', 'aria-labelledby': id },
    el('div', { class: 'panel-head' }, el('h2', { id }, title), note ? el('p', { class: 'note' }, note) : null),
    ...children);
}

function tiles(list) {
  return el('dl', { class: 'tiles' }, list.map(([name, value, key, bad]) =>
    el('div', { class: bad ? 'tile bad' : 'tile' },
      el('dt', {}, name), el('dd', key ? { 'data-count': key, 'data-value': value } : {}, typeof value === 'number' ? group(value) : value))));
}

function table(heads, rows, label) {
  return el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': label },
    el('table', {},
      el('thead', {}, el('tr', {}, heads.map((head) => el('th', { scope: 'col' }, head)))),
      el('tbody', {}, rows.map((row) => el('tr', {}, row.map((cell, index) =>
        el(index ? 'td' : 'th', index ? {} : { scope: 'row' }, cell)))))));
}
