//! Findings: misuse that was seen, who did it, and what Linux would have said.
//!
//! A finding is never rate-limited and never stops the run: the lab goes on as a kernel would, with its own truth
//! kept out of band. [`FindingKind`] is what happened, with the numbers; [`Finding::sites`] are the call sites that
//! matter, each with its part in the story.
//!
//! Neighbours: every module reports here; scenarios print and compare. Left out: verdicts on whole runs.

use std::fmt;

use thiserror::Error;

mod dma;
mod resource;

use crate::addr::{PhysAddr, VirtAddr};
use crate::cpu::Context;
use crate::dma::iommu::IommuFault;
use crate::dma::ledger::{Misuse, Violation};
use crate::dma::ownership::Breach;
use crate::dma::pool::PoolMisuse;
use crate::dma::posted::Posted;
use crate::iomem::IoMisuse;
use crate::irq::IrqMisuse;
use crate::lock::BadUnlock;
use crate::site::Owner;
use crate::slab::{Damage, KfreeError, LARGE, Watched};
use crate::vmalloc::{AreaMisuse, NotMapped};
use crate::workqueue::BadWork;
use dma::{misuse_name, violation_name};
pub use resource::Resource;

/// What was seen. The text is Linux's own where Linux has one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FindingKind {
    /// A call that may sleep, where sleeping is forbidden.
    #[error(
        "BUG: sleeping function called from invalid context: {what} (in_atomic(): {}, irqs_disabled(): {}, preempt_count: {preempt_count:x}{})",
        u8::from(*preempt_count != 0), u8::from(*irqs_disabled), rcu_text(*rcu_depth)
    )]
    SleepInAtomic {
        /// The call.
        what: &'static str,
        /// Linux's preempt_count at that moment.
        preempt_count: u32,
        /// Whether interrupts were off.
        irqs_disabled: bool,
        /// How deep the caller was in `rcu_read_lock`.
        rcu_depth: u32,
    },
    /// A call from where it may not come from, though it doesn't sleep.
    #[error("{what} called {context}")]
    WrongContext {
        /// The call.
        what: &'static str,
        /// Where it came from.
        context: Context,
        /// The kernel option under which Linux warns of it; `any` for a plain `WARN_ON`.
        linux: Option<&'static str>,
    },
    /// Two were inside what a lock guards, one of which had not taken it.
    #[error("BUG: KCSAN: data-race under a {lock}")]
    DataRace {
        /// `spinlock` or `mutex`.
        lock: &'static str,
    },
    /// A lock that an interrupt takes too was taken where that interrupt could come.
    #[error("inconsistent lock state: inconsistent {{{irq}-ON-W}} -> {{IN-{irq}-W}} usage")]
    InconsistentLock {
        /// `HARDIRQ` or `SOFTIRQ`.
        irq: &'static str,
    },
    /// A lock given back by who doesn't hold it.
    #[error("{0}")]
    BadUnlock(BadUnlock),
    /// Misuse of works and workqueues.
    #[error("{0}")]
    Work(BadWork),
    /// An object dropped while a softirq or worker was about to use it, or used it.
    #[error("ODEBUG: free active object type: {what}")]
    FreedActive {
        /// `tasklet_struct`, `work_struct`.
        what: &'static str,
    },
    /// A lock taken by the CPU that holds it.
    #[error("BUG: {lock} recursion on CPU#{cpu}")]
    SelfDeadlock {
        /// `spinlock` or `mutex`.
        lock: &'static str,
        /// The CPU.
        cpu: u32,
    },
    /// One of the lab's own locks was held at a point: a defect of the lab.
    #[error("{held} of the lab's own locks held at a point")]
    LabLockHeld {
        /// How many.
        held: u32,
    },
    /// Misuse of the DMA API.
    #[error("DMA-API: {0}")]
    Dma(Misuse),
    /// A mapping in no direction, which Linux does not survive.
    #[error("kernel BUG at kernel/dma/mapping.c: a mapping with DMA_NONE")]
    DirectionNone,
    /// Misuse of a DMA pool.
    #[error("{0}")]
    DmaPool(PoolMisuse),
    /// A device access that no live mapping allows.
    #[error("{violation}{posted}")]
    Port {
        /// What it did.
        violation: Violation,
        /// Who gave it the address.
        posted: Posted,
    },
    /// A CPU's access to memory that a device owns.
    #[error("{breach}")]
    Ownership {
        /// What it did.
        breach: Breach,
        /// The transaction that has the memory.
        transaction: u64,
    },
    /// A device access that the IOMMU refused.
    #[error("{0}")]
    IommuFault(IommuFault),
    /// A device put an address on its bus that it cannot decode.
    #[error("device access beyond its {width}-bit width: {} of {len} bytes at {addr:#x}{}", rw(*write), hit_text(*hit))]
    BeyondWidth {
        /// The address as the descriptor gave it.
        addr: u64,
        /// How many bytes.
        len: usize,
        /// The width of the device.
        width: u8,
        /// Whether it was a write to memory.
        write: bool,
        /// What was hit instead, if the device dropped the upper bits; else nothing moved.
        hit: Option<u64>,
    },
    /// A device reached for memory while its bus-master bit was clear.
    #[error("device DMA with bus mastering off: {} of {len} bytes at {addr:#x}", rw(*write))]
    BusMasterOff {
        /// The address.
        addr: u64,
        /// How many bytes.
        len: usize,
        /// Whether it was a write to memory.
        write: bool,
    },
    /// A resource that nobody freed.
    #[error("leak: {resource}, {bytes} bytes at {at}")]
    Leak {
        /// What kind.
        resource: Resource,
        /// How many bytes (0 where bytes mean nothing).
        bytes: u64,
        /// Where it lies, or the number that names it.
        at: PhysAddr,
    },
    /// An allocator was given something that it never handed out.
    #[error("{0}")]
    BadFree(BadFree),
    /// Bytes that belong to the slab allocator were overwritten.
    #[error("{0}")]
    SlabDamage(SlabDamage),
    /// Memory that is free was read.
    #[error("BUG: KASAN: use-after-free: read of size {len} at {at:#x}")]
    ReadAfterFree {
        /// The first byte.
        at: PhysAddr,
        /// How many bytes.
        len: u64,
    },
    /// An object was given to a cache that it is not of; it goes back to its own.
    #[error("cache_from_obj: Wrong slab cache. {cache} but object is from {of}")]
    WrongCache {
        /// The cache that was named.
        cache: &'static str,
        /// The one that the object is of.
        of: &'static str,
    },
    /// A cache was destroyed while objects of it were live.
    #[error("kmem_cache_destroy {cache}: Slab cache still has objects when called from {by}")]
    CacheBusy {
        /// The cache.
        cache: &'static str,
        /// How many objects.
        objects: usize,
        /// Who destroyed it.
        by: Owner,
    },
    /// A cache that can't be had: its size or flags are wrong.
    #[error("kmem_cache_create_usercopy({name}) failed with error {errno}")]
    CacheRefused {
        /// Its name.
        name: &'static str,
        /// Linux's number.
        errno: i32,
    },
    /// A `kmalloc` that is larger than what was once portable.
    #[error("kmalloc of {bytes} bytes, more than the 131072 that are portable")]
    BeyondPortable {
        /// How many bytes.
        bytes: u64,
    },
    /// A register or buffer access outside its bounds.
    #[error("access of {len} bytes at offset {offset:#x} of a {what} of {size} bytes")]
    OutOfBounds {
        /// What was accessed.
        what: &'static str,
        /// The first byte.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// The size of the thing.
        size: u64,
    },
    /// A touch of an address of vmalloc's where nothing is mapped.
    #[error("BUG: unable to handle page fault for address: {:016x} ({} of {why})", .addr.get(), rw(*write))]
    PageFault {
        /// The address.
        addr: VirtAddr,
        /// Whether it was written.
        write: bool,
        /// What is there instead.
        why: NotMapped,
    },
    /// Misuse of a vmalloc, vmap or ioremap area.
    #[error("{0}")]
    Area(AreaMisuse),
    /// Misuse of registers.
    #[error("{0}")]
    Io(IoMisuse),
    /// The NULL of an allocation that failed was used, or an address made of it.
    #[error("BUG: kernel NULL pointer dereference, address: {:016x} ({what})", .at.get())]
    NullDereference {
        /// NULL and what was added to it.
        at: VirtAddr,
        /// What should have lain there.
        what: &'static str,
    },
    /// A handle of an earlier machine was used on this one.
    #[error("a {what} of an earlier machine was used")]
    Stale {
        /// What it was.
        what: &'static str,
    },
    /// A GFP mask that this allocator strips.
    #[error(
        "Unexpected gfp: {:#x} ({bad}). Fixing up to gfp: {:#x} ({fixed}). Fix your code!",
        .bad.bits(), .fixed.bits()
    )]
    GfpFixup {
        /// The bits stripped.
        bad: crate::gfp::Gfp,
        /// What was used instead.
        fixed: crate::gfp::Gfp,
    },
    /// Zeroes were asked of a pool, whose elements come back as they were left.
    #[error("WARNING: mm/mempool.c mempool_alloc: __GFP_ZERO, which a mempool does not keep")]
    MempoolZero,
    /// A pool was resized to nothing.
    #[error("kernel BUG at mm/mempool.c (mempool_resize to 0)")]
    MempoolResizeZero,
    /// A pool was destroyed while its elements were out.
    #[error("mempool destroyed with {out} elements out, {bytes} bytes")]
    MempoolBusy {
        /// How many.
        out: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// Per-CPU data was used where the task may move to another CPU.
    #[error("BUG: using {what} in preemptible [{preempt_count:08x}] code: lowzone/{cpu}")]
    Preemptible {
        /// What was used.
        what: &'static str,
        /// Linux's preempt_count.
        preempt_count: u32,
        /// The CPU.
        cpu: u32,
    },
    /// A per-CPU allocation whose size or alignment can't be.
    #[error("illegal size ({size}) or align ({align}) for percpu allocation")]
    PerCpuIllegal {
        /// The size, rounded.
        size: usize,
        /// The alignment, rounded.
        align: usize,
    },
    /// A page of high memory was touched while it has no address.
    #[error("BUG: unable to handle page fault: page {pfn:#x} of high memory has no kernel address")]
    HighUnmapped {
        /// The page.
        pfn: u64,
    },
    /// A page of high memory was unmapped that is not mapped.
    #[error("kernel BUG at mm/highmem.c (kunmap of page {pfn:#x}, which is not mapped)")]
    KunmapUnbalanced {
        /// The page.
        pfn: u64,
    },
    /// Temporary mappings were undone in another order than the last first.
    #[error("WARNING: mm/highmem.c kunmap_local_indexed: slot {slot} is undone while {top} is the last")]
    KunmapOrder {
        /// The mapping that was undone.
        slot: usize,
        /// The one that should have been.
        top: usize,
    },
    /// More temporary mappings than a task has slots.
    #[error("kernel BUG at mm/highmem.c (kmap_local_idx_push: {depth} mappings)")]
    KmapDepth {
        /// How many there would be.
        depth: usize,
    },
    /// A request for pages that Linux warns of.
    #[error("{0}")]
    Gfp(crate::page::GfpWarning),
    /// Where Linux kills a process to go on, and the lab has none.
    #[error("Out of memory and no killable processes... (order {order}, {gfp})")]
    OutOfMemory {
        /// The order that was asked for.
        order: u8,
        /// The mask.
        gfp: crate::gfp::Gfp,
    },
    /// An interrupt that no handler claims.
    #[error("irq {irq}: nobody cared (try booting with the \"irqpoll\" option)")]
    NobodyCared {
        /// The interrupt.
        irq: u32,
    },
    /// Misuse of interrupts.
    #[error("{0}")]
    Irq(IrqMisuse),
    /// The driver panicked.
    #[error("the driver panicked: {message}")]
    DriverPanic {
        /// Its message and place.
        message: String,
    },
    /// Nobody can run and no timer is set.
    #[error("deadlock: {parked} CPUs parked for ever")]
    Deadlock {
        /// How many CPUs.
        parked: usize,
    },
    /// A CPU used up its fuel: an endless loop through points.
    #[error("hang: {points} points passed without an end")]
    Hang {
        /// How many points.
        points: u64,
    },
}

fn hit_text(hit: Option<u64>) -> String {
    hit.map_or_else(|| ", refused".to_owned(), |hit| format!(", which hit {hit:#x}"))
}

fn rcu_text(depth: u32) -> String {
    if depth == 0 { String::new() } else { format!(", RCU nest depth: {depth}") }
}

fn rw(write: bool) -> &'static str {
    if write { "write" } else { "read" }
}

/// Bytes around or in a slab object that somebody overwrote who must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabDamage {
    /// The object's cache.
    pub cache: &'static str,
    /// Which bytes.
    pub damage: Damage,
    /// The object.
    pub object: PhysAddr,
    /// Where the first wrong byte lies in the slab.
    pub offset: u64,
}

impl SlabDamage {
    /// The stable name.
    const fn name(&self) -> &'static str {
        match self.damage.what {
            Watched::LeftRedzone | Watched::RightRedzone => "red-zone",
            Watched::Quarantine => "use-after-free",
            _ => "poison",
        }
    }

    /// Under which option Linux sees it.
    const fn config(&self) -> &'static str {
        match self.damage.what {
            Watched::LeftRedzone | Watched::RightRedzone => "CONFIG_SLUB_DEBUG (slub_debug=FZ)",
            Watched::Quarantine => "CONFIG_KASAN",
            _ => "CONFIG_SLUB_DEBUG (slub_debug=FP)",
        }
    }
}

impl fmt::Display for SlabDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cache, damage: Damage { what, first, last, found, expected }, object, offset } = self;
        match what {
            Watched::Quarantine => {
                write!(f, "BUG: KASAN: use-after-free: {cache} object {object:#x} written after it was freed")?;
            }
            _ => write!(f, "BUG {cache}: {what} overwritten")?,
        }
        write!(f, ", {first:#x}-{last:#x} @offset={offset}. First byte {found:#x} instead of {expected:#x}")
    }
}

/// A free that the allocator refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadFree {
    /// From the page allocator.
    #[error("bad page free: {0}")]
    Page(#[from] crate::zone::FreeError),
    /// From kfree.
    #[error("bad kfree: {0}")]
    Slab(#[from] KfreeError),
}

impl FindingKind {
    /// The stable name that scenario files expect.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SleepInAtomic { .. } => "sleep-in-atomic",
            Self::WrongContext { .. } => "wrong-context",
            Self::DataRace { .. } => "data-race",
            Self::InconsistentLock { .. } => "inconsistent-lock",
            Self::BadUnlock(_) => "bad-unlock",
            Self::Work(BadWork::WaitsForItself { .. }) => "waits-for-itself",
            Self::Work(BadWork::Draining) => "queue-draining",
            Self::FreedActive { .. } => "freed-active",
            Self::SelfDeadlock { .. } => "self-deadlock",
            Self::LabLockHeld { .. } => "lab-lock-held",
            Self::Dma(misuse) => misuse_name(misuse),
            Self::DmaPool(misuse) => misuse.name(),
            Self::Port { violation, .. } => violation_name(violation),
            Self::Ownership { breach, .. } => breach.name(),
            Self::IommuFault(_) => "iommu-fault",
            Self::BeyondWidth { .. } => "beyond-width",
            Self::BusMasterOff { .. } => "bus-master-off",
            Self::Leak { .. } => "leak",
            Self::BadFree(_) => "bad-free",
            Self::SlabDamage(damage) => damage.name(),
            Self::ReadAfterFree { .. } => "use-after-free",
            Self::WrongCache { .. } => "wrong-cache",
            Self::CacheBusy { .. } => "cache-busy",
            Self::CacheRefused { .. } => "cache-refused",
            Self::BeyondPortable { .. } => "beyond-portable",
            Self::OutOfBounds { .. } => "out-of-bounds",
            Self::PageFault { .. } => "page-fault",
            Self::Area(misuse) => misuse.name(),
            Self::Io(misuse) => misuse.name(),
            Self::NullDereference { .. } => "null-dereference",
            Self::DirectionNone => "direction-none",
            Self::Stale { .. } => "stale-handle",
            Self::GfpFixup { .. } => "gfp-fixup",
            Self::MempoolZero => "mempool-zero",
            Self::MempoolResizeZero => "mempool-resize-zero",
            Self::MempoolBusy { .. } => "mempool-busy",
            Self::Preemptible { .. } => "preemptible",
            Self::PerCpuIllegal { .. } => "percpu-illegal",
            Self::HighUnmapped { .. } => "high-unmapped",
            Self::KunmapUnbalanced { .. } => "kunmap-unbalanced",
            Self::KunmapOrder { .. } => "kunmap-order",
            Self::KmapDepth { .. } => "kmap-depth",
            Self::Gfp(warning) => warning.name(),
            Self::OutOfMemory { .. } => "out-of-memory",
            Self::NobodyCared { .. } => "nobody-cared",
            Self::Irq(misuse) => misuse.name(),
            Self::DriverPanic { .. } => "driver-panic",
            Self::Deadlock { .. } => "deadlock",
            Self::Hang { .. } => "hang",
        }
    }

    /// The bus address that it is about, or 0.
    pub fn address(&self) -> u64 {
        match self {
            Self::Port { violation, .. } => violation.access().dma.get(),
            Self::IommuFault(fault) => fault.dma.get(),
            Self::BeyondWidth { addr, .. } | Self::BusMasterOff { addr, .. } => *addr,
            _ => 0,
        }
    }

    /// The DMA transaction that it is about, as far as it knows, or 0.
    pub fn transaction(&self) -> u64 {
        match self {
            Self::Port { violation, .. } => violation.mapping().map_or(0, |mapping| mapping.id),
            Self::Ownership { transaction, .. } => *transaction,
            _ => 0,
        }
    }

    /// The kernel option under which Linux prints this, or `None` where a production kernel stays silent.
    pub fn config(&self) -> Option<&'static str> {
        match self {
            Self::SleepInAtomic { .. } => Some("CONFIG_DEBUG_ATOMIC_SLEEP"),
            Self::WrongContext { linux, .. } => *linux,
            Self::DataRace { .. } => Some("CONFIG_KCSAN"),
            Self::InconsistentLock { .. } => Some("CONFIG_PROVE_LOCKING"),
            Self::BadUnlock(bad) => Some(bad.config()),
            Self::Work(BadWork::WaitsForItself { .. }) => Some("CONFIG_PROVE_LOCKING"),
            Self::Work(BadWork::Draining) => Some("any"),
            Self::FreedActive { .. } => Some("CONFIG_DEBUG_OBJECTS_FREE"),
            Self::SelfDeadlock { lock: crate::lock::SPINLOCK, .. } => Some("CONFIG_DEBUG_SPINLOCK"),
            Self::SelfDeadlock { .. } => Some("CONFIG_DETECT_HUNG_TASK"),
            Self::Dma(misuse) => misuse.linux(),
            Self::DmaPool(misuse) => Some(misuse.config()),
            Self::Port { violation, .. } => violation.linux(),
            Self::Leak { resource: Resource::Slab | Resource::CacheObject | Resource::Vmalloc, .. } => {
                Some("CONFIG_DEBUG_KMEMLEAK")
            }
            Self::SlabDamage(damage) => Some(damage.config()),
            Self::ReadAfterFree { .. } => Some("CONFIG_KASAN"),
            Self::OutOfBounds { what: "buffer", .. } => Some("CONFIG_KASAN"),
            Self::BadFree(BadFree::Page(error)) => error.config(),
            Self::BadFree(BadFree::Slab(KfreeError::Double { cache: LARGE, .. })) => Some("CONFIG_KASAN"),
            Self::BadFree(_) | Self::WrongCache { .. } => Some("CONFIG_SLUB_DEBUG (slub_debug=F)"),
            Self::GfpFixup { .. } | Self::NobodyCared { .. } | Self::Gfp(_) | Self::IommuFault(_) => Some("any"),
            Self::CacheBusy { .. } | Self::CacheRefused { .. } | Self::Irq(_) => Some("any"),
            Self::MempoolZero => Some("CONFIG_DEBUG_VM"),
            Self::MempoolResizeZero | Self::KunmapUnbalanced { .. } => Some("any (an oops)"),
            Self::HighUnmapped { .. } | Self::KmapDepth { .. } | Self::DirectionNone => Some("any (an oops)"),
            Self::PerCpuIllegal { .. } | Self::KunmapOrder { .. } => Some("any"),
            Self::Preemptible { .. } => Some("CONFIG_DEBUG_PREEMPT"),
            Self::PageFault { .. } | Self::NullDereference { .. } | Self::DriverPanic { .. } => Some("any (an oops)"),
            Self::Area(misuse) => misuse.linux(),
            Self::Io(misuse) => misuse.linux(),
            Self::OutOfMemory { .. } => Some("any (and panics)"),
            Self::Deadlock { .. } => Some("CONFIG_DETECT_HUNG_TASK"),
            Self::Hang { .. } => Some("CONFIG_SOFTLOCKUP_DETECTOR"),
            _ => None,
        }
    }
}

/// One misuse that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What happened.
    pub kind: FindingKind,
    /// The device it concerns, by name (`0000:00:01.0`), if any.
    pub device: Option<String>,
    /// When, in the world's nanoseconds.
    pub at: u64,
    /// The call sites that matter, each with its part: `("mapped at", …)`.
    pub sites: Vec<(&'static str, Owner)>,
}

impl fmt::Display for Finding {
    /// The name, the text, then a line for each site and one for what Linux would do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.kind.name())?;
        if let Some(device) = &self.device {
            write!(f, "{device}: ")?;
        }
        write!(f, "{}", self.kind)?;
        for (part, owner) in &self.sites {
            write!(f, "\n  {part} {owner}")?;
        }
        match self.kind.config() {
            Some("any") => write!(f, "\n  Linux prints this"),
            Some(config) => write!(f, "\n  Linux prints this under {config}"),
            None => write!(f, "\n  a production kernel stays silent"),
        }
    }
}
