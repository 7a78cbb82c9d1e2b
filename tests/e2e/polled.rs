//! A driver that polls: the same data as by interrupts, and no interrupt at all.

use lowzone::result::RunResult;
use lowzone_tests::program::lowzone;
use lowzone_tests::scenario::{embedded, run, run_threads};

fn data(result: &RunResult) -> (&str, u64, bool) {
    let row = &result.io[0];
    (&row.sha256, row.requests, row.verified && row.mismatched == 0 && row.compared > 0)
}

#[test]
fn polled_queues_carry_the_same_data_without_an_interrupt_in_both_worlds() {
    let (polled, told) = (embedded("block/polled", &[]), embedded("block/polled", &["driver.polled=false"]));
    let by_interrupt = run(&told, 1);
    assert!(by_interrupt.devices[0].interrupts > 100, "{}", by_interrupt.devices[0].interrupts);
    for result in [run(&polled, 1), run_threads(&polled, 1)] {
        assert_eq!(data(&result), data(&by_interrupt));
        assert!(data(&result).2 && result.findings.is_empty() && result.leaks.is_empty());
        assert_eq!(result.devices[0].interrupts, 0);
        assert!(result.queues.iter().all(|queue| queue.requests > 0 && queue.interrupts == 0), "{:?}", result.queues);
    }
}

#[test]
fn polled_queues_without_event_indices_ask_for_no_interrupt_by_the_flag() {
    for pin in ["msix=true", "msix=false"] {
        let result = run(&embedded("block/polled", &["driver.event_idx=false", pin]), 1);
        assert_eq!((result.devices[0].interrupts, result.io[0].verified), (0, true), "{pin}");
    }
}

#[test]
fn a_polled_disk_survives_every_fault() {
    let explored = lowzone(["explore", "block/polled", "--set", "requests=40", "--set", "depth=8"]);
    assert_eq!(explored.code, Some(0), "{explored:?}");
}
