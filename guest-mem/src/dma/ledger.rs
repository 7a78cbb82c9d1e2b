//! The lab's book of every live DMA mapping of one device: what the driver may undo, and what the device may touch.
//!
//! It answers two sides. To the driver's calls it answers as dma-debug does (kernel/dma/debug.c of 6.1): an exact
//! lookup for an unmap, one by containment for a sync, best fit by size, family and direction, and of several
//! candidates without a perfect one: none. To the device's accesses it answers as nothing in Linux does: to the byte,
//! with the mapping that allows it or with the reason why none does.
//!
//! Costs: coherent regions, few and hot (rings), have a table of their own that is searched first; each table is in
//! order, so an access that is granted costs two binary searches at most and, where mappings don't overlap, one step
//! back. Map and unmap move no more keys than half a run of the table. Mappings lie in a slab and never move; nothing is allocated once the book has been as full as it gets. A refusal may look at
//! all mappings near the address and at the last [`DEAD`] dead ones.
//!
//! It holds no lock and no clock: the kernel wraps it and gives the time. Neighbours: [`super::mapping`], the port
//! (which asks [`Ledger::admit`]), the map and unmap calls, the leak check. Left out: dma-debug's finite store of
//! entries, its failure to look back further than the device's segment size.

mod claim;
mod lines;
mod misuse;
mod table;
#[cfg(test)]
mod tests;
mod validate;

pub use lines::MOST as MOST_OVERLAPS;
pub use misuse::{Access, Misuse, Misuses, Violation};
pub use validate::LedgerError;

use super::direction::Dir;
use super::mapping::{Dead, Kind, Mapping, NewMapping};
use crate::addr::{DmaAddr, PhysAddr};
use crate::site::Owner;
use claim::Claim;
use lines::Lines;
use table::{Key, Table};

/// How many dead mappings are remembered.
pub const DEAD: usize = 256;
/// Bytes of address that share a bucket of dma-debug's hash table, and how many buckets there are.
const BUCKET_SHIFT: u32 = 13;
const BUCKETS: u64 = 16384;

/// A handle of a live mapping; a stale one finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapId {
    slot: usize,
    serial: u64,
}

/// What an unmap or free found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Unmapped {
    /// The mapping that has ended, even if the call was wrong about it; `None` if none was found.
    pub mapping: Option<Mapping>,
    /// What was wrong.
    pub misuses: Misuses,
}

/// What a sync found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Synced {
    /// The mapping that holds the range, if there is one.
    pub mapping: Option<MapId>,
    /// What was wrong.
    pub misuses: Misuses,
}

/// The answer to a device's access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict<'a> {
    /// This mapping allows it.
    Granted(&'a Mapping),
    /// None does.
    Refused(Violation),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Number of the map call; 0 if free.
    serial: u64,
    mapping: Mapping,
}

/// The book of one device.
#[derive(Clone, Debug)]
pub struct Ledger {
    coherent: Table,
    streaming: Table,
    lines: Lines,
    slab: Vec<Entry>,
    free: Vec<usize>,
    /// A ring, once it is full.
    dead: Vec<Dead>,
    oldest_dead: usize,
    serial: u64,
    epoch: u64,
    /// Whether the driver was shut down.
    shut_down: bool,
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new()
    }
}

impl Ledger {
    /// An empty book.
    pub fn new() -> Self {
        Self {
            coherent: Table::new(),
            streaming: Table::new(),
            lines: Lines::default(),
            slab: Vec::new(),
            free: Vec::new(),
            dead: Vec::new(),
            oldest_dead: 0,
            serial: 0,
            epoch: 0,
            shut_down: false,
        }
    }

    /// Books a mapping that has been made; overlaps are allowed, as they are in Linux.
    pub fn map(&mut self, new: NewMapping) -> MapId {
        self.map_tracked(new).0
    }

    /// [`Ledger::map`], and what dma-debug says of a first cache line that another mapping begins in too.
    pub fn map_tracked(&mut self, new: NewMapping) -> (MapId, Misuses) {
        self.epoch += 1;
        self.serial += 1;
        let entry = Entry { serial: self.serial, mapping: Mapping::new(new) };
        let mut misuses = Misuses::default();
        if let Some((line, overlaps)) = self.lines.enter(&entry.mapping) {
            if overlaps > MOST_OVERLAPS {
                misuses.push(Misuse::TooManyOverlaps { line });
            }
            misuses.push(Misuse::Overlaps);
        }
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slab[slot] = entry;
                slot
            }
            None => {
                self.slab.push(entry);
                self.slab.len() - 1
            }
        };
        self.table(new.kind).insert(Key { dma: new.dma.get(), len: new.len, slot });
        (MapId { slot, serial: entry.serial }, misuses)
    }

    fn table(&mut self, kind: Kind) -> &mut Table {
        match kind {
            Kind::Coherent => &mut self.coherent,
            Kind::Single | Kind::Sg | Kind::Resource => &mut self.streaming,
        }
    }

    /// `dma_mapping_error`: the driver has looked at an address; of several mappings there, the first not yet checked
    /// is marked. Returns whether one was.
    pub fn check(&mut self, dma: DmaAddr) -> bool {
        let slot = self.streaming.at(dma).map(|key| key.slot).find(|&slot| !self.slab[slot].mapping.checked);
        if let Some(slot) = slot {
            self.slab[slot].mapping.checked = true;
        }
        slot.is_some()
    }

    /// Ends a mapping, and tells what the call had wrong about it, in dma-debug's order: size, function, direction,
    /// unchecked. What was found has ended even so.
    ///
    /// `by` and `now` (ns) are kept for late accesses. For `dma_free_coherent` see [`Ledger::free_coherent`].
    pub fn unmap(&mut self, dma: DmaAddr, len: u64, dir: Dir, kind: Kind, by: Owner, now: u64) -> Unmapped {
        self.unmap_entry(dma, len, dir, (kind, 0), by, now)
    }

    /// As [`Ledger::unmap`], of an entry of a scatterlist that the caller says has so many.
    pub fn unmap_entry(&mut self, dma: DmaAddr, len: u64, dir: Dir, of: (Kind, u32), by: Owner, now: u64) -> Unmapped {
        self.end(dma, &Claim { len, dir, kind: of.0, entries: of.1, cpu: None }, by, now)
    }

    /// To how many entries of a list dma-debug looks in an unmap or sync: those of the mapping that the first one is
    /// (`get_nr_mapped_entries`); 0 if it is none.
    pub fn mapped_entries(&self, dma: DmaAddr, len: u64, dir: Dir, entries: u32) -> u32 {
        let slot = self.exact(dma, &Claim { len, dir, kind: Kind::Sg, entries, cpu: None });
        slot.map_or(0, |slot| self.slab[slot].mapping.entries.mapped)
    }

    /// As [`Ledger::unmap`], for coherent memory that the caller says lies at `cpu`; that is compared, too.
    pub fn free_coherent(&mut self, dma: DmaAddr, len: u64, cpu: PhysAddr, by: Owner, now: u64) -> Unmapped {
        let claim = Claim { len, dir: Dir::Bidirectional, kind: Kind::Coherent, entries: 0, cpu: Some(cpu) };
        self.end(dma, &claim, by, now)
    }

    fn end(&mut self, dma: DmaAddr, claim: &Claim, by: Owner, now: u64) -> Unmapped {
        let Some(slot) = self.exact(dma, claim) else {
            let mut misuses = Misuses::default();
            misuses.push(match dma.get() {
                u64::MAX => Misuse::FreesInvalid,
                _ => Misuse::FreesUnallocated { dma, len: claim.len },
            });
            return Unmapped { mapping: None, misuses };
        };
        self.epoch += 1;
        let mapping = self.slab[slot].mapping;
        let misuses = claim.compare(&mapping);
        if planted!(EntryKept) {
            return Unmapped { mapping: Some(mapping), misuses };
        }
        self.table(mapping.kind).remove(dma.get(), slot);
        self.lines.leave(&mapping);
        self.slab[slot].serial = 0;
        self.free.push(slot);
        self.bury(Dead { mapping, unmap_owner: by, unmapped_at: now });
        Unmapped { mapping: Some(mapping), misuses }
    }

    /// `bucket_find_exact`.
    fn exact(&self, dma: DmaAddr, claim: &Claim) -> Option<usize> {
        let keys = self.coherent.at(dma).chain(self.streaming.at(dma));
        let mut candidates = keys.map(|key| key.slot);
        let first = candidates.next()?;
        let Some(second) = candidates.next() else { return Some(first) };
        let all = [first, second].into_iter().chain(candidates);
        all.into_iter().find(|&slot| claim.is_perfect(&self.slab[slot].mapping))
    }

    fn bury(&mut self, dead: Dead) {
        if planted!(DeadForgotten) {
            return;
        }
        if self.dead.len() < DEAD {
            self.dead.push(dead);
        } else {
            self.dead[self.oldest_dead] = dead;
            self.oldest_dead = (self.oldest_dead + 1) % DEAD;
        }
    }

    /// Dead mappings, the newest first.
    fn dead(&self) -> impl Iterator<Item = &Dead> {
        let (newer, older) = self.dead.split_at(self.oldest_dead);
        newer.iter().rev().chain(older.iter().rev())
    }

    /// The mapping that held this byte last, among the dead that are remembered: who else unmapped it, and when.
    pub fn died_at(&self, dma: DmaAddr) -> Option<&Dead> {
        self.dead().find(|dead| dead.mapping.covers(dma, 1))
    }

    /// Passes part of a streaming mapping to the CPU or back to the device; an access of the device to what the CPU
    /// owns is refused until then. Coherent memory may be synced, to no effect.
    pub fn sync(&mut self, dma: DmaAddr, len: u64, for_cpu: bool, dir: Dir) -> Synced {
        self.sync_entry(dma, len, for_cpu, dir, (Kind::Single, 0))
    }

    /// As [`Ledger::sync`], by another family of calls: of an entry of a scatterlist that has so many.
    pub fn sync_entry(&mut self, dma: DmaAddr, len: u64, for_cpu: bool, dir: Dir, of: (Kind, u32)) -> Synced {
        let mut misuses = Misuses::default();
        let claim = Claim { len, dir, kind: of.0, entries: of.1, cpu: None };
        let Some(slot) = self.containing(dma, &claim) else {
            misuses.push(Misuse::SyncsUnallocated { dma, len });
            return Synced { mapping: None, misuses };
        };
        let entry = &mut self.slab[slot];
        let (size, mapped, synced) = (entry.mapping.len, entry.mapping.dir, dir);
        if mapped != Dir::Bidirectional {
            if mapped != synced {
                misuses.push(Misuse::SyncDirection { dma, size, mapped, synced });
            }
            if for_cpu && mapped != Dir::FromDevice && synced != Dir::ToDevice {
                misuses.push(Misuse::SyncsReadOnly { dma, size, mapped, synced });
            }
            if !for_cpu && mapped != Dir::ToDevice && synced != Dir::FromDevice {
                misuses.push(Misuse::SyncsWriteOnly { dma, size, mapped, synced });
            }
        }
        claim.compare_entries(&entry.mapping, |mapped, synced| misuses.push(Misuse::SyncEntries { mapped, synced }));
        if entry.mapping.kind != Kind::Coherent {
            self.epoch += 1;
            entry.mapping.hand_over(dma, len, for_cpu);
        }
        Synced { mapping: Some(MapId { slot, serial: entry.serial }), misuses }
    }

    /// `bucket_find_contain`: bucket by bucket down from the address, the perfect candidate or the only one.
    fn containing(&self, dma: DmaAddr, claim: &Claim) -> Option<usize> {
        let len = claim.len;
        let mut highest = dma.get() >> BUCKET_SHIFT;
        loop {
            let (mut bucket, mut count, mut any, mut perfect) = (0, 0, None, None);
            for key in self.coherent.covering(dma, len).chain(self.streaming.covering(dma, len)) {
                let its = key.dma >> BUCKET_SHIFT;
                if its > highest || its < bucket {
                    continue;
                }
                if its > bucket {
                    (bucket, count, perfect) = (its, 0, None);
                }
                count += 1;
                any = Some(key.slot);
                if claim.is_perfect(&self.slab[key.slot].mapping) {
                    perfect = any;
                }
            }
            if perfect.is_some() || count <= 1 {
                return perfect.or(any);
            }
            highest = bucket.checked_sub(1)?;
        }
    }

    /// Judges an access of the device, and counts it if it is granted.
    ///
    /// Granted is what one live mapping holds to the last byte, in a direction that allows it, with no byte of it in
    /// the CPU's hands; coherent memory is asked first, then the nearest beginning. Otherwise, if a mapping holds it
    /// all, that one's reason; else the first byte decides: outside the live mapping that has it, or after the unmap of
    /// the dead one that had it, or by the other bytes in the same order. An access of no bytes is judged by where it
    /// stands.
    #[inline]
    pub fn admit(&mut self, dma: DmaAddr, len: u64, write: bool, now: u64) -> Verdict<'_> {
        let mut blocked = None;
        let keys = self.coherent.covering(dma, len).chain(self.streaming.covering(dma, len));
        for slot in keys.map(|key| key.slot) {
            let mapping = &self.slab[slot].mapping;
            let allowed = mapping.allows(write) || planted!(AnyDirection);
            if self.shut_down {
                return Verdict::Refused(Violation::AfterShutdown {
                    access: Access { dma, len, write },
                    mapping: *mapping,
                });
            }
            if allowed && (!mapping.cpu_owns(dma, len) || planted!(AlwaysDevices)) {
                let mapping = &mut self.slab[slot].mapping;
                mapping.touched.count(len, write, now);
                mapping.unseen |= write;
                return Verdict::Granted(mapping);
            }
            blocked = blocked.or(Some(slot));
        }
        Verdict::Refused(self.violation(Access { dma, len, write }, blocked))
    }

    #[cold]
    fn violation(&self, access: Access, blocked: Option<usize>) -> Violation {
        if let Some(slot) = blocked {
            let mapping = self.slab[slot].mapping;
            return if mapping.allows(access.write) {
                Violation::WhileCpuOwns { access, mapping }
            } else {
                Violation::WrongDirection { access, mapping }
            };
        }
        let (dma, len) = (access.dma, access.len);
        let after = |len| {
            let dead = self.dead().find(|dead| dead.mapping.overlaps(dma, len));
            dead.map(|&dead| Violation::AfterUnmap { access, dead })
        };
        let by_first_byte = self.outside(access, 1).or_else(|| after(1));
        let by_any_byte = || self.outside(access, len).or_else(|| after(len));
        by_first_byte.or_else(by_any_byte).unwrap_or(Violation::Unmapped { access })
    }

    /// The live mapping with any of the first `len` bytes that leaves the fewest bytes of the access outside.
    fn outside(&self, access: Access, len: u64) -> Option<Violation> {
        let start = access.dma.get();
        let keys = self.coherent.overlapping(access.dma, len).chain(self.streaming.overlapping(access.dma, len));
        let beyond = |key: &Key| {
            let before = key.dma.saturating_sub(start);
            let held = key.len - start.saturating_sub(key.dma);
            (before, (access.len - before.min(access.len)).saturating_sub(held), key.slot)
        };
        let best = keys.map(beyond).min_by_key(|&(before, past, _)| before.saturating_add(past));
        best.map(|(before, past, slot)| Violation::Outside { access, mapping: self.slab[slot].mapping, before, past })
    }

    /// A live mapping.
    pub fn get(&self, id: MapId) -> Option<&Mapping> {
        self.slab.get(id.slot).filter(|entry| entry.serial == id.serial).map(|entry| &entry.mapping)
    }

    /// Live mappings by device address; at one address coherent memory first, then in the order of their map calls.
    pub fn live(&self) -> impl Iterator<Item = &Mapping> {
        let (mut left, mut right) = (self.coherent.keys().peekable(), self.streaming.keys().peekable());
        std::iter::from_fn(move || {
            let first = match (left.peek(), right.peek()) {
                (Some(coherent), Some(streaming)) if streaming.dma < coherent.dma => right.next(),
                (None, _) => right.next(),
                _ => left.next(),
            };
            first.map(|key| &self.slab[key.slot].mapping)
        })
    }

    /// How many mappings are live.
    pub fn len(&self) -> usize {
        self.coherent.len() + self.streaming.len()
    }

    /// Whether none is live.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A number that changes whenever an access might be judged anew: at each map, unmap, sync and clear.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What dma-debug says when a driver is unbound with mappings left, or `None` if none is.
    pub fn pending(&self) -> Option<Misuse> {
        let keys = self.coherent.keys().chain(self.streaming.keys());
        let last = keys.max_by_key(|key| ((key.dma >> BUCKET_SHIFT) % BUCKETS, self.slab[key.slot].serial))?;
        let Mapping { dma, len, dir, kind, .. } = self.slab[last.slot].mapping;
        Some(Misuse::Pending { count: self.len(), dma, len, dir, kind })
    }

    /// Whether the driver was shut down, so that the device may touch nothing any more.
    pub fn set_shut_down(&mut self, yes: bool) {
        self.epoch += 1;
        self.shut_down = yes;
    }

    /// Forgets all mappings, live and dead, and keeps the room they had; no handle outlives it.
    pub fn clear(&mut self) {
        self.epoch += 1;
        self.shut_down = false;
        self.coherent.clear();
        self.streaming.clear();
        self.lines.clear();
        self.slab.clear();
        self.free.clear();
        self.dead.clear();
        self.oldest_dead = 0;
    }
}
