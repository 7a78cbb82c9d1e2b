//! `mempool`: a reserve of elements for callers that must make progress when memory is short.
//!
//! [`Mempool::alloc`] asks the backing allocator first, without sleeping, then takes the last element of the reserve,
//! then asks again with the caller's whole mask, then sleeps until an element is freed, and asks again after 5 s at the
//! latest: with a mask that may sleep it never fails. A freed element fills the reserve first. What the reserve costs
//! and whether it was ever needed is booked in a [`PoolBook`], since a pool that is never dipped into is waste.
//!
//! Mirrors mm/mempool.c of 6.1. Neighbours: `backing` (slab objects, pages, a driver's own), `wait`, `kbuf`. Left out:
//! poison of idle elements; NUMA nodes. Its own header and array are kmalloc objects, as in Linux.

use std::sync::Arc;

use thiserror::Error;

use crate::cpu::Cpu;
use crate::env::{Class, Key, Wake};
use crate::finding::{Finding, FindingKind};
use crate::gfp::{__GFP_NOMEMALLOC, __GFP_NORETRY, __GFP_NOWARN, GFP_KERNEL, Gfp};
use crate::kbuf::KBuf;
use crate::kernel::KernelRef;
use crate::lock::Locked;

mod backing;
mod book;
#[cfg(test)]
mod property;
#[cfg(test)]
mod tests;

pub use backing::{
    Backing, Kmalloc, PageBlocks, SlabObjects, mempool_create_kmalloc_pool, mempool_create_page_pool,
    mempool_create_slab_pool,
};
pub use book::{PoolBook, PoolUse, Verdict};
/// How long a waiter sleeps before it asks the backing allocator again: 5 s, in nanoseconds.
pub const RETRY_NS: u64 = 5_000_000_000;
/// `sizeof(mempool_t)`.
const HEADER: usize = 72;
/// What each attempt adds to the caller's mask.
const ADDED: Gfp = __GFP_NOMEMALLOC.union(__GFP_NORETRY).union(__GFP_NOWARN);

/// Why a pool did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MempoolError {
    /// The pool could not be made: no memory for it or for its `have + 1`st element (NULL, or -ENOMEM).
    #[error("no memory for a pool of {min_nr} elements, {have} were had")]
    Create {
        /// Elements wanted.
        min_nr: usize,
        /// Elements had before the first failure.
        have: usize,
    },
    /// The reserve is empty and the mask doesn't allow to wait for more (NULL).
    #[error("the pool is empty and {gfp} may not sleep")]
    Empty {
        /// The caller's mask.
        gfp: Gfp,
    },
    /// The array for a larger reserve could not be had (-ENOMEM); the pool is as before.
    #[error("no memory for an array of {min_nr} elements")]
    Resize {
        /// Elements wanted.
        min_nr: usize,
    },
    /// A resize to nothing, which is `BUG_ON` in Linux; the pool is as before.
    #[error("a pool can't be resized to 0 elements")]
    Zero,
    /// The CPU is being torn down.
    #[error("the CPU is being torn down")]
    Dying,
}

/// The elements in reserve, last in first out, and how many there should be.
struct Reserve<E> {
    elements: Vec<E>,
    min_nr: usize,
    /// The array of pointers, as memory: grows with `min_nr`.
    array: KBuf,
}

/// A pool of elements of one backing allocator (`mempool_t`).
///
/// ```
/// use lowzone_guest_mem::Cpu;
/// use lowzone_guest_mem::gfp::GFP_ATOMIC;
/// use lowzone_guest_mem::mempool::{MempoolError, mempool_create_kmalloc_pool};
///
/// fn never_without(cpu: &Cpu<'_>) -> Result<(), MempoolError> {
///     let pool = mempool_create_kmalloc_pool(cpu, 4, 128)?;
///     let element = pool.alloc(cpu, GFP_ATOMIC)?;
///     assert_eq!((element.len(), pool.curr_nr()), (128, 4), "kmalloc had memory: the reserve is whole");
///     pool.free(cpu, element);
///     Ok(())
/// }
/// ```
#[must_use = "the pool is destroyed when this is dropped"]
pub struct Mempool<B: Backing> {
    kernel: KernelRef,
    backing: B,
    reserve: Locked<Reserve<B::Element>>,
    waiters: Key,
    book: Arc<PoolBook>,
    _header: KBuf,
}

/// Creates a pool with `min_nr` elements in reserve (`mempool_create`); 0 is legal. Process context only.
///
/// # Errors
/// [`MempoolError::Create`]; what was had is given back.
#[track_caller]
pub fn mempool_create<B: Backing>(cpu: &Cpu<'_>, min_nr: usize, backing: B) -> Result<Mempool<B>, MempoolError> {
    cpu.might_sleep("mempool_create");
    let none = |have| MempoolError::Create { min_nr, have };
    // Closures would hide the caller.
    let Ok(header) = KBuf::kmalloc(cpu, HEADER, GFP_KERNEL) else { return Err(none(0)) };
    let Ok(array) = KBuf::kmalloc(cpu, min_nr.saturating_mul(8), GFP_KERNEL) else { return Err(none(0)) };
    let mut elements = Vec::with_capacity(min_nr);
    while elements.len() < min_nr {
        let Ok(element) = backing.alloc(cpu, GFP_KERNEL) else { return Err(none(elements.len())) };
        elements.push(element);
    }
    let book = Arc::new(PoolBook::new(backing.kind(), backing.bytes(), min_nr, cpu.owner()));
    cpu.kernel().mempools.lock().push(book.clone());
    Ok(Mempool {
        kernel: cpu.kernel_ref(),
        backing,
        reserve: Locked::new(Reserve { elements, min_nr, array }),
        waiters: Key::fresh(),
        book,
        _header: header,
    })
}

impl<B: Backing> Mempool<B> {
    /// Allocates an element (`mempool_alloc`). With a mask that may sleep it never fails, and process context only.
    ///
    /// # Errors
    /// [`MempoolError::Empty`] with a mask that can't sleep, [`MempoolError::Dying`] at teardown.
    #[track_caller]
    pub fn alloc(&self, cpu: &Cpu<'_>, gfp: Gfp) -> Result<B::Element, MempoolError> {
        if gfp.contains(Gfp::ZERO) {
            cpu.emit(FindingKind::MempoolZero, None, vec![("allocated at", cpu.owner())]);
        }
        if gfp.may_sleep() {
            cpu.might_sleep("mempool_alloc");
        }
        let whole = gfp | ADDED;
        let mut mask = whole - (Gfp::DIRECT_RECLAIM | Gfp::IO);
        loop {
            if let Ok(element) = self.backing.alloc(cpu, mask) {
                self.book.given(gfp, false);
                return Ok(element);
            }
            // Before the look at the reserve, so that a free in between is not missed.
            let waits = mask == whole && gfp.may_sleep();
            if waits {
                let _ = cpu.point(Class::Wait, altered!(RETRY_NS));
            }
            let ticket = waits.then(|| cpu.prepare(self.waiters));
            if let Some(element) = self.pop() {
                if let Some(ticket) = ticket {
                    cpu.cancel(ticket);
                }
                cpu.mb();
                self.book.given(gfp, true);
                return Ok(element);
            }
            match ticket {
                None if mask != whole => mask = whole,
                None => {
                    self.book.refused();
                    return Err(MempoolError::Empty { gfp });
                }
                Some(ticket) => {
                    self.book.waited();
                    if cpu.park(ticket, Some(cpu.now().saturating_add(altered!(RETRY_NS)))) == Wake::Dying {
                        return Err(MempoolError::Dying);
                    }
                }
            }
        }
    }

    fn pop(&self) -> Option<B::Element> {
        let mut reserve = self.reserve.lock();
        let element = reserve.elements.pop()?;
        self.book.left(reserve.elements.len());
        Some(element)
    }

    /// Gives an element back (`mempool_free`): to the reserve while it is short, else to the backing allocator. Any
    /// context. `None` is NULL and nothing is done. An element that is dropped instead goes to the backing allocator, and
    /// the reserve stays short.
    #[track_caller]
    pub fn free(&self, cpu: &Cpu<'_>, element: impl Into<Option<B::Element>>) {
        let Some(element) = element.into() else { return };
        cpu.rmb();
        let _ = cpu.point(Class::Release, self.backing.bytes());
        self.book.returned();
        if self.put(element).is_ok() {
            cpu.wake(self.waiters, 1);
        }
    }

    /// Adds an element to the reserve, or gives it back if that is full.
    fn put(&self, element: B::Element) -> Result<(), B::Element> {
        let mut reserve = self.reserve.lock();
        if reserve.elements.len() >= reserve.min_nr {
            return Err(element);
        }
        reserve.elements.push(element);
        Ok(())
    }

    /// Changes how many elements are kept (`mempool_resize`). Process context only.
    ///
    /// A larger reserve is filled at once as far as memory allows; later frees do the rest.
    ///
    /// # Errors
    /// [`MempoolError::Resize`] without memory for the array, [`MempoolError::Zero`] for 0.
    #[track_caller]
    pub fn resize(&self, cpu: &Cpu<'_>, min_nr: usize) -> Result<(), MempoolError> {
        if min_nr == 0 {
            cpu.emit(FindingKind::MempoolResizeZero, None, vec![("resized at", cpu.owner())]);
            return Err(MempoolError::Zero);
        }
        cpu.might_sleep("mempool_resize");
        if min_nr <= self.min_nr() {
            let surplus = {
                let mut reserve = self.reserve.lock();
                reserve.min_nr = min_nr;
                let keep = reserve.elements.len().min(min_nr);
                reserve.elements.split_off(keep)
            };
            self.book.resized(min_nr);
            // The last one first, as Linux frees them.
            surplus.into_iter().rev().for_each(drop);
            return Ok(());
        }
        let Ok(array) = KBuf::kmalloc(cpu, min_nr * 8, GFP_KERNEL) else {
            return Err(MempoolError::Resize { min_nr });
        };
        let old = {
            let mut reserve = self.reserve.lock();
            reserve.min_nr = min_nr;
            std::mem::replace(&mut reserve.array, array)
        };
        drop(old);
        self.book.resized(min_nr);
        while self.curr_nr() < self.min_nr() {
            let Ok(element) = self.backing.alloc(cpu, GFP_KERNEL) else { break };
            if self.put(element).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Frees the reserve and the pool (`mempool_destroy`). Linux does not look for elements that are still out; the lab
    /// reports them. Any context.
    #[track_caller]
    pub fn destroy(self, cpu: &Cpu<'_>) {
        self.book.destroyed_at(cpu.owner());
    }

    /// Elements in reserve.
    pub fn curr_nr(&self) -> usize {
        self.reserve.lock().elements.len()
    }

    /// Elements that there should be in reserve.
    pub fn min_nr(&self) -> usize {
        self.reserve.lock().min_nr
    }

    /// The backing allocator.
    pub fn backing(&self) -> &B {
        &self.backing
    }

    /// What it cost and gave so far.
    pub fn usage(&self) -> PoolUse {
        self.book.usage()
    }
}

impl<B: Backing> Drop for Mempool<B> {
    fn drop(&mut self) {
        let (out, sites) = self.book.close();
        let Some(kernel) = self.kernel.get() else { return };
        // The last one first, as Linux frees them.
        let elements = std::mem::take(&mut self.reserve.lock().elements);
        elements.into_iter().rev().for_each(drop);
        if out > 0 {
            let kind = FindingKind::MempoolBusy { out, bytes: out * self.backing.bytes() };
            kernel.report(Finding { kind, device: None, at: kernel.clock(), sites });
        }
    }
}
