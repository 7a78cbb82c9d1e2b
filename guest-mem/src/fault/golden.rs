//! The measured tables of fault injection, row by row, and what the measured kernel printed meanwhile.
//!
//! Each row is reproduced exactly.

use std::cell::Cell;

use super::*;
use crate::cpu::Cpu;
use crate::gfp::{__GFP_NOFAIL, __GFP_NOWARN, GFP_ATOMIC, GFP_HIGHUSER, GFP_KERNEL, GFP_NOIO, GFP_NOWAIT};
use crate::kbuf::KBuf;
use crate::kernel::{Machine, MachineConfig};
use crate::kmem_cache::{KmemCache, SlabFlags, kmem_cache_create};
use crate::page::alloc_pages;
use kernel::World;

mod kernel;

const FAILSLAB: &str = include_str!("../../../tests/golden/failslab.tsv");
const FAILPAGE: &str = include_str!("../../../tests/golden/failpage.tsv");
const FAILPAGE_MISC: &str = include_str!("../../../tests/golden/failpage_misc.tsv");
const MESSAGES: &str = include_str!("../../../tests/golden/messages.tsv");

/// One row: its cells by column name.
struct Row<'a> {
    columns: Vec<&'a str>,
    cells: Vec<&'a str>,
}

impl<'a> Row<'a> {
    fn get(&self, column: &str) -> &'a str {
        self.cells[self.columns.iter().position(|name| *name == column).unwrap()]
    }

    fn number<T: std::str::FromStr>(&self, column: &str) -> T {
        self.get(column).parse().ok().unwrap()
    }

    fn flag(&self, column: &str) -> bool {
        self.get(column) == "1"
    }
}

fn rows(table: &str) -> impl Iterator<Item = Row<'_>> {
    let mut lines = table.lines();
    let columns: Vec<_> = lines.next().unwrap().split('\t').collect();
    lines.map(move |line| {
        let cells: Vec<_> = line.split('\t').collect();
        assert_eq!(cells.len(), columns.len(), "{line}");
        Row { columns: columns.clone(), cells }
    })
}

/// Runs every row of a table; tells how many there were.
fn compare(name: &str, table: &str, key: impl Fn(&Row<'_>) -> String, check: impl Fn(&Row<'_>, &str)) -> usize {
    let count = rows(table).map(|row| check(&row, &key(&row))).count();
    println!("{name}: {count} rows equal");
    count
}

/// The number behind `prefix` in one of the words of a case, as 64 in `p100_size64`.
fn named(case: &str, prefix: &str) -> Option<i64> {
    case.split('_').find_map(|word| word.strip_prefix(prefix)?.parse().ok())
}

fn mask(case: &str) -> Gfp {
    let has = |word: &str| case.split('_').any(|other| other == word);
    let base = [("ATOMIC", GFP_ATOMIC), ("NOWAIT", GFP_NOWAIT), ("NOIO", GFP_NOIO), ("HIGHUSER", GFP_HIGHUSER)];
    // The last one isn't said to be atomic, but no mask that may sleep fails with ignore-gfp-wait, which it has.
    let atomic = ["kmalloc_8192", "kmalloc_8193", "kmalloc_0", "cache_filter", "fail_nth_2_times0"];
    let mut gfp = match base.into_iter().find(|(word, _)| has(word)) {
        Some((_, gfp)) => gfp,
        None if atomic.iter().any(|part| case.contains(part)) => GFP_ATOMIC,
        None => GFP_KERNEL,
    };
    gfp.set(__GFP_NOFAIL, has("NOFAIL"));
    gfp.set(__GFP_NOWARN, has("NOWARN"));
    gfp
}

/// The pattern of 24 calls, each of which tells whether it failed.
fn pattern(mut call: impl FnMut() -> bool) -> String {
    (0..24).map(|_| if call() { 'F' } else { '.' }).collect()
}

/// A cache, made where nothing fails.
fn cache(machine: &Machine, name: &'static str, size: usize) -> KmemCache {
    let calm = World::calm();
    let cpu = Cpu::new(0, machine.kernel_ref(), &calm);
    kmem_cache_create(&cpu, name, size, 0, SlabFlags::empty(), None).unwrap()
}

/// What the kernel itself printed.
fn log_of(machine: &Machine) -> Vec<String> {
    machine.kernel().log().lines().into_iter().map(|line| line.text).collect()
}

/// Compares the log with what was measured of a probe; 1 if anything was. The measured log keeps 14 lines a probe.
fn said(probe: &str, lines: &[String]) -> usize {
    const KEPT: usize = 14;
    let measured: Vec<_> =
        rows(MESSAGES).filter(|row| row.get("boot") == "fault" && row.get("probe") == probe).collect();
    let measured: Vec<_> = measured.iter().map(|row| row.get("normal")).collect();
    if measured.is_empty() {
        return 0;
    }
    if measured.iter().all(|line| *line == "(nothing printed)") {
        assert!(lines.is_empty(), "{probe}: {lines:?}");
    } else {
        assert_eq!(&lines[..lines.len().min(KEPT)], measured, "{probe}");
    }
    1
}

/// An injector with the settings that a row names.
fn injector_of(row: &Row<'_>, class: Class, times: i64, space: i64) -> FaultAttr {
    let mut attr = FaultAttr::new(class);
    (attr.probability, attr.interval) = (row.number("prob"), row.number("interval"));
    (attr.times, attr.space) = (times, space);
    attr.ignore_gfp_wait = row.flag("ignore_gfp_wait");
    attr
}

fn check_state(row: &Row<'_>, case: &str, attr: &FaultAttr) {
    assert_eq!(attr.probability, row.number::<u32>("prob"), "{case}");
    assert_eq!(attr.interval, row.number::<u64>("interval"), "{case}");
    assert_eq!((attr.times, attr.space), (row.number("times_left"), row.number("space_left")), "{case}");
    assert_eq!(attr.ignore_gfp_wait, row.flag("ignore_gfp_wait"), "{case}");
}

fn failslab_row(row: &Row<'_>, case: &str, machine: &Machine) -> usize {
    let times = match case {
        "defaults" => return check_defaults(row, &FaultAttr::new(Class::Slab)),
        "no_cache_filter_flagged_cache" => 2,
        _ => named(case, "times").or_else(|| named(case, "t")).unwrap_or(-1),
    };
    let mut attr = injector_of(row, Class::Slab, times, named(case, "space").unwrap_or(0));
    attr.count = if case.ends_with("count_left_at_1") { 1 } else { 0 };
    attr.verbose = u8::try_from(named(case, "verbose").unwrap_or(1)).unwrap();
    attr.task_filter = row.flag("task_filter");
    if row.flag("cache_filter") {
        attr.cache_filter = CacheFilter::Only(vec!["flagged".into()]);
    }
    let fail_nth = case.strip_prefix("fail_nth_").and_then(|rest| rest.split('_').next());
    attr.fail_nth = fail_nth.map_or(0, |nth| nth.parse().unwrap());
    let world = World::new(attr, fail_nth.is_none() && !case.contains("unmarked"));
    let (gfp, cpu) = (mask(case), Cpu::new(0, machine.kernel_ref(), &world));
    let after = case.split_once("p100_kmalloc_").map(|(_, rest)| rest.split('_').next().unwrap());
    let len = after.map_or_else(|| named(case, "size").unwrap_or(64), |len| len.parse().unwrap());
    let (flagged, unflagged) = (cache(machine, "flagged", 100), cache(machine, "unflagged", 100));
    let pattern = pattern(|| match case {
        _ if case.contains("unflagged_cache") => unflagged.alloc(&cpu, gfp).is_err(),
        _ if case.contains("flagged_cache") => flagged.alloc(&cpu, gfp).is_err(),
        _ => KBuf::kmalloc(&cpu, usize::try_from(len).unwrap(), gfp).is_err(),
    });
    let attr = world.attr();
    assert_eq!(pattern, row.get("pattern"), "{case}");
    assert_eq!(attr.tally().forced, row.number::<u64>("fails"), "{case}");
    assert_eq!(attr.count, row.number::<u64>("count"), "{case}");
    check_state(row, case, &attr);
    said(case, &world.lines())
}

fn check_defaults(row: &Row<'_>, attr: &FaultAttr) -> usize {
    check_state(row, "defaults", attr);
    match attr.class() {
        Class::Slab => {
            assert_eq!((attr.count, attr.task_filter), (row.number("count"), row.flag("task_filter")));
            assert_eq!(attr.cache_filter != CacheFilter::Off, row.flag("cache_filter"));
        }
        _ => {
            assert_eq!(attr.min_order, row.number::<u8>("min_order"));
            assert_eq!(attr.ignore_gfp_highmem, row.flag("ignore_gfp_highmem"));
        }
    }
    assert_eq!((row.get("pattern"), row.get("fails"), attr.can_strike()), ("-", "0", false));
    0
}

#[test]
fn failslab() {
    let machine = Machine::acquire(MachineConfig::default()).unwrap();
    let said = Cell::new(0);
    let check = |row: &Row<'_>, case: &str| said.set(said.get() + failslab_row(row, case, &machine));
    assert_eq!(compare("failslab", FAILSLAB, |row| row.get("case").into(), check), 35);
    assert_eq!(said.get(), 24, "cases whose messages were compared");
}

fn failpage_row(row: &Row<'_>, case: &str, machine: &Machine) -> usize {
    let times = match case {
        "defaults" => return check_defaults(row, &FaultAttr::new(Class::Page)),
        "NOWARN_order4" => 2,
        "order4_plain_message" => 1,
        "interval4" => -1,
        _ => 3,
    };
    let mut attr = injector_of(row, Class::Page, times, named(case, "space").unwrap_or(0));
    attr.min_order = row.number("min_order");
    attr.ignore_gfp_highmem = row.flag("ignore_gfp_highmem");
    let (order, gfp) = (row.number("order"), mask(case));
    let world = World::new(attr, false);
    let cpu = Cpu::new(0, machine.kernel_ref(), &world);
    let pattern = pattern(|| alloc_pages(&cpu, order, gfp).is_err());
    let attr = world.attr();
    assert_eq!(pattern, row.get("pattern"), "{case}");
    assert_eq!(pattern.matches('F').count(), row.number::<usize>("fails"), "{case}");
    check_state(row, case, &attr);
    said(case, &world.lines())
}

#[test]
fn failpage() {
    let machine = Machine::acquire(MachineConfig::default()).unwrap();
    let said = Cell::new(0);
    let check = |row: &Row<'_>, case: &str| said.set(said.get() + failpage_row(row, case, &machine));
    assert_eq!(compare("failpage", FAILPAGE, |row| row.get("case").into(), check), 17);
    assert_eq!(said.get(), 11, "cases whose messages were compared");
}

#[test]
fn failpage_misc() {
    let machine = Machine::acquire(MachineConfig::default()).unwrap();
    let calm = World::calm();
    let _slab = KBuf::kmalloc(&Cpu::new(0, machine.kernel_ref(), &calm), 64, GFP_KERNEL).unwrap();
    let check = |row: &Row<'_>, what: &str| {
        let mut attr = FaultAttr { probability: 100, times: -1, ..FaultAttr::new(Class::Page) };
        (attr.ignore_gfp_wait, attr.ignore_gfp_highmem) = (false, false);
        attr.min_order = if what == "new_slab_order_ge1_fail" { 1 } else { 0 };
        let world = World::new(attr, false);
        let cpu = Cpu::new(0, machine.kernel_ref(), &world);
        let (got, order) = match what {
            "kmalloc_65536" => (KBuf::kmalloc(&cpu, 65536, GFP_KERNEL).is_ok(), None),
            "kmalloc_64_from_existing_slab" => (KBuf::kmalloc(&cpu, 64, GFP_KERNEL).is_ok(), None),
            _ => {
                let cache = cache(&machine, "oracle_fp", 700);
                let got = cache.alloc(&cpu, GFP_KERNEL);
                // A slab of order 2 has 23 such objects, one of order 0 has 5.
                let orders = [(23, 2), (5, 0)];
                let total = cache.stats().unwrap().total;
                (got.is_ok(), orders.into_iter().find(|(objects, _)| *objects == total).map(|(_, order)| order))
            }
        };
        assert_eq!(if got { "ptr" } else { "NULL" }, row.get("ret"), "{what}");
        assert_eq!(order.map_or(String::new(), |order| order.to_string()), row.get("slab_order"), "{what}");
        if what == "new_slab_all_orders_fail" {
            let measured = rows(MESSAGES).filter(|row| row.get("probe") == "failpage_new_slab_all_orders");
            let measured: Vec<_> = measured.map(|row| row.get("normal").to_owned()).collect();
            let told = [world.lines(), log_of(&machine)].concat();
            assert_eq!(told, measured, "one message of the injector: the first try is silent");
        }
    };
    assert_eq!(compare("failpage_misc", FAILPAGE_MISC, |row| row.get("what").into(), check), 4);
}

/// The same of a real cache: a slab of 8 KiB objects likes order 3 and needs order 1.
#[test]
fn a_cache_grows_through_the_page_allocator_in_two_tries() {
    for (min_order, fails, tries, told) in [(4, false, 1, 0), (2, false, 2, 0), (0, true, 2, 1)] {
        let machine = Machine::acquire(MachineConfig::default()).unwrap();
        let mut attr = FaultAttr { probability: 100, times: -1, min_order, ..FaultAttr::new(Class::Page) };
        attr.ignore_gfp_wait = false;
        let world = World::new(attr, false);
        let cpu = Cpu::new(0, machine.kernel_ref(), &world);
        let got = KBuf::kmalloc(&cpu, 8000, GFP_KERNEL);
        assert_eq!((got.is_err(), world.attr().tally().requests), (fails, tries), "min-order {min_order}");
        assert_eq!(world.messages().len(), told, "the first try is silent");
        drop(got);
        machine.kernel().validate().unwrap();
        assert!(crate::stats::leaks(machine.kernel()).is_empty());
    }
}
