//! `kmalloc`: small objects cut from slabs, large ones from whole pages, and the truth about who holds which.
//!
//! [`Kmalloc`] serves a request from the cache of its size class, or from the page allocator beyond 8192 bytes. All
//! it knows lies out of band, so that a second free, a pointer into an object's middle or one that `kmalloc` never
//! gave are told apart, where Linux corrupts its lists or stays silent.
//!
//! A pure data structure, as [`crate::zone`]: no lock, no CPU, no waiting, no byte of RAM is touched. Zeroing,
//! reports, retries and faults are those of its wrapper.
//!
//! Mirrors `include/linux/slab.h`, `mm/slab_common.c` and `mm/slub.c` of 6.1. Neighbours: `class` says which cache
//! and how its slabs are cut, `cache` which object is next, `validate` what must always hold. Left out: caches of a
//! driver's own, debug layouts; an empty slab is returned when enough other *empty* ones are kept, Linux counts
//! partial ones too.

use crate::addr::PhysAddr;
use crate::frame::{Kind, NIL, PAYLOAD_END};
use crate::gfp::{__GFP_RECLAIM, GFP_SLAB_BUG_MASK, GFP_SLAB_PASS_MASK, Gfp};
use crate::site::Owner;
use crate::zone::{AllocError, Allocated, Block, Zones};

mod cache;
mod class;
mod object;
#[cfg(test)]
mod tests;
mod validate;

use cache::{Cache, Slab};
pub use class::{
    CACHES, CLASSES, CacheId, KMALLOC_MAX_CACHE_SIZE, KMALLOC_MAX_SIZE, Shape, get_order, kmalloc_size_roundup,
};
pub use object::{Allocation, CacheStats, Object, ZERO_SIZE_PTR};
pub use validate::InvalidSlab;

/// Why an address was not freed; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KfreeError {
    /// The object was freed before. Linux: its list then hands one address out twice.
    #[error("{phys:#x} was freed before, {requested} bytes last allocated by {owner}")]
    Double {
        /// The object.
        phys: PhysAddr,
        /// The bytes it was last allocated for.
        requested: u32,
        /// Who had it last.
        owner: Owner,
    },
    /// The address lies inside an object or block. Linux: silent corruption.
    #[error("{phys:#x} lies inside the object at {object:#x}")]
    Inside {
        /// The address.
        phys: PhysAddr,
        /// Where its object begins.
        object: PhysAddr,
    },
    /// Nothing is allocated there: a second free whose pages are gone, or an address that was never given.
    #[error("nothing is allocated at {phys:#x}")]
    NotAllocated {
        /// The address.
        phys: PhysAddr,
    },
    /// The page was allocated as a page. Linux: a warning, and the page is freed.
    #[error("{phys:#x} is a page of {owner}, not from kmalloc")]
    NotKmalloc {
        /// The address.
        phys: PhysAddr,
        /// Who has the page.
        owner: Owner,
    },
    /// No memory that is managed lies there.
    #[error("{phys:#x} is not RAM")]
    NotRam {
        /// The address.
        phys: PhysAddr,
    },
}

/// The `kmalloc` caches of a kernel.
///
/// ```
/// use lowzone_guest_mem::gfp::GFP_KERNEL;
/// use lowzone_guest_mem::site::Owner;
/// use lowzone_guest_mem::slab::{Allocation, KfreeError, Kmalloc};
/// use lowzone_guest_mem::zone::{Layout, Zones};
/// let mut zones = Zones::new(Layout::pc(64 << 20, 3 << 30)?);
/// let mut kmalloc = Kmalloc::new(2);
/// let Allocation::Object { object, .. } = kmalloc.alloc(&mut zones, 100, GFP_KERNEL, Owner::default())? else {
///     unreachable!()
/// };
/// assert_eq!((object.requested, object.class_size), (100, 128));
/// assert_eq!(kmalloc.free(&mut zones, object.phys)?, object);
/// assert!(matches!(kmalloc.free(&mut zones, object.phys), Err(KfreeError::Double { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Kmalloc {
    /// One for each of [`CacheId::all`].
    caches: Vec<Cache>,
    /// By slab number; those from `fresh` on are unused but keep their buffers.
    slabs: Vec<Slab>,
    fresh: u32,
    /// Numbers below `fresh` that are free again.
    spare: Vec<u32>,
}

/// The pages that a cache asks for to make a slab.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refill {
    id: CacheId,
    shape: Shape,
    /// The mask that reaches the page allocator.
    pub gfp: Gfp,
}

impl Refill {
    /// The order of the block.
    pub(crate) const fn order(&self) -> u8 {
        self.shape.order
    }
}

/// Where an address lies.
enum Found {
    Large(Allocated),
    /// The object's number may be one that was never handed out.
    Small {
        index: u32,
        slot: u16,
    },
}

impl Kmalloc {
    /// The caches of a machine with so many CPUs, without any slab.
    pub fn new(cpus: u32) -> Self {
        let caches = CacheId::all().map(|id| Cache::new(id, cpus)).collect();
        Self { caches, slabs: Vec::new(), fresh: 0, spare: Vec::new() }
    }

    /// Forgets everything, as new; to be called when the pages were reset. Keeps its buffers.
    pub fn reset(&mut self) {
        self.caches.iter_mut().for_each(Cache::reset);
        self.fresh = 0;
        self.spare.clear();
    }

    /// Allocates `size` bytes (`kmalloc`, without its waiting and zeroing).
    ///
    /// # Errors
    ///
    /// [`AllocError::TooLarge`] above 4 MiB; [`AllocError::NoMemory`] if the page allocator has nothing to give.
    pub fn alloc(&mut self, zones: &mut Zones, size: usize, gfp: Gfp, owner: Owner) -> Result<Allocation, AllocError> {
        if size == 0 {
            return Ok(Allocation::ZeroSize);
        }
        let fixed_up = gfp.intersects(GFP_SLAB_BUG_MASK);
        let Some(id) = CacheId::serving(size, gfp) else {
            return Ok(Allocation::Object { object: alloc_large(zones, size, gfp, owner)?, fixed_up });
        };
        if let Some(object) = self.take(id, size, owner) {
            return Ok(Allocation::Object { object, fixed_up: false });
        }
        let [liked, smallest] = self.refills(id, gfp);
        let grown = self.grow(zones, liked, size, owner).or_else(|_| self.grow(zones, smallest, size, owner));
        grown.map(|(_, object)| Allocation::Object { object, fixed_up })
    }

    /// An object of the slabs that a cache has; `None` if all are full.
    pub(crate) fn take(&mut self, id: CacheId, size: usize, owner: Owner) -> Option<Object> {
        let requested = u16::try_from(size).unwrap_or(id.size());
        let (index, slot) = self.caches[id.index()].take(&mut self.slabs, requested, owner)?;
        self.live_object(index, slot)
    }

    /// What a cache asks the page allocator for when it has no object left, one after the other (`allocate_slab`):
    /// the slab it likes, silently and without waiting, then the smallest that holds an object.
    pub(crate) fn refills(&self, id: CacheId, gfp: Gfp) -> [Refill; 2] {
        let cache = &self.caches[id.index()];
        let (shape, smallest) = (cache.shape, cache.smallest);
        let mut gfp = (gfp & GFP_SLAB_PASS_MASK) | id.gfp();
        if shape.order > 0 {
            gfp |= Gfp::COMP;
        }
        let mut first = (gfp | Gfp::NOWARN | Gfp::NORETRY) - Gfp::NOFAIL;
        if first.may_sleep() && shape.order > smallest.order {
            first = (first | Gfp::NOMEMALLOC) - __GFP_RECLAIM;
        }
        [Refill { id, shape, gfp: first }, Refill { id, shape: smallest, gfp }]
    }

    /// Gets pages for a slab, adds it to its cache and takes an object; tells where the slab lies too.
    ///
    /// # Errors
    ///
    /// [`AllocError::NoMemory`].
    pub(crate) fn grow(
        &mut self,
        zones: &mut Zones,
        refill: Refill,
        size: usize,
        owner: Owner,
    ) -> Result<(PhysAddr, Object), AllocError> {
        let Refill { id, shape, gfp } = refill;
        let none = AllocError::NoMemory { order: shape.order, gfp, zone: gfp.highest_zone(zones.arch()) };
        let index = self.spare.last().copied().unwrap_or(self.fresh);
        if index >= PAYLOAD_END {
            return Err(none);
        }
        let block = zones.alloc_as(shape.order, gfp, owner, Kind::Slab { index })?;
        if self.spare.pop().is_none() {
            self.fresh += 1;
        }
        match self.slabs.get_mut(index as usize) {
            Some(slab) => slab.start(block, id, shape.objects),
            None => self.slabs.push(Slab::new(block, id, shape.objects)),
        }
        self.caches[id.index()].add(&mut self.slabs, index);
        let object = self.take(id, size, owner).ok_or(none)?;
        Ok((block.pfn.phys(), object))
    }

    /// Frees an object by its first byte (`kfree`); tells what it was.
    ///
    /// NULL and [`ZERO_SIZE_PTR`] have no address in RAM and are the caller's to ignore.
    ///
    /// # Errors
    ///
    /// A wrong free changes nothing.
    pub fn free(&mut self, zones: &mut Zones, phys: PhysAddr) -> Result<Object, KfreeError> {
        self.release(zones, phys).map(|(object, _)| object)
    }

    /// [`Kmalloc::free`], telling the pages that went back with it too.
    pub(crate) fn release(&mut self, zones: &mut Zones, phys: PhysAddr) -> Result<(Object, Option<Block>), KfreeError> {
        let (index, slot) = match self.locate(zones, phys)? {
            Found::Large(found) => {
                let object = Object::large(&found);
                if object.phys != phys {
                    return Err(KfreeError::Inside { phys, object: object.phys });
                }
                zones.release(found.block);
                return Ok((object, Some(found.block)));
            }
            Found::Small { index, slot } => (index, slot),
        };
        let (object, live) = self.object(index, slot).ok_or(KfreeError::NotAllocated { phys })?;
        if object.phys != phys {
            return Err(KfreeError::Inside { phys, object: object.phys });
        }
        let slab = self.slabs.get(index as usize).filter(|_| live);
        let Some((cache, block)) = slab.map(|slab| (slab.cache, slab.block)) else {
            return Err(KfreeError::Double { phys, requested: object.requested, owner: object.owner });
        };
        let returned = self.caches[cache.index()].give(&mut self.slabs, index, slot).then_some(block);
        if returned.is_some() {
            self.spare.push(index);
            zones.release(block);
        }
        Ok((object, returned))
    }

    /// The live object that holds a byte (its class size counts, not what was asked for).
    pub fn lookup(&self, zones: &Zones, phys: PhysAddr) -> Option<Object> {
        match self.locate(zones, phys).ok()? {
            Found::Large(found) => Some(Object::large(&found)),
            Found::Small { index, slot } => self.live_object(index, slot),
        }
    }

    /// Every live object in the order of addresses.
    pub fn live(&self, zones: &Zones) -> impl Iterator<Item = Object> {
        zones.live().flat_map(move |found| {
            let (large, index, slots) = match found.kind {
                Kind::Pages => (None, NIL, 0),
                Kind::Large { .. } => (Some(Object::large(&found)), NIL, 0),
                Kind::Slab { index } => (None, index, self.slabs.get(index as usize).map_or(0, |slab| slab.objects)),
            };
            large.into_iter().chain((0..slots).filter_map(move |slot| self.live_object(index, slot)))
        })
    }

    /// The numbers of all caches, in the order of [`CacheId::all`].
    pub fn stats(&self) -> impl Iterator<Item = CacheStats> {
        self.caches.iter().map(|cache| CacheStats {
            cache: cache.id,
            active: cache.active,
            total: cache.total,
            shape: cache.shape,
            slabs: cache.slabs,
        })
    }

    fn locate(&self, zones: &Zones, phys: PhysAddr) -> Result<Found, KfreeError> {
        let found = zones.lookup(phys.pfn()).ok_or_else(|| match zones.zone_of(phys.pfn()) {
            Some(_) => KfreeError::NotAllocated { phys },
            None => KfreeError::NotRam { phys },
        })?;
        match found.kind {
            Kind::Pages => Err(KfreeError::NotKmalloc { phys, owner: found.owner }),
            Kind::Large { .. } => Ok(Found::Large(found)),
            Kind::Slab { index } => {
                let slot = self.slabs.get(index as usize).and_then(|slab| {
                    let offset = phys.offset_from(slab.block.pfn.phys())?;
                    u16::try_from(offset / u64::from(slab.cache.size())).ok()
                });
                Ok(Found::Small { index, slot: slot.ok_or(KfreeError::NotAllocated { phys })? })
            }
        }
    }

    /// An object that was handed out at least once, and whether it is live.
    fn object(&self, index: u32, slot: u16) -> Option<(Object, bool)> {
        let slab = self.slabs.get(index as usize)?;
        let note = slab.notes.get(usize::from(slot))?;
        let object = Object {
            phys: slab.object(slot),
            class_size: slab.cache.size().into(),
            requested: note.requested().into(),
            zone: slab.block.zone,
            large_order: None,
            owner: note.owner,
        };
        Some((object, note.is_live()))
    }

    fn live_object(&self, index: u32, slot: u16) -> Option<Object> {
        self.object(index, slot).filter(|(_, live)| *live).map(|(object, _)| object)
    }
}

/// `kmalloc_large`: whole pages, rounded up to a power of two.
pub(crate) fn alloc_large(zones: &mut Zones, size: usize, gfp: Gfp, owner: Owner) -> Result<Object, AllocError> {
    let order = large_order(size)?;
    let kind = Kind::Large { requested: u32::try_from(size).unwrap_or(u32::MAX) };
    let block = zones.alloc_as(order, large_mask(gfp), owner, kind)?;
    Ok(Object::large(&Allocated { block, owner, kind }))
}

/// The order of the block that serves a request beyond the caches.
pub(crate) fn large_order(size: usize) -> Result<u8, AllocError> {
    let order = get_order(u64::try_from(size).unwrap_or(u64::MAX));
    if size <= KMALLOC_MAX_SIZE { Ok(order) } else { Err(AllocError::TooLarge { order }) }
}

/// The mask of such a request as it reaches the page allocator.
pub(crate) fn large_mask(gfp: Gfp) -> Gfp {
    (gfp - GFP_SLAB_BUG_MASK) | Gfp::COMP
}
