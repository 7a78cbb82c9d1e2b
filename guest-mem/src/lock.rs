//! Locks: the driver's `SpinLock` and `Mutex`, and the lab's own `Locked`.
//!
//! Driver entry points take `&self`, so shared state sits in these. [`SpinLock::lock_irqsave`] masks delivery on this
//! CPU; plain [`SpinLock::lock`] doesn't, and a handler that then takes the same lock deadlocks, as on hardware: that
//! is reported and the CPU halted. A contended lock parks, which in a deterministic world is what spinning is.
//!
//! `Locked` guards the kernel's own tables. It is held for a few instructions and never at a point: a thread-local
//! count proves it. Neighbours: `cpu`, `env`. Left out: reader-writer locks, lockdep's order graph.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError, TryLockError};

use crate::cpu::{Cpu, Halt};
use crate::env::{Class, Key, Wake};
use crate::finding::FindingKind;
use crate::site::{Owner, Scope, Site};

thread_local! {
    static HELD: Cell<u32> = const { Cell::new(0) };
}

/// How many of the lab's own locks this thread holds.
pub fn held() -> u32 {
    HELD.with(Cell::get)
}

/// A lock of the lab's own, over a table of the kernel.
#[derive(Debug, Default)]
pub struct Locked<T>(StdMutex<T>);

impl<T> Locked<T> {
    /// Wraps a value.
    pub const fn new(value: T) -> Self {
        Self(StdMutex::new(value))
    }

    /// Takes the lock; never at a point, never for long.
    pub fn lock(&self) -> LockedGuard<'_, T> {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        HELD.with(|held| held.set(held.get() + 1));
        LockedGuard(guard)
    }
}

/// Access to a [`Locked`] value.
pub struct LockedGuard<'a, T>(MutexGuard<'a, T>);

impl<T> Deref for LockedGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for LockedGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> Drop for LockedGuard<'_, T> {
    fn drop(&mut self) {
        HELD.with(|held| held.set(held.get().saturating_sub(1)));
    }
}

/// The name of a spinlock in findings.
pub(crate) const SPINLOCK: &str = "spinlock";
/// The name of a mutex in findings.
pub(crate) const MUTEX: &str = "mutex";

/// Who holds a driver's lock, and since which line; the kernel's leak check looks at it.
#[derive(Debug)]
pub(crate) struct Holder {
    /// The holder's CPU number + 1; 0 = free.
    cpu: AtomicU32,
    site: AtomicU32,
    scope: AtomicU32,
    /// The kernel's life in which the leak check learnt of this lock + 1.
    booked: AtomicU64,
}

impl Holder {
    fn set(&self, cpu: &Cpu<'_>, owner: Owner) {
        self.cpu.store(cpu.id() + 1, Ordering::Relaxed);
        self.site.store(owner.site.index(), Ordering::Relaxed);
        self.scope.store(owner.scope.index(), Ordering::Relaxed);
    }

    fn since(&self) -> Owner {
        Owner {
            site: Site::from_index(self.site.load(Ordering::Relaxed)),
            scope: Scope::from_index(self.scope.load(Ordering::Relaxed)),
        }
    }

    /// The CPU that holds the lock and since where, if one does.
    pub(crate) fn held(&self) -> Option<(u32, Owner)> {
        let cpu = self.cpu.load(Ordering::Relaxed).checked_sub(1)?;
        Some((cpu, self.since()))
    }
}

/// What both driver locks share: the value, who holds it, and who waits.
struct Core<T> {
    value: StdMutex<T>,
    holder: Arc<Holder>,
    waiters: AtomicU32,
    key: Key,
    /// What a finding calls it.
    name: &'static str,
}

impl<T> Core<T> {
    fn new(value: T, name: &'static str) -> Self {
        let zero = || AtomicU32::new(0);
        let holder = Holder { cpu: zero(), site: zero(), scope: zero(), booked: AtomicU64::new(0) };
        Self { value: StdMutex::new(value), holder: Arc::new(holder), waiters: zero(), key: Key::fresh(), name }
    }

    fn try_take(&self) -> Option<MutexGuard<'_, T>> {
        match self.value.try_lock() {
            Ok(guard) => Some(guard),
            // A torn-down CPU poisons what it held; the value itself is whole, since nothing of ours unwinds midway.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn take(&self, cpu: &Cpu<'_>, owner: Owner) -> MutexGuard<'_, T> {
        let _ = cpu.point_for(Class::Lock, 0, owner);
        let guard = loop {
            if let Some(guard) = self.try_take() {
                break guard;
            }
            if self.holder.cpu.load(Ordering::Relaxed) == cpu.id() + 1 {
                let sites = vec![("taken again at", owner), ("held since", self.holder.since())];
                cpu.emit(FindingKind::SelfDeadlock { lock: self.name, cpu: cpu.id() }, None, sites);
                cpu.halt(Halt::SelfDeadlock);
            }
            // Sequentially consistent, as the look at it in `release`: either sees the other, so no wake-up is lost.
            self.waiters.fetch_add(1, Ordering::SeqCst);
            let ticket = cpu.prepare(self.key);
            let free = self.try_take();
            if free.is_some() {
                cpu.cancel(ticket);
            }
            let wake = if free.is_some() { Wake::Woken } else { cpu.park(ticket, None) };
            self.waiters.fetch_sub(1, Ordering::SeqCst);
            match (free, wake) {
                (Some(guard), _) => break guard,
                (None, Wake::Dying) => match self.try_take() {
                    Some(guard) => break guard,
                    None => cpu.halt(Halt::Dying),
                },
                (None, _) => {}
            }
        };
        self.holder.set(cpu, owner);
        // Once for each life of the machine: only the first time costs more than a compare.
        let life = cpu.kernel().life();
        if self.holder.booked.load(Ordering::Relaxed) != life {
            self.holder.booked.store(life, Ordering::Relaxed);
            cpu.kernel().book_lock(&self.holder);
        }
        guard
    }

    /// Forgets the holder while it still holds: after that the next one may have written its name.
    fn release(&self, cpu: &Cpu<'_>, guard: Option<MutexGuard<'_, T>>) {
        self.holder.cpu.store(0, Ordering::Relaxed);
        drop(guard);
        if self.waiters.load(Ordering::SeqCst) > 0 {
            cpu.wake(self.key, 1);
        }
    }
}

/// A spinlock: its holder may not sleep. Any context.
pub struct SpinLock<T>(Core<T>);

impl<T> SpinLock<T> {
    /// Wraps a value (`spin_lock_init`).
    pub fn new(value: T) -> Self {
        Self(Core::new(value, SPINLOCK))
    }

    /// Takes the lock; interrupts stay as they are (`spin_lock`).
    #[track_caller]
    pub fn lock<'a, 'w>(&'a self, cpu: &'a Cpu<'w>) -> SpinGuard<'a, 'w, T> {
        self.take(cpu, cpu.owner(), false)
    }

    /// Takes the lock with interrupts off on this CPU (`spin_lock_irqsave`).
    #[track_caller]
    pub fn lock_irqsave<'a, 'w>(&'a self, cpu: &'a Cpu<'w>) -> SpinGuard<'a, 'w, T> {
        self.take(cpu, cpu.owner(), true)
    }

    fn take<'a, 'w>(&'a self, cpu: &'a Cpu<'w>, owner: Owner, irqsave: bool) -> SpinGuard<'a, 'w, T> {
        // Interrupts go off before the lock is taken: an interrupt in between would find it held.
        let off = irqsave.then(|| cpu.irqs_off_for(owner));
        let guard = self.0.take(cpu, owner);
        cpu.lock_taken(owner, irqsave);
        drop(off);
        SpinGuard { guard: Some(guard), core: &self.0, cpu, irqsave }
    }
}

/// Access to a [`SpinLock`]'s value; the lock is given back when this drops.
#[must_use = "the lock is given back when this is dropped"]
pub struct SpinGuard<'a, 'w, T> {
    guard: Option<MutexGuard<'a, T>>,
    core: &'a Core<T>,
    cpu: &'a Cpu<'w>,
    irqsave: bool,
}

/// A sleeping lock: its holder may sleep. Process context only.
pub struct Mutex<T>(Core<T>);

impl<T> Mutex<T> {
    /// Wraps a value (`mutex_init`).
    pub fn new(value: T) -> Self {
        Self(Core::new(value, MUTEX))
    }

    /// Takes the lock, sleeping while another holds it (`mutex_lock`).
    #[track_caller]
    pub fn lock<'a, 'w>(&'a self, cpu: &'a Cpu<'w>) -> MutexLocked<'a, 'w, T> {
        cpu.might_sleep("mutex_lock");
        let guard = self.0.take(cpu, cpu.owner());
        MutexLocked { guard: Some(guard), core: &self.0, cpu }
    }
}

/// Access to a [`Mutex`]'s value.
#[must_use = "the mutex is given back when this is dropped"]
pub struct MutexLocked<'a, 'w, T> {
    guard: Option<MutexGuard<'a, T>>,
    core: &'a Core<T>,
    cpu: &'a Cpu<'w>,
}

/// The guards hold their `MutexGuard` until they drop, so `Deref` always finds it.
macro_rules! guard_access {
    ($guard:ident) => {
        impl<T> Deref for $guard<'_, '_, T> {
            type Target = T;
            fn deref(&self) -> &T {
                match &self.guard {
                    Some(guard) => guard,
                    None => self.cpu.halt(Halt::Dying),
                }
            }
        }

        impl<T> DerefMut for $guard<'_, '_, T> {
            fn deref_mut(&mut self) -> &mut T {
                match &mut self.guard {
                    Some(guard) => guard,
                    None => self.cpu.halt(Halt::Dying),
                }
            }
        }
    };
}
guard_access!(SpinGuard);
guard_access!(MutexLocked);

impl<T> Drop for SpinGuard<'_, '_, T> {
    fn drop(&mut self) {
        self.core.release(self.cpu, self.guard.take());
        self.cpu.lock_dropped(self.irqsave);
    }
}

impl<T> Drop for MutexLocked<'_, '_, T> {
    fn drop(&mut self) {
        self.core.release(self.cpu, self.guard.take());
    }
}

#[cfg(test)]
mod tests;
