//! Weak memory: drivers with all their barriers and locks are clean under it, and each of them is there because without
//! it something is told.

use lowzone_tests::program::{Outcome, command_of, lowzone, mutants};

/// Everything of these areas that shows no crime of its own.
const CLEAN: [&str; 11] = [
    "block/contended",
    "block/low-zone",
    "block/polled",
    "block/discard",
    "block/swiotlb-full",
    "net/loop-back",
    "net/source",
    "net/pressure",
    "edu/selftest",
    "edu/clamp",
    "dma/ledger",
];

#[test]
fn drivers_with_all_their_barriers_are_clean_in_weak_memory() {
    let seeds: Vec<String> = (1..=2).flat_map(|seed: u64| ["--seed".to_owned(), seed.to_string()]).collect();
    for scenario in CLEAN {
        let args = ["run", scenario, "--weak"].map(str::to_owned).into_iter().chain(seeds.iter().cloned());
        let seen = lowzone(args);
        assert_eq!(seen.code, Some(0), "{scenario}: {seen:?}");
    }
}

#[test]
fn campaigns_in_weak_memory_find_nothing_and_their_cases_replay() {
    for scenario in ["edu/selftest", "block/low-zone"] {
        let seen = lowzone(["explore", scenario, "--weak", "--seed", "3", "--json"]);
        assert_eq!(seen.code, Some(0), "{scenario}: {seen:?}");
    }
    let clean = |weak: bool| {
        let args = ["explore", "block/low-zone", "--json", "--weak"];
        lowzone(&args[..if weak { 4 } else { 3 }]).json()["clean_digest"].clone()
    };
    assert_ne!(clean(true), clean(false), "the children of a campaign are weak too");
}

#[test]
fn weak_memory_is_the_same_for_a_seed_and_off_by_default() {
    let digest = |args: &[&str]| lowzone(args).json()["digest"].as_str().unwrap().to_owned();
    let weak = ["run", "block/low-zone", "--json", "--weak"];
    let first = digest(&weak);
    assert_eq!(first, digest(&weak));
    assert_eq!(first, digest(&["run", "block/low-zone", "--json", "--set", "machine.weak=true"]));
    assert_ne!(first, digest(&["run", "block/low-zone", "--json"]));
}

#[test]
fn threads_and_peers_have_no_weak_memory() {
    for other in [["--world", "threads"], ["--wire", "vhost-user=/nowhere"]] {
        let args = ["run", "block/low-zone", "--weak", "--require-peers"].into_iter().chain(other);
        let seen = lowzone(args);
        let said = seen.stdout.clone() + &seen.stderr;
        assert!(seen.code != Some(0) && said.contains("lockstep"), "{seen:?}");
    }
}

/// The program with seeded bugs, of which this removes things.
fn removals(args: &[&str]) -> Outcome {
    Outcome::of(&command_of(mutants(), [&["removals"], args].concat()).output().expect("the program starts"))
}

#[test]
fn each_barrier_and_each_lock_is_there_because_its_removal_is_caught() {
    let listed = removals(&["--list", "--json"]).json();
    let sites = listed.as_array().unwrap();
    let of = |call: &str| sites.iter().filter(|site| site["call"] == call).count();
    assert_eq!(
        (of("dma_wmb"), of("mb"), of("dma_rmb"), of("wmb") + of("rmb")),
        (1, 2, 1, 0),
        "of the virtqueue, and no others in block and network drivers"
    );
    // Each of the three queues has some.
    for file in ["blk/queue.rs", "net/rx.rs", "net/tx.rs"] {
        assert!(sites.iter().filter(|site| site["site"].as_str().unwrap().contains(file)).count() >= 6, "{file}");
    }
    let seen = removals(&["--json"]);
    let rows = seen.json();
    let missed: Vec<_> = rows.as_array().unwrap().iter().filter(|row| row["found"].is_null()).collect();
    assert_eq!((seen.code, missed.len(), rows.as_array().unwrap().len()), (Some(0), 0, sites.len()), "{missed:?}");
    for row in rows.as_array().unwrap() {
        let lock = row["call"].as_str().unwrap().starts_with("lock");
        assert_eq!(lock, row["found"]["detector"] == "context: data-race", "{row}");
    }
}

#[test]
fn two_in_a_section_of_which_one_has_no_lock_are_a_data_race() {
    let listed = removals(&["--list", "--json"]).json();
    let mut locks = listed.as_array().unwrap().iter().filter(|site| {
        site["call"] == "lock_irqsave" && site["site"].as_str().unwrap().starts_with("driver/src/blk/queue.rs")
    });
    // Of the sections, that of the handler.
    let site = locks.next_back().unwrap()["site"].as_str().unwrap().to_owned();
    let found = removals(&["--only", &site, "--json"]).json()[0]["found"].clone();
    assert_eq!(found["detector"], "context: data-race", "{found}");
    let again = found["again"].as_str().unwrap().split_whitespace();
    let mut command = command_of(mutants(), again);
    let seen = Outcome::of(&command.env("LOWZONE_REMOVED", &site).output().expect("the program starts"));
    let text = seen.json()["findings"][0]["text"].as_str().unwrap().to_owned();
    for part in ["entered at driver/src/blk/queue.rs:", "inside since driver/src/blk/queue.rs:", "CONFIG_KCSAN", &site]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}
