//! Mapping by numbers: the calls under [`super::Mapped`], which `misuse` makes too.
//!
//! Here are the decision to bounce, the copies, the books and the kernel's warnings, in the order of
//! kernel/dma/direct.h and swiotlb.c; who owns the buffer is the types' affair. Neighbours: the parent, `misuse`.

use super::MapFailure;
use crate::addr::{DmaAddr, PhysAddr};
use crate::cpu::Cpu;
use crate::dma::device::DmaDevice;
use crate::dma::direction::Dir;
use crate::dma::ledger::Unmapped;
use crate::dma::mapping::{Kind as MappingKind, NewMapping};
use crate::dma::swiotlb::{Constraints, SLOT_SIZE, SwiotlbError};
use crate::env::{Class, Verdict};
use crate::fault::Request;
use crate::kbuf::KBuf;
use crate::kernel::Kernel;
use crate::refusal::{Refusal, Refused};
use crate::site::{Owner, Site};
use crate::trace::{Kind, owner_word};

/// A mapping by its numbers alone, as C code holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawMapping {
    /// What the device was told.
    pub dma: DmaAddr,
    /// How many bytes.
    pub len: u64,
    /// The transaction.
    pub id: u64,
    /// Whether it lies in the bounce pool.
    pub bounced: bool,
}

impl DmaDevice {
    /// The mapping under [`DmaDevice::map_single`] and under misuse.
    #[track_caller]
    pub(crate) fn map_raw(&self, cpu: &Cpu<'_>, buf: &KBuf, dir: Dir, checked: bool) -> Result<RawMapping, MapFailure> {
        self.live_for(cpu, Some(buf)).ok_or(MapFailure::Stale)?;
        self.map_at(cpu, (buf.phys(), buf.len() as u64), buf.owner(), dir, checked)
    }

    /// The mapping of some bytes of memory, whoever they belong to (`dma_direct_map_page`).
    #[track_caller]
    pub(crate) fn map_at(
        &self,
        cpu: &Cpu<'_>,
        (orig, len): (PhysAddr, u64),
        alloc_owner: Owner,
        dir: Dir,
        checked: bool,
    ) -> Result<RawMapping, MapFailure> {
        let kernel = self.live_for(cpu, None).ok_or(MapFailure::Stale)?;
        let owner = cpu.owner();
        // A direct mapping always succeeds; one that bounces may find the pool full.
        let in_place = !kernel.config().swiotlb_force && Self::capable(self.bus_address(orig), len, self.mask());
        let natural = !in_place || self.domain().is_some();
        let placed = if cpu.pass(Request::new(Class::Map, len), owner, natural) == Verdict::Fail {
            Err(MapFailure::Refused { len })
        } else {
            self.place(cpu, orig, len, owner).and_then(|(phys, bounced)| {
                let dma = self.enter(phys, len, dir, self.mask())?;
                kernel.ram().clean(phys, len);
                Ok((phys, bounced, dma))
            })
        };
        let (phys, bounced, dma) = match placed {
            Ok(placed) => placed,
            Err(why) => {
                self.state.counters.lock().map_failures += 1;
                let event = (Kind::DmaMapPage, u64::MAX, usize::try_from(len).unwrap_or(0));
                cpu.trace_by(event, self.index(), 0, owner);
                return Err(why);
            }
        };
        let id = kernel.next_transaction();
        let mapping = NewMapping {
            id,
            dma,
            phys,
            orig,
            len,
            dir,
            kind: MappingKind::Single,
            bounced,
            map_owner: owner,
            alloc_owner,
            mapped_at: cpu.now(),
            checked,
        };
        let live = {
            let mut ledger = self.state.ledger.lock();
            ledger.map(mapping);
            ledger.len() as u64
        };
        {
            let mut counters = self.state.counters.lock();
            counters.maps += 1;
            counters.peak = counters.peak.max(live);
        }
        self.trace_mapping(cpu, Kind::DmaMapPage, &mapping);
        Ok(RawMapping { dma, len, id, bounced })
    }

    /// Where the device will find the bytes: in place if it reaches them, else in the bounce pool.
    pub(super) fn place(
        &self,
        cpu: &Cpu<'_>,
        orig: PhysAddr,
        len: u64,
        owner: Owner,
    ) -> Result<(PhysAddr, bool), MapFailure> {
        let (mask, kernel) = (self.mask(), cpu.kernel());
        let addr = self.bus_address(orig);
        let in_reach = Self::capable(addr, len, mask) && !kernel.config().swiotlb_force;
        if in_reach || self.domain().is_some() {
            return Ok((orig, false));
        }
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        let no_pool = MapFailure::Overflow { what: "DMA addr", addr, len, mask };
        if kernel.swiotlb.lock().is_none() {
            return Err(warn_no_pool(kernel, self, no_pool));
        }
        cpu.trace(Kind::SwiotlbBounced, orig.get(), size, self.index(), owner_word(owner));
        if cpu.point_for(Class::SwiotlbSlot, len, owner) == Verdict::Fail {
            return Err(MapFailure::Refused { len });
        }
        let slot = match kernel.swiotlb.lock().as_mut() {
            Some(pool) => pool.map(cpu.id(), orig, size, Constraints::default()),
            None => return Err(no_pool),
        };
        let slot = slot.inspect_err(|error| {
            warn_full(kernel, self, *error);
            self.book_refusal(cpu, *error, owner);
        })?;
        let bounce = self.bus_address(slot.phys);
        if !Self::capable(bounce, len, mask) {
            release_slots(kernel, slot.phys, len);
            let overflow = MapFailure::Overflow { what: "swiotlb addr", addr: bounce, len, mask };
            return Err(warn_pool_beyond(kernel, self, overflow));
        }
        // Both lie in RAM: one is the caller's buffer, the other the pool.
        let _ = kernel.ram().copy(orig, slot.phys, size);
        let mut counters = self.state.counters.lock();
        counters.bounces += 1;
        counters.bounced_bytes += len;
        counters.bounced_slots += u64::from(slot.count);
        Ok((slot.phys, true))
    }

    /// The pool had no room.
    fn book_refusal(&self, cpu: &Cpu<'_>, error: SwiotlbError, owner: Owner) {
        let (SwiotlbError::Full { size, total, used } | SwiotlbError::TooLarge { size, total, used }) = error else {
            return;
        };
        let refusal = Refusal::Slots { bytes: size, wanted: size.div_ceil(SLOT_SIZE), total, used };
        let device = Some(self.name().to_owned());
        cpu.kernel().refusals.book(Refused { at: cpu.now(), owner, device, refusal });
    }

    /// The unmapping under [`Mapped::unmap`], its `Drop` and misuse.
    pub(crate) fn unmap_raw(&self, dma: DmaAddr, len: u64, dir: Dir, by: Owner) {
        let Some(kernel) = self.live_kernel() else { return };
        let unmapped = self.state.ledger.lock().unmap(dma, len, dir, MappingKind::Single, by, kernel.clock());
        self.leave(dma, len);
        if let Some(mapping) = &unmapped.mapping {
            if dir.device_writes() {
                kernel.ram().invalidate(mapping.phys, len);
            }
            if mapping.bounced {
                if dir.device_writes() {
                    self.bounce(kernel, mapping.phys, len, true);
                }
                release_slots(kernel, mapping.phys, len);
            }
            self.trace_release(Kind::DmaUnmapPage, dma, usize::try_from(len).unwrap_or(0), mapping.id, by);
        }
        report_unmap(self, &unmapped, by);
    }

    fn copy(&self, kernel: &Kernel, from: PhysAddr, to: PhysAddr, len: u64) {
        // Both lie in RAM: one is the caller's buffer, the other the pool.
        let _ = kernel.ram().copy(from, to, usize::try_from(len).unwrap_or(0));
        self.state.counters.lock().bounced_bytes += len;
    }

    /// Moves ownership of part of a mapping, with the copies that a bounce needs (`dma_sync_single_for_*`).
    #[track_caller]
    pub(crate) fn sync_raw(&self, cpu: &Cpu<'_>, dma: DmaAddr, len: u64, for_cpu: bool, dir: Dir) {
        let Some(kernel) = self.live_kernel() else { return cpu.stale("DMA mapping") };
        let owner = cpu.owner();
        let (misuses, mapping) = {
            let mut ledger = self.state.ledger.lock();
            let synced = ledger.sync(dma, len, for_cpu, dir);
            (synced.misuses, synced.mapping.and_then(|id| ledger.get(id).copied()))
        };
        let kind = if for_cpu { Kind::DmaSyncForCpu } else { Kind::DmaSyncForDevice };
        let id = mapping.map_or(0, |m| m.id);
        cpu.trace_by((kind, dma.get(), usize::try_from(len).unwrap_or(0)), self.index(), id, owner);
        // By the address, as in Linux: a sync that the books don't know is copied all the same.
        if let Some(phys) = self.behind(dma) {
            self.pass_on(kernel, phys, len, for_cpu, dir);
        }
        for misuse in misuses.iter() {
            self.report(*misuse, mapping.as_ref(), owner);
        }
    }

    /// What a sync moves: lines of the CPUs' caches and bounced bytes, each in the order of kernel/dma/direct.h.
    fn pass_on(&self, kernel: &Kernel, phys: PhysAddr, len: u64, for_cpu: bool, dir: Dir) {
        if for_cpu && dir.device_writes() {
            kernel.ram().invalidate(phys, len);
        }
        if if for_cpu { dir.device_writes() } else { dir.device_reads() } {
            self.bounce(kernel, phys, len, for_cpu);
        }
        if !for_cpu {
            kernel.ram().clean(phys, len);
        }
    }

    /// Copies between a place in the bounce pool and what it stands for, no more than was mapped there.
    fn bounce(&self, kernel: &Kernel, bounce: PhysAddr, len: u64, to_cpu: bool) {
        let origin = kernel.swiotlb.lock().as_ref().and_then(|pool| pool.lookup(bounce));
        let Some(origin) = origin else { return };
        let len = origin.fits(len).unwrap_or_else(|error| {
            warn_too_long(kernel, self, error);
            origin.remaining
        });
        let (from, to) = if to_cpu { (bounce, origin.orig) } else { (origin.orig, bounce) };
        self.copy(kernel, from, to, len);
    }
}

pub(super) fn release_slots(kernel: &Kernel, at: PhysAddr, len: u64) {
    if let Some(pool) = kernel.swiotlb.lock().as_mut() {
        // The ledger knew the mapping as bounced, so the pool knows it too; a wrong length is the ledger's to report.
        let _ = pool.unmap(at, len);
    }
}

pub(crate) fn report_unmap(device: &DmaDevice, unmapped: &Unmapped, by: Owner) {
    for misuse in unmapped.misuses.iter() {
        device.report(*misuse, unmapped.mapping.as_ref(), by);
    }
}

/// `dev_warn_ratelimited`: not tracked, so that its place is this line for every caller.
fn warn_full(kernel: &Kernel, device: &DmaDevice, error: SwiotlbError) {
    kernel.log().ratelimited(kernel.clock(), Site::caller(), || format!("{}: {error}", device.name()));
}

/// WARN_ONCE of dma_direct_map_page, for the whole kernel.
fn warn_no_pool(kernel: &Kernel, device: &DmaDevice, failure: MapFailure) -> MapFailure {
    kernel.log().once(kernel.clock(), Site::caller(), format!("{}: {failure}", device.name()));
    failure
}

/// WARN_ONCE of swiotlb_map, for the whole kernel.
fn warn_pool_beyond(kernel: &Kernel, device: &DmaDevice, failure: MapFailure) -> MapFailure {
    kernel.log().once(kernel.clock(), Site::caller(), format!("{}: {failure}", device.name()));
    failure
}

/// WARN_ONCE of swiotlb_bounce, for the whole kernel.
fn warn_too_long(kernel: &Kernel, device: &DmaDevice, error: SwiotlbError) {
    kernel.log().once(kernel.clock(), Site::caller(), format!("{}: {error}", device.name()));
}
