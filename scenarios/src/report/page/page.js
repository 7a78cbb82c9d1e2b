// The page: head, findings, timeline with its details, plots; keys and theme.

class App {
  constructor(model, main) {
    this.model = model;
    this.chosen = null;
    this.event = -1;
    this.following = [];
    const { meta } = model;
    this.timeline = new Timeline(this);
    this.details = el('aside', { class: 'panel details', id: 'details', 'aria-label': 'Details', tabindex: '-1' });
    main.append(...this.head(), ...this.findings(), this.stage());
    main.append(el('div', { class: 'grid' }, plots(this)));
    main.append(el('div', { class: 'grid' }, this.devices(), this.kinds(), this.longest()));
    this.timeline.resize();
    window.addEventListener('resize', () => this.timeline.resize());
    const first = model.txs.find((tx) => tx.wrong);
    if (first) this.select(first, first.faults[0] ?? -1, true);
    else {
      // Something to look at, where nothing asks to be.
      const longest = model.byId.get(meta.plots.longest[0]);
      if (longest) this.select(longest, longest.begin, false);
      else this.tell();
    }
  }

  head() {
    const { meta } = this.model;
    const { totals, thinned } = meta;
    const out = [];
    if (meta.broken) out.push(el('p', { class: 'banner bad', role: 'alert' }, `✕ The trace is broken: ${meta.broken}. The page shows the ${many(totals.events, 'event')} before that.`));
    if (meta.end && meta.end.lost) out.push(el('p', { class: 'banner bad' }, `✕ ${many(meta.end.lost, 'event was', 'events were')} lost while it was recorded.`));
    if (thinned.kept < thinned.total) {
      out.push(el('p', { class: 'banner', 'data-thinned': thinned.kept }, `The trace has ${many(thinned.total, 'event')}; this page holds ${group(thinned.kept)} of them: all ${group(thinned.must)} that are faults or belong to faulty or the longest transactions, and of the others ${((thinned.share / 4096) * 100).toFixed(1)} %. `,
        'Totals, curves and histograms count every event; whoever needs all of them has the trace.'));
    }
    if (meta.too_many) out.push(el('p', { class: 'banner bad' }, '✕ More than 50 000 transactions are faulty: of the later ones only the faults themselves are sure to be here.'));
    out.push(tiles([
      ['events', totals.events, 'events'], ['DMA transactions', totals.transactions, 'transactions'], ['findings', totals.findings, 'findings', totals.findings > 0],
      ['maps refused', totals.refused, 'refused', totals.refused > 0], ['interrupts', totals.interrupts, 'interrupts'], ['live at the end', meta.live, 'live', meta.live > 0],
      ['time', meta.span[1] >= meta.span[0] ? time(meta.span[1] - meta.span[0]) : '—']]));
    return out;
  }

  findings() {
    const { model } = this;
    const { findings, verdict } = model.meta;
    const cards = findings.slice(0, 40).map((finding, index) => {
      const tx = model.byId.get(finding.tx);
      const event = model.indexOf(finding.event);
      const [first, ...rest] = finding.text.split('\n');
      const show = el('button', { type: 'button', class: 'primary', 'data-finding': index, onclick: () => (tx ? this.select(tx, event, true) : this.selectEvent(event)) }, tx ? `Show transaction ${tx.id}` : 'Show where');
      return el('article', { class: 'finding' },
        el('h3', {}, el('span', { class: 'mark wrong', 'aria-hidden': 'true' }, '✕'), ` ${finding.name || 'finding'}`),
        el('p', {}, first.replace(`${finding.name}: `, '')),
        rest.length ? el('pre', { class: 'why' }, rest.map((line) => line.trim()).join('\n')) : null,
        el('p', { class: 'actions' }, show, event >= 0 ? el('span', { class: 'note' }, `at ${time(model.e.ts[event])}`) : null));
    });
    const out = [];
    if (cards.length) out.push(panel('What was found', findings.length > 40 ? `The first 40 of ${group(findings.length)}; key f goes to the next.` : '', el('div', { class: 'findings' }, cards)));
    const never = model.txs.filter((tx) => tx.never);
    if (never.length) {
      out.push(panel('Never unmapped', 'Mappings that were live when the run ended.', el('p', { class: 'actions' }, never.slice(0, 30).map((tx) =>
        el('button', { type: 'button', onclick: () => this.select(tx, tx.begin, true) }, `#${tx.id}`)), never.length > 30 ? `and ${group(never.length - 30)} more` : '')));
    }
    for (const [title, list] of verdict ? [['Not as the scenario expects', verdict.wrong], ['Left over', verdict.leaks]] : []) {
      if (list.length) out.push(panel(title, '', el('div', {}, list.map((line) => el('pre', { class: 'why' }, line)))));
    }
    return out;
  }

  stage() {
    const box = el('input', { type: 'search', id: 'search', placeholder: 'transaction, 0x address, site or event  ( / )', 'aria-label': 'Search: the number of a transaction, an address, a site or an event', autocomplete: 'off', spellcheck: 'false' });
    this.results = el('ul', { class: 'results', id: 'results', hidden: true });
    box.addEventListener('input', () => this.find(box.value));
    box.addEventListener('keydown', (event) => {
      if (event.key === 'Enter') {
        this.find(box.value);
        if (this.found.length) this.take(this.found[0]);
      } else if (event.key === 'ArrowDown') this.results.querySelector('button')?.focus();
      else if (event.key === 'Escape') this.results.hidden = true;
      else return;
      event.preventDefault();
    });
    this.search = box;
    const tool = (text, words, act, more = {}) => el('button', { type: 'button', 'aria-label': words, title: words, onclick: act, ...more }, text);
    this.axisButton = tool('', 'Lay events out by time, or each at the same distance (x)', () => this.toggleAxis());
    this.nameAxis();
    const bar = el('div', { class: 'toolbar', role: 'toolbar', 'aria-label': 'Timeline' },
      el('div', { class: 'search' }, box, this.results),
      tool('−', 'Zoom out (-)', () => this.timeline.zoom(1 / 0.6)), tool('+', 'Zoom in (+)', () => this.timeline.zoom(0.6), { id: 'zoom-in' }), tool('whole run', 'Show the whole run (Home)', () => this.timeline.key('Home')),
      this.axisButton,
      tool('‹', 'The transaction before (p)', () => this.step(-1)), tool('›', 'The next transaction (n)', () => this.step(1)),
      this.model.faults.length ? tool('next fault', 'The next fault (f)', () => this.nextFault(1)) : null);
    const keys = el('p', { class: 'keys', id: 'keys' }, 'Wheel, + and − zoom; drag and arrows move; n and p go through transactions, f through faults; / searches, x changes the axis, t the theme.');
    return el('div', { class: 'stage' }, el('section', { class: 'panel wide', 'aria-label': 'Timeline' }, bar, this.timeline.box, legend(), keys), this.details);
  }

  nameAxis() {
    this.axisButton.textContent = this.timeline.byTime ? 'by time' : 'in order';
  }

  toggleAxis() {
    this.timeline.setAxis(!this.timeline.byTime);
    this.nameAxis();
    this.following.forEach((plot) => plot.draw());
  }

  viewChanged() {
    this.following.forEach((plot) => plot.follow());
  }

  find(text) {
    this.found = this.model.search(text);
    const shown = this.found.slice(0, 30);
    const item = (one) => el('li', {}, el('button', { type: 'button', onclick: () => this.take(one) },
      el('strong', {}, one.tx ? this.model.title(one.tx) : `${this.model.name(one.event)} at ${time(this.model.e.ts[one.event])}`), el('span', { class: 'note' }, one.why)));
    const none = text.trim() ? [el('li', { class: 'note' }, /^0x/i.test(text.trim()) ? 'Nobody had this address mapped.' : 'Nothing is called so.')] : [];
    this.results.replaceChildren(...(shown.length ? shown.map(item) : none));
    if (this.found.length > shown.length) this.results.append(el('li', { class: 'note' }, `… and ${group(this.found.length - shown.length)} more`));
    this.results.hidden = !text.trim();
  }

  take(found) {
    this.results.hidden = true;
    if (found.tx) this.select(found.tx, found.event ?? found.tx.begin, true);
    else this.selectEvent(found.event);
    this.timeline.canvas.focus({ preventScroll: true });
  }

  /** Chooses a transaction, and an event of it; `go` brings it into the picture. */
  select(tx, event = -1, go = true) {
    this.chosen = tx;
    this.event = event ?? -1;
    if (go) this.timeline.show(tx);
    else this.timeline.redraw();
    this.tell();
    say(this.model.title(tx));
  }

  selectEvent(i) {
    if (i < 0 || i === undefined) return;
    const id = this.model.e.tx[i];
    const related = this.chosen && lifeOf(this.model, this.chosen).includes(i);
    if (!related) this.chosen = id ? this.model.byId.get(id) : null;
    this.event = i;
    this.timeline.reveal(i);
    this.tell();
    say(`${this.model.name(i)} ${words(this.model, i)}`);
  }

  step(by) {
    const { txs } = this.model;
    if (!txs.length) return;
    const at = this.chosen ? txs.indexOf(this.chosen) : by > 0 ? -1 : txs.length;
    const tx = txs[(at + by + txs.length) % txs.length];
    this.select(tx, tx.begin, true);
  }

  nextFault(by) {
    const { faults, e, byId } = this.model;
    if (!faults.length) return;
    const at = faults.findIndex((i) => i >= this.event);
    const from = at < 0 ? faults.length : faults[at] === this.event ? at : at - (by > 0 ? 1 : 0);
    const i = faults[(from + by + faults.length) % faults.length];
    const tx = byId.get(e.tx[i]);
    if (tx) this.select(tx, i, true);
    else this.selectEvent(i);
  }

  openChosen() {
    this.details.focus();
  }

  /** Fills the details. */
  tell() {
    const { model, chosen: tx } = this;
    this.details.dataset.tx = tx ? tx.id : '';
    if (tx) {
      const flags = [tx.coherent ? 'coherent' : tx.dir === null ? null : `${ARROWS[tx.dir]} ${DIRECTIONS[tx.dir]}`, size(tx.len), tx.bounced ? '▨ bounced' : null, tx.zone, tx.dev ? model.device(tx.dev) : null];
      const life = lifeOf(model, tx);
      this.details.replaceChildren(
        el('h2', {}, `Transaction ${tx.id}`, tx.wrong ? el('span', { class: 'pill bad' }, `✕ ${faultNames(model, tx)}`) : null),
        el('p', { class: 'chips' }, flags.filter(Boolean).map((flag) => el('span', { class: 'chip' }, flag))),
        answers(this, tx),
        el('h3', {}, `Its ${many(life.length, 'event')}`),
        eventList(this, life, model.e.ts[tx.begin >= 0 ? tx.begin : life[0]]));
    } else if (this.event >= 0) {
      const around = [];
      for (let i = Math.max(0, this.event - 12); i < Math.min(model.e.n, this.event + 13); i++) around.push(i);
      const finding = model.findings.get(model.e.number[this.event]);
      this.details.replaceChildren(
        el('h2', {}, model.name(this.event)), el('p', {}, words(model, this.event), ` at ${time(model.e.ts[this.event])} by ${model.who(this.event)}`),
        finding ? el('pre', { class: 'why' }, finding.text) : '',
        el('h3', {}, 'What was going on'), eventList(this, around, model.e.ts[this.event]));
    } else {
      this.details.replaceChildren(el('h2', {}, 'Details'), el('p', { class: 'note' }, 'Choose a transaction: click a bar, search for its number or an address, or press n. Here is who mapped it, which descriptor led there, when the device touched it, and what came back.'));
    }
    this.details.scrollTop = 0;
  }

  devices() {
    const rows = Object.entries(this.model.meta.totals.devices).map(([name, d]) => [name, group(d.maps), group(d.coherent), group(d.bounced), size(d.bounced_bytes), group(d.refused), `${group(d.reads)} (${size(d.read_bytes)})`, `${group(d.writes)} (${size(d.write_bytes)})`, d.violations ? el('strong', { class: 'bad' }, `✕ ${d.violations}`) : '0']);
    const node = panel('Devices', '', table(['device', 'maps', 'coherent', 'bounced', 'copied', 'refused', 'reads', 'writes', 'violations'], rows, 'Devices'));
    const names = Object.entries(this.model.meta.totals.devices);
    node.querySelectorAll('tbody tr').forEach((row, index) => { row.dataset.device = JSON.stringify({ name: names[index][0], ...names[index][1] }); });
    node.classList.add('wide');
    return node;
  }

  kinds() {
    return panel('Events by kind', '', table(['kind', 'events'], Object.entries(this.model.meta.totals.kinds).map(([name, count]) => [name, group(count)]), 'Events by kind'));
  }

  longest() {
    const { model } = this;
    const line = (id, what) => {
      const tx = model.byId.get(id);
      if (!tx) return null;
      const until = what === 'unmap' ? tx.end : tx.first;
      return until < 0 || tx.begin < 0 ? null : [el('button', { type: 'button', class: 'link', onclick: () => this.select(tx, tx.begin, true) }, `#${id}`), time(model.e.ts[until] - model.e.ts[tx.begin]), what, el('code', {}, model.owner(tx.by))];
    };
    const { longest, latest } = model.meta.plots;
    const rows = longest.slice(0, 6).map((id) => line(id, 'unmap')).concat(latest.slice(0, 6).map((id) => line(id, 'first touch'))).filter(Boolean);
    return rows.length ? panel('Longest', 'From map to unmap, and to the first touch.', table(['transaction', 'time', 'to', 'mapped by'], rows, 'Longest transactions')) : '';
  }
}

function legend() {
  const item = (style, text) => el('li', {}, el('span', { class: `key ${style}`, 'aria-hidden': 'true' }), text);
  return el('ul', { class: 'legend', 'aria-label': 'Legend' },
    item('to', '→ to the device'), item('from', '← from the device'), item('both', '↔ both ways'), item('coherent', 'coherent'), item('bounced', 'bounced'), item('fault', '✕ something wrong'),
    item('virtq', 'virtqueue'), item('mmio', 'register'), item('dma', 'map, unmap, sync'), item('kmem', 'memory'), item('irq', 'interrupt handler'));
}

function banner(meta) {
  const header = meta.header || {};
  const told = meta.told || {};
  const name = header.scenario || told.scenario || (meta.sort === 'mutants' ? 'seeded bugs' : told.bench ? `bench ${told.bench}` : meta.file);
  const bad = meta.sort === 'trace' ? meta.totals.findings + meta.live : meta.sort === 'explore' ? told.wrong.length + told.missing.length : meta.sort === 'mutants' ? told.total - told.found : 0;
  const unexpected = meta.verdict ? meta.verdict.wrong.length : null;
  const text = meta.broken ? '✕ broken trace' : unexpected === 0 ? `✓ as expected${bad ? `, ${many(bad, 'thing')} found` : ''}` : unexpected ? '✕ not as expected' : bad ? `✕ ${meta.sort === 'mutants' ? `${group(bad)} missed` : meta.sort === 'explore' ? `${group(bad)} wrong` : many(bad, 'thing found', 'things found')}` : meta.sort === 'bench' ? '' : meta.sort === 'mutants' ? '✓ all found' : '✓ nothing wrong';
  const good = text.startsWith('✓');
  document.title = `${name} – lowzone`;
  const theme = el('button', { type: 'button', id: 'theme', 'aria-label': 'Light, dark, or as the system (t)', title: 'Theme (t)' }, '◐');
  theme.addEventListener('click', () => nextTheme());
  const digest = meta.digest || told.clean_digest;
  const facts = [header.program, meta.seed !== undefined ? `seed ${meta.seed}` : told.seed !== undefined ? `seed ${told.seed}` : null, header.clock, meta.file].filter(Boolean);
  return el('header', {},
    el('div', { class: 'brand' }, el('span', { class: 'logo', 'aria-hidden': 'true' }), 'lowzone'),
    el('div', { class: 'title' }, el('h1', {}, name), text ? el('span', { class: good ? 'pill good' : 'pill bad', id: 'verdict' }, text) : null),
    meta.verdict && meta.verdict.story ? el('p', { class: 'story' }, meta.verdict.story) : null,
    el('p', { class: 'chips' }, facts.map((fact) => el('span', { class: 'chip' }, fact)), digest ? el('span', { class: 'chip' }, 'digest ', token(digest)) : null),
    theme);
}

function nextTheme() {
  const root = document.documentElement;
  const order = ['', 'light', 'dark'];
  const next = order[(order.indexOf(root.dataset.theme || '') + 1) % 3];
  root.dataset.theme = next;
  if (!next) delete root.dataset.theme;
  repaint();
  say(next ? `${next} theme` : 'the system’s theme');
}

let app = null;

function repaint() {
  INK = null;
  if (app) app.timeline.redraw();
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  if (event.key === '/' && app) app.search.focus();
  else if (event.key === 't') nextTheme();
  else if (event.key === 'x' && app) app.toggleAxis();
  else if (app && event.target !== app.timeline.canvas && /^[npf]$/i.test(event.key)) app.timeline.key(event.key, event.shiftKey);
  else return;
  event.preventDefault();
}

async function begin() {
  const data = document.getElementById('data');
  const unpacked = await unpack(data.textContent.trim());
  data.remove();
  const main = document.getElementById('main');
  document.getElementById('top').append(banner(unpacked.meta));
  if (unpacked.meta.sort === 'trace') app = new App(new Model(unpacked), main);
  else ({ explore: explorePage, mutants: mutantsPage, bench: benchPage })[unpacked.meta.sort](main, unpacked.meta.told);
  document.addEventListener('keydown', keys);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', repaint);
  const status = document.getElementById('status');
  say('Ready');
  status.dataset.ms = performance.now().toFixed(0);
  status.dataset.ready = '1';
}

begin().catch((error) => {
  const status = document.getElementById('status');
  status.className = 'banner bad';
  status.textContent = `The page can't be shown: ${error.message}`;
  status.dataset.ready = 'failed';
  throw error;
});
