//! Unit tests of pools; the order of attempts and masks is the golden table's.

use super::*;
use crate::env::Class;
use crate::finding::Resource;
use crate::gfp::{__GFP_ZERO, GFP_ATOMIC, GFP_HIGHUSER};
use crate::kernel::MachineConfig;
use crate::testing::Lab;
use crate::zone::ZoneKind;

#[test]
fn an_atomic_caller_gets_the_reserve_and_then_nothing() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let pool = mempool_create_kmalloc_pool(&cpu, 2, 100).unwrap();
    let mut got = Vec::new();
    for wanted in [Ok(1), Ok(0), Err(MempoolError::Empty { gfp: GFP_ATOMIC })] {
        lab.solo.fail_nth(0);
        let left = pool.alloc(&cpu, GFP_ATOMIC).map(|element| got.push(element)).map(|()| pool.curr_nr());
        assert_eq!(left, wanted);
    }
    pool.free(&cpu, got.pop());
    lab.solo.fail_nth(0);
    got.push(pool.alloc(&cpu, GFP_ATOMIC).unwrap());
    let PoolUse { allocs, dips, refused, lowest, out, .. } = pool.usage();
    assert_eq!((allocs, dips, refused, lowest, out), (3, 3, 1, 0, 2));
    got.into_iter().for_each(|element| pool.free(&cpu, element));
    drop(pool);
    assert_eq!((lab.findings(), lab.leaks()), (vec![], vec![]));
}

#[test]
fn a_caller_that_may_sleep_is_never_failed_though_its_backing_is() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let pool = mempool_create_kmalloc_pool(&cpu, 0, 100).unwrap();
    lab.solo.points();
    // The attempt without reclaim fails, the one with it succeeds.
    lab.solo.fail_nth(0);
    let element = pool.alloc(&cpu, GFP_KERNEL).unwrap();
    assert_eq!(lab.solo.points()[..2], [Class::Slab, Class::Slab]);
    pool.free(&cpu, element);
    assert_eq!(pool.usage().waits, 0);
}

/// A backing that always fails.
struct Never;

impl Backing for Never {
    type Element = u32;

    fn alloc(&self, cpu: &Cpu<'_>, gfp: Gfp) -> Result<u32, crate::zone::AllocError> {
        let zone = gfp.highest_zone(cpu.kernel().config().arch);
        Err(crate::zone::AllocError::NoMemory { order: 0, gfp, zone })
    }

    fn bytes(&self) -> u64 {
        4
    }
}

#[test]
fn a_sleeper_wakes_by_a_free_or_after_five_seconds_or_dies() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let pool = std::rc::Rc::new(mempool_create(&cpu, 0, Never).unwrap());
    // With a reserve of 1 a freed element is kept; the resize finds the backing failing and succeeds.
    pool.resize(&cpu, 1).unwrap();
    let (kernel, other) = (lab.machine.kernel_ref(), pool.clone());
    lab.solo.on_park(move |solo| {
        solo.set_now(1000);
        other.free(&Cpu::new(1, kernel, solo), 7);
    });
    assert_eq!((pool.alloc(&cpu, GFP_KERNEL), cpu.now()), (Ok(7), 1000));
    let other = pool.clone();
    // Nobody wakes it: what was put there without a word is found by the retry.
    lab.solo.on_park(move |_| assert!(other.put(8).is_ok()));
    assert_eq!((pool.alloc(&cpu, GFP_KERNEL), cpu.now()), (Ok(8), 1000 + RETRY_NS));
    lab.solo.die();
    assert_eq!(pool.alloc(&cpu, GFP_KERNEL), Err(MempoolError::Dying));
    assert_eq!(pool.usage().waits, 3);
}

/// A backing that always fails and notes the masks.
#[derive(Default)]
struct Noting(std::cell::RefCell<Vec<u32>>);

impl Backing for Noting {
    type Element = u32;

    fn alloc(&self, cpu: &Cpu<'_>, gfp: Gfp) -> Result<u32, crate::zone::AllocError> {
        self.0.borrow_mut().push(gfp.bits());
        Never.alloc(cpu, gfp)
    }

    fn bytes(&self) -> u64 {
        4
    }
}

#[test]
fn a_pool_of_two_over_a_backing_that_always_fails() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let pool = mempool_create(&cpu, 0, Noting::default()).unwrap();
    pool.resize(&cpu, 2).unwrap();
    pool.backing().0.take();
    for element in [1, 2] {
        pool.free(&cpu, element);
    }
    let masks = |pool: &Mempool<Noting>| pool.backing().0.take();
    assert_eq!([(); 2].map(|()| pool.alloc(&cpu, GFP_ATOMIC)), [Ok(2), Ok(1)]);
    assert_eq!(masks(&pool), [0x9_2a20; 2], "the first round has the whole mask");
    assert_eq!(pool.alloc(&cpu, GFP_ATOMIC), Err(MempoolError::Empty { gfp: GFP_ATOMIC }));
    assert_eq!(masks(&pool), [0x9_2a20], "and there is no second");
    pool.free(&cpu, 1);
    assert_eq!((pool.alloc(&cpu, GFP_ATOMIC), masks(&pool)), (Ok(1), vec![0x9_2a20]));
    // Nobody frees: it looks again after 5 s, and after 5 s more.
    lab.solo.on_park(|_| {});
    lab.solo.on_park(|solo| solo.set_now(RETRY_NS));
    lab.solo.on_park(|solo| solo.set_now(2 * RETRY_NS));
    lab.solo.on_park(|solo| solo.die());
    assert_eq!(pool.alloc(&cpu, GFP_KERNEL), Err(MempoolError::Dying));
    assert_eq!(masks(&pool), [0x9_2880, 0x9_2cc0, 0x9_2cc0, 0x9_2cc0], "without reclaim, then with it each time");
}

#[test]
fn a_pool_that_cannot_be_filled_gives_all_back() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    // Header and array, each with a slab for it, then the third element.
    lab.solo.fail_nth(6);
    let failed = mempool_create_page_pool(&cpu, 4, 1).err();
    assert_eq!(failed, Some(MempoolError::Create { min_nr: 4, have: 2 }));
    lab.solo.fail_nth(0);
    assert_eq!(mempool_create_page_pool(&cpu, 4, 1).err(), Some(MempoolError::Create { min_nr: 4, have: 0 }));
    assert_eq!(lab.leaks(), []);
}

#[test]
fn misuse_is_reported_and_the_pool_goes_on() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let pool = mempool_create_kmalloc_pool(&cpu, 2, 64).unwrap();
    assert_eq!(pool.resize(&cpu, 0), Err(MempoolError::Zero));
    let out = pool.alloc(&cpu, GFP_KERNEL | __GFP_ZERO).unwrap();
    let off = cpu.preempt_disable();
    drop(pool.alloc(&cpu, GFP_KERNEL));
    drop(off);
    pool.destroy(&cpu);
    let found = lab.findings();
    // The backing's own complaint comes too, once: the first mask doesn't sleep.
    assert_eq!(found, ["mempool-resize-zero", "mempool-zero", "sleep-in-atomic", "mempool-busy"]);
    let busy = &lab.kernel().findings()[3];
    assert_eq!(busy.kind, FindingKind::MempoolBusy { out: 2, bytes: 128 });
    assert_eq!(busy.sites.iter().map(|(part, _)| *part).collect::<Vec<_>>(), ["created at", "destroyed at"]);
    assert_eq!((lab.leaks(), out.len()), (vec![Resource::Slab], 64));
}

#[test]
fn a_page_pool_may_hold_high_memory() {
    let lab = Lab::of(MachineConfig { arch: crate::arch::Arch::X86_32, ..MachineConfig::default() });
    let cpu = lab.cpu();
    let pool = mempool_create_page_pool(&cpu, 1, 0).unwrap();
    let page = pool.alloc(&cpu, GFP_HIGHUSER).unwrap();
    assert_eq!((page.zone(), pool.backing().bytes()), (ZoneKind::HighMem, 4096));
    pool.free(&cpu, page);
}

#[test]
fn the_books_tell_waste_from_need() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let verdict = |gfp: Gfp, failures: &[u64]| {
        let pool = mempool_create_kmalloc_pool(&cpu, 4, 128).unwrap();
        failures.iter().for_each(|&nth| lab.solo.fail_nth(nth));
        let element = pool.alloc(&cpu, gfp).unwrap();
        pool.free(&cpu, element);
        (pool.usage().verdict(), pool.usage().idle_bytes())
    };
    assert_eq!(verdict(GFP_KERNEL, &[]), (Verdict::NeverDipped, 512));
    assert_eq!(verdict(GFP_ATOMIC, &[0]), (Verdict::Errno, 384));
    assert_eq!(verdict(GFP_KERNEL, &[0]), (Verdict::Needed, 384));
    assert_eq!(lab.kernel().mempools().len(), 3, "the books outlive the pools");
}
