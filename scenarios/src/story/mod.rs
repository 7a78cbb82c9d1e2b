//! Stories: what the allocators do for a driver author who asks, told step by step, and the mistakes that are made there.
//!
//! A `story` step names one of [`STORIES`]; its parts run on the machine's CPUs, one each, and put down what they see as
//! facts, in the order they are told. A story's `mistake` commits one typical crime on the way, whose finding its
//! scenario expects. Neighbours: `step::story`, which runs the parts; `spec`, which knows the names only; the files
//! under `files/alloc` and `files/dma`. Left out: devices; a story that needs one is a driver's.

mod bounce_sweep;
mod contexts;
mod devres;
mod exhaustion;
mod gfp;
mod highmem;
mod ioremap;
mod kmalloc;
mod kmem_cache;
mod ledger;
mod mempool;
mod pages;
mod percpu;
mod remove;
mod sanitizers;
mod scull;
mod telling;
mod thread_stack;
mod threaded_irq;
mod vmalloc;
mod zones;

pub(crate) use telling::{StoryError, Telling};

/// What one CPU does in a story.
pub(crate) type Part = Box<dyn FnOnce(&Telling<'_, '_>) -> Result<(), StoryError> + Send>;

/// One story.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Story {
    /// What scenarios call it.
    pub(crate) name: &'static str,
    /// The mistakes that it can commit.
    pub(crate) mistakes: &'static [&'static str],
    /// What each CPU does, CPU 0 first; those beyond take interrupts.
    pub(crate) parts: fn() -> Vec<Part>,
}

/// All stories, by name.
pub(crate) const STORIES: &[Story] = &[
    Story { name: "atomic-reserve", mistakes: &["insist"], parts: || alone(exhaustion::atomic_reserve) },
    Story { name: "bounce-sweep", mistakes: &[], parts: || alone(bounce_sweep::tell) },
    Story { name: "cache-full", mistakes: &[], parts: || alone(exhaustion::cache_full) },
    Story { name: "contexts", mistakes: contexts::MISTAKES, parts: || alone(contexts::tell) },
    Story { name: "devres", mistakes: &["manual-free"], parts: || alone(devres::tell) },
    Story { name: "dma32-dry", mistakes: &[], parts: || alone(exhaustion::dma32_dry) },
    Story { name: "fragmented", mistakes: &[], parts: || alone(exhaustion::fragmented) },
    Story { name: "gfp", mistakes: &["stale-state"], parts: gfp::parts },
    Story { name: "greedy-neighbour", mistakes: &[], parts: || alone(exhaustion::neighbour) },
    Story { name: "highmem", mistakes: &["no-kmap", "unmap-order"], parts: || alone(highmem::tell) },
    Story {
        name: "ioremap",
        mistakes: &["no-read-back", "after-iounmap", "outside", "ram", "double-release"],
        parts: || alone(ioremap::tell),
    },
    Story { name: "kmalloc", mistakes: &["double-free"], parts: || alone(kmalloc::tell) },
    Story { name: "kmem-cache", mistakes: &["destroy-busy", "wrong-cache"], parts: || alone(kmem_cache::tell) },
    Story { name: "ledger", mistakes: ledger::MISTAKES, parts: || alone(ledger::tell) },
    Story { name: "mempool", mistakes: &["elements-out"], parts: mempool::parts },
    Story { name: "pages", mistakes: &["double-free"], parts: || alone(pages::tell) },
    Story { name: "pages-left", mistakes: &[], parts: || alone(exhaustion::pages_left) },
    Story { name: "percpu", mistakes: &["preemptible"], parts: percpu::parts },
    Story { name: "remove", mistakes: remove::MISTAKES, parts: || alone(remove::tell) },
    Story { name: "sanitizers", mistakes: sanitizers::MISTAKES, parts: || alone(sanitizers::tell) },
    Story { name: "scullc", mistakes: &["no-trim"], parts: scull::scullc },
    Story { name: "scullp", mistakes: &[], parts: scull::scullp },
    Story { name: "scullv", mistakes: &[], parts: scull::scullv },
    Story { name: "thread-stack", mistakes: thread_stack::MISTAKES, parts: || alone(thread_stack::tell) },
    Story { name: "threaded-irq", mistakes: threaded_irq::MISTAKES, parts: || alone(threaded_irq::tell) },
    Story {
        name: "vmalloc",
        mistakes: &["dma-map", "overrun", "double-vfree", "use-after-vfree", "under-lock"],
        parts: || alone(vmalloc::tell),
    },
    Story { name: "zones", mistakes: &["dma32-kmalloc"], parts: || alone(zones::tell) },
];

/// The story of this name.
pub(crate) fn find(name: &str) -> Option<&'static Story> {
    STORIES.iter().find(|story| story.name == name)
}

/// The parts of a story that one CPU tells alone.
pub(crate) fn alone(tell: fn(&Telling<'_, '_>) -> Result<(), StoryError>) -> Vec<Part> {
    vec![Box::new(tell)]
}
