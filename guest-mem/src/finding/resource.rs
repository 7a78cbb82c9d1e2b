//! The kinds of resources that can be left over.
//!
//! Neighbours: [`crate::stats`], which looks for them. Left out: what they cost.

use std::fmt;

/// A resource kind that the leak check knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Resource {
    /// Pages from the buddy allocator.
    Pages,
    /// A kmalloc object.
    Slab,
    /// An object of a driver's own cache.
    CacheObject,
    /// A slab cache.
    Cache,
    /// A vmalloc area.
    Vmalloc,
    /// A vmap of somebody's pages.
    Vmap,
    /// Coherent DMA memory.
    Coherent,
    /// A streaming DMA mapping.
    Mapping,
    /// A register window.
    IoMem,
    /// A claimed range of addresses.
    MemRegion,
    /// A requested interrupt.
    Irq,
    /// An allocated interrupt vector.
    Vector,
    /// A pending timer.
    Timer,
    /// A spinlock or mutex that is still held.
    Lock,
    /// A tasklet that is still to run.
    Tasklet,
    /// A work that is still to run.
    Work,
    /// A workqueue that nobody destroyed.
    Workqueue,
    /// A kernel thread that nobody stopped.
    Thread,
    /// Memory of every CPU.
    PerCpu,
    /// A page of high memory that is mapped.
    Kmap,
    /// A shrinker that is still registered.
    Shrinker,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pages => "pages",
            Self::Slab => "kmalloc object",
            Self::CacheObject => "kmem_cache object",
            Self::Cache => "kmem_cache",
            Self::Vmalloc => "vmalloc area",
            Self::Vmap => "vmap",
            Self::Coherent => "coherent DMA memory",
            Self::Mapping => "DMA mapping",
            Self::IoMem => "ioremap",
            Self::MemRegion => "memory region",
            Self::Irq => "interrupt",
            Self::Vector => "interrupt vector",
            Self::Timer => "timer",
            Self::Lock => "lock",
            Self::Tasklet => "tasklet",
            Self::Work => "work",
            Self::Workqueue => "workqueue",
            Self::Thread => "kernel thread",
            Self::PerCpu => "per-CPU memory",
            Self::Kmap => "kmap",
            Self::Shrinker => "shrinker",
        })
    }
}
