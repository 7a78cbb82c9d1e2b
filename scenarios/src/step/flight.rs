//! Requests that nobody waits for: what a disk is busy with when its driver has to let go of it.
//!
//! A campaign does this before each removal and shutdown of the scenario: a driver that only ever lets go of an idle
//! device proves little. Neighbours: `explore::case`. Left out: drivers without disks and packets, whose work ends before
//! `exercise` returns.

use std::sync::Arc;

use lowzone_driver::blk::{Disk, Request, SubmitError};
use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::gfp::GFP_KERNEL;
use thiserror::Error;

use super::data::{self, BufferError};
use super::packets;
use crate::lab::{Bench, Slot, lock};
use crate::spec::Memory;
use crate::world::Body;

/// Requests for each disk.
const REQUESTS: usize = 2;
/// Bytes of each.
const BYTES: usize = 4096;

/// Why a request did not get under way; the driver said so.
#[derive(Debug, Error)]
enum NotSent {
    #[error(transparent)]
    Buffer(#[from] BufferError),
    #[error(transparent)]
    Submit(#[from] SubmitError),
}

/// Submits reads to every disk in service and waits for none.
pub(crate) fn leave(bench: &Arc<Bench>) -> Body {
    let bench = bench.clone();
    Box::new(move |cpu| {
        let _span = cpu.span("in_flight");
        for slot in bench.slots.iter().filter(|slot| bench.is_bound(slot.at)) {
            if let Some(net) = bench.driver.net(slot.at)
                && let Err(error) = packets::send_and_forget(cpu, &net, REQUESTS)
            {
                let mut result = lock(&bench.result);
                result.failed_requests += 1;
                result.log.push(format!("{}: packet not sent: {error}", slot.name));
            }
            let Some(disk) = bench.driver.disk(slot.at) else { continue };
            let sent = (0..REQUESTS).try_for_each(|_| send(cpu, slot, &disk));
            disk.commit(cpu, 0);
            if let Err(error) = sent {
                let mut result = lock(&bench.result);
                result.failed_requests += 1;
                result.log.push(format!("{}: request failed: {error}", slot.name));
            }
        }
    })
}

fn send(cpu: &Cpu<'_>, slot: &Slot, disk: &Disk) -> Result<(), NotSent> {
    let buffer = data::allocate(cpu, &slot.dma, Memory::High, BYTES, GFP_KERNEL)?;
    drop(disk.submit_more(cpu, 0, Request::read(0, buffer))?);
    Ok(())
}
