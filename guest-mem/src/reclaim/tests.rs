//! Tests of the slow path: who waits how long, what shrinkers are asked, and what is said when nothing helps.

use std::sync::Mutex as StdMutex;
use std::sync::atomic::AtomicU32;

use super::*;
use crate::gfp::{
    __GFP_MEMALLOC, __GFP_NOFAIL, __GFP_NORETRY, __GFP_NOWARN, __GFP_RETRY_MAYFAIL, GFP_ATOMIC, GFP_DMA, GFP_KERNEL,
    GFP_NOFS, GFP_NOIO, GFP_NOWAIT,
};
use crate::kernel::MachineConfig;
use crate::page::{Pages, alloc_pages};
use crate::refusal::{Refusal, Why};
use crate::testing::Lab;

/// 32 MiB: zones DMA and DMA32 alone, so a plain mask falls back to what `GFP_DMA32` would take.
fn small() -> Lab {
    Lab::of(MachineConfig { ram: 32 << 20, low: 32 << 20, swiotlb: 0, ..MachineConfig::default() })
}

/// Takes all that a mask may have without waiting, down to the last page that any may.
fn exhaust(lab: &Lab) -> Vec<Pages> {
    let cpu = lab.cpu();
    let gfp = GFP_NOWAIT | __GFP_MEMALLOC | __GFP_NOWARN;
    let held = std::iter::from_fn(|| alloc_pages(&cpu, 0, gfp).ok()).collect();
    assert_eq!(lab.kernel().zone_stats().map(|zone| zone.free).iter().sum::<u64>(), 0);
    let _ = lab.solo.points();
    held
}

/// A cache of single pages.
struct Cache {
    pages: StdMutex<Vec<Pages>>,
    needs: Gfp,
    scans: AtomicU32,
    allocates: bool,
}

impl Cache {
    fn of(pages: Vec<Pages>, needs: Gfp) -> Arc<Self> {
        Arc::new(Self { pages: StdMutex::new(pages), needs, scans: AtomicU32::new(0), allocates: false })
    }

    fn scans(&self) -> u32 {
        self.scans.load(Ordering::Relaxed)
    }
}

impl Shrinker for Cache {
    fn name(&self) -> &'static str {
        "cache"
    }

    fn count_objects(&self, _: &Cpu<'_>, _: ShrinkControl) -> u64 {
        self.pages.lock().unwrap().len() as u64
    }

    fn scan_objects(&self, cpu: &Cpu<'_>, control: ShrinkControl) -> Option<u64> {
        let first = self.scans.fetch_add(1, Ordering::Relaxed) == 0;
        if self.allocates && first {
            assert!(alloc_pages(cpu, 0, GFP_KERNEL | __GFP_NOWARN).is_err(), "nothing is free, no reclaim in reclaim");
        }
        let mut pages = self.pages.lock().unwrap();
        let keep = pages.len().saturating_sub(usize::try_from(control.nr_to_scan).unwrap());
        let freed = pages.split_off(keep);
        Some(freed.len() as u64)
    }

    fn needs(&self) -> Gfp {
        self.needs
    }
}

#[test]
fn a_mask_that_may_sleep_gets_what_a_shrinker_frees() {
    let lab = small();
    let cpu = lab.cpu();
    let mut held = exhaust(&lab);
    let cache = Cache::of(held.split_off(held.len() / 2), Gfp::empty());
    let registered = register_shrinker(&cpu, cache.clone());
    assert!(alloc_pages(&cpu, 0, GFP_ATOMIC).is_err(), "who can't sleep does not reclaim");
    assert_eq!((cache.scans(), lab.solo.parks()), (0, 0));
    let page = alloc_pages(&cpu, 0, GFP_KERNEL).unwrap();
    assert!(cache.scans() > 0);
    assert_eq!(lab.findings(), [""; 0]);
    drop((page, registered));
    assert!(alloc_pages(&cpu, 0, GFP_KERNEL).is_ok(), "its marks are reached again");
    lab.kernel().validate().unwrap();
}

#[test]
fn each_mask_gives_up_in_its_own_way() {
    // mask, order, rounds of scanning, ticks slept, findings
    let never: [&str; 0] = [];
    let cases = [
        (GFP_KERNEL | __GFP_NORETRY, 0, 0, &never[..]),
        (GFP_KERNEL | __GFP_RETRY_MAYFAIL, 0, MAX_RECLAIM_RETRIES, &never),
        (GFP_KERNEL | GFP_DMA, 0, MAX_RECLAIM_RETRIES, &never),
        (GFP_KERNEL, 4, 0, &never),
        (GFP_KERNEL | __GFP_RETRY_MAYFAIL, 4, MAX_RECLAIM_RETRIES, &never),
        (GFP_KERNEL, 0, MAX_RECLAIM_RETRIES, &["out-of-memory"]),
        (GFP_KERNEL, 3, MAX_RECLAIM_RETRIES, &["out-of-memory"]),
        (GFP_NOWAIT, 0, 0, &never),
        (GFP_ATOMIC, 3, 0, &never),
    ];
    for (gfp, order, ticks, findings) in cases {
        let lab = small();
        let cpu = lab.cpu();
        let held = exhaust(&lab);
        // Says that it has plenty and gives nothing: the allocation hopes to the end.
        struct Stubborn;
        impl Shrinker for Stubborn {
            fn name(&self) -> &'static str {
                "stubborn"
            }
            fn count_objects(&self, _: &Cpu<'_>, _: ShrinkControl) -> u64 {
                1 << 20
            }
            fn scan_objects(&self, _: &Cpu<'_>, _: ShrinkControl) -> Option<u64> {
                None
            }
        }
        let _registered = register_shrinker(&cpu, Arc::new(Stubborn));
        let begun = cpu.now();
        let failed = alloc_pages(&cpu, order, gfp);
        assert!(matches!(failed, Err(AllocError::NoMemory { gfp: of, .. }) if of == gfp), "{gfp}");
        assert_eq!((cpu.now() - begun) / TICK, u64::from(ticks), "{gfp} order {order}");
        assert_eq!(lab.findings(), findings, "{gfp} order {order}");
        drop(held);
    }
}

#[test]
fn with_nothing_to_reclaim_it_gives_up_at_once() {
    let lab = small();
    let cpu = lab.cpu();
    let _held = exhaust(&lab);
    assert!(alloc_pages(&cpu, 0, GFP_KERNEL).is_err());
    assert_eq!((cpu.now(), lab.findings()), (0, vec!["out-of-memory"]));
    assert!(alloc_pages(&cpu, 0, GFP_NOFS).is_err());
    assert_eq!(cpu.now() / TICK, u64::from(MAX_RECLAIM_RETRIES), "a kill that is not done counts as progress");
    assert_eq!(lab.findings(), ["out-of-memory"; 2]);
}

#[test]
fn shrinkers_that_need_more_than_the_mask_gives_are_skipped() {
    let run = |gfp: Gfp, nofs: bool| {
        let lab = small();
        let cpu = lab.cpu();
        let mut held = exhaust(&lab);
        let cache = Cache::of(held.split_off(held.len() / 2), Gfp::FS);
        let _registered = register_shrinker(&cpu, cache.clone());
        let scope = nofs.then(|| cpu.memalloc_nofs_save());
        let got = alloc_pages(&cpu, 0, gfp | __GFP_RETRY_MAYFAIL | __GFP_NOWARN).is_ok();
        drop(scope);
        (got, cache.scans() > 0)
    };
    assert_eq!(run(GFP_KERNEL, false), (true, true));
    assert_eq!([run(GFP_NOFS, false), run(GFP_NOIO, false), run(GFP_KERNEL, true)], [(false, false); 3]);
}

#[test]
fn who_frees_memory_does_not_reclaim_and_may_have_all() {
    let lab = small();
    let cpu = lab.cpu();
    let mut held = exhaust(&lab);
    held.truncate(held.len() - 2);
    assert!(alloc_pages(&cpu, 0, GFP_ATOMIC | __GFP_NOWARN).is_err(), "two pages are below every mark");
    {
        let _scope = cpu.memalloc_noreclaim_save();
        held.push(alloc_pages(&cpu, 0, GFP_KERNEL).unwrap());
        held.push(alloc_pages(&cpu, 0, GFP_NOWAIT).unwrap());
        assert!(alloc_pages(&cpu, 0, GFP_KERNEL).is_err());
        assert_eq!((cpu.now(), lab.findings().len()), (0, 0), "neither waiting nor killing");
    }
    let cache = Arc::new(Cache { allocates: true, ..Arc::into_inner(Cache::of(held, Gfp::empty())).unwrap() });
    let _registered = register_shrinker(&cpu, cache.clone());
    assert!(alloc_pages(&cpu, 0, GFP_KERNEL).is_ok());
    assert!(cache.scans() > 0);
}

#[test]
fn nofail_waits_until_somebody_frees() {
    let lab = small();
    let cpu = lab.cpu();
    let mut held = exhaust(&lab);
    let rest = held.split_off(1000);
    lab.solo.on_park(|_| {});
    lab.solo.on_park(move |_| drop(held));
    let page = alloc_pages(&cpu, 0, GFP_KERNEL | __GFP_NOFAIL).unwrap();
    assert_eq!((lab.solo.parks() >= 2, lab.findings()), (true, vec!["out-of-memory"]));
    drop((page, rest));
}

#[test]
fn nofail_is_warned_of_where_it_can_not_be_had() {
    let lab = small();
    let cpu = lab.cpu();
    let fine = [alloc_pages(&cpu, 0, GFP_NOWAIT | __GFP_NOFAIL), alloc_pages(&cpu, 1, GFP_KERNEL | __GFP_NOFAIL)];
    assert!(fine.iter().all(Result::is_ok));
    assert_eq!(lab.findings(), [""; 0], "with memory free it is silent");
    drop(alloc_pages(&cpu, 2, GFP_KERNEL | __GFP_NOFAIL | __GFP_NOWARN));
    drop(alloc_pages(&cpu, 11, GFP_KERNEL | __GFP_NOWARN));
    assert!(alloc_pages(&cpu, 11, GFP_KERNEL).is_err());
    assert_eq!(lab.findings(), ["nofail-order", "order-too-large"]);
    drop(fine);
    let held = exhaust(&lab);
    assert!(alloc_pages(&cpu, 0, GFP_NOWAIT | __GFP_NOFAIL).is_err());
    assert_eq!(lab.findings()[2..], ["nofail-atomic"]);
    lab.solo.on_park(move |_| drop(held));
    let scope = cpu.memalloc_noreclaim_save();
    assert!(alloc_pages(&cpu, 4, GFP_KERNEL | __GFP_NOFAIL).is_ok());
    drop(scope);
    assert_eq!(lab.findings()[3..], ["nofail-order", "nofail-memalloc", "nofail-costly"]);
}

#[test]
fn background_reclaim_is_woken_below_the_low_mark() {
    let lab = small();
    let cpu = lab.cpu();
    let gfp = GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN;
    let marks = lab.kernel().zone_stats()[1].marks;
    let mut held = Vec::new();
    while lab.kernel().kswapd_wakeups() == 0 {
        held.push(alloc_pages(&cpu, 0, gfp).unwrap());
    }
    assert_eq!(lab.kernel().zone_stats()[1].free, marks.low - 1);
}

#[test]
fn a_refusal_tells_zone_by_zone() {
    let lab = Lab::of(MachineConfig { boot: crate::kernel::Boot::MEASURED, ..MachineConfig::default() });
    let cpu = lab.cpu();
    let _held: Vec<_> =
        std::iter::from_fn(|| alloc_pages(&cpu, 0, GFP_KERNEL | GFP_DMA | __GFP_NORETRY | __GFP_NOWARN).ok()).collect();
    assert!(alloc_pages(&cpu, 3, GFP_ATOMIC | GFP_DMA).is_err());
    let (refusals, more) = lab.kernel().refusals();
    assert_eq!((refusals.len(), more), (2, 0));
    let Refusal::Pages { order: 3, gfp, zones } = &refusals[1].refusal else { unreachable!() };
    let [dma] = zones.as_slice() else { unreachable!() };
    assert_eq!(
        (*gfp, dma.zone, dma.free, dma.mark, dma.reserve, dma.why),
        (GFP_ATOMIC | GFP_DMA, ZoneKind::Dma, 6, 3, 0, Why::Mark)
    );
    let text = refusals[1].refusal.to_string();
    let first = "order 3, GFP_ATOMIC|GFP_DMA refused\n  DMA: 6 pages free, mark 3, reserve 0, largest block ";
    assert!(text.starts_with(first), "{text}");
    let plain = Refusal::pages(0, GFP_KERNEL, ZoneKind::Normal, &lab.kernel().zone_stats(), &[0; 8]);
    let Refusal::Pages { zones, .. } = plain else { unreachable!() };
    let asked: Vec<_> = zones.iter().map(|zone| (zone.zone, zone.mark, zone.reserve, zone.why)).collect();
    let late = Why::Late;
    let expected =
        [(ZoneKind::Normal, 1229, 0, late), (ZoneKind::Dma32, 1231, 2962, late), (ZoneKind::Dma, 6, 5933, Why::Mark)];
    assert_eq!(asked, expected);
}

#[test]
fn the_failure_report_reads_as_measured_and_comes_once_in_ten_seconds() {
    let lab = Lab::of(MachineConfig { boot: crate::kernel::Boot::MEASURED, ..MachineConfig::default() });
    let cpu = lab.cpu();
    let gfp = GFP_ATOMIC | GFP_DMA | __GFP_MEMALLOC | __GFP_NOWARN;
    let _held: Vec<_> = std::iter::from_fn(|| alloc_pages(&cpu, 0, gfp).ok()).collect();
    for _ in 0..3 {
        assert!(alloc_pages(&cpu, 0, GFP_ATOMIC | GFP_DMA).is_err());
    }
    let log = lab.log();
    let sample = include_str!("../../../tests/golden/mem_info_sample.tsv");
    let line = |start: &str| sample.lines().find(|line| line.starts_with(start)).unwrap();
    assert_eq!(log[0], line("insmod: page allocation failure"));
    assert_eq!(log.iter().filter(|text| text.starts_with("insmod:")).count(), 1);
    for start in ["lowmem_reserve[]", "0 pages in swap", "Free swap", "0 pages HighMem"] {
        assert!(log.iter().any(|text| text == line(start)), "{start}");
    }
    let keys = |text: &str| {
        text.split([' ', ':']).filter(|word| !word.contains(char::is_numeric)).map(str::to_owned).collect::<Vec<_>>()
    };
    for start in ["Mem-Info:", "active_anon", " active_file", " unevictable", " free:", "DMA free:"] {
        let ours = log.iter().find(|text| text.starts_with(start)).unwrap();
        assert_eq!(keys(ours), keys(line(start)), "{start}");
    }
    lab.solo.set_now(10_000_000_000);
    assert!(alloc_pages(&cpu, 0, GFP_ATOMIC | GFP_DMA).is_err());
    assert!(lab.log().contains(&"warn_alloc: 2 callbacks suppressed".into()));
}
