//! What goes wrong with interrupts: requests that are refused, and handlers that break their word.
//!
//! Neighbours: [`super`]. Left out: sleeping in a handler, which `cpu` tells.

use bitflags::bitflags;
use thiserror::Error;

bitflags! {
    /// How a handler is attached, with Linux's numbers.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct IrqFlags: u32 {
        /// Others may have the line too (`IRQF_SHARED`).
        const SHARED = 0x80;
        /// The line stays masked until the thread has run (`IRQF_ONESHOT`).
        const ONESHOT = 0x2000;
    }
}

/// Why an interrupt could not be requested.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum IrqError {
    /// No descriptor, or no thread, could be allocated (`-ENOMEM`).
    #[error("no memory for the handler of irq {irq}")]
    NoMemory {
        /// The interrupt.
        irq: u32,
    },
    /// Neither a handler nor a thread (`-EINVAL`).
    #[error("neither a handler nor a thread for irq {irq}")]
    NoHandler {
        /// The interrupt.
        irq: u32,
    },
    /// A thread alone, on a line that would interrupt again before it ran (`-EINVAL`).
    #[error("Threaded irq requested with handler=NULL and !ONESHOT for {name} (irq {irq})")]
    NotOneshot {
        /// The interrupt.
        irq: u32,
        /// Who asked.
        name: &'static str,
    },
    /// Somebody has the line and doesn't share it, or masks it otherwise (`-EBUSY`).
    #[error("Flags mismatch irq {irq}. {:08x} ({name}) vs. {:08x} ({with})", .flags.bits(), .has.bits())]
    Mismatch {
        /// The interrupt.
        irq: u32,
        /// The flags that were asked for.
        flags: IrqFlags,
        /// Who asked.
        name: &'static str,
        /// The flags that the line has.
        has: IrqFlags,
        /// Who has it.
        with: &'static str,
    },
    /// 64 threads mask the line already (`-EBUSY`).
    #[error("irq {irq} has a thread for each bit of its mask")]
    Full {
        /// The interrupt.
        irq: u32,
    },
}

impl IrqError {
    /// The errno that `request_irq` returns, negative.
    pub const fn errno(&self) -> i32 {
        match self {
            Self::NoMemory { .. } => -12,
            Self::NoHandler { .. } | Self::NotOneshot { .. } => -22,
            Self::Mismatch { .. } | Self::Full { .. } => -16,
        }
    }
}

/// What a handler did wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum IrqMisuse {
    /// It asked for its thread and has none.
    #[error("IRQ {irq} device {name} returned IRQ_WAKE_THREAD but no thread function available.")]
    NoThread {
        /// The interrupt.
        irq: u32,
        /// The handler's name.
        name: &'static str,
    },
}

impl IrqMisuse {
    /// The stable name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::NoThread { .. } => "no-irq-thread",
        }
    }
}
