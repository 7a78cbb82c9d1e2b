//! The tables would tell: each constant of the model that is altered turns rows red.
//!
//! The constants can be altered in the build with `--cfg lowzone_mutants` only. This builds the runner so, beside the program
//! with seeded bugs, and runs it once as it is and once for each constant, in processes of their own.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use lowzone_tests::program;

use crate::table::say;
use crate::tables;

/// A constant, the test of a table that must be red when it is another, and how one of its red rows reads.
const EXPECTED: [(&str, &str, &str); 15] = [
    ("ATOMIC_SHARE", "golden_drain", "then_GFP_ATOMIC|GFP_DMA32: DMA32 has 373 free, its mark is 462"),
    ("BATCH_MOST", "golden_zone", "pcp_high_batch is 995,127, measured 995,63"),
    ("CACHE_LINE", "golden_cache", "main hwalign 129: size is 256, measured 192"),
    ("CLASSES", "golden_kmalloc", "main GFP_KERNEL 129: ksize is 224, measured 192"),
    ("FIRST_UNIT", "golden_percpu_misc", "static_initial_value: distance is 2097152, measured 1048576"),
    ("GUARD", "golden_vmalloc", "main 4096: area_size is 12288, measured 8192"),
    ("KMALLOC_MAX_SIZE", "golden_kmalloc", "main GFP_KERNEL 4194304: ret is NULL, measured ptr"),
    ("LOW_SHARE", "golden_zone", "small DMA32 258013 258013 248094: wmark_low is 1313, measured 1231"),
    ("MAX_ORDER", "golden_pages", "main GFP_NOWAIT 10: ret is NULL, measured page"),
    ("MAX_SLAB_ORDER", "golden_cache", "main plain 2000: order is 2, measured 3"),
    ("RESERVE_RATIO", "golden_drain", "drain0 start - DMA: reserve_vs_DMA32 is 5942, measured 2971"),
    ("RETRY_NS", "golden_mempool", "the 5 s retry, not after 4"),
    ("SCALE_FACTOR", "golden_sysctl_vm", "watermark_scale_factor: value is 11, measured 10"),
    ("SLOT_SHIFT", "golden_swiotlb_full", "sw1area fill 2048 32768 1 1: maps_until_error is 16384, measured 32768"),
    ("TRACK", "golden_slubdbg", "redzone_bytes: dist is 128, measured 160"),
];

fn run(runner: &Path, constant: &str, tests: &[&str]) -> (Output, String) {
    let mut command = Command::new(runner);
    command.args(tests).env("LOWZONE_ALTERED", constant).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output, text)
}

#[test]
fn golden_each_altered_constant_turns_a_row_red() {
    let runner = program::altered_golden();
    let (output, text) = run(runner, "", &["golden"]);
    assert!(output.status.success(), "nothing is altered: {text}");
    for (name, rows) in tables::run_here() {
        let counted = text.lines().filter(|line| line.starts_with(&format!("{name}: {rows} rows, "))).count();
        assert_eq!(counted, 1, "{name} is run once: {text}");
    }
    for (constant, test, red) in EXPECTED {
        let (output, text) = run(runner, constant, &[test]);
        assert_eq!(output.status.code(), Some(101), "{constant} is altered and nothing is red: {text}");
        let row = text.lines().find(|line| line.contains(red));
        let row = row.unwrap_or_else(|| panic!("{constant}: no row that reads '{red}' is red: {text}"));
        say(&format!("{constant} altered: {test}: {row}"));
    }
}
