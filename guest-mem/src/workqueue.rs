//! Workqueues: functions that handlers and atomic code leave to a task, which may sleep.
//!
//! A [`Work`] that is queued runs once, on the CPU that queued it, in a worker: a task that the world starts when there
//! is work and that ends when there is none. A queue runs as many works at once as it allows; the same work never runs
//! twice at once. [`Work::flush`] and [`Work::cancel_sync`] wait for it: from within itself they never end, which is a
//! finding. Mirrors kernel/workqueue.c. Neighbours: `kthread`, `timer` (`delayed`). Left out: unbound pools and their
//! attributes, priorities, freezing, rescuers (workers need no memory here).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;

use crate::cpu::Cpu;
use crate::finding::{Finding, FindingKind};
use crate::kernel::KernelRef;
use crate::lock::Locked;
use crate::site::Owner;
use crate::wait::WaitQueue;

mod delayed;
mod queue;

pub use delayed::DelayedWork;
use queue::Queue;
pub(crate) use queue::Queues;
pub use queue::Workqueue;

/// What goes wrong with works and queues beyond types and contexts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BadWork {
    /// A worker waits for itself.
    #[error("possible recursive locking detected: {call} waits for the work that calls it")]
    WaitsForItself {
        /// `flush_work`, `cancel_work_sync`, `destroy_workqueue` …
        call: &'static str,
    },
    /// Something other than its own works queued on a queue that is being destroyed.
    #[error("workqueue: cannot queue on a queue that is being drained")]
    Draining,
}

/// How far a work has come: queued so many times, done so many; running in which task.
#[derive(Default)]
struct Progress {
    queued: u64,
    done: u64,
    running: Option<u32>,
    /// How many wait in `cancel_work_sync`: it can't be queued meanwhile.
    canceling: u32,
    queue: Option<Arc<Queue>>,
}

impl Progress {
    fn pending(&self) -> bool {
        self.queued > self.done + u64::from(self.running.is_some())
    }
}

struct Inner {
    function: Box<dyn Fn(&Cpu<'_>) + Send + Sync>,
    progress: Locked<Progress>,
    changed: WaitQueue,
    made: Owner,
}

/// A piece of work (`struct work_struct`); to be cancelled or flushed before it drops.
///
/// ```
/// # use lowzone_guest_mem::Cpu;
/// use lowzone_guest_mem::workqueue::Work;
///
/// fn later(cpu: &Cpu<'_>, work: &Work) {
///     assert!(work.schedule(cpu) && !work.schedule(cpu), "queued twice, it runs once");
///     work.cancel_sync(cpu);
///     assert!(!work.is_busy());
/// }
/// ```
pub struct Work {
    kernel: KernelRef,
    inner: Arc<Inner>,
    /// Somebody waited for its end and was torn down.
    abandoned: AtomicBool,
}

impl Work {
    /// A work that runs `function` (`INIT_WORK`). Any context.
    #[track_caller]
    pub fn new(cpu: &Cpu<'_>, function: impl Fn(&Cpu<'_>) + Send + Sync + 'static) -> Self {
        let inner = Inner {
            function: Box::new(function),
            progress: Locked::default(),
            changed: WaitQueue::new(),
            made: cpu.owner(),
        };
        Self { kernel: cpu.kernel_ref(), inner: Arc::new(inner), abandoned: AtomicBool::new(false) }
    }

    /// Queues it on the system's queue; `false` if it is pending already (`schedule_work`). Any context.
    #[track_caller]
    pub fn schedule(&self, cpu: &Cpu<'_>) -> bool {
        queue::put(cpu, cpu.kernel().workqueues().system(), &self.inner, cpu.owner())
    }

    /// Queues it on a queue; `false` if it is pending already (`queue_work`). Any context.
    #[track_caller]
    pub fn queue_on(&self, cpu: &Cpu<'_>, queue: &Workqueue) -> bool {
        queue::put(cpu, &queue.queue, &self.inner, cpu.owner())
    }

    /// Waits until its last queueing has run; `false` if it was idle (`flush_work`). Process context.
    #[track_caller]
    pub fn flush(&self, cpu: &Cpu<'_>) -> bool {
        cpu.might_sleep("flush_work");
        self.flush_for(cpu, "flush_work", cpu.owner())
    }

    fn flush_for(&self, cpu: &Cpu<'_>, call: &'static str, by: Owner) -> bool {
        let (target, busy, queue) = {
            let progress = self.inner.progress.lock();
            (progress.queued, progress.queued > progress.done, progress.queue.clone())
        };
        if !busy || self.waits_for_itself(cpu, queue.as_deref(), call, by) {
            return false;
        }
        let done = || {
            let progress = self.inner.progress.lock();
            progress.done >= target || progress.done == progress.queued
        };
        if self.inner.changed.wait_until_done(cpu, done).is_err() {
            self.abandoned.store(true, Ordering::Relaxed);
        }
        true
    }

    /// Takes it off its queue and waits while it runs; whether it was pending (`cancel_work_sync`). Process context.
    ///
    /// It can't be queued again while this waits, not by itself either.
    #[track_caller]
    pub fn cancel_sync(&self, cpu: &Cpu<'_>) -> bool {
        cpu.might_sleep("cancel_work_sync");
        self.cancel_for(cpu, cpu.owner())
    }

    fn cancel_for(&self, cpu: &Cpu<'_>, by: Owner) -> bool {
        self.inner.progress.lock().canceling += 1;
        let taken = queue::take_back(cpu, &self.inner);
        let queue = self.inner.progress.lock().queue.clone();
        let running = self.inner.progress.lock().running.is_some();
        if running && !self.waits_for_itself(cpu, queue.as_deref(), "cancel_work_sync", by) {
            let idle = || self.inner.progress.lock().running.is_none();
            if self.inner.changed.wait_until_done(cpu, idle).is_err() {
                self.abandoned.store(true, Ordering::Relaxed);
            }
        }
        self.inner.progress.lock().canceling -= 1;
        taken
    }

    /// Whether it is pending or runs (`work_busy`). Any context.
    pub fn is_busy(&self) -> bool {
        let progress = self.inner.progress.lock();
        progress.queued > progress.done
    }

    /// Whether the task that waits is the one that is waited for: itself, or one that its queue allows nothing beside.
    fn waits_for_itself(&self, cpu: &Cpu<'_>, queue: Option<&Queue>, call: &'static str, by: Owner) -> bool {
        let itself = self.inner.progress.lock().running == Some(cpu.task()) && cpu.task() != 0;
        let behind = queue.is_some_and(|queue| queue.most() == 1 && queue.has_worker(cpu.task()));
        if itself || behind {
            let kind = FindingKind::Work(BadWork::WaitsForItself { call });
            cpu.emit(kind, None, vec![("called at", by), ("made at", self.inner.made)]);
        }
        itself || behind
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let given_up = self.abandoned.load(Ordering::Relaxed) || std::thread::panicking();
        if let Some(kernel) = self.kernel.get().filter(|_| !given_up && self.is_busy()) {
            let kind = FindingKind::FreedActive { what: "work_struct" };
            let sites = vec![("made at", self.inner.made)];
            kernel.report(Finding { kind, device: None, at: kernel.clock(), sites });
        }
    }
}

#[cfg(test)]
mod tests;
