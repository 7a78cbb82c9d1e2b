//! `scullc`, `scullp`, `scullv`: one workload over LDD3's three memory devices.
//!
//! What differs is where a quantum comes from, and what that wastes: an object of a cache, whole pages, pages that are
//! contiguous in virtual addresses only. The mistake of `scullc`: its cache is destroyed before its objects are freed.

use lowzone_driver::scull::{Backing, QSET, Scull, ScullError};
use lowzone_guest_mem::Cpu;

use super::{StoryError, Telling};
use crate::world::Random;

/// Bytes written one after the other.
const BYTES: usize = 40_000;
/// Bytes of one write and one read.
const CHUNK: usize = 1000;

/// Over a slab cache.
pub(super) fn scullc(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    tell(telling, Backing::scullc(telling.cpu())?)
}

/// Over pages.
pub(super) fn scullp(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    tell(telling, Backing::scullp())
}

/// Over virtually contiguous memory.
pub(super) fn scullv(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    tell(telling, Backing::scullv())
}

fn tell(telling: &Telling<'_, '_>, backing: Backing) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let scull = Scull::new(backing);
    let told = workload(telling, cpu, &scull);
    if telling.makes("no-trim") {
        scull.remove_untrimmed(cpu);
    } else {
        scull.remove(cpu);
    }
    told
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
