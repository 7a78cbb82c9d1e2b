//! The peer's memory: regions of files it sent, mapped, and the two addresses each byte has.
//!
//! Descriptors hold guest addresses; the places of rings come as addresses of the peer's own process. Nothing a peer
//! says of a region is believed: it must not wrap, overlap another or reach beyond its file. Lengths need not be whole
//! pages. Neighbours: [`super::vhost_user`], which is told of regions; `device::pci::BusMaster`, which uses the result.
//! Left out: a file cut while it is mapped, which only [`super::server`] survives; dirty logging.

use std::fs::File;
use std::io;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{GuestMemorySliceIterator, Result as MemoryResult};
use vm_memory::mmap::FromRangesError;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, Permissions, VolatileSlice,
};

/// The most regions at once.
pub(super) const SLOTS: usize = 32;
const PAGE: u64 = 4096;

/// A memory region that can't be used.
#[derive(Debug, Error)]
pub(crate) enum MemoryError {
    #[error("a table of {claims} regions in {size} bytes: 1 to {SLOTS} of 32 bytes each, after the first 8")]
    Table { claims: u32, size: usize },
    #[error("more than {SLOTS} regions")]
    Slots,
    #[error("a region of no bytes at {guest:#x}")]
    Empty { guest: u64 },
    #[error("the region of {size:#x} bytes at {guest:#x} (in the peer at {user:#x}) goes beyond the address space")]
    Wraps { guest: u64, user: u64, size: u64 },
    #[error("the region at {guest:#x} begins at byte {offset:#x} of its file: a whole number of pages is needed")]
    Offset { guest: u64, offset: u64 },
    #[error("the region at {guest:#x} needs {needed:#x} bytes of a file that has {has:#x}")]
    Short { guest: u64, needed: u64, has: u64 },
    #[error("regions of {size:#x} bytes at {guest:#x} and of {other_size:#x} at {other:#x} overlap")]
    Overlap { guest: u64, size: u64, other: u64, other_size: u64 },
    #[error(
        "regions of {size:#x} bytes at {guest:#x} and of {other_size:#x} at {other:#x} overlap in the peer, at {at:#x}"
    )]
    Shared { guest: u64, size: u64, other: u64, other_size: u64, at: u64 },
    #[error("no region of {size:#x} bytes at {guest:#x} to remove")]
    Missing { guest: u64, size: u64 },
    #[error("the region of {size:#x} bytes at {guest:#x} can't be mapped: {source}")]
    Map { guest: u64, size: u64, source: FromRangesError },
    #[error("the file of the region at {guest:#x}: {source}")]
    File { guest: u64, source: io::Error },
}

/// What a peer says of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Its guest address.
    pub guest: u64,
    /// Its address in the peer.
    pub user: u64,
    /// Bytes.
    pub size: u64,
    /// Where it begins in its file.
    pub offset: u64,
}

struct Region {
    at: Wanted,
    mapping: Arc<GuestRegionMmap<()>>,
}

/// All regions, by guest address.
#[derive(Default)]
pub(super) struct Memory(Vec<Region>);

fn overlap(a: u64, a_size: u64, b: u64, b_size: u64) -> bool {
    // Neither wraps: that was checked first.
    a < b + b_size && b < a + a_size
}

impl Wanted {
    /// Checks the numbers alone; where the region ends in its file.
    pub fn plain(&self) -> Result<u64, MemoryError> {
        let Self { guest, user, size, offset } = *self;
        if size == 0 {
            return Err(MemoryError::Empty { guest });
        }
        let needed = offset.checked_add(size);
        let (Some(needed), Some(_), Some(_)) = (needed, guest.checked_add(size), user.checked_add(size)) else {
            return Err(MemoryError::Wraps { guest, user, size });
        };
        if !offset.is_multiple_of(PAGE) {
            return Err(MemoryError::Offset { guest, offset });
        }
        Ok(needed)
    }

    /// Checks what can be checked without the other regions; the file's size too.
    fn check(&self, file: &File) -> Result<(), MemoryError> {
        let (guest, needed) = (self.guest, self.plain()?);
        let has = file.metadata().map_err(|source| MemoryError::File { guest, source })?.len();
        if needed > has {
            return Err(MemoryError::Short { guest, needed, has });
        }
        Ok(())
    }
}

impl Memory {
    /// Maps another region.
    pub fn add(&mut self, at: Wanted, file: File) -> Result<(), MemoryError> {
        at.check(&file)?;
        let Wanted { guest, user, size, offset } = at;
        if self.0.len() >= SLOTS {
            return Err(MemoryError::Slots);
        }
        for Region { at: other, .. } in &self.0 {
            let Wanted { guest: there, user: theirs, size: other_size, .. } = *other;
            if overlap(guest, size, there, other_size) {
                return Err(MemoryError::Overlap { guest, size, other: there, other_size });
            }
            if overlap(user, size, theirs, other_size) {
                return Err(MemoryError::Shared { guest, size, other: there, other_size, at: user.max(theirs) });
            }
        }
        let len = usize::try_from(size).map_err(|_| MemoryError::Wraps { guest, user, size })?;
        let mapping = GuestRegionMmap::from_range(GuestAddress(guest), len, Some(FileOffset::new(file, offset)))
            .map_err(|source| MemoryError::Map { guest, size, source })?;
        let place = self.0.partition_point(|region| region.at.guest < guest);
        self.0.insert(place, Region { at, mapping: Arc::new(mapping) });
        Ok(())
    }

    /// Unmaps a region once nobody uses it any more.
    pub fn remove(&mut self, guest: u64, user: u64, size: u64) -> Result<(), MemoryError> {
        let same = |region: &Region| (region.at.guest, region.at.user, region.at.size) == (guest, user, size);
        let place = self.0.iter().position(same).ok_or(MemoryError::Missing { guest, size })?;
        self.0.remove(place);
        Ok(())
    }

    /// Memory as the device sees it.
    pub fn map(&self) -> PeerMemory {
        let mapped = |region: &Region| (region.at.guest, region.at.size, region.mapping.clone());
        PeerMemory(self.0.iter().map(mapped).collect())
    }

    /// The guest address of an address of the peer.
    pub fn guest(&self, user: u64) -> Option<u64> {
        let hit = |at: &Wanted| user.checked_sub(at.user).filter(|within| *within < at.size);
        self.0.iter().find_map(|region| hit(&region.at).map(|within| region.at.guest + within))
    }
}

/// The regions a queue runs on. A table is short, so it is looked through from its beginning,
/// which took an eighth of a queue's time less than `GuestMemoryMmap`'s search.
#[derive(Clone)]
pub(super) struct PeerMemory(Arc<[Mapped]>);

/// A region's start, its bytes and its mapping.
type Mapped = (u64, u64, Arc<GuestRegionMmap<()>>);

impl PeerMemory {
    /// The slice at `addr`, as far as its region goes and at most `len` bytes.
    fn slice(&self, addr: u64, len: usize) -> Option<VolatileSlice<'_, ()>> {
        let within = |(start, size, _): &&Mapped| addr.wrapping_sub(*start) < *size;
        let (start, size, mapping) = self.0.iter().find(within)?;
        let offset = addr - start;
        let len = usize::try_from(size - offset).unwrap_or(usize::MAX).min(len);
        mapping.get_slice(MemoryRegionAddress(offset), len).ok()
    }
}

impl GuestMemory for PeerMemory {
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, _access: Permissions) -> bool {
        Slices { memory: self, addr: addr.0, left: count }.all(|slice| slice.is_ok())
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        _access: Permissions,
    ) -> MemoryResult<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        Ok(Slices { memory: self, addr: addr.0, left: count })
    }
}

/// The slices that make up a range; an error ends them.
struct Slices<'a> {
    memory: &'a PeerMemory,
    addr: u64,
    left: usize,
}

impl<'a> Iterator for Slices<'a> {
    type Item = MemoryResult<VolatileSlice<'a, ()>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let Some(slice) = self.memory.slice(self.addr, self.left) else {
            self.left = 0;
            return Some(Err(GuestMemoryError::InvalidGuestAddress(GuestAddress(self.addr))));
        };
        self.left -= slice.len();
        // A region's end is within the address space; behind the last byte of all there is nothing left to ask for.
        self.addr = self.addr.wrapping_add(slice.len() as u64);
        Some(Ok(slice))
    }
}

impl std::iter::FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, ()> for Slices<'a> {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::*;

    fn file(len: u64) -> File {
        let file: File = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap().into();
        file.set_len(len).unwrap();
        file
    }

    fn wanted(guest: u64, user: u64, size: u64) -> Wanted {
        Wanted { guest, user, size, offset: 0 }
    }

    #[test]
    fn a_region_of_any_length_is_reached_by_both_addresses() {
        let mut memory = Memory::default();
        let ring = file(0x4b10);
        let at = Wanted { guest: 1 << 33, user: 0x7f00_0000_0000, size: 0x3b10, offset: 0x1000 };
        memory.add(at, ring.try_clone().unwrap()).unwrap();
        memory.map().write_obj(7u16, GuestAddress((1 << 33) + 0x3b0e)).unwrap();
        assert!(memory.map().write_obj(7u32, GuestAddress((1 << 33) + 0x3b0e)).is_err());
        let mut last = [0; 2];
        std::os::unix::fs::FileExt::read_exact_at(&ring, &mut last, 0x4b0e).unwrap();
        assert_eq!(last, [7, 0]);
        let user = 0x7f00_0000_0000;
        assert_eq!(memory.guest(user + 0x3b0f), Some((1 << 33) + 0x3b0f));
        assert_eq!((memory.guest(user + 0x3b10), memory.guest(user - 1)), (None, None));
        memory.remove(1 << 33, user, 0x3b10).unwrap();
        assert!(memory.map().write_obj(7u16, GuestAddress(1 << 33)).is_err());
    }

    #[test]
    fn what_a_peer_says_of_a_region_is_checked() {
        let mut memory = Memory::default();
        memory.add(wanted(0x10000, 0x10000, 0x2000), file(0x2000)).unwrap();
        let mut say = |at: Wanted, len| memory.add(at, file(len)).unwrap_err().to_string();
        assert!(say(wanted(0, 0, 0), 0).contains("no bytes"));
        assert!(say(wanted(u64::MAX - 5, 0, 0x1000), 0x1000).contains("beyond the address space"));
        assert!(say(wanted(0, u64::MAX - 5, 0x1000), 0x1000).contains("beyond the address space"));
        assert!(say(wanted(0, 0, 0x1001), 0x1000).contains("needs 0x1001 bytes of a file that has 0x1000"));
        assert!(say(wanted(0x11fff, 0, 1), 1).contains("overlap"));
        assert!(say(wanted(0, 0x11fff, 1), 1).contains("overlap"));
        let offset = Wanted { offset: 0x800, ..wanted(0, 0, 0x800) };
        assert!(say(offset, 0x1000).contains("begins at byte 0x800"));
        let huge = Wanted { offset: 1 << 62, ..wanted(0, 0, 1 << 62) };
        assert!(say(huge, 0x1000).contains("needs 0x8000000000000000 bytes"));
        assert!(memory.remove(0x10000, 0x10000, 0x1000).is_err());
        for slot in 1..32 {
            memory.add(wanted(slot << 20, slot << 20, 0x1000), file(0x1000)).unwrap();
        }
        assert!(matches!(memory.add(wanted(1 << 40, 1 << 40, 0x1000), file(0x1000)), Err(MemoryError::Slots)));
    }

    #[test]
    fn an_access_goes_on_in_the_region_behind_and_ends_at_a_hole() {
        let mut memory = Memory::default();
        memory.add(wanted(0x10000, 0x10000, 0x1000), file(0x1000)).unwrap();
        memory.add(wanted(0x11000, 0x50000, 0x1000), file(0x1000)).unwrap();
        let map = memory.map();
        map.write_slice(&[1, 2, 3, 4], GuestAddress(0x10ffe)).unwrap();
        let mut back = [0; 4];
        map.read_slice(&mut back, GuestAddress(0x10ffe)).unwrap();
        assert_eq!((back, map.read_obj::<u16>(GuestAddress(0x11000)).unwrap()), ([1, 2, 3, 4], 0x0403));
        let lens = |addr, len| {
            let slices = map.get_slices(GuestAddress(addr), len, Permissions::Read).unwrap();
            slices.map(|slice| slice.map_or(0, |slice| slice.len())).collect::<Vec<_>>()
        };
        assert_eq!(lens(0x10ff0, 0x1020), [0x10, 0x1000, 0]);
        assert_eq!((lens(0xffff, 2), lens(u64::MAX, 2), lens(0x10000, 0)), (vec![0], vec![0], vec![]));
        let fits = |addr, len| map.check_range(GuestAddress(addr), len, Permissions::Write);
        assert!(fits(0x10000, 0x2000) && !fits(0x10000, 0x2001) && !fits(0xffff, 1));
    }

    proptest! {
        /// Whatever is asked for, what was taken in never overlaps, never wraps, and lies within its file.
        #[test]
        fn no_table_is_taken_in_that_lies(
            regions in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), 0u64..64, 0u32..52), 1..8),
        ) {
            let mut memory = Memory::default();
            for (guest, user, size, offset, pages, shift) in regions {
                let at = Wanted { guest: guest >> shift, user: user >> shift, size: size >> shift, offset: offset >> shift & !0xfff };
                let len = pages * PAGE;
                if memory.add(at, file(len)).is_ok() {
                    prop_assert!(at.size > 0 && at.offset.checked_add(at.size).is_some_and(|end| end <= len));
                }
            }
            let taken: Vec<_> = memory.0.iter().map(|region| u128::from(region.at.guest)..u128::from(region.at.guest) + u128::from(region.at.size)).collect();
            prop_assert!(taken.windows(2).all(|pair| pair[0].end <= pair[1].start));
        }
    }
}
