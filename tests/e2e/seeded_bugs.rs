//! Bugs seeded into the driver: the stock campaign finds each, and nothing in the driver without them.

use std::fs;

use lowzone_tests::image::Folder;
use lowzone_tests::program::{Outcome, command, command_of, lowzone, mutants, path};
use serde_json::Value;

/// A bug, who must tell first, the name of its finding, and what its first token must strike (empty: nothing).
const EXPECTED: [(&str, &str, &str, &str); 44] = [
    ("missing-null-check", "oops", "null-dereference", "coherent:probe/init_vqs"),
    ("missing-check-in-ioctl", "oops", "null-dereference", "page:clear"),
    ("map-error-leak", "leak", "", "map:probe/init_vqs/try_fill_recv"),
    ("third-unwind-leak", "ledger", "pending-dma", "coherent:probe/init_vqs"),
    ("uninit-skip-unmap", "ledger", "pending-dma", ""),
    ("gfp-kernel-under-lock", "context", "sleep-in-atomic", ""),
    ("gfp-kernel-in-timer", "context", "sleep-in-atomic", "slab:probe/init_vqs/try_fill_recv"),
    ("double-free-on-map-error", "allocator", "bad-free", "map:probe/init_vqs/try_fill_recv"),
    ("double-free-in-retry", "allocator", "bad-free", "map:io"),
    ("remove-frees-private-first", "allocator", "use-after-free", ""),
    ("touch-after-xmit-error", "allocator", "use-after-free", "map:packets/start_xmit"),
    ("mapping-error-unchecked", "ledger", "map-error-unchecked", ""),
    ("coherent-wrong-size", "ledger", "unmap-size", ""),
    ("unmap-unpadded-length", "ledger", "unmap-size", ""),
    ("unmap-wrong-direction", "ledger", "unmap-direction", "removal@mmio-write:probe/init_vqs"),
    ("never-unmapped", "ledger", "pending-dma", ""),
    ("unmap-unguarded", "oops", "null-dereference", ""),
    ("free-after-late-open", "port", "after-unmap", "slab:probe/init_vqs/try_fill_recv"),
    ("no-reset-at-shutdown", "port", "after-shutdown", ""),
    ("stop-does-not-wait", "port", "after-unmap", "completion-late"),
    ("dma-to-stack", "ledger", "map-vmalloc", ""),
    ("mask-too-wide", "port", "beyond-width", ""),
    ("mask-overridden", "port", "beyond-width", ""),
    ("unmap-sampled-once", "ledger", "pending-dma", ""),
    ("missing-sync-for-cpu", "ledger", "missing-sync", ""),
    ("swiotlb-info-leak", "false-success", "", ""),
    ("used-read-unordered", "failure", "", ""),
    ("kfree-of-kvmalloc", "allocator", "bad-free", "page:story"),
    ("element-undersized", "allocator", "out-of-bounds", ""),
    ("dma-pool-leak", "leak", "", "slab:probe/start"),
    ("ioremap-leak", "leak", "", "removal@mmio-write:probe/init_vqs"),
    ("iounmap-before-stop", "finding", "io-after-unmap", ""),
    ("percpu-null", "oops", "null-dereference", "percpu:probe/init_vqs"),
    ("percpu-preemptible", "context", "preemptible", "slab:probe/init_vqs/try_fill_recv"),
    ("descriptor-off-by-one", "allocator", "red-zone", ""),
    ("false-success", "false-success", "", "dma-fault"),
    ("free-before-stop", "port", "after-unmap", ""),
    ("unmap-before-stop", "port", "after-unmap", "irq-vector:probe/init_vqs"),
    ("irq-not-freed", "leak", "", ""),
    ("gfp-kernel-in-handler", "context", "sleep-in-atomic", ""),
    ("remove-without-stop", "port", "after-unmap", ""),
    ("check-then-sleep", "allocator", "cache-busy", ""),
    ("unwind-frees-twice", "ledger", "unmap-not-mapped", "coherent:probe/init_vqs"),
    ("rings-never-freed", "ledger", "pending-dma", ""),
];

/// The program that has the bugs, with one of them or none.
fn seeded(mutant: &str, args: &[&str]) -> Outcome {
    let mut command = command_of(mutants(), args);
    Outcome::of(&command.env("LOWZONE_MUTANT", mutant).output().expect("the program starts"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[test]
fn seeded_bugs_are_all_found_each_by_its_detector_and_every_token_replays() {
    mutants();
    let seen = lowzone(["mutants", "--json"]);
    assert_eq!(seen.code, Some(0), "{seen:?}");
    let score = seen.json();
    assert_eq!((&score["found"], &score["total"]), (&EXPECTED.len().into(), &EXPECTED.len().into()));
    for (row, (name, by, finding, struck)) in score["mutants"].as_array().unwrap().iter().zip(EXPECTED) {
        assert_eq!(text(row, "name"), name);
        let found = &row["found"];
        let detector = &found["detector"];
        assert_eq!((text(detector, "by"), text(detector, "finding")), (by, finding), "{row:#}");
        let token = text(found, "token");
        let faults = token.rsplit_once(":1:").unwrap().1;
        assert!(faults.starts_with(struck), "{row:#}");
        assert_eq!(faults == "clean", struck.is_empty(), "{row:#}");
        let set = found["set"].as_array().unwrap().iter().flat_map(|set| ["--set", set.as_str().unwrap()]);
        let args: Vec<_> = ["replay", token].into_iter().chain(set).collect();
        let replayed = seeded(name, &args);
        assert_eq!(replayed.code, Some(1), "{name}: {replayed:?}");
        for why in found["why"].as_array().unwrap() {
            let first = why.as_str().unwrap().lines().next().unwrap();
            assert!(replayed.stdout.contains(first), "{name}: {first} in\n{}", replayed.stdout);
        }
        // The same case without the bug is handled right.
        let honest = lowzone(args);
        assert_eq!(honest.code, Some(0), "{name}: {honest:?}");
    }
}

#[test]
fn seeded_bugs_table_names_the_score_and_one_bug_can_be_tried_alone() {
    mutants();
    let one = lowzone(["mutants", "--only", "irq-not-freed"]);
    assert_eq!(one.code, Some(0), "{one:?}");
    for part in ["irq-not-freed", "leak", "clean run", "1 of 1 found", "LOWZONE_MUTANT=BUG", " replay TOKEN"] {
        assert!(one.stdout.contains(part), "{part}: {}", one.stdout);
    }
    let list = lowzone(["mutants", "--list"]);
    let names: Vec<_> = list.stdout.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, EXPECTED.map(|(name, ..)| name));
}

#[test]
fn seeded_bugs_that_are_not_there_are_one_clear_error() {
    mutants();
    let unknown = lowzone(["mutants", "--only", "irq-freed"]);
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.stderr.contains("'irq-freed'") && unknown.stderr.contains("irq-not-freed"), "{}", unknown.stderr);
    let variable = seeded("irq-freed", &["list"]);
    assert_eq!((variable.code, variable.stdout.as_str()), (Some(2), ""));
    assert!(variable.stderr.contains("LOWZONE_MUTANT") && variable.stderr.contains("irq-not-freed"), "{variable:?}");
    let absent = Outcome::of(&command(["mutants"]).env("LOWZONE_MUTANTS", "/nowhere/lowzone").output().unwrap());
    assert_eq!((absent.code, absent.stdout.as_str()), (Some(2), ""));
    let line = "RUSTFLAGS='--cfg lowzone_mutants' cargo build --release --package lowzone --target-dir ";
    assert!(absent.stderr.contains("/nowhere/lowzone") && absent.stderr.contains(line), "{}", absent.stderr);
    // The shipped program has no bugs, so it can't answer for the other.
    let shipped = Outcome::of(&command(["mutants"]).env("LOWZONE_MUTANTS", path()).output().unwrap());
    assert_eq!((shipped.code, shipped.stdout.as_str()), (Some(2), ""), "{shipped:?}");
}

#[test]
fn seeded_bugs_are_in_no_byte_of_the_shipped_program() {
    let holds = |program: &std::path::Path, what: &str| {
        let bytes = fs::read(program).unwrap();
        bytes.windows(what.len()).any(|window| window == what.as_bytes())
    };
    // Names of bugs are words that scenarios have too; their stories are nobody else's.
    let list = lowzone(["mutants", "--list", "--json"]).json();
    let stories: Vec<_> = list.as_array().unwrap().iter().map(|row| text(row, "story")).collect();
    assert_eq!(stories.len(), EXPECTED.len());
    for story in &stories {
        assert!(!holds(path(), story), "{story}");
    }
    assert!(holds(mutants(), stories[0]), "the other one has them");
}

#[test]
fn seeded_bugs_left_out_the_program_is_the_shipped_one_in_all_it_shows() {
    let args = ["explore", "block/low-zone", "--json"];
    let (with, without) = (seeded("", &args), lowzone(args));
    assert_eq!((with.code, without.code), (Some(0), Some(0)));
    assert_eq!(with.stdout, without.stdout);
}

/// Campaigns of clean drivers, each with a seed of its own: a thousand as the story says with `LOWZONE_LONG` set.
fn campaigns() -> u64 {
    if std::env::var_os("LOWZONE_LONG").is_some() { 1000 } else { 20 }
}

/// What they are run on, in turn.
const CLEAN: [&str; 5] = ["block/low-zone", "edu/selftest", "net/loop-back", "net/source", "alloc/scullc"];

#[test]
fn seeded_bugs_aside_campaigns_of_the_clean_drivers_report_nothing_whatever_the_seed() {
    let mut cases = 0;
    for seed in 1..=campaigns() {
        let scenario = CLEAN[usize::try_from(seed).unwrap() % CLEAN.len()];
        // In turn with memory in program order, and not.
        let set: &[&str] = if seed % 2 == 0 { &["--set", "machine.weak=true"] } else { &[] };
        let number = seed.to_string();
        let args = ["explore", scenario, "--seed", &number, "--schedules", "50", "--json"];
        let seen = lowzone(args.iter().chain(set));
        let json = seen.json();
        let wrong = &json["wrong"];
        assert_eq!((seen.code, wrong), (Some(0), &Value::Array(Vec::new())), "{scenario} {seed}: {}", seen.stdout);
        assert_eq!(json["schedules"]["run"], 50, "{scenario} {seed}");
        cases += json["cases"].as_u64().unwrap();
    }
    println!("{} campaigns, {cases} cases", campaigns());
    assert!(cases > 300 * campaigns(), "{cases}");
}

#[test]
fn a_clean_run_that_is_wrong_ends_the_campaign_with_its_finding_and_a_token() {
    let folder = Folder::new();
    let junit = folder.path().join("report.xml");
    let file = junit.to_str().unwrap();
    let seen = lowzone(["explore", "block/leak", "--json", "--junit", file]);
    assert_eq!(seen.code, Some(1), "{seen:?}");
    let json = seen.json();
    let wrong = json["wrong"].as_array().unwrap();
    assert_eq!((json["stopped"].as_bool(), json["cases"].as_u64(), wrong.len()), (Some(true), Some(1), 1));
    assert_eq!(json["missing"], Value::Array(Vec::new()));
    assert_eq!((text(&wrong[0]["detector"], "by"), text(&wrong[0]["detector"], "finding")), ("ledger", "pending-dma"));
    let xml = fs::read_to_string(&junit).unwrap();
    assert!(xml.contains("tests=\"1\" failures=\"1\"") && xml.contains("name=\"clean\"><failure>pending-dma"), "{xml}");
    let token = text(&wrong[0], "token");
    assert!(token.ends_with(":1:clean"), "{token}");
    let again = lowzone(["replay", token]);
    assert_eq!(again.code, Some(1), "{again:?}");
    assert!(again.stdout.contains("the clean run: Wrong") && again.stdout.contains("pending-dma"), "{}", again.stdout);
    let shown = lowzone(["explore", "block/leak"]);
    assert_eq!(shown.code, Some(1));
    assert!(shown.stdout.contains("the clean run: nothing was injected, and nothing will be"), "{}", shown.stdout);
    assert!(shown.stdout.contains(&format!("lowzone replay '{token}'")), "{}", shown.stdout);
}
