// Drawing of the timeline. What would fall on a pixel that is painted already is left out, so that a picture costs the
// same whether it shows a hundred events or a hundred thousand.

let INK = null;

/** The colours of the style sheet; asked for again when the theme changes. */
function ink() {
  if (INK) return INK;
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  INK = Object.fromEntries(['ink', 'dim', 'faint', 'line', 'panel', 'lane', 'to', 'from', 'both', 'coherent', 'fault', 'focus', 'virtq', 'mmio', 'dma', 'kmem', 'irq',
    'on-to', 'on-from', 'on-both', 'on-coherent'].map((name) => [name, of(name)]));
  return INK;
}

function draw(t) {
  const c = t.canvas.getContext('2d');
  c.setTransform(t.ratio, 0, 0, t.ratio, 0, 0);
  const colours = ink();
  const [width, height] = [t.width, t.canvas.clientHeight];
  c.clearRect(0, 0, width, height);
  c.font = '11px ui-sans-serif, system-ui, sans-serif';
  c.textBaseline = 'middle';
  grid(t, c, colours, height);
  c.save();
  c.beginPath();
  c.rect(0, RULER, width, height - RULER);
  c.clip();
  const { n } = t.model.e;
  const [first, last] = [lowerBound(t.axis, n, t.a), lowerBound(t.axis, n, t.b)];
  for (const lane of t.lanes) {
    const y = RULER + lane.y - t.scroll;
    if (y + lane.height < RULER || y > height) continue;
    c.save();
    c.beginPath();
    c.rect(GUTTER, y, width - GUTTER, lane.height);
    c.clip();
    if (lane.sort === 'steps') steps(t, c, colours, y);
    else if (lane.sort === 'cpu') cpu(t, c, colours, lane, y, first, last);
    else if (lane.sort === 'port') port(t, c, colours, lane, y, first, last);
    else bars(t, c, colours, lane, y, height);
    c.restore();
    label(c, colours, lane, y, width);
  }
  chosen(t, c, colours, height);
  c.restore();
  ruler(t, c, colours);
  overview(t, colours);
}

function label(c, colours, lane, y, width) {
  c.fillStyle = colours.line;
  c.fillRect(0, y + lane.height - 1, width, 1);
  if (!lane.name) return;
  c.fillStyle = lane.sort === 'steps' ? colours.dim : colours.ink;
  c.font = lane.sort === 'port' ? '600 12px ui-sans-serif, system-ui, sans-serif' : '12px ui-sans-serif, system-ui, sans-serif';
  c.fillText(lane.name.length > 14 ? `${lane.name.slice(0, 13)}…` : lane.name, 10, y + lane.height / 2);
  if (lane.sort === 'port') {
    c.font = '9px ui-sans-serif, system-ui, sans-serif';
    c.fillStyle = colours.dim;
    c.textAlign = 'right';
    c.fillText('reads', GUTTER - 8, y + 9);
    c.fillText('writes', GUTTER - 8, y + lane.height - 10);
    c.textAlign = 'left';
  }
}

/** Round steps of the axis, about one for each 110 pixels. */
function ticks(t) {
  const wanted = Math.max(2, Math.floor((t.width - GUTTER) / 110));
  const rough = (t.b - t.a) / wanted;
  const ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * ten).find((s) => s >= rough);
  const list = [];
  for (let at = Math.ceil(t.a / step) * step; at <= t.b; at += step) list.push(at);
  return list;
}

function grid(t, c, colours, height) {
  c.fillStyle = colours.lane;
  c.fillRect(GUTTER, RULER, t.width - GUTTER, height - RULER);
  c.fillStyle = colours.faint;
  for (const at of ticks(t)) c.fillRect(Math.round(t.x(at)), RULER, 1, height - RULER);
}

function ruler(t, c, colours) {
  c.fillStyle = colours.panel;
  c.fillRect(0, 0, t.width, RULER);
  c.fillStyle = colours.dim;
  c.font = '11px ui-sans-serif, system-ui, sans-serif';
  c.fillText(t.byTime ? 'time' : 'in order', 10, RULER / 2);
  c.textAlign = 'center';
  const { e } = t.model;
  for (const at of ticks(t)) {
    const x = t.x(at);
    if (x < GUTTER + 20 || x > t.width - 20) continue;
    if (t.byTime) c.fillText(time(Math.round(at)), x, RULER / 2);
    else if (e.n && at >= 0 && at < e.n) c.fillText(time(e.ts[Math.round(at)]), x, RULER / 2);
  }
  c.textAlign = 'left';
  c.fillStyle = colours.line;
  c.fillRect(0, RULER - 1, t.width, 1);
}

function steps(t, c, colours, y) {
  const { model, axis } = t;
  model.steps.forEach((i, index) => {
    const from = Math.max(t.x(axis[i]), GUTTER);
    const next = model.steps[index + 1];
    const to = next === undefined ? t.width : t.x(axis[next]);
    if (to < GUTTER || from > t.width) return;
    c.fillStyle = index % 2 ? colours.panel : colours.faint;
    c.fillRect(from, y + 2, to - from - 1, 18);
    c.fillStyle = colours.dim;
    if (to - from > 44) c.fillText(`step ${model.addr(i)}`, from + 6, y + 11);
  });
}

/** Events of a lane within the picture. */
function inView(lane, first, last) {
  const { events } = lane;
  return [lowerBound(events, events.length, first), lowerBound(events, events.length, last)];
}

function cpu(t, c, colours, lane, y, first, last) {
  const { model, axis } = t;
  const { e } = model;
  const [from, to] = inView(lane, first, last);
  // An interrupt that began before the picture is looked for a little.
  let entry = -1;
  c.fillStyle = colours.irq;
  for (let at = Math.max(from - 60, 0); at < Math.min(to + 60, lane.events.length); at++) {
    const i = lane.events[at];
    const kind = model.kind(i);
    if (kind === 'irq:irq_handler_entry') entry = i;
    else if (kind === 'irq:irq_handler_exit' && entry >= 0) {
      const [x, end] = [t.x(axis[entry]), t.x(axis[i])];
      const wide = Math.max(end - x, 2);
      c.fillStyle = colours.irq;
      c.fillRect(x, y + 1, wide, lane.height - 3);
      if (wide > 46) {
        c.fillStyle = colours.dim;
        c.fillText(`irq ${model.addr(entry)}`, x + 4, y + lane.height - 8);
      }
      entry = -1;
    }
  }
  const painted = {};
  for (let at = from; at < to; at++) {
    const i = lane.events[at];
    const kind = model.kind(i);
    const band = BANDS[kind.slice(0, kind.indexOf(':'))];
    const x = Math.round(t.x(axis[i]));
    if (!band) {
      if (kind === 'lowzone:finding') cross(c, colours, x, y + lane.height / 2, 5);
      continue;
    }
    if (painted[band[2]] === x && e.tx[i] === 0) continue;
    painted[band[2]] = x;
    c.fillStyle = colours[band[2]];
    // A refused map is a cross, whatever else is there.
    if (model.isMap[e.kind[i]] && !e.tx[i]) cross(c, colours, x, y + band[0] + 3, 4);
    else c.fillRect(x - 1, y + band[0], 2, band[1]);
  }
}

function port(t, c, colours, lane, y, first, last) {
  const { model, axis } = t;
  const [from, to] = inView(lane, first, last);
  const middle = y + lane.height / 2;
  c.fillStyle = colours.line;
  c.fillRect(GUTTER, middle, t.width - GUTTER, 1);
  const painted = { up: -1, down: -1 };
  const crosses = [];
  for (let at = from; at < to; at++) {
    const i = lane.events[at];
    const kind = model.kind(i);
    const x = Math.round(t.x(axis[i]));
    if (kind === 'port:read' && painted.up !== x) {
      painted.up = x;
      c.fillStyle = colours.to;
      c.fillRect(x - 0.5, y + 4, 1.5, lane.height / 2 - 5);
    } else if (kind === 'port:write' && painted.down !== x) {
      painted.down = x;
      c.fillStyle = colours.from;
      c.fillRect(x - 0.5, middle + 2, 1.5, lane.height / 2 - 6);
    } else if (kind === 'port:violation' || kind === 'lowzone:finding') crosses.push(x);
  }
  for (const x of new Set(crosses)) cross(c, colours, x, middle, 6);
}

function cross(c, colours, x, y, r) {
  c.strokeStyle = colours.panel;
  c.lineWidth = 5;
  strokes(c, x, y, r);
  c.strokeStyle = colours.fault;
  c.lineWidth = 2.2;
  strokes(c, x, y, r);
}

function strokes(c, x, y, r) {
  c.beginPath();
  c.moveTo(x - r, y - r);
  c.lineTo(x + r, y + r);
  c.moveTo(x + r, y - r);
  c.lineTo(x - r, y + r);
  c.stroke();
}

/** The chosen transaction and event. */
function chosen(t, c, colours, height) {
  const { app, axis } = t;
  const tx = app.chosen;
  if (tx) {
    const lane = t.lanes.find((one) => one.sort === 'txs' && one.device === tx.dev);
    if (lane) {
      const y = RULER + lane.y - t.scroll + 3 + tx.row * t.row;
      const [from, to] = t.ends(tx);
      c.strokeStyle = colours.focus;
      c.lineWidth = 2;
      c.beginPath();
      c.roundRect(from - 3, y - 3, to - from + 6, t.row + 2, 5);
      c.stroke();
    }
  }
  if (app.event >= 0) {
    const x = Math.round(t.x(axis[app.event]));
    if (x < GUTTER) return;
    c.fillStyle = colours.focus;
    c.globalAlpha = 0.8;
    c.fillRect(x, RULER, 1.5, height - RULER);
    c.globalAlpha = 1;
  }
}

/** The whole run as a strip, and the part that the picture shows. */
function overview(t, colours) {
  const c = t.overview.getContext('2d');
  c.setTransform(t.ratio, 0, 0, t.ratio, 0, 0);
  const [width, height] = [t.width, t.overview.clientHeight];
  const [from, to] = t.whole();
  const place = (value) => GUTTER + ((value - from) / (to - from)) * (width - GUTTER);
  if (!t.density || t.density.byTime !== t.byTime) {
    const cells = new Uint32Array(Math.max(Math.ceil((width - GUTTER) / 2), 1));
    const { n } = t.model.e;
    for (let i = 0; i < n; i++) cells[Math.min(Math.floor((place(t.axis[i]) - GUTTER) / 2), cells.length - 1)] += 1;
    t.density = { byTime: t.byTime, cells, most: Math.max(...cells, 1) };
  }
  c.clearRect(0, 0, width, height);
  c.fillStyle = colours.dim;
  c.font = '11px ui-sans-serif, system-ui, sans-serif';
  c.textBaseline = 'middle';
  c.fillText('whole run', 10, height / 2);
  c.globalAlpha = 0.55;
  t.density.cells.forEach((count, index) => {
    if (!count) return;
    const tall = Math.max(2, (Math.log1p(count) / Math.log1p(t.density.most)) * (height - 8));
    c.fillRect(GUTTER + index * 2, height - 3 - tall, 1.5, tall);
  });
  c.globalAlpha = 1;
  const crosses = new Set(t.model.faults.map((i) => Math.round(place(t.axis[i]))));
  c.fillStyle = colours.fault;
  for (const x of crosses) c.fillRect(x - 1, 1, 2.5, height - 2);
  c.fillStyle = colours.focus;
  c.globalAlpha = 0.14;
  const [x, end] = [place(t.a), Math.max(place(t.b), place(t.a) + 3)];
  c.fillRect(x, 0, end - x, height);
  c.globalAlpha = 1;
  c.strokeStyle = colours.focus;
  c.lineWidth = 1.5;
  c.strokeRect(x, 1, end - x, height - 2);
}
