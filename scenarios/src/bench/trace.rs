//! `lowzone bench trace`: what an event costs where it is recorded.
//!
//! Interleaved rounds beside a copy of as many bytes, since absolute times on a shared machine say little; the count of
//! instructions, which repeats, is the tests' (`trace_cost`). Neighbours: `guest_mem::trace`, `trace::Writer`. Left out:
//! reading a trace.

use std::hint::black_box;
use std::io::{Write, sink};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use comfy_table::Table;
use lowzone_guest_mem::trace::{Kind, Producer, Record, Recorder};

use super::percentile;
use crate::cli::CliError;
use crate::trace::writer::Joined;
use crate::trace::{Header, TraceError, Writer};

/// Events a round.
const EVENTS: u32 = 100_000;
/// Rounds before anything is counted: memory is touched for the first time.
const WARM_UP: usize = 2;

/// A way to record, and what it is called.
struct Way {
    name: &'static str,
    recorder: Recorder,
    /// Events that it keeps of a round.
    kept: u32,
}

impl Way {
    fn new(name: &'static str, kept: u32) -> Self {
        Self { name, recorder: Recorder::default(), kept }
    }

    /// Nanoseconds of an event, and whether as many were kept as should be.
    fn round(&self) -> (f64, bool) {
        let before = self.recorder.events();
        let begun = Instant::now();
        for n in 0..EVENTS {
            let n = u64::from(black_box(n));
            self.recorder.emit(Producer(0), Record { ts: n, addr: n, len: 4096, kind: Kind::PortRead, dev: 1, tag: n });
        }
        let ns = begun.elapsed().as_secs_f64() * 1e9 / f64::from(EVENTS);
        (ns, self.recorder.events() - before == u64::from(self.kept))
    }
}

fn ways() -> Result<Vec<Way>, TraceError> {
    let masked = Way::new("its kind masked out", 0);
    masked.recorder.mask([Kind::DmaMapPage]);
    let streamed = Way::new("recorded and streamed into a trace", EVENTS);
    let header = Header { program: "bench".to_owned(), clock: "virtual-ns".to_owned(), cpus: 1, ..Header::default() };
    streamed.recorder.stream(Box::new(Joined::new(Writer::new(sink(), &header, &[], None)?)));
    let shared = Way::new("recorded where several threads write", EVENTS);
    shared.recorder.share();
    Ok(vec![masked, Way::new("recorded", EVENTS), streamed, shared])
}

/// Nanoseconds of a copy of 32 bytes.
fn copy(from: &[u8; 32], to: &mut [u8; 32]) -> f64 {
    let begun = Instant::now();
    for _ in 0..EVENTS {
        black_box(&mut *to).copy_from_slice(black_box(from));
    }
    begun.elapsed().as_secs_f64() * 1e9 / f64::from(EVENTS)
}

/// Measures for so many seconds and prints a table; exit 1 if an event was lost or kept that should not be.
pub(crate) fn run(seconds: u64) -> Result<ExitCode, CliError> {
    let ways = ways()?;
    let (from, mut to) = ([1; 32], [0; 32]);
    let (limit, begun) = (Duration::from_secs(seconds), Instant::now());
    let (mut rows, mut good) = (Vec::new(), true);
    while rows.len() < WARM_UP + 5 || begun.elapsed() < limit {
        let mut row = vec![copy(&from, &mut to)];
        for way in &ways {
            let (ns, kept) = way.round();
            row.push(ns);
            good &= kept;
        }
        rows.push(row);
    }
    rows.drain(..WARM_UP);
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["an event of 32 bytes", "ns", "fastest", "million/s", "of the copy"]);
    let names = ["copied, and no more"].into_iter().chain(ways.iter().map(|way| way.name));
    for (index, name) in names.enumerate() {
        let of = |index: usize, hundredths| percentile(rows.iter().map(|row: &Vec<f64>| row[index]), hundredths);
        let ns = of(index, 50);
        let figures = [ns, of(index, 0), 1e3 / ns, ns / of(0, 50)];
        table.add_row([name.to_owned()].into_iter().chain(figures.map(|figure| format!("{figure:.1}"))));
    }
    let mut out = anstream::stdout();
    table.lines().try_for_each(|line| writeln!(out, "{}", line.trim_end()))?;
    let kept = if good { "every event kept that should be" } else { "EVENTS WERE LOST or kept though masked" };
    writeln!(out, "{} rounds of {EVENTS} events each; {kept}", rows.len())?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
