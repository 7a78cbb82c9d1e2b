//! The names of the findings about DMA, as scenario files expect them.

use crate::dma::ledger::{Misuse, Violation};

/// The name of what dma-debug would report.
pub(super) fn misuse_name(misuse: &Misuse) -> &'static str {
    match misuse {
        Misuse::FreesInvalid => "unmap-error-value",
        Misuse::FreesUnallocated { .. } => "unmap-not-mapped",
        Misuse::Size { .. } => "unmap-size",
        Misuse::Function { .. } => "unmap-function",
        Misuse::CpuAddress { .. } => "free-cpu-address",
        Misuse::Direction { .. } => "unmap-direction",
        Misuse::Unchecked { .. } => "map-error-unchecked",
        Misuse::SyncsUnallocated { .. } => "sync-not-mapped",
        Misuse::SyncDirection { .. } => "sync-direction",
        Misuse::SyncsReadOnly { .. } => "sync-read-only",
        Misuse::SyncsWriteOnly { .. } => "sync-write-only",
        Misuse::Entries { .. } => "unmap-entries",
        Misuse::SyncEntries { .. } => "sync-entries",
        Misuse::SegmentLong { .. } => "segment-long",
        Misuse::SegmentBoundary { .. } => "segment-boundary",
        Misuse::Overlaps => "mapping-overlap",
        Misuse::TooManyOverlaps { .. } => "mapping-overlaps",
        Misuse::MapsStack { .. } => "map-stack",
        Misuse::MapsInvalid { .. } => "map-invalid",
        Misuse::Pending { .. } => "pending-dma",
    }
}

/// The name of what the port saw.
pub(super) fn violation_name(violation: &Violation) -> &'static str {
    match violation {
        Violation::AfterUnmap { .. } => "after-unmap",
        Violation::WrongDirection { .. } => "wrong-direction",
        Violation::Outside { .. } => "outside-mapping",
        Violation::Unmapped { .. } => "not-mapped",
        Violation::WhileCpuOwns { .. } => "while-cpu-owns",
        Violation::AfterShutdown { .. } => "after-shutdown",
    }
}
