//! What LDD3, chapters 8 and 15, says that no longer holds, and today's form.

use serde::Serialize;

/// One change since 2.6.10.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Change {
    pub(super) book: &'static str,
    pub(super) now: &'static str,
}

const fn change(book: &'static str, now: &'static str) -> Change {
    Change { book, now }
}

pub(super) const CHANGES: [Change; 11] = [
    change(
        "kmalloc: at most 128 KiB to be portable",
        "4 MiB, twice a power of two from 8 bytes on, and 96 and 192; above 8 KiB it is pages",
    ),
    change("__GFP_WAIT", "__GFP_DIRECT_RECLAIM and __GFP_KSWAPD_RECLAIM (4.4)"),
    change("__GFP_REPEAT", "__GFP_RETRY_MAYFAIL (4.13)"),
    change("__GFP_COLD", "gone (4.15)"),
    change("__get_free_pages: order at most 10 or 11", "10"),
    change("kmem_cache_create(…, ctor, dtor), SLAB_NO_REAP", "no dtor, no such flag"),
    change("kmem_cache_destroy returns an error where objects are live", "returns nothing, warns and keeps the cache"),
    change(
        "pci_alloc_consistent, pci_map_single, PCI_DMA_TODEVICE",
        "dma_alloc_coherent, dma_map_single, DMA_TO_DEVICE (pci_* gone in 5.18)",
    ),
    change("pci_dac_* for 64-bit addresses", "dma_set_mask with 64 bits"),
    change("dma_set_mask returns 1 or 0; bouncing by hand", "0 or -EIO; swiotlb bounces"),
    change("alloc_bootmem", "memblock"),
];
