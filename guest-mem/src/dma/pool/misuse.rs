//! What can be wrong with a block that is given back to a DMA pool, and the raw call that can get it wrong.
//!
//! Texts are Linux's where it has one. Neighbours: [`super::Block`] gives itself back rightly.

use thiserror::Error;

use super::page::Wrong;
use super::{DmaPool, Shared};
use crate::addr::{DmaAddr, PhysAddr, VirtAddr};
use crate::cpu::Cpu;
use crate::env::Class;
use crate::site::Owner;

/// Misuse of a DMA pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum PoolMisuse {
    /// The bus address is of no page of the pool.
    #[error("dma_pool_free {pool}, {:016x}/{:#018x} (bad dma)", .block.get(), .dma.get())]
    BadDma {
        /// The pool.
        pool: &'static str,
        /// The address given.
        block: VirtAddr,
        /// The bus address given.
        dma: DmaAddr,
    },
    /// The two addresses are not of one block.
    #[error("dma_pool_free {pool}, {:016x} (bad vaddr)/{:#018x}", .block.get(), .dma.get())]
    BadAddress {
        /// The pool.
        pool: &'static str,
        /// The address given.
        block: VirtAddr,
        /// The bus address given.
        dma: DmaAddr,
    },
    /// The block is free already.
    #[error("dma_pool_free {pool}, dma {:#018x} already free", .dma.get())]
    AlreadyFree {
        /// The pool.
        pool: &'static str,
        /// Its bus address.
        dma: DmaAddr,
    },
    /// A free block was written to.
    #[error("dma_pool_alloc {pool}, {:016x} (corrupted)", .block.get())]
    Corrupted {
        /// The pool.
        pool: &'static str,
        /// The block.
        block: VirtAddr,
    },
    /// The pool was destroyed while a block of this page was out.
    #[error("dma_pool_destroy {pool}, {:016x} busy", .page.get())]
    Busy {
        /// The pool.
        pool: &'static str,
        /// The page.
        page: VirtAddr,
    },
}

impl PoolMisuse {
    /// The stable name.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::BadDma { .. } => "pool-bad-dma",
            Self::BadAddress { .. } => "pool-bad-address",
            Self::AlreadyFree { .. } => "pool-double-free",
            Self::Corrupted { .. } => "pool-corrupted",
            Self::Busy { .. } => "pool-busy",
        }
    }

    /// The option under which Linux prints it.
    pub(crate) const fn config(&self) -> &'static str {
        match self {
            Self::BadDma { .. } | Self::Busy { .. } => "any",
            _ => "CONFIG_SLUB_DEBUG_ON",
        }
    }

    /// Whether this machine's kernel prints it.
    pub(super) fn printed(&self, watched: bool) -> bool {
        watched || self.config() == "any"
    }
}

/// Gives a block back by its addresses (`dma_pool_free`), right or wrong, as often as called. Any context.
#[track_caller]
pub fn dma_pool_free(cpu: &Cpu<'_>, pool: &DmaPool, phys: PhysAddr, dma: DmaAddr) {
    let owner = cpu.owner();
    let _ = cpu.point_for(Class::Release, pool.shared.cut.size.into(), owner);
    free_raw(&pool.shared, phys, dma, owner);
}

pub(super) fn free_raw(pool: &Shared, phys: PhysAddr, dma: DmaAddr, by: Owner) {
    let Some(kernel) = pool.device.live_kernel() else { return };
    let block = kernel.config().arch.direct_map(phys).unwrap_or(VirtAddr::new(0));
    let wrong = {
        let mut state = pool.state.lock();
        let found = state.pages.iter_mut().find_map(|page| page.offset_of(dma).map(|offset| (page, offset)));
        match found {
            None => Some(PoolMisuse::BadDma { pool: pool.name, block, dma }),
            Some((page, offset)) => match page.give(kernel, phys, offset, Shared::watched(kernel)) {
                Ok(()) => None,
                Err(Wrong::Free) => Some(PoolMisuse::AlreadyFree { pool: pool.name, dma }),
                Err(Wrong::Place) => Some(PoolMisuse::BadAddress { pool: pool.name, block, dma }),
            },
        }
    };
    if let Some(misuse) = wrong {
        pool.report(kernel, misuse, vec![("freed at", by)]);
    }
}
