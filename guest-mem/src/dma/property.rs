//! The DMA API as a whole against a shadow, on each of nine machines: never a wrong byte, never a missed violation,
//! never a false one.
//!
//! A step is a call of the driver (memory, mappings of every kind, syncs, coherent regions, blocks of a pool) or an
//! access of one of three devices. After each the bytes it moved and the findings it made are exactly the shadow's.
//! Neighbours: `shadow` has the rules, `run` the comparison. Left out: two CPUs at once.

#![expect(clippy::cast_possible_truncation, reason = "what fits a small machine's memory fits any number")]

mod access;
mod domain;
mod held;
mod machines;
mod maps;
mod memory;
mod regions;
mod run;
mod shadow;
mod slots;

use run::Run;

/// Steps of a long run.
const STEPS: u64 = 1_000_000;

fn million(name: &str) {
    let mut run = Run::new(machines::named(name));
    let seen = run.steps(6, STEPS).and_then(|()| run.finish());
    let seen = seen.unwrap_or_else(|why| panic!("{name}: {why}"));
    println!("{name}: {seen:?}");
}

#[test]
fn a_million_steps_on_identity() {
    million("identity");
}

#[test]
fn a_million_steps_on_bridge_offset() {
    million("bridge-offset");
}

#[test]
fn a_million_steps_on_iommu_strict() {
    million("iommu-strict");
}

#[test]
fn a_million_steps_on_iommu_lazy() {
    million("iommu-lazy");
}

#[test]
fn a_million_steps_on_swiotlb_force() {
    million("swiotlb-force");
}

#[test]
fn a_million_steps_on_non_coherent() {
    million("non-coherent");
}

#[test]
fn a_million_steps_on_highmem() {
    million("highmem");
}

#[test]
fn a_million_steps_on_ram1g() {
    million("ram1g");
}

#[test]
fn a_million_steps_on_no_swiotlb() {
    million("no-swiotlb");
}
