//! Emptying the zones, mask by mask: how far each may go, and in which order the zones are asked.

use std::sync::LazyLock;

use lowzone_guest_mem::KBuf;
use lowzone_guest_mem::gfp::{
    __GFP_HIGH, __GFP_MEMALLOC, __GFP_NORETRY, __GFP_NOWARN, GFP_ATOMIC, GFP_DMA, GFP_KERNEL, Gfp,
};
use lowzone_guest_mem::page::{Pages, alloc_pages};
use lowzone_guest_mem::zone::{ZoneKind, ZoneStats};

use crate::gfp::mask;
use crate::pages::{Measured, measured};
use crate::table::Golden;

const ZONES: [ZoneKind; 3] = [ZoneKind::Dma, ZoneKind::Dma32, ZoneKind::Normal];

/// What one line of the measured program did: all that a mask may have.
struct Step {
    phase: &'static str,
    gfp: &'static str,
    got: u64,
    /// Zones in the order they were taken from, and how many pages in a row.
    runs: Vec<(ZoneKind, u64)>,
    stats: [ZoneStats; 3],
    listed: [u64; 3],
}

struct Drained {
    steps: Vec<Step>,
    kernel_when_dma_empty: ZoneKind,
    kmalloc_when_dma_empty: bool,
    objects_when_empty: usize,
}

/// The mask of a row's name, which leaves out underscores.
fn mask_of(name: &str) -> Gfp {
    let name = name.trim_start_matches("then_").trim_end_matches("_again");
    let one = |word| match word {
        "NORETRY" => __GFP_NORETRY,
        "MEMALLOC" => __GFP_MEMALLOC,
        "HIGH" => __GFP_HIGH,
        word => mask(word),
    };
    name.split('|').fold(__GFP_NOWARN, |all, word| all | one(word))
}

struct Draining {
    lab: Measured,
    steps: Vec<Step>,
    held: Vec<Pages>,
}

impl Draining {
    fn note(&mut self, phase: &'static str, gfp: &'static str, runs: Vec<(ZoneKind, u64)>) {
        let (stats, pcp) = (self.lab.kernel().zone_stats(), self.lab.kernel().pcp_stats());
        let step = Step {
            phase,
            gfp,
            got: runs.iter().map(|(_, pages)| pages).sum(),
            runs,
            stats: [stats[0], stats[1], stats[2]],
            listed: [pcp[0].1, pcp[1].1, pcp[2].1],
        };
        self.steps.push(step);
    }

    fn take_all(&mut self, phase: &'static str, gfp: &'static str) {
        let cpu = self.lab.cpu();
        let (mut runs, mut held) = (Vec::<(ZoneKind, u64)>::new(), std::mem::take(&mut self.held));
        while let Ok(page) = alloc_pages(&cpu, 0, mask_of(gfp)) {
            match runs.last_mut() {
                Some((zone, pages)) if *zone == page.zone() => *pages += 1,
                _ => runs.push((page.zone(), 1)),
            }
            held.push(page);
        }
        self.held = held;
        self.note(phase, gfp, runs);
    }

    fn release(&mut self) {
        self.held.clear();
        self.note("after_release", "-", Vec::new());
    }
}

/// The whole sequence, once.
static DRAINED: LazyLock<Drained> = LazyLock::new(|| {
    let mut all = Draining { lab: measured("main"), steps: Vec::new(), held: Vec::new() };
    all.note("start", "-", Vec::new());
    for gfp in ["GFP_KERNEL|GFP_DMA|NORETRY", "then_GFP_ATOMIC|GFP_DMA", "then_MEMALLOC|GFP_DMA"] {
        all.take_all("dma_only", gfp);
    }
    let kernel_when_dma_empty = alloc_pages(&all.lab.cpu(), 0, GFP_KERNEL).unwrap().zone();
    let kmalloc_when_dma_empty = KBuf::kmalloc(&all.lab.cpu(), 64, GFP_ATOMIC | GFP_DMA | __GFP_NOWARN).is_ok();
    all.release();
    for gfp in ["GFP_KERNEL|GFP_DMA32|NORETRY", "then_GFP_ATOMIC|GFP_DMA32", "then_MEMALLOC|GFP_DMA32"] {
        all.take_all("dma32_only", gfp);
    }
    all.release();
    let names = ["GFP_NOWAIT", "then_GFP_KERNEL|NORETRY", "then_GFP_NOWAIT|HIGH", "then_GFP_ATOMIC"];
    for gfp in names.into_iter().chain(["then_GFP_KERNEL|NORETRY_again"]) {
        all.take_all("all", gfp);
    }
    all.held.clear();
    all.take_all("atomic_first", "GFP_ATOMIC");
    let cpu = all.lab.cpu();
    let objects = std::iter::from_fn(|| KBuf::kmalloc(&cpu, 3000, GFP_ATOMIC | __GFP_NOWARN).ok());
    let objects_when_empty = objects.collect::<Vec<_>>().len();
    all.held.clear();
    all.take_all("kernel_first", "GFP_KERNEL|NORETRY");
    all.held.clear();
    all.note("end", "-", Vec::new());
    all.lab.kernel().validate().unwrap();
    Drained { steps: all.steps, kernel_when_dma_empty, kmalloc_when_dma_empty, objects_when_empty }
});

const DRAIN: Golden = Golden {
    name: "drain",
    text: include_str!("drain.tsv"),
    inputs: &["boot", "phase", "gfp", "zone"],
    compare: &["boost", "min", "low", "high", "reserve_vs_DMA32", "reserve_vs_Normal", "highatomic"],
};

#[test]
fn golden_drain() {
    // Three rows a step, and two steps of the same name: counted, not looked up.
    let mut row_number = 0;
    DRAIN.run(|row| {
        let step = &DRAINED.steps[row_number / 3];
        assert_eq!((step.phase, step.gfp), (row.get("phase"), row.get("gfp")), "the sequence");
        let stats = &step.stats[row_number % 3];
        row_number += 1;
        assert_eq!(stats.zone.to_string(), row.get("zone"));
        vec![
            ("boost", stats.boost.to_string()),
            ("min", stats.marks.min.to_string()),
            ("low", stats.marks.low.to_string()),
            ("high", stats.marks.high.to_string()),
            ("reserve_vs_DMA32", stats.protection[ZoneKind::Dma32.index()].to_string()),
            ("reserve_vs_Normal", stats.protection[ZoneKind::Normal.index()].to_string()),
            ("highatomic", stats.highatomic.to_string()),
        ]
    });
    DRAINED.steps.iter().zip(&DRAINED.steps[1..]).for_each(|(before, after)| a_step_keeps_the_rules(before, after));
}

/// The relations between two lines of the table: what was got is what went, and each zone stopped at its mark.
fn a_step_keeps_the_rules(before: &Step, after: &Step) {
    let of = |step: &Step, zone: ZoneKind| step.stats[zone.index()].free + step.listed[zone.index()];
    let what = format!("{} {}", after.phase, after.gfp);
    match after.phase {
        "after_release" | "end" => {
            assert_eq!((of(after, ZoneKind::Dma), of(after, ZoneKind::Dma32)), (3840, 760_594), "{what}");
            return;
        }
        "atomic_first" | "kernel_first" => {}
        _ => {
            let fell: u64 = ZONES.iter().map(|&zone| of(before, zone) - of(after, zone)).sum();
            assert_eq!(after.got, fell, "{what}");
        }
    }
    let gfp = mask_of(after.gfp);
    let highest = if after.phase == "dma_only" {
        ZoneKind::Dma
    } else if after.phase == "dma32_only" {
        ZoneKind::Dma32
    } else {
        ZoneKind::Normal
    };
    if after.got == 0 {
        assert!(
            ["then_GFP_KERNEL|NORETRY", "then_GFP_ATOMIC", "then_GFP_KERNEL|NORETRY_again"].contains(&after.gfp),
            "{what}"
        );
        return;
    }
    for zone in ZONES {
        let ZoneStats { free, marks, protection, .. } = after.stats[zone.index()];
        if zone > highest {
            assert_eq!(of(after, zone), of(before, zone), "{what}: {zone} is not for this request");
            continue;
        }
        let mark = match (gfp.contains(__GFP_MEMALLOC), gfp.contains(__GFP_HIGH), zone) {
            (true, ..) => {
                assert_eq!(free, 0, "{what}: {zone}");
                continue;
            }
            (_, true, ZoneKind::Dma) => 3,
            (_, true, _) => 462,
            _ => marks.min,
        };
        let stop = mark + protection[highest.index()];
        if zone == ZoneKind::Dma && stop >= 3840 {
            assert_eq!(of(after, zone), 3840, "{what}: a plain request never reaches DMA");
        } else {
            let batch = if zone == ZoneKind::Dma { 5 } else { 63 };
            assert!(free <= stop && free + batch > stop, "{what}: {zone} has {free} free, its mark is {stop}");
        }
    }
}

const RUNS: Golden = Golden {
    name: "drain_runs",
    text: include_str!("drain_runs.tsv"),
    inputs: &["boot", "phase", "gfp", "zone"],
    compare: &["last", "further_runs"],
};

#[test]
fn golden_drain_runs() {
    let (mut group, mut number) = (String::new(), 0);
    RUNS.run(|row| {
        let name = format!("{} {}", row.get("phase"), row.get("gfp"));
        number = if name == group { number + 1 } else { 0 };
        group = name;
        let step = DRAINED.steps.iter().find(|step| step.phase == row.get("phase") && step.gfp == row.get("gfp"));
        let step = step.unwrap();
        // Short runs are not shown unless they end the step.
        let shown = step.runs.iter().enumerate().filter(|(index, run)| run.1 >= 8 || index + 1 == step.runs.len());
        let shown: Vec<_> = shown.map(|(_, run)| *run).collect();
        let (zone, pages) = shown[number];
        assert_eq!(zone.to_string(), row.get("zone"), "{group}: run {number} of {shown:?}");
        assert_eq!(step.runs.iter().map(|(_, pages)| pages).sum::<u64>(), step.got);
        let to_the_next_mark = number > 1 || (step.phase == "all" && step.gfp == "then_GFP_NOWAIT|HIGH");
        if to_the_next_mark && zone != ZoneKind::Dma {
            assert!([756, 819].contains(&pages), "{group}: from a mark to the next are 12 batches, not {pages} pages");
        }
        let last = number + 1 == shown.len();
        vec![("last", if last { "1".into() } else { String::new() }), ("further_runs", "0".into())]
    });
}

const MISC: Golden = Golden {
    name: "drain_misc",
    text: include_str!("drain_misc.tsv"),
    inputs: &["boot", "what"],
    compare: &["zone", "ret", "got"],
};

#[test]
fn golden_drain_misc() {
    MISC.run(|row| match row.get("what") {
        "GFP_KERNEL_when_DMA_empty" => vec![("zone", DRAINED.kernel_when_dma_empty.to_string())],
        "kmalloc64_DMA_when_zone_empty" => {
            vec![("ret", if DRAINED.kmalloc_when_dma_empty { "ptr" } else { "NULL" }.into())]
        }
        _ => vec![("got", DRAINED.objects_when_empty.to_string())],
    });
}
