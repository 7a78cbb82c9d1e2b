//! `lowzone bench peers`: what it prints, and what it says where something is missing.

use lowzone_tests::image::Folder;
use lowzone_tests::peer;
use lowzone_tests::program::{self, Outcome, command, command_of};

/// Ratios that no noise explains; the goal is 1.
const FLOOR: f64 = 0.4;
/// The crate's load: named here so that it is built, and lies beside the program.
const LOADER: &str = env!("CARGO_BIN_EXE_lowzone-peer-load");

/// Name, depth, how the drivers wait, and the median ratio of each row.
fn rows(outcome: &Outcome) -> Vec<(String, u32, String, f64)> {
    let lines = outcome.stdout.lines().filter(|line| line.contains("goal "));
    let row = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        (words[0].to_owned(), words[1].parse().unwrap(), words[2].to_owned(), words[5].parse().unwrap())
    };
    lines.map(row).collect()
}

fn bench(seconds: &str) -> Outcome {
    assert_eq!(std::path::Path::new(LOADER).parent(), program::path().parent());
    Outcome::of(&command(["bench", "peers", "--seconds", seconds]).output().unwrap())
}

#[test]
fn both_sides_of_every_row_are_measured() {
    if !peer::is_here("qemu-storage-daemon", "qemu-system-common") {
        return;
    }
    let outcome = bench("1");
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let rows = rows(&outcome);
    for (name, waits) in [("device", 2), ("driver", 3), ("mapping", 1)] {
        for depth in [1, 64] {
            let count = rows.iter().filter(|row| row.0 == name && row.1 == depth && row.3 > 0.0).count();
            assert_eq!(count, waits, "{name} at {depth}: {}", outcome.stdout);
        }
    }
}

/// What is compared like with like, both asleep until an eventfd is written; the other rows are looked at by a person.
#[test]
fn neither_half_is_far_behind_its_peer() {
    if std::env::var_os("LOWZONE_LONG").is_none() {
        return;
    }
    let outcome = bench("60");
    println!("{}", outcome.stdout);
    let judged: Vec<_> = rows(&outcome).into_iter().filter(|row| row.0 != "mapping" && row.2 == "sleeping").collect();
    assert_eq!(judged.len(), 4, "{outcome:?}");
    assert!(judged.iter().all(|row| row.3 >= FLOOR), "{judged:?}");
}

#[test]
fn what_is_missing_is_named_with_the_way_to_get_it() {
    let folder = Folder::new();
    let alone = folder.path().join("lowzone");
    std::fs::copy(program::path(), &alone).unwrap();
    let run = |path: Option<&str>| {
        let mut command = command_of(&alone, ["bench", "peers"]);
        if let Some(path) = path {
            command.env("PATH", path);
        }
        Outcome::of(&command.output().unwrap())
    };
    let no_daemon = run(Some("/nowhere"));
    assert_eq!(no_daemon.code, Some(2), "{no_daemon:?}");
    assert!(no_daemon.stderr.contains("apt-get install qemu-system-common"), "{}", no_daemon.stderr);
    if peer::is_here("qemu-storage-daemon", "qemu-system-common") {
        let no_loader = run(None);
        assert_eq!(no_loader.code, Some(2), "{no_loader:?}");
        assert!(no_loader.stderr.contains("cargo build --release -p lowzone-tests"), "{}", no_loader.stderr);
    }
}
