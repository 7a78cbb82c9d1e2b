//! Why vmalloc gave nothing, and what can be done wrong with what it gives.
//!
//! Texts are Linux 6.1's where it has one. Neighbours: [`super`] returns and reports these, [`crate::finding`] names
//! them. Left out: the memory summary behind a `warn_alloc`.

use thiserror::Error;

use crate::addr::VirtAddr;
use crate::cpu::Cpu;
use crate::gfp::Gfp;
use crate::klog::Limit;
use crate::site::Site;

/// Why there is no vmalloc or vmap area; Linux's NULL in each case.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum VmallocError {
    /// No bytes: Linux warns once.
    #[error("vmalloc of 0 bytes")]
    Zero,
    /// More than all of RAM.
    #[error("vmalloc error: size {size}, exceeds total pages")]
    TooLarge {
        /// Bytes, as asked for.
        size: u64,
    },
    /// No memory to describe the area.
    #[error("vmalloc error: size {size}, vm_struct allocation failed")]
    NoDescriptor {
        /// Bytes, in whole pages.
        size: u64,
    },
    /// No memory for the list of its pages.
    #[error("vmalloc error: size {size}, failed to allocated page array size {array}")]
    NoArray {
        /// Bytes, in whole pages.
        size: u64,
        /// Bytes of the list.
        array: u64,
    },
    /// Too few pages.
    #[error("vmalloc error: size {size}, page order 0, failed to allocate pages")]
    NoPages {
        /// Bytes, in whole pages.
        size: u64,
    },
    /// The address space has no hole of this size.
    #[error("vmap allocation for size {size} failed: use vmalloc=<size> to increase size")]
    NoSpace {
        /// Bytes, guard included.
        size: u64,
    },
    /// Called by an interrupt handler or softirq, where Linux stops with a BUG.
    #[error("vmalloc in interrupt")]
    InInterrupt,
}

/// Misuse of a virtual area.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AreaMisuse {
    /// `vfree` of an address that is not page aligned; nothing is freed.
    #[error("Trying to {call}() bad address ({:016x})", .at.get())]
    BadAddress {
        /// `vfree` or `vunmap`.
        call: &'static str,
        /// The address.
        at: VirtAddr,
    },
    /// `vfree` where no area is, such as a second one; nothing is freed.
    #[error("Trying to {call}() nonexistent vm area ({:016x})", .at.get())]
    Nonexistent {
        /// `vfree` or `vunmap`.
        call: &'static str,
        /// The address.
        at: VirtAddr,
    },
    /// `vfree` of a page inside an area: Linux frees the whole area, and so does the lab.
    #[error("{call}() of {at:#x} inside the area at {start:#x}: all of it is freed")]
    Inside {
        /// `vfree` or `vunmap`.
        call: &'static str,
        /// The address.
        at: VirtAddr,
        /// Where its area begins.
        start: VirtAddr,
    },
    /// An area freed with the call of another kind; Linux takes it away all the same.
    #[error("{call}() of the {is} area at {at:#x}")]
    WrongKind {
        /// The call.
        call: &'static str,
        /// What the area is: `vmalloc`, `vmap` or `ioremap`.
        is: &'static str,
        /// The area.
        at: VirtAddr,
    },
    /// A call that Linux stops with a BUG in interrupt context.
    #[error("kernel BUG at mm/vmalloc.c: {call} in interrupt")]
    InInterrupt {
        /// The call.
        call: &'static str,
    },
    /// `dma_map_single` of a vmalloc address.
    #[error("rejecting DMA map of vmalloc memory")]
    DmaMap,
    /// Registers touched through a plain pointer instead of an accessor.
    #[error("registers at {at:#x} accessed through a plain pointer")]
    PlainIo {
        /// The address.
        at: VirtAddr,
    },
}

impl AreaMisuse {
    /// The stable name that scenario files expect.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::BadAddress { .. } => "vfree-bad-address",
            Self::Nonexistent { .. } => "vfree-nonexistent",
            Self::Inside { .. } => "vfree-inside",
            Self::WrongKind { .. } => "vfree-wrong-kind",
            Self::InInterrupt { .. } => "vmalloc-in-interrupt",
            Self::DmaMap => "map-vmalloc",
            Self::PlainIo { .. } => "plain-io-access",
        }
    }

    /// The kernel option under which Linux prints this; `None` where it stays silent.
    pub const fn linux(&self) -> Option<&'static str> {
        match self {
            Self::Inside { .. } | Self::WrongKind { .. } | Self::PlainIo { .. } => None,
            Self::InInterrupt { .. } => Some("any (an oops)"),
            _ => Some("any"),
        }
    }
}

/// Why an address faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum NotMapped {
    /// The guard page behind an area: an overrun.
    #[error("the guard page of the area at {start:#x}")]
    Guard {
        /// Where the area begins.
        start: VirtAddr,
    },
    /// The area was freed.
    #[error("an area that was freed")]
    Freed,
    /// No area was ever there, as far as is known.
    #[error("no area")]
    Nothing,
}

/// `warn_alloc` prints a line in ten seconds.
const WARN_LIMIT: Limit = Limit { interval: 10_000_000_000, burst: 1, function: "warn_alloc" };

/// `warn_alloc`: what the kernel's log says about an error, unless the mask forbids it. `driver` is the task's name.
pub(super) fn warn_alloc(cpu: &Cpu<'_>, gfp: Gfp, error: VmallocError) -> VmallocError {
    if !gfp.contains(Gfp::NOWARN) {
        let text = || format!("driver: {error}, mode:{:#x}({gfp}), nodemask=(null)", gfp.bits());
        cpu.kernel().log().limited(cpu.now(), Site::caller(), &WARN_LIMIT, text);
    }
    error
}
