//! Requests that nobody waits for: what a disk is busy with when its driver has to let go of it.
//!
//! A campaign does this before each removal and shutdown of the scenario: a driver that only ever lets go of an idle
//! device proves little. In half of its schedules another CPU goes on using the device meanwhile (`busy`). Neighbours:
//! `explore::phases`. Left out: drivers without disks and packets, whose work ends before `exercise` returns.

use std::sync::Arc;

use lowzone_driver::blk::{Disk, Request, SubmitError};
use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::lock::Mutex;
use thiserror::Error;

use super::bind::device_at;
use super::counted::{Counted, Over};
use super::data::{self, BufferError};
use super::packets;
use crate::lab::{Bench, Slot, lock};
use crate::spec::Memory;
use crate::world::Body;

/// Requests for each disk.
const REQUESTS: usize = 2;
/// Uses of each device while another CPU lets go of it.
const USES: u64 = 3;
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

/// Submits reads and a flush to every disk in service and waits for none.
pub(super) fn leave(bench: &Arc<Bench>) -> Body {
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
            let sent = (0..REQUESTS).try_for_each(|_| send(cpu, slot, &disk)).and_then(|()| flush(cpu, &disk));
            disk.commit(cpu, 0);
            if let Err(error) = sent {
                let mut result = lock(&bench.result);
                result.failed_requests += 1;
                result.log.push(format!("{}: request failed: {error}", slot.name));
            }
        }
    })
}

/// A request without data.
fn flush(cpu: &Cpu<'_>, disk: &Disk) -> Result<(), NotSent> {
    drop(disk.submit_more(cpu, 0, Request::flush())?);
    Ok(())
}

fn send(cpu: &Cpu<'_>, slot: &Slot, disk: &Disk) -> Result<(), NotSent> {
    let buffer = data::allocate(cpu, &slot.dma, Memory::High, BYTES, GFP_KERNEL)?;
    drop(disk.submit_more(cpu, 0, Request::read(0, buffer))?);
    Ok(())
}

/// What the block layer and the network core see to: nobody is inside a driver that lets go of its device
/// (`blk_freeze_queue`, `synchronize_net`). What was asked for before goes on in the device.
#[derive(Clone)]
struct Gate(Arc<Mutex<bool>>);

/// A body, and one for another CPU that uses the devices meanwhile: to the end, or until the first is to go ahead alone.
pub(super) fn beside(bench: &Arc<Bench>, body: Body, alone: bool) -> Vec<Body> {
    if bench.kernel.config().cpus < 2 {
        return vec![body];
    }
    let gate = Gate(Arc::new(Mutex::new(false)));
    let over = Over::default();
    let busy = busy(bench, gate.clone(), over.clone());
    let first: Body = Box::new(move |cpu| {
        if alone {
            *gate.0.lock(cpu) = true;
        }
        body(cpu);
        over.tell(cpu);
    });
    vec![first, busy]
}

/// Uses every device in service, a few times, and looks at what the drivers count, which no gate keeps off; what fails is
/// nobody's fault.
fn busy(bench: &Arc<Bench>, gate: Gate, over: Over) -> Body {
    let bench = bench.clone();
    Box::new(move |cpu| {
        let _span = cpu.span("busy");
        let counted: Vec<_> = bench.slots.iter().map(|slot| Counted::of(&bench, slot)).collect();
        for nth in 0..USES {
            for (slot, counted) in bench.slots.iter().zip(&counted) {
                counted.look(cpu);
                let closed = gate.0.lock(cpu);
                if *closed {
                    drop(closed);
                    counted.watch(cpu, &over);
                } else {
                    use_once(cpu, &bench, slot, nth);
                }
            }
        }
    })
}

/// One use of a device, not to be waited for where that can be; its driver may refuse.
fn use_once(cpu: &Cpu<'_>, bench: &Bench, slot: &Slot, nth: u64) {
    if let Some(disk) = bench.driver.disk(slot.at) {
        drop(send(cpu, slot, &disk));
        disk.commit(cpu, 0);
    } else if let Some(net) = bench.driver.net(slot.at) {
        drop(packets::send_and_forget(cpu, &net, 1));
    } else if let Some(device) = device_at(bench, slot.at).filter(|_| bench.is_bound(slot.at)) {
        drop(bench.driver.exercise(cpu, &device, nth));
    }
}
