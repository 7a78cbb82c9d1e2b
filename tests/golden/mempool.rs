//! Pools: when the backing allocator is asked and with which mask, who gets what from the reserve, who sleeps.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use lowzone_guest_mem::gfp::{__GFP_ZERO, GFP_ATOMIC, GFP_KERNEL, GFP_NOWAIT, Gfp};
use lowzone_guest_mem::kernel::MachineConfig;
use lowzone_guest_mem::kmalloc::ksize;
use lowzone_guest_mem::kmem_cache::kmem_cache_create;
use lowzone_guest_mem::mempool::{
    Backing, Mempool, mempool_create, mempool_create_kmalloc_pool, mempool_create_page_pool, mempool_create_slab_pool,
};
use lowzone_guest_mem::slab::SlabFlags;
use lowzone_guest_mem::wait::{Completion, sleep};
use lowzone_guest_mem::zone::{AllocError, ZoneKind};
use lowzone_guest_mem::{Cpu, KBuf};

use crate::cpus;
use crate::table::{Golden, Outputs};

const MEMPOOL: Golden = Golden {
    name: "mempool",
    text: include_str!("mempool.tsv"),
    inputs: &["boot", "step"],
    compare: &[
        "min_nr",
        "curr_nr",
        "calls",
        "frees",
        "first_gfp",
        "backend_gfp",
        "gfp_hex",
        "n",
        "ret",
        "done",
        "last_gfp",
        "got_index",
        "rc",
    ],
};

const SECOND: u64 = 1_000_000_000;

/// `kmalloc(128)` that fails at will and counts.
#[derive(Clone, Default)]
struct Probe(Arc<Counts>);

#[derive(Default)]
struct Counts {
    failing: AtomicBool,
    calls: AtomicU64,
    frees: AtomicU64,
    masks: Mutex<Vec<Gfp>>,
}

struct Element {
    counts: Arc<Counts>,
    number: usize,
    _buf: KBuf,
}

impl Drop for Element {
    fn drop(&mut self) {
        self.counts.frees.fetch_add(1, Ordering::Relaxed);
    }
}

impl Backing for Probe {
    type Element = Element;

    fn alloc(&self, cpu: &Cpu<'_>, gfp: Gfp) -> Result<Element, AllocError> {
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        self.0.masks.lock().unwrap().push(gfp);
        if self.0.failing.load(Ordering::Relaxed) {
            return Err(AllocError::NoMemory { order: 0, gfp, zone: ZoneKind::Normal });
        }
        Ok(Element { counts: self.0.clone(), number: 0, _buf: KBuf::kmalloc(cpu, 128, gfp)? })
    }

    fn bytes(&self) -> u64 {
        128
    }
}

impl Probe {
    fn fail(&self, failing: bool) {
        self.0.failing.store(failing, Ordering::Relaxed);
    }

    fn restart(&self) {
        self.0.calls.store(0, Ordering::Relaxed);
        self.0.frees.store(0, Ordering::Relaxed);
    }

    fn last_mask(&self) -> Gfp {
        *self.0.masks.lock().unwrap().last().unwrap()
    }
}

type Pool = Mempool<Probe>;
type Rows = Vec<(&'static str, Outputs)>;

/// What the rows show, put down as the sequence goes.
struct Sheet {
    probe: Probe,
    rows: Rows,
    /// How long the sleepers slept.
    waits: Vec<u64>,
}

impl Sheet {
    /// A pool that is gone has no sizes: -1.
    fn put(&mut self, step: &'static str, pool: Option<&Pool>, more: &[(&'static str, String)]) {
        let sizes = pool
            .map_or(("-1".to_owned(), "-1".to_owned()), |pool| (pool.min_nr().to_string(), pool.curr_nr().to_string()));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed).to_string();
        let mut row = vec![
            ("min_nr", sizes.0),
            ("curr_nr", sizes.1),
            ("calls", count(&self.probe.0.calls)),
            ("frees", count(&self.probe.0.frees)),
        ];
        row.extend_from_slice(more);
        self.rows.push((step, row));
    }
}

fn said<T>(got: &Option<T>) -> (&'static str, String) {
    ("ret", if got.is_some() { "ptr" } else { "NULL" }.to_owned())
}

/// The steps before anybody sleeps; gives the elements that are out, the first two first.
fn fill_and_empty(cpu: &Cpu<'_>, sheet: &mut Sheet) -> (Pool, Vec<Element>) {
    let probe = sheet.probe.clone();
    let pool = mempool_create(cpu, 4, probe.clone()).unwrap();
    let first = format!("{:#x}", probe.0.masks.lock().unwrap()[0].bits());
    sheet.put("create_4", Some(&pool), &[("first_gfp", first)]);
    probe.restart();
    let mut out = Vec::new();
    for (step, gfp) in [("alloc_ok_GFP_KERNEL", GFP_KERNEL), ("alloc_ok_GFP_ATOMIC", GFP_ATOMIC)] {
        out.push(pool.alloc(cpu, gfp).unwrap());
        let mask = probe.last_mask();
        let masks = [("backend_gfp", mask.to_string()), ("gfp_hex", format!("{:#x}", mask.bits()))];
        sheet.put(step, Some(&pool), &masks);
    }
    probe.restart();
    probe.fail(true);
    for n in 1..=4 {
        let got = pool.alloc(cpu, GFP_ATOMIC).ok();
        sheet.put("alloc_backend_failing_ATOMIC", Some(&pool), &[("n", n.to_string()), said(&got)]);
        out.extend(got);
    }
    for (step, gfp) in [("alloc_empty_ATOMIC", GFP_ATOMIC), ("alloc_empty_NOWAIT", GFP_NOWAIT)] {
        sheet.put(step, Some(&pool), &[said(&pool.alloc(cpu, gfp).ok())]);
    }
    (pool, out)
}

/// What the sleeper on the other CPU shares with the tester.
#[derive(Default)]
struct Sleeper {
    go: Completion,
    done: Completion,
    waited: AtomicU64,
    finished: AtomicBool,
}

impl Sleeper {
    /// Waits to be told, allocates with GFP_KERNEL, tells.
    fn allocate(&self, cpu: &Cpu<'_>, pool: &Pool, to: &mpsc::Sender<Element>) {
        self.go.wait_timeout(cpu, 60 * SECOND).unwrap();
        let begun = cpu.now();
        to.send(pool.alloc(cpu, GFP_KERNEL).unwrap()).unwrap();
        self.waited.store(cpu.now() - begun, Ordering::Relaxed);
        self.finished.store(true, Ordering::Relaxed);
        self.done.complete(cpu);
    }
}

/// Two callers that may sleep: one is woken by a free, one finds the backing mended after 5 s.
fn sleepers(cpu: &Cpu<'_>, sheet: &mut Sheet, pool: &Pool, sleeper: &Sleeper, out: &mut Vec<Element>) {
    let probe = sheet.probe.clone();
    probe.restart();
    sleeper.go.complete(cpu);
    sleep(cpu, SECOND).unwrap();
    let done = |sleeper: &Sleeper| ("done", u8::from(sleeper.finished.load(Ordering::Relaxed)).to_string());
    sheet.put("waiter_after_1s", Some(pool), &[done(sleeper), ("last_gfp", probe.last_mask().to_string())]);
    pool.free(cpu, out.pop());
    sleeper.done.wait_timeout(cpu, 60 * SECOND).unwrap();
    sheet.put("waiter_after_free", Some(pool), &[done(sleeper)]);
    sheet.waits.push(sleeper.waited.load(Ordering::Relaxed));
    probe.restart();
    sleeper.go.complete(cpu);
    sleep(cpu, 300_000_000).unwrap();
    probe.fail(false);
    sleeper.done.wait_timeout(cpu, 60 * SECOND).unwrap();
    sheet.put("waiter_no_free_backend_mended", Some(pool), &[]);
    sheet.waits.push(sleeper.waited.load(Ordering::Relaxed));
}

/// Frees that fill the reserve, then go to the backing; what comes out last was freed last.
fn refill(cpu: &Cpu<'_>, sheet: &mut Sheet, pool: &Pool, mut out: Vec<Element>) -> Vec<Element> {
    let probe = sheet.probe.clone();
    probe.restart();
    probe.fail(true);
    let rest = out.split_off(2);
    let mut rest = rest.into_iter();
    for (n, element) in (1..).zip(rest.by_ref().take(3).collect::<Vec<_>>().into_iter().chain(out.drain(..1))) {
        pool.free(cpu, element);
        sheet.put("free_refill", Some(pool), &[("n", n.to_string())]);
    }
    pool.free(cpu, out.pop());
    sheet.put("free_when_full", Some(pool), &[("n", "5".to_owned())]);
    pool.free(cpu, None);
    sheet.put("free_NULL", Some(pool), &[]);
    let three: Vec<_> = (0..3).map(|_| pool.alloc(cpu, GFP_ATOMIC).unwrap()).collect();
    for (number, mut element) in (0..).zip(three) {
        element.number = number;
        pool.free(cpu, element);
    }
    let last = pool.alloc(cpu, GFP_ATOMIC).unwrap();
    sheet.put("reserve_lifo", Some(pool), &[("got_index", last.number.to_string())]);
    pool.free(cpu, last);
    rest.collect()
}

fn resizes(cpu: &Cpu<'_>, sheet: &mut Sheet, pool: &Pool) {
    let probe = sheet.probe.clone();
    let rc = |result: Result<(), _>| ("rc", if result.is_ok() { "0" } else { "-12" }.to_owned());
    probe.fail(false);
    for (step, n, failing) in
        [("resize_up_8", 8, false), ("resize_down_2", 2, false), ("resize_up_6_backend_failing", 6, true)]
    {
        probe.restart();
        probe.fail(failing);
        let done = pool.resize(cpu, n);
        sheet.put(step, Some(pool), &[rc(done)]);
    }
    probe.fail(false);
    let element = pool.alloc(cpu, GFP_KERNEL).unwrap();
    pool.free(cpu, element);
    sheet.put("free_while_below_min", Some(pool), &[]);
}

fn ends(cpu: &Cpu<'_>, sheet: &mut Sheet, pool: Pool) {
    let probe = sheet.probe.clone();
    let zeroed = pool.alloc(cpu, GFP_KERNEL | __GFP_ZERO).unwrap();
    pool.free(cpu, zeroed);
    let outstanding = pool.alloc(cpu, GFP_KERNEL).unwrap();
    probe.restart();
    pool.destroy(cpu);
    sheet.put("destroy_with_one_outstanding", None, &[]);
    drop(outstanding);
    probe.restart();
    probe.fail(true);
    let none = mempool_create(cpu, 4, probe.clone()).ok();
    sheet.put("create_backend_failing", None, &[said(&none)]);
    probe.restart();
    probe.fail(false);
    let plain = mempool_create(cpu, 0, probe.clone()).ok();
    sheet.put("create_0", plain.as_ref(), &[said(&plain)]);
    let plain = plain.unwrap();
    let got = plain.alloc(cpu, GFP_ATOMIC).ok();
    sheet.put("create_0_alloc", Some(&plain), &[said(&got)]);
    plain.free(cpu, got);
    probe.fail(true);
    let got = plain.alloc(cpu, GFP_ATOMIC).ok();
    sheet.put("create_0_alloc_failing", Some(&plain), &[said(&got)]);
}

/// The sequence that was measured, told by the model, and how long the sleepers slept.
fn sequence() -> (Rows, Vec<u64>) {
    let (to_sleeper, pools) = mpsc::channel::<Arc<Pool>>();
    let (to_tester, elements) = mpsc::channel();
    let (to_rows, rows) = mpsc::channel();
    let sleeper = Arc::new(Sleeper::default());
    let other = sleeper.clone();
    let ready = Arc::new(Completion::new());
    let made = ready.clone();
    let tester = move |cpu: &Cpu<'_>| {
        let mut sheet = Sheet { probe: Probe::default(), rows: Vec::new(), waits: Vec::new() };
        let (pool, mut out) = fill_and_empty(cpu, &mut sheet);
        let pool = Arc::new(pool);
        to_sleeper.send(pool.clone()).unwrap();
        ready.complete(cpu);
        sleepers(cpu, &mut sheet, &pool, &sleeper, &mut out);
        out.extend(elements.try_iter());
        let rest = refill(cpu, &mut sheet, &pool, out);
        resizes(cpu, &mut sheet, &pool);
        // Those that are still out go to the backing allocator.
        drop(rest);
        // The sleeper is done with its share.
        sleep(cpu, SECOND).unwrap();
        ends(cpu, &mut sheet, Arc::into_inner(pool).unwrap());
        to_rows.send((sheet.rows, sheet.waits)).unwrap();
    };
    let waiter = move |cpu: &Cpu<'_>| {
        made.wait_timeout(cpu, 60 * SECOND).unwrap();
        let pool = pools.try_recv().unwrap();
        for _ in 0..2 {
            other.allocate(cpu, &pool, &to_tester);
        }
    };
    let found = cpus::run(MachineConfig::default(), vec![Box::new(tester), Box::new(waiter)], |kernel| {
        kernel.findings().iter().map(|finding| finding.kind.name()).collect::<Vec<_>>()
    });
    assert_eq!(found, ["mempool-zero", "mempool-busy"], "Linux stays silent about both");
    rows.try_recv().unwrap()
}

#[test]
fn golden_mempool() {
    let (told, waits) = sequence();
    assert!((SECOND..SECOND + SECOND / 10).contains(&waits[0]), "woken by the free, not after {} ns", waits[0]);
    assert!((5 * SECOND..5 * SECOND + SECOND / 10 * 3).contains(&waits[1]), "the 5 s retry, not after {} ns", waits[1]);
    let mut told = told.into_iter();
    MEMPOOL.run(|row| {
        let (step, outputs) = told.next().expect("the sequence has a step for each row");
        assert_eq!(row.get("step"), step);
        outputs
    });
    assert!(told.next().is_none(), "the sequence is longer than the table");
}

const KINDS: Golden = Golden {
    name: "mempool_kind",
    text: include_str!("mempool_kind.tsv"),
    inputs: &["boot", "kind"],
    compare: &["ksize", "min_nr", "curr_nr", "cache", "zone"],
};

fn sizes<B: Backing>(pool: &Mempool<B>) -> Outputs {
    vec![("min_nr", pool.min_nr().to_string()), ("curr_nr", pool.curr_nr().to_string())]
}

/// A pool of three by each of the usual kinds.
fn kind(cpu: &Cpu<'_>, kind: &str) -> Outputs {
    let mut row;
    match kind {
        "kmalloc" => {
            let pool = mempool_create_kmalloc_pool(cpu, 3, 128).unwrap();
            row = sizes(&pool);
            let element = pool.alloc(cpu, GFP_KERNEL).unwrap();
            row.push(("ksize", ksize(&element).to_string()));
            pool.free(cpu, element);
        }
        "slab" => {
            let cache = kmem_cache_create(cpu, "oracle_mp", 100, 0, SlabFlags::empty(), None).unwrap();
            let pool = mempool_create_slab_pool(cpu, 3, Arc::new(cache)).unwrap();
            row = sizes(&pool);
            row.push(("cache", pool.backing().0.name().to_owned()));
        }
        "page" => {
            let pool = mempool_create_page_pool(cpu, 3, 0).unwrap();
            row = sizes(&pool);
            let page = pool.alloc(cpu, GFP_KERNEL).unwrap();
            row.push(("zone", page.zone().to_string()));
            pool.free(cpu, page);
        }
        other => panic!("no such kind: {other}"),
    }
    row
}

#[test]
fn golden_mempool_kind() {
    KINDS.run(|row| {
        let (to, from) = mpsc::channel();
        let name = row.get("kind").to_owned();
        let body = move |cpu: &Cpu<'_>| to.send(kind(cpu, &name)).unwrap();
        cpus::run(MachineConfig::default(), vec![Box::new(body)], |kernel| assert!(kernel.findings().is_empty()));
        from.try_recv().unwrap()
    });
}
