//! What the CPUs' coroutines share with the scheduler: time, seed, who waits for what.
//!
//! Reached from one thread only. Neighbours: `cpu_env`, which changes it as a CPU, and the scheduler.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use lowzone_guest_mem::env::{Key, Task};
use lowzone_guest_mem::finding::{Finding, FindingKind};
use lowzone_guest_mem::kernel::KernelRef;

use super::Exit;
use super::schedule::{Schedule, Who};
use crate::explore::observer::Observer;
use crate::wire::InProc;
use crate::world::Random;
use crate::world::inject::Injectors;
use crate::world::panics::{Payload, judge};

pub(super) struct Waiting {
    pub(super) key: Key,
    pub(super) number: u64,
    pub(super) woken: bool,
}

#[derive(Default)]
pub(super) struct CpuState {
    pub(super) waiting: Option<Waiting>,
    /// Parked with this ticket: until when, and whether interrupts may wake it.
    pub(super) parked: Option<(Option<u64>, bool)>,
    pub(super) stack_limit: usize,
    /// The CPU that the actor runs on.
    pub(super) cpu: usize,
    /// The same while it gave way and is atomic: no other task of that CPU may run.
    pub(super) keeps: Option<usize>,
    /// Woken to take an interrupt.
    pub(super) takes: bool,
    /// In the middle of an interrupt.
    pub(super) interrupted: bool,
    /// How its body ended; it goes on to take interrupts.
    pub(super) exit: Option<Exit>,
}

impl CpuState {
    /// An actor on a CPU.
    pub(super) fn of(cpu: usize) -> Self {
        Self { cpu, ..Self::default() }
    }

    /// Who runs there: one that still waits can only be wanted for an interrupt.
    pub(super) fn who(&self, id: usize, now: u64) -> Who {
        let waits = self.parked.is_some_and(|(until, _)| until.is_none_or(|at| at > now))
            && self.waiting.as_ref().is_some_and(|w| !w.woken);
        if self.interrupted || waits { Who::Irq(self.cpu) } else { Who::Task(id) }
    }
}

pub(super) struct State {
    pub(super) random: Random,
    pub(super) schedule: Schedule,
    pub(super) now: u64,
    pub(super) next_ticket: u64,
    pub(super) points: u64,
    pub(super) fuel: u64,
    pub(super) dying: bool,
    /// Points and waits passed since `dying`.
    pub(super) last_steps: u64,
    pub(super) cpus: Vec<CpuState>,
}

/// What the CPUs' coroutines share with the scheduler.
pub(super) struct Shared {
    pub(super) kernel: KernelRef,
    pub(super) bus: Arc<InProc>,
    pub(super) state: RefCell<State>,
    pub(super) injectors: RefCell<Injectors>,
    pub(super) observer: RefCell<Option<Observer>>,
    pub(super) stop_at: Cell<Option<u64>>,
    /// Tasks that are no actors yet.
    pub(super) spawned: RefCell<Vec<Task>>,
}

impl Shared {
    pub(super) fn irq_pending(&self, cpu: u32, now: u64) -> bool {
        self.bus.pending(cpu)
            || self.kernel.get().is_some_and(|kernel| kernel.timers().next().is_some_and(|at| at <= now))
    }

    pub(super) fn report(&self, kind: FindingKind) {
        let Some(kernel) = self.kernel.get() else { return };
        let at = self.state.borrow().now;
        kernel.report(Finding { kind, device: None, at, sites: Vec::new() });
    }

    /// Stops in the debugger once the record has come to the event asked for.
    pub(super) fn trap(&self) {
        if let (Some(event), Some(kernel)) = (self.stop_at.get(), self.kernel.get())
            && kernel.trace().events() >= event
        {
            self.stop_at.set(None);
            // Without a debugger the signal ends the program, which is what was asked for too.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TRAP);
        }
    }

    /// Notes how a body ended; whether its CPU can go on.
    pub(super) fn ended(&self, id: usize, result: Result<(), Payload>) -> bool {
        let (exit, finding) = judge(result);
        if let Some(kind) = finding {
            self.report(kind);
        }
        self.state.borrow_mut().cpus[id].exit = Some(exit);
        exit != Exit::Halted
    }
}
