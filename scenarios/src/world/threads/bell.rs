//! A worker's doorbell: an eventfd that is written only while the worker sleeps.
//!
//! The ringer sets what the worker looks at, then looks whether it sleeps; the worker says that it will sleep, then looks
//! once more. With a full fence between, one of the two always sees the other. Neighbours: `worker`.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ThreadsError;

/// No time.
const NEVER: u64 = u64::MAX;

/// One worker's.
pub(super) struct Bell {
    /// The slot of the function that the worker belongs to.
    slot: usize,
    fd: EventFd,
    asleep: AtomicBool,
    stop: AtomicBool,
    /// When the worker wants to be called again.
    due: AtomicU64,
    /// Phases of work done.
    phases: AtomicU64,
}

impl Bell {
    /// The bell of a worker of the function in this slot.
    ///
    /// # Errors
    /// The host's, out of descriptors for instance.
    pub(super) fn new(slot: usize) -> io::Result<Self> {
        let fd = EventFd::new(EFD_NONBLOCK)?;
        let (asleep, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self { slot, fd, asleep, stop, due: AtomicU64::new(NEVER), phases: AtomicU64::new(0) })
    }

    /// The slot of the worker's function.
    pub(super) fn slot(&self) -> usize {
        self.slot
    }

    /// Wakes the worker if it sleeps.
    pub(super) fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel) {
            // It can only fail when 2^64 - 2 rings were not heard; then the descriptor is readable anyway.
            let _ = self.fd.write(1);
        }
    }

    /// Sleeps for at most so many milliseconds (-1: for ever), unless `ready` or told to stop.
    pub(super) fn sleep(&self, events: &mut EventManager<Listener<'_>>, ms: i32, ready: impl Fn() -> bool) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !ready() && !self.stopped() {
            // A signal, or a failure of the host's, is a sleep that was short.
            let _ = events.run_with_timeout(ms);
        }
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Whether the worker sleeps, with nothing that would wake it.
    pub(super) fn silent(&self) -> bool {
        self.asleep.load(Ordering::SeqCst) && self.due.load(Ordering::Relaxed) == NEVER
    }

    /// Ends the worker.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// Whether the worker must end.
    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// A phase was done; the worker wants another at that time.
    pub(super) fn worked(&self, due: Option<u64>) {
        // Only the worker's own thread counts.
        self.phases.store(self.phases.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.due.store(due.unwrap_or(NEVER), Ordering::Relaxed);
    }

    /// Phases done so far.
    pub(super) fn phases(&self) -> u64 {
        self.phases.load(Ordering::Relaxed)
    }
}

/// The bell as the event loop knows it.
pub(super) struct Listener<'a> {
    bell: &'a Bell,
    refused: Option<event_manager::Error>,
}

/// An event loop that hears one bell.
///
/// # Errors
/// [`ThreadsError::Events`] if the host has no room for it.
pub(super) fn event_loop(bell: &Bell) -> Result<EventManager<Listener<'_>>, ThreadsError> {
    let mut events = EventManager::new().map_err(ThreadsError::Events)?;
    let id = events.add_subscriber(Listener { bell, refused: None });
    match events.subscriber_mut(id).map_err(ThreadsError::Events)?.refused.take() {
        Some(error) => Err(ThreadsError::Events(error)),
        None => Ok(events),
    }
}

impl MutEventSubscriber for Listener<'_> {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // Empty again; that it was empty already means that somebody else heard it.
        let _ = self.bell.fd.read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.refused = ops.add(Events::new(&self.bell.fd, EventSet::IN)).err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeper_is_woken_and_one_that_is_awake_costs_no_write() {
        let bell = Bell::new(0).unwrap();
        bell.ring();
        assert!(bell.fd.read().is_err(), "nobody slept, so nothing was written");
        let mut events = event_loop(&bell).unwrap();
        bell.sleep(&mut events, -1, || true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !bell.silent() {
                    std::thread::yield_now();
                }
                bell.ring();
            });
            bell.sleep(&mut events, -1, || false);
        });
        assert!(bell.fd.read().is_err(), "the loop emptied it");
        bell.stop();
        bell.sleep(&mut events, -1, || false);
    }
}
