//! A scatterlist behind an IOMMU: one range of its addresses for all entries, and as few segments as the device takes.
//!
//! Each entry has the pages around it, one after the other. Where an entry ends at the end of a page and the next begins
//! at the beginning of one, they are one segment, unless that would be longer than the device takes or cross its
//! boundary; a boundary within the range is kept clear by a gap. It is mapped as a whole or not at all, at one point.
//! Mirrors `iommu_dma_map_sg` and `__finalise_sg` of drivers/iommu/dma-iommu.c. Neighbours: the parent, `iommu`. Left
//! out: the pages that Linux maps in a gap, which are those behind the entry before it; here a gap is not mapped.

use super::{SgEntry, SgTable};
use crate::addr::{DmaAddr, PAGE_SIZE};
use crate::cpu::Cpu;
use crate::dma::attrs::Attrs;
use crate::dma::device::DmaDevice;
use crate::dma::iommu::ListPart;
use crate::dma::mapping::Entries;
use crate::dma::streaming::{MapFailure, Piece, Placed, Terms};
use crate::site::Owner;

/// Bytes of the pages around an entry.
fn paged(entry: &SgEntry) -> u64 {
    (entry.phys.page_offset() + entry.len.max(1)).next_multiple_of(PAGE_SIZE)
}

/// Where in the range the pages of each entry begin, and how long it is.
fn lay_out(entries: &[SgEntry], boundary: u64) -> (Vec<ListPart>, u64) {
    let (mut parts, mut end) = (Vec::with_capacity(entries.len()), 0_u64);
    for entry in entries {
        let pages = paged(entry);
        let gap = boundary.wrapping_sub(end).wrapping_add(1) & boundary;
        if gap > 0 && gap < pages - 1 {
            end += gap;
        }
        parts.push(ListPart { at: end, phys: entry.phys, len: entry.len });
        end += pages;
    }
    (parts, end)
}

impl DmaDevice {
    /// All entries in one range of I/O virtual addresses, or none.
    #[track_caller]
    pub(super) fn map_merged(
        &self,
        cpu: &Cpu<'_>,
        table: &mut SgTable,
        terms: Terms,
        owner: Owner,
    ) -> Result<(), MapFailure> {
        let total = table.entries.iter().map(|entry| entry.len).sum();
        let (parts, range) = lay_out(&table.entries, self.seg_boundary());
        let entered = self.ask(cpu, total, true, owner).and_then(|()| Ok(self.enter_list(&parts, range, terms.dir)?));
        let base = entered.inspect_err(|why| self.book_failure(cpu, (total, why), terms, owner))?;
        if !terms.attrs.contains(Attrs::SKIP_CPU_SYNC) {
            parts.iter().for_each(|part| cpu.kernel().ram().clean(part.phys, part.len));
        }
        let counts = self.merge(table, &parts, base);
        table.mapped = counts.len();
        let called = terms.entries.called;
        let mapped = u32::try_from(counts.len()).unwrap_or(u32::MAX);
        let terms = Terms { entries: Entries { called, mapped }, ..terms };
        let mut first = 0;
        for (segment, count) in counts.into_iter().enumerate() {
            self.book_segment(cpu, table, (segment, first, count), terms, owner);
            first += count;
        }
        Ok(())
    }

    /// Tells the first entries of the segments; how many entries each has.
    fn merge(&self, table: &mut SgTable, parts: &[ListPart], base: DmaAddr) -> Vec<usize> {
        let (boundary, max) = (self.seg_boundary(), u64::from(self.max_seg_size()));
        let (mut counts, mut open) = (Vec::<usize>::new(), false);
        for (at, part) in parts.iter().enumerate() {
            let (dma, offset) = (base.wrapping_add(part.at), part.phys.page_offset());
            let current = counts.len().saturating_sub(1);
            let had = table.entries[current].dma_len;
            let fits = max.checked_sub(had).is_some_and(|left| part.len <= left);
            if open && offset == 0 && dma.get() & boundary != 0 && fits {
                table.entries[current].dma_len += part.len;
                counts[current] += 1;
            } else {
                let next = counts.len();
                (table.entries[next].dma, table.entries[next].dma_len) = (dma.wrapping_add(offset), part.len);
                counts.push(1);
            }
            let end = part.at + offset + part.len;
            open = parts.get(at + 1).is_some_and(|next| next.at == end || planted!(MergeAny));
        }
        for entry in table.entries.iter_mut().skip(counts.len()) {
            (entry.dma, entry.dma_len, entry.id) = (DmaAddr::new(u64::MAX), 0, 0);
        }
        counts
    }

    /// Books one segment, and watches each of its entries where CPUs are watched.
    fn book_segment(
        &self,
        cpu: &Cpu<'_>,
        table: &mut SgTable,
        (segment, first, count): (usize, usize, usize),
        terms: Terms,
        owner: Owner,
    ) {
        let (told, begins) = (table.entries[segment], table.entries[first]);
        let piece = Piece { orig: begins.phys, len: told.dma_len, owner: begins.owner };
        let placed = Placed { phys: begins.phys, dma: told.dma, bounced: false };
        let (raw, id) = self.book_unwatched(cpu, piece, placed, terms, owner);
        let mut offset = 0;
        for entry in &mut table.entries[first..first + count] {
            entry.of = raw.id;
            self.watch(cpu, Piece { orig: entry.phys, len: entry.len, owner }, offset, (raw.id, id), terms);
            offset += entry.len;
        }
        let told = &mut table.entries[segment];
        (told.id, told.bounced) = (raw.id, false);
        self.check_segment(&table.entries[segment], owner);
    }
}
