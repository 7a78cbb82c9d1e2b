//! `lowzone bench`: the lab measured with itself, and beside its peers.

pub(crate) mod dma;
mod load;
pub(crate) mod peers;
mod plot;
pub(crate) mod trace;

use std::io::Write;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cli::{CliError, source};
use crate::expect;
use crate::explore::case::{Prepared, Verdict};
use crate::explore::inventory::Inventory;
use crate::kit::Kit;
use crate::lab::{Control, Lab, Verify};
use crate::spec::load;

const SCENARIO: &str = "block/low-zone";
/// Runs before the clock starts: the pool is made, its pages are touched.
const WARM_UP: u64 = 50;

/// Runs block/low-zone again and again on one thread; every run is checked as `lowzone run` would.
pub(crate) fn lockstep(seconds: u64) -> Result<ExitCode, CliError> {
    let scenario = load(&source(&Kit::STOCK, SCENARIO)?, &[])?;
    let control = Arc::new(Control::default());
    let run = |seed: u64| -> Result<bool, CliError> {
        let mut lab = Lab::new(SCENARIO, scenario.clone(), seed, Verify::Bytes, control.clone())?;
        Ok(expect::check(&scenario.expect, &lab.run()).is_empty())
    };
    let mut good = true;
    for seed in 0..WARM_UP {
        good &= run(seed)?;
    }
    let limit = Duration::from_secs(seconds);
    let begun = Instant::now();
    let mut took = Vec::new();
    for seed in 0.. {
        let one = Instant::now();
        good &= run(seed)?;
        took.push(one.elapsed().as_nanos() / 1000);
        if begun.elapsed() >= limit {
            break;
        }
    }
    let all = begun.elapsed();
    let runs = took.len();
    took.sort_unstable();
    let pick = |part: usize| took.get((runs - 1) * part / 100).copied().unwrap_or(0).max(1);
    writeln!(
        anstream::stdout(),
        "{SCENARIO} in lockstep, one core: {} runs/s by the median run, {} over all {runs} runs\n\
         µs a run: fastest {}, median {}, 99th percentile {}, slowest {}; {}",
        1_000_000 / pick(50),
        u128::from(u64::try_from(runs).unwrap_or(u64::MAX)) * 1_000_000 / all.as_micros().max(1),
        pick(0),
        pick(50),
        pick(99),
        pick(100),
        if good { "every run as expected" } else { "NOT every run as expected" }
    )?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Runs every case of block/low-zone's campaign on this thread, again and again: oracle, ledger and leak check on,
/// recycling and the recovery after each case included.
pub(crate) fn explore(seconds: u64) -> Result<ExitCode, CliError> {
    let scenario = load(&source(&Kit::STOCK, SCENARIO)?, &[])?;
    let prepared = Prepared::new(SCENARIO, &scenario, 1);
    let cases = Inventory::count(&prepared)?.strikes();
    let limit = Duration::from_secs(seconds);
    let begun = Instant::now();
    let (mut done, mut wrong) = (0_u64, 0_u64);
    let mut best = Duration::MAX;
    while begun.elapsed() < limit {
        let round = Instant::now();
        for case in &cases {
            wrong += u64::from(prepared.judge(std::slice::from_ref(case))?.verdict == Verdict::Wrong);
            done += 1;
        }
        best = best.min(round.elapsed());
    }
    let rate = |cases: u128, took: Duration| cases * 1_000_000 / took.as_micros().max(1);
    writeln!(
        anstream::stdout(),
        "explore {SCENARIO}, one core: {} cases/s in the best round of {}, {} over all {done} cases, {wrong} wrong",
        rate(cases.len() as u128, best),
        cases.len(),
        rate(u128::from(done), begun.elapsed())
    )?;
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// The value below which so many hundredths lie.
fn percentile(values: impl Iterator<Item = f64>, hundredths: usize) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get((values.len().max(1) - 1) * hundredths / 100).copied().unwrap_or(f64::NAN)
}

/// The program that measures allocators: other crates' calls are unsafe, so it is the tests'.
const ALLOCATORS: &str = "lowzone-bench-alloc";

/// Compares our allocators with others', in a program of its own.
pub(crate) fn alloc(seconds: u64) -> Result<ExitCode, CliError> {
    let program = std::env::current_exe().map_err(CliError::Output)?.with_file_name(ALLOCATORS);
    if !program.is_file() {
        return Err(CliError::NoProgram(program));
    }
    let status = Command::new(program).arg(seconds.to_string()).status().map_err(CliError::Output)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
