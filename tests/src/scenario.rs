//! Scenarios run in this process, through the library.
//!
//! Neighbours: `program`, which does the same from outside. Left out: judging, which is `lowzone::expect`'s.

use std::sync::Arc;

use lowzone::kit::Kit;
use lowzone::lab::{Control, Lab, Verify};
use lowzone::result::RunResult;
use lowzone::spec::{Scenario, Set, Source, load};
use lowzone::world::WorldKind;

/// An embedded scenario with some values replaced (`path=value`).
pub fn embedded(name: &str, sets: &[&str]) -> Scenario {
    let source = Source::embedded(name).unwrap_or_else(|| panic!("no scenario {name}"));
    read(&source, sets)
}

/// A scenario from its text.
pub fn text(text: &str, sets: &[&str]) -> Scenario {
    read(&Source { name: "test.toml".to_owned(), text: text.to_owned() }, sets)
}

fn read(source: &Source, sets: &[&str]) -> Scenario {
    let sets: Vec<_> = sets.iter().map(|set| Set::parse(set).unwrap()).collect();
    load(source, &sets).unwrap_or_else(|error| panic!("{error}: {:?}", error.problem().help()))
}

/// A lab around a scenario.
pub fn lab(scenario: &Scenario, seed: u64) -> Lab {
    Lab::new("test", scenario.clone(), seed, Verify::Sha256, Arc::new(Control::default())).unwrap()
}

/// A lab around a scenario in a world.
pub fn lab_in(world: WorldKind, scenario: &Scenario, seed: u64) -> Lab {
    let (kit, control) = (Kit::STOCK, Arc::new(Control::default()));
    Lab::in_world(world, &kit, "test", scenario.clone(), seed, Verify::Sha256, control).unwrap()
}

/// One run of a scenario.
pub fn run(scenario: &Scenario, seed: u64) -> RunResult {
    lab(scenario, seed).run()
}

/// One run of a scenario in the threads world.
pub fn run_threads(scenario: &Scenario, seed: u64) -> RunResult {
    lab_in(WorldKind::Threads, scenario, seed).run()
}

/// One run in lockstep and one in the threads world, of what must hold in both.
pub fn run_both(scenario: &Scenario, seed: u64) -> [RunResult; 2] {
    [run(scenario, seed), run_threads(scenario, seed)]
}

/// The names of a run's findings.
pub fn findings(result: &RunResult) -> Vec<&str> {
    result.findings.iter().map(|row| row.name.as_str()).collect()
}
