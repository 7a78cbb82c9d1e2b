//! `lowzone removals`: is each barrier and lock of the virtio drivers there because without it something is told?
//!
//! Only in the build with `--cfg lowzone_mutants`, whose kernel takes the one call out that the environment names. The
//! calls are read from the drivers' sources; each is tried with the same runs in weak memory, until one is not as
//! expected. Neighbours: `mutants`, for bugs of other kinds. Left out: two removals at once.

use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::cli::CliError;
use crate::explore::detector::{Detected, Detector};
use crate::mutants::MutantsError;

/// Tells this program which call is not there.
const VARIABLE: &str = "LOWZONE_REMOVED";
/// Where the drivers are, in the workspace.
const DRIVERS: [&str; 3] = ["driver/src/blk", "driver/src/net", "driver/src/virtio"];
/// What can be taken out.
const BARRIERS: [&str; 5] = ["mb", "wmb", "rmb", "dma_wmb", "dma_rmb"];
const CALLS: [&str; 3] = ["lock", "lock_irqsave", "lock_bh"];
/// What every removal is tried with, seed by seed.
const RUNS: [&[&str]; 6] = [
    &["block/contended", "--set", "step.remove.under_io=true"],
    &["block/low-zone", "--set", "device.queue_size=8"],
    &[
        "net/loop-back",
        "--set",
        "step.packets.count=200",
        "--set",
        "device.queue_size=8",
        "--set",
        "step.packets.lossy=true",
    ],
    &["net/source", "--set", "step.packets.count=200", "--set", "device.options.source=200"],
    &[
        "net/pressure",
        "--set",
        "step.packets.count=500",
        "--set",
        "step.packets.watched=true",
        "--set",
        "step.remove.under_io=true",
        "--fault",
        "swiotlb-slot:probability=2,times=-1,verbose=0",
    ],
    &["block/polled"],
];

/// Options of `lowzone removals`.
#[derive(Args)]
pub(crate) struct Removals {
    /// Take out this call only.
    #[arg(long, value_name = "FILE:LINE")]
    only: Option<String>,
    /// Name the calls and run nothing.
    #[arg(long)]
    list: bool,
    /// Seeds of each run until a removal counts as missed.
    #[arg(long, value_name = "N", default_value_t = 300)]
    seeds: u64,
    /// The first seed.
    #[arg(long, value_name = "N", default_value_t = 1)]
    from: u64,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// A call that can be taken out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Site {
    site: String,
    call: &'static str,
}

/// How its absence was told.
#[derive(Clone, Debug, Serialize)]
struct Found {
    detector: String,
    /// Seeds until then, that one included.
    seeds: u64,
    /// What repeats it in this program.
    again: String,
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    site: Site,
    found: Option<Found>,
}

/// The lines of a source file with their numbers, without comments, tests and what only the seeded bugs have.
fn code(text: &str) -> Vec<(usize, &str)> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    // The indentation of an item to be left out.
    let mut within: Option<usize> = None;
    let mut kept = Vec::new();
    for (number, line) in (1..).zip(text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"))) {
        if let Some(at) = within {
            let ends = line.trim_end().ends_with(['}', ';', ',']);
            within = within.filter(|_| !(indent(line) == at && ends));
        } else if line.trim() == "#[cfg(lowzone_mutants)]" {
            within = Some(indent(line));
        } else if !line.trim_start().starts_with("//") {
            kept.push((number, line));
        }
    }
    kept
}

/// The calls of a source file that can be taken out.
fn calls(name: &str, text: &str) -> Vec<Site> {
    let patterns: Vec<(&str, String)> = BARRIERS
        .map(|call| (call, format!("cpu.{call}()")))
        .into_iter()
        .chain(CALLS.map(|call| (call, format!(".{call}(cpu"))))
        .collect();
    let taken = |(number, line): (usize, &str)| {
        let (call, _) = patterns.iter().find(|(_, pattern)| line.contains(pattern))?;
        Some(Site { site: format!("{name}:{number}"), call })
    };
    code(text).into_iter().filter_map(taken).collect()
}

fn sources(folder: &Path, name: &str) -> Result<Vec<(String, PathBuf)>, CliError> {
    let unread = |source| CliError::Read { name: folder.display().to_string(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(unread)? {
        let path = entry.map_err(unread)?.path();
        let inner = format!("{name}/{}", path.file_name().unwrap_or_default().to_string_lossy());
        if path.is_dir() {
            found.extend(sources(&path, &inner)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((inner, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Every call of the drivers that can be taken out.
fn sites() -> Result<Vec<Site>, CliError> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut sites = Vec::new();
    for driver in DRIVERS {
        for (name, path) in sources(&workspace.join(driver), driver)? {
            let text = fs::read_to_string(&path).map_err(|source| CliError::Read { name: name.clone(), source })?;
            sites.extend(calls(&name, &text));
        }
    }
    Ok(sites)
}

/// Runs the command.
pub(crate) fn run(options: &Removals) -> Result<ExitCode, CliError> {
    let mut sites = sites()?;
    if let Some(only) = &options.only {
        sites.retain(|site| site.site == *only);
    }
    let mut out = anstream::stdout();
    if options.list {
        print(&mut out, options.json, &sites, |site| format!("{:<34} {}", site.site, site.call))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = try_all(options, &sites)?;
    print(&mut out, options.json, &rows, line)?;
    let caught = rows.iter().filter(|row| row.found.is_some()).count();
    if !options.json {
        writeln!(out, "\n{caught} of {} caught; again: {VARIABLE}=FILE:LINE lowzone …", rows.len())?;
    }
    Ok(if caught == rows.len() && !rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn print<T: Serialize>(out: &mut dyn Write, json: bool, all: &[T], line: fn(&T) -> String) -> Result<(), CliError> {
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(all).map_err(std::io::Error::from)?)?;
        return Ok(());
    }
    all.iter().try_for_each(|one| writeln!(out, "{}", line(one))).map_err(CliError::from)
}

fn line(row: &Row) -> String {
    let Site { site, call } = &row.site;
    match &row.found {
        Some(Found { detector, seeds, again }) => format!("{site:<34} {call:<13} {detector:<28} {seeds:>5}  {again}"),
        None => format!("{site:<34} {call:<13} missed"),
    }
}

/// Tries every removal, as many at once as there are processors.
fn try_all(options: &Removals, sites: &[Site]) -> Result<Vec<Row>, CliError> {
    let exe = env::current_exe()?;
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || -> Result<(), CliError> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(site) = sites.get(index) else { return Ok(()) };
            let row = Row { site: site.clone(), found: try_one(options, &exe, site)? };
            rows.lock().unwrap_or_else(PoisonError::into_inner).push((index, row));
        }
    };
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        all.into_iter().try_for_each(|job| job.join().unwrap_or(Ok(())))
    })?;
    let mut rows = rows.into_inner().unwrap_or_else(PoisonError::into_inner);
    rows.sort_by_key(|(index, _)| *index);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// Whether a scenario runs the driver that a call is in; the ring is in all.
fn reaches(scenario: &str, site: &str) -> bool {
    let other = if scenario.starts_with("net/") { "/blk/" } else { "/net/" };
    !site.contains(other)
}

fn try_one(options: &Removals, exe: &Path, site: &Site) -> Result<Option<Found>, CliError> {
    for seed in options.from..options.from + options.seeds {
        for scenario in RUNS.iter().copied().filter(|run| reaches(run[0], &site.site)) {
            let seed_text = seed.to_string();
            let args = [&["run"], scenario, &["--weak", "--json", "--seed", &seed_text]].concat();
            let output = outcome(exe, &args, Some(site))?;
            if output.status.code() == Some(0) {
                continue;
            }
            if outcome(exe, &args, None)?.status.code() != Some(0) {
                return Err(MutantsError::Unclean { name: args.join(" ") }.into());
            }
            let detector = who(output.status.code(), &output.stdout).to_string();
            return Ok(Some(Found { detector, seeds: seed - options.from + 1, again: args.join(" ") }));
        }
    }
    Ok(None)
}

/// Runs this program again, with a call removed or with all that there are.
fn outcome(exe: &Path, args: &[&str], site: Option<&Site>) -> Result<Output, CliError> {
    let mut command = Command::new(exe);
    command.args(args).env_remove(VARIABLE).stdin(Stdio::null());
    if let Some(site) = site {
        command.env(VARIABLE, &site.site);
    }
    let output = command.output()?;
    if output.status.code() == Some(2) {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let (name, how) = (args.join(" "), output.status.to_string());
        return Err(MutantsError::Failed { name, how, said }.into());
    }
    Ok(output)
}

/// Who told that a run was not as expected.
fn who(code: Option<i32>, answer: &[u8]) -> Detected {
    let Some(result) = serde_json::from_slice::<Value>(answer).ok().filter(|_| code == Some(1)) else {
        return Detector::ChildDeath.into();
    };
    if let Some(name) = result["findings"][0]["name"].as_str() {
        return Detected::finding(name);
    }
    if result["leaks"].as_array().is_some_and(|leaks| !leaks.is_empty()) {
        return Detector::Leak.into();
    }
    Detector::Failure.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_found_by_line_and_comments_and_tests_are_none() {
        let text =
            "// cpu.mb();\n cpu.dma_wmb();\n self.state.lock_irqsave(cpu);\n x.lock();\n#[cfg(test)]\n cpu.mb();";
        let bug = "#[cfg(lowzone_mutants)]\nif bug {\n    cpu.mb();\n}\n#[cfg(lowzone_mutants)]\nlet b = cpu.mb();\ncpu.mb();";
        assert_eq!(calls("b.rs", bug), [Site { site: "b.rs:7".to_owned(), call: "mb" }]);
        let found: Vec<_> = calls("a.rs", text).into_iter().map(|site| (site.site, site.call)).collect();
        assert_eq!(found, [("a.rs:2".to_owned(), "dma_wmb"), ("a.rs:3".to_owned(), "lock_irqsave")]);
    }

    #[test]
    fn a_removal_is_tried_where_its_driver_runs() {
        let fits = |site: &str| RUNS.iter().filter(|run| reaches(run[0], site)).count();
        assert_eq!((fits("driver/src/blk/queue.rs:1"), fits("driver/src/net/rx.rs:1")), (3, 3));
        assert_eq!(fits("driver/src/virtio/ring.rs:1"), RUNS.len());
    }

    #[test]
    fn an_answer_names_who_told() {
        let who = |code, json: &str| who(code, json.as_bytes()).to_string();
        assert_eq!(who(Some(1), r#"{"findings":[{"name":"data-race"}],"leaks":[]}"#), "context: data-race");
        assert_eq!(who(Some(1), r#"{"findings":[],"leaks":[{}]}"#), "leak");
        assert_eq!(who(Some(1), r#"{"findings":[],"leaks":[]}"#), "failure");
        assert_eq!(who(None, ""), "child-death");
    }
}
