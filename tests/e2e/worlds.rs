//! Which stories run in lockstep alone, and why; every other one runs in the threads world too.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use lowzone_tests::program::workspace;

/// The modules whose stories can't leave lockstep.
const LOCKSTEP_ONLY: [(&str, &str); 15] = [
    ("containment", "the point at which a driver dies is the nth of an order that repeats"),
    ("explore", "a case is a point by number"),
    ("faults", "which allocation is the nth is a matter of order"),
    ("hostile_device", "a device's lies are drawn from the seed, to be told again"),
    ("inspect", "it looks between two steps, at what an order that repeats has left"),
    ("probe_unwinds", "a case is a point by number"),
    ("readme", "it shows a digest"),
    ("schedules", "an order of events is what lockstep alone can choose"),
    ("seeded_bugs", "a case is a point by number"),
    ("shows_3_digests", "threads have no digest"),
    ("shows_6_many_queues", "fifty seeds are fifty orders; both_worlds runs its scenario in threads"),
    ("shows_7_recycling", "the same times and bytes in each run"),
    ("shows_7_teardown", "a CPU is torn down where it is parked; threads::endings does it to threads"),
    ("shrink", "a case is a point by number"),
    ("teardown_order", "the one order of a record"),
];
/// The modules in which nothing runs that has a world.
const NO_WORLD: [&str; 4] = ["bad_input", "bench_trace", "shows_5_ui", "trace_cost"];
/// What a module says that runs in threads: by a helper, by option, or because its peer is another process.
const MARKS: [&str; 7] =
    ["run_both", "run_threads", "in_both", "Rig::threads", "WorldKind::Threads", "--world", "--wire"];

fn text_of(at: &Path) -> String {
    if at.is_dir() {
        return fs::read_dir(at).unwrap().map(|entry| text_of(&entry.unwrap().path())).collect();
    }
    fs::read_to_string(at).unwrap()
}

#[test]
fn every_story_that_does_not_need_lockstep_runs_in_threads_too() {
    let folder = workspace().join("tests/e2e");
    let mut in_threads = BTreeSet::new();
    let mut others = BTreeSet::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if ["main", "worlds"].contains(&name.as_str()) || path.is_dir() {
            continue;
        }
        let inner = folder.join(&name);
        let text = text_of(&path) + &if inner.is_dir() { text_of(&inner) } else { String::new() };
        let marked = MARKS.iter().any(|mark| text.contains(mark));
        if marked {
            in_threads.insert(name)
        } else {
            others.insert(name)
        };
    }
    let excused = LOCKSTEP_ONLY.iter().map(|&(name, _)| name).chain(NO_WORLD);
    assert_eq!(others, excused.map(ToOwned::to_owned).collect(), "beside {in_threads:?}");
}
