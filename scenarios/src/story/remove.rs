//! `remove`: what a driver has left to be done later, when it lets go of its memory.
//!
//! A work, a tasklet and a timer each count in the driver's state; `remove` cancels them and frees the state. The
//! mistakes: one of them still comes, and writes to memory that is freed.

use std::sync::Arc;

use lowzone_guest_mem::dma::misuse;
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::kmalloc::{kfree, kzalloc};
use lowzone_guest_mem::tasklet::Tasklet;
use lowzone_guest_mem::timer::{Timer, TimerCallback};
use lowzone_guest_mem::wait::Completion;
use lowzone_guest_mem::workqueue::Work;
use lowzone_guest_mem::{Cpu, KBuf, PhysAddr};

use super::{StoryError, Telling};

/// What can be done wrong.
pub(super) const MISTAKES: &[&str] = &["no-cancel-work", "no-del-timer", "no-tasklet-kill"];

const SECONDS: u64 = 1_000_000_000;
/// When the timer comes: long after the state is freed.
const LATER: u64 = SECONDS / 10;

/// The pointer to the state that is left to those who come later.
#[derive(Clone)]
struct Late {
    state: PhysAddr,
    came: Arc<Completion>,
}

impl Late {
    fn new(state: &KBuf) -> Self {
        Self { state: state.phys(), came: Arc::default() }
    }

    fn count(&self, cpu: &Cpu<'_>) {
        misuse::scribble(cpu, self.state.wrapping_add(8), &[1]);
        self.came.complete(cpu);
    }
}

impl TimerCallback for Late {
    fn expired(&self, cpu: &Cpu<'_>) {
        self.count(cpu);
    }
}

/// Tells it.
pub(super) fn tell(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    work(telling)?;
    tasklet(telling)?;
    timer(telling)
}

fn work(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let state = kzalloc(cpu, 64, GFP_KERNEL)?;
    let late = Late::new(&state);
    let its = late.clone();
    let work = Work::new(cpu, move |cpu| its.count(cpu));
    if telling.makes("no-cancel-work") {
        // A worker of this CPU can't come in between.
        let alone = cpu.preempt_disable();
        work.schedule(cpu);
        kfree(state);
        drop(work);
        drop(alone);
        late.came.wait_timeout(cpu, 20 * SECONDS)?;
    } else {
        work.schedule(cpu);
        work.cancel_sync(cpu);
        telling.expect("work after cancel_work_sync", "idle", if work.is_busy() { "busy" } else { "idle" })?;
        kfree(state);
    }
    Ok(())
}

fn tasklet(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let state = kzalloc(cpu, 64, GFP_KERNEL)?;
    let late = Late::new(&state);
    let its = late.clone();
    let tasklet = Tasklet::new(cpu, move |cpu| its.count(cpu));
    let softirqs_off = cpu.local_bh_disable();
    tasklet.schedule(cpu);
    if telling.makes("no-tasklet-kill") {
        kfree(state);
        drop(tasklet);
        softirqs_off.enable();
        late.came.wait_timeout(cpu, 20 * SECONDS)?;
    } else {
        softirqs_off.enable();
        tasklet.kill(cpu);
        telling.expect("tasklet after tasklet_kill", "idle", if tasklet.is_active() { "active" } else { "idle" })?;
        kfree(state);
    }
    Ok(())
}

fn timer(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let state = kzalloc(cpu, 64, GFP_KERNEL)?;
    let late = Late::new(&state);
    let timer = Timer::new(cpu, Arc::new(late.clone()));
    timer.modify(cpu, cpu.now() + LATER);
    if telling.makes("no-del-timer") {
        kfree(state);
        // It lay in the state, and nobody takes it off the list.
        std::mem::forget(timer);
        late.came.wait_timeout(cpu, 20 * SECONDS)?;
    } else {
        timer.delete_sync(cpu);
        telling.expect("timer after del_timer_sync: it came", false, late.came.try_wait())?;
        kfree(state);
    }
    Ok(())
}
