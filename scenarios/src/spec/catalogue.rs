//! The scenarios that the program carries with it.
//!
//! A name is the file's path below `scenarios/files` without `.toml`. Neighbours: `Source::embedded`, the command
//! line's `list`. Left out: reading a folder at run time.

/// One embedded scenario.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its name, such as `block/low-zone`.
    pub name: &'static str,
    /// The whole text of its file.
    pub text: &'static str,
}

macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        &[$(Entry { name: $name, text: include_str!(concat!("../../files/", $name, ".toml")) }),*]
    };
}

/// The scenario of the stock program's `run` that names none.
pub(crate) const DEFAULT: &str = "block/low-zone";

pub(crate) const ENTRIES: &[Entry] = embedded![
    "alloc/atomic-reserve",
    "alloc/atomic-reserve-insist",
    "alloc/cache-full",
    "alloc/contexts",
    "alloc/contexts-lock-without-irqsave",
    "alloc/contexts-mutex-in-tasklet",
    "alloc/contexts-work-waits-for-itself",
    "alloc/contexts-wrong-unlock",
    "alloc/devres",
    "alloc/devres-manual-free",
    "alloc/dma32-dry",
    "alloc/fragmented",
    "alloc/gfp",
    "alloc/gfp-stale-state",
    "alloc/greedy-neighbour",
    "alloc/highmem",
    "alloc/highmem-no-kmap",
    "alloc/highmem-unmap-order",
    "alloc/ioremap",
    "alloc/ioremap-after-iounmap",
    "alloc/ioremap-double-release",
    "alloc/ioremap-no-read-back",
    "alloc/ioremap-outside",
    "alloc/ioremap-ram",
    "alloc/kmalloc",
    "alloc/kmalloc-double-free",
    "alloc/kmem-cache",
    "alloc/kmem-cache-destroy-busy",
    "alloc/kmem-cache-wrong-cache",
    "alloc/mempool",
    "alloc/mempool-elements-out",
    "alloc/pages",
    "alloc/pages-double-free",
    "alloc/pages-left",
    "alloc/percpu",
    "alloc/percpu-preemptible",
    "alloc/remove",
    "alloc/remove-no-cancel-work",
    "alloc/remove-no-del-timer",
    "alloc/remove-no-tasklet-kill",
    "alloc/sanitizers",
    "alloc/sanitizers-forgotten",
    "alloc/sanitizers-overflow",
    "alloc/sanitizers-use-after-free",
    "alloc/scullc",
    "alloc/scullc-no-trim",
    "alloc/scullp",
    "alloc/scullv",
    "alloc/thread-stack",
    "alloc/thread-stack-map-page",
    "alloc/thread-stack-map-single",
    "alloc/threaded-irq",
    "alloc/threaded-irq-mutex-in-primary",
    "alloc/threaded-irq-no-oneshot",
    "alloc/vmalloc",
    "alloc/vmalloc-dma-map",
    "alloc/vmalloc-double-vfree",
    "alloc/vmalloc-overrun",
    "alloc/vmalloc-under-lock",
    "alloc/vmalloc-use-after-vfree",
    "alloc/zones",
    "alloc/zones-dma32-kmalloc",
    "block/bounce-limit",
    "block/contended",
    "block/copy-image",
    "block/discard",
    "block/flaky-memory",
    "block/leak",
    "block/low-zone",
    "block/no-bus-master",
    "block/polled",
    "block/random-queues",
    "block/sleep-in-irq",
    "block/swiotlb-full",
    "block/too-wide",
    "block/too-wide-wrap",
    "block/use-after-unmap",
    "block/write-zeroes",
    "block/wrong-direction",
    "dma/after-shutdown",
    "dma/after-unmap",
    "dma/bounce-sweep",
    "dma/cpu-reads-mapped",
    "dma/cpu-writes-mapped",
    "dma/free-cpu-address",
    "dma/freed-while-mapped",
    "dma/ledger",
    "dma/line-shared",
    "dma/map-error-unchecked",
    "dma/map-invalid",
    "dma/mapping-overlap",
    "dma/mapping-overlaps",
    "dma/missing-sync",
    "dma/not-mapped",
    "dma/outside-mapping",
    "dma/pending-dma",
    "dma/segment-boundary",
    "dma/segment-long",
    "dma/sync-direction",
    "dma/sync-entries",
    "dma/sync-not-mapped",
    "dma/sync-read-only",
    "dma/sync-write-only",
    "dma/unmap-direction",
    "dma/unmap-entries",
    "dma/unmap-error-value",
    "dma/unmap-function",
    "dma/unmap-not-mapped",
    "dma/unmap-size",
    "dma/while-cpu-owns",
    "dma/wrong-direction",
    "edu/bounce",
    "edu/clamp",
    "edu/selftest",
    "edu/swiotlb-out-of-reach",
    "edu/three-lows",
    "net/loop-back",
    "net/mixed",
    "net/pressure",
    "net/source",
    "net/tx-never-unmapped",
    "net/tx-use-after-unmap",
    "net/tx-wrong-direction",
];

/// All embedded scenarios, sorted by name.
///
/// ```
/// let names: Vec<_> = lowzone::spec::catalogue::entries().iter().map(|entry| entry.name).collect();
/// assert!(names.is_sorted() && names.contains(&"block/low-zone"));
/// ```
pub fn entries() -> &'static [Entry] {
    ENTRIES
}

/// The text of the embedded scenario of this name.
pub fn find(name: &str) -> Option<&'static str> {
    ENTRIES.iter().find(|entry| entry.name == name).map(|entry| entry.text)
}

/// The name nearest to one that does not exist, if one is near enough to be meant.
///
/// ```
/// assert_eq!(lowzone::spec::catalogue::nearest("block/lowzone"), Some("block/low-zone"));
/// ```
pub fn nearest(name: &str) -> Option<&'static str> {
    nearest_of(ENTRIES, name)
}

/// [`nearest`] among these.
pub(crate) fn nearest_of(entries: &'static [Entry], name: &str) -> Option<&'static str> {
    // Without the folder is the likeliest mistake of all.
    let whole = entries.iter().map(|entry| entry.name).find(|full| full.rsplit('/').next() == Some(name));
    whole.or_else(|| super::nearest::nearest(name, entries.iter().map(|entry| entry.name)))
}
