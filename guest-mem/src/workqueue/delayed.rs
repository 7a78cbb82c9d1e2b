//! Works that are queued when a time has come.
//!
//! Neighbours: the parent; `timer`, whose callback does the queueing, in softirq context.

use std::sync::Arc;

use super::{Work, queue};
use crate::cpu::Cpu;
use crate::site::Owner;
use crate::timer::{Timer, TimerCallback};

struct Due {
    work: Work,
    by: crate::lock::Locked<Owner>,
}

impl TimerCallback for Due {
    fn expired(&self, cpu: &Cpu<'_>) {
        let by = *self.by.lock();
        queue::put(cpu, cpu.kernel().workqueues().system(), &self.work.inner, by);
    }
}

/// A work that is queued on the system's queue after a while (`struct delayed_work`).
pub struct DelayedWork {
    due: Arc<Due>,
    timer: Timer,
}

impl DelayedWork {
    /// A work that runs `function` (`INIT_DELAYED_WORK`). Any context.
    #[track_caller]
    pub fn new(cpu: &Cpu<'_>, function: impl Fn(&Cpu<'_>) + Send + Sync + 'static) -> Self {
        let due = Arc::new(Due { work: Work::new(cpu, function), by: crate::lock::Locked::default() });
        let timer = Timer::new(cpu, due.clone());
        Self { due, timer }
    }

    /// Queues it in so many nanoseconds; one that is to come is put off (`mod_delayed_work`). Any context.
    #[track_caller]
    pub fn modify(&self, cpu: &Cpu<'_>, delay: u64) {
        *self.due.by.lock() = cpu.owner();
        self.timer.modify(cpu, cpu.now().saturating_add(delay));
    }

    /// Neither its time comes any more nor does it run once this returns (`cancel_delayed_work_sync`). Process context.
    #[track_caller]
    pub fn cancel_sync(&self, cpu: &Cpu<'_>) {
        cpu.might_sleep("cancel_delayed_work_sync");
        let by = cpu.owner();
        // One that queues itself again could do so between the two.
        self.due.work.inner.progress.lock().canceling += 1;
        self.timer.delete_sync(cpu);
        self.due.work.cancel_for(cpu, by);
        self.timer.delete_sync(cpu);
        self.due.work.inner.progress.lock().canceling -= 1;
    }

    /// Queues it now if its time is still to come, and waits until it has run (`flush_delayed_work`). Process context.
    #[track_caller]
    pub fn flush(&self, cpu: &Cpu<'_>) -> bool {
        cpu.might_sleep("flush_delayed_work");
        if self.timer.cancel(cpu) {
            self.due.expired(cpu);
        }
        self.due.work.flush_for(cpu, "flush_delayed_work", cpu.owner())
    }

    /// Whether it is queued or runs; one whose time is still to come is not. Any context.
    pub fn is_busy(&self) -> bool {
        self.due.work.is_busy()
    }
}
