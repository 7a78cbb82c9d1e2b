// Pages of campaigns and benches: the tree of points by verdict, seeded bugs, and costs.

const VERDICTS = {
  wrong: ['✕', 'wrong', 'mishandled'],
  absorbed: ['◐', 'absorbed', 'absorbed: a correct fallback'],
  'failed-right': ['✓', 'right', 'failed right: the error was passed on and everything was given back'],
};

/** `class:scope#n` in its parts. */
function parse(fault) {
  const match = /^([^:]+):(.*)$/.exec(fault) || [null, fault, ''];
  return { sort: match[1], place: match[2].replace(/#.*$/, '') };
}

/** A `<details>` whose inside is made when it is first opened. */
function lazy(summary, make, open) {
  const node = el('details', {}, el('summary', {}, summary));
  const fill = () => { if (node.open && node.childElementCount === 1) node.append(...[make()].flat()); };
  node.addEventListener('toggle', fill);
  if (open) {
    node.open = true;
    fill();
  }
  return node;
}

function grouped(list, key) {
  const groups = new Map();
  for (const one of list) {
    const name = key(one);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(one);
  }
  return [...groups].sort((a, b) => b[1].length - a[1].length || (a[0] < b[0] ? -1 : 1));
}

function tree(told) {
  const cases = told.verdicts.map(([fault, verdict]) => ({ fault, verdict, ...parse(fault) }));
  const prefix = `${told.scenario}@${told.fingerprint}:${told.seed}:`;
  const leaf = (one) => el('li', {}, token(prefix + one.fault));
  const branch = (name, list, open, make) => lazy([el('span', { class: 'name' }, name), el('span', { class: 'count' }, group(list.length))], make, open);
  return el('div', { class: 'tree' }, Object.keys(VERDICTS).concat(['other']).map((verdict) => {
    const list = cases.filter((one) => one.verdict === verdict || (verdict === 'other' && !(one.verdict in VERDICTS)));
    if (!list.length) return null;
    const [mark, style, words] = VERDICTS[verdict] || ['?', 'other', verdict];
    const title = el('span', {}, el('span', { class: `mark ${style}`, 'aria-hidden': 'true' }, mark), ` ${words}`);
    return branch(title, list, verdict === 'wrong', () => grouped(list, (one) => one.sort).map(([sort, some]) =>
      branch(sort, some, verdict === 'wrong', () => grouped(some, (one) => one.place).map(([place, few]) =>
        branch(place || 'everywhere', few, verdict === 'wrong' && few.length < 20, () => el('ul', {}, few.map(leaf)))))));
  }));
}

/** The transaction that a case is about, by its number in the lines of the record; or null. */
function txOf(wrong, rows) {
  const number = (row) => (/ tx=(\d+)/.exec(row || '') || [])[1] || null;
  const violation = rows.findLast((row) => row.includes('port:violation'));
  if (number(violation)) return number(violation);
  const address = /(?:device address=|bytes at )0x0*([0-9a-f]+)/.exec(wrong.why[0] || '');
  return address ? number(rows.findLast((row) => /dma:dma_(?:map|alloc|unmap|free)/.test(row) && row.includes(`addr=0x${address[1]} `))) : null;
}

/** A line of the record with its time before and its columns closed up. */
const recordLine = (row) => el('p', {}, el('code', {}, row.replace(/^-?\d+\s+/, '').replace(/\s+/g, ' ')));

/** What a case's findings and its record say to the four questions. */
function told4(wrong) {
  const text = wrong.why[0] || '';
  const line = (pattern) => (pattern.exec(text) || [])[1];
  const rows = wrong.record.map((row) => row.trim());
  const id = txOf(wrong, rows);
  const of = (pattern) => (id === null ? [] : rows.filter((row) => pattern.test(row) && `${row} `.includes(` tx=${id} `)));
  const place = (words, pattern) => { const said = line(pattern); return said && said !== '?' ? el('p', {}, words, el('code', {}, said), '.') : null; };
  const last = (pattern) => rows.findLast((row) => pattern.test(row));
  const chain = line(/\[(posted in [^\]]*)\]/);
  const [added, rung] = [last(/virtq:add/), last(/virtq:kick/)];
  const unmapped = of(/dma:dma_(unmap|free)/).slice(-1);
  const touched = of(/port:(violation|write|read)/).slice(-4);
  const refused = /device access beyond/.test(text);
  const answered = [
    ['Who mapped it?', [place('Mapped at ', /\bmapped at (.*)/) || place('By the mapping at ', /posted by the mapping at (.*)/), place('The buffer was allocated at ', /allocated at (.*)/), ...of(/dma:dma_(map|alloc)/).slice(-1).map(recordLine)]],
    ['Which descriptor led there?', [chain && el('p', {}, `${chain[0].toUpperCase()}${chain.slice(1)}.`), place('Posted at ', /posted at (.*)/), added && recordLine(added), rung && recordLine(rung)]],
    ['When did the device touch it?', touched.length ? touched.map(recordLine) : [refused && el('p', { class: 'bad' }, `✕ It tried after the last event of the record, and was refused.`), refused && rows.length && recordLine(rows.at(-1))]],
    ['What came back?', [el('p', { class: 'bad' }, `✕ ${text.split('\n')[0] || 'wrong'}`), place('Unmapped at ', /unmapped at (.*)/), ...unmapped.map(recordLine)]],
  ];
  return el('dl', { class: 'answers' }, answered.flatMap(([question, said]) => {
    const all = said.filter(Boolean);
    return [el('dt', {}, question), el('dd', {}, all.length ? all : el('p', {}, 'The record of this case, which holds its last events alone, does not say.'))];
  }));
}

function wrongCard(wrong, index, told) {
  const dma = /mapp|device |DMA|dma|posted/.test(wrong.why.join(' '));
  const how = wrong.natural ? 'can really happen' : 'by injection only';
  return el('article', { class: 'finding' },
    el('h3', {}, el('span', { class: 'mark wrong', 'aria-hidden': 'true' }, '✕'), ' ', told.stopped ? 'the clean run' : wrong.site || 'on the device’s side'),
    el('p', { class: 'chips' }, wrong.detector ? el('span', { class: 'chip' }, `found by ${wrong.detector.by}${wrong.detector.finding ? `: ${wrong.detector.finding}` : ''}`) : null,
      told.stopped ? el('span', { class: 'chip' }, 'nothing was injected') : el('span', { class: 'chip' }, how)),
    el('pre', { class: 'why' }, wrong.why[0] || ''),
    wrong.why.length > 1 ? lazy(`${many(wrong.why.length - 1, 'more thing', 'more things')} wrong in this case`, () => wrong.why.slice(1).map((why) => el('pre', { class: 'why' }, why))) : null,
    dma ? lazy('Who mapped it, which descriptor led there, when did the device touch it, what came back?', () => told4(wrong), index === 0) : null,
    wrong.record.length ? lazy(`The ${many(wrong.record.length, 'event')} before`, () => el('pre', { class: 'record' }, wrong.record.join('\n'))) : null,
    el('p', { class: 'repeat' }, 'Repeat it: ', token(`lowzone replay '${wrong.token}'`)));
}

function explorePage(main, told) {
  const count = (verdict) => told.verdicts.filter((one) => one[1] === verdict).length;
  main.append(tiles([
    ['cases', told.cases, 'cases'], ['failed right', count('failed-right'), 'failed-right'], ['absorbed', count('absorbed'), 'absorbed'],
    ['wrong', told.wrong.length, 'wrong', told.wrong.length > 0], ['not carried out', told.missing.length, 'missing', told.missing.length > 0]]));
  if (told.stopped) main.append(el('p', { class: 'banner' }, 'The clean run was not clean, so nothing was injected.'));
  if (told.wrong.length) {
    const shown = told.wrong.slice(0, 20);
    main.append(panel('Mishandled', told.wrong.length > shown.length ? `The first ${shown.length} of ${group(told.wrong.length)}; all are in the tree.` : '',
      el('div', { class: 'findings' }, shown.map((wrong, index) => wrongCard(wrong, index, told)))));
  }
  if (told.missing.length) main.append(panel('Not carried out', 'Faults of the inventory that no case reached.', el('ul', {}, told.missing.map((name) => el('li', {}, el('code', {}, name))))));
  main.append(panel('Points by verdict', 'Open a branch for its tokens; each repeats one case.', tree(told)));
  main.append(panel('Points', 'What a scenario asks for, and could be refused.', table(['class', 'points'], Object.entries(told.points).map(([name, n]) => [name, group(n)]), 'Points by class')));
  main.append(panel('By source line', '', table(['fault', 'in', 'at', 'cases', 'failed right', 'absorbed', 'wrong', 'can happen'],
    told.rows.map((row) => [row.class, row.scope, el('code', {}, row.site), row.cases, row.failed_right, row.absorbed, row.wrong ? el('strong', { class: 'bad' }, `✕ ${row.wrong}`) : 0, row.natural]), 'Cases by source line')));
}

function mutantsPage(main, told) {
  const missed = told.mutants.filter((one) => !one.found);
  main.append(tiles([['seeded bugs', told.total, 'total'], ['found', told.found, 'found'], ['missed', missed.length, 'missed', missed.length > 0], ['of real drivers', `${told.real[0]} of ${told.real[1]}`]]));
  const leaf = (one) => lazy([el('span', { class: `mark ${one.found ? 'right' : 'wrong'}`, 'aria-hidden': 'true' }, one.found ? '✓' : '✕'), el('span', { class: 'name' }, ` ${one.name}`),
    el('span', { class: 'count' }, one.found ? `${one.found.detector ? one.found.detector.finding || one.found.detector.by : ''} after ${many(one.cases, 'case')}` : `missed by ${many(one.cases, 'case')}`)],
  () => [el('p', {}, one.story, one.machine === 'any' ? '' : ` (${one.machine})`)].concat(one.found ? [
    el('pre', { class: 'why' }, one.found.why.join('\n')),
    el('p', { class: 'repeat' }, token(`LOWZONE_MUTANTS=${one.name} lowzone replay '${one.found.token}'${one.found.set.map((set) => ` --set ${set}`).join('')}`))] : []));
  const branch = ([name, list]) => lazy([el('span', { class: 'name' }, name), el('span', { class: 'count' }, `${list.filter((one) => one.found).length} of ${list.length} found`)], () => list.map(leaf), true);
  main.append(panel('Seeded bugs by driver', 'Open one for its story, who told, and the token that repeats it.', el('div', { class: 'tree' }, grouped(told.mutants, (one) => one.driver).map(branch))));
}

/** Bars of what things cost; a thin line from the least to the most where these are known. */
function costs(rows, unit) {
  const most = Math.max(...rows.map((row) => row.high ?? row.value), 1e-9);
  return el('div', { class: 'costs' }, rows.map((row) => {
    const picture = svg('svg', { viewBox: '0 0 1000 22', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
      svg('rect', { class: 'cost', x: 0, y: 4, height: 14, width: (row.value / most) * 1000, rx: 2 }),
      row.low === undefined ? null : svg('rect', { class: 'whisker', x: (row.low / most) * 1000, width: Math.max(((row.high - row.low) / most) * 1000, 2), y: 10, height: 2 }));
    const range = row.low === undefined ? '' : ` (${amount(row.low, unit)} to ${amount(row.high, unit)})`;
    return el('div', { class: 'cost-row' }, el('span', {}, row.name), picture, el('span', { class: 'num' }, `${amount(row.value, unit)}${range}`));
  }));
}

function benchPage(main, told) {
  for (const plot of told.plots || []) main.append(panel(plot.title, plot.note || '', costs(plot.rows, plot.unit || '')));
}
