//! Tasklets: a function that runs once for each time it was scheduled, in softirq context.
//!
//! A tasklet runs on the CPU that scheduled it, never on two CPUs at once; scheduled again before it ran it runs once.
//! [`Tasklet::kill`] waits for the last run. One that is dropped while it is scheduled is memory that a softirq is about
//! to use: a finding. Mirrors kernel/softirq.c. Neighbours: `softirq`. Left out: that a disabled tasklet which is
//! scheduled keeps its CPU busy (here it rests, and runs on the CPU that enables it).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::cpu::Cpu;
use crate::env::Class;
use crate::finding::{Finding, FindingKind};
use crate::kernel::KernelRef;
use crate::lock::Locked;
use crate::site::Owner;
use crate::softirq::Softirq;
use crate::wait::WaitQueue;

/// `TASKLET_STATE_SCHED`
const SCHED: u32 = 1;
/// `TASKLET_STATE_RUN`
const RUN: u32 = 2;

struct Inner {
    function: Box<dyn Fn(&Cpu<'_>) + Send + Sync>,
    state: AtomicU32,
    /// How often it was disabled and not enabled.
    disabled: AtomicU32,
    /// It came to its turn while it was disabled.
    rests: Locked<Option<(Softirq, Owner)>>,
    idle: WaitQueue,
    made: Owner,
}

/// A tasklet on a CPU's list, with who scheduled it.
#[derive(Clone)]
pub(crate) struct Queued {
    inner: Arc<Inner>,
    by: Owner,
}

impl Queued {
    /// Who scheduled it.
    pub(crate) fn owner(&self) -> Owner {
        self.by
    }

    /// Its turn (`tasklet_action_common`).
    pub(crate) fn action(self, cpu: &Cpu<'_>, kind: Softirq) {
        let _ = cpu.point_for(Class::Lock, 0, self.by);
        let inner = &self.inner;
        if inner.state.fetch_or(RUN, Ordering::AcqRel) & RUN != 0 {
            // It runs on another CPU: once more round.
            let again = self.clone();
            return cpu.kernel().softirqs().queue(cpu.id(), kind, again);
        }
        let runs = Runs { inner, cpu };
        {
            let mut rests = inner.rests.lock();
            if inner.disabled.load(Ordering::Acquire) > 0 {
                *rests = Some((kind, self.by));
                return;
            }
        }
        inner.state.fetch_and(!SCHED, Ordering::AcqRel);
        cpu.set_atomic_since(self.by);
        (inner.function)(cpu);
        drop(runs);
    }
}

/// It runs; over when its function returns, and when it unwinds.
struct Runs<'a, 'w> {
    inner: &'a Inner,
    cpu: &'a Cpu<'w>,
}

impl Drop for Runs<'_, '_> {
    fn drop(&mut self) {
        self.inner.state.fetch_and(!RUN, Ordering::AcqRel);
        self.inner.idle.wake_up_all(self.cpu);
    }
}

/// A tasklet (`struct tasklet_struct`); to be killed before it drops.
///
/// ```
/// # use lowzone_guest_mem::Cpu;
/// use lowzone_guest_mem::tasklet::Tasklet;
///
/// fn once(cpu: &Cpu<'_>) {
///     let tasklet = Tasklet::new(cpu, |cpu| assert!(cpu.in_serving_softirq()));
///     assert!(tasklet.schedule(cpu) && !tasklet.schedule(cpu), "scheduled twice, it runs once");
///     tasklet.kill(cpu);
/// }
/// ```
pub struct Tasklet {
    kernel: KernelRef,
    inner: Arc<Inner>,
    /// Somebody waited for its end and was torn down.
    abandoned: AtomicBool,
}

impl Tasklet {
    /// A tasklet that runs `function` (`tasklet_setup`). Any context.
    #[track_caller]
    pub fn new(cpu: &Cpu<'_>, function: impl Fn(&Cpu<'_>) + Send + Sync + 'static) -> Self {
        let inner = Inner {
            function: Box::new(function),
            state: AtomicU32::new(0),
            disabled: AtomicU32::new(0),
            rests: Locked::default(),
            idle: WaitQueue::new(),
            made: cpu.owner(),
        };
        Self { kernel: cpu.kernel_ref(), inner: Arc::new(inner), abandoned: AtomicBool::new(false) }
    }

    /// Has it run on this CPU; `false` if it was to run anyway (`tasklet_schedule`). Any context.
    #[track_caller]
    pub fn schedule(&self, cpu: &Cpu<'_>) -> bool {
        self.schedule_as(cpu, Softirq::Tasklet, cpu.owner())
    }

    /// [`Tasklet::schedule`], before timers and other tasklets (`tasklet_hi_schedule`). Any context.
    #[track_caller]
    pub fn hi_schedule(&self, cpu: &Cpu<'_>) -> bool {
        self.schedule_as(cpu, Softirq::Hi, cpu.owner())
    }

    fn schedule_as(&self, cpu: &Cpu<'_>, kind: Softirq, by: Owner) -> bool {
        let Some(kernel) = self.kernel.get() else {
            cpu.stale("tasklet");
            return false;
        };
        let fresh = self.inner.state.fetch_or(SCHED, Ordering::AcqRel) & SCHED == 0;
        if fresh {
            kernel.softirqs().queue(cpu.id(), kind, Queued { inner: self.inner.clone(), by });
        }
        fresh
    }

    /// Keeps it from running and waits until it doesn't (`tasklet_disable`). Process context.
    #[track_caller]
    pub fn disable(&self, cpu: &Cpu<'_>) {
        cpu.might_sleep("tasklet_disable");
        self.disable_nosync();
        self.wait(cpu, RUN);
    }

    /// Keeps it from running from the next turn on (`tasklet_disable_nosync`). Any context.
    pub fn disable_nosync(&self) {
        self.inner.disabled.fetch_add(1, Ordering::AcqRel);
    }

    /// Takes one `disable` back (`tasklet_enable`). Any context.
    pub fn enable(&self, cpu: &Cpu<'_>) {
        let rested = {
            let mut rests = self.inner.rests.lock();
            let before = self.inner.disabled.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1));
            if before == Ok(1) { rests.take() } else { None }
        };
        if let (Some((kind, by)), Some(kernel)) = (rested, self.kernel.get()) {
            kernel.softirqs().queue(cpu.id(), kind, Queued { inner: self.inner.clone(), by });
        }
    }

    /// Waits until it has run and runs no more (`tasklet_kill`). Process context.
    ///
    /// A tasklet that is scheduled and disabled never runs, and this never returns.
    #[track_caller]
    pub fn kill(&self, cpu: &Cpu<'_>) {
        cpu.might_sleep("tasklet_kill");
        self.wait(cpu, SCHED | RUN);
    }

    fn wait(&self, cpu: &Cpu<'_>, bits: u32) {
        let idle = || self.inner.state.load(Ordering::Acquire) & bits == 0;
        if self.inner.idle.wait_until_done(cpu, idle).is_err() {
            self.abandoned.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it is to run, or runs. Any context.
    pub fn is_active(&self) -> bool {
        self.inner.state.load(Ordering::Acquire) != 0
    }
}

impl Drop for Tasklet {
    fn drop(&mut self) {
        let given_up = self.abandoned.load(Ordering::Relaxed) || std::thread::panicking();
        if let Some(kernel) = self.kernel.get().filter(|_| self.is_active() && !given_up) {
            let kind = FindingKind::FreedActive { what: "tasklet_struct" };
            let sites = vec![("made at", self.inner.made)];
            kernel.report(Finding { kind, device: None, at: kernel.clock(), sites });
        }
    }
}

#[cfg(test)]
mod tests;
