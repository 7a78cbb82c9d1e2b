//! Steps on memory that driver and devices share: coherent regions, and blocks of a DMA pool.

use super::run::{State, Turn};
use super::shadow::{Check, ensure};
use crate::cpu::Cpu;
use crate::dma::coherent::{Coherent, CoherentError};
use crate::gfp::{__GFP_ZERO, GFP_KERNEL};

/// Bytes of the pool's blocks, how many of them a page has, and the link behind the last.
pub(super) const BLOCK: usize = 192;
const BLOCKS: u32 = 21;
const END: u32 = 4096;

const REGIONS: usize = 6;
const TAKEN: usize = 50;

/// A page of the pool.
pub(super) struct Cut {
    dma: u64,
    phys: u64,
    /// Offsets of free blocks; the last is given first.
    free: Vec<u32>,
}

impl Cut {
    fn link(&self) -> u32 {
        self.free.last().copied().unwrap_or(END)
    }
}

impl State {
    pub(super) fn region(&mut self, cpu: &Cpu<'_>, turn: &mut Turn<'_>) -> Check {
        match turn.dice.roll(5) {
            0 if self.regions.len() < REGIONS => self.alloc_region(cpu, turn),
            1 if !self.regions.is_empty() => {
                let (dev, region) = self.regions.swap_remove(turn.dice.index(self.regions.len()));
                self.free_region(cpu, turn, dev, region);
                Ok(())
            }
            _ if !self.regions.is_empty() => {
                let region = &self.regions[turn.dice.index(self.regions.len())].1;
                let (from, len) = turn.part(region.len(), 128);
                let (at, mut bytes) = (region.phys().get() + from as u64, vec![0; len]);
                if turn.dice.once_in(2) {
                    bytes.fill(turn.dice.roll(256) as u8);
                    region.write(cpu, from, &bytes);
                    self.shadow.memory.device_writes(at, &bytes);
                    return Ok(());
                }
                let mut should = bytes.clone();
                region.read(cpu, from, &mut bytes);
                self.shadow.memory.device_reads(at, &mut should);
                ensure!(bytes == should, "coherent memory at {at:#x} is not what it should be");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn alloc_region(&mut self, cpu: &Cpu<'_>, turn: &mut Turn<'_>) -> Check {
        let (dev, len) = (turn.dice.index(self.devices.len()), turn.some(14_000));
        match self.devices[dev].alloc_coherent(cpu, len, GFP_KERNEL) {
            Ok(region) => {
                let (dma, phys) = (region.dma_addr().get(), region.phys().get());
                self.shadow.coherent(dev, dma, phys, len as u64)?;
                self.regions.push((dev, region));
            }
            Err(CoherentError::Iova(_)) => {
                let book = &self.shadow.books[dev];
                let room = book.domain.as_ref().is_none_or(|domain| domain.has_room(0, len as u64, book.mask));
                ensure!(!room, "no addresses for {len} bytes");
            }
            Err(why) => return Err(why.to_string()),
        }
        Ok(())
    }

    fn free_region(&mut self, cpu: &Cpu<'_>, turn: &mut Turn<'_>, dev: usize, region: Coherent) {
        let dma = region.dma_addr().get();
        if turn.dice.once_in(2) {
            region.free(cpu)
        } else {
            drop(region)
        }
        self.shadow.end(dev, |piece| piece.coherent && piece.dma == dma);
    }

    /// At the end of a run.
    pub(super) fn free_regions(&mut self, cpu: &Cpu<'_>) {
        for (dev, region) in std::mem::take(&mut self.regions) {
            let dma = region.dma_addr().get();
            region.free(cpu);
            self.shadow.end(dev, |piece| piece.coherent && piece.dma == dma);
        }
        while !self.blocks.is_empty() {
            self.free_block(cpu, 0);
        }
        if let Some(pool) = self.pool.take() {
            pool.destroy(cpu);
        }
        for cut in std::mem::take(&mut self.cuts) {
            self.shadow.end(0, |piece| piece.coherent && piece.dma == cut.dma);
        }
    }

    pub(super) fn block(&mut self, cpu: &Cpu<'_>, turn: &mut Turn<'_>) -> Check {
        match turn.dice.roll(5) {
            0 | 1 if self.blocks.len() < TAKEN => self.alloc_block(cpu, turn),
            2 if !self.blocks.is_empty() => {
                let at = turn.dice.index(self.blocks.len());
                self.free_block(cpu, at);
                Ok(())
            }
            _ if !self.blocks.is_empty() => {
                let block = &self.blocks[turn.dice.index(self.blocks.len())];
                let (from, len) = turn.part(BLOCK, BLOCK);
                let (at, mut bytes) = (block.phys().get() + from as u64, vec![0; len]);
                if turn.dice.once_in(2) {
                    bytes.fill(turn.dice.roll(256) as u8);
                    block.write(cpu, from, &bytes);
                    self.shadow.memory.device_writes(at, &bytes);
                    return Ok(());
                }
                let mut should = bytes.clone();
                block.read(cpu, from, &mut bytes);
                self.shadow.memory.device_reads(at, &mut should);
                ensure!(bytes == should, "the block at {at:#x} is not what it should be");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn alloc_block(&mut self, cpu: &Cpu<'_>, turn: &mut Turn<'_>) -> Check {
        let zero = turn.dice.once_in(3);
        let Some(pool) = &self.pool else { return Ok(()) };
        let block = pool.alloc(cpu, if zero { GFP_KERNEL | __GFP_ZERO } else { GFP_KERNEL });
        let block = block.map_err(|error| error.to_string())?;
        let (dma, phys) = (block.dma_addr().get(), block.phys().get());
        let newest = match self.cuts.iter().rposition(|cut| !cut.free.is_empty()) {
            Some(at) => at,
            None => self.new_cut(dma, phys)?,
        };
        let cut = &mut self.cuts[newest];
        let offset = cut.free.pop().unwrap_or(END);
        let (at, link) = (u64::from(offset), cut.link());
        ensure!((cut.dma + at, cut.phys + at) == (dma, phys), "a block at {dma:#x} is not the one freed last");
        let mut held = [0; 4];
        self.shadow.memory.device_reads(phys, &mut held);
        if u32::from_le_bytes(held) != link {
            self.shadow.expected.push(("pool-corrupted", 0));
        }
        if zero {
            self.shadow.memory.device_writes(phys, &[0; BLOCK]);
        }
        self.blocks.push(block);
        Ok(())
    }

    /// The pool has taken a page, whose first block lies there.
    fn new_cut(&mut self, dma: u64, phys: u64) -> Result<usize, String> {
        self.shadow.coherent(0, dma, phys, 4096)?;
        let offsets = (0..BLOCKS).map(|block| block * BLOCK as u32);
        let mut cut = Cut { dma, phys, free: Vec::new() };
        for offset in offsets.rev() {
            self.shadow.memory.device_writes(phys + u64::from(offset), &cut.link().to_le_bytes());
            cut.free.push(offset);
        }
        self.cuts.push(cut);
        Ok(self.cuts.len() - 1)
    }

    fn free_block(&mut self, cpu: &Cpu<'_>, at: usize) {
        let block = self.blocks.swap_remove(at);
        let phys = block.phys().get();
        block.free(cpu);
        let cut = self.cuts.iter_mut().find(|cut| phys - phys % 4096 == cut.phys).unwrap();
        self.shadow.memory.device_writes(phys, &cut.link().to_le_bytes());
        cut.free.push((phys % 4096) as u32);
    }

    /// Whether a device has written over the link of a free block.
    pub(super) fn shadow_links_broken(&mut self) -> bool {
        let Self { cuts, shadow, .. } = self;
        cuts.iter().any(|cut| {
            let links = [END].iter().chain(&cut.free);
            cut.free.iter().zip(links).any(|(&offset, link)| {
                let mut held = [0; 4];
                shadow.memory.device_reads(cut.phys + u64::from(offset), &mut held);
                u32::from_le_bytes(held) != *link
            })
        })
    }
}
