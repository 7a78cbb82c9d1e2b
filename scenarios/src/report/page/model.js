// Transactions, put together from the events; and what can be looked up in them.

const DIRECTIONS = ['both ways', 'to the device', 'from the device'];
const ARROWS = ['↔', '→', '←'];
const ZONES = ['DMA', 'DMA32', 'Normal', 'HighMem'];

class Model {
  constructor(data) {
    this.meta = data.meta;
    const { kinds } = data.meta.tables;
    // What a kind is goes by this program's name; what it is called, by the trace's.
    this.kinds = kinds.map(([shown, known]) => known || shown);
    this.shown = kinds.map(([shown]) => shown);
    this.e = events(data, this.kinds);
    this.isMap = this.kinds.map((name) => MAPS.has(name));
    this.isUnmap = this.kinds.map((name) => UNMAPS.has(name));
    this.findings = new Map(data.meta.findings.map((finding) => [finding.event, finding]));
    this.allocs = new Map();
    this.pages = new Map();
    this.adds = [];
    this.build();
  }

  name(i) { return this.shown[this.e.kind[i]]; }
  kind(i) { return this.kinds[this.e.kind[i]]; }
  who(i) { return this.meta.tables.producers[this.e.who[i] - 1] || '?'; }
  device(number) { return number ? this.meta.tables.devices[number - 1] : ''; }
  owner(number) { return number ? this.meta.tables.owners[number - 1] : ''; }
  addr(i) { return num(this.e.lo[i], this.e.hi[i]); }
  hexAddr(i) { return hex64(this.e.lo[i], this.e.hi[i]); }

  /** The transaction of a number, made where its map call is not here. */
  of(id) {
    let tx = this.byId.get(id);
    if (!tx) {
      tx = {
        id, dev: 0, begin: -1, end: -1, dma: 0, len: 0, phys: 0, buffer: 0, shape: null, by: 0, alloc: 0,
        coherent: false, bounced: false, dir: null, events: [], faults: [], row: 0,
        reads: 0, writes: 0, readBytes: 0, writeBytes: 0, first: -1, copied: 0, allocated: -1, freed: -1, chains: [], chainCount: 0,
      };
      this.byId.set(id, tx);
      this.txs.push(tx);
    }
    return tx;
  }

  build() {
    const { e } = this;
    this.byId = new Map();
    this.txs = [];
    this.steps = [];
    this.faults = [];
    this.inBuffer = new Map();
    const shown = new Map(this.kinds.map((name, index) => [name, index]));
    const [read, write, violation, finding, step, add] =
      ['port:read', 'port:write', 'port:violation', 'lowzone:finding', 'lowzone:step', 'virtq:add'].map((name) => shown.get(name));
    const allocates = this.kinds.map((name) => /^kmem:.*(alloc|kmalloc)/.test(name) && !/free/.test(name));
    const frees = this.kinds.map((name) => /^kmem:.*free/.test(name));
    for (let i = 0; i < e.n; i++) {
      const kind = e.kind[i];
      if (e.tx[i]) this.take(i, kind, { read, write, violation, finding });
      else if (allocates[kind]) this.allocate(i);
      else if (frees[kind]) this.free(i);
      else if (kind === step) this.steps.push(i);
      else if (kind === add) this.adds.push(i);
      if (kind === finding || kind === violation || (this.isMap[kind] && !e.tx[i])) this.faults.push(i);
    }
    this.txs.sort((a, b) => (a.begin < 0 ? a.events[0] : a.begin) - (b.begin < 0 ? b.events[0] : b.begin));
    const complete = this.meta.end && !this.meta.broken;
    const thinned = this.meta.thinned.kept < this.meta.thinned.total;
    const longest = new Set([...this.meta.plots.longest, ...this.meta.plots.latest]);
    for (const tx of this.txs) {
      tx.never = complete && tx.begin >= 0 && tx.end < 0;
      tx.wrong = tx.faults.length > 0 || tx.never;
      // What is around it was thinned like everything else: what is left may belong to others.
      tx.part = thinned && !tx.wrong && !longest.has(tx.id);
      if (tx.part) tx.allocated = tx.freed = -1;
    }
    this.chains();
  }

  take(i, kind, { read, write, violation, finding }) {
    const { e } = this;
    const tx = this.of(e.tx[i]);
    tx.events.push(i);
    tx.dev = tx.dev || e.dev[i];
    if (this.isMap[kind]) this.begin(tx, i);
    else if (this.isUnmap[kind]) {
      tx.end = i;
      tx.copied += e.valueLo[i];
    } else if (kind === read) {
      tx.reads += 1;
      tx.readBytes += e.len[i];
      if (tx.first < 0) tx.first = i;
    } else if (kind === write) {
      tx.writes += 1;
      tx.writeBytes += e.len[i];
      if (tx.first < 0) tx.first = i;
    } else if (kind === violation || kind === finding) tx.faults.push(i);
  }

  begin(tx, i) {
    const { e } = this;
    tx.begin = i;
    tx.dma = this.addr(i);
    tx.len = e.len[i];
    tx.by = e.by[i];
    const map = e.maps.get(i);
    if (!map) return;
    tx.phys = map.phys;
    tx.buffer = map.buffer === null ? map.phys : map.buffer;
    tx.alloc = map.alloc;
    if (map.shape !== 0xffff) {
      tx.shape = map.shape;
      tx.dir = map.shape & 3;
      tx.bounced = Boolean(map.shape & 4);
      tx.coherent = Boolean(map.shape & 8);
      tx.zone = ZONES[(map.shape >> 4) & 3];
      tx.bufferZone = ZONES[(map.shape >> 6) & 3];
    }
    tx.allocated = this.allocationOf(tx.buffer);
    const at = tx.allocated >= 0 ? this.addr(tx.allocated) : tx.buffer;
    if (!this.inBuffer.has(at)) this.inBuffer.set(at, []);
    this.inBuffer.get(at).push(tx);
  }

  allocate(i) {
    const at = this.addr(i);
    this.allocs.set(at, i);
    const pages = Math.min(Math.ceil(this.e.len[i] / 4096), 1024);
    for (let page = 0; page < pages; page++) this.pages.set(Math.floor(at / 4096) + page, i);
  }

  /** The last allocation that has an address in it; an object's before its page's. */
  allocationOf(at) {
    const exact = this.allocs.get(at);
    if (exact !== undefined) return exact;
    const page = this.pages.get(Math.floor(at / 4096));
    if (page === undefined) return -1;
    const offset = at - this.addr(page);
    return offset >= 0 && offset < this.e.len[page] ? page : -1;
  }

  free(i) {
    const at = this.addr(i);
    for (const tx of this.inBuffer.get(at) || []) if (tx.freed < 0) tx.freed = i;
    this.inBuffer.delete(at);
    this.allocs.delete(at);
  }

  /**
   * Which chains each transaction was in: those that had a descriptor with one of its addresses. What lives goes before
   * what is unmapped, but a descriptor may well lead to a mapping that is over.
   */
  chains() {
    const { e } = this;
    this.takes = new Map();
    this.gives = new Map();
    this.linked = false;
    if (!e.links.size) return;
    const pages = new Map();
    const touched = [...this.txs].filter((tx) => tx.begin >= 0);
    let next = 0;
    for (const [i, list] of e.links) {
      for (; next < touched.length && touched[next].begin < i; next++) this.enter(pages, touched[next]);
      list.forEach((link, descriptor) => {
        if (link.sort === 'segment') this.chain(pages, i, descriptor, link);
        else this.passed(link.sort === 'take' ? this.takes : this.gives, e.dev[i], link.queue, link.head, i, link.ts);
      });
    }
  }

  passed(map, dev, queue, head, i, ts) {
    const key = `${dev} ${queue} ${head}`;
    if (!map.has(key)) map.set(key, []);
    map.get(key).push({ event: i, ts });
  }

  enter(pages, tx) {
    const [from, to] = [Math.floor(tx.dma / 4096), Math.floor((tx.dma + Math.max(tx.len, 1) - 1) / 4096)];
    for (let page = from; page <= Math.min(to, from + 4096); page++) {
      if (!pages.has(page)) pages.set(page, []);
      const list = pages.get(page);
      list.push(tx);
      if (list.length > 64) list.splice(0, 32);
    }
  }

  chain(pages, i, descriptor, { addr, len, write }) {
    this.linked = true;
    const list = (pages.get(Math.floor(addr / 4096)) || []).filter((tx) => tx.dev === this.e.dev[i] && addr >= tx.dma && addr < tx.dma + tx.len);
    const tx = list.findLast((one) => one.end < 0 || one.end > i) || list.at(-1);
    if (!tx || tx.part) return;
    tx.chainCount += 1;
    if (tx.chains.length < 32) tx.chains.push({ add: i, descriptor, addr, len, write });
  }

  bytesOf(tx) { return `${size(tx.len)} ${tx.dir === null ? '' : DIRECTIONS[tx.dir]}`.trim(); }

  /** A line about a transaction. */
  title(tx) {
    const kind = tx.coherent ? 'coherent' : tx.dir === null ? 'mapping' : `streaming ${DIRECTIONS[tx.dir]}`;
    return `transaction ${tx.id}: ${kind}, ${size(tx.len)} at ${hex(tx.dma)}${tx.bounced ? ', bounced' : ''}`;
  }

  /** As what a transaction has an address: the same three that `lowzone trace who` looks at. */
  covers(tx, addr) {
    if (tx.begin < 0) return null;
    for (const [what, start] of [['DMA', tx.dma], ['physical', tx.phys], ['buffer', tx.buffer]]) {
      if (addr >= start && addr < start + tx.len) return what;
    }
    return null;
  }

  /** What a question finds: transactions and events, with why. */
  search(text) {
    const question = text.trim();
    if (!question) return [];
    const found = [];
    const id = /^#?(\d+)$/.exec(question);
    if (id && this.byId.has(Number(id[1]))) found.push({ tx: this.byId.get(Number(id[1])), why: 'by its number' });
    const address = /^0x[0-9a-f]+$/i.test(question) ? Number(question) : id && !found.length ? Number(id[1]) : null;
    if (address !== null) {
      for (const tx of this.txs) {
        const what = this.covers(tx, address);
        if (what) found.push({ tx, why: `by its ${what} address` });
      }
      for (let i = 0; i < this.e.n && found.length < 200; i++) {
        if (this.addr(i) === address && !this.e.tx[i]) found.push({ event: i, why: 'an event at this address' });
      }
      return found;
    }
    if (!id) this.searchText(question.toLowerCase(), found);
    return found;
  }

  searchText(question, found) {
    const hit = (name) => name.toLowerCase().includes(question);
    const owners = new Set();
    this.meta.tables.owners.forEach((name, index) => hit(name) && owners.add(index + 1));
    const kinds = new Set();
    this.shown.forEach((name, index) => hit(name) && kinds.add(index));
    for (const finding of this.meta.findings) {
      if (hit(finding.name) || hit(finding.text)) found.push({ tx: this.byId.get(finding.tx), event: this.indexOf(finding.event), why: finding.name });
    }
    if (owners.size) {
      for (const tx of this.txs) {
        if (owners.has(tx.by) || owners.has(tx.alloc)) found.push({ tx, why: this.owner(owners.has(tx.by) ? tx.by : tx.alloc) });
      }
    }
    for (let i = 0; i < this.e.n && found.length < 500; i++) {
      if (kinds.has(this.e.kind[i]) || (owners.has(this.e.by[i]) && !this.e.tx[i])) found.push({ tx: this.byId.get(this.e.tx[i]), event: i, why: this.name(i) });
    }
  }

  /** The place here of an event by its number in the trace. */
  indexOf(number) {
    let [low, high] = [0, this.e.n];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.e.number[middle] < number) low = middle + 1;
      else high = middle;
    }
    return this.e.number[low] === number ? low : -1;
  }
}
