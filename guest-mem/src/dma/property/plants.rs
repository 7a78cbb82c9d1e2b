//! Each rule of the DMA API broken in turn, and found within a bounded number of steps.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};

use super::machines;
use super::run::Run;
use crate::dma::plant::{Plant, with};

/// Steps within which each is found.
const WITHIN: u64 = 20_000;

/// Each of them, and the machine on which it shows.
const PLANTS: [(Plant, &str); 30] = [
    (Plant::NoCopyBack, "swiotlb-force"),
    (Plant::NoCopyIn, "swiotlb-force"),
    (Plant::NoCopyAgain, "swiotlb-force"),
    (Plant::CopyShort, "identity"),
    (Plant::CopyLong, "identity"),
    (Plant::SyncWhole, "swiotlb-force"),
    (Plant::SkipIgnored, "swiotlb-force"),
    (Plant::SlotKept, "bridge-offset"),
    (Plant::SlotTwice, "highmem"),
    (Plant::RollbackShort, "swiotlb-force"),
    (Plant::AnyMask, "no-swiotlb"),
    (Plant::EntryKept, "ram1g"),
    (Plant::DeadForgotten, "identity"),
    (Plant::AnyDirection, "identity"),
    (Plant::AlwaysDevices, "ram1g"),
    (Plant::EndLate, "identity"),
    (Plant::LinesApart, "identity"),
    (Plant::CpuUnjudged, "identity"),
    (Plant::UnseenForgotten, "swiotlb-force"),
    (Plant::FreedQuietly, "bridge-offset"),
    (Plant::AnyAccess, "iommu-strict"),
    (Plant::PageKept, "iommu-strict"),
    (Plant::NeverFlushed, "iommu-lazy"),
    (Plant::InvalidateShort, "non-coherent"),
    (Plant::CleanShort, "non-coherent"),
    (Plant::NotZeroed, "identity"),
    (Plant::OnePiece, "iommu-strict"),
    (Plant::MergeAny, "iommu-strict"),
    (Plant::WindowIgnored, "identity"),
    (Plant::NeighbourIgnored, "non-coherent"),
];

/// What is said of a plant, in a run from a seed.
fn said(plant: Plant, machine: &str, seed: u64) -> Option<String> {
    with(plant, || Run::new(machines::named(machine)).steps(seed, WITHIN).err())
}

#[test]
fn each_planted_fault_is_found_and_found_again() {
    for (plant, machine) in PLANTS {
        let first = said(plant, machine, 1).unwrap_or_else(|| panic!("{plant:?} on {machine} is not found"));
        assert_eq!(said(plant, machine, 1), Some(first.clone()), "{plant:?} shows otherwise the second time");
        println!("{plant:?} on {machine}: {first}");
    }
}

#[test]
fn without_a_plant_the_same_steps_are_right() {
    for (_, machine) in PLANTS {
        Run::new(machines::named(machine)).steps(1, WITHIN / 4).unwrap();
    }
}

#[test]
fn a_run_that_goes_wrong_shrinks_to_the_steps_it_needs() {
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    let config = machines::named("swiotlb-force");
    let wrong = runner.run(&vec(any::<u64>(), 1..600), |draws| {
        with(Plant::NoCopyBack, || super::few(config, &draws)).map_err(TestCaseError::fail)
    });
    let Err(TestError::Fail(why, steps)) = wrong else { panic!("not found: {wrong:?}") };
    assert!(why.message().contains("the CPU does not see what it should"), "{why}");
    // Memory, a mapping, a device that writes, the unmap; some more where shrinking gets stuck.
    assert!(steps.len() <= 12, "{} steps", steps.len());
}
