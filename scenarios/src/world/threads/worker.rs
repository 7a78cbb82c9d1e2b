//! A device worker's thread: phases of work while there are any, then a look, then a sleep on the doorbell.
//!
//! The event loop is made on the thread itself and outlives every sleep; descriptors of peers would join the bell's in it.
//! Neighbours: `bell`, `poll`; `device::Worker`, which does the work.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use lowzone_device::{Next, Worker};

use super::ThreadsError;
use super::bell::{Bell, event_loop};
use super::poll::Poll;
use super::shared::Shared;

const NS_PER_MS: u64 = 1_000_000;

/// Serves until the bell says stop; `begun` is told first whether it can.
pub(super) fn serve(
    mut worker: Box<dyn Worker>,
    bell: &Bell,
    shared: &Arc<Shared>,
    begun: &SyncSender<Result<(), ThreadsError>>,
) {
    let mut events = match event_loop(bell) {
        Ok(events) => events,
        // Whoever waits for the answer is the one that made this thread.
        Err(error) => return drop(begun.send(Err(error))),
    };
    drop(begun.send(Ok(())));
    let mut poll = Poll::new();
    let mut due = None;
    while !bell.stopped() {
        let now = shared.clock();
        if worker.ready() || due.is_some_and(|at| at <= now) {
            due = match worker.service(now) {
                Next::At(at) => Some(at),
                Next::Idle | Next::Again => None,
            };
            bell.worked(due);
            continue;
        }
        if due.is_none() && poll.until(|| worker.ready() || bell.stopped()) {
            continue;
        }
        let ms = due.map_or(-1, |at| i32::try_from((at - now).div_ceil(NS_PER_MS)).unwrap_or(i32::MAX));
        let slept = Instant::now();
        bell.sleep(&mut events, ms, || worker.ready());
        poll.slept(slept.elapsed());
    }
}
