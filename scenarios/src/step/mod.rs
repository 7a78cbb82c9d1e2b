//! Steps: what each verb of a scenario does, as bodies for the world's CPUs.
//!
//! One noun a file: `bind` (probe, remove), `io`, `packets`, `exercise`, `dma`, `copy`, `clear`, `raw` (raw_read, irq_alloc), `canary`,
//! `hold`, `story`, `flight` (a campaign's own); `data` is the buffers they share. Neighbours: `lab`, which runs the bodies;
//! `driver::blk` and `driver::edu`, which they use as any caller would.

mod bind;
pub(crate) mod canary;
mod clear;
mod copy;
mod counted;
mod data;
mod dma;
mod exercise;
mod flight;
mod hold;
mod io;
pub(crate) mod packets;
mod raw;
mod story;

use std::sync::Arc;

use crate::lab::Bench;
use crate::spec::Step;
use crate::world::Body;

/// The bodies of one step, one for each CPU that takes part.
pub(crate) fn bodies(bench: &Arc<Bench>, step: &Step, number: u64) -> Vec<Body> {
    let label = || format!("{} {number}", step.verb());
    match step {
        Step::Probe(_) => vec![bind::probe(bench)],
        Step::InFlight(_) => vec![flight::leave(bench)],
        Step::Shutdown(step) if step.under_io => flight::beside(bench, bind::shutdown(bench), false),
        Step::Shutdown(_) => vec![bind::shutdown(bench)],
        Step::Remove(step) if step.under_io => flight::beside(bench, bind::remove(bench), true),
        Step::Remove(_) => vec![bind::remove(bench)],
        Step::Recover(_) => Vec::new(),
        Step::Io(io) => io::bodies(bench, io, io.label.clone().unwrap_or_else(label)),
        Step::Exercise(work) => vec![exercise::body(bench, work, work.label.clone().unwrap_or_else(label))],
        Step::Dma(dma) => vec![dma::body(bench, dma, dma.label.clone().unwrap_or_else(label), number)],
        Step::Packets(packets) => {
            let body = packets::body(bench, packets, packets.label.clone().unwrap_or_else(label));
            if packets.watched { counted::watched(bench, &packets.device, body) } else { vec![body] }
        }
        Step::RawPacket(raw) => vec![raw::send(bench, raw)],
        Step::Copy(copy) => vec![copy::body(bench, copy)],
        Step::Clear(clear) => vec![clear::body(bench, clear, clear.label.clone().unwrap_or_else(label))],
        Step::RawRead(raw) => vec![raw::read(bench, raw)],
        Step::IrqAlloc(alloc) => vec![raw::irq_alloc(bench, alloc)],
        Step::Hold(hold) => vec![hold::body(bench, hold)],
        Step::Story(told) => story::bodies(bench, told),
        Step::Canary(canary) => vec![canary::place(bench, canary)],
    }
}
