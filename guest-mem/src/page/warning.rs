//! Masks and orders that Linux warns of, whether or not memory is short.
//!
//! Linux prints each once a boot (`WARN_ON_ONCE`); a finding is made every time. Neighbours: `page` and `reclaim`
//! report them. Left out: what `CONFIG_DEBUG_VM` adds.

use thiserror::Error;

use crate::cpu::Cpu;
use crate::finding::FindingKind;
use crate::gfp::Gfp;
use crate::site::{Owner, Site};

/// What is wrong with a request for pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum GfpWarning {
    /// More than 4 MiB at once; the call fails.
    #[error("WARNING: mm/page_alloc.c __alloc_pages: order {order} is above 10")]
    OrderTooLarge {
        /// The order that was asked for.
        order: u8,
    },
    /// `__GFP_NOFAIL` for more than two pages.
    #[error("WARNING: mm/page_alloc.c rmqueue: __GFP_NOFAIL with order {order}")]
    NofailOrder {
        /// The order that was asked for.
        order: u8,
    },
    /// `__GFP_NOFAIL` without the right to wait, when memory is short: the call fails all the same.
    #[error("WARNING: mm/page_alloc.c __alloc_pages: __GFP_NOFAIL of a caller that can't sleep")]
    NofailAtomic,
    /// `__GFP_NOFAIL` of a task that frees memory, when memory is short: it waits for somebody else.
    #[error("WARNING: mm/page_alloc.c __alloc_pages: __GFP_NOFAIL inside memalloc_noreclaim_save")]
    NofailMemalloc,
    /// `__GFP_NOFAIL` for more than eight pages, when memory is short.
    #[error("WARNING: mm/page_alloc.c __alloc_pages: __GFP_NOFAIL of a costly order")]
    NofailCostly,
    /// `alloc_pages_exact` for a compound page or high memory; the bits are dropped.
    #[error("WARNING: mm/page_alloc.c alloc_pages_exact: {}", .bits)]
    Exact {
        /// The bits that it can't honour.
        bits: Gfp,
    },
}

impl GfpWarning {
    /// The stable name that scenario files expect.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OrderTooLarge { .. } => "order-too-large",
            Self::NofailOrder { .. } => "nofail-order",
            Self::NofailAtomic => "nofail-atomic",
            Self::NofailMemalloc => "nofail-memalloc",
            Self::NofailCostly => "nofail-costly",
            Self::Exact { .. } => "exact-mask",
        }
    }

    /// Makes the finding, and prints what Linux does, once for each line that calls this; `__GFP_NOWARN` silences most
    /// of it, there and here.
    #[track_caller]
    pub(crate) fn report(self, cpu: &Cpu<'_>, gfp: Gfp, by: Owner) {
        let always = matches!(self, Self::NofailOrder { .. } | Self::Exact { .. });
        if gfp.contains(Gfp::NOWARN) && !always {
            return;
        }
        cpu.kernel().log().once(cpu.now(), Site::caller(), self.to_string());
        cpu.emit(FindingKind::Gfp(self), None, vec![("called at", by)]);
    }
}
