//! Short accesses of a [`BusMaster`]: what rings, headers and statuses are made of.
//!
//! They do what `vm_memory::Bytes` does, one grant each, and no more: a device makes eight of them for each request.
//! Neighbours: [`super::busmaster`], [`crate::virtio::ring`]. Left out: data, which goes by slices to the store.

use std::sync::atomic::Ordering;

use vm_memory::guest_memory::Result;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions};

use super::busmaster::BusMaster;
use crate::tap::Tap;

impl<M: GuestMemory, T: Tap> BusMaster<M, T> {
    /// Reads the bytes at `addr`.
    pub(crate) fn fetch(&self, addr: u64, mut to: &mut [u8]) -> Result<()> {
        for slice in self.get_slices(GuestAddress(addr), to.len(), Permissions::Read)? {
            let slice = slice?;
            let (part, rest) = to.split_at_mut(slice.len().min(to.len()));
            slice.copy_to(part);
            to = rest;
        }
        Ok(())
    }

    /// Writes bytes at `addr`.
    pub(crate) fn put(&self, addr: u64, mut from: &[u8]) -> Result<()> {
        for slice in self.get_slices(GuestAddress(addr), from.len(), Permissions::Write)? {
            let slice = slice?;
            let (part, rest) = from.split_at(slice.len().min(from.len()));
            slice.copy_from(part);
            from = rest;
        }
        Ok(())
    }

    /// Reads the 16 bits at `addr`, little-endian, at once.
    pub(crate) fn load16(&self, addr: u64, order: Ordering) -> Result<u16> {
        let mut slices = self.get_slices(GuestAddress(addr), 2, Permissions::Read)?;
        let slice = slices.next().unwrap_or(Err(GuestMemoryError::InvalidBackendAddress))?;
        Ok(u16::from_le(slice.load(0, order)?))
    }

    /// Writes the 16 bits at `addr`, little-endian, at once.
    pub(crate) fn store16(&self, addr: u64, value: u16, order: Ordering) -> Result<()> {
        let mut slices = self.get_slices(GuestAddress(addr), 2, Permissions::Write)?;
        let slice = slices.next().unwrap_or(Err(GuestMemoryError::InvalidBackendAddress))?;
        Ok(slice.store(value.to_le(), 0, order)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::GuestMemoryMmap;

    use super::*;
    use crate::pci::{Beyond, BusMasterGate, Refusal};

    #[test]
    fn accesses_go_on_in_the_next_region_but_16_bits_are_never_torn() {
        let regions = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
        let ram = GuestMemoryMmap::<()>::from_ranges(&regions).unwrap();
        let gate = Arc::new(BusMasterGate::default());
        gate.set(true);
        let mem = BusMaster::new(ram.clone(), 64, Beyond::Refuse, gate, ()).unwrap();
        let (bytes, mut back) = ([1, 2, 3, 4, 5], [0; 5]);
        mem.put(0xffd, &bytes).unwrap();
        mem.fetch(0xffd, &mut back).unwrap();
        assert_eq!((back, ram.read_obj::<u8>(GuestAddress(0x1001)).unwrap()), (bytes, 5));
        mem.store16(0xffe, 0x0201, Ordering::Release).unwrap();
        assert_eq!(mem.load16(0xffe, Ordering::Acquire).unwrap(), 0x0201);
        assert_eq!(ram.read_obj::<u8>(GuestAddress(0xffe)).unwrap(), 1);
        assert!(mem.load16(0xfff, Ordering::Acquire).is_err() && mem.store16(0xfff, 1, Ordering::Release).is_err());
        assert!(mem.take_fault().is_none(), "the memory is there");
        assert!(mem.fetch(0x1ffe, &mut back).is_err());
        assert_eq!(mem.take_fault().unwrap().why, Refusal::Memory);
        assert!(mem.put(0x1ffe, &bytes).is_err() && mem.take_fault().unwrap().write);
    }
}
