// Transactions as bars: they point the way their bytes go, are hatched where they bounce, hollow where they are coherent.

/** The colour of a transaction, and that of the text on it. */
function coat(tx, colours) {
  if (tx.coherent) return [colours.coherent, colours['on-coherent']];
  if (tx.dir === 1) return [colours.to, colours['on-to']];
  if (tx.dir === 2) return [colours.from, colours['on-from']];
  return [colours.both, colours['on-both']];
}

function bars(t, c, colours, lane, y, height) {
  const top = y + 3;
  const [rowFrom, rowTo] = [Math.max(0, Math.floor((RULER - top) / t.row)), Math.min(lane.rows.length, Math.ceil((height - top) / t.row))];
  const marked = [];
  for (let row = rowFrom; row < rowTo; row++) {
    const list = lane.rows[row];
    let painted = -1;
    // Rows are in the order of their beginnings and don't overlap, so ends rise as well.
    let [low, high] = [0, list.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (t.ends(list[middle])[1] < GUTTER) low = middle + 1;
      else high = middle;
    }
    for (let index = low; index < list.length; index++) {
      const tx = list[index];
      const [from, to] = t.ends(tx);
      if (from > t.width) break;
      if (tx.wrong) marked.push([tx, from, to, top + row * t.row]);
      else if (to - painted < 1) continue;
      painted = to;
      bar(t, c, colours, tx, Math.max(from, GUTTER - 20), Math.min(to, t.width + 20), top + row * t.row);
    }
  }
  for (const [tx, from, to, at] of marked) fault(t, c, colours, tx, from, to, at);
}

function bar(t, c, colours, tx, from, to, y) {
  const wide = to - from;
  const [coating, letter] = coat(tx, colours);
  const h = t.row - 4;
  c.fillStyle = coating;
  if (wide < 5) {
    c.fillRect(from, y, Math.max(wide, 1.5), h);
    return;
  }
  c.beginPath();
  if (tx.coherent || tx.dir === 0 || wide < 14) c.roundRect(from, y, wide, h, 3);
  else if (tx.dir === 1) points(c, from, to, y, h, 0, 6);
  else points(c, from, to, y, h, 6, 0);
  if (tx.coherent) {
    c.globalAlpha = 0.22;
    c.fill();
    c.globalAlpha = 1;
    c.strokeStyle = coating;
    c.lineWidth = 1.2;
    c.stroke();
  } else c.fill();
  if (tx.bounced) hatch(c, from, wide, y, h, letter);
  accesses(t, c, colours, tx, y, h, wide);
  if (wide > 40) write(c, tx.coherent ? colours.ink : letter, barTexts(tx), from, to, y + h / 2 + 0.5, tx.coherent ? colours.lane : coating);
}

/** A bar that points the way its bytes go. */
function points(c, from, to, y, h, left, right) {
  c.moveTo(from + left, y);
  c.lineTo(to - right, y);
  c.lineTo(to, y + h / 2);
  c.lineTo(to - right, y + h);
  c.lineTo(from + left, y + h);
  c.lineTo(from, y + h / 2);
  c.closePath();
}

/** Slanted strokes over a bounced bar. */
function hatch(c, from, wide, y, h, colour) {
  c.save();
  c.clip();
  c.globalAlpha = 0.22;
  c.strokeStyle = colour;
  c.lineWidth = 2;
  c.beginPath();
  for (let x = Math.max(from, GUTTER) - h - (Math.max(from, GUTTER) % 8); x < from + wide; x += 8) {
    c.moveTo(x, y + h);
    c.lineTo(x + h, y);
  }
  c.stroke();
  c.restore();
}

/** What could stand on a bar, the longest first. */
function barTexts(tx) {
  const sort = tx.coherent ? 'coherent' : tx.dir === null ? '' : ARROWS[tx.dir];
  const text = `#${tx.id} ${sort} ${size(tx.len)}`;
  return [`${text}${tx.bounced ? ' bounced' : ''}`, text, `#${tx.id}`];
}

/** Writes the longest text that fits, if any does. */
function write(c, colour, texts, from, to, y, backing) {
  c.font = '600 10.5px ui-sans-serif, system-ui, sans-serif';
  const x = Math.max(from, GUTTER) + 8;
  const text = texts.find((one) => x + c.measureText(one).width < to - 4);
  if (!text) return;
  // Ticks under the text would make it hard to read.
  c.fillStyle = backing;
  c.fillRect(x - 3, y - 6, c.measureText(text).width + 6, 12);
  c.fillStyle = colour;
  c.fillText(text, x, y);
}

/** What the device did, on the bar: reads above its middle, writes below. */
function accesses(t, c, colours, tx, y, h, wide) {
  if (wide < 12) return;
  const { model, axis } = t;
  const [from, to] = [lowerBound(tx.events, tx.events.length, lowerBound(axis, model.e.n, t.a)), tx.events.length];
  let [up, down] = [-1, -1];
  c.fillStyle = tx.coherent ? colours.ink : coat(tx, colours)[1];
  c.globalAlpha = tx.coherent ? 0.4 : 0.75;
  for (let at = from; at < to; at++) {
    const i = tx.events[at];
    const x = Math.round(t.x(axis[i]));
    if (x > t.width) break;
    const kind = model.kind(i);
    if (kind === 'port:read' && up !== x) {
      up = x;
      c.fillRect(x, y, 1.5, h / 2 - 1);
    } else if (kind === 'port:write' && down !== x) {
      down = x;
      c.fillRect(x, y + h / 2 + 1, 1.5, h / 2 - 1);
    }
  }
  c.globalAlpha = 1;
}

function fault(t, c, colours, tx, from, to, y) {
  const h = t.row - 4;
  c.strokeStyle = colours.fault;
  c.lineWidth = 2;
  c.strokeRect(from - 1, y - 1, Math.max(to - from, 3) + 2, h + 2);
  for (const i of tx.faults) {
    const x = t.x(t.axis[i]);
    if (x < GUTTER - 10 || x > t.width + 10) continue;
    if (x > to + 2) {
      // The device came too late: a line from the unmap to its touch.
      c.setLineDash([3, 3]);
      c.beginPath();
      c.moveTo(to, y + h / 2);
      c.lineTo(x, y + h / 2);
      c.stroke();
      c.setLineDash([]);
    }
    cross(c, colours, x, y + h / 2, 5);
  }
}
