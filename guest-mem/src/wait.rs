//! Wait queues and completions.
//!
//! A waiter takes a ticket, looks at its condition, then parks: no wake-up between the look and the park is lost.
//! Waiting sleeps, so it is process context only; waking is allowed anywhere, handlers included. Every wait has a
//! deadline or is torn down with the world. Mirrors `linux/wait.h` and `linux/completion.h`.
//! Neighbours: `cpu`, `env`. Left out: interruptible waits (there are no signals), exclusive queues.

use std::sync::atomic::{AtomicU32, Ordering};

use thiserror::Error;

use crate::cpu::Cpu;
use crate::env::{Class, Key, Wake};

/// Why a wait ended without its condition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum WaitError {
    /// The deadline passed.
    #[error("timed out after {waited} ns")]
    TimedOut {
        /// How long the wait lasted.
        waited: u64,
    },
    /// The CPU is being torn down.
    #[error("the CPU is being torn down")]
    Dying,
}

/// A queue of CPUs that wait for something to change (`wait_queue_head_t`).
#[derive(Debug)]
pub struct WaitQueue {
    key: Key,
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl WaitQueue {
    /// An empty queue.
    pub fn new() -> Self {
        Self { key: Key::fresh() }
    }

    /// Waits until `condition` holds, at most `timeout` nanoseconds (`wait_event_timeout`). Process context.
    ///
    /// # Errors
    /// [`WaitError::TimedOut`] if the condition still doesn't hold then, [`WaitError::Dying`] at teardown.
    #[track_caller]
    pub fn wait_event_timeout(
        &self,
        cpu: &Cpu<'_>,
        timeout: u64,
        condition: impl FnMut() -> bool,
    ) -> Result<(), WaitError> {
        cpu.might_sleep("wait_event");
        self.wait_until(cpu, timeout, condition)
    }

    /// As [`WaitQueue::wait_event_timeout`], for what spins in Linux: no complaint about the context.
    #[track_caller]
    pub(crate) fn wait_until(
        &self,
        cpu: &Cpu<'_>,
        timeout: u64,
        mut condition: impl FnMut() -> bool,
    ) -> Result<(), WaitError> {
        let _ = cpu.point(Class::Wait, timeout);
        let begun = cpu.now();
        let until = begun.saturating_add(timeout);
        loop {
            let ticket = cpu.prepare(self.key);
            if condition() {
                cpu.cancel(ticket);
                return Ok(());
            }
            match cpu.park(ticket, Some(until)) {
                Wake::Woken | Wake::Irq => {}
                Wake::TimedOut if condition() => return Ok(()),
                Wake::TimedOut => return Err(WaitError::TimedOut { waited: cpu.now() - begun }),
                Wake::Dying => return Err(WaitError::Dying),
            }
        }
    }

    /// Waits until `condition` holds, however long that takes (`wait_event`). Process context.
    ///
    /// # Errors
    /// [`WaitError::Dying`] at teardown.
    #[track_caller]
    pub fn wait_event(&self, cpu: &Cpu<'_>, condition: impl FnMut() -> bool) -> Result<(), WaitError> {
        cpu.might_sleep("wait_event");
        self.wait_until_done(cpu, condition)
    }

    /// As [`WaitQueue::wait_event`], for who has complained about the context already.
    #[track_caller]
    pub(crate) fn wait_until_done(&self, cpu: &Cpu<'_>, mut condition: impl FnMut() -> bool) -> Result<(), WaitError> {
        let _ = cpu.point(Class::Wait, u64::MAX);
        loop {
            let ticket = cpu.prepare(self.key);
            if condition() {
                cpu.cancel(ticket);
                return Ok(());
            }
            if cpu.park(ticket, None) == Wake::Dying {
                return if condition() { Ok(()) } else { Err(WaitError::Dying) };
            }
        }
    }

    /// Wakes every waiter (`wake_up_all`). Any context.
    pub fn wake_up_all(&self, cpu: &Cpu<'_>) {
        cpu.wake(self.key, usize::MAX);
    }

    /// Wakes the longest waiter (`wake_up`). Any context.
    pub fn wake_up(&self, cpu: &Cpu<'_>) {
        cpu.wake(self.key, 1);
    }
}

/// Something that is done once for each `complete` (`struct completion`).
///
/// ```
/// use lowzone_guest_mem::Cpu;
/// use lowzone_guest_mem::wait::Completion;
///
/// assert!(!Completion::new().try_wait());
/// fn twice(cpu: &Cpu<'_>, done: &Completion) {
///     done.complete(cpu);
///     done.complete(cpu);
///     assert!(done.try_wait() && done.try_wait() && !done.try_wait());
/// }
/// ```
#[derive(Debug, Default)]
pub struct Completion {
    done: AtomicU32,
    queue: WaitQueue,
}

impl Completion {
    /// Not yet done.
    pub fn new() -> Self {
        Self::default()
    }

    /// Marks it done once more and wakes a waiter (`complete`). Any context.
    pub fn complete(&self, cpu: &Cpu<'_>) {
        self.done.fetch_add(1, Ordering::Release);
        self.queue.wake_up(cpu);
    }

    /// Takes one `complete` if there is one (`try_wait_for_completion`). Any context.
    pub fn try_wait(&self) -> bool {
        self.done.fetch_update(Ordering::Acquire, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
    }

    /// Waits for one `complete` (`wait_for_completion_timeout`). Process context.
    ///
    /// # Errors
    /// As [`WaitQueue::wait_event_timeout`].
    #[track_caller]
    pub fn wait_timeout(&self, cpu: &Cpu<'_>, timeout: u64) -> Result<(), WaitError> {
        self.queue.wait_event_timeout(cpu, timeout, || self.try_wait())
    }
}

/// Sleeps at least `ns` nanoseconds (`msleep`, `usleep_range`). Process context.
///
/// # Errors
/// [`WaitError::Dying`] at teardown.
#[track_caller]
pub fn sleep(cpu: &Cpu<'_>, ns: u64) -> Result<(), WaitError> {
    match WaitQueue::new().wait_event_timeout(cpu, ns, || false) {
        Err(WaitError::Dying) => Err(WaitError::Dying),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
