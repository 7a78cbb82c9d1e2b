//! Every table in this folder: how many rows it has, and who compares them.
//!
//! A file that nobody claims is red, and so is a claim without a file or a table whose rows are not all counted.

use std::collections::BTreeSet;
use std::path::Path;

/// Who compares a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    /// A test of this target.
    This,
    /// A test beside the code, in the file named.
    Unit(&'static str),
    /// Nobody: it shows a format.
    Sample,
}

use By::{Sample, This, Unit};

/// A table that is only in a test of the runner itself.
pub const NONE: &str = "none";

const FAULTS: By = Unit("guest-mem/src/fault/golden.rs");
const GEOMETRY: By = Unit("guest-mem/src/dma/streaming/golden.rs");
const MASKS: By = Unit("guest-mem/src/dma/device/golden.rs");
const LISTS: By = Unit("guest-mem/src/dma/sg/golden.rs");
const POOLS: By = Unit("guest-mem/src/dma/pool/golden.rs");
const COHERENT: By = Unit("guest-mem/src/dma/coherent/tests.rs");

const TABLES: [(&str, usize, By); 60] = [
    ("buddy", 39, This),
    ("buddyinfo", 6, Sample),
    ("cache", 52, This),
    ("cache_addr", 53, This),
    ("cache_ctor", 5, This),
    ("cache_merge", 7, This),
    ("cache_misc", 8, This),
    ("coherent", 231, COHERENT),
    ("coherent_misc", 18, COHERENT),
    ("crash", 3, This),
    ("debugfs_defaults", 31, Unit("guest-mem/src/fault/golden/kernel.rs")),
    ("dma24", 3, MASKS),
    ("dma_mask", 51, MASKS),
    ("dma_pool", 18, POOLS),
    ("dma_pool_misc", 3, POOLS),
    ("dma_sg", 4, LISTS),
    ("dma_sg_misc", 4, LISTS),
    ("dma_tlb", 3, MASKS),
    ("dmadebug", 44, Unit("guest-mem/src/dma/misuse/golden.rs")),
    ("drain", 51, This),
    ("drain_misc", 3, This),
    ("drain_runs", 20, This),
    ("edu", 6, Unit("tests/e2e/edu.rs")),
    ("fail_others", 23, Unit("guest-mem/src/fault/golden/kernel.rs")),
    ("failpage", 17, FAULTS),
    ("failpage_misc", 4, FAULTS),
    ("failslab", 35, FAULTS),
    ("gfp", 55, This),
    ("gfp_zone", 13, This),
    ("ioremap", 18, This),
    ("kmalloc", 59, This),
    ("kmalloc_bad", 5, This),
    ("kmalloc_class", 13, This),
    ("kmalloc_gfp", 37, This),
    ("kmalloc_misc", 14, This),
    ("kmalloc_order", 2, This),
    ("kmemleak", 1, This),
    ("kvmalloc", 14, This),
    ("map_offset", 78, GEOMETRY),
    ("map_offset_misc", 6, GEOMETRY),
    ("map_size", 27, GEOMETRY),
    ("mem_info_sample", 24, Unit("guest-mem/src/reclaim/tests.rs")),
    ("mempool", 28, This),
    ("mempool_kind", 3, This),
    // Each probe's texts are compared where what it probes is tested.
    ("messages", 709, Unit("guest-mem/src/fault/golden.rs")),
    ("pages", 48, This),
    ("pages_misc", 10, This),
    ("percpu_misc", 10, This),
    ("sleep_ret", 3, This),
    ("sleep_state", 6, This),
    ("slubdbg", 4, This),
    ("slubdbg_ksize", 9, This),
    ("swiotlb_area", 2, GEOMETRY),
    ("swiotlb_full", 39, This),
    ("sysctl_vm", 6, This),
    ("timing", 18, Unit("guest-mem/src/dma/streaming/tests.rs")),
    ("vmalloc", 7, This),
    ("vmalloc_misc", 16, This),
    ("zone", 8, This),
    ("zonelist", 5, This),
];

/// Asserts that all rows of a table that was run were counted.
pub fn check(name: &str, counted: usize) {
    let expected = TABLES.iter().find(|table| table.0 == name).map(|table| (table.1, table.2));
    assert_eq!(expected, Some((counted, This)), "{name}: so many rows are counted");
}

/// The tables that tests of this target compare, and their rows.
#[cfg(not(lowzone_mutants))]
pub fn run_here() -> impl Iterator<Item = (&'static str, usize)> {
    TABLES.into_iter().filter(|table| table.2 == This).map(|(name, rows, _)| (name, rows))
}

#[test]
fn golden_every_table_is_claimed_and_has_its_rows() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = workspace.join("tests/golden");
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: BTreeSet<_> = files.filter_map(|file| file.strip_suffix(".tsv").map(str::to_owned)).collect();
    let claimed: BTreeSet<_> = TABLES.iter().map(|table| table.0.to_owned()).collect();
    assert_eq!(files, claimed);
    for (name, rows, by) in TABLES {
        let text = std::fs::read_to_string(folder.join(format!("{name}.tsv"))).unwrap();
        assert_eq!(text.lines().count(), rows + 1, "{name}");
        if let Unit(file) = by {
            let source = std::fs::read_to_string(workspace.join(file)).unwrap();
            assert!(source.contains(&format!("{name}.tsv\"")), "{file} does not compare {name}");
        }
    }
}
