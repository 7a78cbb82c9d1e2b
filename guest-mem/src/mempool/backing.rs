//! What a pool takes its elements from.
//!
//! An element frees itself when it drops, so a backing allocator only allocates. Neighbours: [`super::Mempool`] calls
//! it, with its own masks; `kbuf` and `page` serve the usual ones. Left out: kvmalloc, which 6.1 has no helper for.

use std::sync::Arc;

use crate::addr::PAGE_SIZE;
use crate::cpu::Cpu;
use crate::gfp::Gfp;
use crate::kbuf::KBuf;
use crate::kmem_cache::KmemCache;
use crate::mempool::{Mempool, MempoolError, mempool_create};
use crate::page::{Pages, alloc_pages};
use crate::zone::AllocError;

/// The allocator behind a pool (`mempool_alloc_t` and `mempool_free_t`).
pub trait Backing {
    /// What it gives; dropping it frees it.
    type Element;

    /// Allocates an element. Called with masks of the pool's making; with one that may not sleep it must not.
    ///
    /// # Errors
    /// [`AllocError`] if there is none.
    #[track_caller]
    fn alloc(&self, cpu: &Cpu<'_>, gfp: Gfp) -> Result<Self::Element, AllocError>;

    /// Bytes of one element.
    fn bytes(&self) -> u64;

    /// What reports call it.
    fn kind(&self) -> &'static str {
        "custom"
    }
}

/// `kmalloc` of so many bytes (`mempool_kmalloc`).
#[derive(Clone, Copy, Debug)]
pub struct Kmalloc(pub usize);

impl Backing for Kmalloc {
    type Element = KBuf;

    fn alloc(&self, cpu: &Cpu<'_>, gfp: Gfp) -> Result<KBuf, AllocError> {
        KBuf::kmalloc(cpu, self.0, gfp)
    }

    fn bytes(&self) -> u64 {
        self.0 as u64
    }

    fn kind(&self) -> &'static str {
        "kmalloc"
    }
}

/// Objects of a driver's own cache (`mempool_alloc_slab`).
#[derive(Clone)]
pub struct SlabObjects(pub Arc<KmemCache>);

impl Backing for SlabObjects {
    type Element = KBuf;

    fn alloc(&self, cpu: &Cpu<'_>, gfp: Gfp) -> Result<KBuf, AllocError> {
        self.0.alloc(cpu, gfp)
    }

    fn bytes(&self) -> u64 {
        self.0.object_size() as u64
    }

    fn kind(&self) -> &'static str {
        "slab"
    }
}

/// Blocks of this order (`mempool_alloc_pages`); with `__GFP_HIGHMEM` they may lie in high memory.
#[derive(Clone, Copy, Debug)]
pub struct PageBlocks(pub u8);

impl Backing for PageBlocks {
    type Element = Pages;

    fn alloc(&self, cpu: &Cpu<'_>, gfp: Gfp) -> Result<Pages, AllocError> {
        alloc_pages(cpu, self.0, gfp)
    }

    fn bytes(&self) -> u64 {
        PAGE_SIZE << self.0
    }

    fn kind(&self) -> &'static str {
        "page"
    }
}

/// A pool of `size` bytes of `kmalloc` (`mempool_create_kmalloc_pool`). Process context only.
///
/// # Errors
/// As [`mempool_create`].
#[track_caller]
pub fn mempool_create_kmalloc_pool(
    cpu: &Cpu<'_>,
    min_nr: usize,
    size: usize,
) -> Result<Mempool<Kmalloc>, MempoolError> {
    mempool_create(cpu, min_nr, Kmalloc(size))
}

/// A pool of objects of a cache (`mempool_create_slab_pool`). Process context only.
///
/// # Errors
/// As [`mempool_create`].
#[track_caller]
pub fn mempool_create_slab_pool(
    cpu: &Cpu<'_>,
    min_nr: usize,
    cache: Arc<KmemCache>,
) -> Result<Mempool<SlabObjects>, MempoolError> {
    mempool_create(cpu, min_nr, SlabObjects(cache))
}

/// A pool of blocks of pages (`mempool_create_page_pool`). Process context only.
///
/// # Errors
/// As [`mempool_create`].
#[track_caller]
pub fn mempool_create_page_pool(cpu: &Cpu<'_>, min_nr: usize, order: u8) -> Result<Mempool<PageBlocks>, MempoolError> {
    mempool_create(cpu, min_nr, PageBlocks(order))
}
