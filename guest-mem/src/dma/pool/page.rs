//! One page of a DMA pool: its memory, the list of its free blocks in that memory, and the same list out of band.
//!
//! Neighbours: [`super::DmaPool`] keeps several.

use super::{Cut, POISON_FREED, Taken};
use crate::addr::PhysAddr;
use crate::dma::coherent::{self, Coherent};
use crate::kbuf::KBuf;
use crate::kernel::Kernel;
use crate::site::Owner;

/// Coherent memory cut into blocks (`struct dma_page`).
pub(super) struct Page {
    /// Freed with the page.
    _header: KBuf,
    memory: Coherent,
    cut: Cut,
    blocks: usize,
    /// Offsets of the free blocks; the last is given first.
    free: Vec<u32>,
    /// The link that ends the list.
    end: u32,
    /// The blocks that are out, and who has them.
    out: Vec<(u32, Owner)>,
}

/// What a free can have wrong about a block of the right page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wrong {
    /// It is on the list already.
    Free,
    /// No block begins there, or the two addresses are not of one place.
    Place,
}

impl Page {
    pub(super) fn new(kernel: &Kernel, header: KBuf, memory: Coherent, cut: Cut, watched: bool) -> Self {
        if watched {
            fill(kernel, memory.phys(), cut.allocation.into(), POISON_FREED);
        }
        let mut free = cut.offsets();
        for pair in free.windows(2) {
            store(kernel, memory.phys(), pair[0], pair[1]);
        }
        let end = free.pop().unwrap_or(cut.allocation);
        free.reverse();
        Self { _header: header, memory, cut, blocks: free.len(), free, end, out: Vec::new() }
    }

    pub(super) fn phys(&self) -> PhysAddr {
        self.memory.phys()
    }

    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    pub(super) fn out(&self) -> usize {
        self.out.len()
    }

    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Who has a block of it.
    pub(super) fn busy(&self) -> Option<Owner> {
        self.out.first().map(|(_, owner)| *owner)
    }

    /// Lets go of its memory without freeing it.
    pub(super) fn leak(self) {
        std::mem::forget(self.memory);
    }

    fn link(&self) -> u32 {
        self.free.last().copied().unwrap_or(self.end)
    }

    pub(super) fn take(&mut self, owner: Owner) -> Option<Taken> {
        let offset = self.free.pop()?;
        self.out.push((offset, owner));
        Some(Taken {
            dma: self.memory.dma_addr().wrapping_add(offset.into()),
            phys: self.memory.phys().wrapping_add(offset.into()),
            zone: self.memory.zone(),
            link: self.link(),
        })
    }

    /// The offset of a bus address in it (`pool_find_page`).
    pub(super) fn offset_of(&self, dma: crate::addr::DmaAddr) -> Option<u32> {
        let offset = dma.offset_from(self.memory.dma_addr())?;
        u32::try_from(offset).ok().filter(|&offset| offset < self.cut.allocation)
    }

    /// Takes a block back, by both its addresses.
    pub(super) fn give(&mut self, kernel: &Kernel, phys: PhysAddr, offset: u32, watched: bool) -> Result<(), Wrong> {
        if phys != self.memory.phys().wrapping_add(offset.into()) {
            return Err(Wrong::Place);
        }
        let Some(at) = self.out.iter().position(|(out, _)| *out == offset) else {
            return Err(if self.free.contains(&offset) { Wrong::Free } else { Wrong::Place });
        };
        self.out.swap_remove(at);
        coherent::settle(kernel, phys, self.cut.size.into());
        if watched {
            fill(kernel, phys, self.cut.size.into(), POISON_FREED);
        }
        store(kernel, self.memory.phys(), offset, self.link());
        self.free.push(offset);
        Ok(())
    }

    pub(super) fn validate(&self, kernel: &Kernel) -> Result<(), u32> {
        let mut link = self.end;
        for &offset in &self.free {
            let held = kernel.ram().load::<u32>(self.phys().wrapping_add(offset.into()));
            // Blocks may lie at any address, where a load of 4 bytes does not work.
            let held = held.map_or_else(|_| read(kernel, self.phys().wrapping_add(offset.into())), u32::from_le);
            if held != link {
                return Err(offset);
            }
            link = offset;
        }
        let mut all: Vec<_> = self.free.iter().copied().chain(self.out.iter().map(|(offset, _)| *offset)).collect();
        all.sort_unstable();
        let mut right = self.cut.offsets();
        right.pop();
        let differs = all.iter().zip(&right).find(|(is, should)| is != should).map(|(is, _)| *is);
        match differs {
            Some(offset) => Err(offset),
            None if all.len() != right.len() => Err(self.end),
            None => Ok(()),
        }
    }
}

/// Whether the link of a block that was free, or its poison, was overwritten.
pub(super) fn is_damaged(kernel: &Kernel, taken: &Taken, size: u32, watched: bool) -> bool {
    if read(kernel, taken.phys) != taken.link {
        return true;
    }
    let mut bytes = vec![POISON_FREED; usize::try_from(size).unwrap_or(0).saturating_sub(4)];
    if watched {
        let _ = kernel.ram().read_uncached(taken.phys.wrapping_add(4), &mut bytes);
    }
    bytes.iter().any(|&byte| byte != POISON_FREED)
}

/// Fills bytes of a page, all of which are RAM.
pub(super) fn fill(kernel: &Kernel, at: PhysAddr, len: u64, byte: u8) {
    let _ = kernel.ram().write_uncached(at, &vec![byte; usize::try_from(len).unwrap_or(0)]);
}

fn store(kernel: &Kernel, page: PhysAddr, offset: u32, link: u32) {
    let _ = kernel.ram().write_uncached(page.wrapping_add(offset.into()), &link.to_le_bytes());
}

fn read(kernel: &Kernel, at: PhysAddr) -> u32 {
    let mut bytes = [0; 4];
    let _ = kernel.ram().read_uncached(at, &mut bytes);
    u32::from_le_bytes(bytes)
}
