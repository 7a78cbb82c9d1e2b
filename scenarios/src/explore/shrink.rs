//! `lowzone shrink`: a failing case as the shortest scenario and the smallest set of strikes that still fails.
//!
//! The case is written out as a file in which everything is a step, also what a campaign adds. Then steps, devices,
//! strikes, options and counts are taken away one after the other for as long as the same detector tells the same; in a
//! shorter scenario a strike may have to move to another occurrence of its place, or be another schedule. Each try
//! runs in a child, as the cases of a campaign do. Neighbours: `campaign`, which runs the tries; `spec::text`, which
//! writes the file. Left out: the sizes of buffers and devices.

use std::process::Command;
use std::sync::atomic::AtomicBool;

use indicatif::ProgressBar;
use thiserror::Error;
use toml::{Table, Value};

use super::campaign::{Campaign, Case, Record};
use super::case::{Keep, Prepared};
use super::cli::prepare;
use super::detector::Detected;
use super::phases::Phases;
use super::place::{Place, Strike};
use super::token::{Token, faults};
use crate::cli::CliError;
use crate::kit::Kit;
use crate::progress;
use crate::spec::text::{find, paths, table, take, text};
use crate::spec::{Explore, Scenario, Source, Step};

/// Other occurrences or schedules that are tried for a strike.
const MOST: usize = 64;
/// What is halved and not taken away: without the key there would be more of it.
const COUNTS: [&str; 9] = ["requests", "times", "count", "blocks", "burst", "depth", "pieces", "queues", "queue_size"];

/// Why a case can't be made shorter.
#[derive(Debug, Error)]
pub(crate) enum ShrinkError {
    /// The driver handles it.
    #[error("{0} is handled right: there is nothing to shrink")]
    Right(String),
    /// It doesn't fail as a file.
    #[error("{token} fails with '{detected}', but not as a scenario file of its steps")]
    NotWritten {
        /// The case.
        token: String,
        /// Who told.
        detected: Detected,
    },
}

/// The shortest file that fails as the case of this token does.
///
/// # Errors
/// [`ShrinkError`], or what keeps the case from being run.
pub(crate) fn shrink(kit: &Kit, token: &Token, sets: &[String]) -> Result<String, CliError> {
    let prepared = prepare(kit, &token.scenario, (sets, false), token.seed)?;
    token.check(&prepared)?;
    let (name, seed) = (token.scenario.as_str(), token.seed);
    let as_token = Run { name, seed, text: None, sets };
    let case = as_token.first(std::slice::from_ref(&token.strikes), &Record::is_wrong)?;
    let detected = case.and_then(|record| record.outcome.detector);
    let detected = detected.ok_or_else(|| ShrinkError::Right(token.to_string()))?;
    let written = Phases::of(&prepared, &token.strikes).written();
    let scenario = Scenario { step: written, explore: Explore::default(), ..prepared.scenario };
    let story = format!("{detected}: what is left of {} with {}", token.scenario, faults(&token.strikes));
    let mut shrinker = Shrinker {
        kit,
        name,
        seed,
        detected: detected.clone(),
        best: table(&Scenario { story, ..scenario }),
        strikes: token.strikes.clone(),
        bar: progress::bar(0),
    };
    if !shrinker.accept(shrinker.best.clone(), shrinker.strikes.clone())? {
        return Err(ShrinkError::NotWritten { token: token.to_string(), detected }.into());
    }
    shrinker.run()?;
    shrinker.bar.finish_and_clear();
    Ok(shrinker.written())
}

/// How tries are run.
struct Run<'a> {
    name: &'a str,
    seed: u64,
    /// The scenario, if it is not the one of the name.
    text: Option<&'a str>,
    sets: &'a [String],
}

impl Run<'_> {
    /// The first of some cases of which something holds.
    fn first(&self, cases: &[Case], holds: &(dyn Fn(&Record) -> bool + Sync)) -> Result<Option<Record>, CliError> {
        let exe = std::env::current_exe()?;
        let command = || {
            let mut command = Command::new(&exe);
            command.args(["explore", "--worker", self.name, "--seed", &self.seed.to_string()]);
            self.sets.iter().for_each(|set| {
                command.args(["--set", set]);
            });
            self.text.iter().for_each(|text| {
                command.args(["--text", text]);
            });
            command
        };
        let (done, stop) = (|_: &Record, _: u32| {}, AtomicBool::new(false));
        let campaign = Campaign { cases, jobs: 1, command: &command, done: &done, stop: &stop, last: Some(holds) };
        Ok(campaign.run()?.pop().filter(holds))
    }
}

struct Shrinker<'a> {
    kit: &'a Kit,
    name: &'a str,
    seed: u64,
    /// Who has to tell.
    detected: Detected,
    /// The shortest file so far, without its strikes.
    best: Table,
    strikes: Case,
    bar: ProgressBar,
}

impl Shrinker<'_> {
    fn run(&mut self) -> Result<(), CliError> {
        for key in ["on", "needs", "expect", "fault", "machine", "driver"] {
            let mut less = self.best.clone();
            if less.remove(key).is_some() {
                self.accept(less, self.strikes.clone())?;
            }
        }
        loop {
            let shorter = self.steps()? | self.devices()? | self.fewer_strikes()? | self.counts()? | self.options()?;
            if !shorter {
                return Ok(());
            }
        }
    }

    /// The file as it stands.
    fn written(&self) -> String {
        let mut file = self.best.clone();
        if !self.strikes.is_empty() {
            let strikes = self.strikes.iter().map(|strike| Value::String(strike.to_string())).collect();
            file.insert("strikes".to_owned(), Value::Array(strikes));
        }
        let seed = if self.seed == 1 { String::new() } else { format!("# Run it with --seed {}.\n", self.seed) };
        seed + &text(&file)
    }

    /// Takes a file that still fails, perhaps with its strikes moved; whether it does.
    fn accept(&mut self, file: Table, strikes: Case) -> Result<bool, CliError> {
        let source = Source { name: self.name.to_owned(), text: text(&file) };
        let Ok(scenario) = self.kit.load(&source, &[]) else { return Ok(false) };
        if !lets_go(&scenario) {
            return Ok(false);
        }
        self.bar.set_message(format!("{} steps, {} strikes", scenario.step.len(), strikes.len()));
        self.bar.inc_length(1);
        self.bar.inc(1);
        let run = Run { name: self.name, seed: self.seed, text: Some(&source.text), sets: &[] };
        let same = |record: &Record| {
            record.outcome.struck && record.outcome.detector.as_ref().is_some_and(|detected| *detected == self.detected)
        };
        let found = match run.first(std::slice::from_ref(&strikes), &same)? {
            None if !strikes.is_empty() => run.first(&self.moved(&scenario, &strikes)?, &same)?,
            found => found,
        };
        let Some(found) = found else { return Ok(false) };
        (self.best, self.strikes) = (table(&Scenario { strikes: Vec::new(), ..scenario }), found.faults);
        Ok(true)
    }

    /// The case with one strike elsewhere, the last occurrences first.
    fn moved(&self, scenario: &Scenario, strikes: &Case) -> Result<Vec<Case>, CliError> {
        let clean = Prepared::as_written(self.kit, self.name, scenario, self.seed);
        let seen = clean.observe(&[], Keep { points: true, ..Keep::default() })?;
        let places: Vec<&Place> = seen.points.iter().map(|point| &point.place).rev().collect();
        let mut cases = Vec::new();
        for (at, strike) in strikes.iter().enumerate() {
            let alike = |place: &Place| {
                let same =
                    |other: &&&Place| other.class == place.class && unphased(&other.scope) == unphased(&place.scope);
                places.iter().filter(same).map(|&place| place.clone()).collect::<Vec<_>>()
            };
            let numbers = |most: u64| (0..most).rev();
            let others: Vec<Strike> = match strike {
                Strike::Fail { place, persistent } => {
                    let fail = |place| Strike::Fail { place, persistent: *persistent };
                    alike(place).into_iter().map(fail).collect()
                }
                Strike::Remove { place } => alike(place).into_iter().map(|place| Strike::Remove { place }).collect(),
                &Strike::Irq { what, persistent, .. } => {
                    numbers(seen.messages).map(|nth| Strike::Irq { what, nth, persistent }).collect()
                }
                &Strike::Completion { what, persistent, .. } => {
                    numbers(seen.completions).map(|nth| Strike::Completion { what, nth, persistent }).collect()
                }
                Strike::Schedule { .. } => (0..).take(MOST).map(|nth| Strike::Schedule { nth }).collect(),
                Strike::Order { .. } => Vec::new(),
            };
            cases.extend(others.into_iter().take(MOST).map(|other| {
                let mut case = strikes.clone();
                case[at] = other;
                case
            }));
        }
        Ok(cases)
    }

    /// Takes steps away, at first many at once.
    fn steps(&mut self) -> Result<bool, CliError> {
        let mut shorter = false;
        let count = |best: &Table| best.get("step").and_then(Value::as_array).map_or(0, Vec::len);
        let mut chunk = count(&self.best).div_ceil(2);
        while chunk > 0 {
            let mut at = 0;
            while at < count(&self.best) {
                let mut less = self.best.clone();
                if let Some(Value::Array(steps)) = less.get_mut("step") {
                    steps.drain(at..(at + chunk).min(steps.len()));
                }
                if self.accept(less, self.strikes.clone())? {
                    shorter = true;
                } else {
                    at += chunk;
                }
            }
            chunk /= 2;
        }
        Ok(shorter)
    }

    /// Takes devices away, with the steps that name them.
    fn devices(&mut self) -> Result<bool, CliError> {
        let mut shorter = false;
        let names = |best: &Table| -> Vec<String> {
            let devices = best.get("device").and_then(Value::as_array).into_iter().flatten();
            devices.filter_map(|device| device.get("name")?.as_str().map(str::to_owned)).collect()
        };
        for name in names(&self.best) {
            let mut less = self.best.clone();
            let is = |value: &Value, key: &str| value.get(key).and_then(Value::as_str) == Some(&name);
            if let Some(Value::Array(devices)) = less.get_mut("device") {
                devices.retain(|device| !is(device, "name"));
            }
            if let Some(Value::Array(steps)) = less.get_mut("step") {
                let options = |step: &Value| step.as_table().and_then(|verb| verb.values().next().cloned());
                let names = |options: Value| ["device", "from", "to"].iter().any(|key| is(&options, key));
                steps.retain(|step| !options(step).is_some_and(names));
            }
            shorter |= self.accept(less, self.strikes.clone())?;
        }
        Ok(shorter)
    }

    /// Takes strikes away, and has each strike once only.
    fn fewer_strikes(&mut self) -> Result<bool, CliError> {
        let mut shorter = false;
        let mut at = 0;
        while at < self.strikes.len() {
            let mut less = self.strikes.clone();
            less.remove(at);
            if self.accept(self.best.clone(), less)? {
                shorter = true;
                continue;
            }
            let mut once = self.strikes.clone();
            match &mut once[at] {
                Strike::Fail { persistent, .. }
                | Strike::Irq { persistent, .. }
                | Strike::Completion { persistent, .. } => {
                    *persistent = false;
                }
                Strike::Order { exceptions } => drop(exceptions.pop()),
                Strike::Remove { .. } | Strike::Schedule { .. } => {}
            }
            shorter |= once != self.strikes && self.accept(self.best.clone(), once)?;
            at += 1;
        }
        Ok(shorter)
    }

    /// Makes counts small.
    fn counts(&mut self) -> Result<bool, CliError> {
        let mut shorter = false;
        for path in paths(&self.best).iter().filter(|path| COUNTS.contains(&path.leaf())) {
            let now = find(&mut self.best, path).and_then(|value| value.as_integer()).unwrap_or(0);
            // A half more than once, in the next round.
            for to in [1, 2, now / 2].into_iter().filter(|&to| to >= 1 && to < now) {
                let mut less = self.best.clone();
                if let Some(value) = find(&mut less, path) {
                    *value = Value::Integer(to);
                }
                if self.accept(less, self.strikes.clone())? {
                    shorter = true;
                    break;
                }
            }
        }
        Ok(shorter)
    }

    /// Takes options away; what is required stays, because no file loads without it.
    fn options(&mut self) -> Result<bool, CliError> {
        let mut shorter = false;
        for path in paths(&self.best).iter().filter(|path| !COUNTS.contains(&path.leaf())) {
            let mut less = self.best.clone();
            take(&mut less, path);
            shorter |= less != self.best && self.accept(less, self.strikes.clone())?;
        }
        Ok(shorter)
    }
}

/// A scope without the phase of a campaign around it.
fn unphased(scope: &str) -> &str {
    scope.strip_prefix("rebind/").unwrap_or(scope)
}

/// Whether whatever is bound is let go of, so that a leak is one, and before faults end too.
fn lets_go(scenario: &Scenario) -> bool {
    let mut bound = false;
    scenario.step.iter().all(|step| {
        match step {
            Step::Probe(_) => bound = true,
            Step::Remove(_) => bound = false,
            _ => {}
        }
        !(bound && matches!(step, Step::Recover(_)))
    }) && !bound
}
