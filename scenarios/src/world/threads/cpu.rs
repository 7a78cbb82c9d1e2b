//! A CPU's thread: one body a step, then interrupts until the step is over. A task's thread: one task after the other.
//!
//! Neighbours: `cpu_env`, which the body's `&Cpu` hangs on; `seat`, which brings the bodies.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use lowzone_guest_mem::cpu::{Cpu, set_current};

use super::cpu_env::CpuEnv;
use super::seat::{Job, State};
use super::shared::Shared;
use crate::world::Exit;
use crate::world::panics::{Quiet, judge};

/// Bytes of a CPU's stack.
pub(super) const STACK: usize = 1 << 20;

/// Runs what the seat of CPU `id` is given, until it is told to quit.
pub(super) fn attend(shared: &Arc<Shared>, id: usize) {
    let _quiet = Quiet::begin();
    let top = 0_u8;
    let stack_limit = (&raw const top).addr().saturating_sub(STACK / 4 * 3);
    loop {
        let job = shared.roster.seats[id].next_job();
        let task = if let Job::Task(task) = &job { Some((task.cpu, task.number)) } else { None };
        let (cpu, number) = task.unwrap_or((u32::try_from(id).unwrap_or(0), 0));
        set_current(cpu);
        let env = CpuEnv::new((id, cpu, number), shared, stack_limit);
        env.take_baton();
        let goes_on = match job {
            Job::Quit => return,
            Job::Idle => true,
            Job::Run(body) => {
                let exit = run(&env, |cpu| body(cpu));
                env.seat().ended(exit);
                shared.tell();
                exit != Exit::Halted
            }
            Job::Task(task) => {
                env.seat().ended(run(&env, |cpu| {
                    (task.body)(cpu);
                    cpu.take_interrupts();
                }));
                false
            }
        };
        // A panic may have left counts behind: the idle task begins with a CPU of its own.
        if goes_on {
            run(&env, |cpu| idle(&env, cpu));
        }
        env.give_baton();
        if task.is_some() {
            env.baton().leave();
        }
        env.seat().set_state(State::Home);
        shared.tell();
    }
}

/// Runs something on the CPU; a panic is reported.
fn run(env: &CpuEnv<'_>, body: impl FnOnce(&Cpu<'_>)) -> Exit {
    let (cpu, task) = env.place();
    let result = catch_unwind(AssertUnwindSafe(|| body(&Cpu::of_task(cpu, task, env.shared().kernel, env))));
    let (exit, finding) = judge(result);
    if let Some(kind) = finding {
        env.shared().report(kind);
    }
    exit
}

/// Takes interrupts until the step is over and none is left.
fn idle(env: &CpuEnv<'_>, cpu: &Cpu<'_>) {
    loop {
        cpu.take_interrupts();
        env.seat().set_state(State::Idle);
        while !env.interrupted(env.refresh()) {
            if env.shared().over() {
                return;
            }
            env.doze(State::Idle, None, true, || env.cpu_seat().irq() || env.shared().over());
        }
        env.seat().set_state(State::Busy);
    }
}
