//! `lowzone mutants`: does the stock campaign find bugs that were seeded on purpose?
//!
//! The bugs are in another build of this program, made with `--cfg lowzone_mutants`; the shipped one has none of them.
//! This drives it: for each bug one campaign of `block/low-zone` in a child that has it, as a user would run it, and
//! a table of who told first and after how many cases. Neighbours: `driver::mutant`, the bugs; `explore`, whose JSON
//! is read here; `report` below prints. Left out: a scenario or a budget made for one bug.

mod report;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};

use clap::Args;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cli::CliError;
use crate::explore::case::Verdict;
use crate::explore::detector::Detected;
use report::Score;

/// Names the program with the bugs, if it lies elsewhere.
const PROGRAM: &str = "LOWZONE_MUTANTS";
/// Tells that program which bug to have.
const VARIABLE: &str = "LOWZONE_MUTANT";
/// What every bug is tried with.
const SCENARIO: &str = "block/low-zone";

/// Options of `lowzone mutants`.
#[derive(Args)]
pub(crate) struct Mutants {
    /// Try this bug only.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Name the bugs and run nothing.
    #[arg(long)]
    list: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Child processes of each campaign at once; 0 for as many as there are processors.
    #[arg(long, default_value_t = 0)]
    jobs: usize,
}

/// Why nothing could be said about the seeded bugs.
#[derive(Debug, Error)]
pub(crate) enum MutantsError {
    #[error(
        "no program with seeded bugs at {program}: build it with\n  \
         RUSTFLAGS='--cfg lowzone_mutants' cargo build --release --package lowzone --target-dir {target}"
    )]
    Absent { program: String, target: String },
    #[error("{program}: {source}")]
    Start { program: String, source: std::io::Error },
    #[error("no seeded bug is called '{name}': {}", .known.join(", "))]
    Unknown { name: String, known: Vec<String> },
    #[error("the campaign of {name} {how}: {said}")]
    Failed { name: String, how: String, said: String },
    #[error("{program} gave an answer that can't be read: {source}")]
    Answer { program: String, source: serde_json::Error },
}

/// A bug, as the program that has it names it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Seeded {
    name: String,
    story: String,
}

/// A mishandled case, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Wrong {
    token: String,
    detector: Option<Detected>,
    why: Vec<String>,
}

/// A campaign's result, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Answer {
    stopped: Option<bool>,
    wrong: Vec<Wrong>,
    verdicts: Vec<(String, Verdict)>,
}

/// How a bug was found.
#[derive(Clone, Debug, Serialize)]
struct Found {
    /// Who told first.
    detector: Option<Detected>,
    /// Cases with a fault until then, that one included; 0 if the clean run was enough.
    cases: usize,
    /// What repeats it in the program that has the bug.
    token: String,
    /// What was told.
    why: Vec<String>,
}

/// One bug and what became of it.
#[derive(Clone, Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    seeded: Seeded,
    /// Cases that the campaign has.
    all: usize,
    /// `None` if it was missed.
    found: Option<Found>,
}

/// Runs the command.
pub(crate) fn run(options: &Mutants) -> Result<ExitCode, CliError> {
    let program = Program::find()?;
    let known = program.seeded()?;
    if options.list {
        report::list(&mut anstream::stdout(), &known, options.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let tried = match &options.only {
        Some(name) => known.iter().filter(|seeded| seeded.name == *name).cloned().collect(),
        None => known.clone(),
    };
    if let (Some(name), true) = (&options.only, tried.is_empty()) {
        let known = known.into_iter().map(|seeded| seeded.name).collect();
        return Err(MutantsError::Unknown { name: name.clone(), known }.into());
    }
    let rows = tried.into_iter().map(|seeded| program.campaign(seeded, options.jobs)).collect::<Result<_, _>>()?;
    let score = Score::new(SCENARIO, rows);
    score.print(&mut anstream::stdout(), &program.shown(), options.json)?;
    Ok(if score.is_full() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// The program with the bugs.
struct Program {
    path: PathBuf,
}

impl Program {
    /// The one that the environment names, or the one beside this.
    fn find() -> Result<Self, CliError> {
        let exe = env::current_exe()?;
        let target = exe.ancestors().nth(2).unwrap_or(Path::new(".")).join("mutants");
        let named = env::var_os(PROGRAM).filter(|name| !name.is_empty()).map(PathBuf::from);
        let path = match named {
            Some(path) => path,
            // The program with the bugs drives itself.
            None if cfg!(lowzone_mutants) => exe,
            None => target.join("release").join("lowzone"),
        };
        if !path.is_file() {
            return Err(MutantsError::Absent { program: nearby(&path), target: nearby(&target) }.into());
        }
        Ok(Self { path })
    }

    fn shown(&self) -> String {
        nearby(&self.path)
    }

    fn run(&self, mutant: &str, args: &[&str]) -> Result<Output, MutantsError> {
        let mut command = Command::new(&self.path);
        command.args(args).env(VARIABLE, mutant).stdin(Stdio::null());
        command.output().map_err(|source| MutantsError::Start { program: self.shown(), source })
    }

    /// The bugs it has. A program without them would ask itself for ever: it is asked by a command that only the
    /// other build knows.
    fn seeded(&self) -> Result<Vec<Seeded>, MutantsError> {
        #[cfg(lowzone_mutants)]
        return Ok(own());
        #[cfg(not(lowzone_mutants))]
        {
            let output = self.run("", &["seeded"])?;
            self.read("its list", &output)
        }
    }

    /// One campaign with one bug.
    fn campaign(&self, seeded: Seeded, jobs: usize) -> Result<Row, MutantsError> {
        let output = self.run(&seeded.name, &["explore", SCENARIO, "--json", "--jobs", &jobs.to_string()])?;
        let Answer { stopped, wrong, verdicts } = self.read(&seeded.name, &output)?;
        let clean = stopped.unwrap_or(false);
        let first = verdicts.iter().position(|(_, verdict)| *verdict == Verdict::Wrong).map_or(0, |at| at + 1);
        let found = wrong.into_iter().next().map(|Wrong { token, detector, why }| Found {
            detector,
            cases: if clean { 0 } else { first },
            token,
            why,
        });
        Ok(Row { seeded, all: if clean { 0 } else { verdicts.len() }, found })
    }

    /// What it answered: 0 and 1 are answers, anything else is a failure.
    fn read<T: serde::de::DeserializeOwned>(&self, name: &str, output: &Output) -> Result<T, MutantsError> {
        if !matches!(output.status.code(), Some(0 | 1)) {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(MutantsError::Failed { name: name.to_owned(), how: output.status.to_string(), said });
        }
        serde_json::from_slice(&output.stdout).map_err(|source| MutantsError::Answer { program: self.shown(), source })
    }
}

/// A path as a person here would type it.
fn nearby(path: &Path) -> String {
    let here = env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

/// The bugs of this very program.
#[cfg(lowzone_mutants)]
fn own() -> Vec<Seeded> {
    let all = crate::driver::mutant::Mutant::ALL.iter();
    all.map(|mutant| Seeded { name: mutant.name().to_owned(), story: mutant.story().to_owned() }).collect()
}

/// Prints the bugs of this program for the one that asks.
#[cfg(lowzone_mutants)]
pub(crate) fn seeded() -> Result<ExitCode, CliError> {
    report::list(&mut anstream::stdout(), &own(), true)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_campaign_that_ends_with_its_clean_run_counts_no_cases() {
        let answer = |json: &str| serde_json::from_str::<Answer>(json).unwrap();
        let stopped = answer(
            r#"{"stopped":true,"wrong":[{"token":"t","detector":{"by":"leak"},"why":[]}],"verdicts":[["clean","wrong"]],"x":1}"#,
        );
        assert_eq!((stopped.stopped, stopped.wrong.len()), (Some(true), 1));
        let whole = answer(r#"{"wrong":[],"verdicts":[["slab:io#0","absorbed"]]}"#);
        assert_eq!((whole.stopped, whole.verdicts[0].1), (None, Verdict::Absorbed));
    }
}
