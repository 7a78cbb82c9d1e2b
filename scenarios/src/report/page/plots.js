// Curves and histograms as SVG: lines differ in dashes and have their names beside them, not in colour alone.

const WIDE = 620;
const TALL = 190;
const INSET = { left: 8, right: 196, top: 14, bottom: 22 };
const LINES = [['a', ''], ['b', '7 3'], ['c', '2 3'], ['d', '9 3 2 3'], ['e', '4 4'], ['f', '1 4']];
const CURVES_SHOWN = 6;

const amount = (value, unit) => (unit === 'bytes' ? size(value) : unit === 'ns' ? time(value) : unit ? many(Math.round(value * 10) / 10, unit.replace(/s$/, '')) : group(value));

/** A plot of curves over the run; it follows the timeline's axis and marks what that shows. */
class CurvePlot {
  constructor(app, title, note, curves) {
    this.app = app;
    this.unit = curves[0].unit;
    this.all = curves.toSorted((x, y) => y.peak - x.peak);
    this.curves = this.all.slice(0, CURVES_SHOWN);
    this.svg = svg('svg', { viewBox: `0 0 ${WIDE} ${TALL}`, role: 'img', 'aria-label': `${title}: ${this.curves.map((curve) => `${curve.name}, at most ${amount(curve.peak, this.unit)}`).join('; ')}` });
    const more = this.all.length - this.curves.length;
    this.node = panel(title, more ? `${note} ${more} more with lower peaks are not drawn.` : note, el('div', { class: 'plot' }, this.svg));
    this.svg.addEventListener('click', (event) => this.goTo(event));
    this.draw();
  }

  place(point) {
    const { timeline } = this.app;
    // By order, an event that is not on the page lies between those that are.
    const value = timeline.byTime ? point[1] : lowerBound(this.app.model.e.number, this.app.model.e.n, point[0]);
    return this.x(value);
  }

  x(value) {
    const [from, to] = this.app.timeline.whole();
    return INSET.left + ((value - from) / (to - from)) * (WIDE - INSET.left - INSET.right);
  }

  draw() {
    const most = Math.max(...this.curves.map((curve) => curve.peak), 1);
    const floor = TALL - INSET.bottom;
    const y = (value) => floor - (value / most) * (floor - INSET.top);
    const end = WIDE - INSET.right;
    const parts = [0.5, 1].map((part) => svg('line', { class: 'guide', x1: INSET.left, x2: end, y1: y(most * part), y2: y(most * part) }));
    parts.push(svg('line', { class: 'base', x1: INSET.left, x2: end, y1: floor, y2: floor }));
    this.window = svg('rect', { class: 'window', y: INSET.top - 6, height: floor - INSET.top + 6, x: 0, width: 0 });
    parts.push(this.window);
    const labels = [];
    this.curves.forEach((curve, index) => {
      const [name, dashes] = LINES[index % LINES.length];
      let path = '';
      let last = null;
      for (const point of curve.points) {
        const x = this.place(point).toFixed(1);
        path += last === null ? `M${x} ${floor}V${y(point[2]).toFixed(1)}` : `H${x}V${y(point[2]).toFixed(1)}`;
        last = point[2];
      }
      path += `H${end}`;
      parts.push(svg('path', { class: `curve ${name}`, d: path, 'stroke-dasharray': dashes }));
      labels.push([y(last || 0), curve, name, dashes]);
    });
    parts.push(svg('text', { class: 'axis', x: INSET.left + 2, y: INSET.top - 4 }), svg('text', { class: 'axis', x: INSET.left, y: TALL - 6 }), svg('text', { class: 'axis', x: end, y: TALL - 6, 'text-anchor': 'end' }));
    const texts = parts.slice(-3);
    texts[0].textContent = amount(most, this.unit);
    texts[1].textContent = time(this.app.model.meta.span[0]);
    texts[2].textContent = time(this.app.model.meta.span[1]);
    labels.forEach(([, curve, name, dashes], index) => {
      const top = INSET.top + 6 + index * 26;
      const text = svg('text', { class: 'name', x: end + 34, y: top + 3 });
      text.textContent = curve.name.length > 25 ? `${curve.name.slice(0, 24)}…` : curve.name;
      const peak = svg('text', { class: 'axis', x: end + 34, y: top + 14 });
      peak.textContent = `peak ${amount(curve.peak, this.unit)}`;
      const title = svg('title');
      title.textContent = `${curve.name}: at most ${amount(curve.peak, this.unit)}`;
      text.append(title);
      parts.push(svg('line', { class: `curve ${name}`, x1: end + 10, x2: end + 28, y1: top, y2: top, 'stroke-dasharray': dashes }), text, peak);
    });
    this.svg.replaceChildren(...parts);
    this.follow();
  }

  /** Marks what the timeline shows. */
  follow() {
    const { timeline } = this.app;
    const limit = (x) => Math.min(Math.max(x, INSET.left), WIDE - INSET.right);
    const [from, to] = [limit(this.x(timeline.a)), limit(this.x(timeline.b))];
    this.window.setAttribute('x', from);
    this.window.setAttribute('width', Math.max(to - from, 1));
  }

  goTo(event) {
    const box = this.svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDE;
    const { timeline } = this.app;
    const [from, to] = timeline.whole();
    const middle = from + ((x - INSET.left) / (WIDE - INSET.left - INSET.right)) * (to - from);
    const half = (timeline.b - timeline.a) / 2;
    timeline.set(middle - half, middle + half);
  }
}

/** The time below which a part of all lies, as the lowest of its step. */
function percentile(bars, part) {
  let left = bars.count * part;
  for (const [from, count] of bars.steps) {
    left -= count;
    if (left <= 0) return from;
  }
  return bars.most;
}

/** Times on a logarithmic axis, four bars to each doubling. */
function histogram(title, note, bars) {
  const place = (value) => (value < 4 ? value : Math.log2(value) * 4 - 4);
  const floor = TALL - INSET.bottom;
  const [low, high] = [place(bars.steps[0][0]), place(bars.steps.at(-1)[0]) + 1];
  const span = Math.max(high - low, 8);
  const middle = (low + high) / 2;
  const x = (value) => 10 + ((place(value) - (middle - span / 2)) / span) * (WIDE - 20);
  const most = Math.max(...bars.steps.map(([, count]) => count));
    const marks = [['median', 0.5], ['99 %', 0.99]].map(([name, part]) => [name, percentile(bars, part)]).concat([['longest', bars.most]]);
  const parts = bars.steps.map(([from, count]) => {
    const tall = Math.max((count / most) * (floor - INSET.top - 10), 1.5);
    const width = from < 4 ? 1 : 2 ** (Math.floor(Math.log2(from)) - 2);
    const wide = Math.max(x(from + width) - x(from) - 1, 1.5);
    const rect = svg('rect', { class: 'hist', x: x(from), y: floor - tall, width: wide, height: tall, rx: 1.5 });
    const tip = svg('title');
    tip.textContent = `from ${time(from)}: ${count}`;
    rect.append(tip);
    return rect;
  });
  parts.push(svg('line', { class: 'base', x1: 10, x2: WIDE - 10, y1: floor, y2: floor }));
  for (let power = Math.ceil(Math.log10(Math.max(bars.steps[0][0], 1))); 10 ** power <= bars.most * 1.3; power++) {
    const at = x(10 ** power);
    if (at < 14 || at > WIDE - 20) continue;
    const text = svg('text', { class: 'axis', x: at, y: TALL - 6, 'text-anchor': 'middle' });
    text.textContent = time(10 ** power);
    parts.push(svg('line', { class: 'guide', x1: at, x2: at, y1: INSET.top, y2: floor }), text);
  }
  const said = marks.map(([name, value]) => `${name} ${time(value)}`).join('  ·  ');
  const node = svg('svg', { viewBox: `0 0 ${WIDE} ${TALL}`, role: 'img', 'aria-label': `${title}: ${said}` }, parts);
  return panel(title, note, el('p', { class: 'figures' }, `${many(bars.count, 'transaction')}  ·  ${said}`), el('div', { class: 'plot' }, node));
}

/** All plots of a trace that have anything to show. */
function plots(app) {
  const { plots: data } = app.model.meta;
  const made = [];
  const curve = (title, note, list) => {
    const curves = list.filter((one) => one.peak > 0);
    if (!curves.length) return;
    const plot = new CurvePlot(app, title, note, curves);
    app.following.push(plot);
    made.push(plot.node);
  };
  curve('Memory by zone', 'Pages that the run holds, by where they lie.', data.zones);
  curve('Mapped for devices', 'Bytes that a device may reach.', data.mapped);
  curve('Rings', 'Chains that were added and not yet taken back.', data.queues);
  curve('Bounce pool', 'Slots of 2 KiB in use.', data.slots);
  if (data.map_to_unmap.count) made.push(histogram('From map to unmap', 'Streaming mappings.', data.map_to_unmap));
  if (data.map_to_access.count) made.push(histogram('From map to first touch', 'Streaming mappings that the device reached.', data.map_to_access));
  return made;
}
