//! The program `lowzone`, run as a user runs it.
//!
//! It is built once for each test process, in the profile and the target folder of the tests themselves, so that a
//! stale one is never tested. Neighbours: `scenario`, which stays in this process.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// How the program ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Outcome {
    /// The outcome of a finished process.
    pub fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// Its output as one JSON value.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }
}

/// The folder of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace above tests/")
}

/// The target folder that these tests were built in.
pub fn target() -> PathBuf {
    let exe = std::env::current_exe().expect("a test has a path");
    // target/release/deps/e2e-0123456789abcdef
    exe.ancestors().nth(3).expect("a target folder").to_owned()
}

/// Builds the program in a profile and says where it lies.
pub fn build(release: bool) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--package", "lowzone", "--bin", "lowzone", "--quiet", "--target-dir"]).arg(target());
    if release {
        cargo.arg("--release");
    }
    let status = cargo.current_dir(workspace()).stdin(Stdio::null()).status().expect("cargo runs");
    assert!(status.success(), "the program does not build");
    target().join(if release { "release" } else { "debug" }).join("lowzone")
}

/// The program, as optimised as these tests are.
pub fn path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| build(!cfg!(debug_assertions)))
}

/// Builds, in a target folder of its own, the program with bugs seeded into its driver, where `lowzone mutants` looks
/// for it, and the runner of the measured tables with constants that can be altered.
fn with_mutants() -> &'static (PathBuf, PathBuf) {
    static PATHS: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    PATHS.get_or_init(|| {
        let target = target().join("mutants");
        let mut cargo = Command::new(env!("CARGO"));
        // Together, so that both have the same dependencies.
        cargo.args(["build", "--release", "--package", "lowzone", "--package", "lowzone-tests", "--bin", "lowzone"]);
        cargo.args(["--test", "golden", "--message-format", "json", "--quiet", "--target-dir"]).arg(&target);
        cargo.env("RUSTFLAGS", "--cfg lowzone_mutants").env_remove("CARGO_ENCODED_RUSTFLAGS");
        let built = cargo.current_dir(workspace()).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
        let built = built.expect("cargo runs");
        assert!(built.status.success(), "the program with seeded bugs does not build");
        let messages = String::from_utf8_lossy(&built.stdout).into_owned();
        let mut messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let golden = messages.find_map(|message| match message["target"]["name"].as_str() {
            Some("golden") => message["executable"].as_str().map(PathBuf::from),
            _ => None,
        });
        (target.join("release").join("lowzone"), golden.expect("cargo tells where it is"))
    })
}

/// The program with bugs seeded into its driver.
pub fn mutants() -> &'static Path {
    &with_mutants().0
}

/// The runner of the measured tables with constants that can be altered.
pub fn altered_golden() -> &'static Path {
    &with_mutants().1
}

/// The program with arguments, in a pipe and without anybody's settings.
pub fn command<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    command_of(path(), args)
}

/// A program with arguments, in a pipe and without anybody's settings.
pub fn command_of<A: AsRef<OsStr>>(program: &Path, args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("NO_COLOR", "1").env_remove("RUST_BACKTRACE").env_remove("LOWZONE_MUTANTS");
    command
}

/// Runs the program to its end.
pub fn lowzone<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Outcome {
    Outcome::of(&command(args).output().expect("the program starts"))
}
