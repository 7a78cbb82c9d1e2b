//! `contexts`: what runs where, and what may be done there: a handler, its tasklet, its work, a thread.
//!
//! The mistakes: a mutex taken in a tasklet; a lock that the handler takes, taken with interrupts on; a work that waits
//! for itself; a mutex given back by who doesn't hold it.

use std::sync::Arc;

use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::env::{IrqHandler, IrqReturn};
use lowzone_guest_mem::irq::{irq_inject_interrupt, request_irq};
use lowzone_guest_mem::kthread::kthread_run;
use lowzone_guest_mem::lock::{Locked, Mutex, SpinLock, misuse};
use lowzone_guest_mem::tasklet::Tasklet;
use lowzone_guest_mem::wait::{Completion, sleep};
use lowzone_guest_mem::workqueue::Work;

use super::{StoryError, Telling};

/// What can be done wrong.
pub(super) const MISTAKES: &[&str] =
    &["mutex-in-tasklet", "lock-without-irqsave", "work-waits-for-itself", "wrong-unlock"];

const IRQ: u32 = 9;
const SECONDS: u64 = 1_000_000_000;

/// What a place saw of itself.
#[derive(Default)]
struct Seen(Locked<String>);

impl Seen {
    fn note(&self, cpu: &Cpu<'_>) {
        *self.0.lock() = format!("{}, preempt_count {:#x}", cpu.context(), cpu.preempt_count());
    }

    fn told(&self) -> String {
        self.0.lock().clone()
    }
}

/// The halves of a handler.
struct Halves {
    lock: SpinLock<u32>,
    mutex: Mutex<u32>,
    slept: bool,
    handler: Seen,
    tasklet: Seen,
    work: Seen,
    own: Locked<Option<(Arc<Tasklet>, Arc<Work>)>>,
    waits_for_itself: bool,
    done: Completion,
}

impl IrqHandler for Halves {
    fn hardirq(&self, cpu: &Cpu<'_>) -> IrqReturn {
        self.handler.note(cpu);
        *self.lock.lock(cpu) += 1;
        let own = self.own.lock().clone();
        if let Some((tasklet, _)) = own {
            tasklet.schedule(cpu);
        }
        IrqReturn::Handled
    }
}

fn halves(cpu: &Cpu<'_>, telling: &Telling<'_, '_>) -> Arc<Halves> {
    let halves = Arc::new(Halves {
        lock: SpinLock::new(0),
        mutex: Mutex::new(0),
        slept: telling.makes("mutex-in-tasklet"),
        handler: Seen::default(),
        tasklet: Seen::default(),
        work: Seen::default(),
        own: Locked::default(),
        waits_for_itself: telling.makes("work-waits-for-itself"),
        done: Completion::new(),
    });
    let its = halves.clone();
    let tasklet = Tasklet::new(cpu, move |cpu| {
        its.tasklet.note(cpu);
        if its.slept {
            *its.mutex.lock(cpu) += 1;
        }
        let own = its.own.lock().clone();
        if let Some((_, work)) = own {
            work.schedule(cpu);
        }
    });
    let its = halves.clone();
    let work = Work::new(cpu, move |cpu| {
        its.work.note(cpu);
        *its.mutex.lock(cpu) += 1;
        let own = its.own.lock().clone();
        if let (true, Some((_, work))) = (its.waits_for_itself, own) {
            work.flush(cpu);
        }
        its.done.complete(cpu);
    });
    *halves.own.lock() = Some((Arc::new(tasklet), Arc::new(work)));
    halves
}

/// Tells it.
pub(super) fn tell(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let halves = halves(cpu, telling);
    let line = request_irq(cpu, IRQ, halves.clone())?;
    telling.expect("a task", "in process context", cpu.context())?;
    if telling.makes("lock-without-irqsave") {
        *halves.lock.lock(cpu) += 1;
    } else {
        *halves.lock.lock_irqsave(cpu) += 1;
    }
    irq_inject_interrupt(cpu, IRQ);
    halves.done.wait_timeout(cpu, 20 * SECONDS)?;
    telling.expect("the handler", "in a hard-interrupt handler, preempt_count 0x10000", halves.handler.told())?;
    telling.expect("its tasklet", "in a softirq, preempt_count 0x100", halves.tasklet.told())?;
    telling.expect("its work", "in process context, preempt_count 0x0", halves.work.told())?;
    line.free(cpu);
    let own = halves.own.lock().take();
    if let Some((tasklet, work)) = own {
        tasklet.kill(cpu);
        work.cancel_sync(cpu);
        telling.fact("tasklet and work", "killed and cancelled after the handler was freed");
    }
    unlock(telling, &halves)
}

/// A thread holds the mutex, and another task wants it, or gives it back.
fn unlock(telling: &Telling<'_, '_>, halves: &Arc<Halves>) -> Result<(), StoryError> {
    let (cpu, held) = (telling.cpu(), Arc::new(Completion::new()));
    let (its, tell) = (halves.clone(), held.clone());
    let thread = kthread_run(cpu, 0, move |cpu, current| {
        let mut value = its.mutex.lock(cpu);
        tell.complete(cpu);
        while current.sleep(cpu, SECONDS) {}
        *value += 1;
        0
    })?;
    held.wait_timeout(cpu, 20 * SECONDS)?;
    telling.expect(
        "mutex_trylock while a thread of the same CPU holds it",
        "busy",
        match halves.mutex.try_lock(cpu) {
            Some(_) => "taken",
            None => "busy",
        },
    )?;
    if telling.makes("wrong-unlock") {
        misuse::mutex_unlock(cpu, &halves.mutex);
    }
    sleep(cpu, 1_000)?;
    telling.expect("the thread returned", 0, thread.stop(cpu))
}
