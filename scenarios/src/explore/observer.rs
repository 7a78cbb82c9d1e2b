//! The observer at every point: counts them by name, and makes the planned ones fail.
//!
//! It hangs on the lockstep world and sees points in the order they are passed. The same world, seed and plan give the
//! same points. Neighbours: `place` (names), `world::lockstep` (caller).

use std::collections::HashMap;

use lowzone_guest_mem::env::{Class, Point};
use lowzone_guest_mem::site::{Scope, Site};
use lowzone_guest_mem::trace::{AROUND, Producer, Record, Recorder};

use super::place::{Place, Strike};

/// A point as it was passed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Its stable name.
    pub place: Place,
    /// Its source line.
    pub site: Site,
    /// Whether a real machine can fail there.
    pub natural: bool,
}

/// What an observer says to a point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Pass,
    Fail,
    Remove,
}

struct Armed {
    strike: Strike,
    hit: bool,
}

/// Counts points, and strikes as planned.
#[derive(Default)]
pub struct Observer {
    counters: HashMap<(Class, Scope), u32>,
    paths: HashMap<Scope, String>,
    armed: Vec<Armed>,
    /// Which point that may fail does, counted from 0, whatever its name; and how many were passed.
    nth: Option<(u64, u64)>,
    /// Every point so far, if they are listed.
    list: Option<Vec<Seen>>,
    /// How many points of the list came before the first hit.
    hit_at: Option<usize>,
    /// The record before the first hit.
    before_hit: Vec<(Producer, Record)>,
}

fn counts(class: Class) -> bool {
    class.may_fail() || matches!(class, Class::Mmio | Class::MmioWrite)
}

impl Observer {
    /// An observer that lists every point that could be struck, and strikes at `strikes`.
    pub fn new(strikes: &[Strike], list: bool) -> Self {
        let armed = strikes.iter().map(|strike| Armed { strike: strike.clone(), hit: false }).collect();
        Self { armed, list: list.then(Vec::new), ..Self::default() }
    }

    /// An observer that fails the `nth` point that may fail, counted from 0, whatever its name.
    pub fn failing(nth: u64) -> Self {
        Self { nth: Some((nth, 0)), ..Self::default() }
    }

    /// Whether the point of [`Observer::failing`] was reached.
    pub fn reached(&self) -> bool {
        self.nth.is_some_and(|(nth, passed)| passed > nth)
    }

    /// The points so far.
    pub fn take_list(&mut self) -> Vec<Seen> {
        self.list.take().unwrap_or_default()
    }

    /// How many points came before the first that was struck.
    pub fn hit_at(&self) -> Option<usize> {
        self.hit_at
    }

    /// The events before the first point that was struck.
    pub fn take_before_hit(&mut self) -> Vec<(Producer, Record)> {
        std::mem::take(&mut self.before_hit)
    }

    /// Keeps the last events of a record, if no point was struck before.
    pub(crate) fn keep_before_hit(&mut self, trace: &Recorder) {
        if self.before_hit.is_empty() {
            self.before_hit = trace.recent_of_all(AROUND);
        }
    }

    /// Whether every planned point was reached.
    pub fn all_hit(&self) -> bool {
        let here = |strike: &Strike| matches!(strike, Strike::Fail { .. } | Strike::Remove { .. });
        self.armed.iter().all(|armed| armed.hit || !here(&armed.strike))
    }

    pub(crate) fn pass(&mut self, point: &Point) -> Answer {
        let class = point.request.class;
        if !counts(class) {
            return Answer::Pass;
        }
        if let Some((nth, passed)) = self.nth.as_mut().filter(|_| class.may_fail()) {
            *passed += 1;
            if *passed == *nth + 1 {
                return Answer::Fail;
            }
        }
        let scope = point.owner.scope;
        let counter = self.counters.entry((class, scope)).or_default();
        let occurrence = *counter;
        *counter += 1;
        if self.list.is_none() && self.armed.is_empty() {
            return Answer::Pass;
        }
        let path = self.paths.entry(scope).or_insert_with(|| scope.to_string());
        let mut answer = Answer::Pass;
        for armed in &mut self.armed {
            answer = match strikes(armed, class, path, occurrence) {
                Answer::Pass => answer,
                struck => struck,
            };
        }
        if let Some(list) = &mut self.list {
            if answer != Answer::Pass {
                self.hit_at.get_or_insert(list.len());
            }
            let place = Place { class, scope: path.clone(), occurrence };
            list.push(Seen { place, site: point.owner.site, natural: point.natural });
        }
        answer
    }
}

fn strikes(armed: &mut Armed, class: Class, path: &str, occurrence: u32) -> Answer {
    let (place, persistent, answer) = match &armed.strike {
        Strike::Fail { place, persistent } => (place, *persistent, Answer::Fail),
        Strike::Remove { place } => (place, false, Answer::Remove),
        Strike::Irq { .. } | Strike::Completion { .. } | Strike::Schedule { .. } | Strike::Order { .. } => {
            return Answer::Pass;
        }
    };
    if armed.hit {
        return if persistent && place.class == class { answer } else { Answer::Pass };
    }
    armed.hit = place.class == class && place.occurrence == occurrence && place.scope == path;
    if armed.hit { answer } else { Answer::Pass }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lowzone_guest_mem::fault::Request;
    use lowzone_guest_mem::site::Owner;

    fn point(class: Class, scope: Scope) -> Point {
        Point {
            request: Request::new(class, 0),
            owner: Owner { site: Site::default(), scope },
            natural: true,
            preemptible: true,
        }
    }

    #[test]
    fn a_point_is_struck_by_class_scope_and_occurrence_once_or_from_then_on() {
        let (a, b) = (Scope::ROOT.enter("observer-a"), Scope::ROOT.enter("observer-b"));
        let passes = [(Class::Slab, a), (Class::Slab, b), (Class::Page, a), (Class::Slab, a), (Class::Slab, b)];
        for (strike, expected) in [
            ("slab:observer-a#1", [false, false, false, true, false]),
            ("slab:observer-b#0*", [false, true, false, true, true]),
            ("map:observer-a#0", [false; 5]),
        ] {
            let mut observer = Observer::new(&[strike.parse().unwrap()], true);
            let seen: Vec<_> =
                passes.iter().map(|&(class, scope)| observer.pass(&point(class, scope)) == Answer::Fail).collect();
            assert_eq!(seen, expected, "{strike}");
            assert_eq!(observer.all_hit(), expected.contains(&true));
            assert_eq!(observer.hit_at(), expected.iter().position(|&hit| hit));
            assert_eq!(observer.take_list().len(), 5);
        }
    }
}
