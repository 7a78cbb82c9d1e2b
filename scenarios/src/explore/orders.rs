//! Every order of events with a bounded number of exceptions, each once.
//!
//! The order without exceptions says at which choice points another actor could have gone on; each of these is an
//! order with one exception, and so on: an exception is only ever added behind the last. Neighbours:
//! `world::lockstep`'s schedules, which carry an order out; `campaign`, which runs them in waves.

use serde::Serialize;

use super::campaign::{Case, Record};
use super::place::Strike;
use crate::world::Exception;

/// More would run for hours.
const MOST: usize = 200_000;

/// Orders that were run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Orders {
    /// The most exceptions in one.
    pub exceptions: usize,
    /// How many were run.
    pub run: usize,
    /// Whether there are no others.
    pub complete: bool,
}

/// Runs every order with at most so many exceptions, wave by wave; `first` ends with the first wrong one.
pub(super) fn exhaust<E>(
    exceptions: usize,
    first: bool,
    mut run: impl FnMut(&[Case]) -> Result<Vec<Record>, E>,
) -> Result<(Vec<Record>, Orders), E> {
    let mut wave: Vec<Case> = vec![vec![Strike::Order { exceptions: Vec::new() }]];
    let mut all: Vec<Record> = Vec::new();
    let mut complete = true;
    for depth in 0..=exceptions {
        let room = MOST.saturating_sub(all.len());
        complete &= wave.len() <= room;
        wave.truncate(room);
        let records = run(&wave)?;
        wave = if depth < exceptions { records.iter().flat_map(next).collect() } else { Vec::new() };
        let wrong = records.iter().any(Record::is_wrong);
        all.extend(records);
        if first && wrong {
            complete = false;
            break;
        }
    }
    let orders = Orders { exceptions, run: all.len(), complete };
    Ok((all, orders))
}

/// The orders with one exception more, behind the others.
fn next(record: &Record) -> Vec<Case> {
    let [Strike::Order { exceptions }] = record.faults.as_slice() else { return Vec::new() };
    let from = exceptions.last().map_or(0, |(at, _)| *at + 1);
    let widths = (0_u32..).zip(record.outcome.widths.bytes()).filter(|(at, _)| *at >= from);
    let others =
        widths.flat_map(|(at, width)| (1..u32::from(width.saturating_sub(b'0'))).map(move |other| (at, other)));
    let with = |exception: Exception| exceptions.iter().copied().chain([exception]).collect();
    others.map(|exception| vec![Strike::Order { exceptions: with(exception) }]).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    use super::*;
    use crate::explore::case::{Outcome, Verdict};

    /// A world with three choice points: two, three and two could go on.
    fn run(wave: &[Case]) -> Result<Vec<Record>, Infallible> {
        let outcome = |case: &Case| Outcome {
            verdict: if case[0].to_string() == "order#1=2" { Verdict::Wrong } else { Verdict::Absorbed },
            why: Vec::new(),
            detector: None,
            struck: true,
            site: String::new(),
            natural: true,
            digest: String::new(),
            record: Vec::new(),
            widths: "232".to_owned(),
            window: Vec::new(),
        };
        Ok(wave.iter().map(|case| Record { number: 0, faults: case.clone(), outcome: outcome(case) }).collect())
    }

    #[test]
    fn every_order_comes_once() {
        for (exceptions, orders) in [(0, 1), (1, 1 + 4), (2, 1 + 4 + 5), (3, 2 * 3 * 2), (9, 2 * 3 * 2)] {
            let (all, summary) = exhaust(exceptions, false, run).unwrap();
            let names: BTreeSet<_> = all.iter().map(|record| record.faults[0].to_string()).collect();
            assert_eq!((names.len(), all.len(), summary.complete), (orders, orders, true), "{names:?}");
        }
        let (all, summary) = exhaust(3, true, run).unwrap();
        assert_eq!((all.len(), summary.complete), (5, false));
    }
}
