//! The door to the slab caches: an object taken and given back, with its point, its reports and its watched bytes.
//!
//! Neighbours: [`crate::kmalloc`] and [`crate::kmem_cache`] come through here; [`crate::slab`] knows who has what, and
//! `report` tells what was found wrong.

use crate::addr::{PAGE_SIZE, PhysAddr};
use crate::cpu::Cpu;
use crate::dma::ownership::freed;
use crate::env::Verdict;
use crate::fault::Request;
use crate::frame::Kind as Purpose;
use crate::gfp::{GFP_SLAB_BUG_MASK, Gfp};
use crate::kernel::{Kernel, Memory};
use crate::kmalloc::report::{self, Fix, SlabReport};
use crate::page::{GfpWarning, ask_for_pages, get_pages, give_block_by, report_bad_free, trace_release};
use crate::site::Owner;
use crate::slab::debug::{bury, exhume, mend};
use crate::slab::{
    Construct, Freed, Geometry, KfreeError, Object, Refill, SlabFlags, Spot, large_kind, large_mask, large_order,
};
use crate::trace::Kind;
use crate::zone::{AllocError, Block, ZoneKind};

/// Where an object lies.
#[derive(Clone, Copy)]
pub(crate) struct Placed {
    pub phys: PhysAddr,
    pub zone: ZoneKind,
}

impl From<Object> for Placed {
    fn from(object: Object) -> Self {
        Self { phys: object.phys, zone: object.zone }
    }
}

/// An object of a cache, which may have to grow first. The flag: `__GFP_DMA32` or `__GFP_HIGHMEM` were dropped on the way
/// to the page allocator.
pub(crate) fn small(
    cpu: &Cpu<'_>,
    cache: u32,
    request: Request,
    len: usize,
    owner: Owner,
) -> Result<(Placed, bool), AllocError> {
    let (gfp, arch) = (request.gfp, cpu.kernel().config().arch);
    let failed = cpu.pass(request, owner, gfp.can_fail(0, arch)) == Verdict::Fail;
    if failed && !gfp.contains(Gfp::NOFAIL) {
        cpu.injected(request.class);
        return Err(AllocError::NoMemory { order: 0, gfp, zone: gfp.highest_zone(arch) });
    }
    take_or_grow(cpu, cache, gfp, len, owner)
}

/// As [`small`], past the point.
fn take_or_grow(cpu: &Cpu<'_>, cache: u32, gfp: Gfp, len: usize, owner: Owner) -> Result<(Placed, bool), AllocError> {
    if let Some((phys, zone)) = cpu.kernel().slabs.take(cache, cpu.id() as usize, len, owner) {
        return Ok((Placed { phys, zone }, false));
    }
    let mut grown = false;
    loop {
        let [liked, smallest] = match take(cpu, cache, gfp, len, owner) {
            Ok(object) => return Ok((object.into(), grown && gfp.intersects(GFP_SLAB_BUG_MASK))),
            Err(refills) => refills,
        };
        let grow = |refill| grow(cpu, cache, refill, owner);
        grow(liked).or_else(|_| grow(smallest)).inspect_err(|_| report::out_of_memory(cpu, cache, gfp))?;
        grown = true;
    }
}

/// An object of the slabs that are there, or what to ask the page allocator for. One whose bytes were overwritten is not
/// handed out, nor anything else of its slab.
fn take(cpu: &Cpu<'_>, cache: u32, gfp: Gfp, len: usize, owner: Owner) -> Result<Object, [Refill; 2]> {
    let (kernel, number) = (cpu.kernel(), cpu.id() as usize);
    loop {
        let (padding, taken) = {
            let mut memory = kernel.memory.lock();
            let Some((object, spot)) = memory.slabs.take(cache, number, len, owner) else {
                return Err(memory.slabs.refills(cache, gfp));
            };
            let Some(geometry) = memory.slabs.watched(cache).copied() else { return Ok(object) };
            let padding = padding(kernel, &memory, (spot, &object), geometry);
            if let Some(damage) = geometry.check(kernel.ram(), object.phys, false) {
                let report = SlabReport::of(kernel, &memory, (spot, &object), geometry, damage, Fix::AllUsed);
                mend(kernel.ram(), &damage);
                memory.slabs.condemn(spot);
                memory.slabs.lose(spot);
                (padding, Err(report))
            } else {
                geometry.mark(kernel.ram(), object.phys, true);
                (padding, Ok(object))
            }
        };
        padding.into_iter().for_each(|report| report.tell(kernel, ("seen at", owner)));
        match taken {
            Ok(object) => return Ok(object),
            Err(report) => report.tell(kernel, ("allocated again at", owner)),
        }
    }
}

/// Whether a byte of RAM is nobody's: neither in a live object nor in pages that were handed out as such.
pub(crate) fn is_free(kernel: &Kernel, at: PhysAddr) -> bool {
    let memory = kernel.memory.lock();
    let pages = || memory.zones.lookup(at.pfn()).is_some_and(|found| found.kind == Purpose::Pages);
    memory.slabs.lookup(&memory.zones, at).is_none() && !pages()
}

/// Looks at what lies behind the last object of a watched slab; what is wrong is noted and mended.
fn padding(
    kernel: &Kernel,
    memory: &Memory,
    (spot, object): (Spot, &Object),
    geometry: Geometry,
) -> Option<SlabReport> {
    let damage = geometry.check_padding(kernel.ram(), memory.slabs.slab_extent(spot)?)?;
    let report = SlabReport::of(kernel, memory, (spot, object), geometry, damage, Fix::None);
    mend(kernel.ram(), &damage);
    Some(report)
}

/// As [`padding`], of each slab of a cache, or of all caches.
fn paddings(kernel: &Kernel, memory: &Memory, of: Option<u32>) -> Vec<SlabReport> {
    let (mut reports, mut last) = (Vec::new(), None);
    for (spot, object, _) in memory.slabs.known() {
        let Some(cache) = memory.slabs.cache_at(spot).filter(|cache| of.is_none_or(|of| of == *cache)) else {
            continue;
        };
        if last.replace(spot.index) == Some(spot.index) {
            continue;
        }
        reports.extend(memory.slabs.watched(cache).and_then(|of| padding(kernel, memory, (spot, &object), *of)));
    }
    reports
}

/// Looks at what lies behind the last object of each slab of a cache whose slabs are about to go.
pub(crate) fn check_paddings(kernel: &Kernel, cache: u32, by: Owner) {
    let reports = {
        let memory = kernel.memory.lock();
        if memory.slabs.watched(cache).is_none() {
            return;
        }
        paddings(kernel, &memory, Some(cache))
    };
    reports.into_iter().for_each(|report| report.tell(kernel, ("seen at", by)));
}

/// Makes a slab: its pages, what is watched in them, its objects.
fn grow(cpu: &Cpu<'_>, cache: u32, refill: Refill, owner: Owner) -> Result<(), AllocError> {
    let kernel = cpu.kernel();
    let (order, gfp) = (refill.order(), refill.gfp);
    let block = ask_for_pages(cpu, Request::pages(order, gfp), owner, |_, gfp| {
        get_pages(cpu, order, gfp, (Purpose::Pages, owner)).map(|block| (block.pfn.phys(), block))
    })?;
    let (adopted, described, ctor) = {
        let memory = &mut *kernel.memory.lock();
        let adopted = memory.slabs.adopt(&mut memory.zones, refill, block, owner);
        (adopted, memory.slabs.described(cache), memory.slabs.ctor(cache))
    };
    let Some(index) = adopted else {
        give_block_by(kernel, block.pfn.phys(), order, owner);
        return Err(AllocError::NoMemory { order, gfp, zone: gfp.highest_zone(kernel.config().arch) });
    };
    let objects = refill.objects();
    if let Some((_, geometry)) = described {
        let (base, bytes) = (block.pfn.phys(), PAGE_SIZE << block.order);
        if geometry.is_watched() {
            geometry.mark_slab(kernel.ram(), base, bytes, objects);
        }
        if let Some(ctor) = ctor {
            let len = usize::try_from(geometry.object_size).unwrap_or(0);
            for slot in 0..u64::from(objects) {
                let at = slot * u64::from(geometry.size) + u64::from(geometry.red_left);
                ctor(&mut Construct { ram: kernel.ram(), phys: base.wrapping_add(at), len });
            }
        }
    }
    kernel.memory.lock().slabs.open(cpu.id() as usize, index);
    Ok(())
}

/// Whole pages, for what no cache is large enough.
pub(crate) fn large(cpu: &Cpu<'_>, len: usize, gfp: Gfp, owner: Owner) -> Result<(Placed, bool), AllocError> {
    let order = large_order(len).inspect_err(|why| {
        if let AllocError::TooLarge { order } = *why {
            GfpWarning::OrderTooLarge { order }.report(cpu, gfp, owner);
        }
    })?;
    let kind = large_kind(len);
    let object = ask_for_pages(cpu, Request::pages(order, large_mask(gfp)), owner, |_, gfp| {
        let block = get_pages(cpu, order, gfp, (kind, owner))?;
        Ok((block.pfn.phys(), Placed { phys: block.pfn.phys(), zone: block.zone }))
    })?;
    Ok((object, gfp.intersects(GFP_SLAB_BUG_MASK)))
}

/// Frees what begins at an address, for `Drop`, for a driver and for misuse: a wrong one changes nothing and is reported.
///
/// `from` is the cache that the caller says it is of.
pub(crate) fn release(kernel: &Kernel, phys: PhysAddr, kind: Kind, from: Option<u32>, by: Owner) {
    if let Some(given) = kernel.slabs.give(&kernel.pcp.shared().frames, phys, from) {
        freed(kernel, phys, given.class_size.into(), by);
        let bytes = if kind == Kind::Kfree { given.requested } else { given.class_size };
        return trace_release(kernel, kind, phys, usize::try_from(bytes).unwrap_or(0), by);
    }
    release_slowly(kernel, phys, kind, from, by);
}

/// As [`release`], with the lock over all caches.
fn release_slowly(kernel: &Kernel, phys: PhysAddr, kind: Kind, from: Option<u32>, by: Owner) {
    let mut told = Told::default();
    let given = give_back(kernel, phys, from, by, &mut told);
    if let Some((cache, of, checked)) = told.wrong_cache {
        report::wrong_cache(kernel, (cache, of), checked, by);
    }
    match given {
        Ok((object, pages)) => {
            freed(kernel, phys, object.class_size.into(), by);
            let bytes = if kind == Kind::Kfree { object.requested } else { object.class_size };
            trace_release(kernel, kind, phys, usize::try_from(bytes).unwrap_or(0), by);
            for block in pages {
                give_block_by(kernel, block.pfn.phys(), block.order, by);
            }
        }
        Err(error) => {
            report::bad_free(kernel, &error);
            report_bad_free(kernel, error.into(), by);
        }
    }
    told.reports.into_iter().for_each(|report| report.tell(kernel, ("freed at", by)));
}

/// What is to be said once the lock is free.
#[derive(Default)]
struct Told {
    reports: Vec<SlabReport>,
    /// The cache that was named, the one that the object is of, and whether Linux looks.
    wrong_cache: Option<(&'static str, &'static str, bool)>,
}

fn give_back(
    kernel: &Kernel,
    phys: PhysAddr,
    from: Option<u32>,
    by: Owner,
    told: &mut Told,
) -> Result<(Object, Vec<Block>), KfreeError> {
    let mut memory = kernel.memory.lock();
    let memory = &mut *memory;
    let (object, spot) = memory.slabs.find_live(&memory.zones, phys)?;
    let mut pages = Vec::new();
    let Some(spot) = spot else {
        let Some(block) = object.block() else { return Ok((object, pages)) };
        match memory.slabs.put_large(&mut memory.zones, &object, block) {
            Freed::Back(block) => pages.extend(block),
            Freed::Held => {
                bury(kernel.ram(), phys, object.class_size);
                pages.extend(let_go(kernel, memory, false, &mut told.reports));
            }
        }
        return Ok((object, pages));
    };
    let cache = memory.slabs.cache_at(spot).unwrap_or(u32::MAX);
    if let Some(named) = from.filter(|named| *named != cache) {
        told.wrong_cache = memory
            .slabs
            .described(named)
            .zip(object.cache)
            .map(|((name, geometry), of)| (name, of, geometry.flags.contains(SlabFlags::CONSISTENCY_CHECKS)));
    }
    if let Some(geometry) = memory.slabs.watched(cache).copied() {
        told.reports.extend(padding(kernel, memory, (spot, &object), geometry));
        if let Some(damage) = geometry.check(kernel.ram(), phys, true) {
            told.reports.push(SlabReport::of(kernel, memory, (spot, &object), geometry, damage, Fix::NotFreed));
            mend(kernel.ram(), &damage);
            memory.slabs.lose(spot);
            return Ok((object, Vec::new()));
        }
        geometry.mark(kernel.ram(), phys, false);
    }
    match memory.slabs.put(&mut memory.zones, spot, by) {
        Freed::Back(block) => pages.extend(block),
        Freed::Held => {
            let described = memory.slabs.described(cache);
            bury(kernel.ram(), phys, described.map_or(0, |(_, geometry)| geometry.object_size));
            pages.extend(let_go(kernel, memory, false, &mut told.reports));
        }
    }
    Ok((object, pages))
}

/// Lets objects out of the quarantine that must leave, or all, and looks at each; the pages that went back with them.
fn let_go(kernel: &Kernel, memory: &mut Memory, all: bool, reports: &mut Vec<SlabReport>) -> Vec<Block> {
    let mut pages = Vec::new();
    while let Some((object, spot)) = memory.slabs.overdue(&memory.zones, all) {
        let Some(spot) = spot else {
            let damage = exhume(kernel.ram(), object.phys, object.class_size);
            reports.extend(damage.map(|damage| SlabReport::of_large(&object, damage)));
            object.block().into_iter().for_each(|block| memory.zones.assign(block, Purpose::Pages, object.owner));
            pages.extend(object.block());
            continue;
        };
        let cache = memory.slabs.cache_at(spot).unwrap_or(u32::MAX);
        if let Some((_, geometry)) = memory.slabs.described(cache) {
            if let Some(damage) = exhume(kernel.ram(), object.phys, geometry.object_size) {
                reports.push(SlabReport::of(kernel, memory, (spot, &object), geometry, damage, Fix::None));
            }
            if geometry.is_watched() {
                geometry.mark(kernel.ram(), object.phys, false);
            }
        }
        pages.extend(memory.slabs.give(&mut memory.zones, spot));
    }
    pages
}

/// Empties the quarantine: its objects go back. Nothing to do on a machine without one.
pub(crate) fn empty_quarantine(kernel: &Kernel, by: Owner) {
    let mut reports = Vec::new();
    let pages = {
        let mut memory = kernel.memory.lock();
        if !memory.slabs.has_quarantine() {
            return;
        }
        let_go(kernel, &mut memory, true, &mut reports)
    };
    for block in pages {
        give_block_by(kernel, block.pfn.phys(), block.order, by);
    }
    reports.into_iter().for_each(|report| report.tell(kernel, ("seen at", by)));
}

/// Looks at every object that is watched and every one that is held back, as `validate` in sysfs does; what is wrong is
/// reported and mended.
pub(crate) fn inspect(kernel: &Kernel, by: Owner) {
    empty_quarantine(kernel, by);
    let mut reports;
    {
        let memory = kernel.memory.lock();
        reports = paddings(kernel, &memory, None);
        for (spot, object, live) in memory.slabs.known() {
            let Some(geometry) = memory.slabs.cache_at(spot).and_then(|cache| memory.slabs.watched(cache)) else {
                continue;
            };
            let Some(damage) = geometry.check(kernel.ram(), object.phys, live) else { continue };
            reports.push(SlabReport::of(kernel, &memory, (spot, &object), *geometry, damage, Fix::None));
            mend(kernel.ram(), &damage);
        }
    }
    reports.into_iter().for_each(|report| report.tell(kernel, ("seen at", by)));
}

/// Many objects of a cache, or none: one point for all of them, then each as [`take_or_grow`] gives it.
pub(crate) fn take_many(
    cpu: &Cpu<'_>,
    cache: u32,
    request: Request,
    (n, len): (usize, usize),
    owner: Owner,
) -> Result<Vec<Placed>, AllocError> {
    let (gfp, arch) = (request.gfp, cpu.kernel().config().arch);
    let failed = cpu.pass(request, owner, gfp.can_fail(0, arch)) == Verdict::Fail;
    if failed && !gfp.contains(Gfp::NOFAIL) {
        return Err(AllocError::NoMemory { order: 0, gfp, zone: gfp.highest_zone(arch) });
    }
    let mut objects = Vec::with_capacity(n);
    while objects.len() < n {
        match take_or_grow(cpu, cache, gfp, len, owner) {
            Ok((object, _)) => objects.push(object),
            Err(error) => {
                let all: Vec<_> = objects.iter().map(|object: &Placed| object.phys).collect();
                put_many(cpu.kernel(), &all, cache, owner);
                return Err(error);
            }
        }
    }
    Ok(objects)
}

/// Gives many objects back that should be of one cache.
pub(crate) fn put_many(kernel: &Kernel, all: &[PhysAddr], cache: u32, by: Owner) {
    for &phys in all {
        release(kernel, phys, Kind::KmemCacheFree, Some(cache), by);
    }
}
