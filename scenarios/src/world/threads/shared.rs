//! What all threads of a world share.
//!
//! Neighbours: `cpu_env` and `worker`, which run in it; `watch`, which looks on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lowzone_guest_mem::finding::{Finding, FindingKind};
use lowzone_guest_mem::kernel::KernelRef;

use super::baton::Baton;
use super::bell::Bell;
use super::decider::Decider;
use super::seat::Seat;
use super::waits::Waits;
use crate::wire::{InProc, Stir};

/// CPUs and bells: what the wire stirs.
pub(super) struct Roster {
    /// The CPUs', and behind them those of tasks.
    pub(super) seats: Vec<Seat>,
    /// By CPU.
    pub(super) batons: Vec<Baton>,
    pub(super) bells: Vec<Bell>,
}

impl Roster {
    /// The wire's word that somebody may have something to do.
    pub(super) fn stir(&self, who: Stir) {
        match who {
            Stir::Cpu(id) => {
                if let Some(seat) = self.seats.get(id).filter(|_| id < self.batons.len()) {
                    seat.interrupt();
                }
            }
            Stir::Device(slot) => self.bells.iter().filter(|bell| bell.slot() == slot).for_each(Bell::ring),
        }
    }
}

/// What all threads of a world share.
pub(super) struct Shared {
    pub(super) kernel: KernelRef,
    pub(super) bus: Arc<InProc>,
    pub(super) roster: Arc<Roster>,
    pub(super) waits: Waits,
    pub(super) decider: Decider,
    /// The threads of tasks.
    crew: Mutex<Vec<JoinHandle<()>>>,
    /// Every body has ended: who is idle goes home.
    pub(super) closing: AtomicBool,
    /// Nobody may wait any more.
    pub(super) dying: AtomicBool,
    /// Who waits looks for a while before it sleeps.
    pub(super) looking: AtomicBool,
    /// Points that one CPU may pass.
    pub(super) fuel: AtomicU64,
    begun: Instant,
    /// Somebody ended or went home.
    news: (Mutex<()>, Condvar),
}

impl Shared {
    /// A world whose time begins now.
    pub(super) fn new((kernel, seed): (KernelRef, u64), bus: Arc<InProc>, roster: Arc<Roster>, fuel: u64) -> Self {
        let waits = Waits::new(roster.seats.len());
        Self {
            kernel,
            bus,
            roster,
            waits,
            decider: Decider::new(seed),
            crew: Mutex::default(),
            closing: AtomicBool::new(false),
            dying: AtomicBool::new(false),
            looking: AtomicBool::new(true),
            fuel: AtomicU64::new(fuel),
            begun: Instant::now(),
            news: (Mutex::default(), Condvar::new()),
        }
    }

    /// How many CPUs there are: the seats behind them are tasks'.
    pub(super) fn cpus(&self) -> usize {
        self.roster.batons.len()
    }

    /// The threads of tasks.
    pub(super) fn task_crew(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.crew.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds since the world began.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// [`Shared::now`]; the kernel's own clock is brought up to it, for what has no CPU.
    pub(super) fn clock(&self) -> u64 {
        let now = self.now();
        if let Some(kernel) = self.kernel.get() {
            kernel.advance_clock(now);
        }
        now
    }

    /// Whether somebody wants every record.
    pub(super) fn watched(&self) -> bool {
        self.kernel.get().is_some_and(|kernel| kernel.trace().watched())
    }

    /// Whether nobody may wait any more.
    pub(super) fn dying(&self) -> bool {
        self.dying.load(Ordering::SeqCst)
    }

    /// Whether an idle CPU may go home.
    pub(super) fn over(&self) -> bool {
        self.closing.load(Ordering::SeqCst) || self.dying()
    }

    /// Sends word to every CPU through one of the flags.
    pub(super) fn call(&self, flag: &AtomicBool) {
        flag.store(true, Ordering::SeqCst);
        self.roster.seats.iter().for_each(Seat::rouse);
    }

    /// Reports what has no CPU or call site.
    pub(super) fn report(&self, kind: FindingKind) {
        let Some(kernel) = self.kernel.get() else { return };
        kernel.report(Finding { kind, device: None, at: self.now(), sites: Vec::new() });
    }

    /// When the next timer is due.
    pub(super) fn next_timer(&self) -> Option<u64> {
        self.kernel.get()?.timers().next()
    }

    /// Tells the one who waits for all of them.
    pub(super) fn tell(&self) {
        drop(self.news.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.news.1.notify_all();
    }

    /// Waits until `done`, told by somebody, at most `most`; whether it is.
    pub(super) fn await_news(&self, most: Duration, done: impl Fn() -> bool) -> bool {
        let guard = self.news.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.news.1.wait_timeout_while(guard, most, |()| !done());
        let (_guard, _) = waited.unwrap_or_else(PoisonError::into_inner);
        done()
    }
}
