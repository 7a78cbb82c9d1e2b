//! `lowzone run --wire qemu` as a user sees it: skips, bad choices, and what is left when something dies.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use lowzone_tests::image::Folder;
use lowzone_tests::peer;
use lowzone_tests::program::{Outcome, command, lowzone};
use rustix::process::{Pid, Signal, kill_process};

/// Hours of work.
const LONG: &str = "story = 'x'\n[machine]\nram = '512M'\n[[device]]\nname = 'vda'\nkind = 'virtio-blk'\nsize = '64M'\n\
    [[step]]\nprobe = {}\n[[step]]\nio = { device = 'vda', requests = 100000000, pattern = 'random', depth = 16 }\n\
    [[step]]\nremove = {}\n";
const PATIENCE: Duration = Duration::from_secs(20);

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap()).unwrap()
}

/// The parent of a process and whether it is still more than an entry in a table.
fn parent(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z").then(|| fields.next()?.parse().ok())?
}

/// The emulator of a running program, once it is there.
fn emulator(of: u32) -> u32 {
    let begun = Instant::now();
    loop {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let mut numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let is_qemu = |process: &u32| {
            let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            parent(*process) == Some(of)
                && line.split(|&b| b == 0).next().is_some_and(|a| a.ends_with(b"qemu-system-x86_64"))
        };
        if let Some(found) = numbers.find(is_qemu) {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "no emulator was started");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn assert_gone(emulator: u32) {
    let begun = Instant::now();
    while parent(emulator).is_some() {
        assert!(begun.elapsed() < Duration::from_secs(5), "the emulator is left behind");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The program at work, and its emulator.
fn start(folder: &Folder) -> (Child, u32) {
    let file = folder.file("long.toml", LONG.as_bytes());
    let child = command([Path::new("run"), &file, Path::new("--wire"), Path::new("qemu")]).spawn().unwrap();
    let emulator = emulator(child.id());
    // Long enough for it to be in the middle of its requests.
    std::thread::sleep(Duration::from_millis(700));
    (child, emulator)
}

#[test]
fn an_emulator_that_dies_ends_the_run_with_one_clear_error() {
    if !peer::qemu() {
        return;
    }
    let folder = Folder::new();
    let (child, emulator) = start(&folder);
    let begun = Instant::now();
    kill_process(pid(emulator), Signal::KILL).unwrap();
    let outcome = Outcome::of(&child.wait_with_output().unwrap());
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("QEMU ended: signal: 9 (SIGKILL)"), "{outcome:?}");
    assert!(outcome.stdout.contains("0 leaks"), "{outcome:?}");
}

#[test]
fn ctrl_c_ends_both_in_order() {
    if !peer::qemu() {
        return;
    }
    let folder = Folder::new();
    let (child, emulator) = start(&folder);
    kill_process(pid(child.id()), Signal::INT).unwrap();
    let outcome = Outcome::of(&child.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(130), "{outcome:?}");
    assert!(outcome.stdout.contains("0 findings, 0 leaks"), "{outcome:?}");
    assert_gone(emulator);
}

#[test]
fn a_program_that_is_killed_leaves_no_emulator_behind() {
    if !peer::qemu() {
        return;
    }
    let folder = Folder::new();
    let (mut child, emulator) = start(&folder);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_gone(emulator);
}

#[test]
fn what_cant_be_told_is_skipped_with_its_reason_and_fails_only_on_demand() {
    let run = ["run", "block/wrong-direction", "--wire", "qemu"];
    let skipped = lowzone(run);
    assert_eq!((skipped.code, skipped.stdout.lines().count()), (Some(0), 1), "{skipped:?}");
    let start = "skipped on qemu: block/wrong-direction needs sees_dma: ";
    assert!(skipped.stdout.starts_with(start), "{skipped:?}");
    assert_eq!(lowzone(run.into_iter().chain(["--require-peers"])).code, Some(1));
    let json = lowzone(run.into_iter().chain(["--json"])).json();
    assert_eq!((json["scenario"].as_str(), json["wire"].as_str()), (Some("block/wrong-direction"), Some("qemu")));
    assert!(json["skipped"].as_str().unwrap().starts_with("needs sees_dma"));
}

#[test]
fn a_wrong_choice_is_one_error() {
    let refused = |args: &[&str], says: &str| {
        let outcome = lowzone(["run", "block/low-zone"].iter().chain(args));
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert!(outcome.stderr.contains(says), "{outcome:?}");
    };
    refused(&["--wire", "telepathy"], "no wire 'telepathy'; there is: inproc, qemu");
    refused(&["--wire", "qemu", "--world", "lockstep"], "--wire qemu has a time of its own");
    let none = Folder::new();
    let without = command(["run", "block/low-zone", "--wire", "qemu"]).env("PATH", none.path()).output().unwrap();
    let without = Outcome::of(&without);
    assert_eq!((without.code, without.stderr.lines().count()), (Some(2), 1), "{without:?}");
    assert!(without.stderr.contains("qemu-system-x86_64 is not installed: the Debian package is qemu-system-x86"));
    if peer::qemu() {
        refused(&["--wire", "qemu", "--set", "machine.low=3584M", "--set", "machine.ram=6G"], "at most 3 GiB");
    }
}
