//! `lowzone bench`: the lab measured with itself.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cli::{CliError, source};
use crate::expect;
use crate::lab::{Control, Lab, Verify};
use crate::spec::load;

const SCENARIO: &str = "block/low-zone";
/// Runs before the clock starts: the pool is made, its pages are touched.
const WARM_UP: u64 = 50;

/// Runs block/low-zone again and again on one thread; every run is checked as `lowzone run` would.
pub(crate) fn lockstep(seconds: u64) -> Result<ExitCode, CliError> {
    let scenario = load(&source(SCENARIO)?, &[])?;
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
    let mut runs = 0_u64;
    let mut slowest = Duration::ZERO;
    let mut fastest = Duration::MAX;
    while begun.elapsed() < limit {
        let one = Instant::now();
        good &= run(runs)?;
        let took = one.elapsed();
        slowest = slowest.max(took);
        fastest = fastest.min(took);
        runs += 1;
    }
    let took = begun.elapsed();
    let a_second = u128::from(runs) * 1_000_000_000 / took.as_nanos().max(1);
    let us = |d: Duration| d.as_nanos() / 1000;
    let mean = took.as_nanos() / u128::from(runs.max(1)) / 1000;
    writeln!(
        anstream::stdout(),
        "{SCENARIO} in lockstep, one core: {a_second} runs/s ({runs} runs; µs a run: fastest {}, mean {mean}, slowest {}), {}",
        us(fastest),
        us(slowest),
        if good { "every run as expected" } else { "NOT every run as expected" }
    )?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
