//! Threaded interrupts: the half of a handler that runs as a task, and may sleep.
//!
//! The handler proper only says that the interrupt is its device's ([`IrqReturn::WakeThread`]); a kernel thread of the
//! request's own does the rest. On a line with `IRQF_ONESHOT` no interrupt comes until all its threads have run, which
//! a thread without a handler needs: nobody would quieten the device before. A thread that is woken while it runs runs
//! once more. Mirrors kernel/irq/manage.c (`irq_thread`). Neighbours: `desc`, `kthread`. Left out: `threadirqs`,
//! priorities, secondary threads; a line's threads run on CPU 0, where lines come, a vector's on the vector's CPU.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use super::desc::IrqDesc;
use crate::cpu::Cpu;
use crate::env::{IrqHandler, IrqReturn};
use crate::kthread::{Current, Kthread, KthreadError, kthread_run};

/// What a thread does for one interrupt, in process context (`thread_fn`).
pub trait IrqThread: Send + Sync {
    /// Handles what the interrupt told of; [`IrqReturn::Handled`] if there was anything.
    fn thread(&self, cpu: &Cpu<'_>) -> IrqReturn;
}

/// The handler of who has a thread alone (`irq_default_primary_handler`).
pub(super) struct Default;

impl IrqHandler for Default {
    fn hardirq(&self, _cpu: &Cpu<'_>) -> IrqReturn {
        IrqReturn::WakeThread
    }
}

/// What the thread and who wakes it share.
struct Turn {
    function: Arc<dyn IrqThread>,
    /// It is to run (`IRQTF_RUNTHREAD`).
    begun: AtomicBool,
    line: OnceLock<(Weak<IrqDesc>, Threaded)>,
}

/// A thread as its line has it.
#[derive(Clone)]
pub(super) struct Threaded {
    turn: Weak<Turn>,
    task: Arc<Kthread>,
    /// Its share of the line's mask.
    pub(super) bit: u64,
}

impl Threaded {
    /// Starts a thread that waits to be woken (`setup_irq_thread`).
    #[track_caller]
    pub(super) fn start(cpu: &Cpu<'_>, on: u32, function: Arc<dyn IrqThread>) -> Result<Self, KthreadError> {
        let turn = Arc::new(Turn { function, begun: AtomicBool::new(false), line: OnceLock::new() });
        let weak = Arc::downgrade(&turn);
        let task = kthread_run(cpu, on, move |cpu, current| turn.run(cpu, current))?;
        Ok(Self { turn: weak, task: Arc::new(task), bit: 0 })
    }

    /// Names the line that it runs for.
    pub(super) fn serves(&self, desc: &Arc<IrqDesc>) {
        if let Some(turn) = self.turn.upgrade() {
            turn.line.get_or_init(|| (Arc::downgrade(desc), self.clone()));
        }
    }

    /// Marks that it is to run; `false` if it was to anyway, or has ended.
    pub(super) fn begin(&self) -> bool {
        let turn = self.turn.upgrade().filter(|_| !self.task.ended());
        turn.is_some_and(|turn| !turn.begun.swap(true, Ordering::AcqRel))
    }

    /// Whether it is to run.
    pub(super) fn has_begun(&self) -> bool {
        self.turn.upgrade().is_some_and(|turn| turn.begun.load(Ordering::Acquire))
    }

    /// Has it look.
    pub(super) fn wake(&self, cpu: &Cpu<'_>) {
        self.task.wake_up(cpu);
    }

    /// Ends it, after the turn that it has yet to take.
    #[track_caller]
    pub(super) fn stop(&self, cpu: &Cpu<'_>) {
        self.task.end(cpu);
    }
}

/// A turn that is taken; over when the function returns, and when it unwinds.
struct Taken<'a, 'w> {
    cpu: &'a Cpu<'w>,
    desc: Arc<IrqDesc>,
    thread: &'a Threaded,
    handled: bool,
}

impl Drop for Taken<'_, '_> {
    fn drop(&mut self) {
        self.desc.thread_done(self.cpu, self.thread, self.handled);
    }
}

impl Turn {
    /// Runs once for each time it was woken, until it is to stop (`irq_thread`).
    fn run(&self, cpu: &Cpu<'_>, current: &Current) -> i32 {
        loop {
            let stops = !current.wait(cpu, || self.begun.load(Ordering::Acquire));
            if self.begun.swap(false, Ordering::AcqRel) {
                self.take(cpu);
            } else if stops {
                return 0;
            }
        }
    }

    fn take(&self, cpu: &Cpu<'_>) {
        let Some((desc, thread)) = self.line.get() else { return };
        let Some(desc) = desc.upgrade() else { return };
        let _span = cpu.span("irq-thread");
        let mut taken = Taken { cpu, desc, thread, handled: false };
        taken.handled = self.function.thread(cpu) == IrqReturn::Handled;
        // The handler that woke it may still run elsewhere, and has yet to mask for it. Teardown ends the wait early.
        let desc = taken.desc.clone();
        let _ = desc.idle.wait_until_done(cpu, || desc.no_handler_runs());
    }
}

#[cfg(test)]
mod tests;
