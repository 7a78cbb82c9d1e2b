// The timeline: lanes for steps, CPUs and devices, a row for each transaction that is mapped at once, on one canvas.

const GUTTER = 104;
const RULER = 26;
const ROW = 17;
/** Rows are as high as this where there is room. */
const HIGH_ROW = 27;
const LEAST = 430;
const CPU = 34;
const PORT = 30;
/** Events that are drawn on a CPU's lane, by the part of the name before the colon: y and height within the lane. */
const BANDS = { virtq: [3, 7, 'virtq'], mmio: [11, 5, 'mmio'], dma: [17, 7, 'dma'], swiotlb: [17, 7, 'dma'], kmem: [25, 6, 'kmem'] };

class Timeline {
  constructor(app) {
    this.app = app;
    this.model = app.model;
    const { e } = this.model;
    this.canvas = el('canvas', {
      id: 'timeline', tabindex: '0', role: 'application', 'aria-roledescription': 'timeline', 'aria-describedby': 'keys',
      'aria-label': 'Timeline of CPUs, devices and DMA transactions',
    });
    this.tip = el('div', { class: 'tip', hidden: true });
    this.overview = el('canvas', { class: 'overview', 'aria-hidden': 'true' });
    this.box = el('div', { class: 'timeline' }, this.overview, this.canvas, this.tip);
    this.order = new Float64Array(e.n);
    for (let i = 0; i < e.n; i++) this.order[i] = i;
    this.scroll = 0;
    this.row = ROW;
    this.byTime = !this.isLumpy();
    this.layout();
    [this.a, this.b] = this.whole();
    this.listen();
  }

  /** Whether by time nearly everything would lie on one spot. */
  isLumpy() {
    const { e } = this.model;
    if (e.n < 3) return true;
    const [from, to] = [e.ts[0], e.ts[e.n - 1]];
    const cells = new Set();
    for (let i = 0; i < e.n; i++) cells.add(Math.floor(((e.ts[i] - from) / (to - from || 1)) * 200));
    return cells.size < 60;
  }

  get axis() { return this.byTime ? this.model.e.ts : this.order; }

  whole() {
    const { n } = this.model.e;
    if (!n) return [0, 1];
    const [from, to] = [this.axis[0], this.axis[n - 1]];
    const margin = Math.max((to - from) * 0.02, 1);
    return [from - margin, to + margin];
  }

  /** Lanes, and the row of each transaction: the first that is free when it begins. */
  layout() {
    const { model } = this;
    const { e } = model;
    this.lanes = [];
    this.rows = 0;
    let y = 0;
    const lane = (sort, name, height, more = {}) => {
      const made = { sort, name, y, height, events: [], rows: 0, txs: [], ...more };
      this.lanes.push(made);
      y += height;
      return made;
    };
    if (model.steps.length) lane('steps', 'steps', 22);
    const names = model.meta.tables.producers;
    const devices = model.meta.tables.devices;
    const cpus = names.map((name, index) => [name, index + 1]).filter(([name]) => !devices.includes(name)).sort((a, b) => (a[0] < b[0] ? -1 : 1));
    const byWho = new Map(cpus.map(([name, who]) => [who, lane('cpu', name, CPU)]));
    const byDevice = new Map();
    const portOf = new Map();
    const perDevice = new Map();
    for (const tx of model.txs) {
      if (!perDevice.has(tx.dev)) perDevice.set(tx.dev, []);
      perDevice.get(tx.dev).push(tx);
    }
    const numbers = new Set([...devices.keys()].map((index) => index + 1));
    for (const number of perDevice.keys()) numbers.add(number);
    for (const number of [...numbers].sort((a, b) => a - b)) {
      const name = model.device(number) || 'no device';
      const port = lane('port', name, PORT, { device: number });
      portOf.set(names.indexOf(name) + 1, port);
      byDevice.set(number, port);
      const txs = perDevice.get(number) || [];
      const rows = pack(txs, e.n);
      if (txs.length) lane('txs', '', rows.length * ROW + 6, { device: number, txs, rows });
      this.rows += rows.length;
    }
    for (let i = 0; i < e.n; i++) {
      const name = model.kind(i);
      const own = portOf.get(e.who[i]);
      const at = name.startsWith('port:') ? byDevice.get(e.dev[i]) : own || byWho.get(e.who[i]);
      if (at) at.events.push(i);
    }
    this.height = y;
  }

  /** Rows grow where that leaves no room empty. */
  fit(height) {
    const spare = height - RULER - 8 - (this.height - this.rows * this.row);
    this.row = this.rows ? Math.min(Math.max(Math.floor(spare / this.rows), ROW), HIGH_ROW) : ROW;
    let y = 0;
    for (const lane of this.lanes) {
      lane.y = y;
      if (lane.sort === 'txs') lane.height = lane.rows.length * this.row + 6;
      y += lane.height;
    }
    this.height = y;
  }

  x(value) { return GUTTER + ((value - this.a) / (this.b - this.a)) * (this.width - GUTTER); }
  value(x) { return this.a + ((x - GUTTER) / (this.width - GUTTER)) * (this.b - this.a); }

  set(a, b) {
    const [from, to] = this.whole();
    const least = this.byTime ? 10 : 4;
    const span = Math.min(Math.max(b - a, least), to - from);
    const middle = (a + b) / 2;
    this.a = Math.min(Math.max(middle - span / 2, from), to - span);
    this.b = this.a + span;
    this.redraw();
  }

  zoom(factor, around = (this.a + this.b) / 2) {
    this.set(around - (around - this.a) * factor, around + (this.b - around) * factor);
  }

  pan(part) {
    const by = (this.b - this.a) * part;
    this.set(this.a + by, this.b + by);
  }

  scrollTo(y) {
    const most = Math.max(0, this.height - (this.canvas.clientHeight - RULER));
    this.scroll = Math.min(Math.max(y, 0), most);
    this.redraw();
  }

  setAxis(byTime) {
    const { e } = this.model;
    const [first, last] = [lowerBound(this.axis, e.n, this.a), Math.max(lowerBound(this.axis, e.n, this.b) - 1, 0)];
    this.byTime = byTime;
    const [from, to] = [this.axis[Math.min(first, e.n - 1)], this.axis[last]];
    const margin = Math.max((to - from) * 0.02, 1);
    this.set(from - margin, to + margin);
  }

  /** Shows a transaction with what is around it. */
  show(tx) {
    const { e } = this.model;
    const life = lifeOf(this.model, tx);
    const first = tx.begin >= 0 ? tx.begin : life[0];
    // A ring lives from probe to remove: its first event is what there is to see.
    const last = tx.end >= 0 ? Math.max(tx.end, ...tx.faults) : life[life.length - 1];
    const [from, to] = [this.axis[first], this.axis[last]];
    const margin = Math.max((to - from) * 0.35, this.byTime ? 40 : 6);
    const lane = this.lanes.find((one) => one.sort === 'txs' && one.device === tx.dev);
    if (lane) {
      const y = lane.y + tx.row * this.row;
      const room = this.canvas.clientHeight - RULER;
      if (y < this.scroll || y + this.row > this.scroll + room) this.scroll = Math.min(Math.max(0, y - room / 2), Math.max(0, this.height - room));
    }
    this.set(from - margin, to + margin);
    return e.ts[first];
  }

  /** Brings an event into sight without changing the scale more than is needed. */
  reveal(i) {
    const at = this.axis[i];
    if (at >= this.a && at <= this.b) this.redraw();
    else this.set(at - (this.b - this.a) / 2, at + (this.b - this.a) / 2);
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      const begun = performance.now();
      draw(this);
      this.canvas.dataset.draw = (performance.now() - begun).toFixed(1);
      this.canvas.dataset.view = `${this.a} ${this.b}`;
      this.canvas.dataset.draws = String(Number(this.canvas.dataset.draws || 0) + 1);
      this.app.viewChanged();
    });
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const wanted = Math.min(Math.max(this.height + RULER + 8, LEAST), Math.max(LEAST, Math.round(window.innerHeight * 0.62)));
    this.fit(wanted);
    this.canvas.style.height = `${wanted}px`;
    for (const canvas of [this.canvas, this.overview]) {
      canvas.width = Math.round(canvas.clientWidth * ratio);
      canvas.height = Math.round(canvas.clientHeight * ratio);
    }
    this.width = this.canvas.clientWidth;
    this.ratio = ratio;
    this.density = null;
    this.scrollTo(this.scroll);
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener('wheel', (event) => {
      if (event.shiftKey && !event.deltaX) this.scrollTo(this.scroll + event.deltaY);
      else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.pan(event.deltaX / 900);
      else this.zoom(Math.exp(event.deltaY * 0.0016), this.value(event.offsetX));
      event.preventDefault();
    }, { passive: false });
    let drag = null;
    canvas.addEventListener('pointerdown', (event) => {
      drag = { x: event.clientX, y: event.clientY, a: this.a, b: this.b, scroll: this.scroll, moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener('pointermove', (event) => {
      if (!drag) return this.hover(event);
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      drag.moved = drag.moved || Math.hypot(dx, dy) > 4;
      const by = (dx / (this.width - GUTTER)) * (drag.b - drag.a);
      this.set(drag.a - by, drag.b - by);
      this.scrollTo(drag.scroll - dy);
      return undefined;
    });
    canvas.addEventListener('pointerup', (event) => {
      const click = drag && !drag.moved;
      drag = null;
      if (click) this.click(event);
    });
    canvas.addEventListener('pointerleave', () => { this.tip.hidden = true; });
    canvas.addEventListener('dblclick', (event) => this.zoom(0.4, this.value(event.offsetX)));
    canvas.addEventListener('keydown', (event) => {
      if (!event.ctrlKey && !event.metaKey && !event.altKey && this.key(event.key, event.shiftKey)) event.preventDefault();
    });
    this.overview.addEventListener('pointerdown', (event) => {
      const to = (pointer) => {
        const [from, until] = this.whole();
        const middle = from + ((pointer.offsetX - GUTTER) / (this.width - GUTTER)) * (until - from);
        const half = (this.b - this.a) / 2;
        this.set(middle - half, middle + half);
      };
      this.overview.setPointerCapture(event.pointerId);
      this.overview.onpointermove = to;
      this.overview.onpointerup = () => { this.overview.onpointermove = null; };
      to(event);
    });
  }

  key(key, shift) {
    const act = {
      ArrowLeft: () => this.pan(shift ? -0.5 : -0.12), ArrowRight: () => this.pan(shift ? 0.5 : 0.12),
      ArrowUp: () => this.scrollTo(this.scroll - 2 * this.row), ArrowDown: () => this.scrollTo(this.scroll + 2 * this.row),
      '+': () => this.zoom(0.6), '=': () => this.zoom(0.6), '-': () => this.zoom(1 / 0.6), _: () => this.zoom(1 / 0.6),
      Home: () => this.set(...this.whole()), 0: () => this.set(...this.whole()),
      n: () => this.app.step(1), p: () => this.app.step(-1), f: () => this.app.nextFault(shift ? -1 : 1), F: () => this.app.nextFault(-1),
      Enter: () => this.app.openChosen(),
    }[key];
    if (act) act();
    return Boolean(act);
  }

  /** What lies under a point: a transaction, an event, or nothing. */
  hit(x, y) {
    if (x < GUTTER || y < RULER) return null;
    const down = y - RULER + this.scroll;
    const lane = this.lanes.find((one) => down >= one.y && down < one.y + one.height);
    if (!lane) return null;
    const { axis } = this;
    if (lane.sort === 'txs') {
      const row = lane.rows[Math.floor((down - lane.y - 3) / this.row)];
      if (!row) return null;
      let best = null;
      for (const tx of row) {
        const [from, to] = this.ends(tx);
        const away = Math.max(from - x, x - to, 0);
        if (away < 5 && (!best || away < best.away)) best = { tx, away };
      }
      if (!best) return null;
      const event = nearest(best.tx.events, axis, this.x.bind(this), x);
      return { tx: best.tx, event };
    }
    const events = lane.sort === 'steps' ? this.model.steps : lane.events;
    if (lane.sort === 'steps') {
      const step = events.findLast((i) => this.x(axis[i]) <= x);
      return step === undefined ? null : { event: step };
    }
    const event = nearest(events, axis, this.x.bind(this), x);
    return event === null ? null : { event, tx: this.model.byId.get(this.model.e.tx[event]) };
  }

  /** Where a bar begins and ends on the screen. */
  ends(tx) {
    const { axis } = this;
    const from = tx.begin >= 0 ? this.x(axis[tx.begin]) : GUTTER;
    const to = tx.end >= 0 ? this.x(axis[tx.end]) : this.width;
    return [from, Math.max(to, from + 2)];
  }

  hover(event) {
    const found = this.hit(event.offsetX, event.offsetY);
    this.canvas.style.cursor = found ? 'pointer' : 'grab';
    this.tip.hidden = !found;
    if (!found) return;
    const { model } = this;
    const lines = [];
    if (found.tx) lines.push(el('strong', {}, model.title(found.tx)), found.tx.by ? el('span', {}, `mapped by ${model.owner(found.tx.by)}`) : '');
    if (found.event !== null && found.event !== undefined) {
      lines.push(el('span', {}, `${model.name(found.event)}  ${words(model, found.event)}`), el('span', {}, `at ${time(model.e.ts[found.event])} by ${model.who(found.event)}`));
    }
    if (found.tx && found.tx.wrong) lines.push(el('span', { class: 'bad' }, `✕ ${faultNames(model, found.tx)}`));
    this.tip.replaceChildren(...lines);
    const left = Math.min(event.offsetX + 14, this.width - this.tip.offsetWidth - 8);
    this.tip.style.left = `${Math.max(left, 4)}px`;
    this.tip.style.top = `${this.canvas.offsetTop + event.offsetY + 18}px`;
  }

  click(event) {
    const found = this.hit(event.offsetX, event.offsetY);
    if (!found) return;
    if (found.tx) this.app.select(found.tx, found.event, false);
    else this.app.selectEvent(found.event);
  }
}

function faultNames(model, tx) {
  const names = new Set(tx.faults.map((i) => model.findings.get(model.e.number[i])).filter(Boolean).map((finding) => finding.name));
  if (tx.never) names.add('never unmapped');
  return [...names].join(', ') || 'an access that no mapping allows';
}

/** Puts transactions into rows without overlap; sets `row` of each. */
function pack(txs, n) {
  const rows = [];
  const free = [];
  for (const tx of txs) {
    const from = tx.begin >= 0 ? tx.begin : -1;
    let row = free.findIndex((until) => until < from);
    if (row < 0) {
      row = rows.length;
      rows.push([]);
    }
    free[row] = tx.end >= 0 ? tx.end : n;
    rows[row].push(tx);
    tx.row = row;
  }
  return rows;
}

function lowerBound(axis, n, value) {
  let [low, high] = [0, n];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (axis[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The event nearest to a place on the screen, within a few pixels; or null. */
function nearest(list, axis, place, x) {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (place(axis[list[middle]]) < x) low = middle + 1;
    else high = middle;
  }
  let best = null;
  for (const index of [low - 1, low]) {
    if (index < 0 || index >= list.length) continue;
    const away = Math.abs(place(axis[list[index]]) - x);
    if (away < 6 && (!best || away < best.away)) best = { event: list[index], away };
  }
  return best && best.event;
}
