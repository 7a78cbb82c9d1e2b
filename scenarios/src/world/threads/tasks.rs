//! Tasks: kernel threads and workers, each on a thread of the host and bound to a CPU.
//!
//! Seats behind those of the CPUs are theirs; a thread stays in its seat and takes the next task that is put there. They
//! live on between steps and end with the world. Neighbours: `cpu`, whose loop they run; `baton`, by which they take turns.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::Builder;

use lowzone_guest_mem::env::Task;

use super::cpu::{self, STACK};
use super::seat::{Job, State};
use super::shared::Shared;

/// The most tasks that live at once: with 64 CPUs, as many as a wake-up has bits for.
pub(super) const MOST: usize = 64;

/// Starts a task in a free seat; `false` if there is none, or the host gives no thread.
pub(super) fn spawn(shared: &Arc<Shared>, task: Task) -> bool {
    // One at a time: a seat that is looked at stays free.
    let mut crew = shared.task_crew();
    if shared.dying.load(Ordering::SeqCst) {
        return false;
    }
    let first = shared.cpus();
    let seats = shared.roster.seats.iter().enumerate().skip(first);
    let Some((id, seat)) = seats.into_iter().find(|(_, seat)| seat.state() == State::Home) else { return false };
    if !seat.taken() {
        let its = shared.clone();
        let thread = Builder::new().name(format!("task{}", id - first)).stack_size(STACK);
        let Ok(thread) = thread.spawn(move || cpu::attend(&its, id)) else { return false };
        seat.seat(thread.thread());
        crew.push(thread);
    }
    let cpu = usize::try_from(task.cpu).unwrap_or(0);
    shared.roster.batons[cpu].join();
    seat.give(Job::Task(task));
    // Its first task may sleep with the baton in its hand.
    shared.roster.seats[cpu].rouse();
    true
}
