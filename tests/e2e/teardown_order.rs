//! The order of a removal, from the record: interrupts end, the device is reset, memory is unmapped, then freed.

use lowzone_guest_mem::trace::{Kind, Producer, Record};
use lowzone_tests::scenario::{embedded, lab};

type Events = Vec<(Producer, Record)>;

/// Index of the last event that `is`.
fn last(events: &Events, is: impl Fn(&Record) -> bool) -> usize {
    events.iter().rposition(|(_, record)| is(record)).expect("such an event")
}

fn first_after(events: &Events, at: usize, is: impl Fn(&Record) -> bool) -> Option<usize> {
    events[at..].iter().position(|(_, record)| is(record)).map(|offset| at + offset)
}

/// Bit 0 of the status register's values: ACKNOWLEDGE is the first that a driver sets.
fn status_register(events: &Events) -> u64 {
    let one_byte = |record: &Record| record.kind == Kind::MmioWrite && record.len == 1;
    let values = [0, 1, 3, 11, 15];
    let writes: Vec<_> = events.iter().map(|(_, record)| record).filter(|record| one_byte(record)).collect();
    let place = writes[0].addr;
    let there: Vec<_> = writes.iter().filter(|record| record.addr == place).map(|record| record.tag).collect();
    assert_eq!(there[..values.len()], values, "reset, ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK");
    assert_eq!(there[values.len()..], [0], "and one reset at the end");
    place
}

#[test]
fn teardown_interrupts_end_then_the_device_is_reset_then_memory_is_freed() {
    for (seed, msix) in (1..=10).flat_map(|seed| [(seed, "msix=true"), (seed, "msix=false")]) {
        let scenario = embedded("block/low-zone", &[&format!("driver.{msix}")]);
        let mut lab = lab(&scenario, seed);
        lab.capture();
        let result = lab.run();
        assert!(result.findings.is_empty() && result.leaks.is_empty(), "{result:?}");
        let events = lab.take_events();
        let status = status_register(&events);
        let reset = last(&events, |r| r.kind == Kind::MmioWrite && r.addr == status && r.tag == 0);
        let irq = last(&events, |r| matches!(r.kind, Kind::IrqEntry | Kind::IrqExit));
        assert!(irq < reset, "seed {seed}, {msix}: an interrupt after the reset");
        // The reset counts once it reads back as 0.
        let read_back = |r: &Record| r.kind == Kind::MmioRead && r.addr == status && r.tag == 0;
        let acknowledged = first_after(&events, reset, read_back).expect("the reset is read back");
        let port = last(&events, |r| matches!(r.kind, Kind::PortRead | Kind::PortWrite));
        assert!(port < reset, "seed {seed}, {msix}: the device touched memory after its reset");
        let ring_frees: Vec<_> =
            result.rings.iter().map(|ring| last(&events, |r| r.kind == Kind::DmaFree && r.addr == ring.phys)).collect();
        assert_eq!(ring_frees.len(), 3);
        assert!(ring_frees.iter().all(|&free| free > acknowledged), "seed {seed}, {msix}: {ring_frees:?}");
        let unmap = last(&events, |r| r.kind == Kind::DmaUnmapPage);
        assert!(ring_frees.iter().all(|&free| unmap < free), "seed {seed}, {msix}: unmapped before freed");
    }
}

#[test]
fn teardown_with_interrupts_by_pin_works_and_leaves_nothing() {
    let result = lab(&embedded("block/low-zone", &["driver.msix=false"]), 1).run();
    assert!(result.io.iter().all(|row| row.verified && row.failed == 0 && row.requests == 32), "{:?}", result.io);
    assert!(result.devices[0].interrupts > 0 && result.findings.is_empty() && result.leaks.is_empty());
}
