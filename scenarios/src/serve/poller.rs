//! One queue's thread: looks at the ring, drives the device's worker, sleeps when there is nothing.
//!
//! Before it sleeps it looks at the ring for a while by itself, as long as that pays: waking a sleeping thread costs a
//! hundred times what a request does. The while grows when a sleep turns out to have been short and shrinks when it
//! was long, as KVM's `halt_poll_ns` does. Doorbells are off while it looks. Neighbours: [`super::queue`] starts and
//! stops it, `device::blk` does the work. Left out: one thread for several queues.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lowzone_device::Counters;
use lowzone_device::blk::BlkWorker;
use lowzone_device::virtio::QueueHost;
use lowzone_guest_mem::trace::Kind;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use super::memory::PeerMemory;
use super::tap::QueueTap;

/// Requests between two looks at everything else.
const BATCH: u16 = 32;
/// The longest look at an empty ring.
const LONGEST: Duration = Duration::from_micros(50);
/// The shortest that is worth its name.
const SHORTEST: Duration = Duration::from_micros(4);
/// How often to look at the ring of a peer that rings no doorbell.
const NO_BELL: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000 };

/// How a queue's thread is asked to end.
pub(super) struct Halt {
    asked: AtomicBool,
    wake: OwnedFd,
}

impl Halt {
    pub fn new() -> io::Result<Self> {
        Ok(Self { asked: AtomicBool::new(false), wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    /// Asks; the thread ends once what is on its ring is done.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        // Fails only when it was written before, and then the thread is awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }
}

/// How a queue tells its driver.
#[derive(Default)]
pub(super) struct Bell {
    call: Mutex<Option<File>>,
    error: Mutex<Option<File>>,
    calls: AtomicU64,
    tap: QueueTap,
}

fn ring(at: &Mutex<Option<File>>) {
    if let Some(mut file) = at.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
        // The file does not block: a full counter says that the driver has been told.
        let _ = file.write(&1_u64.to_ne_bytes());
    }
}

impl Bell {
    pub fn new(tap: QueueTap) -> Self {
        Self { tap, ..Self::default() }
    }

    /// Where the driver is told of used buffers from now on. It is told at once: it may have waited at the old place.
    pub fn set_call(&self, file: Option<File>) {
        *self.call.lock().unwrap_or_else(PoisonError::into_inner) = file;
        ring(&self.call);
    }

    /// Where the driver is told of a broken ring.
    pub fn set_error(&self, file: Option<File>) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = file;
    }

    /// How often it was told.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

impl QueueHost for Bell {
    fn used_buffers(&self, queue: u16) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.tap.event(Kind::VirtqCall, queue.into());
        ring(&self.call);
    }

    fn needs_reset(&self) {
        ring(&self.error);
    }

    fn reset_done(&self, _queue: u16) {}
}

/// A queue at work.
pub(super) struct Poller {
    pub queue: u16,
    pub worker: BlkWorker<PeerMemory, QueueTap>,
    /// The doorbell; `None` if the driver wants to be looked after without.
    pub kick: Option<Arc<File>>,
    pub halt: Arc<Halt>,
    pub tap: QueueTap,
    pub counters: Arc<Counters>,
}

impl Poller {
    /// Serves the queue until it is asked to end. Returns where its ring goes on.
    pub fn run(mut self) -> u16 {
        let start = self.worker.next().unwrap_or(0);
        let mut budget = SHORTEST;
        while !self.halt.is_asked() {
            if self.worker.batch(BATCH, 0) > 0 {
                continue;
            }
            if self.worker.is_stopped() {
                return self.broken(start);
            }
            self.worker.disarm();
            if self.look(budget) || self.worker.arm() {
                continue;
            }
            let begun = Instant::now();
            self.sleep();
            budget = if begun.elapsed() < LONGEST { (budget * 2).clamp(SHORTEST, LONGEST) } else { budget / 2 };
        }
        // What is on the ring now was sent before the end and is answered.
        self.worker.batch(u16::MAX, 0);
        self.tap.flush();
        self.worker.next().unwrap_or(start)
    }

    fn broken(&mut self, start: u16) -> u16 {
        let error = self.counters.take_ring_error();
        let text = error.map_or_else(|| "it broke".to_owned(), |error| error.to_string());
        super::session::complain(&format!("queue {} stands still until it is set up again: {text}", self.queue));
        self.tap.flush();
        start
    }

    /// Looks at the ring for so long; whether there was something, or the end was asked for.
    fn look(&mut self, budget: Duration) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < budget {
            std::hint::spin_loop();
            if self.worker.waiting() || self.halt.is_asked() {
                return true;
            }
        }
        false
    }

    fn sleep(&mut self) {
        let wake = PollFd::new(&self.halt.wake, PollFlags::IN);
        let Some(kick) = self.kick.clone() else {
            // Interrupted or not: the ring is looked at next.
            let _ = poll(&mut [wake], Some(&NO_BELL));
            return;
        };
        let mut fds = [PollFd::new(&*kick, PollFlags::IN), wake];
        if poll(&mut fds, None).is_err() {
            return;
        }
        let seen = fds[0].revents();
        if seen.contains(PollFlags::IN) {
            self.tap.event(Kind::VirtqKick, self.queue.into());
            // The file does not block; how often the doorbell rang means nothing.
            let _ = (&*kick).read(&mut [0; 8]);
        } else if !seen.is_empty() {
            // Its other end is gone: it would be ready for ever.
            self.kick = None;
        }
    }
}
