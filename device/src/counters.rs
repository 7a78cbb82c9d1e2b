//! What a device has done so far, readable while it runs.
//!
//! One [`Counters`] is shared by the function and all its workers; [`Counters::totals`] copies the numbers out.
//! Left out: completions out of order, which only the driver can tell.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::lock;
use crate::net::counters::{PacketCounters, Packets};
use crate::pci::Fault;
use crate::virtio::ring::RingError;

/// The live counters of one device.
#[derive(Debug, Default)]
pub struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) interrupts: AtomicU64,
    pub(crate) interrupts_lost: AtomicU64,
    pub(crate) packets: PacketCounters,
    faults: AtomicU64,
    peak: AtomicU64,
    first_fault: Mutex<Option<Fault>>,
    ring_error: Mutex<Option<RingError>>,
}

/// The numbers of [`Counters`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests handed back to the driver, whatever their status.
    pub requests: u64,
    /// Of these, the ones with a status other than OK.
    pub failed: u64,
    /// Bytes moved from the store into memory.
    pub bytes_read: u64,
    /// Bytes moved from memory into the store.
    pub bytes_written: u64,
    /// Flushes the store has carried out.
    pub flushes: u64,
    /// Interrupts sent: MSI and MSI-X messages, and rises of the INTx line.
    pub interrupts: u64,
    /// Messages lost because bus mastering was off.
    pub interrupts_lost: u64,
    /// Memory accesses of the workers that were refused.
    pub faults: u64,
    /// The most requests one queue has had in flight at once.
    pub peak_in_flight: u64,
}

/// What a worker has done and not yet added to the device's counters, which other workers write too.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub requests: u64,
    pub failed: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
}

impl Counters {
    /// The numbers now. Each is exact; together they are one moment only while the device rests.
    pub fn totals(&self) -> Totals {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            requests: get(&self.requests),
            failed: get(&self.failed),
            bytes_read: get(&self.bytes_read),
            bytes_written: get(&self.bytes_written),
            flushes: get(&self.flushes),
            interrupts: get(&self.interrupts),
            interrupts_lost: get(&self.interrupts_lost),
            faults: get(&self.faults),
            peak_in_flight: get(&self.peak),
        }
    }

    /// What became of the packets of a network device; zeros for another.
    pub fn packets(&self) -> Packets {
        self.packets.now()
    }

    /// The first memory fault any worker met, if one did.
    pub fn first_fault(&self) -> Option<Fault> {
        *lock(&self.first_fault)
    }

    /// Takes the error that stopped a queue, the latest one if several did.
    pub fn take_ring_error(&self) -> Option<RingError> {
        lock(&self.ring_error).take()
    }

    /// Counts a request handed back to the driver: whether it went well, bytes brought into memory, bytes taken out.
    pub fn finished(&self, ok: bool, into_memory: u64, out_of_memory: u64) {
        Self::add(&self.requests, 1);
        Self::add(&self.failed, u64::from(!ok));
        Self::add(&self.bytes_read, into_memory);
        Self::add(&self.bytes_written, out_of_memory);
    }

    /// Adds what a worker has done and empties its tally.
    pub(crate) fn settle(&self, tally: &mut Tally) {
        let Tally { requests, failed, bytes_read, bytes_written } = std::mem::take(tally);
        let counted = [
            (&self.requests, requests),
            (&self.failed, failed),
            (&self.bytes_read, bytes_read),
            (&self.bytes_written, bytes_written),
        ];
        counted.into_iter().filter(|(_, amount)| *amount > 0).for_each(|(counter, amount)| Self::add(counter, amount));
    }

    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    /// Counts a memory access of a worker that was refused; the first is kept.
    pub fn count_fault(&self, fault: Fault) {
        Self::add(&self.faults, 1);
        lock(&self.first_fault).get_or_insert(fault);
    }

    pub(crate) fn keep_ring_error(&self, error: RingError) {
        if let RingError::Fault(fault) = &error {
            self.count_fault(*fault);
        }
        *lock(&self.ring_error) = Some(error);
    }

    pub(crate) fn saw_in_flight(&self, now: usize) {
        self.peak.fetch_max(now as u64, Ordering::Relaxed);
    }
}
