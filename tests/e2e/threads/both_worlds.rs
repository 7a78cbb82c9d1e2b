//! Every scenario that does not need lockstep shows the same in both worlds.

use lowzone::expect::check;
use lowzone::kit::Kit;
use lowzone::result::RunResult;
use lowzone::spec::{Need, Scenario};
use lowzone_tests::image::{Folder, bytes};
use lowzone_tests::program::lowzone;
use lowzone_tests::scenario::{embedded, findings, run, run_threads, text};

/// The scenarios, by name; those that want an image get one.
fn scenarios(folder: &Folder) -> Vec<(&'static str, Scenario)> {
    let image = format!("image={}", folder.file("disk.img", &bytes(7, 3 << 20)).display());
    let all = Kit::STOCK.entries().iter().map(|entry| {
        let sets = if entry.text.contains("image = \"\"") { vec![image.as_str()] } else { Vec::new() };
        (entry.name, embedded(entry.name, &sets))
    });
    all.filter(|(_, scenario)| !scenario.needs.contains(&Need::Lockstep)).collect()
}

/// What must not depend on who runs when.
fn assert_same(name: &str, lockstep: &RunResult, threads: &RunResult) {
    assert_eq!((lockstep.world.as_str(), threads.world.as_str()), ("lockstep", "threads"));
    assert!(threads.digest.is_empty() && !lockstep.digest.is_empty());
    let kinds = |result: &RunResult| {
        let mut kinds: Vec<String> = findings(result).into_iter().map(str::to_owned).collect();
        kinds.sort();
        kinds
    };
    assert_eq!(kinds(lockstep), kinds(threads), "{name}: {:#?}", threads.findings);
    assert_eq!(lockstep.copies, threads.copies, "{name}");
    assert_eq!(lockstep.exercises, threads.exercises, "{name}");
    assert_eq!(lockstep.clears, threads.clears, "{name}");
    assert_eq!(lockstep.stories, threads.stories, "{name}");
    let verdict =
        |r: &RunResult| (r.canary, r.failed_requests, r.leaks.len(), r.probe_errors.clone(), r.errors.clone());
    assert_eq!(verdict(lockstep), verdict(threads), "{name}");
    assert_eq!(lockstep.io.len(), threads.io.len());
    for (a, b) in lockstep.io.iter().zip(&threads.io) {
        let same = |row: &lowzone::result::IoRow| (row.label.clone(), row.requests, row.failed, row.verified);
        assert_eq!(same(a), same(b), "{name}");
        // What failed from the first request to the last has nothing to verify.
        let verified = b.verified || b.requests == 0 && b.failed > 0;
        assert_eq!((a.mismatched, b.mismatched, verified), (0, 0, true), "{name}");
        // A submission that was tried again collected an earlier request first: random steps then draw otherwise.
        if a.retries == 0 && b.retries == 0 {
            assert_eq!((&a.sha256, a.bytes, a.compared), (&b.sha256, b.bytes, b.compared), "{name}");
        }
    }
}

#[test]
fn every_scenario_gives_the_same_data_findings_and_verdict_in_both_worlds() {
    let folder = Folder::new();
    for (name, scenario) in scenarios(&folder) {
        let (lockstep, threads) = (run(&scenario, 3), run_threads(&scenario, 3));
        assert_same(name, &lockstep, &threads);
        let wrong = check(&scenario.expect, &threads);
        assert!(wrong.is_empty(), "{name}: {wrong:?}");
    }
}

/// Twenty runs of each with `LOWZONE_LONG` set.
#[test]
fn runs_of_the_short_scenarios_are_alike() {
    let runs = if std::env::var_os("LOWZONE_LONG").is_some() { 20 } else { 5 };
    let folder = Folder::new();
    for (name, scenario) in scenarios(&folder) {
        if ["block/random-queues", "block/no-bus-master"].contains(&name) {
            continue;
        }
        let lockstep = run(&scenario, 1);
        for _ in 0..runs {
            assert_same(name, &lockstep, &run_threads(&scenario, 1));
        }
    }
}

#[test]
fn one_workload_has_the_same_hash_in_both_worlds_on_several_queues_and_by_pin() {
    let sets = ["cpus=4", "device.queues=4", "depth=32"];
    for more in [&[][..], &["msix=false"], &["event_idx=false", "indirect=false"], &["device.queues=1", "cpus=1"]] {
        let given: Vec<_> = sets.iter().chain(more).copied().collect();
        let scenario = text(STORY, &given);
        let (lockstep, threads) = (run(&scenario, 1), run_threads(&scenario, 1));
        assert_same(&format!("{more:?}"), &lockstep, &threads);
        assert_eq!(lockstep.io[0].sha256, threads.io[0].sha256, "{more:?}");
        assert_eq!(threads.io[0].requests, 2000);
    }
}

const STORY: &str = "story = 'x'\n[machine]\ncpus = 2\n[[device]]\nname = 'vda'\nkind = 'virtio-blk'\nsize = '16M'\n\
    queues = 1\n[driver]\nmsix = true\nevent_idx = true\nindirect = true\n[[step]]\nprobe = {}\n\
    [[step]]\nio = { device = 'vda', requests = 2000, bytes = '4K', depth = 8 }\n[[step]]\nremove = {}\n";

#[test]
fn a_scenario_that_needs_lockstep_is_refused_in_threads_and_an_unknown_need_in_its_file() {
    let folder = Folder::new();
    let file = |name: &str, need: &str| {
        let text = STORY.replacen("story = 'x'\n", &format!("story = 'x'\nneeds = ['{need}']\n"), 1);
        folder.file(name, text.as_bytes()).display().to_string()
    };
    let (order, seen, wrong) = (file("a.toml", "lockstep"), file("b.toml", "sees_dma"), file("c.toml", "luck"));
    assert_eq!(lowzone(["run", &order]).code, Some(0));
    let refused = lowzone(["run", &order, "--world", "threads"]);
    assert_eq!((refused.code, refused.stderr.lines().count()), (Some(2), 1), "{refused:?}");
    assert!(refused.stderr.contains("a.toml needs lockstep: "), "{refused:?}");
    assert_eq!(lowzone(["run", &seen, "--world", "threads"]).code, Some(0));
    let unknown = lowzone(["run", &wrong]);
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.stderr.contains("luck") && unknown.stderr.contains("sees_dma"), "{unknown:?}");
}

#[test]
fn the_record_of_a_run_in_threads_is_whole() {
    let folder = Folder::new();
    let trace = folder.path().join("run.lzt").display().to_string();
    let run = lowzone(["run", "block/random-queues", "--world", "threads", "--json", "--trace", &trace]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let result = run.json();
    let stat = lowzone(["trace", "--json", "stat", &trace]);
    assert_eq!(stat.code, Some(0), "{stat:?}");
    assert_eq!(stat.json()["events"], result["events"], "none is lost");
    let transactions = lowzone(["trace", "tx", &trace]);
    assert_eq!(transactions.code, Some(0), "{transactions:?}");
    // Each mapping kept its details, however many threads wrote at the same time.
    let lines: Vec<_> = transactions.stdout.lines().filter(|line| line.contains("_DEVICE")).collect();
    assert!(lines.len() >= 10_000, "{}", lines.len());
    for line in lines {
        assert!(line.contains("; allocated ") && line.contains("; unmapped "), "{line}");
    }
    assert_eq!(lowzone(["trace", "tx", "--wrong", &trace]).stdout.matches("_DEVICE").count(), 0);
}
