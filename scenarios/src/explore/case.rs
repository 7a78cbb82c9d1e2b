//! One case: a scenario with faults planned, run and judged.
//!
//! The scenario's steps run as they stand (shortened by its `[explore]` table), then a phase "rebind" probes again,
//! does a little I/O, shuts down and removes. Each removal, and that shutdown, finds disks with requests in flight that
//! nobody waits for. After that nothing may be left. Then, on the same kernel and with no faults, probe, a verified
//! round trip and remove must work. Neighbours: `phases`, which lists these steps; `observer`, `lab`.

use std::sync::Arc;

use lowzone_device::misbehave::{Mishap, Script};
use lowzone_guest_mem::trace::{Producer, Record};
use serde::{Deserialize, Serialize};

use super::detector::{Detected, Detector, Reasons};
use super::observer::{Observer, Seen};
use super::phases::{Phased, Phases};
use super::place::{Place, Strike};
use crate::kit::Kit;
use crate::lab::{Control, Lab, LabError, Verify};
use crate::result::RunResult;
use crate::spec::{Scenario, Step};
use crate::trace;
use crate::world::{Exit, Schedule};

/// Points that one case may pass: a hundred times what a clean one does.
const FUEL: u64 = 2_000_000;

/// How a case ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Something failed, was said to have failed, and left nothing behind.
    FailedRight,
    /// Everything worked all the same: a fallback, or a fault that nobody needs to notice.
    Absorbed,
    /// The driver mishandled it.
    Wrong,
}

/// A judged case.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The verdict.
    pub verdict: Verdict,
    /// What was wrong, the first thing first; empty unless it was wrong.
    pub why: Vec<String>,
    /// Who told; `None` unless it was wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detector: Option<Detected>,
    /// Whether every planned fault struck.
    pub struck: bool,
    /// The source line of the point that was struck.
    pub site: String,
    /// Whether a real machine can do this, or only injection.
    pub natural: bool,
    /// The digest of the run.
    pub digest: String,
    /// The events before the first finding, or before the fault where none was made; empty unless it was wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub record: Vec<String>,
    /// How many actors could go on at each choice point of an order: a digit each.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub widths: String,
    /// The points that a second fault could strike, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub window: Vec<String>,
}

/// A scenario, made ready for many cases.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Its name.
    pub name: String,
    /// It, shortened.
    pub scenario: Scenario,
    /// The world's seed.
    pub seed: u64,
    /// Whose drivers and devices it names.
    pub kit: Kit,
    /// Whether its steps are all that is done.
    pub as_written: bool,
}

/// What to keep of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Keep {
    /// List every point that can be struck.
    pub points: bool,
    /// Keep every event, for [`Lab::take_events`].
    pub events: bool,
    /// Stop in the debugger at the first point after this event.
    pub stop_at: Option<u64>,
}

/// What a run with an observer showed.
pub struct Observed {
    /// How the faulty part went.
    pub result: RunResult,
    /// How the clean part after it went; `None` where no kernel was left to go on.
    pub recovery: Option<RunResult>,
    /// How CPUs ended that did not finish.
    pub exits: Vec<Exit>,
    /// The points, if they were listed.
    pub points: Vec<Seen>,
    /// Where in the list the first fault struck.
    pub hit_at: Option<usize>,
    /// The events before the first fault struck.
    pub before_hit: Vec<(Producer, Record)>,
    /// Requests that fail by the scenario's own story.
    pub planned: u64,
    /// Whether every planned fault struck.
    pub struck: bool,
    /// Interrupt messages sent.
    pub messages: u64,
    /// Requests that the busiest device completed.
    pub completions: u64,
    /// What devices can get wrong at a completion.
    pub mishaps: Vec<Mishap>,
    /// Whether any device can be pulled out.
    pub removable: bool,
    /// How many actors could go on at each choice point of an order.
    pub widths: Vec<u8>,
    /// The lab, for whoever wants its record.
    pub lab: Lab,
}

impl Observed {
    /// The events of the faulty part, in order; empty unless they were kept, and after the first call.
    ///
    /// The record goes on through the recovery, which no observer sees.
    pub fn recorded(&self) -> Vec<Record> {
        let faulty = usize::try_from(self.result.events).unwrap_or(usize::MAX);
        self.lab.take_events().into_iter().map(|(_, record)| record).take(faulty).collect()
    }

    /// The events before the first finding, or before the fault where no finding was made, one line each.
    fn record_of_failure(&self) -> Vec<String> {
        let (kernel, devices) = (self.lab.kernel(), self.lab.devices());
        let found = trace::around(kernel, 1, &devices);
        if found.is_empty() { trace::rows(kernel, &self.before_hit, &devices) } else { found }
    }
}

impl Prepared {
    /// Shortens a scenario of stock kinds as its `[explore]` table says.
    pub fn new(name: &str, scenario: &Scenario, seed: u64) -> Self {
        Self::with_kit(&Kit::STOCK, name, scenario, seed)
    }

    /// [`Prepared::new`] with the kinds of a kit.
    pub fn with_kit(kit: &Kit, name: &str, scenario: &Scenario, seed: u64) -> Self {
        let mut scenario = scenario.clone();
        let requests = scenario.explore.requests;
        for step in &mut scenario.step {
            match step {
                Step::Io(io) => io.requests = io.requests.min(requests),
                Step::Exercise(exercise) => exercise.times = exercise.times.min(requests),
                Step::Packets(packets) => packets.count = packets.count.min(requests),
                Step::Clear(clear) => clear.blocks = clear.blocks.min(requests),
                _ => {}
            }
        }
        Self { name: name.to_owned(), scenario, seed, kit: *kit, as_written: false }
    }

    /// A scenario whose steps are all that a case does, in full.
    pub fn as_written(kit: &Kit, name: &str, scenario: &Scenario, seed: u64) -> Self {
        Self { name: name.to_owned(), scenario: scenario.clone(), seed, kit: *kit, as_written: true }
    }

    /// The first step that has the driver work: the proof that it does.
    pub(super) fn work(&self) -> Option<&Step> {
        self.scenario.step.iter().find(|step| matches!(step, Step::Io(_) | Step::Exercise(_) | Step::Packets(_)))
    }

    /// The order of events that the strikes ask for.
    fn schedule(&self, strikes: &[Strike]) -> Schedule {
        let asked = strikes.iter().find_map(|strike| match strike {
            Strike::Schedule { nth } => Some(Schedule::pct(self.seed, *nth)),
            Strike::Order { exceptions } => Some(Schedule::choices(exceptions)),
            _ => None,
        });
        asked.unwrap_or(Schedule::Uniform)
    }

    /// Runs the scenario with `strikes` planned.
    ///
    /// # Errors
    /// [`LabError`] if the scenario can't be set up.
    pub fn observe(&self, strikes: &[Strike], keep: Keep) -> Result<Observed, LabError> {
        let control = Arc::new(Control::default());
        let mut lab = Lab::with_kit(&self.kit, &self.name, self.scenario.clone(), self.seed, Verify::Bytes, control)?;
        lab.world().set_fuel(FUEL);
        lab.world().stop_at(keep.stop_at);
        if keep.events {
            lab.capture();
        }
        lab.world().observe(Some(Observer::new(strikes, keep.points)));
        lab.world().schedule(self.schedule(strikes));
        plan_device(&lab, strikes);
        let phases = Phases::of(self, strikes);
        let mut exits = Self::go(&mut lab, &phases.faulty, 1);
        let messages = lab.wire().messages();
        let completions = lab.scripts().map(Script::completions).max().unwrap_or(0);
        let mishaps = mishaps(&lab);
        let removable = lab.wire().removable();
        let mut observer = lab.world().observe(None).unwrap_or_default();
        let widths = lab.world().schedule(Schedule::Uniform);
        // In another order a fault's place may not be passed.
        let ordered = !strikes.iter().all(Strike::is_fault);
        let struck = ordered || (observer.all_hit() && device_struck(&lab, strikes, messages));
        plan_device(&lab, &[]);
        lab.replug();
        let mut result = lab.finish();
        let recovery = if exits.is_empty() && !phases.clean.is_empty() {
            let before = result.findings.len();
            exits = Self::go(&mut lab, &phases.clean, 1000);
            let mut recovery = lab.finish();
            recovery.findings.drain(..before.min(recovery.findings.len()));
            Some(recovery)
        } else {
            None
        };
        result.log.dedup();
        let planned = self.scenario.expect.failed_requests;
        let (points, hit_at, before_hit) = (observer.take_list(), observer.hit_at(), observer.take_before_hit());
        Ok(Observed {
            result,
            recovery,
            exits,
            points,
            hit_at,
            before_hit,
            planned,
            struck,
            messages,
            completions,
            mishaps,
            removable,
            widths,
            lab,
        })
    }

    /// Does steps, numbered from `first` on; exits that were no proper end.
    fn go(lab: &mut Lab, steps: &[Phased], first: u64) -> Vec<Exit> {
        let mut number = first;
        for (phase, step) in steps {
            lab.set_phase(*phase);
            let exits = match step {
                // What a campaign adds has no number of its own.
                Step::InFlight(_) | Step::Shutdown(_) => lab.unnumbered(step),
                _ => {
                    number += 1;
                    lab.step(step, number - 1)
                }
            };
            let exits = improper(exits);
            if !exits.is_empty() {
                return exits;
            }
        }
        Vec::new()
    }

    /// Runs one case and judges it.
    ///
    /// # Errors
    /// [`LabError`] if the scenario can't be set up.
    pub fn judge(&self, strikes: &[Strike]) -> Result<Outcome, LabError> {
        let observed = self.observe(strikes, Keep { points: true, ..Keep::default() })?;
        Ok(judge(strikes, &observed))
    }
}

fn improper(exits: Vec<Exit>) -> Vec<Exit> {
    exits.into_iter().filter(|&exit| exit != Exit::Finished).collect()
}

fn plan_device(lab: &Lab, strikes: &[Strike]) {
    lab.wire().plan_mishap(None);
    lab.scripts().for_each(Script::clear);
    for strike in strikes {
        match strike {
            Strike::Irq { what, nth, persistent } => lab.wire().plan_mishap(Some((*what, *nth, *persistent))),
            Strike::Completion { what, nth, persistent } => {
                lab.scripts().for_each(|script| script.plan(*nth, *what, *persistent));
            }
            _ => {}
        }
    }
}

/// What at least one device can get wrong, each once.
fn mishaps(lab: &Lab) -> Vec<Mishap> {
    let can = |what: &Mishap| lab.scripts().any(|script| script.mishaps().contains(what));
    Mishap::ALL.into_iter().filter(can).collect()
}

fn device_struck(lab: &Lab, strikes: &[Strike], messages: u64) -> bool {
    strikes.iter().all(|strike| match strike {
        Strike::Irq { nth, .. } => messages > *nth,
        Strike::Completion { .. } => lab.scripts().any(Script::struck),
        _ => true,
    })
}

/// Errnos that a probe may return for a class.
fn fits(strike: &Strike, errno: i32) -> bool {
    match strike.class() {
        "mask" => errno == -5,
        "irq-vector" => matches!(errno, -12 | -28),
        "page" | "slab" | "coherent" | "map" | "swiotlb-slot" | "ioremap" | "percpu" => errno == -12,
        // What a broken device looks like depends on where it broke.
        _ => errno < 0,
    }
}

/// The points that a second fault could strike: what was passed after the first, in the same phase.
fn window(strikes: &[Strike], seen: &Observed) -> Vec<Place> {
    let ([Strike::Fail { persistent: false, .. }], Some(hit)) = (strikes, seen.hit_at) else { return Vec::new() };
    let phase = |place: &Place| place.scope.split('/').next().map(str::to_owned);
    let Some(first) = seen.points.get(hit).map(|point| phase(&point.place)) else { return Vec::new() };
    let after = seen.points.iter().skip(hit + 1).take_while(|point| phase(&point.place) == first);
    after.filter(|point| point.place.class.may_fail()).map(|point| point.place.clone()).collect()
}

/// What was wrong with the faulty part.
fn faulty_reasons(strikes: &[Strike], seen: &Observed, why: &mut Reasons) {
    let result = &seen.result;
    for exit in &seen.exits {
        let text = match exit {
            Exit::Panicked => "the driver panicked",
            Exit::Halted => "a CPU stopped for good",
            _ => "a CPU was still parked at the end",
        };
        why.add(Detector::Hang, text);
    }
    for finding in &result.findings {
        why.add(Detected::finding(&finding.name), finding.text.as_str());
    }
    result.leaks.iter().for_each(|leak| why.add(Detector::Leak, leak.as_str()));
    for row in result.io.iter().filter(|row| row.mismatched > 0) {
        let text =
            format!("false success: {} reads of {} gave other bytes than were written", row.mismatched, row.label);
        why.add(Detector::FalseSuccess, text);
    }
    for row in result.exercises.iter().filter(|row| row.wrong > 0) {
        why.add(Detector::FalseSuccess, format!("false success: {} results of {} are wrong", row.wrong, row.label));
    }
    for row in result.packets.iter().filter(|row| row.wrong > 0) {
        why.add(Detector::FalseSuccess, format!("false success: {} packets of {} are wrong", row.wrong, row.label));
    }
    for row in result.dma.iter().filter(|row| row.wrong) {
        why.add(Detector::FalseSuccess, format!("false success: {} brought other bytes than were sent", row.label));
    }
    for errno in &result.probe_errors {
        if !strikes.iter().any(|strike| fits(strike, *errno)) {
            why.add(Detector::Errno, format!("probe returned {errno}, which does not say what failed"));
        }
    }
    let injected = strikes.iter().any(Strike::is_fault);
    if !injected && result.failed_requests > seen.planned {
        why.add(Detector::Failure, format!("{} requests failed", result.failed_requests));
    }
    if !injected {
        result.errors.iter().for_each(|error| why.add(Detector::Failure, error.as_str()));
    }
}

/// What was wrong with the clean part after it.
fn recovery_reasons(recovery: &RunResult, why: &mut Reasons) {
    let right = recovery.exercises.iter().all(|row| row.wrong == 0) && !recovery.dma.iter().any(|row| row.wrong);
    let right = right && recovery.packets.iter().all(|row| row.wrong == 0);
    // Not whether enough was compared: random reads of what an earlier part wrote are not.
    let io = recovery.io.iter().all(|row| row.mismatched == 0);
    let whole = right && io && recovery.errors.is_empty();
    if !whole || recovery.failed_requests > 0 {
        let bad = recovery.io.iter().filter(|row| row.mismatched > 0);
        let reads = bad.map(|row| format!("{}: {} of {} reads differ", row.label, row.mismatched, row.compared));
        let said: Vec<_> = recovery.errors.iter().cloned().chain(reads).collect();
        let text = format!("it does not work again afterwards: {}", said.join("; "));
        why.add(Detector::Recovery, text);
    }
    for finding in &recovery.findings {
        why.add(Detected::finding(&finding.name), format!("afterwards: {}", finding.text));
    }
    recovery.leaks.iter().for_each(|leak| why.add(Detector::Leak, format!("afterwards: {leak}")));
}

/// The verdict on a run; without strikes it must be clean, and nothing may have failed but what its story has fail.
pub fn judge(strikes: &[Strike], seen: &Observed) -> Outcome {
    let mut why = Reasons::default();
    faulty_reasons(strikes, seen, &mut why);
    if let Some(recovery) = &seen.recovery {
        recovery_reasons(recovery, &mut why);
    }
    let failed = seen.result.failed_requests > seen.planned || !seen.result.probe_errors.is_empty();
    let verdict = match (why.is_empty(), failed) {
        (false, _) => Verdict::Wrong,
        (true, true) => Verdict::FailedRight,
        (true, false) => Verdict::Absorbed,
    };
    let point = seen.hit_at.and_then(|at| seen.points.get(at));
    let record = if verdict == Verdict::Wrong { seen.record_of_failure() } else { Vec::new() };
    Outcome {
        record,
        verdict,
        detector: why.first(),
        why: why.into_texts(),
        struck: seen.struck,
        site: point.map(|point| point.site.to_string()).unwrap_or_default(),
        natural: strikes.iter().all(Strike::is_hardware) || point.is_some_and(|point| point.natural),
        digest: seen.result.digest.clone(),
        widths: seen.widths.iter().map(|&width| char::from(b'0' + width.min(9))).collect(),
        window: window(strikes, seen).iter().map(ToString::to_string).collect(),
    }
}
