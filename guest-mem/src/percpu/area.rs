//! Where per-CPU variables lie: chunks of units, one unit a CPU, filled first fit.
//!
//! The first chunk is there from boot: what the kernel's own variables leave of it, 28 KiB for allocations and 8 KiB for
//! modules, is populated. Further chunks begin without a page and get those that an allocation touches; an empty one
//! goes. Units are as far apart as on x86-64, where a chunk of large pages is shared by the CPUs.
//!
//! A pure data structure; [`super`] takes the pages. Left out: chunks sorted by room, hints, atomic refill from a
//! workqueue, memory cgroups.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::kbuf::KBuf;
use crate::page::Pages;
use crate::site::Owner;

/// The largest variable (`PCPU_MIN_UNIT_SIZE`).
pub const MAX_SIZE: usize = 32 << 10;
/// The largest alignment: a page.
pub const MAX_ALIGN: usize = 4096;
/// The smallest unit of room.
const GRAIN: usize = 4;
/// Populated room of the first chunk for allocations (`PERCPU_DYNAMIC_RESERVE`).
const DYNAMIC: u32 = 28 << 10;
/// Room of modules (`PERCPU_MODULE_RESERVE`).
const MODULES: u32 = 8 << 10;
/// What a unit of the first chunk holds: the kernel's own variables, the modules' and the room above, rounded.
const FIRST_UNIT: u64 = 128 << 10;
/// What a chunk is made of: one large page.
const ATOM: u64 = 2 << 20;
/// Bytes of a chunk's description (`struct pcpu_chunk`).
pub(super) const CHUNK_STRUCT: usize = 192;
/// Failures that are printed.
const WARNINGS: u32 = 10;

/// A size rounded up to 4 bytes and an alignment of at least 4.
pub(super) const fn rounded(size: usize, align: usize) -> (usize, usize) {
    (size.saturating_add(GRAIN - 1) / GRAIN * GRAIN, if align < GRAIN { GRAIN } else { align })
}

/// How far two CPUs' copies are apart (`pcpu_build_alloc_info`).
fn unit(cpus: u32) -> u64 {
    let cpus = u64::from(cpus);
    let (mut best, mut last) = (1, u64::MAX);
    for units in (1..=ATOM / altered!(FIRST_UNIT)).rev().filter(|units| ATOM.is_multiple_of(*units)) {
        let chunks = cpus.div_ceil(units);
        // A third of the units may be wasted, no more.
        if chunks * units - cpus > cpus / 3 {
            continue;
        }
        if chunks > last {
            break;
        }
        (best, last) = (units, chunks);
    }
    ATOM / best
}

/// Which variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Of modules.
    Module,
    /// Allocated.
    Dynamic,
}

/// Where a variable lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    chunk: u32,
    start: u32,
    len: u32,
}

impl Place {
    /// Bytes from the begin of the first unit of all chunks.
    pub(crate) fn offset(self, unit: u64) -> u64 {
        // Chunk 0 is the modules', in the same unit as chunk 1.
        let (chunk, within) = match self.chunk {
            0 => (0, FIRST_UNIT - u64::from(DYNAMIC + MODULES)),
            1 => (0, FIRST_UNIT - u64::from(DYNAMIC)),
            later => (u64::from(later) - 1, 0),
        };
        chunk * ATOM.max(unit) + within + u64::from(self.start)
    }
}

struct Span {
    len: u32,
    owner: Owner,
}

struct Chunk {
    size: u32,
    /// By start.
    spans: BTreeMap<u32, Span>,
    /// By number of the page; `None` where all of it is populated from boot.
    pages: Option<BTreeMap<u32, Vec<Pages>>>,
    _header: Option<KBuf>,
}

/// What goes with a chunk.
pub(crate) struct Freed {
    _chunk: Chunk,
}

/// A broken invariant of the per-CPU areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidPerCpu {
    /// Two variables share bytes, or one leaves its chunk.
    #[error("chunk {chunk}: the variable at {start:#x} ends at {end:#x}, beyond {limit:#x}")]
    Overlap {
        /// The chunk.
        chunk: u32,
        /// Where it begins.
        start: u32,
        /// Where it ends.
        end: u32,
        /// Where the next one begins.
        limit: u32,
    },
    /// A variable lies on a page that is not there.
    #[error("chunk {chunk}: page {page} is not populated")]
    Unpopulated {
        /// The chunk.
        chunk: u32,
        /// The page.
        page: u32,
    },
}

/// All per-CPU memory of a kernel.
pub(crate) struct PerCpuArea {
    unit: u64,
    chunks: BTreeMap<u32, Chunk>,
    warnings: u32,
}

impl PerCpuArea {
    pub(crate) fn new(cpus: u32) -> Self {
        let mut area = Self { unit: unit(cpus), chunks: BTreeMap::new(), warnings: 0 };
        area.reset();
        area
    }

    pub(crate) fn reset(&mut self) {
        let boot = |size| Chunk { size, spans: BTreeMap::new(), pages: None, _header: None };
        self.chunks = BTreeMap::from([(0, boot(MODULES)), (1, boot(DYNAMIC))]);
        self.warnings = 0;
    }

    pub(crate) fn unit(&self) -> u64 {
        self.unit
    }

    /// Books a place; tells the pages that it still lacks. `populated`: only what lacks none will do.
    pub(crate) fn place(
        &mut self,
        part: Part,
        size: usize,
        align: usize,
        populated: bool,
        owner: Owner,
    ) -> Option<(Place, Vec<u32>)> {
        let (len, align) = (u32::try_from(size).ok()?, u32::try_from(align).ok()?);
        let of_part = |number: u32| (number == 0) == (part == Part::Module);
        self.chunks.iter_mut().filter(|(number, _)| of_part(**number)).find_map(|(&chunk, it)| {
            let start = it.fit(len, align, populated)?;
            it.spans.insert(start, Span { len, owner });
            Some((Place { chunk, start, len }, it.missing(start, len)))
        })
    }

    pub(crate) fn add_chunk(&mut self, header: KBuf) {
        let number = self.chunks.keys().next_back().map_or(0, |last| last + 1);
        let size = u32::try_from(self.unit).unwrap_or(u32::MAX);
        let chunk = Chunk { size, spans: BTreeMap::new(), pages: Some(BTreeMap::new()), _header: Some(header) };
        self.chunks.insert(number, chunk);
    }

    /// Gives a place its pages, one a CPU; what somebody else gave it meanwhile comes back.
    pub(crate) fn populate(&mut self, place: Place, page: u32, pages: Vec<Pages>) -> Option<Vec<Pages>> {
        let there = self.chunks.get_mut(&place.chunk).and_then(|chunk| chunk.pages.as_mut());
        let Some(there) = there else { return Some(pages) };
        if there.contains_key(&page) {
            return Some(pages);
        }
        there.insert(page, pages);
        None
    }

    /// Frees a place; a chunk that is empty then comes with it.
    pub(crate) fn free(&mut self, place: Place) -> Option<Freed> {
        let chunk = self.chunks.get_mut(&place.chunk)?;
        chunk.spans.remove(&place.start);
        let goes = chunk.spans.is_empty() && chunk.pages.is_some();
        goes.then(|| self.chunks.remove(&place.chunk)).flatten().map(|chunk| Freed { _chunk: chunk })
    }

    /// Whether another failure is printed, and how many after it.
    pub(crate) fn next_warning(&mut self) -> Option<u32> {
        self.warnings = (self.warnings + 1).min(WARNINGS + 1);
        WARNINGS.checked_sub(self.warnings)
    }

    /// Every variable: offset on CPU 0, bytes of one copy, owner.
    pub(crate) fn live(&self) -> impl Iterator<Item = (u64, u64, Owner)> {
        self.chunks.iter().flat_map(move |(&chunk, it)| {
            it.spans.iter().map(move |(&start, span)| {
                let place = Place { chunk, start, len: span.len };
                (place.offset(self.unit), u64::from(span.len), span.owner)
            })
        })
    }

    /// Checks that no two variables share a byte and that all have their pages.
    pub(crate) fn validate(&self) -> Result<(), InvalidPerCpu> {
        for (&chunk, it) in &self.chunks {
            let next = it.spans.keys().skip(1).copied().chain([it.size]);
            for ((&start, span), limit) in it.spans.iter().zip(next) {
                let end = start + span.len;
                if end > limit {
                    return Err(InvalidPerCpu::Overlap { chunk, start, end, limit });
                }
                if let Some(&page) = it.missing(start, span.len).first() {
                    return Err(InvalidPerCpu::Unpopulated { chunk, page });
                }
            }
        }
        Ok(())
    }

    /// Breaks an invariant, for the test that it is found.
    #[cfg(test)]
    pub(crate) fn corrupt(&mut self) {
        if let Some(span) = self.chunks.values_mut().find_map(|chunk| chunk.spans.values_mut().next()) {
            span.len += MODULES + DYNAMIC;
        }
    }
}

impl Chunk {
    /// The lowest place with room.
    fn fit(&self, len: u32, align: u32, populated: bool) -> Option<u32> {
        let mut from = 0_u32;
        let ends = self.spans.iter().map(|(&start, span)| (start, start + span.len)).chain([(self.size, self.size)]);
        for (start, end) in ends {
            let mut at = from.next_multiple_of(align);
            while at.checked_add(len).is_some_and(|after| after <= start) {
                if !populated || self.missing(at, len).is_empty() {
                    return Some(at);
                }
                at = (at + 1).next_multiple_of(align.max(4096));
            }
            from = end;
        }
        None
    }

    fn missing(&self, start: u32, len: u32) -> Vec<u32> {
        let Some(pages) = &self.pages else { return Vec::new() };
        (start / 4096..=(start + len - 1) / 4096).filter(|page| !pages.contains_key(page)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_as_far_apart_as_measured_and_as_the_rule_says() {
        assert_eq!(unit(2), 1 << 20, "measured");
        assert_eq!([1, 3, 4, 5, 6, 16].map(unit), [2 << 20, 512 << 10, 512 << 10, 1 << 20, 256 << 10, 128 << 10]);
    }
}
