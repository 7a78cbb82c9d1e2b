//! `CpuEnv`: the lockstep world as one CPU sees it.
//!
//! Parking and yielding suspend the CPU's coroutine; everything else is a look at the shared state. Neighbours:
//! `guest_mem::env`, which this implements; the scheduler, which resumes.

use std::rc::Rc;
use std::sync::Arc;

use corosensei::Yielder;
use lowzone_guest_mem::cpu::Halt;
use lowzone_guest_mem::env::{Env, IrqHandler, Key, Point, Task, Ticket, Verdict, Wake};
use lowzone_guest_mem::finding::{Finding, FindingKind};
use lowzone_guest_mem::timer::Timers;

use super::schedule::Who;
use super::shared::{Shared, State, Waiting};
use super::{MOST_TASKS, TASKS};
use crate::explore::heartbeat;
use crate::explore::observer::Answer;

/// Virtual nanoseconds that a point costs: time moves even in a loop that never parks.
const POINT_NS: u64 = 10;
/// Points and waits that dying CPUs may pass before they are unwound: a loop that ignores its end would never see it.
const LAST_STEPS: u64 = 1_000_000;

/// Why a CPU gives way.
pub(super) enum Give {
    Turn,
    Park,
}

/// The world as one CPU sees it.
pub(super) struct CpuEnv<'y> {
    /// Its number among the actors.
    pub(super) id: usize,
    /// The CPU that it runs on.
    pub(super) cpu: usize,
    pub(super) shared: Rc<Shared>,
    pub(super) yielder: &'y Yielder<Wake, Give>,
}

impl CpuEnv<'_> {
    /// Whether this CPU must not suspend any more: a destructor that suspends while unwinding aborts the process.
    ///
    /// A dying CPU that goes on and on is unwound here.
    fn unwinding(&self) -> bool {
        if std::thread::panicking() {
            return true;
        }
        let mut state = self.shared.state.borrow_mut();
        if !state.dying {
            return false;
        }
        state.last_steps += 1;
        if state.last_steps > LAST_STEPS {
            drop(state);
            std::panic::resume_unwind(Box::new(Halt::Dying));
        }
        true
    }

    /// Lets another actor have its turn, and the CPU's other tasks too if `preemptible`.
    fn give_way(&self, preemptible: bool) {
        if !preemptible {
            self.shared.state.borrow_mut().cpus[self.id].keeps = Some(self.cpu);
        }
        self.yielder.suspend(Give::Turn);
    }

    fn timer_due(&self) -> bool {
        let now = self.shared.state.borrow().now;
        self.shared.kernel.get().is_some_and(|kernel| kernel.timers().next().is_some_and(|at| at <= now))
    }

    /// Whether an interrupt is taken now; one that the CPU was woken for is.
    fn takes(&self, by: Who) -> bool {
        let mut state = self.shared.state.borrow_mut();
        let State { schedule, cpus, .. } = &mut *state;
        std::mem::take(&mut cpus[self.id].takes) || schedule.interrupts(Who::Task(self.id), by)
    }

    fn check_stack(&self) {
        let here = 0_u8;
        let address = (&raw const here).addr();
        if address < self.shared.state.borrow().cpus[self.id].stack_limit {
            std::panic::resume_unwind(Box::new("the stack is three quarters full"));
        }
    }
}

impl Env for CpuEnv<'_> {
    fn now(&self) -> u64 {
        self.shared.state.borrow().now
    }

    fn prepare(&self, on: Key) -> Ticket {
        let mut state = self.shared.state.borrow_mut();
        let number = state.next_ticket;
        state.next_ticket += 1;
        state.cpus[self.id].waiting = Some(Waiting { key: on, number, woken: false });
        Ticket::new(number)
    }

    fn park(&self, ticket: Ticket, until: Option<u64>) -> Wake {
        loop {
            let over = {
                let unwinding = self.unwinding();
                let mut state = self.shared.state.borrow_mut();
                let now = state.now;
                let cpu = &mut state.cpus[self.id];
                let woken = cpu.waiting.as_ref().is_none_or(|w| w.number != ticket.number || w.woken);
                let over = if woken {
                    Some(Wake::Woken)
                } else if until.is_some_and(|at| at <= now) {
                    Some(Wake::TimedOut)
                } else if unwinding {
                    Some(Wake::Dying)
                } else {
                    None
                };
                if over.is_some() {
                    cpu.waiting = None;
                } else {
                    cpu.parked = Some((until, !ticket.irqs_off));
                    cpu.keeps = ticket.keeps_cpu.then_some(self.cpu);
                }
                over
            };
            if let Some(wake) = over {
                return wake;
            }
            if self.yielder.suspend(Give::Park) == Wake::Irq {
                return Wake::Irq;
            }
        }
    }

    fn wake(&self, on: Key, n: usize) {
        let mut state = self.shared.state.borrow_mut();
        let waiting = state.cpus.iter_mut().filter_map(|cpu| cpu.waiting.as_mut());
        let mut waiting: Vec<_> = waiting.filter(|w| w.key == on && !w.woken).collect();
        waiting.sort_by_key(|w| w.number);
        waiting.into_iter().take(n).for_each(|w| w.woken = true);
    }

    fn take_irq(&self) -> Option<Arc<dyn IrqHandler>> {
        let id = u32::try_from(self.cpu).ok()?;
        if self.shared.state.borrow().schedule.is_uniform() {
            if let Some(handler) = self.shared.bus.take_handler(id) {
                return Some(handler);
            }
            return self.timer_due().then(Timers::interrupt);
        }
        self.shared.state.borrow_mut().cpus[self.id].interrupted = false;
        let taken = if self.shared.bus.pending(id) && self.takes(Who::Irq(self.cpu)) {
            self.shared.bus.take_handler(id)
        } else {
            None
        };
        let taken = taken.or_else(|| (self.timer_due() && self.takes(Who::Timer)).then(Timers::interrupt));
        self.shared.state.borrow_mut().cpus[self.id].interrupted = taken.is_some();
        taken
    }

    fn point(&self, point: Point) -> Verdict {
        let (turn, hung) = {
            let mut state = self.shared.state.borrow_mut();
            state.now += POINT_NS;
            state.points += 1;
            heartbeat::beat(state.points);
            if let Some(kernel) = self.shared.kernel.get() {
                kernel.set_clock(state.now);
            }
            let State { random, schedule, points, fuel, .. } = &mut *state;
            (schedule.asks(random), *points > *fuel)
        };
        if self.unwinding() {
            return Verdict::Pass;
        }
        self.shared.trap();
        if hung {
            self.shared.report(FindingKind::Hang { points: self.shared.state.borrow().points });
            std::panic::resume_unwind(Box::new(Halt::Dying));
        }
        self.check_stack();
        if turn {
            self.give_way(point.preemptible);
        }
        if let Some(observer) = self.shared.observer.borrow_mut().as_mut() {
            let answer = observer.pass(&point);
            if let (Answer::Fail | Answer::Remove, Some(kernel)) = (answer, self.shared.kernel.get()) {
                observer.keep_before_hit(kernel.trace());
            }
            match answer {
                Answer::Pass => {}
                Answer::Fail => return Verdict::Fail,
                Answer::Remove => self.shared.bus.unplug_all(),
            }
        }
        let mut injectors = self.shared.injectors.borrow_mut();
        if injectors.is_empty() { Verdict::Pass } else { injectors.ask(&point, self.cpu, self.shared.kernel.get()) }
    }

    fn register_written(&self, preemptible: bool) -> bool {
        if self.shared.state.borrow().schedule.is_uniform() || self.unwinding() {
            return false;
        }
        self.give_way(preemptible);
        true
    }

    fn emit(&self, finding: Finding) {
        if let Some(kernel) = self.shared.kernel.get() {
            kernel.report(finding);
        }
    }

    fn spawn(&self, task: Task) -> bool {
        let state = self.shared.state.borrow();
        let live = state.cpus.iter().skip(TASKS).filter(|task| task.exit.is_none()).count();
        let mut spawned = self.shared.spawned.borrow_mut();
        let room = live + spawned.len() < MOST_TASKS && !state.dying;
        if room {
            spawned.push(task);
        }
        room
    }
}
