//! `kmem_cache`: a driver's own cache of objects of one size.
//!
//! A [`KmemCache`] gives objects as [`KBuf`]s of exactly its size, aligned as it was asked, from slabs of its own. A
//! constructor runs for each object when a slab is made, never per allocation: an object must be given back in the state
//! it was constructed in. The cache must outlive its objects; destroyed earlier it stays behind, as Linux's does, and
//! that is reported.
//!
//! Mirrors `mm/slab_common.c` and `mm/slub.c` of 6.1. Neighbours: [`crate::slab`] knows who has what, `kmalloc::object` is
//! the door to it. Left out: merging with caches of the same size (so [`KmemCache::stats`] are always this cache's), user
//! copy regions, RCU grace periods, the memory that describes a cache (its point and event are there).

use thiserror::Error;

use crate::cpu::{Cpu, Halt};
use crate::env::Verdict;
use crate::fault::Request;
use crate::finding::FindingKind;
use crate::gfp::{__GFP_ZERO, GFP_KERNEL, Gfp};
use crate::kbuf::KBuf;
use crate::kernel::{Kernel, KernelRef};
use crate::kmalloc::object::{check_paddings, empty_quarantine, put_many, release, small, take_many};
use crate::kmalloc::report;
use crate::page::give_block_by;
use crate::site::Owner;
use crate::slab::{CacheStats, Geometry, KMALLOC_MAX_SIZE, Wish};
use crate::trace::{Kind, owner_word};
use crate::zone::AllocError;

#[cfg(test)]
mod property;
#[cfg(test)]
mod tests;

pub use crate::slab::{Construct, Ctor, SlabFlags};

/// Bytes that describe a cache, for injectors that count them.
const DESCRIPTOR: u64 = 216;

/// Why a cache was not created.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("kmem_cache_create_usercopy({name}) failed with error {}", self.errno())]
pub enum CreateError {
    /// A flag that a driver may not use, no size, or one above 4 MiB.
    Invalid {
        /// The cache's name.
        name: &'static str,
        /// The size asked for.
        size: usize,
        /// The flags asked for.
        flags: SlabFlags,
    },
    /// No memory to describe it.
    NoMemory {
        /// The cache's name.
        name: &'static str,
    },
}

impl CreateError {
    /// Linux's number for it.
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Invalid { .. } => -22,
            Self::NoMemory { .. } => -12,
        }
    }
}

/// A cache of objects of one size.
#[must_use = "the cache is destroyed when this is dropped"]
pub struct KmemCache {
    kernel: KernelRef,
    /// Its number among the kernel's caches.
    cache: u32,
    name: &'static str,
    geometry: Geometry,
}

/// Creates a cache of objects of `size` bytes (`kmem_cache_create`). Process context only.
///
/// `align` 0 is a word; `ctor` makes an object of a new slab. A name that is in use is accepted, as in 6.1.
///
/// # Errors
/// [`CreateError`]; with [`SlabFlags::PANIC`] the CPU stops instead.
#[track_caller]
pub fn kmem_cache_create(
    cpu: &Cpu<'_>,
    name: &'static str,
    size: usize,
    align: u32,
    flags: SlabFlags,
    ctor: Option<Ctor>,
) -> Result<KmemCache, CreateError> {
    let owner = cpu.owner();
    cpu.might_sleep("kmem_cache_create");
    let created = create(cpu, name, size, align, flags, ctor, owner);
    let Err(error) = created else { return created };
    cpu.kernel().log().print(cpu.now(), &error.to_string());
    if matches!(error, CreateError::Invalid { .. }) {
        cpu.emit(FindingKind::CacheRefused { name, errno: error.errno() }, None, vec![("created at", owner)]);
    }
    if flags.contains(SlabFlags::PANIC) {
        let errno = error.errno();
        let text = format!(
            "Kernel panic - not syncing: kmem_cache_create_usercopy: Failed to create slab '{name}'. Error {errno}"
        );
        cpu.kernel().log().print(cpu.now(), &text);
        cpu.halt(Halt::Oops);
    }
    Err(error)
}

fn create(
    cpu: &Cpu<'_>,
    name: &'static str,
    size: usize,
    align: u32,
    flags: SlabFlags,
    ctor: Option<Ctor>,
    owner: Owner,
) -> Result<KmemCache, CreateError> {
    let invalid = CreateError::Invalid { name, size, flags };
    if !SlabFlags::PERMITTED.contains(flags) || size == 0 || size > KMALLOC_MAX_SIZE {
        return Err(invalid);
    }
    let request = Request::slab(DESCRIPTOR, GFP_KERNEL, Some("kmem_cache"));
    let failed = cpu.pass(request, owner, GFP_KERNEL.can_fail(0, cpu.kernel().config().arch)) == Verdict::Fail;
    cpu.trace(Kind::KmemCacheAlloc, 0, usize::try_from(DESCRIPTOR).unwrap_or(0), 0, owner_word(owner));
    if failed {
        return Err(CreateError::NoMemory { name });
    }
    let object_size = u32::try_from(size).map_err(|_| invalid)?;
    let wish = Wish { object_size, align, flags, ctor: ctor.is_some(), kmalloc: false };
    let mut memory = cpu.kernel().memory.lock();
    let cache = memory.slabs.create(name, wish, ctor, owner).ok_or(invalid)?;
    let (_, geometry) = memory.slabs.described(cache).ok_or(invalid)?;
    Ok(KmemCache { kernel: cpu.kernel_ref(), cache, name, geometry })
}

impl KmemCache {
    /// Allocates an object (`kmem_cache_alloc`). With a mask that may sleep: process context only.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`].
    #[track_caller]
    pub fn alloc(&self, cpu: &Cpu<'_>, gfp: Gfp) -> Result<KBuf, AllocError> {
        let owner = cpu.owner();
        if gfp.may_sleep() {
            cpu.might_sleep("kmem_cache_alloc");
        }
        let len = self.object_size();
        let placed = small(cpu, self.cache, self.request(gfp), len, owner);
        KBuf::of_object(cpu, placed, Kind::KmemCacheAlloc, len, gfp, owner)
    }

    /// Allocates an object of zeros (`kmem_cache_zalloc`); what a constructor did is gone then. Context as
    /// [`KmemCache::alloc`].
    ///
    /// # Errors
    /// As [`KmemCache::alloc`].
    #[track_caller]
    pub fn zalloc(&self, cpu: &Cpu<'_>, gfp: Gfp) -> Result<KBuf, AllocError> {
        self.alloc(cpu, gfp | __GFP_ZERO)
    }

    /// Allocates `n` objects or none (`kmem_cache_alloc_bulk`). Interrupts on; else as [`KmemCache::alloc`].
    ///
    /// One point and one event stand for all of them.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`] if one of them can't be had.
    #[track_caller]
    pub fn alloc_bulk(&self, cpu: &Cpu<'_>, gfp: Gfp, n: usize) -> Result<Vec<KBuf>, AllocError> {
        let owner = cpu.owner();
        if gfp.may_sleep() {
            cpu.might_sleep("kmem_cache_alloc_bulk");
        } else {
            cpu.wrong_context(cpu.irqs_disabled(), "kmem_cache_alloc_bulk", None);
        }
        let len = self.object_size();
        let taken = take_many(cpu, self.cache, self.request(gfp), (n, len), owner);
        let first = taken.as_ref().ok().and_then(|objects| objects.first()).map_or(0, |object| object.phys.get());
        cpu.trace(Kind::KmemCacheAlloc, first, n * len, 0, owner_word(owner));
        let objects = taken?;
        Ok(objects
            .into_iter()
            .map(|object| KBuf::zeroed_object(cpu, object, Kind::KmemCacheAlloc, len, gfp, owner))
            .collect())
    }

    /// Gives an object back (`kmem_cache_free`). Any context.
    ///
    /// An object of another cache goes back to its own, and that is reported.
    #[track_caller]
    pub fn free(&self, cpu: &Cpu<'_>, object: KBuf) {
        let phys = object.leak();
        self.free_raw(cpu.kernel(), phys, cpu.owner());
    }

    pub(crate) fn free_raw(&self, kernel: &Kernel, phys: crate::addr::PhysAddr, by: Owner) {
        release(kernel, phys, Kind::KmemCacheFree, Some(self.cache), by);
    }

    /// Gives many objects back (`kmem_cache_free_bulk`). Interrupts on.
    #[track_caller]
    pub fn free_bulk(&self, cpu: &Cpu<'_>, objects: Vec<KBuf>) {
        cpu.wrong_context(cpu.irqs_disabled(), "kmem_cache_free_bulk", None);
        let all: Vec<_> = objects.into_iter().map(KBuf::leak).collect();
        put_many(cpu.kernel(), &all, self.cache, cpu.owner());
    }

    /// Gives empty slabs back to the page allocator (`kmem_cache_shrink`); tells whether any slab is left. Process context
    /// only.
    #[track_caller]
    pub fn shrink(&self, cpu: &Cpu<'_>) -> bool {
        cpu.might_sleep("kmem_cache_shrink");
        let owner = cpu.owner();
        check_paddings(cpu.kernel(), self.cache, owner);
        let (blocks, left) = {
            let mut memory = cpu.kernel().memory.lock();
            let memory = &mut *memory;
            memory.slabs.shrink(&mut memory.zones, self.cache)
        };
        blocks.iter().for_each(|block| give_block_by(cpu.kernel(), block.pfn.phys(), block.order, owner));
        left
    }

    /// Destroys the cache (`kmem_cache_destroy`). Process context only.
    ///
    /// With live objects it stays until the machine ends; they may still be freed, and its name is free again.
    #[track_caller]
    pub fn destroy(self, cpu: &Cpu<'_>) {
        cpu.might_sleep("kmem_cache_destroy");
        shut_down(cpu.kernel(), self.cache, self.name, cpu.owner());
        std::mem::forget(self);
    }

    /// The name it was created with.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// How it lays out objects and cuts slabs.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Bytes of an object (`kmem_cache_size`).
    pub fn object_size(&self) -> usize {
        usize::try_from(self.geometry.object_size).unwrap_or(0)
    }

    /// Its numbers; `None` if its machine was recycled.
    pub fn stats(&self) -> Option<CacheStats> {
        self.kernel.get().and_then(|kernel| kernel.memory.lock().slabs.numbers(self.cache))
    }

    fn request(&self, gfp: Gfp) -> Request {
        Request::slab(self.geometry.object_size.into(), gfp, Some(self.name))
    }
}

impl Drop for KmemCache {
    fn drop(&mut self) {
        if let Some(kernel) = self.kernel.get() {
            shut_down(kernel, self.cache, self.name, Owner::default());
        }
    }
}

fn shut_down(kernel: &Kernel, cache: u32, name: &'static str, by: Owner) {
    empty_quarantine(kernel, by);
    check_paddings(kernel, cache, by);
    let destroyed = {
        let mut memory = kernel.memory.lock();
        let memory = &mut *memory;
        memory.slabs.destroy(&mut memory.zones, cache)
    };
    destroyed.blocks.iter().for_each(|block| give_block_by(kernel, block.pfn.phys(), block.order, by));
    if !destroyed.remaining.is_empty() {
        report::still_busy(kernel, name, &destroyed.remaining, by);
    }
}
