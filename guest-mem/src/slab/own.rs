//! Caches of drivers: made, shrunk, destroyed.
//!
//! Mirrors `kmem_cache_create`, `__kmem_cache_shrink` and `__kmem_cache_shutdown`. Neighbours: [`crate::kmem_cache`] is
//! their face to a driver. Left out: merging, names in sysfs.

use super::cache::{Cache, Ctor, State};
use super::quarantine::Held;
use super::slab::Place;
use super::{CACHES, CacheStats, Geometry, KMALLOC_MAX_SIZE, Object, SlabCaches, SlabFlags, Spot, Wish};
use crate::addr::{PAGE_SIZE, PhysAddr};
use crate::buddy::MAX_ORDER;
use crate::frame::Kind;
use crate::gfp::Gfp;
use crate::site::Owner;
use crate::zone::{Block, Zones};

/// What became of a cache that was to be destroyed.
pub(crate) struct Destroyed {
    /// Pages to be freed.
    pub blocks: Vec<Block>,
    /// Slabs that stay because objects in them are live.
    pub remaining: Vec<Remaining>,
}

/// A slab that stays.
pub(crate) struct Remaining {
    /// Where it begins.
    pub slab: PhysAddr,
    /// Objects in it, and those that are used.
    pub objects: u16,
    pub used: u16,
    /// Those that are live.
    pub live: Vec<Object>,
}

impl SlabCaches {
    /// Makes a cache; `None` if its objects fit no slab.
    pub(crate) fn create(&mut self, name: &'static str, wish: Wish, ctor: Option<Ctor>, owner: Owner) -> Option<u32> {
        let wish = Wish { flags: wish.flags | self.boot, ..wish };
        if wish.object_size == 0 || wish.object_size as usize > KMALLOC_MAX_SIZE {
            return None;
        }
        let geometry = Geometry::new(&wish, self.cpus);
        if geometry.shape.order > MAX_ORDER {
            return None;
        }
        let cache = Cache {
            fixed: wish.object_size,
            ctor,
            owner,
            ..Cache::new(name, geometry, zone_of(wish.flags), self.cpus)
        };
        let gone = self.caches.iter().skip(CACHES).position(|cache| cache.state == State::Gone);
        let index = gone.map_or(self.caches.len(), |at| CACHES + at);
        match self.caches.get_mut(index) {
            Some(place) => *place = cache,
            None => self.caches.push(cache),
        }
        u32::try_from(index).ok()
    }

    /// Lets go of empty slabs (`kmem_cache_shrink`): their pages, to be freed, and whether any slab is left.
    pub(crate) fn shrink(&mut self, zones: &mut Zones, cache: u32) -> (Vec<Block>, bool) {
        let Some(of) = self.caches.get_mut(cache as usize) else { return (Vec::new(), false) };
        let mut gone = of.flush(&self.slabs);
        gone.extend(of.discard(&self.slabs));
        let left = of.slabs > 0;
        let blocks = gone.iter().filter_map(|&index| self.slab_block(index)).collect::<Vec<_>>();
        blocks.iter().for_each(|&block| zones.assign(block, Kind::Pages, Owner::default()));
        self.spare.extend(gone);
        (blocks, left)
    }

    /// Destroys a cache; one with live objects stays until the machine ends, and its objects may still be freed.
    pub(crate) fn destroy(&mut self, zones: &mut Zones, cache: u32) -> Destroyed {
        let (mut blocks, left) = self.shrink(zones, cache);
        let mut remaining = Vec::new();
        if left {
            for index in self.slabs_of(cache) {
                let objects = self.slabs.slab(index).map_or(0, |slab| slab.objects);
                let live: Vec<_> = (0..objects).filter_map(|slot| self.live_object(Spot { index, slot })).collect();
                let Some((block, used)) = self.slabs.slab(index).map(|slab| (slab.block, slab.used)) else { continue };
                if !live.is_empty() {
                    let base = block.pfn.phys();
                    remaining.push(Remaining { slab: base, objects, used, live });
                    continue;
                }
                // Only objects that were overwritten are left in it.
                if let Some(of) = self.caches.get_mut(cache as usize) {
                    of.abandon(&self.slabs, index);
                }
                blocks.push(block);
                zones.assign(block, Kind::Pages, Owner::default());
                self.spare.push(index);
            }
        }
        if let Some(of) = self.caches.get_mut(cache as usize) {
            of.state = if remaining.is_empty() { State::Gone } else { State::Zombie };
            of.ctor = None;
        }
        Destroyed { blocks, remaining }
    }

    /// The slabs of a cache, in no order that means anything but the same in each run.
    fn slabs_of(&self, cache: u32) -> Vec<u32> {
        let is_its =
            |index: &u32| self.slabs.slab(*index).is_some_and(|slab| slab.cache == cache && slab.place != Place::Spare);
        (0..self.fresh).filter(is_its).collect()
    }

    /// Who created the caches that nobody destroyed.
    pub(crate) fn undestroyed(&self) -> impl Iterator<Item = Owner> {
        let own = self.caches.iter().skip(CACHES).filter(|cache| cache.state == State::Alive);
        own.map(|cache| cache.owner)
    }

    /// A cache's numbers.
    pub(crate) fn numbers(&self, cache: u32) -> Option<CacheStats> {
        let active = self.active().get(cache as usize).copied()?;
        self.cache_of(cache).map(|cache| cache.stats(active))
    }

    /// A cache's name and layout.
    pub(crate) fn described(&self, cache: u32) -> Option<(&'static str, Geometry)> {
        self.cache_of(cache).map(|cache| (cache.name, cache.geometry))
    }

    /// The layout of a cache whose bytes are watched.
    pub(crate) fn watched(&self, cache: u32) -> Option<&Geometry> {
        self.cache_of(cache).map(|cache| &cache.geometry).filter(|geometry| geometry.is_watched())
    }

    /// What a report says of an object's slab: where it begins, its objects and how many are used, and who had the
    /// object that it handed out last, and who freed this one.
    pub(crate) fn slab_facts(&self, spot: Spot) -> Option<(PhysAddr, u16, u16, Owner, Option<Owner>)> {
        let freed = self.freed_by(spot);
        let slab = self.slabs.slab(spot.index)?;
        Some((slab.block.pfn.phys(), slab.objects, slab.used, slab.previous, freed))
    }

    /// The number of an object's cache.
    pub(crate) fn cache_at(&self, spot: Spot) -> Option<u32> {
        self.slabs.slab(spot.index).map(|slab| slab.cache)
    }

    /// A cache's constructor.
    pub(crate) fn ctor(&self, cache: u32) -> Option<Ctor> {
        self.cache_of(cache).and_then(|cache| cache.ctor.clone())
    }

    /// Takes the next object that must leave the quarantine, or any if `all`, and where it lies unless it is a block of
    /// pages.
    pub(crate) fn overdue(&mut self, zones: &Zones, all: bool) -> Option<(Object, Option<Spot>)> {
        match self.quarantine.pop(all)? {
            Held::Small(spot) => self.object(spot).map(|(object, _)| (object, Some(spot))),
            Held::Large(block) => zones.lookup(block.pfn).map(|found| (Object::large(&found), None)),
        }
    }

    /// Where an object's slab begins, its bytes and how many objects are in it.
    pub(crate) fn slab_extent(&self, spot: Spot) -> Option<(PhysAddr, u64, u16)> {
        let slab = self.slabs.slab(spot.index)?;
        Some((slab.block.pfn.phys(), PAGE_SIZE << slab.block.order, slab.objects))
    }

    /// Whether freed objects are held back.
    pub(crate) fn has_quarantine(&self) -> bool {
        self.quarantine.is_on()
    }

    /// Hands out no object of a slab again (`FIX: Marking all objects used`).
    pub(crate) fn condemn(&mut self, spot: Spot) {
        let Some(cache) = self.cache_at(spot) else { return };
        if let Some(cache) = self.caches.get_mut(cache as usize) {
            cache.hold_all(&self.slabs, spot.index);
        }
    }

    /// Keeps a live object from ever being used again (`FIX: Object at … not freed`); its holder is rid of it.
    pub(crate) fn lose(&mut self, spot: Spot) {
        if let Some(mut slab) = self.slabs.slab(spot.index) {
            slab.hold(spot.slot);
        }
    }

    /// Every object that was ever handed out and is in a slab: where, what, and whether it is used (live or held).
    pub(crate) fn known(&self) -> impl Iterator<Item = (Spot, Object, bool)> {
        (0..self.fresh).flat_map(move |index| {
            let slab = self.slabs.slab(index).filter(|slab| !matches!(slab.place, Place::Spare | Place::New));
            let slots: Vec<_> = slab.map_or_else(Vec::new, |slab| {
                let slots = (0_u16..).zip(&slab.notes).filter(|(_, note)| !note.is_held());
                slots.map(|(slot, _)| slot).collect()
            });
            slots.into_iter().filter_map(move |slot| {
                let spot = Spot { index, slot };
                self.object(spot).map(|(object, live)| (spot, object, live))
            })
        })
    }
}

/// What a cache's flags add to the mask of its slabs.
fn zone_of(flags: SlabFlags) -> Gfp {
    let all = [
        (SlabFlags::CACHE_DMA, Gfp::DMA),
        (SlabFlags::CACHE_DMA32, Gfp::DMA32),
        (SlabFlags::RECLAIM_ACCOUNT, Gfp::RECLAIMABLE),
    ];
    all.into_iter().filter(|(flag, _)| flags.contains(*flag)).fold(Gfp::empty(), |gfp, (_, zone)| gfp | zone)
}
