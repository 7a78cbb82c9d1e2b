//! Mapping by numbers: the calls under [`super::Mapped`] and [`crate::dma::sg`], which `misuse` makes too.
//!
//! Here are the decision to bounce, the books and what is traced, in the order of kernel/dma/direct.h; the copies and
//! the kernel's warnings are in `bounce`. Who owns the buffer is the types' affair. Neighbours: the parent, `misuse`.

use super::MapFailure;
use super::bounce::{release_slots, warn_no_mask, warn_no_pool, warn_resource};
use crate::addr::{DmaAddr, PhysAddr};
use crate::cpu::Cpu;
use crate::dma::attrs::Attrs;
use crate::dma::device::DmaDevice;
use crate::dma::direction::Dir;
use crate::dma::ledger::{MapId, Unmapped};
use crate::dma::mapping::{Entries, Kind as MappingKind, NewMapping};
use crate::dma::ownership::Stretch;
use crate::env::{Class, Verdict};
use crate::fault::Request;
use crate::kbuf::KBuf;
use crate::kernel::Kernel;
use crate::site::Owner;
use crate::trace::Kind;

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

/// What a call says of a mapping beside where it lies; map, sync and unmap must say the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Terms {
    pub(crate) dir: Dir,
    pub(crate) kind: MappingKind,
    pub(crate) attrs: Attrs,
    /// Of how many entries it is one.
    pub(crate) entries: Entries,
    /// Whether the driver asks `dma_mapping_error`.
    pub(crate) checked: bool,
    /// Whether the caller keeps the memory, as C code does, and may touch or free it.
    pub(crate) lent: bool,
}

impl Terms {
    /// Those of `dma_map_single`, checked.
    pub(crate) const fn single(dir: Dir) -> Self {
        let entries = Entries { called: 0, mapped: 0 };
        Self { dir, kind: MappingKind::Single, attrs: Attrs::empty(), entries, checked: true, lent: false }
    }

    /// Those of `dma_map_single` by who keeps the buffer.
    pub(crate) const fn lent(dir: Dir) -> Self {
        Self { lent: true, ..Self::single(dir) }
    }

    /// The names of their events: map, unmap, sync for the CPU, sync for the device.
    fn events(self) -> [Kind; 4] {
        match self.kind {
            MappingKind::Single => [Kind::DmaMapPage, Kind::DmaUnmapPage, Kind::DmaSyncForCpu, Kind::DmaSyncForDevice],
            MappingKind::Sg => [Kind::DmaMapSg, Kind::DmaUnmapSg, Kind::DmaSyncSgForCpu, Kind::DmaSyncSgForDevice],
            MappingKind::Resource => {
                [Kind::DmaMapResource, Kind::DmaUnmapResource, Kind::DmaSyncForCpu, Kind::DmaSyncForDevice]
            }
            MappingKind::Coherent => [Kind::DmaAlloc, Kind::DmaFree, Kind::DmaSyncForCpu, Kind::DmaSyncForDevice],
        }
    }
}

/// Memory to be mapped, and who allocated it.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) orig: PhysAddr,
    pub(crate) len: u64,
    pub(crate) owner: Owner,
}

/// Where the device will find a piece.
#[derive(Clone, Copy)]
pub(crate) struct Placed {
    pub(crate) phys: PhysAddr,
    pub(crate) dma: DmaAddr,
    pub(crate) bounced: bool,
}

impl DmaDevice {
    /// The mapping under [`DmaDevice::map_single`] and under misuse.
    #[track_caller]
    pub(crate) fn map_raw(&self, cpu: &Cpu<'_>, buf: &KBuf, terms: Terms) -> Result<RawMapping, MapFailure> {
        self.live_for(cpu, Some(buf)).ok_or(MapFailure::Stale)?;
        self.map_at(cpu, Piece { orig: buf.phys(), len: buf.len() as u64, owner: buf.owner() }, terms)
    }

    /// The mapping of some bytes of memory, whoever they belong to (`dma_direct_map_page`).
    #[track_caller]
    pub(crate) fn map_at(&self, cpu: &Cpu<'_>, piece: Piece, terms: Terms) -> Result<RawMapping, MapFailure> {
        self.live_for(cpu, None).ok_or(MapFailure::Stale)?;
        let owner = cpu.owner();
        match self.ask_and_place(cpu, piece, terms, owner) {
            Ok(placed) => Ok(self.book(cpu, piece, placed, terms, owner)),
            Err(why) => {
                self.book_failure(cpu, (piece.len, &why), terms, owner);
                Err(why)
            }
        }
    }

    /// Passes the point of a mapping and finds a place for it.
    pub(crate) fn ask_and_place(
        &self,
        cpu: &Cpu<'_>,
        piece: Piece,
        terms: Terms,
        owner: Owner,
    ) -> Result<Placed, MapFailure> {
        // A direct mapping always succeeds; one that bounces may find the pool full, an IOMMU's addresses may be out.
        let natural = self.domain().is_some() || !self.in_place(piece);
        self.ask(cpu, piece.len, natural, owner)?;
        self.place(cpu, piece, terms, owner)
    }

    /// Passes the point of a mapping of so many bytes.
    pub(crate) fn ask(&self, cpu: &Cpu<'_>, len: u64, natural: bool, owner: Owner) -> Result<(), MapFailure> {
        if !self.has_mask() {
            return Err(warn_no_mask(cpu.kernel(), self));
        }
        match cpu.pass(Request::new(Class::Map, len), owner, natural) {
            Verdict::Fail => Err(MapFailure::Refused { len }),
            Verdict::Pass => Ok(()),
        }
    }

    /// Whether the device uses a piece where it lies, without an IOMMU.
    fn in_place(&self, piece: Piece) -> bool {
        let capable = Self::capable(self.bus_address(piece.orig), piece.len, self.mask());
        !self.bounces_all() && (capable || planted!(AnyMask))
    }

    /// Where the device will find the bytes: in place if it reaches them, else in the bounce pool; they are visible to
    /// it then.
    pub(super) fn place(&self, cpu: &Cpu<'_>, piece: Piece, terms: Terms, owner: Owner) -> Result<Placed, MapFailure> {
        let Piece { orig, len, .. } = piece;
        let (mask, kernel) = (self.mask(), cpu.kernel());
        if terms.kind == MappingKind::Resource {
            // Neither translated nor bounced: registers are no RAM.
            let addr = DmaAddr::new(orig.get());
            let overflow = MapFailure::Overflow { what: "DMA addr", addr, len, mask };
            return match self.domain() {
                None if !Self::capable(addr, len, mask) => Err(warn_resource(kernel, self, overflow)),
                None => Ok(Placed { phys: orig, dma: addr, bounced: false }),
                Some(_) => Ok(Placed { phys: orig, dma: self.enter(orig, len, terms.dir, mask)?, bounced: false }),
            };
        }
        let placed = if self.domain().is_some() || self.in_place(piece) {
            Placed { phys: orig, dma: self.enter(orig, len, terms.dir, mask)?, bounced: false }
        } else {
            if kernel.swiotlb.lock().is_none() {
                let addr = self.bus_address(orig);
                let no_pool = MapFailure::Overflow { what: "DMA addr", addr, len, mask };
                return Err(warn_no_pool(kernel, self, no_pool));
            }
            self.place_in_pool(cpu, piece, terms, owner)?
        };
        if !terms.attrs.contains(Attrs::SKIP_CPU_SYNC) {
            kernel.ram().clean(placed.phys, len);
        }
        Ok(placed)
    }

    /// Undoes a place that was never booked: without a copy back, as the device has not been told of it.
    pub(crate) fn unplace(&self, kernel: &Kernel, placed: Placed, len: u64) {
        self.leave(placed.dma, len);
        if placed.bounced {
            release_slots(kernel, placed.phys, len);
        }
    }

    /// Books a mapping that has its place.
    pub(crate) fn book(&self, cpu: &Cpu<'_>, piece: Piece, placed: Placed, terms: Terms, owner: Owner) -> RawMapping {
        let (raw, id) = self.book_unwatched(cpu, piece, placed, terms, owner);
        self.watch(cpu, piece, 0, (raw.id, id), terms);
        raw
    }

    /// Has the CPU's accesses to a piece judged, where they are: it begins at an offset in its mapping.
    pub(crate) fn watch(&self, cpu: &Cpu<'_>, piece: Piece, offset: u64, of: (u64, MapId), terms: Terms) {
        let kernel = cpu.kernel();
        if (terms.lent || !kernel.config().coherent) && terms.kind != MappingKind::Resource {
            let stretch = Stretch { orig: piece.orig, len: piece.len, offset, device: self.index(), id: of.1 };
            kernel.watched.enter(of.0, stretch);
        }
    }

    /// As [`DmaDevice::book`], of memory that is watched piece by piece.
    pub(crate) fn book_unwatched(
        &self,
        cpu: &Cpu<'_>,
        piece: Piece,
        placed: Placed,
        terms: Terms,
        owner: Owner,
    ) -> (RawMapping, MapId) {
        let mapping = NewMapping {
            id: cpu.kernel().next_transaction(),
            dma: placed.dma,
            phys: placed.phys,
            orig: piece.orig,
            len: piece.len,
            dir: terms.dir,
            kind: terms.kind,
            entries: terms.entries,
            bounced: placed.bounced,
            map_owner: owner,
            alloc_owner: piece.owner,
            mapped_at: cpu.now(),
            checked: terms.checked,
        };
        let (booked, misuses, live) = {
            let mut ledger = self.state.ledger.lock();
            let (booked, misuses) = ledger.map_tracked(mapping);
            (booked, misuses, ledger.len() as u64)
        };
        {
            let mut counters = self.state.counters.lock();
            counters.maps += 1;
            counters.peak = counters.peak.max(live);
        }
        self.trace_mapping(cpu, terms.events()[0], &mapping);
        if !terms.attrs.contains(Attrs::SKIP_CPU_SYNC) {
            misuses.iter().for_each(|misuse| self.report(*misuse, None, owner));
        }
        (RawMapping { dma: placed.dma, len: piece.len, id: mapping.id, bounced: placed.bounced }, booked)
    }

    /// Counts and traces a map call that failed.
    pub(crate) fn book_failure(&self, cpu: &Cpu<'_>, (len, why): (u64, &MapFailure), terms: Terms, owner: Owner) {
        self.state.counters.lock().map_failures += 1;
        let event = (terms.events()[0], u64::MAX, usize::try_from(len).unwrap_or(0));
        cpu.trace_by(event, self.index(), 0, owner);
        cpu.trace_refused(self.index(), || match why {
            MapFailure::Refused { .. } => format!("injected: {why}"),
            _ => format!("{why}\n  the device reaches {:#x}", self.mask()),
        });
    }

    /// The unmapping under [`super::Mapped::unmap`], its `Drop` and misuse.
    pub(crate) fn unmap_raw(&self, dma: DmaAddr, len: u64, terms: Terms, by: Owner) {
        let Some(kernel) = self.live_kernel() else { return };
        let of = (terms.kind, terms.entries.called);
        let unmapped = self.state.ledger.lock().unmap_entry(dma, len, terms.dir, of, by, kernel.clock());
        let scattered = self.scattered(kernel, dma, len);
        self.leave(dma, len);
        if let Some(mapping) = &unmapped.mapping {
            kernel.watched.leave(mapping.orig, mapping.id);
            let skip = terms.attrs.contains(Attrs::SKIP_CPU_SYNC) && !planted!(SkipIgnored);
            let back = terms.dir.device_writes() && !skip;
            if back && terms.kind != MappingKind::Resource {
                match scattered[..] {
                    [] => kernel.ram().invalidate(mapping.phys, len),
                    _ => scattered.iter().for_each(|&(phys, len)| kernel.ram().invalidate(phys, len)),
                }
            }
            let mut copied = 0;
            if mapping.bounced {
                if back && !planted!(NoCopyBack) {
                    copied = self.bounce(kernel, mapping.phys, len, true);
                }
                release_slots(kernel, mapping.phys, len);
            }
            let event = terms.events()[1];
            self.trace_release((event, dma, len), mapping.id, copied, by);
        }
        report_unmap(self, &unmapped, by);
    }

    /// Moves ownership of part of a mapping, with the copies that a bounce needs (`dma_sync_single_for_*`).
    #[track_caller]
    pub(crate) fn sync_raw(&self, cpu: &Cpu<'_>, dma: DmaAddr, len: u64, for_cpu: bool, terms: Terms) {
        let Some(kernel) = self.live_kernel() else { return cpu.stale("DMA mapping") };
        let (owner, dir) = (cpu.owner(), terms.dir);
        let (misuses, mapping) = {
            let mut ledger = self.state.ledger.lock();
            let synced = ledger.sync_entry(dma, len, for_cpu, dir, (terms.kind, terms.entries.called));
            (synced.misuses, synced.mapping.and_then(|id| ledger.get(id).copied()))
        };
        let [_, _, to_cpu, to_device] = terms.events();
        let kind = if for_cpu { to_cpu } else { to_device };
        let id = mapping.map_or(0, |m| m.id);
        // By the address, as in Linux: a sync that the books don't know is copied all the same.
        let whole = mapping.filter(|_| planted!(SyncWhole));
        let copied = if let Some(mapping) = whole {
            self.pass_on(kernel, mapping.phys, mapping.len, for_cpu, dir)
        } else {
            let scattered = self.scattered(kernel, dma, len);
            let whole = self.behind(dma).filter(|_| scattered.is_empty()).map(|phys| (phys, len));
            let pieces = scattered.into_iter().chain(whole);
            pieces.map(|(phys, len)| self.pass_on(kernel, phys, len, for_cpu, dir)).sum()
        };
        let event = (kind, dma.get(), usize::try_from(len).unwrap_or(0));
        let by = (Kind::By, 0, u32::try_from(copied).unwrap_or(u32::MAX), owner);
        cpu.trace_with(event, self.index(), id, &[by]);
        for misuse in misuses.iter() {
            self.report(*misuse, mapping.as_ref(), owner);
        }
    }

    /// What a sync moves: lines of the CPUs' caches and bounced bytes, each in the order of kernel/dma/direct.h; how
    /// many bytes bounced.
    fn pass_on(&self, kernel: &Kernel, phys: PhysAddr, len: u64, for_cpu: bool, dir: Dir) -> u64 {
        if for_cpu && dir.device_writes() {
            kernel.ram().invalidate(phys, len);
        }
        let moves = if for_cpu { dir.device_writes() } else { dir.device_reads() && !planted!(NoCopyAgain) };
        let copied = if moves { self.bounce(kernel, phys, len, for_cpu) } else { 0 };
        if planted!(SlotTwice) && for_cpu {
            release_slots(kernel, phys, len);
        }
        if !for_cpu {
            kernel.ram().clean(phys, len);
        }
        copied
    }
}

pub(crate) fn report_unmap(device: &DmaDevice, unmapped: &Unmapped, by: Owner) {
    for misuse in unmapped.misuses.iter() {
        device.report(*misuse, unmapped.mapping.as_ref(), by);
    }
}
