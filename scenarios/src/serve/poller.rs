//! One queue's thread: looks at the ring, drives the device's worker, sleeps when there is nothing.
//!
//! Before it sleeps it looks at the ring for a while by itself, as long as that pays: waking a sleeping thread costs a
//! hundred times what a request does. Where it finds nothing a few times in a row (the driver is idle, or waits for the
//! very CPU that this thread burns) it goes to sleep at once, and tries again every so often ([`Patience`]). Doorbells
//! are off while it looks. Neighbours: [`super::queue`] starts and stops it, `device::blk` does the work. Left out: one
//! thread for several queues.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::memory::PeerMemory;
use super::tap::QueueTap;
use lowzone_device::Counters;
use lowzone_device::blk::BlkWorker;
use lowzone_device::virtio::QueueHost;
use lowzone_guest_mem::trace::Kind;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Requests between two looks at everything else.
const BATCH: u16 = 32;
/// How long to look at an empty ring: about what waking a thread takes.
const LOOK: Duration = Duration::from_micros(50);
/// Looks in vain after which it is given up.
const TRIES: u32 = 4;
/// Sleeps after which it is tried again, once.
const REST: u32 = 32;
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
        self.tap.event(Kind::VirtqCall, queue, 0, 0);
        ring(&self.call);
    }

    fn needs_reset(&self) {
        ring(&self.error);
    }

    fn reset_done(&self, _queue: u16) {}
}

/// Whether it pays to look at an empty ring before sleeping.
#[derive(Default)]
struct Patience {
    /// Looks in vain, since the last that was not.
    vain: u32,
    /// Sleeps without a look.
    slept: u32,
}

impl Patience {
    /// Whether to look this time.
    fn looks(&mut self) -> bool {
        if self.vain < TRIES {
            return true;
        }
        self.slept += 1;
        if self.slept == REST {
            self.slept = 0;
            return true;
        }
        false
    }

    /// What a look brought.
    fn learn(&mut self, found: bool) {
        self.vain = if found { 0 } else { (self.vain + 1).min(TRIES) };
    }
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
        let mut patience = Patience::default();
        while !self.halt.is_asked() {
            if self.worker.batch(BATCH, 0) > 0 {
                continue;
            }
            if self.worker.is_stopped() {
                return self.broken(start);
            }
            if patience.looks() {
                self.worker.disarm();
                let found = self.look();
                patience.learn(found);
                if found {
                    continue;
                }
            }
            if !self.worker.arm() {
                self.sleep();
            }
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

    /// Looks at the ring for a while; whether there was something, or the end was asked for.
    fn look(&mut self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < LOOK {
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
            self.tap.event(Kind::VirtqKick, self.queue, 0, 0);
            // The file does not block; how often the doorbell rang means nothing.
            let _ = (&*kick).read(&mut [0; 8]);
        } else if !seen.is_empty() {
            // Its other end is gone: it would be ready for ever.
            self.kick = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_is_given_up_when_it_is_in_vain_and_tried_again_now_and_then() {
        let mut patience = Patience::default();
        let mut looks = |found: bool, times: usize| {
            let mut look = || {
                let looked = patience.looks();
                if looked {
                    patience.learn(found);
                }
                looked
            };
            (0..times).filter(|_| look()).count()
        };
        assert_eq!(looks(true, 100), 100);
        assert_eq!(looks(false, 4 + 3 * 32), 4 + 3);
        assert_eq!(looks(true, 31), 0);
        assert_eq!(looks(true, 10), 10, "the one that finds something brings it back");
    }
}
