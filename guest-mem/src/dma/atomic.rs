//! Atomic pools: coherent memory of non-coherent devices for callers that can't wait.
//!
//! An uncached alias needs page tables, which may sleep. So a request that may not is served from memory that was set
//! aside at boot: a pool each for any memory, for zone DMA32 and for zone DMA, 128 KiB for each GiB of RAM, in whole
//! blocks. The mask chooses the first pool, and the lower ones are tried after it. A coherent device asks the page
//! allocator, whatever its mask. Mirrors kernel/dma/pool.c. Neighbours: `coherent`. Left out: growing in the background;
//! the pools are no part of their zones here, where Linux counts them as allocated.

use std::ops::Range;

use crate::addr::{PAGE_SIZE, PhysAddr};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::dma::coherent::{CoherentError, get_order};
use crate::dma::device::DmaDevice;
use crate::env::{Class, Verdict};
use crate::fault::Request;
use crate::gfp::{GFP_DMA, GFP_DMA32, Gfp};
use crate::kernel::MachineConfig;
use crate::ram::{HIGH_START, Ram};
use crate::site::Owner;
use crate::zone::Block;
use crate::zone::layout::DMA_END;

const LEAST: u64 = 128 << 10;
const MOST: u64 = 4 << 20;
/// Pages of RAM for each page of a pool: 128 KiB of a GiB.
const SHARE: u64 = 8192;

/// One pool: pages in a row, given out first fit, each piece aligned to its order.
#[derive(Clone, PartialEq, Eq, Debug)]
struct AtomicPool {
    base: PhysAddr,
    pages: u64,
    /// First page and count of what is given out, in order.
    taken: Vec<(u64, u64)>,
}

impl AtomicPool {
    /// The pool of so many bytes that ends at or below an address; none if there is no room above address 0.
    fn below(end: u64, bytes: u64) -> Option<Self> {
        let base = end.checked_sub(bytes).map(|base| base - base % bytes).filter(|&base| base > 0)?;
        Some(Self { base: PhysAddr::new(base), pages: bytes / PAGE_SIZE, taken: Vec::new() })
    }

    fn range(&self) -> Range<PhysAddr> {
        self.base..self.base.wrapping_add(self.pages * PAGE_SIZE)
    }

    /// `gen_pool_first_fit_order_align`.
    fn take(&mut self, pages: u64) -> Option<PhysAddr> {
        let align = pages.checked_next_power_of_two().filter(|_| pages <= self.pages)?;
        let (mut first, mut place) = (0, self.taken.len());
        for (number, &(from, count)) in self.taken.iter().enumerate() {
            if first + pages <= from {
                place = number;
                break;
            }
            first = first.max((from + count).next_multiple_of(align));
        }
        if first + pages > self.pages {
            return None;
        }
        self.taken.insert(place, (first, pages));
        Some(self.base.wrapping_add(first * PAGE_SIZE))
    }

    fn give(&mut self, at: PhysAddr) -> bool {
        let first = at.get().wrapping_sub(self.base.get()) / PAGE_SIZE;
        let found = self.taken.binary_search_by_key(&first, |&(first, _)| first);
        found.map(|place| self.taken.remove(place)).is_ok() && self.range().contains(&at)
    }
}

/// The pools of a machine, in the order in which they are tried: any memory, zone DMA32, zone DMA.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct AtomicPools([Option<AtomicPool>; 3]);

impl AtomicPools {
    /// Those of a machine whose low memory ends at `low`, its bounce pool apart; none where devices are coherent.
    pub(crate) fn of(config: &MachineConfig, ram: &Ram, low: u64) -> Self {
        if config.coherent {
            return Self::default();
        }
        let bytes = (config.ram / SHARE).next_multiple_of(PAGE_SIZE).clamp(LEAST, MOST).next_power_of_two();
        let wide = config.arch == Arch::X86_64;
        // At the bottom of its zone, as the lowest free block serves as well as any.
        let above = |start: u64| AtomicPool::below(start + bytes, bytes).filter(|_| start + bytes <= low);
        let dma32 = above(DMA_END).filter(|_| wide);
        let any = if wide && ram.end() > HIGH_START + bytes {
            AtomicPool::below(ram.end(), bytes)
        } else {
            let start = if dma32.is_some() { DMA_END + bytes } else { DMA_END };
            above(start).or_else(|| AtomicPool::below(low, bytes))
        };
        let lowest = any.as_ref().map_or(low, |pool| pool.base.get());
        let dma = AtomicPool::below(DMA_END.min(lowest), bytes);
        Self([any, dma32, dma])
    }

    /// What the zones may not have.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<PhysAddr>> {
        self.0.iter().flatten().map(AtomicPool::range)
    }

    /// Pages of the first pool that has them where the device reaches them (`dma_guess_pool`).
    fn take(&mut self, zone: Gfp, pages: u64, reached: impl Fn(PhysAddr) -> bool) -> Option<PhysAddr> {
        let first = match zone {
            zone if zone == GFP_DMA32 && self.0[1].is_some() => 1,
            zone if zone == GFP_DMA && self.0[2].is_some() => 2,
            _ => 0,
        };
        self.0[first..].iter_mut().flatten().find_map(|pool| {
            let at = pool.take(pages)?;
            if reached(at) {
                return Some(at);
            }
            pool.give(at);
            None
        })
    }

    /// Takes pages back; false if they are none of its (`dma_free_from_pool`).
    pub(crate) fn give(&mut self, at: PhysAddr) -> bool {
        self.0.iter_mut().flatten().any(|pool| pool.range().contains(&at) && pool.give(at))
    }

    /// All given back.
    pub(crate) fn reset(&mut self) {
        self.0.iter_mut().flatten().for_each(|pool| pool.taken.clear());
    }
}

impl DmaDevice {
    /// Whether a request is one for the pools (`dma_direct_use_pool`).
    #[inline]
    pub(super) fn uses_atomic_pool(cpu: &Cpu<'_>, gfp: Gfp) -> bool {
        !cpu.kernel().config().coherent && !gfp.may_sleep()
    }

    /// Zeroed pages of the pools (`dma_direct_alloc_from_pool`).
    #[track_caller]
    pub(super) fn take_from_atomic_pool(
        &self,
        cpu: &Cpu<'_>,
        len: usize,
        gfp: Gfp,
        owner: Owner,
    ) -> Result<Block, CoherentError> {
        let kernel = self.live_for(cpu, None).ok_or(CoherentError::Stale)?;
        let (order, mask) = (get_order(len), self.coherent_mask());
        let request = Request { class: Class::Coherent, ..Request::pages(order, gfp) };
        if cpu.pass(request, owner, true) == Verdict::Fail {
            return Err(CoherentError::NoPool { len });
        }
        let pages = (len as u64).div_ceil(PAGE_SIZE);
        let translated = self.domain().is_some();
        let zone = if translated { Gfp::empty() } else { self.zone_bits(mask) };
        let reached = |at| translated || Self::capable(self.bus_address(at), pages * PAGE_SIZE, mask);
        let taken = if pages == 0 { None } else { kernel.atomic_pools.lock().take(zone, pages, reached) };
        let Some(at) = taken else {
            kernel.log().print(cpu.now(), &format!("Failed to get suitable pool for {}", self.name()));
            return Err(CoherentError::NoPool { len });
        };
        // The pools lie in RAM.
        let _ = kernel.ram().zero_uncached(at, pages * PAGE_SIZE);
        Ok(Block { pfn: at.pfn(), order, zone: kernel.config().arch.zone_of(at) })
    }
}

#[cfg(test)]
mod tests;
