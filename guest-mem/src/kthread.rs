//! Kernel threads: a function that runs as a task of its own, until it returns or is asked to stop.
//!
//! A thread is an actor of the world, bound to one CPU, which it shares with the CPU's first task: one of a CPU's tasks
//! runs at a time, and one that is atomic keeps the CPU. It has a [stack](OnStack) of its own. Whoever starts a thread
//! stops it: one that is left over is a leak. Mirrors kernel/kthread.c. Neighbours: `env`, which starts it; `workqueue`,
//! `irq`, which have threads of their own. Left out: priorities, moving to another CPU, parking, signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use thiserror::Error;

use crate::PhysAddr;
use crate::cpu::Cpu;
use crate::finding::Resource;
use crate::vmalloc::VmallocError;
use crate::wait::{WaitError, WaitQueue};
use crate::zone::AllocError;

pub mod misuse;
mod stack;

use stack::Stack;
pub use stack::{OnStack, STACK, STACK_32};

/// Why a thread could not be started (`-ENOMEM`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum KthreadError {
    /// No area for its stack.
    #[error("no stack for the thread: {0}")]
    NoStack(#[from] VmallocError),
    /// No pages for its stack, on the 32-bit machine.
    #[error("no stack for the thread: {0}")]
    NoPages(#[from] AllocError),
    /// The world has no room for another task.
    #[error("no room for another thread on cpu {cpu}")]
    NoTask {
        /// Where it was to run.
        cpu: u32,
    },
}

#[derive(Default)]
struct State {
    should_stop: AtomicBool,
    ended: AtomicBool,
    result: AtomicI32,
    /// The thread itself waits here.
    own: WaitQueue,
    /// Who waits for its end.
    others: WaitQueue,
}

/// The thread as its own function sees it.
#[cfg_attr(test, derive(Default))]
pub struct Current {
    state: Arc<State>,
    stack: Option<Stack>,
}

impl Current {
    /// One that has a stack and no thread.
    #[cfg(test)]
    pub(crate) fn with_stack(cpu: &Cpu<'_>, call: impl FnOnce(&Self)) {
        call(&Self { stack: Stack::new(cpu, cpu.task()).ok(), ..Self::default() });
    }

    /// Whether it is to return (`kthread_should_stop`). Any context.
    pub fn should_stop(&self) -> bool {
        self.state.should_stop.load(Ordering::Acquire)
    }

    /// A variable of `len` bytes on its stack, gone when it drops; `None` where the stack is full. Any context.
    pub fn on_stack(&self, len: usize) -> Option<OnStack<'_>> {
        OnStack::new(self.stack.as_ref()?, len)
    }

    /// Sleeps until it is woken and `condition` holds, or until it is to stop; `false` if it is to stop or is torn
    /// down (`schedule` in a loop around both). Process context.
    #[track_caller]
    pub fn wait(&self, cpu: &Cpu<'_>, mut condition: impl FnMut() -> bool) -> bool {
        self.state.own.wait_event(cpu, || condition() || self.should_stop()).is_ok() && !self.should_stop()
    }

    /// Sleeps so many nanoseconds, or until it is to stop; `false` as for [`Current::wait`]. Process context.
    #[track_caller]
    pub fn sleep(&self, cpu: &Cpu<'_>, ns: u64) -> bool {
        let slept = self.state.own.wait_event_timeout(cpu, ns, || self.should_stop());
        matches!(slept, Err(WaitError::TimedOut { .. }))
    }
}

/// A kernel thread (`struct task_struct`, as its owner has it).
///
/// ```
/// # use lowzone_guest_mem::Cpu;
/// use lowzone_guest_mem::kthread::{KthreadError, kthread_run};
///
/// fn clean(cpu: &Cpu<'_>) -> Result<i32, KthreadError> {
///     let thread = kthread_run(cpu, 0, |cpu, current| {
///         while current.sleep(cpu, 1_000_000) { /* look after something */ }
///         7
///     })?;
///     Ok(thread.stop(cpu)) // 7
/// }
/// ```
#[must_use = "a thread that nobody stops runs on"]
pub struct Kthread {
    state: Arc<State>,
}

/// The thread's own half: its end is told when this drops, by whichever way it ends.
struct Life<'a, 'w> {
    cpu: &'a Cpu<'w>,
    current: Current,
    booked: u64,
}

impl Drop for Life<'_, '_> {
    fn drop(&mut self) {
        drop(self.current.stack.take());
        self.cpu.kernel().unregister(self.booked);
        self.current.state.ended.store(true, Ordering::Release);
        self.current.state.others.wake_up_all(self.cpu);
    }
}

/// Starts a thread on CPU `on` (`kthread_create_on_cpu` and `wake_up_process`). Process context.
///
/// # Errors
/// [`KthreadError`]: no memory for its stack, or no room in the world.
#[track_caller]
pub fn kthread_run(
    cpu: &Cpu<'_>,
    on: u32,
    function: impl FnOnce(&Cpu<'_>, &Current) -> i32 + Send + 'static,
) -> Result<Kthread, KthreadError> {
    cpu.might_sleep("kthread_run");
    let owner = cpu.owner();
    let task = cpu.kernel().next_task();
    let (size, stack) = (Stack::size(cpu), Some(Stack::new(cpu, task)?));
    let state = Arc::new(State::default());
    let booked = cpu.kernel().register(Resource::Thread, PhysAddr::new(u64::from(task)), size, owner);
    let current = Current { state: state.clone(), stack };
    let body = move |cpu: &Cpu<'_>| {
        let life = Life { cpu, current, booked };
        let result = function(cpu, &life.current);
        life.current.state.result.store(result, Ordering::Release);
    };
    if !cpu.spawn(on, task, Box::new(body)) {
        cpu.kernel().unregister(booked);
        return Err(KthreadError::NoTask { cpu: on });
    }
    Ok(Kthread { state })
}

impl Kthread {
    /// Wakes it, so that it looks at its condition (`wake_up_process`). Any context.
    pub fn wake_up(&self, cpu: &Cpu<'_>) {
        self.state.own.wake_up_all(cpu);
    }

    /// Whether it has returned. Any context.
    pub fn ended(&self) -> bool {
        self.state.ended.load(Ordering::Acquire)
    }

    /// Asks it to stop, waits until it has, and tells what it returned (`kthread_stop`). Process context.
    #[track_caller]
    pub fn stop(self, cpu: &Cpu<'_>) -> i32 {
        cpu.might_sleep("kthread_stop");
        self.end(cpu)
    }

    /// As [`Kthread::stop`], for who has complained about the context already.
    #[track_caller]
    pub(crate) fn end(&self, cpu: &Cpu<'_>) -> i32 {
        self.state.should_stop.store(true, Ordering::Release);
        self.wake_up(cpu);
        // Teardown ends the wait early; then it is told to go too.
        let _ = self.state.others.wait_until_done(cpu, || self.ended());
        self.state.result.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
