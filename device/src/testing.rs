//! A driver just good enough for tests: it probes through config space and BAR registers, and lays its rings out by
//! hand, so that nothing overlaps.
//!
//! RAM is 1 MiB at zero and 64 KiB at 4 GiB; the device decodes 32 bits unless a test says otherwise.

use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};

use crate::blk::{Blk, BlkOptions, Hardware, blk};
use crate::lock;
use crate::pci::{IrqSink, PciFunction, Refusal, Width};
use crate::store::{MemoryStore, Store};
use crate::tap::Tap;
use crate::virtio::common::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use crate::virtio::{VERSION_1, VirtioDevice};
use crate::worker::Next;

/// Where the rig puts BAR 0.
pub const BAR: u64 = 0xfe00_0000;
pub const RAM: usize = 1 << 20;
pub const HIGH: u64 = 1 << 32;
pub const HIGH_LEN: usize = 0x10000;
pub const SECTORS: u64 = 256;
/// Where tests may put data; rings lie below.
pub const DATA: u64 = 0x40000;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// An interrupt as the sink saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Irq {
    Msi(u16, u64, u32),
    Pin(bool),
}

#[derive(Default)]
pub struct Sink(pub Mutex<Vec<Irq>>);

impl Sink {
    pub fn take(&self) -> Vec<Irq> {
        std::mem::take(&mut lock(&self.0))
    }
}

impl IrqSink for Sink {
    fn msi(&self, vector: u16, addr: u64, data: u32) {
        lock(&self.0).push(Irq::Msi(vector, addr, data));
    }

    fn intx(&self, level: bool) {
        lock(&self.0).push(Irq::Pin(level));
    }
}

/// What a tap saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    Granted(u64, usize, bool),
    Moved(u64, usize, bool),
    Wrapped(u64, u64, usize, bool, u8),
    Refused(u64, usize, bool, Refusal),
}

#[derive(Default)]
pub struct Log(pub Mutex<Vec<Seen>>);

impl Log {
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut lock(&self.0))
    }
}

impl Tap for Log {
    fn granted(&self, addr: u64, len: usize, write: bool) {
        lock(&self.0).push(Seen::Granted(addr, len, write));
    }

    fn moved(&self, addr: u64, len: usize, write: bool) {
        lock(&self.0).push(Seen::Moved(addr, len, write));
    }

    fn wrapped(&self, addr: u64, hit: u64, len: usize, write: bool, width: u8) {
        lock(&self.0).push(Seen::Wrapped(addr, hit, len, write, width));
    }

    fn refused(&self, addr: u64, len: usize, write: bool, why: Refusal) {
        lock(&self.0).push(Seen::Refused(addr, len, write, why));
    }
}

pub fn ram() -> GuestMemoryMmap<()> {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM), (GuestAddress(HIGH), HIGH_LEN)]).unwrap()
}

/// One split ring, laid out with room between its parts.
#[derive(Debug, Clone)]
pub struct Layout {
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub next_desc: u16,
    pub avail_idx: u16,
    pub seen: u16,
}

impl Layout {
    pub fn new(queue: u16, size: u16) -> Self {
        let base = 0x10000 + u64::from(queue) * 0x4000;
        Self { size, desc: base, avail: base + 0x1000, used: base + 0x2000, next_desc: 0, avail_idx: 0, seen: 0 }
    }

    pub fn put(&self, ram: &GuestMemoryMmap<()>, table: u64, index: u16, desc: (u64, u32, u16, u16)) {
        let at = table + 16 * u64::from(index);
        ram.write_obj(desc.0, GuestAddress(at)).unwrap();
        ram.write_obj(desc.1, GuestAddress(at + 8)).unwrap();
        ram.write_obj(desc.2, GuestAddress(at + 12)).unwrap();
        ram.write_obj(desc.3, GuestAddress(at + 14)).unwrap();
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, ram: &GuestMemoryMmap<()>, head: u16) {
        let slot = self.avail + 4 + 2 * u64::from(self.avail_idx % self.size);
        ram.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail_idx = self.avail_idx.wrapping_add(1);
        ram.write_obj(self.avail_idx, GuestAddress(self.avail + 2)).unwrap();
    }

    /// Writes a chain of direct descriptors and makes it available; returns its head.
    pub fn submit(&mut self, ram: &GuestMemoryMmap<()>, segments: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_desc;
        for (nth, (addr, len, write)) in segments.iter().enumerate() {
            let index = self.next_desc;
            self.next_desc = (index + 1) % self.size;
            let last = nth + 1 == segments.len();
            let flags = if last { 0 } else { NEXT } | if *write { WRITE } else { 0 };
            self.put(ram, self.desc, index, (*addr, *len, flags, self.next_desc));
        }
        self.offer(ram, head);
        head
    }

    /// The used elements since the last call.
    pub fn used(&mut self, ram: &GuestMemoryMmap<()>) -> Vec<(u32, u32)> {
        let idx: u16 = ram.read_obj(GuestAddress(self.used + 2)).unwrap();
        let mut elements = Vec::new();
        while self.seen != idx {
            let slot = self.used + 4 + 8 * u64::from(self.seen % self.size);
            elements.push((ram.read_obj(GuestAddress(slot)).unwrap(), ram.read_obj(GuestAddress(slot + 4)).unwrap()));
            self.seen = self.seen.wrapping_add(1);
        }
        elements
    }
}

/// A device, its RAM, and a driver's state.
pub struct Rig {
    pub ram: GuestMemoryMmap<()>,
    pub device: Blk,
    pub sink: Arc<Sink>,
    pub log: Arc<Log>,
    pub store: Arc<Store>,
    pub queues: Vec<Layout>,
}

impl Rig {
    pub fn new(options: &BlkOptions, hardware: Hardware) -> Self {
        Self::over(options, hardware, MemoryStore::zeroed(SECTORS * 512).map(Store::Memory).unwrap())
    }

    pub fn over(options: &BlkOptions, hardware: Hardware, store: Store) -> Self {
        let (ram, store) = (ram(), Arc::new(store));
        let (sink, log) = (Arc::<Sink>::default(), Arc::<Log>::default());
        let port = |_| (ram.clone(), Arc::clone(&log));
        let device = blk(options, hardware, Arc::clone(&store), Arc::clone(&sink) as _, port).unwrap();
        Self { ram, device, sink, log, store, queues: Vec::new() }
    }

    /// A rig whose driver has come as far as DRIVER_OK, with MSI-X on and every feature taken.
    pub fn running(options: &BlkOptions) -> Self {
        let mut rig = Self::new(options, Hardware::default());
        rig.place();
        rig.msix(options.queues + 1);
        rig.start(u64::MAX, options.queues, options.queue_size.min(16));
        rig
    }

    pub fn function(&self) -> &dyn PciFunction {
        self.device.function.as_ref()
    }

    /// Places the BAR, turns on memory and bus mastering.
    pub fn place(&self) {
        self.function().config_write(0x10, Width::B4, 0xfe00_0000);
        self.function().config_write(0x14, Width::B4, 0);
        self.function().config_write(4, Width::B2, 0b110);
    }

    /// Turns MSI-X on and gives vector n the message n at 0xfee00000.
    pub fn msix(&self, vectors: u16) {
        for vector in 0..u64::from(vectors) {
            let entry = 0x4000 + 16 * vector;
            self.write(entry, Width::B8, 0xfee0_0000);
            self.write(entry + 8, Width::B4, vector);
            self.write(entry + 12, Width::B4, 0);
        }
        let at = self.msix_cap();
        self.function().config_write(at + 2, Width::B2, 0x8000);
    }

    /// The offset of the MSI-X capability, found as a driver finds it.
    pub fn msix_cap(&self) -> u16 {
        let mut at = self.function().config_read(0x34, Width::B1);
        while at != 0 {
            let offset = u16::try_from(at).unwrap();
            if self.function().config_read(offset, Width::B1) == 0x11 {
                return offset;
            }
            at = self.function().config_read(offset + 1, Width::B1);
        }
        0
    }

    pub fn read(&self, offset: u64, width: Width) -> u64 {
        let (bar, at) = self.function().decode(BAR + offset, width).unwrap();
        self.function().bar_read(bar, at, width).unwrap()
    }

    pub fn write(&self, offset: u64, width: Width, value: u64) {
        let (bar, at) = self.function().decode(BAR + offset, width).unwrap();
        self.function().bar_write(bar, at, width, value).unwrap();
    }

    pub fn status(&self) -> u8 {
        u8::try_from(self.read(20, Width::B1)).unwrap()
    }

    pub fn set_status(&self, bits: u8) {
        self.write(20, Width::B1, u64::from(self.status() | bits));
    }

    pub fn offered(&self) -> u64 {
        self.write(0, Width::B4, 0);
        let low = self.read(4, Width::B4);
        self.write(0, Width::B4, 1);
        low | self.read(4, Width::B4) << 32
    }

    pub fn accept(&self, features: u64) {
        self.write(8, Width::B4, 0);
        self.write(12, Width::B4, features & 0xffff_ffff);
        self.write(8, Width::B4, 1);
        self.write(12, Width::B4, features >> 32);
    }

    pub fn set_up_queue(&mut self, queue: u16, size: u16) {
        let layout = Layout::new(queue, size);
        for at in [layout.desc, layout.avail, layout.used] {
            self.ram.write_slice(&[0; 0x1000], GuestAddress(at)).unwrap();
        }
        self.write(22, Width::B2, queue.into());
        self.write(24, Width::B2, size.into());
        self.write(26, Width::B2, u64::from(queue) + 1);
        for (at, addr) in [(32, layout.desc), (40, layout.avail), (48, layout.used)] {
            self.write(at, Width::B4, addr & 0xffff_ffff);
            self.write(at + 4, Width::B4, addr >> 32);
        }
        self.write(28, Width::B2, 1);
        self.queues.push(layout);
    }

    /// From reset to DRIVER_OK, taking what is offered of `wanted`.
    pub fn start(&mut self, wanted: u64, queues: u16, size: u16) {
        self.queues.clear();
        self.set_status(ACKNOWLEDGE);
        self.set_status(DRIVER);
        let offered = self.offered();
        self.accept(offered & wanted);
        self.set_status(FEATURES_OK);
        self.write(16, Width::B2, 0);
        for queue in 0..queues {
            self.set_up_queue(queue, size);
        }
        self.set_status(DRIVER_OK);
    }

    pub fn kick(&self, queue: u16) {
        self.write(0x3000 + 4 * u64::from(queue), Width::B2, queue.into());
    }

    /// Calls the workers until none is ready; returns the number of calls, at most `limit`.
    pub fn run(&mut self, limit: usize) -> usize {
        let mut calls = 0;
        while calls < limit {
            let Some(worker) = self.device.workers.iter_mut().find(|worker| worker.ready()) else { break };
            let next = worker.service(0);
            assert!(next != Next::Idle || !worker.ready(), "idle and ready at once");
            calls += 1;
        }
        calls
    }

    /// Writes a block request's header at `at`.
    pub fn header(&self, at: u64, kind: u32, sector: u64) {
        self.ram.write_obj(kind, GuestAddress(at)).unwrap();
        self.ram.write_obj(0u32, GuestAddress(at + 4)).unwrap();
        self.ram.write_obj(sector, GuestAddress(at + 8)).unwrap();
    }

    /// Submits one request on queue 0 with its header at `at`, data at `at + 0x1000` and status at `at + 0x800`.
    pub fn request(&mut self, at: u64, kind: u32, sector: u64, len: u32, into_memory: bool) -> u16 {
        self.header(at, kind, sector);
        self.ram.write_obj(0xffu8, GuestAddress(at + 0x800)).unwrap();
        let mut segments = vec![(at, 16, false), (at + 0x1000, len, into_memory), (at + 0x800, 1, true)];
        if len == 0 {
            segments.remove(1);
        }
        self.queues[0].submit(&self.ram, &segments)
    }

    pub fn status_of(&self, at: u64) -> u8 {
        self.ram.read_obj(GuestAddress(at + 0x800)).unwrap()
    }

    /// The driver wants an interrupt when the used index passes `index`.
    pub fn write_used_event(&self, queue: usize, index: u16) {
        let layout = &self.queues[queue];
        self.ram.write_obj(index, GuestAddress(layout.avail + 4 + 2 * u64::from(layout.size))).unwrap();
    }

    pub fn avail_event(&self, queue: usize) -> u16 {
        let layout = &self.queues[queue];
        self.ram.read_obj(GuestAddress(layout.used + 4 + 8 * u64::from(layout.size))).unwrap()
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub fn disk<R>(&self, look: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut bytes = vec![0; usize::try_from(self.store.capacity()).unwrap()];
        self.store.read_at(0, &VolatileSlice::from(&mut bytes[..])).unwrap();
        let result = look(&mut bytes);
        self.store.write_at(0, &VolatileSlice::from(&mut bytes[..])).unwrap();
        result
    }
}

/// A device of two queues of 64 that does nothing.
pub struct Fake;

impl VirtioDevice for Fake {
    fn device_type(&self) -> u16 {
        2
    }
    fn class(&self) -> u32 {
        0
    }
    fn features(&self) -> u64 {
        VERSION_1 | 0x30
    }
    fn queues(&self) -> u16 {
        2
    }
    fn queue_size(&self) -> u16 {
        64
    }
    fn config_len(&self) -> u32 {
        0
    }
    fn read_config(&self, _offset: u32, _to: &mut [u8]) {}
}
