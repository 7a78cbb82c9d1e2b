//! What is left, and whether the books are right: the leak check and the validation of one kernel.
//!
//! [`leaks`] lists every live resource of every kind, in a fixed order, each with who made it. Memory that lies
//! under a leaked mapping is told with the mapping, not twice. [`by_site`] adds them up by who made them. Neighbours: `kernel`, `finding`. Left out: rendering.

use std::cmp::Reverse;

use thiserror::Error;

use crate::addr::{PAGE_SIZE, Pfn, PhysAddr};
use crate::dma::mapping::Kind as MappingKind;
use crate::finding::{Finding, FindingKind, Resource};
use crate::frame;
use crate::kernel::Kernel;
use crate::site::Owner;
use crate::vmalloc::Backing;

/// A broken invariant.
#[derive(Debug, Error)]
pub enum Broken {
    /// In the page allocator.
    #[error("page allocator: {0}")]
    Zones(#[from] crate::zone::InvalidZones),
    /// In the lists of pages that CPUs keep.
    #[error("per-CPU lists: {0}")]
    Pcp(#[from] crate::pcp::InvalidPcp),
    /// In the slab caches.
    #[error("slab: {0}")]
    Slab(#[from] crate::slab::InvalidSlab),
    /// In the address space of vmalloc.
    #[error("vmalloc: {0}")]
    Areas(#[from] crate::vmalloc::InvalidAreas),
    /// In the bounce pool.
    #[error("swiotlb: {0}")]
    Swiotlb(#[from] crate::dma::swiotlb::PoolError),
    /// In the per-CPU areas.
    #[error("per-CPU areas: {0}")]
    PerCpu(#[from] crate::percpu::InvalidPerCpu),
    /// In the mappings of high memory.
    #[error("kmap: {0}")]
    Kmap(#[from] crate::kmap::InvalidKmap),
    /// In a device's ledger.
    #[error("ledger of {device}: {source}")]
    Ledger {
        /// The device.
        device: String,
        /// What is broken.
        source: crate::dma::ledger::LedgerError,
    },
    /// In a device's I/O address space.
    #[error("IOMMU domain of {device}: {source}")]
    Domain {
        /// The device.
        device: String,
        /// What is broken.
        source: crate::dma::iommu::DomainError,
    },
}

/// A resource that is still live.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leak {
    /// What it is.
    pub resource: Resource,
    /// Where it lies, or the number that names it.
    pub at: PhysAddr,
    /// How many bytes.
    pub bytes: u64,
    /// Who made it.
    pub owner: Owner,
    /// The device it belongs to, for DMA resources.
    pub device: Option<String>,
}

impl Leak {
    /// The same as a finding.
    pub fn finding(&self, now: u64, checked: Owner) -> Finding {
        Finding {
            kind: FindingKind::Leak { resource: self.resource, bytes: self.bytes, at: self.at },
            device: self.device.clone(),
            at: now,
            sites: vec![("allocated at", self.owner), ("not freed when", checked)],
        }
    }
}

/// What one call site has left behind, of one kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeakSite {
    /// What they are.
    pub resource: Resource,
    /// Who made them.
    pub owner: Owner,
    /// How many.
    pub count: u64,
    /// Their bytes together.
    pub bytes: u64,
    /// Where the first of them stands in the list.
    pub first: usize,
}

/// Leaks by call site: the most bytes first, then the most pieces, then by kind and line.
pub fn by_site(leaks: &[Leak]) -> Vec<LeakSite> {
    let mut sites: Vec<LeakSite> = Vec::new();
    for (first, leak) in leaks.iter().enumerate() {
        match sites.iter_mut().find(|site| (site.resource, site.owner) == (leak.resource, leak.owner)) {
            Some(site) => (site.count, site.bytes) = (site.count + 1, site.bytes + leak.bytes),
            None => {
                let (resource, owner) = (leak.resource, leak.owner);
                sites.push(LeakSite { resource, owner, count: 1, bytes: leak.bytes, first });
            }
        }
    }
    sites.sort_by_cached_key(|site| {
        (Reverse(site.bytes), Reverse(site.count), site.resource.to_string(), site.owner.to_string())
    });
    sites
}

/// Every live resource, in a fixed order; what a worker is yet to free counts as freed.
pub fn leaks(kernel: &Kernel) -> Vec<Leak> {
    crate::vmalloc::drain_deferred(kernel);
    let mut found = Vec::new();
    let devices: Vec<_> = kernel.devices.lock().iter().cloned().collect();
    let mut under_dma: Vec<(u64, u64)> = Vec::new();
    for device in &devices {
        let ledger = device.ledger.lock();
        for mapping in ledger.live() {
            under_dma.push((mapping.orig.get(), mapping.len));
            let resource = match mapping.kind {
                MappingKind::Coherent => Resource::Coherent,
                MappingKind::Single | MappingKind::Sg | MappingKind::Resource => Resource::Mapping,
            };
            found.push(Leak {
                resource,
                at: mapping.orig,
                bytes: mapping.len,
                owner: mapping.map_owner,
                device: Some(device.name().to_owned()),
            });
        }
    }
    memory_leaks(kernel, &under_dma, &mut found);
    let plain =
        |resource, number: u64, owner| Leak { resource, at: PhysAddr::new(number), bytes: 0, owner, device: None };
    for (at, bytes, owner) in kernel.regions.lock().live() {
        found.push(Leak { bytes, ..plain(Resource::MemRegion, at.get(), owner) });
    }
    for live in kernel.registered() {
        found.push(Leak { bytes: live.bytes, ..plain(live.resource, live.at.get(), live.owner) });
    }
    for (at, bytes, owner) in kernel.percpu.lock().live() {
        found.push(Leak { bytes, ..plain(Resource::PerCpu, at, owner) });
    }
    for (pfn, owner) in kernel.kmaps.lock().live() {
        found.push(Leak { bytes: PAGE_SIZE, ..plain(Resource::Kmap, pfn * PAGE_SIZE, owner) });
    }
    found.extend(kernel.irqs().live().into_iter().map(|(irq, owner)| plain(Resource::Irq, u64::from(irq), owner)));
    found.extend(kernel.held_locks().into_iter().map(|(cpu, owner)| plain(Resource::Lock, u64::from(cpu), owner)));
    found.extend(kernel.timers().live().into_iter().map(|(id, owner)| plain(Resource::Timer, id, owner)));
    let works = kernel.workqueues().pending().into_iter();
    found.extend(works.map(|(cpu, owner)| plain(Resource::Work, u64::from(cpu), owner)));
    let tasklets = kernel.softirqs().live().into_iter();
    found.extend(tasklets.map(|(cpu, owner)| plain(Resource::Tasklet, u64::from(cpu), owner)));
    found
}

fn memory_leaks(kernel: &Kernel, under_dma: &[(u64, u64)], found: &mut Vec<Leak>) {
    let covered = |at: u64, len: u64| under_dma.iter().any(|&(start, size)| start < at + len && at < start + size);
    let under_areas = area_leaks(kernel, found);
    let memory = kernel.memory.lock();
    for object in memory.slabs.live(&memory.zones) {
        let bytes = u64::from(object.requested);
        if !covered(object.phys.get(), bytes) {
            let (at, owner) = (object.phys, object.owner);
            let resource = if object.own { Resource::CacheObject } else { Resource::Slab };
            found.push(Leak { resource, at, bytes, owner, device: None });
        }
    }
    let caches = (0..).zip(memory.slabs.undestroyed());
    found.extend(caches.map(|(number, owner)| Leak {
        resource: Resource::Cache,
        at: PhysAddr::new(number),
        bytes: 0,
        owner,
        device: None,
    }));
    for allocated in memory.zones.live().filter(|allocated| allocated.kind == frame::Kind::Pages) {
        let (at, bytes) = (allocated.block.pfn.phys(), crate::addr::PAGE_SIZE << allocated.block.order);
        let mapped = under_areas.binary_search(&allocated.block.pfn).is_ok();
        if !mapped && !covered(at.get(), bytes) {
            found.push(Leak { resource: Resource::Pages, at, bytes, owner: allocated.owner, device: None });
        }
    }
}

/// The areas of vmalloc and vmap; returns the pages that the former own, in order: they are told with them. Register
/// windows are in the registry.
fn area_leaks(kernel: &Kernel, found: &mut Vec<Leak>) -> Vec<Pfn> {
    let areas = kernel.vmalloc.lock();
    let mut under = Vec::new();
    for (start, area) in areas.live() {
        let resource = match &area.backing {
            Backing::Alloc(pages) => {
                under.extend_from_slice(pages);
                Resource::Vmalloc
            }
            Backing::Map(_) => Resource::Vmap,
            Backing::Io(_) => continue,
        };
        let (at, bytes, owner) = (PhysAddr::new(start.get()), area.bytes, area.owner);
        found.push(Leak { resource, at, bytes, owner, device: None });
    }
    under.sort_unstable();
    under
}

/// Checks every table of the kernel against itself.
pub(crate) fn validate(kernel: &Kernel) -> Result<(), Broken> {
    kernel.pcp.validate(&kernel.memory)?;
    {
        let memory = kernel.memory.lock();
        memory.zones.validate()?;
        memory.slabs.validate(&memory.zones)?;
        kernel.vmalloc.lock().validate(&memory.zones)?;
    }
    kernel.percpu.lock().validate()?;
    kernel.kmaps.lock().validate()?;
    if let Some(pool) = kernel.swiotlb.lock().as_ref() {
        pool.validate()?;
    }
    let devices: Vec<_> = kernel.devices.lock().iter().cloned().collect();
    for device in devices {
        let checked = device.ledger.lock().validate();
        checked.map_err(|source| Broken::Ledger { device: device.name().to_owned(), source })?;
        if let Some(domain) = device.domain() {
            let checked = domain.lock().validate();
            checked.map_err(|source| Broken::Domain { device: device.name().to_owned(), source })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
