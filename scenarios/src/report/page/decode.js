// The data of the page: base64, raw deflate, then a JSON text and columns of varints (report/columns.rs wrote them).

async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate-raw'));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const length = new DataView(bytes.buffer).getUint32(0, true);
  const meta = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  return { meta, bytes, begin: 4 + length };
}

/** A row of varints; `lo` and `hi` are the halves of the 64-bit number read last. */
class Varints {
  constructor(bytes, at) {
    this.bytes = bytes;
    this.at = at;
    this.lo = 0;
    this.hi = 0;
  }

  /** Reads a number; exact below 2^53, and in the halves always. */
  next() {
    const { bytes } = this;
    let b = bytes[this.at++];
    if (b < 0x80) {
      this.lo = b;
      this.hi = 0;
      return b;
    }
    let lo = b & 0x7f;
    let hi = 0;
    let shift = 7;
    do {
      b = bytes[this.at++];
      const part = b & 0x7f;
      if (shift < 28) lo |= part << shift;
      else if (shift === 28) {
        lo |= part << 28;
        hi = part >>> 4;
      } else hi |= part << (shift - 32);
      shift += 7;
    } while (b & 0x80);
    this.lo = lo >>> 0;
    this.hi = hi >>> 0;
    return this.hi * 0x1_0000_0000 + this.lo;
  }

  /** Undoes the folding of signs on the number read last. */
  unfold() {
    const odd = this.lo & 1;
    this.lo = ((this.lo >>> 1) | (this.hi << 31)) >>> 0;
    this.hi >>>= 1;
    if (odd) {
      this.lo = ~this.lo >>> 0;
      this.hi = ~this.hi >>> 0;
    }
  }

  /** Adds a folded difference to the number in the halves given; the sum is in the halves of this. */
  step(lo, hi) {
    this.next();
    this.unfold();
    this.plus(lo, hi);
  }

  plus(lo, hi) {
    const sum = this.lo + lo;
    this.lo = sum >>> 0;
    this.hi = (this.hi + hi + (sum > 0xffff_ffff ? 1 : 0)) >>> 0;
  }
}

const num = (lo, hi) => hi * 0x1_0000_0000 + lo;
const MAPS = new Set(['dma:dma_map_page', 'dma:dma_map_sg', 'dma:dma_map_resource', 'dma:dma_alloc']);
const UNMAPS = new Set(['dma:dma_unmap_page', 'dma:dma_unmap_sg', 'dma:dma_unmap_resource', 'dma:dma_free']);
const ALLOCS = new Set(['kmem:kmalloc', 'kmem:mm_page_alloc', 'kmem:kmem_cache_alloc']);
const FREES = new Set(['kmem:kfree', 'kmem:mm_page_free', 'kmem:kmem_cache_free']);
const BOUNCED = 'swiotlb:swiotlb_bounced';

/** The last event of a kind, the live mappings, and the buffer that is likely to come next: as report/columns.rs has them. */
class Before {
  constructor(kinds) {
    const is = (names) => kinds.map((kind) => names.has(kind));
    this.isMap = is(MAPS);
    this.isUnmap = is(UNMAPS);
    this.isAlloc = is(ALLOCS);
    this.isNear = is(new Set([...FREES, BOUNCED]));
    this.isBounced = is(new Set([BOUNCED]));
    this.last = kinds.map(() => ({ lo: 0, hi: 0, len: 0, valueLo: 0, valueHi: 0, who: 0, dev: 0 }));
    this.live = new Map();
    this.near = { lo: 0, hi: 0, len: 0 };
  }

  expected(kind, tx) {
    const last = this.last[kind];
    const live = tx && this.live.get(tx);
    if (live) return { lo: live.lo, hi: live.hi, len: this.isUnmap[kind] || !live.coherent ? live.len : last.len };
    if (this.isNear[kind]) return this.near;
    return { lo: last.lo, hi: last.hi, len: tx && this.isMap[kind] ? this.near.len : last.len };
  }

  learn(kind, tx, lo, hi, len, map) {
    if (tx && this.isMap[kind]) {
      const at = map && map.bufferLo !== undefined ? [map.bufferLo, map.bufferHi] : map && map.phys !== null ? [map.physLo, map.physHi] : [lo, hi];
      const coherent = Boolean(map && map.shape !== 0xffff && map.shape & 8);
      this.live.set(tx, { lo, hi, len, bufferLo: at[0], bufferHi: at[1], coherent });
    } else if (this.isUnmap[kind]) {
      const live = this.live.get(tx);
      if (live) this.near = { lo: live.bufferLo, hi: live.bufferHi, len: live.len };
      this.live.delete(tx);
    } else if (this.isAlloc[kind] || this.isBounced[kind]) this.near = { lo, hi, len };
  }
}

/** What ties an event to others: descriptors of a chain, chains that the device took or gave back. */
function links(column, ts, segment) {
  const list = [];
  for (let left = column.next(); left > 0; left--) {
    const sort = column.next();
    if (sort < 2) {
      column.step(segment.lo, segment.hi);
      segment.lo = column.lo;
      segment.hi = column.hi;
      list.push({ sort: 'segment', addr: num(column.lo, column.hi), write: sort === 1, len: column.next() });
    } else {
      const [queue, head] = [column.next(), column.next()];
      column.step(ts[0], ts[1]);
      list.push({ sort: sort === 2 ? 'take' : 'give', queue, head, ts: num(column.lo, column.hi) });
    }
  }
  return list;
}

/** The events, a typed array for each field. */
function events({ meta, bytes, begin }, kinds) {
  const { tables } = meta;
  const n = tables.events;
  const at = {};
  for (const [name, length] of tables.columns) {
    at[name] = new Varints(bytes, begin);
    begin += length;
  }
  const e = {
    n,
    number: new Float64Array(n), ts: new Float64Array(n), tx: new Float64Array(n),
    kind: new Uint16Array(n), who: new Uint16Array(n), dev: new Uint16Array(n),
    lo: new Uint32Array(n), hi: new Uint32Array(n), len: new Uint32Array(n),
    valueLo: new Uint32Array(n), valueHi: new Uint32Array(n), by: new Uint32Array(n),
    maps: new Map(), links: new Map(),
  };
  const before = new Before(kinds);
  const segment = { lo: 0, hi: 0 };
  let number = 0;
  let ts = [0, 0];
  let tx = [0, 0];
  for (let i = 0; i < n; i++) {
    number += at.number.next();
    e.number[i] = number++;
    at.ts.step(ts[0], ts[1]);
    ts = [at.ts.lo, at.ts.hi];
    e.ts[i] = num(at.ts.lo, at.ts.hi);
    const kind = at.kind.next();
    e.kind[i] = kind;
    if (at.tx.next() !== 0) {
      const c = at.tx;
      c.plus(0xffff_ffff, 0xffff_ffff);
      c.unfold();
      c.plus(tx[0], tx[1]);
      tx = [c.lo, c.hi];
      e.tx[i] = num(c.lo, c.hi);
    }
    const last = before.last[kind];
    const from = before.expected(kind, e.tx[i]);
    at.who.step(last.who, 0);
    last.who = e.who[i] = at.who.lo;
    at.dev.step(last.dev, 0);
    last.dev = e.dev[i] = at.dev.lo;
    at.addr.step(from.lo, from.hi);
    last.lo = e.lo[i] = at.addr.lo;
    last.hi = e.hi[i] = at.addr.hi;
    at.len.step(from.len, 0);
    last.len = e.len[i] = at.len.lo;
    at.value.step(last.valueLo, last.valueHi);
    last.valueLo = e.valueLo[i] = at.value.lo;
    last.valueHi = e.valueHi[i] = at.value.hi;
    e.by[i] = at.by.next();
    const has = at.has.next();
    const map = has & 3 ? mapping(at, has, e.lo[i], e.hi[i], before.near) : null;
    if (map) e.maps.set(i, map);
    if (has & 4) e.links.set(i, links(at.links, ts, segment));
    before.learn(kind, e.tx[i], e.lo[i], e.hi[i], e.len[i], map);
  }
  return e;
}

function mapping(at, has, lo, hi, near) {
  const map = { phys: null, shape: 0xffff, buffer: null, alloc: 0 };
  if (has & 1) {
    at.phys.step(lo, hi);
    [map.physLo, map.physHi] = [at.phys.lo, at.phys.hi];
    map.phys = num(at.phys.lo, at.phys.hi);
    map.shape = at.shape.next();
  }
  if (has & 2) {
    at.buffer.step(near.lo, near.hi);
    [map.bufferLo, map.bufferHi] = [at.buffer.lo, at.buffer.hi];
    map.buffer = num(at.buffer.lo, at.buffer.hi);
    map.alloc = at.alloc.next();
  }
  return map;
}
