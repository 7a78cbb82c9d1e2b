//! What can be done wrong with registers.
//!
//! Neighbours: [`super`] reports these, [`crate::finding`] names them. Left out: accesses outside a window, which are
//! [`crate::finding::FindingKind::OutOfBounds`].

use thiserror::Error;

use super::IoremapError;
use crate::addr::VirtAddr;

/// Misuse of a register window or of a claim to its addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum IoMisuse {
    /// RAM was to be mapped as registers; the text is that of the kernel's warning.
    #[error("{0}")]
    Refused(IoremapError),
    /// A window was used after its `iounmap`: the address faults.
    #[error("BUG: unable to handle page fault for address: {:016x} (registers after iounmap)", .at.get())]
    AfterUnmap {
        /// The address.
        at: VirtAddr,
    },
    /// `iounmap` of what is not mapped, such as a second one.
    #[error("iounmap: bad address {:016x}", .at.get())]
    BadUnmap {
        /// The address, without its offset in the page.
        at: VirtAddr,
    },
    /// A range was given back that nobody has claimed.
    #[error("resource: Trying to free nonexistent resource <{start:#018x}-{end:#018x}>")]
    BadRelease {
        /// The first byte.
        start: u64,
        /// The last byte.
        end: u64,
    },
}

impl IoMisuse {
    /// The stable name that scenario files expect.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Refused(_) => "ioremap-ram",
            Self::AfterUnmap { .. } => "io-after-unmap",
            Self::BadUnmap { .. } => "iounmap-bad-address",
            Self::BadRelease { .. } => "release-nonexistent-region",
        }
    }

    /// The kernel option under which Linux prints this.
    pub const fn linux(&self) -> Option<&'static str> {
        match self {
            Self::AfterUnmap { .. } => Some("any (an oops)"),
            _ => Some("any"),
        }
    }
}
