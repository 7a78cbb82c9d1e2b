//! A device played by the test: reads the driver's ring in RAM and answers as told, truly or not.
//!
//! Works on a [`crate::rig::Rig`] whose queues nobody serves. Virtio 1.2, 2.7. Left out: suppressing interrupts; the
//! player decides itself when to interrupt.

use lowzone_guest_mem::PhysAddr;
use lowzone_guest_mem::kernel::Kernel;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// One descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    /// Where; bus and physical addresses are the same on this machine.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the device may write it.
    pub write: bool,
}

/// A chain that the driver made available.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Its head, to be returned as the id.
    pub head: u16,
    /// Its descriptors, header first, status last.
    pub descs: Vec<Desc>,
}

impl Chain {
    /// Bytes that the device may write.
    pub fn room(&self) -> u32 {
        self.descs.iter().filter(|desc| desc.write).map(|desc| desc.len).sum()
    }

    /// The data, between header and status.
    pub fn data(&self) -> &[Desc] {
        &self.descs[1..self.descs.len() - 1]
    }
}

/// One queue, from the device's side.
pub struct Played {
    kernel: &'static Kernel,
    ring: u64,
    size: u16,
    seen: u16,
    used: u16,
}

impl Played {
    /// The device's side of a ring of `size` entries at `ring`.
    pub fn new(kernel: &'static Kernel, ring: PhysAddr, size: u16) -> Self {
        Self { kernel, ring: ring.get(), size, seen: 0, used: 0 }
    }

    fn u16(&self, at: u64) -> u16 {
        u16::from_le(self.kernel.ram().load::<u16>(PhysAddr::new(at)).unwrap())
    }

    /// Writes guest memory.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.kernel.ram().write(PhysAddr::new(at), bytes).unwrap();
    }

    fn avail(&self) -> u64 {
        self.ring + u64::from(self.size) * 16
    }

    fn used(&self) -> u64 {
        (self.avail() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    fn desc(&self, table: u64, index: u16) -> (Desc, u16, u16) {
        let mut bytes = [0; 16];
        self.kernel.ram().read(PhysAddr::new(table + u64::from(index) * 16), &mut bytes).unwrap();
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let addr = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let len = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
        (Desc { addr, len, write: half(12) & WRITE != 0 }, half(12), half(14))
    }

    /// Every chain made available since the last call.
    pub fn take(&mut self) -> Vec<Chain> {
        let mut chains = Vec::new();
        while self.seen != self.u16(self.avail() + 2) {
            let slot = u64::from(self.seen % self.size);
            let head = self.u16(self.avail() + 4 + 2 * slot);
            chains.push(self.chain(head));
            self.seen = self.seen.wrapping_add(1);
        }
        chains
    }

    fn chain(&self, head: u16) -> Chain {
        let (first, flags, _) = self.desc(self.ring, head);
        let (table, mut at) = if flags & INDIRECT != 0 { (first.addr, 0) } else { (self.ring, head) };
        let mut descs = Vec::new();
        loop {
            let (desc, flags, next) = self.desc(table, at);
            descs.push(desc);
            if flags & NEXT == 0 {
                return Chain { head, descs };
            }
            at = next;
        }
    }

    /// Puts an element on the used ring; the index is told by [`Played::publish`].
    pub fn push(&mut self, id: u32, len: u32) {
        let at = self.used() + 4 + 8 * u64::from(self.used % self.size);
        self.write(at, &id.to_le_bytes());
        self.write(at + 4, &len.to_le_bytes());
        self.used = self.used.wrapping_add(1);
    }

    /// Claims as many used chains as were pushed, and `more`.
    pub fn publish(&self, more: u16) {
        self.write(self.used() + 2, &self.used.wrapping_add(more).to_le_bytes());
    }
}
