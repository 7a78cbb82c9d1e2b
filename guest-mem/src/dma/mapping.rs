//! One live DMA mapping as the lab books it: what was mapped, by whom, for whom, and what the device did with it.
//!
//! A [`Mapping`] is the state of one transaction between its map call and its unmap call; a [`Dead`] is the same
//! after it, kept for a while so that a late access can be told from a wild one.
//!
//! Neighbours: [`super::ledger`] keeps them and is the only one who changes them. An entry of a scatterlist is a mapping
//! of its own that knows how many there were. Left out: the CPU addresses of the buffer (only where its bytes lie).

use std::fmt;

use super::direction::Dir;
use crate::addr::{DmaAddr, PhysAddr};
use crate::site::Owner;

/// The family of calls that made a mapping (kernel/dma/debug.c, `type2name`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `dma_map_single` and `dma_map_page`: one type, to dma-debug.
    Single,
    /// An entry of a `dma_map_sg`.
    Sg,
    /// `dma_alloc_coherent`.
    Coherent,
    /// `dma_map_resource`.
    Resource,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Single => "single",
            Self::Sg => "scather-gather",
            Self::Coherent => "coherent",
            Self::Resource => "resource",
        })
    }
}

/// What the device did with a mapping; each access counts whole, whichever way the port splits it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Reads granted.
    pub reads: u64,
    /// Bytes of these reads.
    pub read_bytes: u64,
    /// Writes granted.
    pub writes: u64,
    /// Bytes of these writes.
    pub write_bytes: u64,
    /// When the first access came, in nanoseconds.
    pub first: Option<u64>,
}

impl Touched {
    pub(super) fn count(&mut self, len: u64, write: bool, now: u64) {
        let (calls, bytes) =
            if write { (&mut self.writes, &mut self.write_bytes) } else { (&mut self.reads, &mut self.read_bytes) };
        *calls = calls.wrapping_add(1);
        *bytes = bytes.wrapping_add(len);
        self.first.get_or_insert(now);
    }
}

/// The bytes of a streaming mapping that the CPU owns for now, between `sync_for_cpu` and `sync_for_device`.
///
/// One stretch: a sync next to it or over it widens it, a sync apart from it replaces it, and of a stretch cut in two
/// the longer part stays. So the lab may miss an access into a second window, and never accuses one that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Offset of the first byte.
    pub from: u64,
    /// Offset after the last byte.
    pub to: u64,
}

impl Window {
    fn opened(old: Option<Self>, from: u64, to: u64) -> Option<Self> {
        let fresh = (from < to).then_some(Self { from, to });
        match (old, fresh) {
            (Some(old), Some(new)) if new.from <= old.to && old.from <= new.to => {
                Some(Self { from: old.from.min(new.from), to: old.to.max(new.to) })
            }
            (_, Some(new)) => Some(new),
            (old, None) => old,
        }
    }

    fn closed(old: Option<Self>, from: u64, to: u64) -> Option<Self> {
        let old = old?;
        if from >= to || from >= old.to || to <= old.from {
            return Some(old);
        }
        let below = Self { from: old.from, to: from.max(old.from) };
        let above = Self { from: to.min(old.to), to: old.to };
        let longer = if above.to - above.from > below.to - below.from { above } else { below };
        (longer.from < longer.to).then_some(longer)
    }
}

/// How many entries the scatterlist of a mapping has; none for a mapping that is of no list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Those of the map call (`sg_call_ents`), which sync and unmap must repeat.
    pub called: u32,
    /// Those that the device was told (`sg_mapped_ents`).
    pub mapped: u32,
}

/// What a map call tells the ledger.
#[derive(Clone, Copy, Debug)]
pub struct NewMapping {
    /// Number of the transaction, from the caller's counter.
    pub id: u64,
    /// Where the device sees the first byte.
    pub dma: DmaAddr,
    /// Where that byte really lies for the device: in the bounce slot, if there is one.
    pub phys: PhysAddr,
    /// Where the byte lies in the driver's buffer; equals `phys` when nothing bounced.
    pub orig: PhysAddr,
    /// Length in bytes.
    pub len: u64,
    /// Direction; [`Dir::Bidirectional`] for coherent memory.
    pub dir: Dir,
    /// Family of the call.
    pub kind: Kind,
    /// Of how many entries it is one.
    pub entries: Entries,
    /// Whether it went through swiotlb.
    pub bounced: bool,
    /// Who mapped it.
    pub map_owner: Owner,
    /// Who allocated the buffer.
    pub alloc_owner: Owner,
    /// When, in nanoseconds.
    pub mapped_at: u64,
    /// Whether the driver has looked at the result already; without meaning for coherent memory.
    pub checked: bool,
}

/// A live mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Number of the transaction.
    pub id: u64,
    /// Where the device sees the first byte.
    pub dma: DmaAddr,
    /// Where that byte really lies for the device: in the bounce slot, if there is one.
    pub phys: PhysAddr,
    /// Where the byte lies in the driver's buffer.
    pub orig: PhysAddr,
    /// Length in bytes.
    pub len: u64,
    /// Direction.
    pub dir: Dir,
    /// Family of the call.
    pub kind: Kind,
    /// Of how many entries it is one.
    pub entries: Entries,
    /// Whether it went through swiotlb.
    pub bounced: bool,
    /// Whether the driver asked `dma_mapping_error` (Linux: `MAP_ERR_CHECKED`).
    pub checked: bool,
    /// Who mapped it.
    pub map_owner: Owner,
    /// Who allocated the buffer.
    pub alloc_owner: Owner,
    /// When, in nanoseconds.
    pub mapped_at: u64,
    /// What the CPU owns for now.
    pub cpu_window: Option<Window>,
    /// What the device did.
    pub touched: Touched,
    /// Whether the device has written since the CPU was given any of it.
    pub unseen: bool,
}

impl Mapping {
    pub(super) fn new(new: NewMapping) -> Self {
        Self {
            id: new.id,
            dma: new.dma,
            phys: new.phys,
            orig: new.orig,
            len: new.len,
            dir: new.dir,
            kind: new.kind,
            entries: new.entries,
            bounced: new.bounced,
            checked: new.checked,
            map_owner: new.map_owner,
            alloc_owner: new.alloc_owner,
            mapped_at: new.mapped_at,
            cpu_window: None,
            touched: Touched::default(),
            unseen: false,
        }
    }

    /// Whether all of `len` bytes from `dma` on lie in the mapping; no byte at all lies in it up to its end.
    pub fn covers(&self, dma: DmaAddr, len: u64) -> bool {
        covers(self.dma.get(), self.len, dma.get(), len)
    }

    /// Whether any of `len` bytes from `dma` on lies in the mapping.
    pub fn overlaps(&self, dma: DmaAddr, len: u64) -> bool {
        overlaps(self.dma.get(), self.len, dma.get(), len)
    }

    /// Where the byte that the device sees at `dma` really lies, or `None` outside the mapping.
    pub fn translate(&self, dma: DmaAddr) -> Option<PhysAddr> {
        let offset = dma.offset_from(self.dma).filter(|&offset| offset < self.len)?;
        self.phys.checked_add(offset)
    }

    /// Whether the direction lets the device do this.
    pub const fn allows(&self, write: bool) -> bool {
        if write { self.dir.device_writes() } else { self.dir.device_reads() }
    }

    /// Whether the CPU owns any of `len` bytes from `dma` on.
    pub fn cpu_owns(&self, dma: DmaAddr, len: u64) -> bool {
        let Some(window) = self.cpu_window else { return false };
        let start = self.dma.get().saturating_add(window.from);
        overlaps(start, window.to - window.from, dma.get(), len)
    }

    /// Moves bytes between the owners; the range is one that the mapping covers.
    pub(super) fn hand_over(&mut self, dma: DmaAddr, len: u64, to_cpu: bool) {
        let from = dma.offset_from(self.dma).unwrap_or(0);
        let to = from.saturating_add(len).min(self.len);
        let change = if to_cpu { Window::opened } else { Window::closed };
        self.cpu_window = change(self.cpu_window, from, to);
        self.unseen &= !to_cpu;
    }
}

/// A mapping after its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dead {
    /// Its last state.
    pub mapping: Mapping,
    /// Who unmapped it.
    pub unmap_owner: Owner,
    /// When, in nanoseconds.
    pub unmapped_at: u64,
}

/// Whether `[at, at + len)` lies in `[start, start + size)`; sums past 2^64 are never formed.
pub(super) fn covers(start: u64, size: u64, at: u64, len: u64) -> bool {
    at.checked_sub(start).and_then(|offset| size.checked_sub(offset)).is_some_and(|left| len <= left)
}

/// Whether the two ranges share a byte.
pub(super) fn overlaps(start: u64, size: u64, at: u64, len: u64) -> bool {
    if at >= start { len > 0 && at - start < size } else { size > 0 && start - at < len }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_at_the_end_of_the_address_space_do_not_wrap() {
        let top = u64::MAX - 15;
        assert!(covers(top, 16, u64::MAX, 1));
        assert!(!covers(top, 16, u64::MAX, 2));
        assert!(!covers(0, 16, top, 16) && !overlaps(0, 16, top, 32), "32 bytes from the top do not reach byte 0");
        assert!(overlaps(top, 64, u64::MAX, 64));
    }

    #[test]
    fn no_byte_lies_in_a_mapping_up_to_its_end_and_overlaps_nothing() {
        assert!(covers(8, 8, 8, 0) && covers(8, 8, 16, 0));
        assert!(!covers(8, 8, 17, 0) && !covers(8, 8, 7, 0));
        assert!(!overlaps(8, 8, 12, 0) && !overlaps(12, 0, 8, 8));
    }

    #[test]
    fn a_window_widens_is_replaced_and_is_cut() {
        let window = |from, to| Some(Window { from, to });
        assert_eq!(Window::opened(window(0, 8), 8, 16), window(0, 16));
        assert_eq!(Window::opened(window(0, 8), 9, 16), window(9, 16));
        assert_eq!(Window::opened(window(0, 8), 4, 4), window(0, 8));
        assert_eq!(Window::closed(window(0, 16), 4, 8), window(8, 16));
        assert_eq!(Window::closed(window(0, 16), 12, 32), window(0, 12));
        assert_eq!(Window::closed(window(4, 16), 0, 4), window(4, 16));
        assert_eq!(Window::closed(window(0, 16), 8, 8), window(0, 16), "no byte is given back");
        assert_eq!(Window::closed(window(4, 16), 0, 16), None);
    }
}
