// The four questions about a transaction, answered in words; and the list of its events.

/** A time that leads to its event. */
function at(app, i) {
  return el('button', { type: 'button', class: 'link', onclick: () => app.selectEvent(i) }, time(app.model.e.ts[i]));
}

const sentence = (...parts) => el('p', {}, parts);
const site = (text) => el('code', {}, text || 'somebody who left no name');

function whoMapped(app, tx) {
  const { model } = app;
  if (tx.begin < 0) return [sentence('Its map call is not in this trace.')];
  const said = [sentence(
    site(model.owner(tx.by)), ` on ${model.who(tx.begin)}, at `, at(app, tx.begin), `: ${model.bytesOf(tx)}`,
    tx.coherent ? ', coherent' : '', tx.dev ? `, for ${model.device(tx.dev)}` : '', '. The device sees it at ', el('code', {}, hex(tx.dma)), '.')];
  if (tx.bounced) {
    said.push(sentence('The buffer lies at ', el('code', {}, hex(tx.buffer)), ` (${tx.bufferZone}), out of the device's reach: it bounces through `,
      el('code', {}, hex(tx.phys)), ` (${tx.zone}).`));
  } else if (tx.phys) said.push(sentence('Its bytes lie at ', el('code', {}, hex(tx.phys)), tx.zone ? ` (${tx.zone}).` : '.'));
  if (tx.allocated >= 0) said.push(sentence('The buffer was allocated by ', site(model.owner(model.e.by[tx.allocated])), ' at ', at(app, tx.allocated), '.'));
  else if (tx.alloc && tx.alloc !== tx.by) said.push(sentence('The buffer was allocated by ', site(model.owner(tx.alloc)), '.'));
  return said;
}

/** The finding's own words on the chain. */
function posted(model, tx) {
  for (const i of tx.faults) {
    const finding = model.findings.get(model.e.number[i]);
    const chain = finding && /\[(posted in [^\]]*|[^\]]*no posted chain[^\]]*)\]/.exec(finding.text);
    const place = finding && /^\s*posted (?:at|by the mapping at) (.*)$/m.exec(finding.text);
    if (chain || place) return { chain: chain && /chain (\d+) of queue (\d+)/.exec(chain[1]), said: chain && chain[1], place: place && place[1] };
  }
  return null;
}

/** The chains that a transaction was in: told by their descriptors, by a finding, or the next one that its CPU made. */
function chainsOf(model, tx) {
  if (tx.chains.length) return { adds: tx.chains, sure: true };
  if (tx.part || tx.coherent || tx.begin < 0 || model.linked) return { adds: [], sure: false };
  const { e } = model;
  const told = posted(model, tx);
  const fits = (i) => (told && told.chain ? model.addr(i) === Number(told.chain[1]) : e.who[i] === e.who[tx.begin]);
  const next = model.adds.find((i) => i > tx.begin && fits(i));
  const before = tx.end < 0 || next === undefined || next < tx.end || (told && told.chain);
  return { adds: next === undefined || !before ? [] : [{ add: next }], sure: Boolean(told && told.chain) };
}

/** What became of a chain: doorbell, when the device took it and gave it back, when it was used, in which interrupt. */
function fateOf(model, add) {
  const { e } = model;
  const same = (i) => e.dev[i] === e.dev[add] && e.len[i] === e.len[add];
  const kick = nextOf(model, add, 'virtq:kick', (i) => e.who[i] === e.who[add] && same(i));
  const used = nextOf(model, add, 'virtq:used', (i) => same(i) && model.addr(i) === model.addr(add));
  const key = `${e.dev[add]} ${e.len[add]} ${model.addr(add)}`;
  const after = (map) => { const found = (map.get(key) || []).find((one) => one.event > add); return found && (used < 0 || found.event <= used) ? found : null; };
  return { kick, used, irq: used < 0 ? -1 : irqAround(model, used), taken: after(model.takes), given: after(model.gives) };
}

function nextOf(model, from, kind, same) {
  const index = model.kinds.indexOf(kind);
  for (let i = from + 1; index >= 0 && i < model.e.n && i < from + 20000; i++) if (model.e.kind[i] === index && same(i)) return i;
  return -1;
}

function whichDescriptor(app, tx) {
  const { model } = app;
  const { e } = model;
  const told = posted(model, tx);
  const { adds, sure } = chainsOf(model, tx);
  if (tx.part) return [sentence('This page holds a part of the trace, and not what was around this transaction.')];
  if (tx.coherent && !adds.length) return [sentence('None: coherent memory is the driver’s and the device’s as long as it lives. Rings and tables lie in it, and the device was told their addresses by register.')];
  const said = [];
  for (const { add, descriptor, addr, len, write } of adds.slice(0, 3)) {
    const queue = e.dev[add] ? ` of queue ${e.len[add]} of ${model.device(e.dev[add])}` : told && told.chain ? ` of queue ${told.chain[2]}` : '';
    const { kick, taken } = fateOf(model, add);
    said.push(sentence(descriptor === undefined ? '' : `Descriptor ${descriptor} (${size(len)} at ${hex(addr)}, ${write ? 'for the device to write' : 'for it to read'}) of `,
      `${descriptor === undefined ? (sure ? 'Chain' : 'Probably chain') : 'chain'} ${model.addr(add)}${queue}, put on the ring by ${model.who(add)} at `, at(app, add),
      kick < 0 ? '; no doorbell was recorded after it' : '; doorbell at ', kick < 0 ? '' : at(app, kick),
      taken ? '; the device took it at ' : '', taken ? at(app, taken.event) : '', '.'));
  }
  if (tx.chainCount > 3) said.push(sentence(`… and ${many(tx.chainCount - 3, 'more chain')}.`));
  if (told && told.place) said.push(sentence('Posted by ', site(told.place), '.'));
  if (!said.length) said.push(sentence(told && told.said ? `${told.said}.` : 'No chain of a virtqueue that this page holds; a register may have told the device.'));
  return said;
}

function whenTouched(app, tx) {
  const { model } = app;
  const { e } = model;
  const said = [];
  if (tx.first >= 0) {
    const last = tx.events.findLast((i) => model.kind(i) === 'port:read' || model.kind(i) === 'port:write');
    const parts = [];
    if (tx.reads) parts.push(`${many(tx.reads, 'read')} (${size(tx.readBytes)})`);
    if (tx.writes) parts.push(`${many(tx.writes, 'write')} (${size(tx.writeBytes)})`);
    said.push(sentence(`${parts.join(' and ')}, first at `, at(app, tx.first), last === tx.first ? '' : ', last at ', last === tx.first ? '' : at(app, last),
      tx.begin >= 0 ? `; ${time(e.ts[tx.first] - e.ts[tx.begin])} after the map.` : '.'));
  }
  for (const i of tx.faults.filter((one) => model.kind(one) === 'port:violation').slice(0, 8)) {
    const late = tx.end >= 0 && tx.end < i ? `, ${time(e.ts[i] - e.ts[tx.end])} after its unmap` : '';
    said.push(el('p', { class: 'bad' }, '✕ At ', at(app, i), `: ${size(e.len[i])} at ${model.hexAddr(i)}${late}. No mapping allows it.`));
  }
  if (!said.length) {
    const finding = tx.faults.find((i) => model.kind(i) === 'lowzone:finding' && model.who(i) === model.device(tx.dev));
    said.push(finding === undefined ? sentence('Never, as far as this trace goes.')
      : el('p', { class: 'bad' }, '✕ It tried at ', at(app, finding), ', and got nothing.'));
  }
  return said;
}

function whatCameBack(app, tx) {
  const { model } = app;
  const { e } = model;
  const said = [];
  for (const i of tx.faults) {
    const finding = model.findings.get(e.number[i]);
    if (finding) said.push(el('p', { class: 'bad' }, '✕ ', el('strong', {}, finding.name), ' at ', at(app, i), `: ${finding.text.split('\n')[0].replace(`${finding.name}: `, '')}`));
  }
  const { adds } = chainsOf(model, tx);
  for (const { add } of adds.slice(0, 2)) {
    const { used, irq, given } = fateOf(model, add);
    if (given) said.push(sentence('The device gave the chain back at ', at(app, given.event), used < 0 ? '; the driver never took it.' : '.'));
    if (used >= 0) said.push(sentence(`The chain came back to ${model.who(used)} at `, at(app, used), irq < 0 ? '.' : `, in interrupt ${model.addr(irq)}.`));
  }
  if (tx.end >= 0) {
    said.push(sentence('Unmapped by ', e.by[tx.end] ? site(model.owner(e.by[tx.end])) : 'a destructor', ` on ${model.who(tx.end)} at `, at(app, tx.end),
      tx.begin >= 0 ? `, after ${time(e.ts[tx.end] - e.ts[tx.begin])}` : '', tx.copied ? `; the bounce pool copied ${size(tx.copied)} back` : '', '.'));
  } else if (tx.never) said.push(el('p', { class: 'bad' }, '✕ It was never unmapped.'));
  if (tx.freed >= 0) said.push(sentence('The buffer was freed by ', e.by[tx.freed] ? site(model.owner(e.by[tx.freed])) : 'its owner', ' at ', at(app, tx.freed), '.'));
  return said.length ? said : [sentence('Nothing that this trace records.')];
}

/** The interrupt that an event was handled in, or -1. */
function irqAround(model, from) {
  const { e } = model;
  for (let i = from - 1; i >= 0 && i > from - 400; i--) {
    if (e.who[i] !== e.who[from]) continue;
    if (model.kind(i) === 'irq:irq_handler_exit') return -1;
    if (model.kind(i) === 'irq:irq_handler_entry') return i;
  }
  return -1;
}

/** The title's question, in its four parts. */
function answers(app, tx) {
  return el('dl', { class: 'answers' }, [
    ['Who mapped it?', whoMapped(app, tx)],
    ['Which descriptor led there?', whichDescriptor(app, tx)],
    ['When did the device touch it?', whenTouched(app, tx)],
    ['What came back?', whatCameBack(app, tx)],
  ].flatMap(([question, said]) => [el('dt', {}, question), el('dd', {}, said)]));
}

/** Every event of a transaction and around its chain, in order. */
function lifeOf(model, tx) {
  const life = new Set(tx.events);
  for (const i of [tx.allocated, tx.freed]) if (i >= 0) life.add(i);
  for (const { add } of chainsOf(model, tx).adds.slice(0, 8)) {
    const { kick, used, irq, taken, given } = fateOf(model, add);
    for (const i of [add, kick, used, irq, taken ? taken.event : -1, given ? given.event : -1]) if (i >= 0) life.add(i);
  }
  return [...life].sort((a, b) => a - b);
}

/** What an event says, in a few words. */
function words(model, i) {
  const { e } = model;
  const kind = model.kind(i);
  const finding = model.findings.get(e.number[i]);
  if (finding) return finding.name;
  if (kind === 'lowzone:step') return `step ${model.addr(i)}`;
  if (kind.startsWith('irq:')) return `interrupt ${model.addr(i)}`;
  if (kind.startsWith('virtq:')) return `chain ${model.addr(i)}${e.dev[i] ? `, queue ${e.len[i]}` : ''}`;
  if (kind.startsWith('mmio:')) return `${model.hexAddr(i)} = ${hex64(e.valueLo[i], e.valueHi[i])}`;
  const refused = model.isMap[e.kind[i]] && !e.tx[i];
  const copied = e.tx[i] && e.valueLo[i] ? `, ${size(e.valueLo[i])} copied` : '';
  return refused ? `refused, ${size(e.len[i])}` : `${model.hexAddr(i)}, ${size(e.len[i])}${copied}`;
}

/** The list of events; the one that is chosen is marked. */
function eventList(app, list, zero) {
  const { model } = app;
  const { e } = model;
  const shown = list.slice(0, 400);
  const rows = shown.map((i) => {
    const name = model.name(i);
    const by = model.owner(e.by[i]);
    return el('tr', { 'data-event': i, class: i === app.event ? 'chosen' : model.faults.includes(i) ? 'bad' : '' },
      el('td', { class: 'num' }, el('button', { type: 'button', class: 'link', 'aria-label': `Event ${e.number[i]}`, onclick: () => app.selectEvent(i) }, time(e.ts[i] - zero))),
      el('td', {}, model.who(i)),
      el('td', {}, el('strong', {}, name.replace(/^[^:]*:/, '')), ' ', words(model, i), by ? el('span', { class: 'by' }, by) : null));
  });
  return el('div', {},
    el('table', { class: 'events' },
      el('thead', {}, el('tr', {}, ['after', 'where', 'what'].map((head) => el('th', { scope: 'col' }, head)))),
      el('tbody', {}, rows)),
    list.length > shown.length ? el('p', { class: 'note' }, `… and ${group(list.length - shown.length)} more events.`) : null);
}
