//! Kernel timers: run once, in softirq context, at or after their time.
//!
//! The world looks at [`Timers::next`] when it decides how far virtual time may jump, and raises
//! [`Timers::interrupt`] on a CPU when one is due. Mirrors kernel/time/timer.c. Neighbours: `cpu` (softirq), worlds.
//! Left out: deferrable timers, hrtimers, timer wheels' rounding (a timer is due at its nanosecond).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::cpu::Cpu;
use crate::env::{IrqHandler, IrqReturn};
use crate::kernel::KernelRef;
use crate::lock::Locked;
use crate::site::Owner;
use crate::softirq::Softirq;
use crate::wait::WaitQueue;

/// How long `del_timer_sync` waits for a running callback.
const SYNC_TIMEOUT: u64 = 10_000_000_000;

/// What a timer runs, in softirq context.
pub trait TimerCallback: Send + Sync {
    /// Runs once for each time the timer was armed.
    fn expired(&self, cpu: &Cpu<'_>);
}

struct Armed {
    callback: Arc<dyn TimerCallback>,
    running: Arc<Running>,
    owner: Owner,
}

#[derive(Default)]
struct Running {
    count: AtomicU32,
    idle: WaitQueue,
}

/// The kernel's pending timers, by time and then by number.
pub struct Timers {
    pending: Locked<BTreeMap<(u64, u64), Armed>>,
    /// The time of the first of them, or `NEVER`: what a CPU looks at without the lock.
    first: AtomicU64,
    next_id: AtomicU64,
    /// The softirq was raised and has not ended: what is due is on its way, another interrupt would change nothing.
    raised: AtomicBool,
}

/// No timer is pending.
const NEVER: u64 = u64::MAX;

impl Default for Timers {
    fn default() -> Self {
        Self {
            pending: Locked::default(),
            first: AtomicU64::new(NEVER),
            next_id: AtomicU64::new(0),
            raised: AtomicBool::new(false),
        }
    }
}

struct TimerInterrupt;

impl IrqHandler for TimerInterrupt {
    fn hardirq(&self, cpu: &Cpu<'_>) -> IrqReturn {
        cpu.kernel().timers().raised.store(true, Ordering::Relaxed);
        cpu.raise_softirq(Softirq::Timer);
        IrqReturn::Handled
    }
}

impl Timers {
    /// When the next timer interrupt is due; `None` while one is being served.
    pub fn next(&self) -> Option<u64> {
        if self.raised.load(Ordering::Relaxed) {
            return None;
        }
        Some(self.first.load(Ordering::Acquire)).filter(|&at| at != NEVER)
    }

    /// Changes what is pending.
    fn change<R>(&self, change: impl FnOnce(&mut BTreeMap<(u64, u64), Armed>) -> R) -> R {
        let mut pending = self.pending.lock();
        let result = change(&mut pending);
        self.first.store(pending.first_key_value().map_or(NEVER, |(&(at, _), _)| at), Ordering::Release);
        result
    }

    /// The timer interrupt, for the world to deliver when a timer is due.
    pub fn interrupt() -> Arc<dyn IrqHandler> {
        Arc::new(TimerInterrupt)
    }

    /// Every pending timer: `(number, owner)`.
    pub fn live(&self) -> Vec<(u64, Owner)> {
        self.pending.lock().iter().map(|(&(_, id), armed)| (id, armed.owner)).collect()
    }

    pub(crate) fn reset(&self) {
        self.change(BTreeMap::clear);
        self.next_id.store(0, Ordering::Relaxed);
        self.raised.store(false, Ordering::Relaxed);
    }

    /// Runs what is due; softirq context.
    pub(crate) fn run_expired(&self, cpu: &Cpu<'_>) {
        let _served = Served(&self.raised);
        loop {
            let due = self.change(|pending| {
                let armed = match pending.first_key_value() {
                    Some((&key, _)) if key.0 <= cpu.now() => pending.remove(&key),
                    _ => None,
                };
                // It runs from here on: whoever finds it gone waits for it.
                armed.inspect(|armed| {
                    armed.running.count.fetch_add(1, Ordering::Acquire);
                })
            });
            let Some(armed) = due else { return };
            let _runs = Runs { running: &armed.running, cpu };
            cpu.set_atomic_since(armed.owner);
            armed.callback.expired(cpu);
        }
    }
}

/// The softirq runs; over when it ends, and when a callback unwinds.
struct Served<'a>(&'a AtomicBool);

impl Drop for Served<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// A callback runs; over when it returns, and when it unwinds.
struct Runs<'a, 'w> {
    running: &'a Running,
    cpu: &'a Cpu<'w>,
}

impl Drop for Runs<'_, '_> {
    fn drop(&mut self) {
        if self.running.count.fetch_sub(1, Ordering::Release) == 1 {
            self.running.idle.wake_up_all(self.cpu);
        }
    }
}

/// A timer (`struct timer_list`); dropping it disarms it.
pub struct Timer {
    kernel: KernelRef,
    callback: Arc<dyn TimerCallback>,
    id: u64,
    armed_at: Locked<Option<u64>>,
    running: Arc<Running>,
}

impl Timer {
    /// A timer that is not armed (`timer_setup`). Any context.
    pub fn new(cpu: &Cpu<'_>, callback: Arc<dyn TimerCallback>) -> Self {
        let id = cpu.kernel().timers().next_id.fetch_add(1, Ordering::Relaxed);
        Self { kernel: cpu.kernel_ref(), callback, id, armed_at: Locked::default(), running: Arc::default() }
    }

    /// Arms it for `at`, in the world's nanoseconds, taking back an earlier arming (`mod_timer`). Any context.
    #[track_caller]
    pub fn modify(&self, cpu: &Cpu<'_>, at: u64) {
        let Some(kernel) = self.kernel.get() else { return cpu.stale("timer") };
        let armed = Armed { callback: self.callback.clone(), running: self.running.clone(), owner: cpu.owner() };
        let mut armed_at = self.armed_at.lock();
        let before = armed_at.replace(at);
        kernel.timers().change(|pending| {
            if let Some(before) = before {
                pending.remove(&(before, self.id));
            }
            pending.insert((at, self.id), armed);
        });
    }

    /// Disarms it and waits until no CPU runs its callback (`del_timer_sync`). Process context and softirq.
    ///
    /// Linux spins, so a spinlock may be held, unless the callback takes it too; in a hard-interrupt handler it warns.
    #[track_caller]
    pub fn delete_sync(&self, cpu: &Cpu<'_>) {
        if cpu.in_hardirq() {
            cpu.sleeps_in_atomic("del_timer_sync", cpu.owner());
        }
        self.disarm();
        let idle = || self.running.count.load(Ordering::Acquire) == 0;
        // Teardown ends the wait early; then nothing runs callbacks any more either.
        let _ = self.running.idle.wait_until(cpu, SYNC_TIMEOUT, idle);
    }

    /// Disarms it without waiting; whether it was armed (`del_timer`). Any context.
    pub fn cancel(&self, cpu: &Cpu<'_>) -> bool {
        if self.kernel.get().is_none() {
            cpu.stale("timer");
        }
        self.disarm()
    }

    fn disarm(&self) -> bool {
        let mut armed_at = self.armed_at.lock();
        match (armed_at.take(), self.kernel.get()) {
            (Some(at), Some(kernel)) => kernel.timers().change(|pending| pending.remove(&(at, self.id))).is_some(),
            _ => false,
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.disarm();
    }
}

#[cfg(test)]
mod tests;
