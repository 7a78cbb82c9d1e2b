//! Locks: the driver's `SpinLock` and `Mutex`, and the lab's own `Locked`.
//!
//! Driver entry points take `&self`, so shared state sits in these. [`SpinLock::lock_irqsave`] masks delivery on this
//! CPU; plain [`SpinLock::lock`] doesn't, and a handler that then takes the same lock deadlocks, as on hardware: that
//! is reported and the CPU halted. A contended lock parks, which in a deterministic world is what spinning is.
//!
//! A spinlock also learns where it is taken, as lockdep does: one that an interrupt takes, and that is taken elsewhere
//! where this interrupt could come, is reported though it never deadlocked (`holder`).
//!
//! `Locked` guards the kernel's own tables. It is held for a few instructions and never at a point: a thread-local
//! count proves it. Neighbours: `cpu`, `env`. Left out: reader-writer locks, lockdep's order graph.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError, TryLockError};

use crate::cpu::{Cpu, Halt, Off};
use crate::env::{Class, Key, Wake};
use crate::finding::FindingKind;
use crate::removed;
use crate::site::Owner;

mod holder;
pub mod misuse;

pub use holder::BadUnlock;
pub(crate) use holder::Holder;

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
    #[inline]
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

/// Points that whoever has no lock passes inside.
#[cfg(lowzone_mutants)]
const STALL: u32 = 64;

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
        let (holder, waiters) = (Arc::new(Holder::default()), AtomicU32::new(0));
        Self { value: StdMutex::new(value), holder, waiters, key: Key::fresh(), name }
    }

    #[inline]
    fn try_take(&self) -> Option<MutexGuard<'_, T>> {
        match self.value.try_lock() {
            Ok(guard) => Some(guard),
            // A torn-down CPU poisons what it held; the value itself is whole, since nothing of ours unwinds midway.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    #[inline]
    fn take(&self, cpu: &Cpu<'_>, owner: Owner, bare: bool) -> MutexGuard<'_, T> {
        let _ = cpu.point_for(Class::Lock, 0, owner);
        let guard = self.try_take().unwrap_or_else(|| {
            self.race(cpu, owner, bare);
            self.take_held(cpu, owner)
        });
        self.taken(cpu, owner, bare);
        if bare {
            self.stall(cpu, owner);
        }
        guard
    }

    /// Whoever went in without the lock stays for a while, so that others may come: what KCSAN's watchpoints do
    /// (`kcsan_setup_watchpoint`, `udelay_task`).
    #[cfg(lowzone_mutants)]
    #[cold]
    fn stall(&self, cpu: &Cpu<'_>, owner: Owner) {
        for _ in 0..STALL {
            let _ = cpu.point_for(Class::Lock, 0, owner);
        }
    }

    #[cfg(not(lowzone_mutants))]
    fn stall(&self, _: &Cpu<'_>, _: Owner) {}

    /// Two are inside at once, since one of them went in without the lock: reported, and then it is waited for all the
    /// same, as Rust gives the value to one.
    #[cfg(lowzone_mutants)]
    #[cold]
    fn race(&self, cpu: &Cpu<'_>, owner: Owner, bare: bool) {
        if bare || self.holder.is_bare() {
            let sites = vec![("entered at", owner), ("inside since", self.holder.since())];
            cpu.emit(FindingKind::DataRace { lock: self.name }, None, sites);
        }
    }

    #[cfg(not(lowzone_mutants))]
    fn race(&self, _: &Cpu<'_>, _: Owner, _: bool) {}

    /// Whether it is held by whoever now waits for it, who would wait for ever.
    fn is_own(&self, cpu: &Cpu<'_>) -> bool {
        #[cfg(lowzone_mutants)]
        if self.holder.is_bare() {
            return self.holder.is_task(cpu);
        }
        // A spinlock's holder keeps its CPU; a mutex may be held by a task that sleeps.
        if self.name == SPINLOCK { self.holder.is_of_cpu(cpu) } else { self.holder.is_task(cpu) }
    }

    /// Waits for a lock that somebody holds.
    #[cold]
    fn take_held(&self, cpu: &Cpu<'_>, owner: Owner) -> MutexGuard<'_, T> {
        loop {
            if self.is_own(cpu) {
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
            match (free.or_else(|| self.try_take()), wake) {
                (Some(guard), _) => return guard,
                (None, Wake::Dying) => cpu.halt(Halt::Dying),
                (None, _) => {}
            }
        }
    }

    /// Takes the lock if it is free.
    fn try_lock(&self, cpu: &Cpu<'_>, owner: Owner) -> Option<MutexGuard<'_, T>> {
        let _ = cpu.point_for(Class::Lock, 0, owner);
        let guard = self.try_take()?;
        self.taken(cpu, owner, false);
        Some(guard)
    }

    /// Names the holder; once for each life of the machine the leak check learns of the lock.
    #[inline]
    fn taken(&self, cpu: &Cpu<'_>, owner: Owner, bare: bool) {
        self.holder.set(cpu, owner);
        #[cfg(lowzone_mutants)]
        self.holder.set_bare(bare);
        if let Some(weak) = cpu.kernel().weak().filter(|_| !bare) {
            weak.lock().lock_taken(cpu.kernel().ram(), cpu.id());
        }
        if self.holder.is_new_to(cpu.kernel()) {
            cpu.kernel().book_lock(&self.holder);
        }
    }

    /// Forgets the holder while it still holds: after that the next one may have written its name.
    #[inline]
    fn release(&self, cpu: &Cpu<'_>, guard: Option<MutexGuard<'_, T>>) {
        self.holder.clear();
        drop(guard);
        if self.waiters.load(Ordering::SeqCst) > 0 {
            cpu.wake(self.key, 1);
        }
    }
}

/// What the caller's lock keeps off; `None` if there is no lock.
#[track_caller]
#[inline]
fn present(off: Off) -> Option<Off> {
    (!removed::here()).then_some(off)
}

/// A spinlock: its holder may not sleep. Any context.
pub struct SpinLock<T>(Core<T>);

impl<T> SpinLock<T> {
    /// Wraps a value (`spin_lock_init`).
    pub fn new(value: T) -> Self {
        Self(Core::new(value, SPINLOCK))
    }

    /// Takes the lock; interrupts stay as they are (`spin_lock`). Any context.
    #[track_caller]
    pub fn lock<'a, 'w>(&'a self, cpu: &'a Cpu<'w>) -> SpinGuard<'a, 'w, T> {
        self.take(cpu, cpu.owner(), present(Off::Nothing))
    }

    /// Takes the lock with softirqs off on this CPU (`spin_lock_bh`). Not in hardirq.
    ///
    /// What was raised meanwhile runs at the CPU's next point after the lock was given back.
    #[track_caller]
    pub fn lock_bh<'a, 'w>(&'a self, cpu: &'a Cpu<'w>) -> SpinGuard<'a, 'w, T> {
        cpu.wrong_context(cpu.irqs_disabled(), "spin_lock_bh", Some("CONFIG_TRACE_IRQFLAGS"));
        self.take(cpu, cpu.owner(), present(Off::Softirqs))
    }

    /// Takes the lock with interrupts off on this CPU (`spin_lock_irqsave`). Any context.
    #[track_caller]
    pub fn lock_irqsave<'a, 'w>(&'a self, cpu: &'a Cpu<'w>) -> SpinGuard<'a, 'w, T> {
        self.take(cpu, cpu.owner(), present(Off::Interrupts))
    }

    /// Takes the lock if it is free (`spin_trylock`). Any context.
    #[track_caller]
    pub fn try_lock<'a, 'w>(&'a self, cpu: &'a Cpu<'w>) -> Option<SpinGuard<'a, 'w, T>> {
        let owner = cpu.owner();
        let guard = self.0.try_lock(cpu, owner)?;
        cpu.lock_taken(owner, Off::Nothing);
        Some(SpinGuard { guard: Some(guard), core: &self.0, cpu, off: Some(Off::Nothing) })
    }

    #[inline]
    fn take<'a, 'w>(&'a self, cpu: &'a Cpu<'w>, owner: Owner, off: Option<Off>) -> SpinGuard<'a, 'w, T> {
        // They go off before the lock is taken: an interrupt in between would find it held.
        let irqs = (off == Some(Off::Interrupts)).then(|| cpu.irqs_off_for(owner));
        let softirqs = (off == Some(Off::Softirqs)).then(|| cpu.bh_off_for(owner));
        let guard = self.0.take(cpu, owner, off.is_none());
        if let Some(off) = off {
            self.0.holder.learn(cpu, owner);
            cpu.lock_taken(owner, off);
        }
        drop((irqs, softirqs));
        SpinGuard { guard: Some(guard), core: &self.0, cpu, off }
    }
}

/// Access to a [`SpinLock`]'s value; the lock is given back when this drops.
#[must_use = "the lock is given back when this is dropped"]
pub struct SpinGuard<'a, 'w, T> {
    guard: Option<MutexGuard<'a, T>>,
    core: &'a Core<T>,
    cpu: &'a Cpu<'w>,
    /// What it keeps off; `None` if it went in without the lock.
    off: Option<Off>,
}

/// A sleeping lock: its holder may sleep. Process context only.
pub struct Mutex<T>(Core<T>);

impl<T> Mutex<T> {
    /// Wraps a value (`mutex_init`).
    pub fn new(value: T) -> Self {
        Self(Core::new(value, MUTEX))
    }

    /// Takes the lock, sleeping while another holds it (`mutex_lock`). Process context.
    #[track_caller]
    pub fn lock<'a, 'w>(&'a self, cpu: &'a Cpu<'w>) -> MutexLocked<'a, 'w, T> {
        let bare = removed::here();
        if !bare {
            cpu.might_sleep("mutex_lock");
        }
        let guard = self.0.take(cpu, cpu.owner(), bare);
        MutexLocked { guard: Some(guard), core: &self.0, cpu }
    }

    /// Takes the lock if it is free (`mutex_trylock`). Not in interrupts, though it never sleeps.
    #[track_caller]
    pub fn try_lock<'a, 'w>(&'a self, cpu: &'a Cpu<'w>) -> Option<MutexLocked<'a, 'w, T>> {
        cpu.wrong_context(cpu.in_interrupt(), "mutex_trylock", None);
        let guard = self.0.try_lock(cpu, cpu.owner())?;
        Some(MutexLocked { guard: Some(guard), core: &self.0, cpu })
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
        if let Some(off) = self.off {
            self.cpu.lock_dropped(off);
        }
    }
}

impl<T> Drop for MutexLocked<'_, '_, T> {
    fn drop(&mut self) {
        self.core.release(self.cpu, self.guard.take());
    }
}

#[cfg(test)]
mod tests;
