//! Detectors: what told that a case is wrong, by a published name.
//!
//! [`Detector::ALL`] is in the order in which a report names them: of several that told, the first counts, and of
//! several findings of one detector the one that was seen first. Neighbours: `case`, whose verdict names them;
//! `mutants`, which counts them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What can tell that a driver is wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Detector {
    /// The child process that ran it died or went silent.
    ChildDeath,
    /// The driver used NULL or panicked.
    Oops,
    /// A call in a context that forbids it, a lock taken twice, an interrupt that nobody claims.
    Context,
    /// The books of the DMA API: dma-debug's reports, and whose turn it is with a mapped byte.
    Ledger,
    /// The device reached memory that it may not reach.
    Port,
    /// An allocator or a buffer was misused.
    Allocator,
    /// A finding of another kind.
    Finding,
    /// Nobody could go on.
    Hang,
    /// Something was left.
    Leak,
    /// The driver said that it went well, and it did not.
    FalseSuccess,
    /// A failed probe's errno doesn't fit what failed.
    Errno,
    /// The driver didn't work on the same kernel afterwards.
    Recovery,
    /// Something failed, and nothing was injected.
    Failure,
}

impl Detector {
    /// All of them, in their order.
    pub const ALL: [Self; 13] = [
        Self::ChildDeath,
        Self::Oops,
        Self::Context,
        Self::Ledger,
        Self::Port,
        Self::Allocator,
        Self::Finding,
        Self::Hang,
        Self::Leak,
        Self::FalseSuccess,
        Self::Errno,
        Self::Recovery,
        Self::Failure,
    ];

    /// Its name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChildDeath => "child-death",
            Self::Oops => "oops",
            Self::Context => "context",
            Self::Ledger => "ledger",
            Self::Port => "port",
            Self::Allocator => "allocator",
            Self::Finding => "finding",
            Self::Hang => "hang",
            Self::Leak => "leak",
            Self::FalseSuccess => "false-success",
            Self::Errno => "errno",
            Self::Recovery => "recovery",
            Self::Failure => "failure",
        }
    }

    /// Who makes the findings of this name (`FindingKind::name`).
    pub fn of_finding(name: &str) -> Self {
        match name {
            "null-dereference" | "page-fault" | "direction-none" | "driver-panic" => Self::Oops,
            "sleep-in-atomic" | "wrong-context" | "self-deadlock" | "inconsistent-lock" | "bad-unlock" => Self::Context,
            "data-race" | "lab-lock-held" | "nobody-cared" | "no-irq-thread" | "freed-active" | "waits-for-itself"
            | "queue-draining" | "preemptible" | "percpu-illegal" => Self::Context,
            "map-stack"
            | "map-invalid"
            | "map-vmalloc"
            | "unmap-error-value"
            | "unmap-not-mapped"
            | "unmap-size"
            | "unmap-function"
            | "free-cpu-address"
            | "unmap-direction"
            | "map-error-unchecked"
            | "sync-not-mapped"
            | "sync-direction"
            | "sync-read-only"
            | "sync-write-only"
            | "unmap-entries"
            | "sync-entries"
            | "segment-long"
            | "segment-boundary"
            | "mapping-overlap"
            | "mapping-overlaps"
            | "cpu-writes-mapped"
            | "cpu-reads-mapped"
            | "missing-sync"
            | "line-shared"
            | "pending-dma" => Self::Ledger,
            "after-unmap" | "wrong-direction" | "outside-mapping" | "not-mapped" | "while-cpu-owns"
            | "after-shutdown" | "iommu-fault" | "beyond-width" | "bus-master-off" => Self::Port,
            "bad-free" | "wrong-cache" | "cache-busy" | "cache-refused" | "beyond-portable" | "out-of-bounds"
            | "stale-handle" | "gfp-fixup" | "red-zone" | "poison" | "use-after-free" | "freed-while-mapped" => {
                Self::Allocator
            }
            "deadlock" | "hang" => Self::Hang,
            "leak" => Self::Leak,
            _ => Self::Finding,
        }
    }
}

impl fmt::Display for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A detector that told, and the name of its finding if it was one.
///
/// ```
/// use lowzone::explore::detector::{Detected, Detector};
/// let found = Detected::finding("after-unmap");
/// assert_eq!((found.by, found.to_string().as_str()), (Detector::Port, "port: after-unmap"));
/// assert_eq!(Detected::from(Detector::Leak).to_string(), "leak");
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Detected {
    /// Which.
    pub by: Detector,
    /// The finding's name, or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub finding: String,
}

impl Detected {
    /// By whoever makes findings of this name.
    pub fn finding(name: &str) -> Self {
        Self { by: Detector::of_finding(name), finding: name.to_owned() }
    }
}

impl From<Detector> for Detected {
    fn from(by: Detector) -> Self {
        Self { by, finding: String::new() }
    }
}

impl fmt::Display for Detected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.finding.is_empty() { self.by.fmt(f) } else { write!(f, "{}: {}", self.by, self.finding) }
    }
}

/// What was wrong with a case, with who told each part.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reasons {
    parts: Vec<(Detected, String)>,
}

impl Reasons {
    /// Adds one.
    pub fn add(&mut self, by: impl Into<Detected>, text: impl Into<String>) {
        self.parts.push((by.into(), text.into()));
    }

    /// Whether nothing was wrong.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The first detector in their order; of its findings the first that was added.
    pub fn first(&self) -> Option<Detected> {
        self.parts.iter().map(|(detected, _)| detected).min_by_key(|detected| detected.by).cloned()
    }

    /// The texts, in the order in which they were added.
    pub fn into_texts(self) -> Vec<String> {
        self.parts.into_iter().map(|(_, text)| text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_json_and_in_order() {
        for pair in Detector::ALL.windows(2) {
            assert!(pair[0] < pair[1], "{pair:?}");
        }
        for detector in Detector::ALL {
            assert_eq!(serde_json::to_value(detector).unwrap(), detector.name());
        }
    }

    #[test]
    fn the_first_detector_counts_and_its_first_finding() {
        let mut reasons = Reasons::default();
        assert_eq!(reasons.first(), None);
        reasons.add(Detector::Leak, "a page");
        reasons.add(Detected::finding("after-unmap"), "late");
        reasons.add(Detected::finding("not-mapped"), "wild");
        assert_eq!(reasons.first(), Some(Detected::finding("after-unmap")));
        assert_eq!(reasons.into_texts(), ["a page", "late", "wild"]);
    }
}
