//! virtio-net: every packet is delivered, to the byte, or lost for a cause that one of the two sides has counted.

use lowzone::expect::check;
use lowzone::result::{PacketsRow, RunResult};
use lowzone_tests::program::lowzone;
use lowzone_tests::scenario::{embedded, findings, run, run_both, run_threads};

/// Packets under pressure: ten million as the story says with `LOWZONE_LONG` set.
fn packets() -> u64 {
    if std::env::var_os("LOWZONE_LONG").is_some() { 10_000_000 } else { 1_000_000 }
}

/// The step's row, whose books close.
fn closed(result: &RunResult) -> &PacketsRow {
    let row = &result.packets[0];
    assert_eq!(row.offered, row.delivered + row.lost.total(), "{row:?}");
    assert_eq!((row.wrong, row.missing), (0, 0), "{row:?}");
    assert_eq!((&result.errors[..], findings(result).len(), result.leaks.len()), (&[][..], 0, 0));
    row
}

/// What must hold where one in a hundred allocations fails.
fn assert_pressed(result: &RunResult, count: u64) {
    let row = closed(result);
    let fault = &result.faults[0];
    assert_eq!(row.offered, count);
    assert!(fault.failed * 200 >= fault.eligible && fault.eligible >= 3 * count, "{fault:?}");
    // Each failure is a packet's bytes, its header, or a receive buffer.
    assert_eq!(fault.failed, row.lost.no_memory + row.lost.no_header + row.refill_failed, "{row:?} {fault:?}");
    assert!(row.lost.no_memory > 0 && row.lost.no_header > 0 && row.refill_failed > 0, "{row:?}");
    assert!(row.refills > 0 && row.refills <= row.refill_failed, "{row:?}");
    assert_eq!(row.streaming_peak_warm, row.streaming_peak, "it grows no more after a tenth");
    // A full receive ring, a full burst of a header and two pieces each, and the rings with their tables.
    assert_eq!(row.streaming_peak, 128 + 16 * 3 + 4, "{row:?}");
}

#[test]
fn a_million_packets_are_delivered_or_accounted_for_while_allocations_fail() {
    let count = packets();
    let result = run(&embedded("net/pressure", &[&format!("count={count}")]), 1);
    assert_pressed(&result, count);
    // Nothing stalls: in virtual time not even the work's second try, half a second on, is ever needed.
    assert!(result.packets[0].longest_wait < 500_000_000, "{:?}", result.packets[0]);
}

#[test]
fn packets_under_pressure_are_accounted_for_in_threads_too() {
    let count = 100_000;
    assert_pressed(&run_threads(&embedded("net/pressure", &[&format!("count={count}")]), 1), count);
}

#[test]
fn what_is_sent_comes_back_in_both_worlds_by_vectors_and_by_pin_in_one_piece_or_three() {
    for sets in [
        &[][..],
        &["msix=false"],
        &["pieces=1", "device.event_idx=false", "device.indirect=false"],
        &["pieces=3", "device.queue_size=16", "burst=4", "cpus=1"],
        // A poll of 64 may be late with its new buffers: what is left of 128 must do for a burst.
        &["machine.ram=2G", "burst=60"],
    ] {
        let scenario = embedded("net/loop-back", sets);
        for result in run_both(&scenario, 2) {
            let wrong = check(&scenario.expect, &result);
            assert!(wrong.is_empty(), "{sets:?} in {}: {wrong:?}", result.world);
            let row = closed(&result);
            assert_eq!((row.delivered, row.offered), (2000, 2000), "{sets:?} in {}", result.world);
        }
    }
}

#[test]
fn packets_of_mixed_pieces_come_back_and_only_what_is_out_of_reach_bounces() {
    for result in run_both(&embedded("net/mixed", &["count=300"]), 2) {
        assert_eq!(closed(&result).delivered, 300, "{}", result.world);
        // A third is one piece, a third two, a third three; each but an Ethernet header lies above 4 GiB, as do the
        // packet's own header and the buffer it comes back in.
        let bounces = result.devices[0].bounces;
        assert!(bounces >= 300 * 2 + 100 * (1 + 1 + 2), "{bounces} in {}", result.world);
        assert!(bounces < 300 * 2 + 100 * (1 + 2 + 3), "{bounces} in {}", result.world);
    }
}

#[test]
fn a_source_faster_than_its_driver_loses_packets_and_says_how_many() {
    let slow = embedded("net/source", &[]);
    let fast = embedded("net/source", &["device.options.interval_ns=0", "device.queue_size=4"]);
    for result in run_both(&slow, 1) {
        assert_eq!(closed(&result).offered, 1000);
    }
    let result = run(&fast, 1);
    let row = closed(&result);
    assert!(row.lost.no_buffer > 0 && row.delivered > 0, "{row:?}");
    assert_eq!(row.lost.no_buffer, row.lost.total(), "{row:?}");
}

#[test]
fn every_crime_is_its_finding_in_both_worlds() {
    for (name, finding) in [
        ("net/tx-never-unmapped", "pending-dma"),
        ("net/tx-use-after-unmap", "after-unmap"),
        ("net/tx-wrong-direction", "wrong-direction"),
    ] {
        for result in run_both(&embedded(name, &[]), 1) {
            assert_eq!(findings(&result), [finding], "{name} in {}", result.world);
        }
    }
}

#[test]
fn a_packet_beyond_the_device_s_reach_is_lost_and_told() {
    let result =
        run(&embedded("net/loop-back", &["dma_mask=64", "driver.coherent_mask=32", "count=16", "pieces=1"]), 1);
    let row = &result.packets[0];
    assert!(row.lost.fault > 0 && row.wrong == 0, "{row:?}");
    assert_eq!(row.offered, row.delivered + row.lost.total(), "{row:?}");
    assert!(findings(&result).iter().all(|name| *name == "beyond-width"), "{:?}", findings(&result));
}

#[test]
fn explore_finds_no_failure_that_the_network_driver_mishandles() {
    for name in ["net/loop-back", "net/source", "net/mixed"] {
        let seen = lowzone(["explore", name, "--json"]);
        assert_eq!(seen.code, Some(0), "{name}: {}{}", seen.stdout, seen.stderr);
        assert!(seen.json()["cases"].as_u64().is_none_or(|cases| cases > 1000), "{name}: {}", seen.stdout);
    }
}
