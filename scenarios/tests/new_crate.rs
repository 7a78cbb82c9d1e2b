//! `lowzone new`, as its user meets it: the crate passes; with one leak planted in its probe the campaign names the
//! line. Needs cargo. All of it is built from nothing, as at the user's, and the whole way has a limit.

#![allow(clippy::unwrap_used, reason = "a test that can not go on has failed")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// From `lowzone new` to the line of the leak, on two processors.
const LIMIT: Duration = Duration::from_secs(300);
const LOWZONE: &str = env!("CARGO_BIN_EXE_lowzone");
const SOURCES: &str = env!("CARGO_MANIFEST_DIR");

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn lowzone(at: &Path, args: &[&str]) -> Output {
    Command::new(LOWZONE).args(args).current_dir(at).output().unwrap()
}

fn texts(out: &Output) -> (String, String) {
    (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr).into_owned())
}

/// `cargo` in the crate; nothing is compiled yet.
fn cargo(at: &Path, args: &[&str]) -> Output {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Command::new(cargo).args(args).current_dir(at).env("CARGO_TARGET_DIR", at.join("target")).output().unwrap()
}

#[test]
fn a_new_crate_passes_and_a_leak_planted_in_its_probe_is_named_by_line() {
    let begun = Instant::now();
    let folder = Folder::new("new-crate");
    let made = lowzone(&folder.0, &["new", "adder", "--lowzone", SOURCES]);
    assert!(made.status.success(), "{}", texts(&made).1);
    let at = folder.0.join("adder");
    let explore = ["run", "--quiet", "--", "explore", "first"];
    let clean = cargo(&at, &explore);
    let (out, error) = texts(&clean);
    assert_eq!(clean.status.code(), Some(0), "{out}{error}");
    assert!(out.contains(" 0 wrong, 0 not carried out"), "{out}");
    let run = texts(&cargo(&at, &["run", "--quiet", "--", "run"])).0;
    assert!(run.contains("0 findings, 0 leaks"), "{run}");

    // The descriptor's memory is forgotten where the interrupt can't be had.
    let path = at.join("src/driver.rs");
    let text = std::fs::read_to_string(&path).unwrap();
    let (good, bad) = (
        "request_irq(cpu, irq, engine.clone())?;",
        "request_irq(cpu, irq, engine.clone()).inspect_err(|_| std::mem::forget(engine.clone()))?;",
    );
    assert_eq!(text.matches(good).count(), 1);
    std::fs::write(&path, text.replace(good, bad)).unwrap();
    let line = 1 + text.lines().position(|line| line.contains("alloc_coherent(cpu, DESC_BYTES")).unwrap();
    let leaking = cargo(&at, &explore);
    let (out, error) = texts(&leaking);
    assert_eq!(leaking.status.code(), Some(1), "{out}{error}");
    assert!(out.contains(&format!("src/driver.rs:{line} ")), "{line}: {out}");
    assert!(out.contains("adder replay 'first@"), "{out}");
    let took = begun.elapsed();
    println!("from nothing to the line of the leak: {} s", took.as_secs());
    assert!(took < LIMIT, "it took {} s", took.as_secs());
}

#[test]
fn what_can_not_be_a_crate_is_refused_and_nothing_is_written() {
    let folder = Folder::new("no-crate");
    std::fs::create_dir(folder.0.join("taken")).unwrap();
    for (args, wanted) in [
        (&["new", "taken"][..], "lowzone: taken exists already\n"),
        (
            &["new", "no/path"],
            "lowzone: 'no/path' is no name of a crate: a letter, then letters, digits, '-' and '_'\n",
        ),
        (&["new", "match"], "lowzone: a crate can't be called 'match': cargo or Rust has another meaning for it\n"),
        (
            &["new", "x", "--lowzone", "taken"],
            "lowzone: taken is not lowzone: no Cargo.toml with the package lowzone there, nor in its folder scenarios\n",
        ),
    ] {
        let out = lowzone(&folder.0, args);
        assert_eq!((out.status.code(), texts(&out).1.as_str()), (Some(2), wanted));
    }
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 1);
}

#[test]
fn an_address_becomes_a_git_dependency() {
    let folder = Folder::new("git-crate");
    assert!(lowzone(&folder.0, &["new", "x", "--lowzone", "https://example.org/lowzone.git"]).status.success());
    let manifest = std::fs::read_to_string(folder.0.join("x/Cargo.toml")).unwrap();
    assert!(manifest.contains("lowzone = { git = \"https://example.org/lowzone.git\" }"), "{manifest}");
    assert!(!folder.0.join("x/Cargo.lock").exists());
}
