//! `CpuEnv`: the threads world as one CPU sees it.
//!
//! Time is read at points (of locks and frees now and then) and when a wait ends, as in lockstep it moves there, so a
//! record between two points costs no look at the clock. Neighbours: `guest_mem::env`, which this implements; `seat`, `waits`, `poll`; `idle`.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lowzone_guest_mem::cpu::Halt;
use lowzone_guest_mem::env::{Class, Env, IrqHandler, Key, Point, Task, Ticket, Verdict, Wake};
use lowzone_guest_mem::finding::{Finding, FindingKind};
use lowzone_guest_mem::timer::Timers;

use super::baton::Baton;
use super::poll::Poll;
use super::seat::{Seat, State};
use super::shared::Shared;
use super::tasks;

/// Points and waits that a dying CPU may pass before it is unwound: a loop that ignores its end would never see it.
const LAST_STEPS: u64 = 100_000;
/// Points after which a task lets others of its CPU run.
const TURN: u64 = 4;
/// How late a running CPU may hear of a peer's interrupt: what it finds one by one costs it an interrupt each.
const LOOK_NS: u64 = 20_000;
/// Of how many points that are quick one reads the clock.
const QUICK: u64 = 16;

/// The world as one CPU sees it.
pub(super) struct CpuEnv<'s> {
    /// Its seat.
    id: usize,
    /// The CPU that it runs on, and its task there.
    place: (u32, u32),
    shared: &'s Arc<Shared>,
    /// Addresses below this are in the last quarter of the stack.
    stack_limit: usize,
    now: Cell<u64>,
    poll: Cell<Poll>,
    last_steps: Cell<u64>,
    /// When a running CPU looks next whether a peer interrupts it.
    look_at: Cell<u64>,
}

impl<'s> CpuEnv<'s> {
    /// The world of a seat, its CPU and task, whose thread has its stack down to `stack_limit` and a quarter more.
    pub(super) fn new((id, cpu, task): (usize, u32, u32), shared: &'s Arc<Shared>, stack_limit: usize) -> Self {
        let (now, poll, last_steps) = (Cell::new(shared.clock()), Cell::new(Poll::new()), Cell::new(0));
        let look_at = Cell::new(0);
        Self { id, place: (cpu, task), shared, stack_limit, now, poll, last_steps, look_at }
    }

    /// Its own seat.
    pub(super) fn seat(&self) -> &'s Seat {
        &self.shared.roster.seats[self.id]
    }

    /// The seat of the CPU that it runs on, where interrupts come.
    pub(super) fn cpu_seat(&self) -> &'s Seat {
        &self.shared.roster.seats[self.cpu()]
    }

    fn cpu(&self) -> usize {
        usize::try_from(self.place.0).unwrap_or(0)
    }

    /// The CPU that it runs on, and its task there.
    pub(super) fn place(&self) -> (u32, u32) {
        self.place
    }

    /// The baton of its CPU.
    pub(super) fn baton(&self) -> &'s Baton {
        &self.shared.roster.batons[self.cpu()]
    }

    /// Takes the baton, in its turn.
    pub(super) fn take_baton(&self) {
        self.baton().take(self.id, || self.shared.dying());
    }

    /// Gives the baton to the next.
    pub(super) fn give_baton(&self) {
        self.baton().give(self.id);
    }

    /// The world around it.
    pub(super) fn shared(&self) -> &'s Shared {
        self.shared
    }

    /// Reads the clock.
    pub(super) fn refresh(&self) -> u64 {
        let now = self.shared.clock();
        self.now.set(now);
        now
    }

    /// Whether this CPU must not wait any more. A dying CPU that goes on and on is unwound here.
    fn unwinding(&self) -> bool {
        if std::thread::panicking() {
            return true;
        }
        if !self.shared.dying() {
            return false;
        }
        self.last_steps.set(self.last_steps.get() + 1);
        if self.last_steps.get() > LAST_STEPS {
            std::panic::resume_unwind(Box::new(Halt::Dying));
        }
        true
    }

    fn check_stack(&self) {
        let here = 0_u8;
        if (&raw const here).addr() < self.stack_limit {
            std::panic::resume_unwind(Box::new("the stack is three quarters full"));
        }
    }

    /// Whether an interrupt may be pending, or a timer is due.
    pub(super) fn interrupted(&self, now: u64) -> bool {
        self.cpu_seat().irq() || self.shared.next_timer().is_some_and(|at| at <= now)
    }

    /// Why a wait is over, if it is.
    fn over(&self, ticket: Ticket, until: Option<u64>) -> Option<Wake> {
        if !self.shared.waits.waits(self.id, ticket.number) {
            return Some(Wake::Woken);
        }
        let now = self.refresh();
        let ended = if until.is_some_and(|at| at <= now) {
            Wake::TimedOut
        } else if self.unwinding() {
            Wake::Dying
        } else {
            return (!ticket.irqs_off && self.interrupted(now)).then_some(Wake::Irq);
        };
        // A wake-up that came first counts: nobody else will have it.
        Some(if self.shared.waits.cancel(self.id, ticket.number) { ended } else { Wake::Woken })
    }

    /// Looks for a while, then sleeps until somebody rouses this CPU, `until`, or the next timer if `irqs_on`.
    pub(super) fn doze(&self, state: State, until: Option<u64>, irqs_on: bool, over: impl Fn() -> bool) {
        if !self.baton().shared() {
            // A task that begins between this look and the sleep must have the baton too.
            return self.doze_with_baton(state, until, irqs_on, || over() || self.baton().shared());
        }
        self.give_baton();
        self.doze_with_baton(state, until, irqs_on, over);
        self.take_baton();
        // The turn may have been long in coming.
        self.refresh();
    }

    fn doze_with_baton(&self, state: State, until: Option<u64>, irqs_on: bool, over: impl Fn() -> bool) {
        let look = || {
            over() || {
                self.cpu_seat().look();
                over()
            }
        };
        let looking = self.shared.looking.load(Ordering::Relaxed);
        let seen = if looking { self.poll.get().until(look) } else { look() };
        if looking {
            self.refresh();
        }
        if seen {
            return;
        }
        let mut due = until;
        if irqs_on {
            let late = self.shared.bus.next_late();
            if late.is_some_and(|at| at <= self.now.get()) {
                return self.shared.bus.release_late();
            }
            due = [until, self.shared.next_timer(), late].into_iter().flatten().min();
        }
        if state == State::Waits {
            self.seat().set_state(state);
        }
        let slept = self.now.get();
        self.seat().sleep(due.map(|at| Duration::from_nanos(at.saturating_sub(slept))), over);
        let now = self.refresh();
        self.look_at.set(now + LOOK_NS);
        if looking {
            let mut poll = self.poll.get();
            poll.slept(Duration::from_nanos(now - slept));
            self.poll.set(poll);
        }
        if state == State::Waits {
            self.seat().set_state(State::Busy);
        }
    }
}

impl Env for CpuEnv<'_> {
    fn now(&self) -> u64 {
        // The clock is read at points; while somebody watches, for each record: only times say which thread's came first.
        if self.shared.watched() {
            self.now.set(self.shared.clock());
        }
        self.now.get()
    }

    fn prepare(&self, on: Key) -> Ticket {
        Ticket::new(self.shared.waits.prepare(self.id, on))
    }

    fn park(&self, ticket: Ticket, until: Option<u64>) -> Wake {
        let state = if until.is_none() { State::Waits } else { State::Busy };
        loop {
            if let Some(wake) = self.over(ticket, until) {
                return wake;
            }
            let over = || {
                !self.shared.waits.waits(self.id, ticket.number)
                    || self.shared.dying()
                    || (!ticket.irqs_off && self.cpu_seat().irq())
            };
            if ticket.keeps_cpu {
                self.doze_with_baton(state, until, !ticket.irqs_off, over);
            } else {
                self.doze(state, until, !ticket.irqs_off, over);
            }
        }
    }

    fn wake(&self, on: Key, n: usize) {
        let mut woken = self.shared.waits.wake(on, n);
        while woken != 0 {
            let cpu = usize::try_from(woken.trailing_zeros()).unwrap_or(0);
            self.shared.roster.seats[cpu].rouse();
            woken &= woken - 1;
        }
    }

    fn take_irq(&self) -> Option<Arc<dyn IrqHandler>> {
        let seat = self.cpu_seat();
        // A line that was high before anybody asked for it stirs nobody: CPU 0 looks itself.
        if (seat.take_irq() || (self.place.0 == 0 && self.shared.bus.line_high()))
            && let Some(handler) = self.shared.bus.take_handler(self.place.0)
        {
            seat.irq_taken();
            return Some(handler);
        }
        let due = self.shared.next_timer().is_some_and(|at| at <= self.now.get());
        due.then(Timers::interrupt)
    }

    fn point(&self, point: Point) -> Verdict {
        let points = self.seat().pass();
        // Locks and frees are passed at every turn and never fail: they pay for the clock now and then.
        let quick = matches!(point.request.class, Class::Lock | Class::Release);
        if !quick || points.is_multiple_of(QUICK) {
            let now = self.refresh();
            if now >= self.look_at.get() {
                self.look_at.set(now + LOOK_NS);
                self.cpu_seat().look();
            }
        }
        if self.unwinding() {
            return Verdict::Pass;
        }
        if points > self.shared.fuel.load(Ordering::Relaxed) {
            self.shared.report(FindingKind::Hang { points });
            std::panic::resume_unwind(Box::new(Halt::Dying));
        }
        self.check_stack();
        if point.preemptible && points.is_multiple_of(TURN) && self.baton().wanted() {
            self.give_baton();
            self.take_baton();
        }
        match self.shared.kernel.get() {
            Some(kernel) => self.shared.decider.ask(&point, self.cpu(), kernel, &self.shared.bus),
            None => Verdict::Pass,
        }
    }

    fn emit(&self, finding: Finding) {
        if let Some(kernel) = self.shared.kernel.get() {
            kernel.report(finding);
        }
    }

    fn spawn(&self, task: Task) -> bool {
        tasks::spawn(self.shared, task)
    }
}
