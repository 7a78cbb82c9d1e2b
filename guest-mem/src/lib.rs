//! Guest memory and the kernel over it: RAM, zones, allocators, DMA mappings, and what the lab knows about them.
//!
//! A [`kernel::Machine`] is one machine's RAM with Linux 6.1's memory allocators over it, as a value: many may live in
//! one program. Code runs on it with a [`Cpu`] in hand, which a world makes. [`KBuf`] is memory, [`dma`] shares it with
//! a device, `ioremap` reaches the device's registers, `request_irq` hears from it. What goes wrong is a
//! [`finding::Finding`], never a panic.
//!
//! This crate depends on no sibling. Left out as a whole: processes, user space, file systems.
#![deny(unsafe_code)]

#[macro_use]
mod altered;
pub mod addr;
pub mod arch;
pub mod buddy;
pub mod cpu;
pub mod devres;
pub mod dma;
pub mod env;
pub mod fault;
pub mod finding;
pub mod frame;
pub mod gfp;
pub mod iomem;
pub mod iospace;
pub mod irq;
pub mod kbuf;
pub mod kernel;
pub mod klog;
pub mod kmalloc;
pub mod kmap;
pub mod kmem_cache;
pub mod kthread;
pub mod kvmalloc;
pub mod lock;
pub mod mempool;
pub mod page;
pub mod pcp;
pub mod percpu;
pub mod ram;
pub mod reclaim;
pub mod refusal;
mod removed;
pub mod site;
pub mod slab;
pub mod softirq;
pub mod stats;
pub mod tasklet;
#[cfg(test)]
mod testing;
pub mod timer;
pub mod trace;
pub mod vmalloc;
pub mod wait;
pub mod weak;
pub mod workqueue;
pub mod zone;

pub use addr::{DmaAddr, PAGE_SHIFT, PAGE_SIZE, Pfn, PhysAddr, VirtAddr};
pub use cpu::Cpu;
pub use kbuf::KBuf;
pub use site::{Owner, Scope, Site};
