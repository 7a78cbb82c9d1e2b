//! Guest memory and the kernel over it: RAM, zones, allocators, DMA mappings, and what the lab knows about them.
#![deny(unsafe_code)]

pub mod addr;
pub mod site;

pub use addr::{DmaAddr, PAGE_SHIFT, PAGE_SIZE, Pfn, PhysAddr, VirtAddr};
pub use site::{Owner, Scope, Site};

pub mod dma;
