//! The DMA API as a whole against a shadow, on each of nine machines: never a wrong byte, never a missed violation,
//! never a false one.
//!
//! A step is a call of the driver (memory, mappings of every kind, syncs, coherent regions, blocks of a pool) or an
//! access of one of three devices. After each the bytes it moved and the findings it made are exactly the shadow's.
//! A run that goes wrong names its seed and step, and goes wrong there again. Neighbours: `shadow` has the rules, `run`
//! the comparison, `plants` what must go wrong. Left out: two CPUs at once.

#![expect(clippy::cast_possible_truncation, reason = "what fits a small machine's memory fits any number")]

mod access;
mod domain;
mod held;
mod machines;
mod maps;
mod memory;
mod plants;
mod regions;
mod run;
mod shadow;
mod slots;
mod special;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::kernel::MachineConfig;
use run::Run;

/// Steps of a long run.
const STEPS: u64 = 1_000_000;

/// A long run, in which everything that can be seen on the machine is seen often enough.
fn million(name: &str) {
    let config = machines::named(name);
    let mut run = Run::new(config);
    let seen = run.steps(6, STEPS).and_then(|()| run.finish());
    let seen = seen.unwrap_or_else(|why| panic!("{name}: {why}"));
    println!("{name}: {seen:?}");
    let often = |name: &str| seen.found.get(name).copied().unwrap_or(0);
    let violations = ["after-unmap", "not-mapped", "outside-mapping", "wrong-direction", "while-cpu-owns"];
    assert!(violations.iter().all(|name| often(name) > 10_000) && seen.granted > 100_000 && seen.maps > 50_000);
    let breaches = ["cpu-writes-mapped", "cpu-reads-mapped", "missing-sync", "freed-while-mapped"];
    assert!(breaches.iter().all(|name| often(name) > 100) && often("pool-corrupted") > 100);
    assert!(often("mapping-overlap") > 3 && seen.failed > 300 && seen.registers > 1000);
    assert_eq!(often("line-shared") > 100, !config.coherent);
    assert_eq!(often("iommu-fault") > 10_000, config.iommu.is_some());
    let bounces = config.swiotlb_force || (config.swiotlb > 0 && config.iommu.is_none() && config.ram > config.low);
    assert_eq!(seen.bounced > 10_000, bounces);
    assert_eq!(seen.merged > 100, name.starts_with("iommu"), "{} entries merged", seen.merged);
}

/// A few steps from nothing, and back to nothing.
fn few(config: MachineConfig, draws: &[u64]) -> Result<(), String> {
    let mut run = Run::new(config);
    draws.iter().try_for_each(|&draw| run.step(draw))?;
    run.finish().map(drop)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 180, ..ProptestConfig::default() })]

    #[test]
    fn any_few_steps_agree_with_the_shadow(machine in 0..9_usize, draws in vec(any::<u64>(), 1..300)) {
        let (name, config) = machines::all()[machine];
        prop_assert_eq!(few(config, &draws), Ok(()), "on {}", name);
    }
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
