//! Who holds a driver's lock, since where, and from which contexts it was ever taken.
//!
//! The second is what lockdep keeps of a lock's class: a lock that a handler takes (`IN-HARDIRQ-W`) and that is also
//! taken with interrupts on (`HARDIRQ-ON-W`) deadlocks when the handler comes at the wrong moment, whether or not it did
//! so in this run; softirqs alike. It is told once a lock. Mirrors kernel/locking/lockdep.c. Left out: classes of several
//! locks, the order in which different locks are taken.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use thiserror::Error;

use crate::cpu::Cpu;
use crate::finding::FindingKind;
use crate::kernel::Kernel;
use crate::site::{Owner, Scope, Site};

/// A lock given back by who doesn't hold it; Linux's texts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BadUnlock {
    /// Nobody holds it.
    #[error("BUG: {lock} already unlocked on CPU#{cpu}")]
    Free {
        /// `spinlock` or `mutex`.
        lock: &'static str,
        /// Who gave it back.
        cpu: u32,
    },
    /// Another CPU or task holds it.
    #[error("BUG: {lock} wrong owner on CPU#{cpu}, owner CPU#{owner}")]
    WrongOwner {
        /// `spinlock` or `mutex`.
        lock: &'static str,
        /// Who gave it back.
        cpu: u32,
        /// Who holds it.
        owner: u32,
    },
}

impl BadUnlock {
    /// The kernel option under which Linux says so.
    pub fn config(&self) -> &'static str {
        let (Self::Free { lock, .. } | Self::WrongOwner { lock, .. }) = self;
        if *lock == super::SPINLOCK { "CONFIG_DEBUG_SPINLOCK" } else { "CONFIG_DEBUG_MUTEXES" }
    }
}

const IN_HARDIRQ: u32 = 1;
const HARDIRQ_ON: u32 = 2;
const IN_SOFTIRQ: u32 = 4;
const SOFTIRQ_ON: u32 = 8;
const TOLD: u32 = 16;

/// An owner, to be changed without a lock.
#[derive(Debug, Default)]
struct Place(AtomicU64);

impl Place {
    fn set(&self, owner: Owner) {
        let packed = u64::from(owner.site.index()) << 32 | u64::from(owner.scope.index());
        self.0.store(packed, Ordering::Relaxed);
    }

    fn get(&self) -> Owner {
        let packed = self.0.load(Ordering::Relaxed);
        let half = |shift: u32| u32::try_from(packed >> shift & u64::from(u32::MAX)).unwrap_or(0);
        Owner { site: Site::from_index(half(32)), scope: Scope::from_index(half(0)) }
    }
}

/// Who holds a driver's lock, and since which line; the kernel's leak check looks at it.
#[derive(Debug, Default)]
pub(crate) struct Holder {
    /// The holder's task in the upper half, its CPU's number + 1 in the lower; 0 = free.
    who: AtomicU64,
    since: Place,
    /// The line that should have taken it is [`removed`](crate::removed): it goes in without.
    #[cfg(lowzone_mutants)]
    bare: std::sync::atomic::AtomicBool,
    /// The kernel's life in which the leak check learnt of this lock.
    booked: AtomicU64,
    /// From where it was taken in that life.
    usage: AtomicU32,
    /// The first time in an interrupt of either kind, and the first time where one could come.
    inside: Place,
    outside: Place,
}

fn name(cpu: &Cpu<'_>) -> u64 {
    u64::from(cpu.task()) << 32 | u64::from(cpu.id() + 1)
}

impl Holder {
    pub(super) fn set(&self, cpu: &Cpu<'_>, owner: Owner) {
        self.who.store(name(cpu), Ordering::Relaxed);
        self.since.set(owner);
    }

    /// Whether it went in without taking the lock.
    #[cfg(lowzone_mutants)]
    pub(super) fn is_bare(&self) -> bool {
        self.bare.load(Ordering::Relaxed)
    }

    #[cfg(lowzone_mutants)]
    pub(super) fn set_bare(&self, bare: bool) {
        self.bare.store(bare, Ordering::Relaxed);
    }

    pub(super) fn clear(&self) {
        self.who.store(0, Ordering::Relaxed);
    }

    /// Where it was taken.
    pub(super) fn since(&self) -> Owner {
        self.since.get()
    }

    fn cpu(&self) -> Option<u32> {
        u32::try_from(self.who.load(Ordering::Relaxed) & u64::from(u32::MAX)).ok()?.checked_sub(1)
    }

    /// Whether this CPU holds it, in whichever task.
    pub(super) fn is_of_cpu(&self, cpu: &Cpu<'_>) -> bool {
        self.cpu() == Some(cpu.id())
    }

    /// Whether this task holds it.
    pub(super) fn is_task(&self, cpu: &Cpu<'_>) -> bool {
        self.who.load(Ordering::Relaxed) == name(cpu)
    }

    /// The CPU that holds the lock and since where, if one does.
    pub(crate) fn held(&self) -> Option<(u32, Owner)> {
        Some((self.cpu()?, self.since()))
    }

    /// Whether this life of a kernel sees the lock for the first time.
    pub(super) fn is_new_to(&self, kernel: &Kernel) -> bool {
        let life = kernel.life();
        if self.booked.load(Ordering::Relaxed) == life {
            return false;
        }
        self.booked.store(life, Ordering::Relaxed);
        self.usage.store(0, Ordering::Relaxed);
        true
    }

    /// Notes from where the lock is taken, before the lock itself counts there.
    pub(super) fn learn(&self, cpu: &Cpu<'_>, owner: Owner) {
        let mut from = 0;
        if cpu.in_hardirq() {
            from |= IN_HARDIRQ;
        } else if cpu.in_serving_softirq() {
            from |= IN_SOFTIRQ;
        }
        if !cpu.irqs_disabled() {
            from |= if cpu.in_softirq() { HARDIRQ_ON } else { HARDIRQ_ON | SOFTIRQ_ON };
        }
        let known = self.usage.load(Ordering::Relaxed);
        if known & from != from {
            self.learn_more(cpu, owner, from, known);
        }
    }

    #[cold]
    fn learn_more(&self, cpu: &Cpu<'_>, owner: Owner, from: u32, known: u32) {
        const INSIDE: u32 = IN_HARDIRQ | IN_SOFTIRQ;
        if from & INSIDE != 0 && known & INSIDE == 0 {
            self.inside.set(owner);
        }
        if from & !INSIDE != 0 && known & !INSIDE == 0 {
            self.outside.set(owner);
        }
        let usage = self.usage.fetch_or(from, Ordering::Relaxed) | from;
        let clash = [(IN_HARDIRQ | HARDIRQ_ON, "HARDIRQ"), (IN_SOFTIRQ | SOFTIRQ_ON, "SOFTIRQ")];
        let Some((_, irq)) = clash.into_iter().find(|(both, _)| usage & both == *both) else { return };
        if self.usage.fetch_or(TOLD, Ordering::Relaxed) & TOLD == 0 {
            let sites = vec![("taken in it at", self.inside.get()), ("taken with it on at", self.outside.get())];
            cpu.emit(FindingKind::InconsistentLock { irq }, None, sites);
        }
    }
}
