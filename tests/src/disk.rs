//! The crate `virtio-driver` on a vhost-user socket.
#![allow(unsafe_code, reason = "its requests take raw pointers to memory that the device shares")]

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};

use crate::pages::Pages;

/// How the driver learns of completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// By sleeping on the call eventfd.
    EventFd,
    /// By looking at the ring all the time.
    Poll,
}

/// A disk with its queues and a shared buffer.
pub struct Disk {
    queues: Vec<VirtioBlkQueue<'static, u64>>,
    bells: Vec<Box<dyn QueueNotifier>>,
    calls: Vec<std::sync::Arc<EventFd>>,
    /// The connection.
    pub transport: Box<VirtioBlkTransport>,
    /// The shared buffer.
    pub pages: Pages,
    wait: Wait,
}

/// What a test asks a driver for.
pub const WANTED: u64 = VirtioFeatureFlags::VERSION_1.bits()
    | VirtioFeatureFlags::RING_EVENT_IDX.bits()
    | VirtioBlkFeatureFlags::MQ.bits()
    | VirtioBlkFeatureFlags::FLUSH.bits();

impl Disk {
    /// Connects, with a buffer of `bytes`.
    ///
    /// # Errors
    /// The crate's.
    pub fn connect(socket: &Path, queues: usize, bytes: usize, wait: Wait) -> std::io::Result<Self> {
        Self::with_features(socket, queues, bytes, wait, WANTED)
    }

    /// The same, asking for these features.
    ///
    /// # Errors
    /// The crate's.
    ///
    /// # Panics
    /// If the path is not UTF-8.
    pub fn with_features(
        socket: &Path,
        queues: usize,
        bytes: usize,
        wait: Wait,
        features: u64,
    ) -> std::io::Result<Self> {
        let mut transport: Box<VirtioBlkTransport> = Box::new(VhostUser::new(socket.to_str().unwrap(), features)?);
        let pages = Pages::new(bytes);
        transport.map_mem_region(pages.at(0) as usize, bytes, pages.fd(), 0)?;
        let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, queues, 256)?;
        for queue in &mut queues {
            queue.set_used_notif_enabled(wait == Wait::EventFd);
        }
        let bells = (0..queues.len()).map(|queue| transport.get_submission_notifier(queue)).collect();
        let calls = (0..queues.len()).map(|queue| transport.get_completion_fd(queue)).collect();
        Ok(Self { queues, bells, calls, transport, pages, wait })
    }

    /// Bytes of the disk.
    ///
    /// # Panics
    /// If the peer does not say.
    pub fn capacity(&self) -> u64 {
        u64::from(self.transport.get_config().unwrap().capacity) * 512
    }

    /// Queues a read into the buffer at `at`.
    ///
    /// # Panics
    /// If the buffer ends before, or the ring is full; so do the others.
    pub fn read(&mut self, queue: usize, offset: u64, at: usize, len: usize, tag: u64) {
        let buffer = self.pages.at(at);
        assert!(at + len <= self.pages.len());
        // SAFETY: the pages live as long as this disk; they are only ever touched by volatile accesses.
        unsafe { self.queues[queue].read_raw(offset, buffer, len, tag) }.unwrap();
    }

    /// Queues a write from the buffer at `at`.
    ///
    /// # Panics
    /// As [`Disk::read`].
    pub fn write(&mut self, queue: usize, offset: u64, at: usize, len: usize, tag: u64) {
        let buffer = self.pages.at(at);
        assert!(at + len <= self.pages.len());
        // SAFETY: as for `read`.
        unsafe { self.queues[queue].write_raw(offset, buffer, len, tag) }.unwrap();
    }

    /// Queues a flush.
    ///
    /// # Panics
    /// As [`Disk::read`].
    pub fn flush(&mut self, queue: usize, tag: u64) {
        self.queues[queue].flush(tag).unwrap();
    }

    /// Queues a discard.
    ///
    /// # Panics
    /// As [`Disk::read`].
    pub fn discard(&mut self, queue: usize, offset: u64, len: u64, tag: u64) {
        self.queues[queue].discard(offset, len, tag).unwrap();
    }

    /// Queues a write of zeroes.
    ///
    /// # Panics
    /// As [`Disk::read`].
    pub fn write_zeroes(&mut self, queue: usize, offset: u64, len: u64, tag: u64) {
        self.queues[queue].write_zeroes(offset, len, false, tag).unwrap();
    }

    /// Tells the device, if it wants to know.
    ///
    /// # Panics
    /// If the host can't.
    pub fn kick(&mut self, queue: usize) {
        if self.queues[queue].avail_notif_needed() {
            self.bells[queue].notify().unwrap();
        }
    }

    /// What was completed, into `done`; waits for the first for at most `limit`. How many came.
    pub fn reap(&mut self, queue: usize, limit: Duration, done: &mut Vec<(u64, i32)>) -> usize {
        let begun = Instant::now();
        let before = done.len();
        loop {
            done.extend(self.queues[queue].completions().map(|done| (done.context, done.ret)));
            if done.len() > before || begun.elapsed() > limit {
                return done.len() - before;
            }
            if self.wait == Wait::EventFd {
                let mut fds = [PollFd::new(&*self.calls[queue], PollFlags::IN)];
                let tick = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
                if poll(&mut fds, Some(&tick)).is_ok_and(|ready| ready > 0) {
                    let _ = self.calls[queue].read();
                }
            }
        }
    }

    /// Runs what is queued to its end and gives one result.
    ///
    /// # Panics
    /// If there is no answer.
    pub fn one(&mut self, queue: usize) -> i32 {
        self.kick(queue);
        let mut done = Vec::new();
        assert_eq!(self.reap(queue, Duration::from_secs(10), &mut done), 1, "no answer");
        done[0].1
    }
}
