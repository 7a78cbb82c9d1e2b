//! A queue's accesses and its rings' events, as records for the server's trace.
//!
//! Each queue has a page of its own, sent when it is full and when the queue stops, so records of one queue are in
//! order and those of two are nearly so. Without a trace every call is one branch. Neighbours: [`super::link`],
//! `device::Tap`. Left out: grants of which nothing was moved.

use std::sync::{Arc, Mutex, PoisonError};

use lowzone_device::Tap;
use lowzone_device::pci::Refusal;
use lowzone_guest_mem::trace::{Kind, Record};
use rustix::time::{ClockId, clock_gettime};

use super::link::{Link, PAGE};

/// The monotonic clock in nanoseconds.
pub(crate) fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

/// The observer of one queue, or nobody.
#[derive(Clone, Default)]
pub(super) struct QueueTap(Option<Arc<Recorder>>);

struct Recorder {
    link: Arc<Link>,
    began: u64,
    dev: u16,
    page: Mutex<Vec<Record>>,
}

impl Recorder {
    fn record(&self, kind: Kind, addr: u64, len: usize, tag: u64) {
        let ts = monotonic().saturating_sub(self.began);
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let mut page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        page.push(Record { ts, addr, len, kind, dev: self.dev, tag });
        if page.len() == PAGE {
            self.send(&mut page);
        }
    }

    fn send(&self, page: &mut Vec<Record>) {
        // A server that is gone wants no trace.
        let _ = self.link.records(page);
        page.clear();
    }
}

impl QueueTap {
    /// Records what queue `queue` does; times count from `began`.
    pub fn recording(link: Arc<Link>, queue: u16, began: u64) -> Self {
        let page = Mutex::new(Vec::with_capacity(PAGE));
        Self(Some(Arc::new(Recorder { link, began, dev: queue.saturating_add(1), page })))
    }

    /// Records an event of a queue's ring.
    pub fn event(&self, kind: Kind, queue: u16, head: u64, tag: u64) {
        if let Some(recorder) = &self.0 {
            recorder.record(kind, head, queue.into(), tag);
        }
    }

    /// Sends what is left.
    pub fn flush(&self) {
        if let Some(recorder) = &self.0 {
            recorder.send(&mut recorder.page.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl Tap for QueueTap {
    fn granted(&self, _addr: u64, _len: usize, _write: bool) {}

    fn moved(&self, addr: u64, len: usize, write: bool) {
        if let Some(recorder) = &self.0 {
            recorder.record(if write { Kind::PortWrite } else { Kind::PortRead }, addr, len, 0);
        }
    }

    fn wrapped(&self, _addr: u64, _hit: u64, _len: usize, _write: bool, _width: u8) {}

    fn refused(&self, addr: u64, len: usize, _write: bool, _why: Refusal) {
        if let Some(recorder) = &self.0 {
            recorder.record(Kind::PortViolation, addr, len, 0);
        }
    }

    fn took(&self, queue: u16, head: u16) {
        self.event(Kind::VirtqTake, queue, head.into(), 0);
    }

    fn gave(&self, queue: u16, id: u32, len: u32) {
        self.event(Kind::VirtqGive, queue, id.into(), len.into());
    }
}
