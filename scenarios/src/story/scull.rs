//! `scullc`, `scullp`, `scullv`: one workload over LDD3's three memory devices.
//!
//! What differs is where a quantum comes from, and what that wastes: an object of a cache, whole pages, pages that are
//! contiguous in virtual addresses only. At its end two CPUs write to one device at once. The mistake of `scullc`: its
//! cache is destroyed before its objects are freed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowzone_driver::scull::{Backing, QSET, Scull, ScullError};
use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::wait::Completion;

use super::{Part, StoryError, Telling};
use crate::world::Random;

const SECOND: u64 = 1_000_000_000;
/// Bytes written one after the other.
const BYTES: usize = 40_000;
/// Bytes of one write and one read.
const CHUNK: usize = 1000;

/// What the two CPUs share.
#[derive(Default)]
struct Shared {
    scull: Mutex<Option<Arc<Scull>>>,
    made: Completion,
    written: Completion,
}

impl Shared {
    fn scull(&self) -> MutexGuard<'_, Option<Arc<Scull>>> {
        self.scull.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Over a slab cache.
pub(super) fn scullc() -> Vec<Part> {
    parts(Backing::scullc)
}

/// Over pages.
pub(super) fn scullp() -> Vec<Part> {
    parts(|_| Ok(Backing::scullp()))
}

/// Over virtually contiguous memory.
pub(super) fn scullv() -> Vec<Part> {
    parts(|_| Ok(Backing::scullv()))
}

/// The first CPU tells the workload alone; then both write every other chunk of the same stretch at once.
fn parts(backing: fn(&Cpu<'_>) -> Result<Backing, ScullError>) -> Vec<Part> {
    let first = Arc::new(Shared::default());
    let second = first.clone();
    vec![
        Box::new(move |telling| {
            let told = backing(telling.cpu()).map_err(StoryError::from).and_then(|made| tell(telling, made, &first));
            // Whatever came of it, nobody waits for it.
            first.made.complete(telling.cpu());
            told
        }),
        Box::new(move |telling| help(telling, &second)),
    ]
}

fn tell(telling: &Telling<'_, '_>, backing: Backing, shared: &Shared) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let scull = Arc::new(Scull::new(backing));
    let mut told = workload(telling, cpu, &scull);
    if told.is_ok() && !telling.makes("no-trim") {
        told = together(telling, &scull, shared);
    }
    match Arc::into_inner(scull) {
        Some(scull) if telling.makes("no-trim") => scull.remove_untrimmed(cpu),
        Some(scull) => scull.remove(cpu),
        None => telling.expect("the device's last user is this CPU", true, false)?,
    }
    told
}

/// Both CPUs write, and what is there afterwards is what both wrote.
fn together(telling: &Telling<'_, '_>, scull: &Arc<Scull>, shared: &Shared) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    *shared.scull() = Some(scull.clone());
    shared.made.complete(cpu);
    let content = content(scull);
    let mine = every_other(cpu, scull, &content, 0);
    let waited = shared.written.wait_timeout(cpu, 60 * SECOND);
    shared.scull().take();
    mine?;
    waited?;
    let mut back = vec![0; BYTES];
    let read = read(cpu, scull, 0, &mut back)?;
    telling.expect("bytes that two CPUs wrote at once, read back", BYTES, read)?;
    telling.expect("they are what both wrote", true, back == content)?;
    telling.expect("quanta then", BYTES.div_ceil(scull.quantum()), scull.counts(cpu).1)
}

fn help(telling: &Telling<'_, '_>, shared: &Shared) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    shared.made.wait_timeout(cpu, 60 * SECOND)?;
    let Some(scull) = shared.scull().clone() else { return Ok(()) };
    let written = every_other(cpu, &scull, &content(&scull), 1);
    drop(scull);
    shared.written.complete(cpu);
    Ok(written?)
}

fn content(scull: &Scull) -> Vec<u8> {
    let mut content = vec![0; BYTES];
    Random::new(scull.quantum() as u64 + 1).fill(&mut content);
    content
}

/// Writes every other chunk, from the first or the second on.
fn every_other(cpu: &Cpu<'_>, scull: &Scull, content: &[u8], first: usize) -> Result<(), ScullError> {
    let mut chunks = content.chunks(CHUNK).enumerate().skip(first).step_by(2);
    chunks.try_for_each(|(nth, chunk)| write(cpu, scull, (nth * CHUNK) as u64, chunk))
}

fn workload(telling: &Telling<'_, '_>, cpu: &Cpu<'_>, scull: &Scull) -> Result<(), StoryError> {
    let quantum = scull.quantum();
    telling.fact("bytes of a quantum", quantum);
    let mut content = vec![0; BYTES];
    Random::new(quantum as u64).fill(&mut content);
    write(cpu, scull, 0, &content)?;
    let used = BYTES.div_ceil(quantum);
    telling.expect(format_args!("quanta for {BYTES} bytes"), used, scull.counts(cpu).1)?;
    telling.fact("bytes allocated and not used", used * quantum - BYTES);
    let mut back = vec![0; BYTES];
    let read = read(cpu, scull, 0, &mut back)?;
    telling.expect("bytes read back", BYTES, read)?;
    telling.expect("they are what was written", true, back == content)?;
    let far = (quantum * QSET) as u64 + 7;
    write(cpu, scull, far, &content[..CHUNK])?;
    telling.expect("items and quanta with one write beyond the first item", format!("2 and {}", used + 1), {
        let (items, quanta) = scull.counts(cpu);
        format!("{items} and {quanta}")
    })?;
    telling.expect("bytes read from the hole before it", 0, scull.read(cpu, far - 7 - CHUNK as u64, &mut back)?)?;
    telling.expect("size", far + CHUNK as u64, scull.size(cpu))?;
    if !telling.makes("no-trim") {
        scull.trim(cpu);
        telling.expect("size after a trim", 0, scull.size(cpu))?;
    }
    Ok(())
}

fn write(cpu: &Cpu<'_>, scull: &Scull, at: u64, from: &[u8]) -> Result<(), ScullError> {
    for (chunk, start) in from.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
        let mut done = 0;
        while done < chunk.len() {
            done += scull.write(cpu, at + (start + done) as u64, &chunk[done..])?;
        }
    }
    Ok(())
}

/// Reads until the buffer is full or nothing comes; tells how many bytes came.
fn read(cpu: &Cpu<'_>, scull: &Scull, at: u64, to: &mut [u8]) -> Result<usize, ScullError> {
    let mut done = 0;
    while done < to.len() {
        let end = to.len().min(done + CHUNK);
        match scull.read(cpu, at + done as u64, &mut to[done..end])? {
            0 => break,
            len => done += len,
        }
    }
    Ok(done)
}
