//! `lowzone mutants`: does the stock campaign find bugs that were seeded on purpose?
//!
//! The bugs are in another build of this program, made with `--cfg lowzone_mutants`; the shipped one has none of them.
//! This drives it: for each bug the campaigns of [`STOCK`] in children that have it, as a user would run them, until one
//! finds it, and a table of who told first and after how many cases. Neighbours: `driver::mutant`, the bugs; `explore`,
//! whose JSON is read here; `races` counts schedules, `report` prints. Left out: a scenario or a budget made for one bug.

mod races;
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
use crate::report::campaign::Sort;
use report::Score;

/// Names the program with the bugs, if it lies elsewhere.
const PROGRAM: &str = "LOWZONE_MUTANTS";
/// Tells that program which bug to have.
const VARIABLE: &str = "LOWZONE_MUTANT";

/// One campaign of the stock.
struct Campaign<'a> {
    scenario: &'a str,
    /// Values that are set in it.
    set: &'static [&'static str],
    /// Runs with the order of events changed, instead of the faults; 0 for the faults.
    schedules: u64,
}

/// The clean run, and one with another order of events.
const fn begin(scenario: &str) -> Campaign<'_> {
    Campaign { scenario, set: &[], schedules: 1 }
}

/// Each fault alone.
const fn faults(scenario: &str) -> Campaign<'_> {
    Campaign { scenario, set: &[], schedules: 0 }
}

/// Other orders of events, and of memory.
const fn weak(scenario: &str) -> Campaign<'_> {
    Campaign { scenario, set: &[WEAK], schedules: 200 }
}

/// What every bug is tried with, in this order: what costs little first, then each fault, then other orders.
const STOCK: [Campaign<'static>; 23] = [
    begin("block/low-zone"),
    begin("block/discard"),
    begin("edu/selftest"),
    begin("alloc/scullc"),
    begin("alloc/scullv"),
    begin("net/loop-back"),
    begin("net/source"),
    begin("net/mixed"),
    begin("edu/bounce"),
    faults("alloc/scullc"),
    faults("alloc/scullv"),
    faults("edu/selftest"),
    faults("block/low-zone"),
    faults("block/discard"),
    faults("net/loop-back"),
    faults("net/source"),
    faults("net/mixed"),
    faults("edu/bounce"),
    weak("block/low-zone"),
    weak("block/contended"),
    weak("edu/selftest"),
    weak("net/loop-back"),
    weak("net/source"),
];
/// Memory in any order that barriers allow.
const WEAK: &str = "machine.weak=true";

impl Campaign<'_> {
    /// What `lowzone explore` gets after its name.
    fn args(&self, jobs: usize) -> Vec<String> {
        let mut args = vec![self.scenario.to_owned(), "--first".to_owned(), "--json".to_owned()];
        args.extend(["--jobs".to_owned(), jobs.to_string()]);
        args.extend(self.set.iter().flat_map(|set| ["--set".to_owned(), (*set).to_owned()]));
        if self.schedules > 0 {
            args.extend(["--only-schedules".to_owned(), "--schedules".to_owned(), self.schedules.to_string()]);
        }
        args
    }
}

/// Options of `lowzone mutants`.
#[derive(Args)]
pub(crate) struct Mutants {
    /// Try this bug only.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Count the schedules that it takes to find each race, for ten seeds.
    #[arg(long, conflicts_with = "only")]
    races: bool,
    /// Name the bugs and run nothing.
    #[arg(long)]
    list: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Write one HTML page of the result to this file.
    #[arg(long, value_name = "FILE.html", conflicts_with_all = ["races", "list"])]
    report: Option<PathBuf>,
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
    #[cfg(lowzone_mutants)]
    #[error("without a removal `{name}` is not as expected either: no removal can be told by it")]
    Unclean { name: String },
    #[error("{program} gave an answer that can't be read: {source}")]
    Answer { program: String, source: serde_json::Error },
}

/// A bug, as the program that has it names it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Seeded {
    name: String,
    /// The row of the list of real bugs, unless it is made by hand.
    row: Option<u32>,
    driver: String,
    machine: String,
    story: String,
    /// Of a race: the scenario of its driver, and whether memory is weak there.
    race: Option<(String, bool)>,
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

impl Answer {
    /// Cases until the first that was mishandled, that one included, or all; 0 if the clean run was.
    fn cases(&self) -> usize {
        let first = self.verdicts.iter().position(|(_, verdict)| *verdict == Verdict::Wrong);
        if self.stopped.unwrap_or(false) { 0 } else { first.map_or(self.verdicts.len(), |at| at + 1) }
    }
}

/// How a bug was found.
#[derive(Clone, Debug, Serialize)]
struct Found {
    /// Who told first.
    detector: Option<Detected>,
    /// What repeats it in the program that has the bug.
    token: String,
    /// What must be set for that.
    set: Vec<String>,
    /// What was told.
    why: Vec<String>,
}

/// One bug and what became of it.
#[derive(Clone, Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    seeded: Seeded,
    /// Cases of all campaigns until it was found, or all there are; 0 if the first clean run was enough.
    cases: usize,
    /// `None` if it was missed.
    found: Option<Found>,
}

/// Runs the command.
pub(crate) fn run(options: &Mutants) -> Result<ExitCode, CliError> {
    let program = Program::find()?;
    let known = program.seeded()?;
    if options.races {
        return races::run(&program, &known, options);
    }
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
    crate::report::cli::writable(options.report.as_deref())?;
    let progress = crate::progress::bar(tried.len());
    let rows = tried.into_iter().map(|seeded| {
        progress.set_message(seeded.name.clone());
        let row = program.campaigns(seeded, options.jobs);
        progress.inc(1);
        row
    });
    let rows = rows.collect::<Result<_, _>>()?;
    progress.finish_and_clear();
    let score = Score::new(rows);
    if let Some(path) = &options.report {
        crate::report::cli::campaign(Sort::Mutants, &score, path)?;
    }
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

    fn run(&self, mutant: &str, args: &[String]) -> Result<Output, MutantsError> {
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
            let output = self.run("", &["seeded".to_owned()])?;
            self.read("its list", &output)
        }
    }

    /// One campaign with one bug; `more` is appended to what it is told.
    fn campaign(&self, name: &str, mut args: Vec<String>, more: &[String]) -> Result<Answer, MutantsError> {
        args.insert(0, "explore".to_owned());
        args.extend_from_slice(more);
        self.read(name, &self.run(name, &args)?)
    }

    /// The stock, until one campaign finds the bug.
    fn campaigns(&self, seeded: Seeded, jobs: usize) -> Result<Row, MutantsError> {
        let mut cases = 0;
        for campaign in &STOCK {
            let answer = self.campaign(&seeded.name, campaign.args(jobs), &[])?;
            cases += answer.cases();
            if let Some(Wrong { token, detector, why }) = answer.wrong.into_iter().next() {
                let set = campaign.set.iter().map(|set| (*set).to_owned()).collect();
                return Ok(Row { seeded, cases, found: Some(Found { detector, token, set, why }) });
            }
        }
        Ok(Row { seeded, cases, found: None })
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
    let all = crate::driver::mutant::Mutant::ALL.iter().map(|mutant| Seeded {
        name: mutant.name().to_owned(),
        row: mutant.row(),
        driver: mutant.driver().to_owned(),
        machine: mutant.machine().to_owned(),
        story: mutant.story().to_owned(),
        race: mutant.race().map(|(scenario, weak)| (scenario.to_owned(), weak)),
    });
    all.collect()
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
        assert_eq!((stopped.cases(), stopped.wrong.len()), (0, 1));
        let whole = answer(r#"{"wrong":[],"verdicts":[["slab:io#0","absorbed"],["slab:io#1","failed-right"]]}"#);
        assert_eq!(whole.cases(), 2);
        let second = answer(r#"{"wrong":[],"verdicts":[["a#0","absorbed"],["a#1","wrong"],["a#2","wrong"]]}"#);
        assert_eq!(second.cases(), 2);
    }
}
