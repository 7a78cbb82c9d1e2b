//! `highmem`: pages without a kernel address on a 32-bit machine, and how a driver reaches them.
//!
//! The mistakes: to touch such a page by its `page_address`, which is NULL; to undo temporary mappings in the wrong order.

use lowzone_guest_mem::gfp::{GFP_HIGHUSER, GFP_KERNEL};
use lowzone_guest_mem::kmap::{kmap, kmap_local_page, memcpy_from_page, page_address, write_page};
use lowzone_guest_mem::page::alloc_pages;
use lowzone_guest_mem::zone::ZoneKind;

use super::{StoryError, Telling};

/// Tells it.
pub(super) fn tell(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let low = alloc_pages(cpu, 0, GFP_KERNEL)?;
    telling.expect("alloc_pages(GFP_KERNEL)", ZoneKind::Normal, low.zone())?;
    telling.expect("its page_address", "an address", said(page_address(cpu, &low, 0)?.is_some()))?;
    let high = alloc_pages(cpu, 0, GFP_HIGHUSER)?;
    telling.expect("alloc_pages(GFP_HIGHUSER)", ZoneKind::HighMem, high.zone())?;
    telling.expect("its page_address", "NULL", said(page_address(cpu, &high, 0)?.is_some()))?;
    if telling.makes("no-kmap") {
        let touched = write_page(cpu, &high, 0, 0, b"lost");
        telling.expect("written through it", "an oops", if touched.is_err() { "an oops" } else { "bytes" })?;
    }
    let map = kmap(cpu, &high, 0)?;
    telling.expect("its page_address while kmapped", "an address", said(page_address(cpu, &high, 0)?.is_some()))?;
    map.write_at(0, b"kept")?;
    map.kunmap(cpu);
    let mut bytes = [0; 4];
    memcpy_from_page(cpu, &mut bytes, &high, 0)?;
    telling.expect("read back by memcpy_from_page", "kept", String::from_utf8_lossy(&bytes))?;
    let other = alloc_pages(cpu, 0, GFP_HIGHUSER)?;
    let (first, second) = (kmap_local_page(cpu, &high, 0)?, kmap_local_page(cpu, &other, 0)?);
    if telling.makes("unmap-order") {
        drop(first);
        drop(second);
    } else {
        drop(second);
        drop(first);
    }
    telling.fact("two kmap_local_page", "undone");
    Ok(())
}

fn said(there: bool) -> &'static str {
    if there { "an address" } else { "NULL" }
}
