//! The same seed is the same run, in any process and profile; another seed is another order of the same work.

use std::collections::BTreeSet;
use std::process::Command;

use lowzone_tests::program::{Outcome, build, lowzone, mutants};
use lowzone_tests::scenario;
use serde_json::Value;

#[test]
fn shows_3_the_same_seed_gives_the_same_bytes_in_two_processes() {
    for (name, seed) in [("block/low-zone", "1"), ("block/low-zone", "77"), ("block/random-queues", "5")] {
        let run = || lowzone(["run", name, "--json", "--seed", seed, "--set", "machine.cpus=4"]);
        let (first, second) = (run(), run());
        assert_eq!(first.code, Some(0), "{first:?}");
        assert_eq!(first.stdout, second.stdout, "{name}, seed {seed}");
    }
}

/// The release build and another: with `LOWZONE_LONG` set the debug build, which takes minutes to make, else the one in
/// which bugs are seeded and none is chosen.
#[test]
fn shows_3_two_builds_agree() {
    let long = std::env::var_os("LOWZONE_LONG").is_some();
    let programs = [if long { build(false) } else { mutants().to_owned() }, build(true)];
    for (name, seed) in [("block/low-zone", "1"), ("block/low-zone", "9"), ("block/swiotlb-full", "3")] {
        let results = programs.each_ref().map(|program| {
            let output = Command::new(program).args(["run", name, "--json", "--seed", seed]).output().unwrap();
            let outcome = Outcome::of(&output);
            assert_eq!(outcome.code, Some(0), "{outcome:?}");
            outcome.json()
        });
        let digest = |result: &Value| result["digest"].as_str().unwrap().to_owned();
        assert_eq!(digest(&results[0]), digest(&results[1]), "{name}, seed {seed}");
        // Lines differ in nothing either: one source, two builds.
        assert_eq!(results[0], results[1], "{name}, seed {seed}");
    }
}

#[test]
fn shows_3_twenty_seeds_give_many_orders_of_the_same_work() {
    let low_zone = scenario::embedded("block/low-zone", &[]);
    let results: Vec<_> = (1..=20).map(|seed| scenario::run(&low_zone, seed)).collect();
    let digests: BTreeSet<_> = results.iter().map(|result| &result.digest).collect();
    println!("20 seeds, {} digests", digests.len());
    assert!(digests.len() >= 10, "{digests:?}");
    let work = |result: &lowzone::result::RunResult| -> Vec<_> {
        let rows = result.io.iter();
        rows.map(|row| (row.sha256.clone(), row.requests, row.bytes, row.bounces, row.maps, row.verified)).collect()
    };
    for result in &results {
        assert_eq!(work(result), work(&results[0]), "seed {}", result.seed);
        assert_eq!(result.transactions, results[0].transactions, "seed {}", result.seed);
    }
}

#[test]
fn shows_3_the_first_event_in_which_two_runs_part_is_named() {
    let differ = lowzone(["run", "block/low-zone", "--seed", "1", "--seed", "2", "-v"]);
    assert_eq!(differ.code, Some(0), "{differ:?}");
    let lines: Vec<_> = differ.stdout.lines().collect();
    let at = lines.iter().position(|line| line.starts_with("seeds 1 and 2 part at event ")).expect(&differ.stdout);
    let (one, two) = (lines[at + 1].trim(), lines[at + 2].trim());
    assert!(one.starts_with("seed 1 ") && two.starts_with("seed 2 "), "{differ:?}");
    // An event is named as Linux names it, with its time.
    for line in [one, two] {
        assert!(line.contains(" ns  by ") && line.contains(':') && line.contains(" len "), "{line}");
    }
    let same = lowzone(["run", "block/low-zone", "--seed", "1", "--seed", "1", "-v"]);
    assert!(same.stdout.contains("seeds 1 and 1: ") && same.stdout.contains("none differs"), "{same:?}");
    let quiet = lowzone(["run", "block/low-zone", "--seed", "1", "--seed", "2"]);
    assert!(!quiet.stdout.contains("part at event"), "only -v tells: {quiet:?}");
}

#[test]
fn shows_3_the_named_event_is_the_first_that_differs() {
    let low_zone = scenario::embedded("block/low-zone", &[]);
    let events = |seed| {
        let mut lab = scenario::lab(&low_zone, seed);
        lab.capture();
        lab.run();
        lab.take_events()
    };
    let (one, two) = (events(1), events(2));
    let first = one.iter().zip(&two).position(|(x, y)| (x.0, x.1.kind, x.1.len) != (y.0, y.1.kind, y.1.len));
    let told = lowzone(["run", "block/low-zone", "--seed", "1", "--seed", "2", "-v"]).stdout;
    let wanted = format!("seeds 1 and 2 part at event {} of {} and {}:", first.unwrap(), one.len(), two.len());
    assert!(told.contains(&wanted), "{wanted} in\n{told}");
}
