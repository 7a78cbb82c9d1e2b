//! A function's way to memory, as the hardware makes it: so many address bits, the bus-master bit, a fault latch.
//!
//! [`BusMaster`] implements `vm_memory::GuestMemory` over another one (the platform: bridge, IOMMU, ownership), so
//! that virtio-queue runs on it unmodified. Since that library, and `Bytes`, turn refused accesses into shorter
//! ones, the first refusal is latched here and the worker looks at the latch after each step.
//!
//! Mirrors the command register's bit 2 (PCI 3.0, 6.2.2). Left out: ordering of posted writes, translation; both
//! belong to the memory underneath.

use std::iter::FusedIterator;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use thiserror::Error;
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{GuestMemorySliceIterator, Result as MemoryResult};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError, Permissions, VolatileSlice};

use crate::lock;
use crate::tap::Tap;

/// What happens to an address the device can't put on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beyond {
    /// The access fails and is latched: what a laboratory wants.
    Refuse,
    /// The upper bits are lost, as in hardware: the wrong memory is hit.
    Wrap,
}

/// Why an access was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It does not fit into the address bits the device has.
    BeyondWidth {
        /// The address bits the device decodes.
        width: u8,
    },
    /// The bus-master bit of the command register is clear.
    BusMasterOff,
    /// The platform underneath said no.
    Memory,
}

/// A refused access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The address the device asked for.
    pub addr: u64,
    /// Bytes.
    pub len: usize,
    /// Whether the device meant to write.
    pub write: bool,
    /// The reason.
    pub why: Refusal,
}

/// A bus master that can't be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BusMasterError {
    /// A device decodes 1 to 64 address bits.
    #[error("a device can't have {width} address bits: 1 to 64")]
    Width {
        /// What was asked for.
        width: u8,
    },
}

/// Bit 2 of the command register, shared by config space and all bus masters of a function. The gate of a function
/// that was pulled out of its slot is gone: closed, and nobody is left to tell of an access.
#[derive(Debug, Default)]
pub struct BusMasterGate(AtomicU8);

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const GONE: u8 = 2;

impl BusMasterGate {
    /// Opens or closes the gate, unless it is gone.
    pub fn set(&self, open: bool) {
        let state = if open { OPEN } else { CLOSED };
        // Failing means that it is gone, and stays so.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |was| (was != GONE).then_some(state));
    }

    /// Whether the function may master the bus.
    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Acquire) == OPEN
    }

    /// Whether the function is out of its slot.
    pub fn is_gone(&self) -> bool {
        self.0.load(Ordering::Acquire) == GONE
    }

    /// The function leaves its slot.
    pub(crate) fn remove(&self) {
        self.0.store(GONE, Ordering::Release);
    }

    /// The function is put into a slot: the gate is closed, as after power-on.
    pub(crate) fn restore(&self) {
        self.0.store(CLOSED, Ordering::Release);
    }
}

/// The first fault since the latch was last emptied.
#[derive(Debug, Default)]
struct FaultLatch {
    set: AtomicBool,
    fault: Mutex<Option<Fault>>,
}

impl FaultLatch {
    fn record(&self, fault: Fault) {
        lock(&self.fault).get_or_insert(fault);
        self.set.store(true, Ordering::Release);
    }

    fn get(&self) -> Option<Fault> {
        if self.set.load(Ordering::Relaxed) { *lock(&self.fault) } else { None }
    }

    fn take(&self) -> Option<Fault> {
        if !self.set.load(Ordering::Relaxed) {
            return None;
        }
        let mut fault = lock(&self.fault);
        self.set.store(false, Ordering::Release);
        fault.take()
    }
}

/// An admitted access: where it really goes. A wrapped one may continue at address zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placement {
    start: u64,
    len: usize,
    at_zero: usize,
}

/// Memory as one device sees it.
#[derive(Debug)]
pub struct BusMaster<M: GuestMemory, T: Tap = ()> {
    inner: M,
    width: u8,
    mask: u64,
    beyond: Beyond,
    gate: Arc<BusMasterGate>,
    latch: FaultLatch,
    tap: T,
}

impl<M: GuestMemory, T: Tap> BusMaster<M, T> {
    /// A bus master of `width` address bits over `inner`, open while `gate` is.
    ///
    /// # Errors
    /// [`BusMasterError::Width`] unless `width` is 1 to 64.
    ///
    /// ```
    /// use lowzone_device::pci::{Beyond, BusMaster, BusMasterGate, Refusal};
    /// use std::sync::Arc;
    /// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
    ///
    /// let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
    /// let gate = Arc::new(BusMasterGate::default());
    /// gate.set(true);
    /// let port = BusMaster::new(ram, 12, Beyond::Refuse, gate, ()).unwrap();
    /// assert!(port.write_obj(7u32, GuestAddress(0xffc)).is_ok());
    /// assert!(port.write_obj(7u32, GuestAddress(0x1000)).is_err());
    /// assert_eq!(port.take_fault().unwrap().why, Refusal::BeyondWidth { width: 12 });
    /// ```
    pub fn new(inner: M, width: u8, beyond: Beyond, gate: Arc<BusMasterGate>, tap: T) -> Result<Self, BusMasterError> {
        if !(1..=64).contains(&width) {
            return Err(BusMasterError::Width { width });
        }
        let mask = u64::MAX >> (64 - u32::from(width));
        Ok(Self { inner, width, mask, beyond, gate, latch: FaultLatch::default(), tap })
    }

    /// The first fault since [`take_fault`](Self::take_fault), left in place. One relaxed load if there is none.
    pub fn fault(&self) -> Option<Fault> {
        self.latch.get()
    }

    /// Empties the latch and gives what was in it. One relaxed load if there is nothing.
    pub fn take_fault(&self) -> Option<Fault> {
        self.latch.take()
    }

    /// Whether the function was pulled out of its slot: every access fails, unseen and not latched.
    pub fn is_gone(&self) -> bool {
        self.gate.is_gone()
    }

    /// Latches and shows an access as if the platform had refused it; no memory is asked for.
    pub fn feign_fault(&self, addr: u64, len: usize, write: bool) {
        self.refuse(addr, len, write, Refusal::Memory);
    }

    /// Tells the observer that the `len` bytes at `addr`, granted before, have moved.
    pub fn moved(&self, addr: u64, len: usize, write: bool) {
        if let Ok(at) = self.place(addr, len) {
            self.tap.moved(at.start, at.len, write);
            if at.at_zero > 0 {
                self.tap.moved(0, at.at_zero, write);
            }
        }
    }

    /// The observer of its accesses.
    pub(crate) fn tap(&self) -> &T {
        &self.tap
    }

    /// Where `len > 0` bytes at `addr` really lie on the bus.
    fn place(&self, addr: u64, len: usize) -> Result<Placement, Refusal> {
        let beyond = Refusal::BeyondWidth { width: self.width };
        let last = (len as u64).checked_sub(1).ok_or(beyond)?;
        let end = addr.checked_add(last).ok_or(beyond)?;
        if end <= self.mask {
            return Ok(Placement { start: addr, len, at_zero: 0 });
        }
        if self.beyond == Beyond::Refuse {
            return Err(beyond);
        }
        let start = addr & self.mask;
        let room = self.mask - start;
        if last <= room {
            return Ok(Placement { start, len, at_zero: 0 });
        }
        let over = last - room;
        // Longer than all the device can address: real hardware would lap itself, which nobody needs to see.
        if over > start {
            return Err(beyond);
        }
        let at_zero = usize::try_from(over).map_err(|_| beyond)?;
        Ok(Placement { start, len: len - at_zero, at_zero })
    }

    fn admit(&self, addr: u64, len: usize, write: bool) -> MemoryResult<Placement> {
        let placed = if self.gate.is_open() { self.place(addr, len) } else { Err(Refusal::BusMasterOff) };
        placed.map_err(|why| self.refuse(addr, len, write, why))
    }

    fn refuse(&self, addr: u64, len: usize, write: bool, why: Refusal) -> GuestMemoryError {
        if self.is_gone() {
            return GuestMemoryError::InvalidGuestAddress(GuestAddress(addr));
        }
        self.latch.record(Fault { addr, len, write, why });
        self.tap.refused(addr, len, write, why);
        GuestMemoryError::InvalidGuestAddress(GuestAddress(addr))
    }

    fn grant(&self, at: Placement, write: bool) {
        self.tap.granted(at.start, at.len, write);
        if at.at_zero > 0 {
            self.tap.granted(0, at.at_zero, write);
        }
    }
}

impl<M: GuestMemory, T: Tap> GuestMemory for BusMaster<M, T> {
    type PhysicalMemory = M::PhysicalMemory;
    type Bitmap = M::Bitmap;

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        if count == 0 {
            return true;
        }
        let write = access.has_write();
        let Ok(at) = self.admit(addr.0, count, write) else {
            return false;
        };
        let fits = self.inner.check_range(GuestAddress(at.start), at.len, access)
            && (at.at_zero == 0 || self.inner.check_range(GuestAddress(0), at.at_zero, access));
        if !fits {
            self.refuse(addr.0, count, write, Refusal::Memory);
        }
        fits
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> MemoryResult<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        let write = access.has_write();
        let mut slices =
            Slices { master: self, first: None, second: None, addr: addr.0, wanted: count, due: count, write };
        if count == 0 {
            return Ok(slices);
        }
        let at = self.admit(addr.0, count, write)?;
        if at.start != addr.0 || at.at_zero > 0 {
            self.tap.wrapped(addr.0, at.start, count, write, self.width);
        }
        let inner = |start: u64, len: usize| {
            self.inner
                .get_slices(GuestAddress(start), len, access)
                .map_err(|_| self.refuse(addr.0, count, write, Refusal::Memory))
        };
        slices.first = Some(inner(at.start, at.len)?);
        if at.at_zero > 0 {
            slices.second = Some(inner(0, at.at_zero)?);
        }
        self.grant(at, write);
        Ok(slices)
    }
}

/// The slices of one admitted access; an error underneath ends it and is latched.
struct Slices<'a, M: GuestMemory, T: Tap, I> {
    master: &'a BusMaster<M, T>,
    first: Option<I>,
    second: Option<I>,
    addr: u64,
    wanted: usize,
    due: usize,
    write: bool,
}

impl<'a, M, T, I> Iterator for Slices<'a, M, T, I>
where
    M: GuestMemory,
    T: Tap,
    I: Iterator<Item = MemoryResult<VolatileSlice<'a, BS<'a, M::Bitmap>>>>,
{
    type Item = I::Item;

    fn next(&mut self) -> Option<Self::Item> {
        while self.due > 0 {
            match self.first.as_mut().and_then(Iterator::next) {
                Some(Ok(slice)) if !slice.is_empty() && slice.len() <= self.due => {
                    self.due -= slice.len();
                    return Some(Ok(slice));
                }
                None if self.second.is_some() => self.first = self.second.take(),
                // An error, a slice that breaks the contract, or fewer bytes than were asked for: `Bytes` relies on
                // all of them, so none gets through.
                _ => {
                    self.due = 0;
                    return Some(Err(self.master.refuse(self.addr, self.wanted, self.write, Refusal::Memory)));
                }
            }
        }
        None
    }
}

impl<'a, M, T, I> FusedIterator for Slices<'a, M, T, I>
where
    M: GuestMemory,
    T: Tap,
    I: Iterator<Item = MemoryResult<VolatileSlice<'a, BS<'a, M::Bitmap>>>>,
{
}

impl<'a, M, T, I> GuestMemorySliceIterator<'a, BS<'a, M::Bitmap>> for Slices<'a, M, T, I>
where
    M: GuestMemory,
    T: Tap,
    I: Iterator<Item = MemoryResult<VolatileSlice<'a, BS<'a, M::Bitmap>>>>,
{
}

#[cfg(test)]
mod tests;
