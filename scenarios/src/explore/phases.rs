//! What a case does: the scenario's steps, those that a campaign adds, and those without faults that follow.
//!
//! A file with strikes of its own is done as it is written: what a campaign adds stands in it where it matters.
//! Neighbours: `case`, which does them; `shrink`, which writes them out.

use super::case::Prepared;
use super::place::Strike;
use crate::spec::{InFlightStep, ProbeStep, RecoverStep, RemoveStep, ShutdownStep, Step};

/// A step, and the span that is open around it.
pub(super) type Phased = (Option<&'static str>, Step);

/// The steps of a case.
#[derive(Default)]
pub(super) struct Phases {
    /// With faults.
    pub(super) faulty: Vec<Phased>,
    /// After them, without.
    pub(super) clean: Vec<Phased>,
}

/// Whether a campaign has this step do something else in half of its schedules: lets go of devices that are in use.
fn under_io(strikes: &[Strike]) -> bool {
    strikes.iter().any(|strike| matches!(strike, Strike::Schedule { nth } if nth % 2 == 1))
}

impl Phases {
    /// Those of a case.
    pub(super) fn of(prepared: &Prepared, strikes: &[Strike]) -> Self {
        let steps = &prepared.scenario.step;
        if prepared.as_written {
            let mut parts = steps.splitn(2, |step| matches!(step, Step::Recover(_)));
            let mut part = || parts.next().unwrap_or_default().iter().map(|step| (None, step.clone())).collect();
            return Self { faulty: part(), clean: part() };
        }
        let under_io = under_io(strikes);
        let remove = || Step::Remove(RemoveStep { under_io });
        let mut faulty: Vec<Phased> = Vec::new();
        for step in steps {
            match step {
                Step::Remove(_) => faulty.extend([Step::InFlight(InFlightStep {}), remove()].map(|step| (None, step))),
                step => faulty.push((None, step.clone())),
            }
        }
        let probe = || Step::Probe(ProbeStep {});
        let let_go = [Step::InFlight(InFlightStep {}), Step::Shutdown(ShutdownStep { under_io }), remove()];
        let again = [probe()].into_iter().chain(prepared.work().cloned()).chain(let_go);
        faulty.extend(again.map(|step| (Some("rebind"), step)));
        let (first, last) = (Step::Remove(RemoveStep::default()), Step::Remove(RemoveStep::default()));
        let clean = [first, probe()].into_iter().chain(prepared.work().cloned()).chain([last]);
        Self { faulty, clean: clean.map(|step| (Some("recovery"), step)).collect() }
    }

    /// All of them, as a file has them.
    pub(super) fn written(self) -> Vec<Step> {
        // The devices are let go of already: the first step without faults is for those that a fault left bound.
        let clean = self.clean.into_iter().skip(1);
        let recover = (None, Step::Recover(RecoverStep {}));
        self.faulty.into_iter().chain([recover]).chain(clean).map(|(_, step)| step).collect()
    }
}
