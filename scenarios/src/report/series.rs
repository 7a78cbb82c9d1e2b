//! Curves and histograms of bounded size, whatever they are fed.
//!
//! A curve keeps the highest value of each stretch of events; where it has too many points, stretches are joined two by
//! two. Neighbours: `scan` feeds them. Left out: drawing, which `page/plots.js` does.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

/// The points of a curve beyond which stretches are joined.
const POINTS: usize = 600;

/// One curve over the events of a run.
#[derive(Debug, Serialize)]
pub(super) struct Curve {
    name: String,
    unit: &'static str,
    /// The event's number, the time, the value.
    points: Vec<(u64, u64, u64)>,
    /// Events of a stretch.
    stretch: u64,
    peak: u64,
    #[serde(skip)]
    now: u64,
    #[serde(skip)]
    last: (u64, u64),
}

impl Curve {
    pub(super) fn new(name: String, unit: &'static str) -> Self {
        Self { name, unit, points: Vec::new(), stretch: 1, peak: 0, now: 0, last: (0, 0) }
    }

    /// Adds to the value at an event; a value never falls below 0, since a trace may begin in the middle.
    pub(super) fn add(&mut self, (event, ts): (u64, u64), more: u64) {
        self.set((event, ts), self.now.saturating_add(more));
    }

    /// Takes from it.
    pub(super) fn take(&mut self, (event, ts): (u64, u64), less: u64) {
        self.set((event, ts), self.now.saturating_sub(less));
    }

    fn set(&mut self, (event, ts): (u64, u64), value: u64) {
        (self.now, self.last, self.peak) = (value, (event, ts), self.peak.max(value));
        let stretch = self.stretch;
        match self.points.last_mut() {
            Some(point) if point.0 / stretch == event / stretch => point.2 = point.2.max(value),
            _ => self.points.push((event, ts, value)),
        }
        while self.points.len() > POINTS {
            self.stretch = self.stretch.saturating_mul(2);
            let stretch = self.stretch;
            self.points.dedup_by(|later, kept| {
                let same = later.0 / stretch == kept.0 / stretch;
                if same {
                    kept.2 = kept.2.max(later.2);
                }
                same
            });
        }
    }

    /// The curve with its last value at its end.
    pub(super) fn finish(mut self) -> Self {
        let (event, ts) = self.last;
        if self.points.last().is_some_and(|point| point.2 != self.now) {
            self.points.push((event, ts, self.now));
        }
        self
    }
}

/// How often a time came up: four steps to each doubling.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    steps: BTreeMap<u64, u64>,
    count: u64,
    most: u64,
}

/// A histogram as the page has it.
#[derive(Debug, Serialize)]
pub(super) struct Bars {
    count: u64,
    most: u64,
    /// The least time of a step, and how often.
    steps: Vec<(u64, u64)>,
}

/// The least value of the step that a value is in.
fn floor(value: u64) -> u64 {
    let keep = value.checked_ilog2().unwrap_or(0).saturating_sub(2);
    value >> keep << keep
}

impl Histogram {
    pub(super) fn add(&mut self, value: u64) {
        *self.steps.entry(floor(value)).or_default() += 1;
        self.count += 1;
        self.most = self.most.max(value);
    }

    pub(super) fn finish(self) -> Bars {
        Bars { count: self.count, most: self.most, steps: self.steps.into_iter().collect() }
    }
}

/// The so many largest of anything.
#[derive(Debug)]
pub(super) struct Largest {
    most: usize,
    kept: BTreeSet<(u64, u64)>,
    ids: BTreeSet<u64>,
}

impl Largest {
    pub(super) fn new(most: usize) -> Self {
        Self { most, kept: BTreeSet::new(), ids: BTreeSet::new() }
    }

    /// Adds one; the id that had to go for it, which may be its own.
    pub(super) fn add(&mut self, value: u64, id: u64) -> Option<u64> {
        self.kept.insert((value, id));
        self.ids.insert(id);
        if self.kept.len() <= self.most {
            return None;
        }
        let (_, least) = self.kept.pop_first()?;
        self.ids.remove(&least);
        Some(least)
    }

    pub(super) fn has(&self, id: u64) -> bool {
        self.ids.contains(&id)
    }

    /// Ids, of the largest first.
    pub(super) fn ids(&self) -> impl Iterator<Item = u64> {
        self.kept.iter().rev().map(|&(_, id)| id)
    }
}
