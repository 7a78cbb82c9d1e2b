//! One scenario for each thing that the ledger tells, in both worlds: that finding, and no other.

use std::collections::BTreeSet;

use lowzone_tests::program::workspace;
use lowzone_tests::scenario::{embedded, run, run_both};

/// What can't be a mistake of the story `ledger`: the scenario that shows it, and what is set for it.
const ELSEWHERE: [(&str, &str, &[&str]); 4] = [
    ("map-stack", "alloc/thread-stack-map-page", &[]),
    ("beyond-width", "block/too-wide", &[]),
    ("bus-master-off", "block/no-bus-master", &[]),
    ("iommu-fault", "block/use-after-unmap", &["machine.iommu=strict"]),
];
/// What can't come alone, and with what it comes.
const TOGETHER: [(&str, &str); 4] = [
    ("sync-read-only", "sync-direction"),
    ("sync-write-only", "sync-direction"),
    ("mapping-overlaps", "mapping-overlap"),
    ("iommu-fault", "after-unmap"),
];

/// Every name that the sources give to a finding about a mapping.
fn classes() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (file, count) in [("guest-mem/src/finding/dma.rs", 26), ("guest-mem/src/dma/ownership.rs", 5)] {
        let text = std::fs::read_to_string(workspace().join(file)).unwrap();
        let arms = text.lines().filter_map(|line| line.trim().strip_suffix("\",")?.split_once("=> \""));
        let found: Vec<_> = arms.map(|(_, name)| name.to_owned()).collect();
        assert!(found.len() >= count, "{file}: {found:?}");
        names.extend(found);
    }
    names.extend(ELSEWHERE.iter().map(|row| row.0.to_owned()));
    names
}

#[test]
fn ledger_each_class_has_a_scenario_that_shows_exactly_it_in_both_worlds() {
    for class in classes() {
        let elsewhere = ELSEWHERE.iter().find(|row| row.0 == class);
        let scenario = match elsewhere {
            Some((_, name, sets)) => embedded(name, sets),
            None => embedded(&format!("dma/{class}"), &[]),
        };
        let with = TOGETHER.iter().find(|row| row.0 == class).map(|row| row.1);
        for result in run_both(&scenario, 1) {
            let found: BTreeSet<_> = result.findings.iter().map(|row| row.name.as_str()).collect();
            let expected: BTreeSet<_> = [class.as_str()].into_iter().chain(with).collect();
            assert_eq!(found, expected, "in {}", result.world);
        }
    }
}

#[test]
fn ledger_the_same_story_without_a_mistake_is_silent() {
    for result in run_both(&embedded("dma/ledger", &[]), 1) {
        assert!(result.findings.is_empty() && result.leaks.is_empty(), "in {}", result.world);
        assert_eq!(result.stories[0].facts.len(), 4);
    }
}

/// What a CPU or a device saw last in a scenario, with caches between them or not.
fn last_seen(name: &str, coherent: bool) -> Vec<String> {
    let result = run(&embedded(name, &[&format!("machine.coherent={coherent}")]), 1);
    result.stories[0].facts.iter().skip(4).map(|fact| fact.seen.clone()).collect()
}

#[test]
fn ledger_a_forgotten_sync_shows_stale_bytes_and_a_shared_line_loses_some_where_caches_lie_between() {
    assert_eq!(
        (last_seen("dma/missing-sync", true), last_seen("dma/missing-sync", false)),
        (vec!["7".into()], vec!["1".into()])
    );
    let late = |coherent| last_seen("dma/cpu-writes-mapped", coherent);
    assert_eq!((late(true), late(false)), (vec!["9".into()], vec!["1".into()]));
    let shared = |coherent| last_seen("dma/line-shared", coherent);
    assert_eq!((shared(true), shared(false)), (vec!["7".to_owned(), "9".into()], vec!["0".into(), "9".into()]));
}
