//! Event records: 32 bytes each, a ring for each producer, and one digest of the run.
//!
//! Every producer (a CPU, a device's port) owns a ring and overwrites its oldest record: a flight recorder that is
//! always on. Records name what Linux's tracepoints name (`kmem:*`, `dma:*` of 6.12, `swiotlb:*`) and what only the
//! lab sees (`port:*`, `mmio:*`, `virtq:*`, `irq:*`). The digest folds kind, producer and length of every record in
//! the order they were made: equal digests mean equal runs. Addresses and times stay out of it.
//!
//! Neighbours: `Cpu::trace`, the port. Left out: files and viewers, which read what [`Recorder::capture`] kept.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::lock::Locked;

/// What an event is; the number is stable and goes into records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
#[non_exhaustive]
pub enum Kind {
    /// `kmem:kmalloc`: addr = where, len = bytes asked.
    Kmalloc = 1,
    /// `kmem:kfree`.
    Kfree = 2,
    /// `kmem:mm_page_alloc`: len = bytes.
    MmPageAlloc = 3,
    /// `kmem:mm_page_free`.
    MmPageFree = 4,
    /// `dma:dma_map_page`: addr = bus address, tag = transaction.
    DmaMapPage = 10,
    /// `dma:dma_unmap_page`.
    DmaUnmapPage = 11,
    /// `dma:dma_alloc`: coherent memory.
    DmaAlloc = 12,
    /// `dma:dma_free`.
    DmaFree = 13,
    /// `dma:dma_sync_single_for_cpu`.
    DmaSyncForCpu = 14,
    /// `dma:dma_sync_single_for_device`.
    DmaSyncForDevice = 15,
    /// `swiotlb:swiotlb_bounced`: addr = the original address.
    SwiotlbBounced = 16,
    /// The device reads memory, through its port.
    PortRead = 20,
    /// The device writes memory.
    PortWrite = 21,
    /// The device touches memory that no mapping gives it.
    PortViolation = 22,
    /// A register read: len = width, tag = value.
    MmioRead = 30,
    /// A register write.
    MmioWrite = 31,
    /// A chain was put on a virtqueue: tag = request.
    VirtqAdd = 40,
    /// The device was told.
    VirtqKick = 41,
    /// A used chain was taken.
    VirtqUsed = 42,
    /// A handler begins: addr = irq.
    IrqEntry = 50,
    /// A handler ended.
    IrqExit = 51,
    /// A finding was reported.
    Finding = 60,
    /// The scenario began a step.
    Step = 61,
}

impl Kind {
    /// The name, `system:event` as in tracefs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kmalloc => "kmem:kmalloc",
            Self::Kfree => "kmem:kfree",
            Self::MmPageAlloc => "kmem:mm_page_alloc",
            Self::MmPageFree => "kmem:mm_page_free",
            Self::DmaMapPage => "dma:dma_map_page",
            Self::DmaUnmapPage => "dma:dma_unmap_page",
            Self::DmaAlloc => "dma:dma_alloc",
            Self::DmaFree => "dma:dma_free",
            Self::DmaSyncForCpu => "dma:dma_sync_single_for_cpu",
            Self::DmaSyncForDevice => "dma:dma_sync_single_for_device",
            Self::SwiotlbBounced => "swiotlb:swiotlb_bounced",
            Self::PortRead => "port:read",
            Self::PortWrite => "port:write",
            Self::PortViolation => "port:violation",
            Self::MmioRead => "mmio:read",
            Self::MmioWrite => "mmio:write",
            Self::VirtqAdd => "virtq:add",
            Self::VirtqKick => "virtq:kick",
            Self::VirtqUsed => "virtq:used",
            Self::IrqEntry => "irq:irq_handler_entry",
            Self::IrqExit => "irq:irq_handler_exit",
            Self::Finding => "lowzone:finding",
            Self::Step => "lowzone:step",
        }
    }
}

/// One event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// The world's nanoseconds.
    pub ts: u64,
    /// The address or number it is about.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
    /// What happened.
    pub kind: Kind,
    /// Which device, or 0.
    pub dev: u16,
    /// The transaction or request it belongs to, or 0.
    pub tag: u64,
}

const _: () = assert!(size_of::<Record>() == 32);

/// Which producer's ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Producer(pub u16);

const RING: usize = 1024;
const PRODUCERS: usize = 256;

/// One producer's last records, as four words each: plain relaxed stores, since only one writes.
struct Ring {
    words: Vec<[AtomicU64; 4]>,
    head: AtomicU64,
}

/// All rings of one kernel and the digest over them.
pub struct Recorder {
    rings: Vec<OnceLock<Ring>>,
    digest: AtomicU64,
    events: AtomicU64,
    capturing: AtomicBool,
    captured: Locked<Vec<(Producer, Record)>>,
}

const SEED: u64 = 0x6c6f_777a_6f6e_6521;

impl Default for Recorder {
    fn default() -> Self {
        Self {
            rings: std::iter::repeat_with(OnceLock::new).take(PRODUCERS).collect(),
            digest: AtomicU64::new(SEED),
            events: AtomicU64::new(0),
            capturing: AtomicBool::new(false),
            captured: Locked::default(),
        }
    }
}

fn fold(digest: u64, word: u64) -> u64 {
    let mixed = (digest ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.rotate_left(29) ^ (mixed >> 32)
}

impl Recorder {
    /// Records one event.
    ///
    /// Load and store apart, not one atomic addition: in lockstep only one producer runs at a time, and in the
    /// threads world the digest means nothing.
    pub fn emit(&self, who: Producer, record: Record) {
        let word = u64::from(record.len) | u64::from(record.kind as u16) << 32 | u64::from(who.0) << 48;
        self.digest.store(fold(self.digest.load(Ordering::Relaxed), word), Ordering::Relaxed);
        self.events.store(self.events.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        if let Some(slot) = self.rings.get(usize::from(who.0)) {
            slot.get_or_init(Ring::new).push(&record);
        }
        if self.capturing.load(Ordering::Relaxed) {
            self.captured.lock().push((who, record));
        }
    }

    /// The digest of all events so far.
    pub fn digest(&self) -> u64 {
        self.digest.load(Ordering::Relaxed)
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// Starts keeping every event in memory.
    pub fn capture(&self) {
        self.capturing.store(true, Ordering::Relaxed);
    }

    /// Takes the kept events, in the order they were made.
    pub fn take_captured(&self) -> Vec<(Producer, Record)> {
        std::mem::take(&mut *self.captured.lock())
    }

    /// How many records a producer made since the machine began.
    pub fn produced(&self, who: Producer) -> u64 {
        let ring = self.rings.get(usize::from(who.0)).and_then(OnceLock::get);
        ring.map_or(0, |ring| ring.head.load(Ordering::Relaxed))
    }

    /// Forgets everything, keeping the memory of the rings.
    pub fn reset(&self) {
        self.digest.store(SEED, Ordering::Relaxed);
        self.events.store(0, Ordering::Relaxed);
        self.capturing.store(false, Ordering::Relaxed);
        self.captured.lock().clear();
        for ring in self.rings.iter().filter_map(OnceLock::get) {
            ring.head.store(0, Ordering::Relaxed);
        }
    }
}

impl Ring {
    fn new() -> Self {
        let words = std::iter::repeat_with(|| std::array::from_fn(|_| AtomicU64::new(0))).take(RING).collect();
        Self { words, head: AtomicU64::new(0) }
    }

    fn push(&self, record: &Record) {
        let head = self.head.load(Ordering::Relaxed);
        let index = usize::try_from(head % RING as u64).unwrap_or(0);
        let [ts, addr, meta, tag] = &self.words[index];
        ts.store(record.ts, Ordering::Relaxed);
        addr.store(record.addr, Ordering::Relaxed);
        let packed = u64::from(record.len) | u64::from(record.kind as u16) << 32 | u64::from(record.dev) << 48;
        meta.store(packed, Ordering::Relaxed);
        tag.store(record.tag, Ordering::Relaxed);
        self.head.store(head + 1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: Kind, len: u32) -> Record {
        Record { ts: 1, addr: 2, len, kind, dev: 0, tag: 0 }
    }

    #[test]
    fn the_digest_sees_kind_order_length_and_producer_but_no_address_or_time() {
        let digest = |events: &[(u16, Record)]| {
            let recorder = Recorder::default();
            events.iter().for_each(|&(who, record)| recorder.emit(Producer(who), record));
            recorder.digest()
        };
        let (a, b) = (event(Kind::Kmalloc, 64), event(Kind::Kfree, 64));
        let base = digest(&[(0, a), (0, b)]);
        assert_eq!(base, digest(&[(0, Record { ts: 9, addr: 9, tag: 9, ..a }), (0, b)]));
        assert_ne!(base, digest(&[(0, b), (0, a)]));
        assert_ne!(base, digest(&[(0, event(Kind::Kmalloc, 65)), (0, b)]));
        assert_ne!(base, digest(&[(1, a), (0, b)]));
    }

    #[test]
    fn a_reset_recorder_counts_and_digests_like_a_fresh_one() {
        let recorder = Recorder::default();
        recorder.capture();
        recorder.emit(Producer(3), event(Kind::DmaAlloc, 1));
        assert_eq!(recorder.take_captured().len(), 1);
        recorder.reset();
        assert_eq!((recorder.digest(), recorder.events(), recorder.produced(Producer(3))), (SEED, 0, 0));
        recorder.emit(Producer(3), event(Kind::DmaAlloc, 1));
        assert!(recorder.take_captured().is_empty(), "a reset stops capturing");
    }
}
