//! The first scenario: what a 32-bit mask costs, and that the figures follow the machine.

use std::time::{Duration, Instant};

use lowzone_tests::program::lowzone;
use lowzone_tests::scenario;
use serde_json::Value;

fn bounces(result: &Value) -> Vec<u64> {
    result["io"].as_array().unwrap().iter().map(|row| row["bounces"].as_u64().unwrap()).collect()
}

fn assert_clean(result: &Value) {
    for key in ["findings", "leaks", "errors"] {
        assert_eq!(result[key].as_array().map(Vec::len), Some(0), "{key}: {}", result[key]);
    }
    for row in result["io"].as_array().unwrap() {
        assert_eq!(row["verified"], true, "{row}");
        assert_eq!((row["requests"].as_u64(), row["failed"].as_u64()), (Some(32), Some(0)), "{row}");
        assert_eq!(row["sha256"].as_str().map(str::len), Some(64), "{row}");
    }
}

#[test]
fn shows_1_rings_lie_low_and_only_high_memory_bounces() {
    let begun = Instant::now();
    let outcome = lowzone(["run", "--json"]);
    let took = begun.elapsed();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
    assert!(took < Duration::from_secs(2), "took {took:?}");
    let result = outcome.json();
    assert_clean(&result);
    let counts = bounces(&result);
    assert!(counts[0] > 0 && counts[1..] == [0, 0], "{counts:?}");
    assert_eq!(result["io"][0]["bounced_bytes"].as_u64(), Some(32 * 8192 + 16 * 8192), "in for all, out for reads");
    let rings = result["rings"].as_array().unwrap();
    assert_eq!(rings.len(), 3, "ring, tables, headers: {rings:?}");
    for ring in rings {
        assert!(["DMA32", "DMA"].contains(&ring["zone"].as_str().unwrap()), "{ring}");
        assert!(ring["phys"].as_u64().unwrap() < 1 << 32, "{ring}");
    }
    let hashes: Vec<_> = result["io"].as_array().unwrap().iter().map(|row| &row["sha256"]).collect();
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "one workload, one content: {hashes:?}");
    assert!(result["digest"].as_str().unwrap().len() == 16, "{}", result["digest"]);
    println!("block/low-zone: {took:?}, bounces {counts:?}, digest {}", result["digest"]);
}

#[test]
fn shows_1_without_a_command_the_program_runs_it() {
    let (bare, named) = (lowzone::<&str>([]), lowzone(["run", "block/low-zone"]));
    assert_eq!((bare.code, &bare.stdout), (Some(0), &named.stdout));
    for word in ["bounced", "low", "coherent", "DMA32", "0 findings", "digest"] {
        assert!(bare.stdout.contains(word), "{word} in\n{}", bare.stdout);
    }
}

#[test]
fn shows_1_the_figures_follow_the_machine() {
    let cases: [&[&str]; 3] = [
        &["--set", "machine.ram=2G"],
        &["--set", "driver.dma_mask=64", "--set", "device.width=64"],
        &["--set", "machine.low=3G", "--set", "ram=3G"],
    ];
    for sets in cases {
        let outcome = lowzone(["run", "block/low-zone", "--json"].iter().chain(sets));
        assert_eq!(outcome.code, Some(0), "{sets:?}: {outcome:?}");
        assert_clean(&outcome.json());
        assert_eq!(bounces(&outcome.json()), [0, 0, 0], "{sets:?}");
    }
    // One key of the two is not enough: what the driver doesn't promise is bounced for.
    let narrow = lowzone(["run", "block/low-zone", "--json", "--set", "device.width=64"]);
    assert!(bounces(&narrow.json())[0] > 0, "{narrow:?}");
}

#[test]
fn shows_1_a_full_bounce_pool_is_reported_as_linux_does_and_loses_nothing() {
    let full = scenario::embedded("block/swiotlb-full", &[]);
    for result in scenario::run_both(&full, 1) {
        let line = "0000:00:01.0: swiotlb buffer is full (sz: 65536 bytes), total 512 (slots), used 512 (slots)";
        assert!(result.log.iter().any(|text| text == line), "{:?}", result.log);
        assert!(lowzone::expect::check(&full.expect, &result).is_empty(), "{result:?}");
        let row = &result.io[0];
        assert!(row.retries > 0 && row.verified, "{row:?}");
        assert_eq!((row.requests, row.failed, row.bytes), (64, 0, 64 * 65536), "nothing lost");
        assert_eq!(result.devices[0].map_failures, row.retries, "each refused mapping was tried again");
    }
    for roomy in scenario::run_both(&scenario::embedded("block/swiotlb-full", &["swiotlb=64M"]), 1) {
        assert_eq!((roomy.devices[0].map_failures, roomy.log.len()), (0, 0), "a large pool never fills");
    }
}
