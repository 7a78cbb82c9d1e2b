//! Slab caches: small objects cut from slabs, large `kmalloc`s from whole pages, and the truth about who holds which.
//!
//! [`SlabCaches`] serves a `kmalloc` from the cache of its size class, or from the page allocator beyond 8192 bytes, and
//! holds the caches of drivers beside those. All it knows lies out of band, so that a second free, a pointer into an
//! object's middle or one that was never given are told apart, where Linux corrupts its lists or stays silent.
//!
//! A pure data structure, as [`crate::zone`]: no lock, no waiting, no byte of RAM is touched. Zeroing, reports, retries
//! and faults are those of its wrappers, [`crate::kmalloc`] and [`crate::kmem_cache`].
//!
//! Mirrors `include/linux/slab.h`, `mm/slab_common.c` and `mm/slub.c` of 6.1. Neighbours: `class` says which cache serves,
//! `geometry` how its slabs are cut, `cache` which object is next, `own` makes and destroys a driver's caches, `debug`
//! watches the bytes, `front` has the slabs and most calls, `validate` knows what must always hold. Left out: merging of caches; an empty slab is returned when
//! enough other *empty* ones are kept, Linux counts partial ones too.

use std::sync::Arc;

use crate::addr::PhysAddr;
use crate::frame::{Kind, NIL, PAYLOAD_END};
use crate::gfp::{__GFP_RECLAIM, GFP_SLAB_BUG_MASK, GFP_SLAB_PASS_MASK, Gfp};
use crate::site::Owner;
use crate::zone::{AllocError, Allocated, Block, Zones};

mod cache;
mod class;
pub(crate) mod debug;
mod error;
mod flags;
mod front;
mod geometry;
mod object;
mod own;
mod quarantine;
#[expect(clippy::module_inception, reason = "a slab is the noun here")]
mod slab;
#[cfg(test)]
mod tests;
mod validate;

use cache::Cache;
pub use cache::{Construct, Ctor};
pub use class::{CACHES, CLASSES, CacheId, KMALLOC_MAX_CACHE_SIZE, KMALLOC_MAX_SIZE, kmalloc_size_roundup};
pub use debug::{Damage, Watched};
pub use error::KfreeError;
pub use flags::SlabFlags;
pub(crate) use front::Front;
pub(crate) use geometry::Wish;
pub use geometry::{Geometry, Shape, get_order};
pub use object::{Allocation, CacheStats, Object, SLABINFO_HEAD, ZERO_SIZE_PTR};
pub(crate) use own::Remaining;
use quarantine::{Held, Quarantine};
use slab::Place;
pub use validate::InvalidSlab;

/// What findings call the cache of an object that is a block of pages.
pub(crate) const LARGE: &str = "large kmalloc";

/// All slab caches of a kernel.
///
/// ```
/// use lowzone_guest_mem::gfp::GFP_KERNEL;
/// use lowzone_guest_mem::site::Owner;
/// use lowzone_guest_mem::slab::{Allocation, KfreeError, SlabCaches, SlabFlags};
/// use lowzone_guest_mem::zone::{Layout, Zones};
/// let mut zones = Zones::new(Layout::pc(64 << 20, 3 << 30)?);
/// let mut slabs = SlabCaches::new(2, SlabFlags::empty(), 0);
/// let (cpu, owner) = (0, Owner::default());
/// let Allocation::Object { object, .. } = slabs.alloc(&mut zones, cpu, 100, GFP_KERNEL, owner)? else {
///     unreachable!()
/// };
/// assert_eq!((object.requested, object.class_size), (100, 128));
/// assert_eq!(slabs.free(&mut zones, object.phys)?, object);
/// assert!(matches!(slabs.free(&mut zones, object.phys), Err(KfreeError::Double { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SlabCaches {
    cpus: u32,
    /// What the boot line adds to the flags of each cache (`slub_debug`).
    boot: SlabFlags,
    /// One for each of [`CacheId::all`], then those of drivers.
    caches: Vec<Cache>,
    /// By slab number; those from `fresh` on are unused but keep their buffers.
    slabs: Arc<Front>,
    fresh: u32,
    /// Numbers below `fresh` that are free again.
    spare: Vec<u32>,
    quarantine: Quarantine,
}

/// The pages that a cache asks for to make a slab.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refill {
    cache: u32,
    shape: Shape,
    /// The mask that reaches the page allocator.
    pub(crate) gfp: Gfp,
}

impl Refill {
    /// The order of the block.
    pub(crate) const fn order(&self) -> u8 {
        self.shape.order
    }

    /// How many objects its slab will have.
    pub(crate) const fn objects(&self) -> u16 {
        self.shape.objects
    }
}

/// Where an object lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    pub index: u32,
    pub slot: u16,
}

/// What became of an object that was freed.
pub(crate) enum Freed {
    /// It went back; perhaps the pages of its slab are to be freed now.
    Back(Option<Block>),
    /// It is held back in the quarantine.
    Held,
}

/// Where an address lies.
enum Found {
    Large(Allocated),
    /// The object's number may be one that was never handed out.
    Small(Spot),
}

impl SlabCaches {
    /// The kmalloc caches of a machine with so many CPUs, without any slab.
    ///
    /// `boot` is what `slub_debug` says for all caches; freed objects are held back up to `quarantine` bytes in all.
    pub fn new(cpus: u32, boot: SlabFlags, quarantine: u64) -> Self {
        let kmalloc = |id: CacheId| {
            let wish = Wish { object_size: id.size().into(), align: 0, flags: boot, ctor: false, kmalloc: true };
            Cache::new(id.name(), Geometry::new(&wish, cpus), id.gfp(), cpus)
        };
        let caches = CacheId::all().map(kmalloc).collect();
        let quarantine = Quarantine::new(quarantine);
        Self { cpus, boot, caches, slabs: Arc::new(Front::new(cpus)), fresh: 0, spare: Vec::new(), quarantine }
    }

    /// The slabs by themselves.
    pub(crate) fn front(&self) -> Arc<Front> {
        self.slabs.clone()
    }

    /// Forgets everything, as new; to be called when the pages were reset. Keeps its buffers.
    pub fn reset(&mut self) {
        for index in 0..self.fresh {
            if let Some(mut slab) = self.slabs.slab(index) {
                slab.place = Place::Spare;
            }
        }
        self.slabs.reset();
        self.caches.truncate(CACHES);
        self.caches.iter_mut().for_each(Cache::reset);
        self.fresh = 0;
        self.spare.clear();
        self.quarantine.clear();
    }

    /// Allocates `size` bytes on a CPU (`kmalloc`, without its waiting and zeroing).
    ///
    /// # Errors
    ///
    /// [`AllocError::TooLarge`] above 4 MiB; [`AllocError::NoMemory`] if the page allocator has nothing to give.
    pub fn alloc(
        &mut self,
        zones: &mut Zones,
        cpu: usize,
        size: usize,
        gfp: Gfp,
        owner: Owner,
    ) -> Result<Allocation, AllocError> {
        if size == 0 {
            return Ok(Allocation::ZeroSize);
        }
        let fixed_up = gfp.intersects(GFP_SLAB_BUG_MASK);
        let Some(id) = CacheId::serving(size, gfp) else {
            return Ok(Allocation::Object { object: alloc_large(zones, size, gfp, owner)?, fixed_up });
        };
        if let Some((object, _)) = self.take(id.number(), cpu, size, owner) {
            return Ok(Allocation::Object { object, fixed_up: false });
        }
        for refill in self.refills(id.number(), gfp) {
            if let Ok(block) = zones.alloc(refill.order(), refill.gfp, owner) {
                match self.adopt(zones, refill, block, owner) {
                    Some(index) => self.open(cpu, index),
                    None => zones.release(block),
                }
                break;
            }
        }
        let none = AllocError::NoMemory { order: 0, gfp, zone: gfp.highest_zone(zones.arch()) };
        let (object, _) = self.take(id.number(), cpu, size, owner).ok_or(none)?;
        Ok(Allocation::Object { object, fixed_up })
    }

    /// An object of the slabs that a cache has; `None` if all are full.
    pub(crate) fn take(&mut self, cache: u32, cpu: usize, size: usize, owner: Owner) -> Option<(Object, Spot)> {
        let of = self.caches.get_mut(cache as usize)?;
        let (index, slot) = of.take(&self.slabs, cpu, size, owner)?;
        let spot = Spot { index, slot };
        self.live_object(spot).map(|object| (object, spot))
    }

    /// What a cache asks the page allocator for when it has no object left, one after the other (`allocate_slab`):
    /// the slab it likes, silently and without waiting, then the smallest that holds an object.
    pub(crate) fn refills(&self, cache: u32, gfp: Gfp) -> [Refill; 2] {
        let none = Shape { order: 0, objects: 0 };
        let of = self.cache_of(cache);
        let (shape, smallest) = of.map_or((none, none), |of| (of.geometry.shape, of.geometry.smallest));
        let mut gfp = (gfp & GFP_SLAB_PASS_MASK) | of.map_or(Gfp::empty(), |of| of.gfp);
        if shape.order > 0 {
            gfp |= Gfp::COMP;
        }
        let mut first = (gfp | Gfp::NOWARN | Gfp::NORETRY) - Gfp::NOFAIL;
        if first.may_sleep() && shape.order > smallest.order {
            first = (first | Gfp::NOMEMALLOC) - __GFP_RECLAIM;
        }
        [Refill { cache, shape, gfp: first }, Refill { cache, shape: smallest, gfp }]
    }

    /// Makes a slab of pages that were got for it, and that no object is taken from yet; tells its number. `None`: the
    /// pages stay as they are.
    pub(crate) fn adopt(&mut self, zones: &mut Zones, refill: Refill, block: Block, owner: Owner) -> Option<u32> {
        let Refill { cache, shape, .. } = refill;
        let index = self.spare.last().copied().unwrap_or(self.fresh);
        if index >= PAYLOAD_END {
            return None;
        }
        let of = self.caches.get(cache as usize)?;
        if self.spare.pop().is_none() {
            self.fresh += 1;
        }
        zones.assign(block, Kind::Slab { index }, owner);
        self.slabs.grow(index);
        self.slabs.slab(index)?.start(block, cache, shape.objects, of, self.quarantine.is_on());
        Some(index)
    }

    /// Lets the cache take objects from a slab that [`SlabCaches::adopt`] made.
    pub(crate) fn open(&mut self, cpu: usize, index: u32) {
        let cache = self.slabs.slab(index).map_or(NIL, |slab| slab.cache);
        if let Some(cache) = self.caches.get_mut(cache as usize) {
            cache.add(&self.slabs, cpu, index);
        }
    }

    /// A slab's block.
    fn slab_block(&self, index: u32) -> Option<Block> {
        self.slabs.slab(index).map(|slab| slab.block)
    }

    /// Frees an object by its first byte (`kfree`); tells what it was.
    ///
    /// NULL and [`ZERO_SIZE_PTR`] have no address in RAM and are the caller's to ignore.
    ///
    /// # Errors
    ///
    /// A wrong free changes nothing.
    pub fn free(&mut self, zones: &mut Zones, phys: PhysAddr) -> Result<Object, KfreeError> {
        let (object, spot) = self.find_live(zones, phys)?;
        match spot {
            Some(spot) => match self.put(zones, spot, Owner::default()) {
                Freed::Back(Some(block)) => zones.release(block),
                Freed::Back(None) | Freed::Held => {}
            },
            None => object.block().into_iter().for_each(|block| zones.release(block)),
        }
        Ok(object)
    }

    /// The live object that begins at an address, and where it lies unless it is a block of pages of its own.
    ///
    /// # Errors
    ///
    /// Why it can't be freed.
    pub(crate) fn find_live(&self, zones: &Zones, phys: PhysAddr) -> Result<(Object, Option<Spot>), KfreeError> {
        let spot = match self.locate(zones, phys)? {
            Found::Large(found) => {
                let object = Object::large(&found);
                return match object.phys == phys {
                    true => Ok((object, None)),
                    false => Err(KfreeError::Inside { phys, object: object.phys, cache: None }),
                };
            }
            Found::Small(spot) => spot,
        };
        let (object, live) = self.object(spot).ok_or(KfreeError::NotAllocated { phys })?;
        if object.phys != phys {
            return Err(KfreeError::Inside { phys, object: object.phys, cache: object.cache });
        }
        if !live {
            let freed = self.freed_by(spot);
            let Object { requested, owner, cache, .. } = object;
            return Err(KfreeError::Double { phys, cache: cache.unwrap_or(""), requested, owner, freed });
        }
        Ok((object, Some(spot)))
    }

    /// Holds an object back that is a block of pages, or makes pages of it that are to be freed.
    pub(crate) fn put_large(&mut self, zones: &mut Zones, object: &Object, block: Block) -> Freed {
        if self.quarantine.is_on() && self.quarantine.takes(object.class_size) {
            zones.assign(block, Kind::Held { requested: object.requested }, object.owner);
            self.quarantine.push(Held::Large(block), object.class_size);
            return Freed::Held;
        }
        zones.assign(block, Kind::Pages, object.owner);
        Freed::Back(Some(block))
    }

    /// Takes a live object back, or holds it back if the machine has a quarantine.
    pub(crate) fn put(&mut self, zones: &mut Zones, spot: Spot, by: Owner) -> Freed {
        let Some(mut slab) = self.slabs.slab(spot.index) else { return Freed::Back(None) };
        let Some(cache) = self.caches.get(slab.cache as usize) else { return Freed::Back(None) };
        if cache.geometry.flags.contains(SlabFlags::STORE_USER) {
            slab.freed_by(spot.slot, by);
        }
        if self.quarantine.is_on() && !cache.geometry.keeps {
            slab.hold(spot.slot);
            self.quarantine.push(Held::Small(spot), cache.geometry.object_size);
            return Freed::Held;
        }
        drop(slab);
        Freed::Back(self.give(zones, spot))
    }

    /// Takes an object back that is live or held; tells the pages of its slab if that is no more: they are to be freed as
    /// pages.
    pub(crate) fn give(&mut self, zones: &mut Zones, spot: Spot) -> Option<Block> {
        let (cache, block) = self.slabs.slab(spot.index).map(|slab| (slab.cache, slab.block))?;
        let cache = self.caches.get_mut(cache as usize)?;
        cache.give(&self.slabs, spot.index, spot.slot).then(|| {
            self.spare.push(spot.index);
            zones.assign(block, Kind::Pages, Owner::default());
            block
        })
    }

    /// The live object that holds a byte (its class size counts, not what was asked for).
    pub fn lookup(&self, zones: &Zones, phys: PhysAddr) -> Option<Object> {
        match self.locate(zones, phys).ok()? {
            Found::Large(found) => Some(Object::large(&found)),
            Found::Small(spot) => self.live_object(spot),
        }
    }

    /// Every live object in the order of addresses.
    pub fn live(&self, zones: &Zones) -> impl Iterator<Item = Object> {
        zones.live().flat_map(move |found| {
            let (large, index, slots) = match found.kind {
                Kind::Pages | Kind::Held { .. } | Kind::Bad => (None, NIL, 0),
                Kind::Large { .. } => (Some(Object::large(&found)), NIL, 0),
                Kind::Slab { index } => (None, index, self.slabs.slab(index).map_or(0, |slab| slab.objects)),
            };
            large.into_iter().chain((0..slots).filter_map(move |slot| self.live_object(Spot { index, slot })))
        })
    }

    /// The numbers of all caches: those of [`CacheId::all`], then drivers' in the order they were created.
    pub fn stats(&self) -> impl Iterator<Item = CacheStats> {
        let active = self.active();
        let there = self.caches.iter().zip(active).filter(|(cache, _)| cache.state != cache::State::Gone);
        there.map(|(cache, active)| cache.stats(active))
    }

    /// The used objects of each cache.
    fn active(&self) -> Vec<u64> {
        let mut active = vec![0; self.caches.len()];
        for slab in (0..self.fresh).filter_map(|index| self.slabs.slab(index)) {
            if let Some(active) = active.get_mut(slab.cache as usize).filter(|_| slab.place != Place::Spare) {
                *active += u64::from(slab.used);
            }
        }
        active
    }

    fn cache_of(&self, cache: u32) -> Option<&Cache> {
        self.caches.get(cache as usize)
    }

    fn locate(&self, zones: &Zones, phys: PhysAddr) -> Result<Found, KfreeError> {
        let found = zones.lookup(phys.pfn()).ok_or_else(|| match zones.zone_of(phys.pfn()) {
            Some(_) => KfreeError::NotAllocated { phys },
            None => KfreeError::NotRam { phys },
        })?;
        match found.kind {
            Kind::Pages => Err(KfreeError::NotKmalloc { phys, owner: found.owner }),
            Kind::Held { requested } if found.block.pfn.phys() == phys => {
                Err(KfreeError::Double { phys, cache: LARGE, requested, owner: found.owner, freed: None })
            }
            Kind::Held { .. } | Kind::Bad => Err(KfreeError::NotAllocated { phys }),
            Kind::Large { .. } => Ok(Found::Large(found)),
            Kind::Slab { index } => {
                let slot = self.slabs.slab(index).and_then(|slab| slab.slot_of(phys));
                Ok(Found::Small(Spot { index, slot: slot.ok_or(KfreeError::NotAllocated { phys })? }))
            }
        }
    }

    /// An object that was handed out at least once, and whether it is live.
    fn object(&self, spot: Spot) -> Option<(Object, bool)> {
        let slab = self.slabs.slab(spot.index)?;
        let note = slab.notes.get(usize::from(spot.slot))?;
        let cache = self.caches.get(slab.cache as usize)?;
        let object = Object {
            phys: slab.object(spot.slot),
            class_size: cache.geometry.ksize(),
            requested: if cache.fixed == 0 { note.requested().into() } else { cache.fixed },
            zone: slab.block.zone,
            large_order: None,
            cache: Some(cache.name),
            own: cache.fixed > 0,
            owner: note.owner,
        };
        Some((object, note.is_live()))
    }

    fn live_object(&self, spot: Spot) -> Option<Object> {
        self.object(spot).filter(|(_, live)| *live).map(|(object, _)| object)
    }

    fn freed_by(&self, spot: Spot) -> Option<Owner> {
        let slab = self.slabs.slab(spot.index)?;
        slab.freed_by.get(usize::from(spot.slot)).copied().filter(|by| *by != Owner::default())
    }
}

/// `kmalloc_large`: whole pages, rounded up to a power of two.
fn alloc_large(zones: &mut Zones, size: usize, gfp: Gfp, owner: Owner) -> Result<Object, AllocError> {
    let order = large_order(size)?;
    let kind = large_kind(size);
    let block = zones.alloc_as(order, large_mask(gfp), owner, kind)?;
    Ok(Object::large(&Allocated { block, owner, kind }))
}

/// What the block of such a request is marked with; at most 4 MiB.
pub(crate) fn large_kind(size: usize) -> Kind {
    Kind::Large { requested: u32::try_from(size).unwrap_or(u32::MAX) }
}

/// The order of the block that serves a request beyond the caches.
pub(crate) fn large_order(size: usize) -> Result<u8, AllocError> {
    let order = get_order(u64::try_from(size).unwrap_or(u64::MAX));
    if size <= altered!(KMALLOC_MAX_SIZE) { Ok(order) } else { Err(AllocError::TooLarge { order }) }
}

/// The mask of such a request as it reaches the page allocator.
pub(crate) fn large_mask(gfp: Gfp) -> Gfp {
    (gfp - GFP_SLAB_BUG_MASK) | Gfp::COMP
}
