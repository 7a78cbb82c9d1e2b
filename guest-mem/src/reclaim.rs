//! What an allocation does when no zone may give it a page: shrinkers, waiting, and giving up.
//!
//! A mask that may sleep reclaims: it asks the registered [`Shrinker`]s to free what they cache, tries again, sleeps a
//! tick, and so on for [`MAX_RECLAIM_RETRIES`] rounds without progress. Then Linux would kill a process; here there is
//! none, so that step is a finding and the allocation fails. `NORETRY` gives up after a round, `RETRY_MAYFAIL` before
//! the kill, an order above 3 at once; masks of low zones are never worth a kill; `NOFAIL` goes on for ever. A mask
//! without direct reclaim does nothing of this.
//!
//! Reclaim runs the shrinkers on the allocating CPU, so a driver's shrinker runs under whatever that CPU holds, and
//! other CPUs run while it sleeps: a caller of `GFP_KERNEL` finds another world after the call. Shrinkers that need
//! file systems or I/O are skipped for masks without.
//!
//! Mirrors `__alloc_pages_slowpath` of mm/page_alloc.c and `do_shrink_slab` of mm/vmscan.c, 6.1. Neighbours: `page`
//! calls it, [`crate::pcp`] is drained. Left out: the page cache and swap (nothing but shrinkers has something to
//! give), compaction, kswapd's own work (it is woken and counted), throttling by what is written back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::addr::PhysAddr;
use crate::cpu::Cpu;
use crate::env::{Class, Key, Wake};
use crate::finding::{FindingKind, Resource};
use crate::gfp::Gfp;
use crate::kernel::KernelRef;
use crate::lock::Locked;
use crate::page::GfpWarning;
use crate::site::Owner;
use crate::zone::{AllocError, Pass, ZoneKind};

#[cfg(test)]
mod tests;

/// Rounds without progress after which an allocation gives up.
pub const MAX_RECLAIM_RETRIES: u32 = 16;
/// Orders above this are not worth a process (`PAGE_ALLOC_COSTLY_ORDER`).
pub const PAGE_ALLOC_COSTLY_ORDER: u8 = 3;
/// A timer tick at HZ=250, in nanoseconds: how long a round without progress sleeps.
pub const TICK: u64 = 4_000_000;

/// Pages that a round of reclaim is content with.
const SWAP_CLUSTER_MAX: u64 = 32;
/// Reclaim's first, mildest priority: it looks at a part in 2^12 of what there is.
const DEF_PRIORITY: u32 = 12;
/// Objects that a shrinker is asked to scan at once.
const SHRINK_BATCH: u64 = 128;

/// What reclaim asks of a shrinker (`struct shrink_control`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShrinkControl {
    /// The mask of the allocation that reclaims: what the shrinker may do.
    pub gfp_mask: Gfp,
    /// How many objects to look at.
    pub nr_to_scan: u64,
}

/// Something that caches memory and can give it back (`struct shrinker`).
///
/// Both calls run on the CPU that allocates, in its context, inside `memalloc_noreclaim_save`: they may allocate, but
/// that never reclaims again.
pub trait Shrinker: Send + Sync {
    /// The name, in reports.
    fn name(&self) -> &'static str;

    /// How many objects could be freed now; 0 = none (`count_objects`).
    fn count_objects(&self, cpu: &Cpu<'_>, control: ShrinkControl) -> u64;

    /// Frees up to `nr_to_scan` objects; tells how many pages that freed, or `None` to be left alone this time
    /// (`scan_objects`, `SHRINK_STOP`).
    fn scan_objects(&self, cpu: &Cpu<'_>, control: ShrinkControl) -> Option<u64>;

    /// The bits without which it can do nothing: `FS` if it takes a file system's locks, `IO` if it writes.
    fn needs(&self) -> Gfp {
        Gfp::empty()
    }
}

struct Entry {
    id: u64,
    shrinker: Arc<dyn Shrinker>,
    /// Work that earlier calls were too mild to do.
    deferred: AtomicU64,
}

/// A kernel's shrinkers, in the order they were registered.
#[derive(Default)]
pub(crate) struct Shrinkers(Locked<Vec<Arc<Entry>>>);

impl Shrinkers {
    pub(crate) fn reset(&self) {
        self.0.lock().clear();
    }

    fn eligible(&self, gfp: Gfp) -> Vec<Arc<Entry>> {
        self.0.lock().iter().filter(|entry| gfp.contains(entry.shrinker.needs())).cloned().collect()
    }
}

/// A registered shrinker; dropping it unregisters it (`unregister_shrinker`).
#[must_use = "the shrinker is unregistered when this is dropped"]
pub struct Registered {
    kernel: KernelRef,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(kernel) = self.kernel.get() {
            kernel.shrinkers.0.lock().retain(|entry| entry.id != self.id);
            kernel.unregister(self.id);
        }
    }
}

/// Has reclaim ask `shrinker` too (`register_shrinker`). Process context.
#[track_caller]
pub fn register_shrinker(cpu: &Cpu<'_>, shrinker: Arc<dyn Shrinker>) -> Registered {
    cpu.might_sleep("register_shrinker");
    let kernel = cpu.kernel();
    let id = kernel.register(Resource::Shrinker, PhysAddr::new(0), 0, cpu.owner());
    kernel.shrinkers.0.lock().push(Arc::new(Entry { id, shrinker, deferred: AtomicU64::new(0) }));
    Registered { kernel: cpu.kernel_ref(), id }
}

/// An allocation that no zone would serve.
#[derive(Clone, Copy)]
pub(crate) struct Short {
    pub(crate) order: u8,
    pub(crate) gfp: Gfp,
    pub(crate) highest: ZoneKind,
    pub(crate) owner: Owner,
}

/// What comes after a round that found nothing.
enum Next {
    Again,
    GiveUp,
}

impl Short {
    fn costly(&self) -> bool {
        self.order > PAGE_ALLOC_COSTLY_ORDER
    }

    fn refused<T>(&self) -> Result<T, AllocError> {
        Err(AllocError::NoMemory { order: self.order, gfp: self.gfp, zone: self.highest })
    }

    #[track_caller]
    fn warn(&self, cpu: &Cpu<'_>, warning: GfpWarning) {
        warning.report(cpu, self.gfp, self.owner);
    }
}

/// Goes on where the first attempts found nothing (`__alloc_pages_slowpath`); `attempt` tries once with a mask.
pub(crate) fn slowpath<T>(
    cpu: &Cpu<'_>,
    short: Short,
    attempt: &mut dyn FnMut(Gfp) -> Result<T, AllocError>,
) -> Result<T, AllocError> {
    let Short { gfp, .. } = short;
    let mut rounds = Rounds::default();
    loop {
        let next = if gfp.may_sleep() && !cpu.is_memalloc() {
            match rounds.reclaim(cpu, short, attempt) {
                Ok(taken) => return Ok(taken),
                Err(next) => next,
            }
        } else {
            Next::GiveUp
        };
        if matches!(next, Next::GiveUp) {
            if !gfp.contains(Gfp::NOFAIL) {
                return short.refused();
            }
            rounds.warn_of_nofail(cpu, short);
            if !gfp.may_sleep() {
                return short.refused();
            }
            if let Ok(taken) = attempt(gfp | Gfp::HIGH) {
                return Ok(taken);
            }
            if !tick(cpu, short.owner) {
                return short.refused();
            }
        }
        if let Ok(taken) = attempt(gfp) {
            return Ok(taken);
        }
    }
}

/// The state of one allocation's retries.
#[derive(Default)]
struct Rounds {
    /// Rounds in a row that freed nothing.
    dry: u32,
    warned: bool,
}

impl Rounds {
    /// One round: reclaim, try, and decide.
    fn reclaim<T>(
        &mut self,
        cpu: &Cpu<'_>,
        short: Short,
        attempt: &mut dyn FnMut(Gfp) -> Result<T, AllocError>,
    ) -> Result<T, Next> {
        let gfp = short.gfp;
        let progress = direct_reclaim(cpu, gfp, short.owner);
        if progress > 0 {
            if let Ok(taken) = attempt(gfp) {
                return Ok(taken);
            }
            // What was freed may lie on lists of other CPUs.
            cpu.kernel().drain_all_pages();
            if let Ok(taken) = attempt(gfp) {
                return Ok(taken);
            }
        }
        if gfp.contains(Gfp::NORETRY) || (short.costly() && !gfp.contains(Gfp::RETRY_MAYFAIL)) {
            return Err(Next::GiveUp);
        }
        self.dry = if progress > 0 && !short.costly() { 0 } else { self.dry + 1 };
        if self.dry <= MAX_RECLAIM_RETRIES && could_help(cpu, short) {
            return Err(if tick(cpu, short.owner) { Next::Again } else { Next::GiveUp });
        }
        self.out_of_memory(cpu, short, attempt)
    }

    /// Where Linux kills a process (`__alloc_pages_may_oom`).
    fn out_of_memory<T>(
        &mut self,
        cpu: &Cpu<'_>,
        short: Short,
        attempt: &mut dyn FnMut(Gfp) -> Result<T, AllocError>,
    ) -> Result<T, Next> {
        let Short { order, gfp, highest, owner } = short;
        let low = matches!(highest, ZoneKind::Dma | ZoneKind::Dma32);
        if short.costly() || low || gfp.intersects(Gfp::RETRY_MAYFAIL | Gfp::THISNODE) {
            return Err(Next::GiveUp);
        }
        // Without __GFP_FS nobody is killed, but the step counts as progress: others may free something meanwhile.
        if !gfp.contains(Gfp::FS) && self.dry <= MAX_RECLAIM_RETRIES {
            return Err(if tick(cpu, owner) { Next::Again } else { Next::GiveUp });
        }
        if !self.warned {
            self.warned = true;
            cpu.emit(FindingKind::OutOfMemory { order, gfp }, None, vec![("allocated at", owner)]);
            let text = format!(
                "insmod invoked oom-killer: gfp_mask={:#x}({gfp}), order={order}, oom_score_adj=0\n\
                 Out of memory and no killable processes...",
                gfp.bits()
            );
            cpu.kernel().log().print(cpu.now(), &text);
        }
        if gfp.contains(Gfp::NOFAIL) {
            return attempt(gfp | Gfp::MEMALLOC).map_err(|_| Next::GiveUp);
        }
        Err(Next::GiveUp)
    }

    fn warn_of_nofail(&mut self, cpu: &Cpu<'_>, short: Short) {
        if !short.gfp.may_sleep() {
            return short.warn(cpu, GfpWarning::NofailAtomic);
        }
        // Each round warns; once is enough to be told.
        if std::mem::replace(&mut self.warned, true) {
            return;
        }
        if cpu.is_memalloc() {
            short.warn(cpu, GfpWarning::NofailMemalloc);
        }
        if short.costly() {
            short.warn(cpu, GfpWarning::NofailCostly);
        }
    }
}

/// Whether the allocation would succeed if all that shrinkers have were free (`should_reclaim_retry`).
fn could_help(cpu: &Cpu<'_>, short: Short) -> bool {
    let control = ShrinkControl { gfp_mask: short.gfp, nr_to_scan: 0 };
    let eligible = cpu.kernel().shrinkers.eligible(short.gfp);
    let reclaimable = eligible.iter().map(|entry| entry.shrinker.count_objects(cpu, control)).sum();
    cpu.kernel().pcp.shared().would_admit(short.highest, short.order, Pass::second(short.gfp), reclaimable)
}

/// Sleeps a tick, during which others may free something; tells whether the CPU lives on. The caller's context was
/// judged when it asked.
fn tick(cpu: &Cpu<'_>, owner: Owner) -> bool {
    let _ = cpu.point_for(Class::Wait, TICK, owner);
    let ticket = cpu.prepare(Key::fresh());
    cpu.park(ticket, Some(cpu.now() + TICK)) != Wake::Dying
}

/// Asks every shrinker that the mask allows, ever more urgently, until enough is freed; tells how many pages
/// (`do_try_to_free_pages`).
fn direct_reclaim(cpu: &Cpu<'_>, gfp: Gfp, owner: Owner) -> u64 {
    let _ = cpu.point_for(Class::Wait, 0, owner);
    let _scope = cpu.memalloc_noreclaim_save();
    let mut freed = 0;
    for priority in (0..=DEF_PRIORITY).rev() {
        for entry in cpu.kernel().shrinkers.eligible(gfp) {
            freed += shrink(cpu, &entry, gfp, priority);
        }
        if freed >= SWAP_CLUSTER_MAX {
            break;
        }
    }
    freed
}

/// One shrinker at one priority (`do_shrink_slab`).
fn shrink(cpu: &Cpu<'_>, entry: &Entry, gfp_mask: Gfp, priority: u32) -> u64 {
    let freeable = entry.shrinker.count_objects(cpu, ShrinkControl { gfp_mask, nr_to_scan: 0 });
    if freeable == 0 {
        return 0;
    }
    let deferred = entry.deferred.swap(0, Ordering::Relaxed);
    // Twice a share of what there is: an object costs two seeks to bring back, a page of the page cache one.
    let delta = (freeable >> priority) * 2;
    let mut left = ((deferred >> priority) + delta).min(2 * freeable);
    let (mut scanned, mut freed) = (0, 0);
    while left > 0 && (left >= SHRINK_BATCH || left >= freeable) {
        let nr_to_scan = left.min(SHRINK_BATCH);
        let Some(pages) = entry.shrinker.scan_objects(cpu, ShrinkControl { gfp_mask, nr_to_scan }) else { break };
        freed += pages;
        left -= nr_to_scan;
        scanned += nr_to_scan;
    }
    let undone = (deferred + delta).saturating_sub(scanned).min(2 * freeable);
    entry.deferred.fetch_add(undone, Ordering::Relaxed);
    freed
}
