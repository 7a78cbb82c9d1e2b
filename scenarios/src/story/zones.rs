//! `zones`: which zone each mask gets its memory from, by the page and by `kmalloc`.
//!
//! The mistake: `kmalloc` with `GFP_DMA32`, which the slab layer drops: the memory lies where any other does.

use lowzone_guest_mem::KBuf;
use lowzone_guest_mem::gfp::{GFP_ATOMIC, GFP_DMA, GFP_DMA32, GFP_KERNEL};
use lowzone_guest_mem::page::alloc_pages;
use lowzone_guest_mem::zone::ZoneKind;

use super::{StoryError, Telling};

const BYTES: usize = 16 << 10;

/// Tells it.
pub(super) fn tell(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    for gfp in [GFP_KERNEL, GFP_ATOMIC, GFP_KERNEL | GFP_DMA32] {
        telling.fact(format_args!("alloc_pages({gfp}, 0)"), alloc_pages(cpu, 0, gfp)?.zone());
    }
    let low = alloc_pages(cpu, 0, GFP_KERNEL | GFP_DMA)?;
    telling.expect("alloc_pages(GFP_KERNEL|GFP_DMA, 0), whatever the machine", ZoneKind::Dma, low.zone())?;
    // Linux complains where a new slab or a block is fetched, so always about a size beyond the caches.
    let dma32 = telling.makes("dma32-kmalloc").then_some(GFP_KERNEL | GFP_DMA32);
    for gfp in [GFP_KERNEL, GFP_KERNEL | GFP_DMA].into_iter().chain(dma32) {
        telling.fact(format_args!("kmalloc({BYTES}, {gfp})"), KBuf::kmalloc(cpu, BYTES, gfp)?.zone());
    }
    Ok(())
}
