//! The rows that differ from what was measured, each with its cause.
//!
//! At most twenty in all tables together, and never a whole table: more would mean that the model is another kernel.

use std::fmt;

/// Why a row may differ: there are no other reasons.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(dead_code, reason = "the list is closed, whether or not a row has the cause")]
pub enum Cause {
    /// The kernel that was measured is patched beyond the version that is modelled.
    Version,
    /// Linux corrupts itself there; here it is a finding and nothing is corrupted.
    Corruption,
    /// Luck of the machine that was measured: what was allocated before, where its kernel lay.
    Accident,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "version",
            Self::Corruption => "corruption that the lab turns into a finding",
            Self::Accident => "accident of the measuring machine",
        })
    }
}

/// A cell that may differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Explained {
    pub table: &'static str,
    /// The row's inputs, joined by spaces.
    pub row: &'static str,
    pub column: &'static str,
    pub cause: Cause,
    pub why: &'static str,
}

const MOST: usize = 20;
const EXPLAINED: &[Explained] = &[
    Explained {
        table: "buddy",
        row: "main 24x_order0_pfns Normal",
        column: "pfns",
        cause: Cause::Accident,
        why: "what was in use of zone Normal, and which pages its lists held, is not known",
    },
    Explained {
        table: "buddy",
        row: "main 12x_order5_pfns Normal",
        column: "pfns",
        cause: Cause::Accident,
        why: "what was in use of zone Normal is not known",
    },
    Explained {
        table: "cache_merge",
        row: "main 128_plain",
        column: "name",
        cause: Cause::Accident,
        why: "it was merged with a cache of 128 bytes that the booted kernel had; caches are not merged here",
    },
    Explained {
        table: "cache_merge",
        row: "main 128_plain",
        column: "refcount",
        cause: Cause::Accident,
        why: "how many caches of the booted kernel were one with it",
    },
    Explained {
        table: "cache_merge",
        row: "main 120_plain",
        column: "name",
        cause: Cause::Accident,
        why: "it was merged with a cache of 120 bytes that the booted kernel had",
    },
    Explained {
        table: "cache_merge",
        row: "main 120_plain",
        column: "refcount",
        cause: Cause::Accident,
        why: "how many caches of the booted kernel were one with it",
    },
    Explained {
        table: "cache_merge",
        row: "main 100_hwalign",
        column: "name",
        cause: Cause::Accident,
        why: "it was merged with a cache of 128 bytes that the booted kernel had",
    },
    Explained {
        table: "cache_merge",
        row: "main 100_hwalign",
        column: "refcount",
        cause: Cause::Accident,
        why: "how many caches of the booted kernel were one with it",
    },
    Explained {
        table: "crash",
        row: "crash_doublefree double_kfree_then_three_allocs",
        column: "a_eq_b",
        cause: Cause::Corruption,
        why: "the second kfree makes Linux's list a ring, which hands one object out again and again",
    },
    Explained {
        table: "crash",
        row: "crash_doublefree double_kfree_then_three_allocs",
        column: "b_eq_c",
        cause: Cause::Corruption,
        why: "the second kfree makes Linux's list a ring, which hands one object out again and again",
    },
    Explained {
        table: "drain_runs",
        row: "drain0 dma32_only GFP_KERNEL|GFP_DMA32|NORETRY DMA32",
        column: "last",
        cause: Cause::Accident,
        why: "a counter that lagged by 3 let DMA give its last pages early; they come at the very end otherwise",
    },
    Explained {
        table: "vmalloc_misc",
        row: "consecutive_4096_4096_8192",
        column: "gap_ab",
        cause: Cause::Accident,
        why: "the holes between the 16 KiB-aligned stacks of its tasks were the first fit",
    },
    Explained {
        table: "vmalloc_misc",
        row: "consecutive_4096_4096_8192",
        column: "gap_bc",
        cause: Cause::Accident,
        why: "the holes between the 16 KiB-aligned stacks of its tasks were the first fit",
    },
    Explained {
        table: "vmalloc_misc",
        row: "is_vmalloc_addr_of_stack",
        column: "value",
        cause: Cause::Accident,
        why: "the measuring task's stack; the lab's CPUs run on stacks of the host, which have no address here",
    },
];

/// The explanation of a cell, if there is one.
pub fn find(table: &str, row: &str, column: &str) -> Option<Explained> {
    of(table).find(|entry| entry.row == row && entry.column == column).copied()
}

/// All of one table.
pub fn of(table: &str) -> impl Iterator<Item = &'static Explained> {
    EXPLAINED.iter().filter(move |entry| entry.table == table)
}

#[test]
fn golden_few_rows_are_explained() {
    assert!(EXPLAINED.len() <= MOST, "{} rows are explained, {MOST} may be", EXPLAINED.len());
}
