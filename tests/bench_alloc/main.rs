//! `lowzone bench alloc`'s other half: our allocators beside those of other crates, in one process and in turns.
//!
//! A program of its own, since the others' calls are unsafe and `lowzone` forbids that; `lowzone bench alloc` starts it.
//! Each round measures every job on every side once, so that a ratio compares what was measured side by side; absolute
//! times on a shared machine mean little. Ours go through the whole API of a driver: mask, context, point, event, call
//! site, zones and marks; the others only give memory.
#![deny(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a measurement that can't go on ends")]

mod heap;
mod job;
mod ours;
mod parts;
mod rival_pages;
mod table;

use std::time::{Duration, Instant};

use heap::Heap;
use job::{Job, Side, measure};
use ours::{Objects, Pages};
use rival_pages::{Bits, Buddy};
use table::{Goal, Row};

const LEAST_ROUNDS: usize = 5;

/// Measures the jobs on all sides in turns until the time is over.
macro_rules! rounds {
    ($limit:expr, $jobs:expr, [$($side:expr),+ $(,)?]) => {{
        let names = vec![$($side.name()),+];
        let mut rows: Vec<Row> = $jobs.iter().map(|&(job, goals)| Row::new(job, names.clone(), goals)).collect();
        // A first round that does not count: it finds cold lists, pages never touched and a slow clock.
        for row in &rows {
            let _ = [$(measure(&$side, row.job)),+];
        }
        let begun = Instant::now();
        for round in 0.. {
            if round >= LEAST_ROUNDS && begun.elapsed() > $limit {
                break;
            }
            for row in &mut rows {
                let job = row.job;
                row.round(vec![$(measure(&$side, job)),+]);
            }
        }
        rows
    }};
}

fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(20);
    let limit = Duration::from_secs(seconds) / 2;
    let (pages, checked) = (Pages::new("lowzone"), Objects::sanitized("sanitized"));
    let bits = Bits::new();
    let pages = rounds!(limit, PAGES, [pages, bits, Buddy::new()]);
    table::print("pages (ns for an allocation and a free)", &pages);
    let plain = Objects::new("lowzone");
    let objects = rounds!(
        limit,
        OBJECTS,
        [
            plain,
            checked,
            Heap::new("mimalloc", mimalloc::MiMalloc),
            Heap::new("jemalloc", tikv_jemallocator::Jemalloc),
            heap::buddy(),
            Heap::new("glibc", std::alloc::System),
        ]
    );
    table::print("objects (ns for an allocation and a free)", &objects);
    parts::print(&plain);
}

/// Goals against page allocators; ours is held against the fastest of the others where no name is given.
const PAGES: &[(Job, &[Goal])] = &[
    (Job::pair(0, 1), &[Goal { name: "A1", against: None, most: 0.40 }]),
    (Job::pair(0, 2), &[Goal { name: "A2", against: None, most: 0.125 }]),
    (Job::batch(0, 1), &[Goal { name: "A3", against: None, most: 1.5 }]),
    (Job::batch(0, 2), &[Goal { name: "A4", against: None, most: 1.5 }]),
    (Job::batch(3, 2), &[Goal { name: "A4", against: None, most: 1.5 }]),
];

/// Goals against heaps.
const OBJECTS: &[(Job, &[Goal])] = &[
    (Job::pair(64, 1), &[Goal { name: "B1", against: Some("mimalloc"), most: 1.0 }]),
    (Job::pair(64, 2), &[Goal { name: "B1", against: Some("mimalloc"), most: 1.0 }]),
    (Job::pair(256, 1), &[Goal { name: "B1", against: Some("mimalloc"), most: 1.0 }]),
    (Job::pair(256, 2), &[Goal { name: "B1", against: Some("mimalloc"), most: 1.0 }]),
    (Job::batch(64, 1), &[Goal { name: "B2", against: Some("mimalloc"), most: 1.2 }]),
    (Job::batch(64, 2), &[Goal { name: "B2", against: Some("mimalloc"), most: 1.5 }]),
    (
        Job::handoff(64),
        &[
            Goal { name: "B3", against: Some("jemalloc"), most: 1.5 },
            Goal { name: "B3", against: Some("glibc"), most: 0.5 },
        ],
    ),
    (Job::pair(4096, 1), &[Goal { name: "B4", against: Some("jemalloc"), most: 1.0 }]),
    (Job::batch(4096, 1), &[Goal { name: "B4", against: Some("mimalloc"), most: 1.0 }]),
];
