//! The campaign itself: every case once, in child processes, in any order, with the same result.
//!
//! Each of the `--jobs` threads feeds a child of its own and takes the next cases from one shared counter. A child that
//! dies, or that runs on without passing a point (`heartbeat`), costs the case it had begun, which is told as such; the rest of its
//! batch goes to the next child. Results are kept by case number, so they don't depend on who ran what.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::case::{Outcome, Verdict};
use super::detector::Detector;
use super::heartbeat;
use super::place::Strike;
use super::token::faults;

/// A child that says nothing for this long, and does not end itself, neither runs nor waits for anything of the lab's.
const SILENCE: Duration = Duration::from_secs(60);
/// Cases that are sent to a child at once.
const BATCH: usize = 16;

/// One case of a campaign.
pub type Case = Vec<Strike>;

/// A case and how it ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    pub number: usize,
    /// Its faults.
    pub faults: Case,
    /// How it ended.
    pub outcome: Outcome,
}

impl Record {
    /// Whether the case was mishandled.
    pub fn is_wrong(&self) -> bool {
        self.outcome.verdict == Verdict::Wrong
    }
}

/// Why a campaign could not be run.
#[derive(Debug, Error)]
pub enum CampaignError {
    /// No child could be started.
    #[error("cannot start a child process: {0}")]
    Spawn(std::io::Error),
}

/// How a campaign is run.
pub struct Campaign<'a> {
    /// The cases.
    pub cases: &'a [Case],
    /// Child processes at once.
    pub jobs: usize,
    /// The child's command line.
    pub command: &'a (dyn Fn() -> Command + Sync),
    /// Told of each case that is done, with the child that did it.
    pub done: &'a (dyn Fn(&Record, u32) + Sync),
    /// Set to end early.
    pub stop: &'a AtomicBool,
    /// End with the first case, in the order of the cases, of which this holds; no record comes after it.
    pub last: Option<&'a (dyn Fn(&Record) -> bool + Sync)>,
}

/// What the threads of a campaign share.
struct Board {
    /// The next case that nobody has taken.
    next: AtomicUsize,
    /// The first case so far that is to be the last; nobody needs those after it.
    last: AtomicUsize,
    records: Mutex<Vec<Option<Record>>>,
}

struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.input = None;
        // A child that is gone already can be neither killed nor waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Worker {
    fn start(command: &(dyn Fn() -> Command + Sync)) -> Result<Self, CampaignError> {
        let mut child = command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(CampaignError::Spawn)?;
        let (send, lines) = mpsc::channel();
        if let Some(output) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if send.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        let input = child.stdin.take();
        Ok(Self { child, input, lines })
    }

    fn send(&mut self, batch: &[(usize, &Case)]) -> bool {
        let Some(input) = &mut self.input else { return false };
        let mut text = String::new();
        for (number, case) in batch {
            text.push_str(&format!("{number} {}\n", faults(case)));
        }
        input.write_all(text.as_bytes()).and_then(|()| input.flush()).is_ok()
    }
}

impl Campaign<'_> {
    /// Runs every case; the records come in the order of the cases.
    ///
    /// # Errors
    /// [`CampaignError::Spawn`].
    pub fn run(&self) -> Result<Vec<Record>, CampaignError> {
        let board = Board {
            next: AtomicUsize::new(0),
            last: AtomicUsize::new(usize::MAX),
            records: Mutex::new(vec![None; self.cases.len()]),
        };
        let failed = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                scope.spawn(|| {
                    if let Err(error) = self.feed(&board) {
                        *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        self.stop.store(true, Ordering::Relaxed);
                    }
                });
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => {
                let last = board.last.into_inner();
                let records = board.records.into_inner().unwrap_or_else(PoisonError::into_inner);
                Ok(records.into_iter().flatten().take_while(|record| record.number <= last).collect())
            }
        }
    }

    fn feed(&self, board: &Board) -> Result<(), CampaignError> {
        let mut worker = Worker::start(self.command)?;
        loop {
            let from = board.next.fetch_add(BATCH, Ordering::Relaxed);
            let to = (from + BATCH).min(self.cases.len());
            let over = from >= to || from > board.last.load(Ordering::Relaxed);
            if over || self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let mut batch: Vec<_> = (from..to).map(|number| (number, &self.cases[number])).collect();
            loop {
                let dead = self.serve(&mut worker, &mut batch, board);
                let last = board.last.load(Ordering::Relaxed);
                if batch.first().is_some_and(|(number, _)| *number > last) {
                    return Ok(());
                }
                if batch.is_empty() {
                    break;
                }
                if dead {
                    worker = Worker::start(self.command)?;
                }
            }
        }
    }

    /// Gives a child its batch and takes the answers; cases that are done leave the batch, until one comes after the
    /// last one. Whether the child died.
    fn serve(&self, worker: &mut Worker, batch: &mut Vec<(usize, &Case)>, board: &Board) -> bool {
        let id = worker.child.id();
        worker.send(batch);
        let mut begun = batch.first().map(|(number, _)| *number);
        let finish = |number: usize, outcome: Outcome, batch: &mut Vec<(usize, &Case)>| {
            let Some(at) = batch.iter().position(|(n, _)| *n == number) else { return };
            let (_, case) = batch.remove(at);
            let record = Record { number, faults: case.clone(), outcome };
            (self.done)(&record, id);
            if self.last.is_some_and(|last| last(&record)) {
                board.last.fetch_min(number, Ordering::Relaxed);
            }
            board.records.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(record);
        };
        while batch.first().is_some_and(|(number, _)| *number <= board.last.load(Ordering::Relaxed)) {
            let line = worker.lines.recv_timeout(SILENCE);
            let death = match line {
                Ok(line) => {
                    match parse(&line) {
                        Some(Line::Begin(number)) => begun = Some(number),
                        Some(Line::Done(number, outcome)) => finish(number, outcome, batch),
                        None => {}
                    }
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => format!("it said nothing for {} s", SILENCE.as_secs()),
                Err(RecvTimeoutError::Disconnected) => death(&mut worker.child),
            };
            let _ = worker.child.kill();
            if let Some(number) = begun.filter(|number| batch.iter().any(|(n, _)| n == number)) {
                finish(number, dead(death), batch);
            } else if let Some((number, _)) = batch.first().copied() {
                finish(number, dead(death), batch);
            }
            return true;
        }
        false
    }
}

enum Line {
    Begin(usize),
    Done(usize, Outcome),
}

fn parse(line: &str) -> Option<Line> {
    let (word, rest) = line.split_once(' ')?;
    match word {
        "begin" => rest.parse().ok().map(Line::Begin),
        "done" => {
            let (number, json) = rest.split_once(' ')?;
            Some(Line::Done(number.parse().ok()?, serde_json::from_str(json).ok()?))
        }
        _ => None,
    }
}

/// How a child ended, in words: stack overflows and aborts are signals.
fn death(child: &mut Child) -> String {
    use std::os::unix::process::ExitStatusExt;
    match child.wait() {
        Ok(status) => match status.signal() {
            Some(11) => "it died of SIGSEGV: a stack overflow".to_owned(),
            Some(6) => "it died of SIGABRT: a panic while unwinding".to_owned(),
            Some(signal) => format!("it died of signal {signal}"),
            None if status.code() == Some(heartbeat::LOOPS.into()) => {
                "it ran on without passing a point: an endless loop".to_owned()
            }
            None => format!("it ended: {status}"),
        },
        Err(error) => format!("it is gone: {error}"),
    }
}

fn dead(why: String) -> Outcome {
    Outcome {
        verdict: Verdict::Wrong,
        why: vec![why],
        detector: Some(Detector::ChildDeath.into()),
        struck: true,
        site: String::new(),
        natural: true,
        digest: String::new(),
        record: Vec::new(),
        widths: String::new(),
        window: Vec::new(),
    }
}
