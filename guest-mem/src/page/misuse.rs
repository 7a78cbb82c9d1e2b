//! Raw frees, for those who commit a driver's crimes on purpose.
//!
//! [`super::Pages`] frees itself once and with its own order; a C driver calls `__free_pages` with whatever it has. A
//! wrong call changes nothing here and is a finding that says what Linux would do. Neighbours: the parent.

use super::{PageState, give_block_by};
use crate::addr::{PAGE_SIZE, PhysAddr};
use crate::buddy::MAX_ORDER;
use crate::cpu::Cpu;
use crate::dma::ownership::freed;
use crate::env::Class;

/// Frees 2^`order` pages at an address (`free_pages`); address 0 does nothing, as in Linux. Any context.
#[track_caller]
pub fn free_pages(cpu: &Cpu<'_>, at: PhysAddr, order: u8) {
    let by = cpu.owner();
    if at.get() == 0 {
        return;
    }
    let _ = cpu.point_for(Class::Release, 4096 << order.min(10), by);
    freed(cpu.kernel(), at, PAGE_SIZE << order.min(MAX_ORDER), by);
    give_block_by(cpu.kernel(), at, order, by);
}

/// Writes into a page's own record (`page->mapping`, `SetPageReserved`, `get_page` of a page that is not the first of its
/// block); the default clears it. What is still set when the page is freed makes it a bad page, and a finding: at once, or
/// for the first page of a block on a CPU's list when that is drained. Any context.
pub fn set_page_state(cpu: &Cpu<'_>, at: PhysAddr, state: PageState) {
    if let Ok(pfn) = u32::try_from(at.pfn().get()) {
        cpu.kernel().pcp.shared().odd.set(pfn, state);
    }
}

/// Keeps a block only by its address, as a C driver does: it is freed by nobody but [`free_pages`].
pub fn forget(pages: super::Pages) -> PhysAddr {
    pages.into_block().0.pfn.phys()
}
