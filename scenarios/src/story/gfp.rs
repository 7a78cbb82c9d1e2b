//! `gfp`: what each mask gets when memory is short, and why a caller of `GFP_KERNEL` must be re-entrant.
//!
//! All memory is held by a cache that gives pages back when its shrinker is asked. Two CPUs then replace one buffer
//! by a new one. The allocation reclaims and sleeps, so each is in the middle of its replacement while the other is.
//!
//! The mistake: the old buffer is looked up before the allocation and freed after it. Both saw the same one.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use lowzone_guest_mem::gfp::{
    __GFP_MEMALLOC, __GFP_NORETRY, __GFP_NOWARN, GFP_ATOMIC, GFP_KERNEL, GFP_NOFS, GFP_NOWAIT, Gfp,
};
use lowzone_guest_mem::lock::SpinLock;
use lowzone_guest_mem::page::{Pages, alloc_pages, misuse};
use lowzone_guest_mem::reclaim::{ShrinkControl, Shrinker, register_shrinker};
use lowzone_guest_mem::wait::{Completion, WaitQueue};
use lowzone_guest_mem::{Cpu, PhysAddr};

use super::{Part, StoryError, Telling};

const SECOND: u64 = 1_000_000_000;

/// What both CPUs share.
#[derive(Default)]
struct Shared {
    cache: Arc<Cache>,
    /// The buffer that both replace.
    buffer: Buffer,
    ready: Completion,
    done: Completion,
}

/// Where a driver keeps a buffer: its address, as in C.
struct Buffer(SpinLock<PhysAddr>);

impl Default for Buffer {
    fn default() -> Self {
        Self(SpinLock::new(PhysAddr::new(0)))
    }
}

/// Holds pages until memory is short; gives none before both CPUs ask.
#[derive(Default)]
struct Cache {
    pages: StdMutex<Vec<Pages>>,
    asked: AtomicU32,
    both: WaitQueue,
}

impl Cache {
    fn with<T>(&self, body: impl FnOnce(&mut Vec<Pages>) -> T) -> T {
        body(&mut self.pages.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shrinker for Cache {
    fn name(&self) -> &'static str {
        "story"
    }

    fn count_objects(&self, _: &Cpu<'_>, _: ShrinkControl) -> u64 {
        self.with(|pages| pages.len() as u64)
    }

    fn scan_objects(&self, cpu: &Cpu<'_>, control: ShrinkControl) -> Option<u64> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.both.wake_up_all(cpu);
        // A shrinker may sleep: for a lock, for a disk. Here it waits until the other CPU is as far.
        self.both.wait_event_timeout(cpu, SECOND, || self.asked.load(Ordering::SeqCst) > 1).ok()?;
        let freed = self.with(|pages| {
            let many = usize::try_from(control.nr_to_scan).unwrap_or(usize::MAX);
            pages.split_off(pages.len().saturating_sub(many))
        });
        Some(freed.len() as u64)
    }

    fn needs(&self) -> Gfp {
        Gfp::FS
    }
}

/// The parts of both CPUs.
pub(super) fn parts() -> Vec<Part> {
    let shared = Arc::new(Shared::default());
    let other = shared.clone();
    vec![Box::new(move |telling| first(telling, &shared)), Box::new(move |telling| second(telling, &other))]
}

fn first(telling: &Telling<'_, '_>, shared: &Shared) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    *shared.buffer.0.lock(cpu) = into_address(alloc_pages(cpu, 0, GFP_KERNEL)?);
    let hold_all = GFP_NOWAIT | __GFP_MEMALLOC | __GFP_NOWARN;
    let held: Vec<_> = std::iter::from_fn(|| alloc_pages(cpu, 0, hold_all).ok()).collect();
    shared.cache.with(|pages| *pages = held);
    for gfp in [GFP_NOWAIT, GFP_ATOMIC, GFP_KERNEL | __GFP_NORETRY] {
        let got = alloc_pages(cpu, 0, gfp | __GFP_NOWARN).is_ok();
        telling.expect(format_args!("{gfp} when no page is free"), "refused", if got { "given" } else { "refused" })?;
    }
    let registered = register_shrinker(cpu, shared.cache.clone());
    let skipped = alloc_pages(cpu, 0, GFP_NOFS | __GFP_NORETRY | __GFP_NOWARN).is_err();
    telling.expect("GFP_NOFS, with a shrinker that needs __GFP_FS", true, skipped)?;
    shared.ready.complete(cpu);
    replace(telling, shared)?;
    telling.fact("GFP_KERNEL", "given, after both CPUs slept in it");
    shared.done.wait_timeout(cpu, SECOND)?;
    drop(registered);
    shared.cache.with(Vec::clear);
    misuse::free_pages(cpu, *shared.buffer.0.lock(cpu), 0);
    Ok(())
}

fn second(telling: &Telling<'_, '_>, shared: &Shared) -> Result<(), StoryError> {
    shared.ready.wait_timeout(telling.cpu(), 10 * SECOND)?;
    replace(telling, shared)?;
    shared.done.complete(telling.cpu());
    Ok(())
}

/// Puts a new buffer in the place of the old one.
fn replace(telling: &Telling<'_, '_>, shared: &Shared) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let seen_before = *shared.buffer.0.lock(cpu);
    let new = into_address(alloc_pages(cpu, 0, GFP_KERNEL)?);
    // The world is another one now: what was looked up before may be gone.
    let old = std::mem::replace(&mut *shared.buffer.0.lock(cpu), new);
    let old = if telling.makes("stale-state") { seen_before } else { old };
    misuse::free_pages(cpu, old, 0);
    Ok(())
}

/// A page by its address alone, as a C driver has it.
fn into_address(page: Pages) -> PhysAddr {
    misuse::forget(page)
}
