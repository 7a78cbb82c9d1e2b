//! `mempool`: a reserve that a caller which may not sleep empties, and one which may sleep waits for.
//!
//! The mistake: to destroy the pool while an element is out.

use std::sync::Arc;

use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::KBuf;
use lowzone_guest_mem::gfp::{GFP_ATOMIC, GFP_KERNEL, Gfp};
use lowzone_guest_mem::lock::SpinLock;
use lowzone_guest_mem::mempool::{Backing, Mempool, mempool_create, mempool_create_kmalloc_pool};
use lowzone_guest_mem::wait::{Completion, sleep};
use lowzone_guest_mem::zone::AllocError;

use super::{Part, StoryError, Telling};

/// Bytes of an element.
const BYTES: usize = 256;
const SECOND: u64 = 1_000_000_000;
/// How long the first CPU keeps what the second waits for.
const KEPT: u64 = SECOND / 100;

/// `kmalloc` until it is told to have run dry.
struct Dry(SpinLock<bool>);

impl Backing for Dry {
    type Element = KBuf;

    fn alloc(&self, cpu: &Cpu<'_>, gfp: Gfp) -> Result<KBuf, AllocError> {
        if *self.0.lock(cpu) {
            let zone = gfp.highest_zone(cpu.kernel().config().arch);
            return Err(AllocError::NoMemory { order: 0, gfp, zone });
        }
        KBuf::kmalloc(cpu, BYTES, gfp)
    }

    fn bytes(&self) -> u64 {
        BYTES as u64
    }
}

/// What the two CPUs share.
#[derive(Default)]
struct Shared {
    pool: std::sync::Mutex<Option<Arc<Mempool<Dry>>>>,
    empty: Completion,
    done: Completion,
}

impl Shared {
    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<Mempool<Dry>>>> {
        self.pool.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// One CPU empties the reserve and frees an element; the other waits for it.
pub(super) fn parts() -> Vec<Part> {
    let first = Arc::new(Shared::default());
    let second = first.clone();
    vec![Box::new(move |telling| empties(telling, &first)), Box::new(move |telling| waits(telling, &second))]
}

fn empties(telling: &Telling<'_, '_>, shared: &Shared) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let pool = Arc::new(mempool_create(cpu, 2, Dry(SpinLock::new(false)))?);
    telling.expect("elements in reserve", 2, pool.curr_nr())?;
    pool.free(cpu, pool.alloc(cpu, GFP_ATOMIC)?);
    telling.expect("after an alloc that the backing served", 2, pool.curr_nr())?;
    *pool.backing().0.lock(cpu) = true;
    let (one, other) = (pool.alloc(cpu, GFP_ATOMIC)?, pool.alloc(cpu, GFP_ATOMIC)?);
    telling.expect("with the backing dry, after two more", 0, pool.curr_nr())?;
    let third = pool.alloc(cpu, GFP_ATOMIC);
    telling.expect("GFP_ATOMIC then", "NULL", if third.is_err() { "NULL" } else { "an element" })?;
    *shared.slot() = Some(pool.clone());
    shared.empty.complete(cpu);
    sleep(cpu, KEPT)?;
    pool.free(cpu, one);
    shared.done.wait_timeout(cpu, 60 * SECOND)?;
    shared.slot().take();
    if telling.makes("elements-out") {
        let Some(pool) = Arc::into_inner(pool) else { return Ok(()) };
        pool.destroy(cpu);
        drop(other);
        return Ok(());
    }
    pool.free(cpu, other);
    telling.expect("all back", 2, pool.curr_nr())?;
    // Nobody ever needs this one.
    let idle = mempool_create_kmalloc_pool(cpu, 8, BYTES)?;
    idle.free(cpu, idle.alloc(cpu, GFP_KERNEL)?);
    Ok(())
}

fn waits(telling: &Telling<'_, '_>, shared: &Shared) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    shared.empty.wait_timeout(cpu, 60 * SECOND)?;
    let pool = shared.slot().clone();
    let got = pool.as_ref().map(|pool| pool.alloc(cpu, GFP_KERNEL)).transpose()?;
    telling.expect("GFP_KERNEL on the empty pool", "sleeps until the free", seen(got.as_ref()))?;
    if let Some(pool) = &pool {
        pool.free(cpu, got);
    }
    drop(pool);
    shared.done.complete(cpu);
    Ok(())
}

fn seen(got: Option<&KBuf>) -> &'static str {
    if got.is_some() { "sleeps until the free" } else { "NULL" }
}
