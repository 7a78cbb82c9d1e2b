//! A recycled machine is a fresh one: same addresses, same times, same bytes, whatever ran on it before.

use lowzone::result::RunResult;
use lowzone::spec::Scenario;
use lowzone_guest_mem::PhysAddr;
use lowzone_guest_mem::kernel::Kernel;
use lowzone_guest_mem::trace::{Producer, Record};
use lowzone_tests::scenario::{embedded, lab};

/// A machine of a size that no other test has: the first to ask for it gets it fresh.
const CPUS: &str = "machine.cpus=4";
const DIRT: [(&str, &[&str]); 7] = [
    ("block/leak", &[]),
    ("block/use-after-unmap", &[]),
    ("block/too-wide-wrap", &[]),
    ("block/no-bus-master", &[]),
    ("block/sleep-in-irq", &[]),
    ("block/swiotlb-full", &["swiotlb=64M"]),
    ("block/random-queues", &[]),
];

fn low_zone(ram: &str) -> Scenario {
    embedded("block/low-zone", &[ram, CPUS])
}

struct Seen {
    events: Vec<(Producer, Record)>,
    result: RunResult,
    fresh_buddy: String,
    end_buddy: String,
    kernel: &'static Kernel,
}

fn observe(scenario: &Scenario) -> Seen {
    let mut lab = lab(scenario, 1);
    lab.capture();
    let kernel = lab.kernel();
    let fresh_buddy = kernel.buddyinfo();
    let result = lab.run();
    let events = lab.take_events();
    let end_buddy = kernel.buddyinfo();
    kernel.validate().unwrap();
    Seen { events, result, fresh_buddy, end_buddy, kernel }
}

fn assert_same(first: &Seen, again: &Seen, after: &str) {
    assert!(std::ptr::eq(first.kernel, again.kernel), "{after}: the machine was recycled, not made anew");
    let parting = first.events.iter().zip(&again.events).position(|(a, b)| a != b);
    let pair = parting.map(|at| (first.events[at], again.events[at]));
    assert_eq!(parting, None, "{after}: {pair:?}");
    assert_eq!(first.events.len(), again.events.len(), "{after}");
    assert_eq!(first.result, again.result, "{after}");
    assert_eq!((&first.fresh_buddy, &first.end_buddy), (&again.fresh_buddy, &again.end_buddy), "{after}");
}

#[test]
fn shows_7_a_reset_machine_equals_a_fresh_one() {
    let ram = "machine.ram=6156M";
    let scenario = low_zone(ram);
    let fresh = observe(&scenario);
    assert!(fresh.events.len() > 1000 && fresh.result.leaks.is_empty());
    assert_same(&fresh, &observe(&scenario), "block/low-zone");
    for (name, sets) in DIRT {
        let sets: Vec<_> = sets.iter().copied().chain([ram, CPUS]).collect();
        let mut dirty = lab(&embedded(name, &sets), 3);
        assert!(std::ptr::eq(dirty.kernel(), fresh.kernel), "{name} ran on the same machine");
        dirty.run();
        drop(dirty);
        assert_same(&fresh, &observe(&scenario), name);
    }
}

#[test]
fn shows_7_a_reset_machines_memory_is_all_zero() {
    let ram = "machine.ram=6160M";
    let sets = [ram, CPUS, "swiotlb=64M"];
    let mut dirty = lab(&embedded("block/swiotlb-full", &sets), 3);
    dirty.capture();
    let kernel = dirty.kernel();
    dirty.run();
    // Everywhere that anything was mapped or allocated.
    let touched: Vec<_> = dirty.take_events().iter().map(|(_, record)| (record.addr, record.len)).collect();
    let nonzero = |at: u64, len: u32| {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        kernel.ram().read(PhysAddr::new(at), &mut bytes).is_ok() && bytes.iter().any(|&byte| byte != 0)
    };
    let dirtied = touched.iter().filter(|&&(at, len)| nonzero(at, len)).count();
    assert!(dirtied > 100, "the run left {dirtied} places with something in them");
    drop(dirty);
    assert_eq!(touched.iter().find(|&&(at, len)| nonzero(at, len)), None, "after the reset");
    let low_end = kernel.ram().low();
    let sample = |at: u64| nonzero(at, 4096);
    let mut places = (0..low_end).step_by(1 << 20).chain((1 << 32..kernel.ram().end()).step_by(1 << 20));
    assert_eq!(places.find(|&at| sample(at)), None);
    kernel.validate().unwrap();
}
