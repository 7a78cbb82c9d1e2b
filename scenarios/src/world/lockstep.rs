//! The lockstep world: one actor at a time, picked by the seed, in virtual time.
//!
//! CPUs are stackful coroutines; device queues are workers that do one phase a call; interrupts and timers are
//! delivered by the CPUs themselves at their points. When nobody can run, time jumps to the next deadline; when there
//! is none either, that is a deadlock finding. All state of the world is reached from one thread only.
//!
//! Kernel threads and workers are tasks: coroutines too, each bound to a CPU, whose tasks take turns: while one of them is
//! atomic no other runs. They live on from step to step; a step is over when none of them can run.
//!
//! A CPU that is left parked at the end is torn down: politely first (its waits return "dying", and its points neither
//! yield nor fail from then on), by force if it still hangs on.
//! Neighbours: `guest_mem::env`, which this implements; `wire::InProc`, which holds pending interrupts.

mod cpu_env;
mod schedule;
mod shared;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

use corosensei::stack::{DefaultStack, Stack};
use corosensei::{Coroutine, CoroutineResult};
use lowzone_device::{Next, Worker};
use lowzone_guest_mem::cpu::{Cpu, set_current};
use lowzone_guest_mem::env::{Task, Wake};
use lowzone_guest_mem::fault::FaultSpec;
use lowzone_guest_mem::finding::FindingKind;
use lowzone_guest_mem::kernel::{Kernel, KernelRef};

use super::panics::Quiet;
use super::{Body, Exit, FUEL, Random};
use crate::explore::observer::Observer;
use crate::wire::InProc;
use crate::world::inject::Injectors;
pub use schedule::{Exception, Schedule};

use cpu_env::{CpuEnv, Give};
use schedule::Who;
use shared::{CpuState, Shared, State};

/// Virtual nanoseconds of one phase of a device.
const SERVICE_NS: u64 = 200;
/// Bytes of a CPU's stack; a panic with its message needs more than 16 KiB.
const STACK: usize = 256 << 10;
/// Where tasks begin among the actors: after the most CPUs that a machine may have.
const TASKS: usize = 64;
/// The most tasks that live at once.
const MOST_TASKS: usize = 256;
/// Rounds of polite teardown before force.
const POLITE_ROUNDS: usize = 1000;

type CpuCoroutine = Coroutine<Wake, Give, (), DefaultStack>;

thread_local! {
    /// Stacks that no CPU uses now: mapping one costs 300 times a switch.
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

struct Device {
    worker: Box<dyn Worker>,
    /// When it asked to be called again.
    at: Option<u64>,
}

/// A lockstep world around one machine and its bus.
pub struct Lockstep {
    shared: Rc<Shared>,
    devices: Vec<Device>,
    /// Tasks that live on between two steps.
    tasks: Vec<Option<CpuCoroutine>>,
}

/// What can run next.
#[derive(Clone, Copy)]
enum Actor {
    /// A CPU's first task, or from [`TASKS`] on another.
    Cpu(usize),
    Device(usize),
}

impl Lockstep {
    /// A world at time 0 with these device queues, scheduled by `seed`.
    pub fn new(kernel: KernelRef, bus: Arc<InProc>, workers: Vec<Box<dyn Worker>>, seed: u64) -> Self {
        let state = State {
            random: Random::new(seed),
            schedule: Schedule::Uniform,
            now: 0,
            next_ticket: 0,
            points: 0,
            fuel: FUEL,
            dying: false,
            last_steps: 0,
            cpus: Vec::new(),
        };
        let shared = Rc::new(Shared {
            kernel,
            bus,
            state: RefCell::new(state),
            injectors: RefCell::new(Injectors::new(seed)),
            observer: RefCell::new(None),
            stop_at: Cell::new(None),
            spawned: RefCell::default(),
        });
        let devices = workers.into_iter().map(|worker| Device { worker, at: None }).collect();
        if let Some(kernel) = kernel.get() {
            kernel.seed_weak(seed);
        }
        Self { shared, devices, tasks: Vec::new() }
    }

    /// Stops in the debugger at the first point after this event.
    pub fn stop_at(&mut self, event: Option<u64>) {
        self.shared.stop_at.set(event);
    }

    /// From now on `observer` sees every point; the one before it comes back.
    pub fn observe(&mut self, observer: Option<Observer>) -> Option<Observer> {
        std::mem::replace(&mut *self.shared.observer.borrow_mut(), observer)
    }

    /// From now on these injectors decide at every point that nobody else fails; the ones before them come back, with
    /// their counts. Chance follows from the world's seed.
    pub fn inject(&mut self, spec: FaultSpec) -> FaultSpec {
        self.shared.injectors.borrow_mut().replace(spec)
    }

    /// The injectors, with what they counted so far.
    pub fn injectors(&self) -> FaultSpec {
        self.shared.injectors.borrow().spec().clone()
    }

    /// From now on this picks who goes on; how many could, at each choice point of the one before.
    pub fn schedule(&mut self, schedule: Schedule) -> Vec<u8> {
        let mut state = self.shared.state.borrow_mut();
        std::mem::replace(&mut state.schedule, schedule).widths().to_vec()
    }

    /// Limits the points that the whole world may pass before a CPU counts as hung.
    pub fn set_fuel(&mut self, points: u64) {
        self.shared.state.borrow_mut().fuel = points;
    }

    /// Points passed so far.
    pub fn points(&self) -> u64 {
        self.shared.state.borrow().points
    }

    /// Virtual nanoseconds so far.
    pub fn now(&self) -> u64 {
        self.shared.state.borrow().now
    }

    /// Runs one body a CPU, until all have ended; how each did, by CPU.
    pub fn run(&mut self, bodies: Vec<Body>) -> Vec<Exit> {
        self.run_until(bodies, |_| {})
    }

    /// [`Lockstep::run`], but `before_teardown` sees the machine while CPUs are still parked, if any are.
    pub fn run_until(&mut self, bodies: Vec<Body>, before_teardown: impl FnOnce(usize)) -> Vec<Exit> {
        let _quiet = Quiet::begin();
        let given = bodies.len();
        let mut cpus = self.boot(bodies);
        let mut runnable = Vec::new();
        while !self.over(&cpus, given) {
            self.adopt(&mut cpus);
            self.let_memory_settle(Kernel::weak_turn);
            self.find_runnable(&cpus, &mut runnable);
            if runnable.is_empty() {
                if self.let_memory_settle(Kernel::weak_settle).unwrap_or(false) || self.advance_time() {
                    continue;
                }
                self.shared.report(FindingKind::Deadlock { parked: self.unfinished(given) });
                break;
            }
            match runnable.get(self.pick(&runnable)) {
                Some(&Actor::Cpu(id)) => self.resume(&mut cpus, id),
                Some(&Actor::Device(index)) => self.service(index),
                None => {}
            }
        }
        self.let_memory_settle(Kernel::weak_settle);
        let left = self.unfinished(given);
        if left > 0 {
            before_teardown(left);
        }
        let exits = {
            let state = self.shared.state.borrow();
            state.cpus[..given].iter().map(|cpu| cpu.exit.unwrap_or(Exit::TornDown)).collect()
        };
        if left > 0 {
            self.adopt(&mut cpus);
            self.tear_down(&mut cpus);
        } else {
            let first = cpus.len().min(TASKS);
            self.tear_down(&mut cpus[..first]);
        }
        self.tasks = if cpus.len() > TASKS { cpus.split_off(TASKS) } else { Vec::new() };
        exits
    }

    /// Lets what is under way between CPUs and devices arrive, by a function of the kernel's.
    fn let_memory_settle<R>(&self, settle: impl FnOnce(&Kernel) -> R) -> Option<R> {
        self.shared.kernel.get().map(settle)
    }

    /// Given bodies that have not ended.
    fn unfinished(&self, given: usize) -> usize {
        self.shared.state.borrow().cpus[..given].iter().filter(|cpu| cpu.exit.is_none()).count()
    }

    /// Starts the given bodies, and an empty one on every other CPU: interrupts may be meant for those.
    fn boot(&mut self, mut bodies: Vec<Body>) -> Vec<Option<CpuCoroutine>> {
        let all = self.shared.kernel.get().map_or(1, |kernel| kernel.config().cpus);
        while bodies.len() < usize::try_from(all).unwrap_or(1) {
            bodies.push(Box::new(|_| ()));
        }
        {
            let mut state = self.shared.state.borrow_mut();
            state.dying = false;
            state.last_steps = 0;
            state.schedule.begin();
            let tasks = if state.cpus.len() > TASKS { state.cpus.split_off(TASKS) } else { Vec::new() };
            state.cpus = (0..bodies.len()).map(CpuState::of).collect();
            state.cpus.resize_with(if tasks.is_empty() { bodies.len() } else { TASKS }, CpuState::default);
            state.cpus.extend(tasks);
        }
        let mut cpus: Vec<_> = bodies.into_iter().enumerate().map(|(id, body)| Some(self.start(id, 0, body))).collect();
        let tasks = std::mem::take(&mut self.tasks);
        cpus.resize_with(if tasks.is_empty() { cpus.len() } else { TASKS }, || None);
        cpus.extend(tasks);
        cpus
    }

    /// Makes actors of the tasks that were spawned.
    fn adopt(&self, cpus: &mut Vec<Option<CpuCoroutine>>) {
        let spawned = std::mem::take(&mut *self.shared.spawned.borrow_mut());
        for Task { cpu, number, body } in spawned {
            cpus.resize_with(cpus.len().max(TASKS), || None);
            let free = cpus[TASKS..].iter().position(Option::is_none).map(|at| TASKS + at);
            let id = free.unwrap_or(cpus.len());
            {
                let mut state = self.shared.state.borrow_mut();
                let actors = state.cpus.len().max(id + 1);
                state.cpus.resize_with(actors, CpuState::default);
                state.cpus[id] = CpuState::of(usize::try_from(cpu).unwrap_or(0));
            }
            let task = Some(self.start(id, number, body));
            match cpus.get_mut(id) {
                Some(slot) => *slot = task,
                None => cpus.push(task),
            }
        }
    }

    /// Whether the given bodies have ended, no CPU is in the middle of an interrupt, and no task can run.
    fn over(&self, cpus: &[Option<CpuCoroutine>], given: usize) -> bool {
        let state = self.shared.state.borrow();
        state.cpus[..given].iter().all(|cpu| cpu.exit.is_some())
            && self.shared.spawned.borrow().is_empty()
            && cpus.iter().enumerate().all(|(id, cpu)| cpu.is_none() || !self.can_run(&state, id))
    }

    fn start(&self, id: usize, task: u32, body: Body) -> CpuCoroutine {
        let pooled = STACKS.with(|stacks| stacks.borrow_mut().pop());
        // Out of address space for a stack is out of everything: the default stack fails the same way.
        let stack = pooled.or_else(|| DefaultStack::new(STACK).ok()).unwrap_or_default();
        let (base, limit) = (stack.base().get(), stack.limit().get());
        self.shared.state.borrow_mut().cpus[id].stack_limit = limit + (base - limit) / 4;
        let shared = Rc::clone(&self.shared);
        Coroutine::with_stack(stack, move |yielder, _first: Wake| {
            let kernel = shared.kernel;
            let cpu = shared.state.borrow().cpus[id].cpu;
            let env = CpuEnv { id, cpu, shared, yielder };
            let number = u32::try_from(cpu).unwrap_or(0);
            let result = catch_unwind(AssertUnwindSafe(|| body(&Cpu::of_task(number, task, kernel, &env))));
            // A panic may have left counts behind: the idle task begins with a CPU of its own.
            if !env.shared.ended(id, result) {
                return;
            }
            let rest = catch_unwind(AssertUnwindSafe(|| match task {
                0 => Cpu::new(number, kernel, &env).idle(),
                _ => Cpu::of_task(number, task, kernel, &env).take_interrupts(),
            }));
            // A handler may stop the CPU for good as well as the body that was interrupted.
            if rest.is_err() {
                env.shared.ended(id, rest);
            }
        })
    }

    /// Which of those that can run does.
    fn pick(&self, runnable: &[Actor]) -> usize {
        let State { random, schedule, cpus, now, .. } = &mut *self.shared.state.borrow_mut();
        let who = |at: usize| match runnable[at] {
            Actor::Cpu(id) => cpus[id].who(id, *now),
            Actor::Device(index) => Who::Device(index),
        };
        schedule.pick(runnable.len(), random, who)
    }

    fn find_runnable(&self, cpus: &[Option<CpuCoroutine>], runnable: &mut Vec<Actor>) {
        runnable.clear();
        let state = self.shared.state.borrow();
        for (id, cpu) in cpus.iter().enumerate() {
            if cpu.is_some() && self.can_run(&state, id) {
                runnable.push(Actor::Cpu(id));
            }
        }
        for (index, device) in self.devices.iter().enumerate() {
            if device.worker.ready() || device.at.is_some_and(|at| at <= state.now) {
                runnable.push(Actor::Device(index));
            }
        }
    }

    fn can_run(&self, state: &State, id: usize) -> bool {
        let cpu = &state.cpus[id];
        // Only where there are tasks can two share a CPU.
        if state.cpus.len() > TASKS && state.cpus.iter().enumerate().any(|(at, o)| at != id && o.keeps == Some(cpu.cpu))
        {
            return false;
        }
        let Some((until, irqs_on)) = cpu.parked else { return true };
        cpu.waiting.as_ref().is_none_or(|w| w.woken)
            || until.is_some_and(|at| at <= state.now)
            || (irqs_on && self.shared.irq_pending(u32::try_from(cpu.cpu).unwrap_or(0), state.now))
    }

    /// Jumps to the next deadline, timer or device call; `false` if there is none in the future.
    ///
    /// What is due already could not make anybody runnable, such as a timer on CPUs with interrupts off: to jump to
    /// it again and again would never end.
    fn advance_time(&self) -> bool {
        let mut state = self.shared.state.borrow_mut();
        let parked = state.cpus.iter().filter_map(|cpu| cpu.parked.and_then(|(until, _)| until)).min();
        let device = self.devices.iter().filter_map(|device| device.at).min();
        let timer = self.shared.kernel.get().and_then(|kernel| kernel.timers().next());
        let late = self.shared.bus.next_late();
        let due = [parked, device, timer, late].into_iter().flatten().filter(|&at| at > state.now).min();
        let Some(next) = due else { return false };
        state.now = next;
        if let Some(kernel) = self.shared.kernel.get() {
            kernel.set_clock(state.now);
        }
        true
    }

    fn resume(&self, cpus: &mut [Option<CpuCoroutine>], id: usize) {
        let wake = {
            let mut state = self.shared.state.borrow_mut();
            let now = state.now;
            let dying = state.dying;
            let cpu = &mut state.cpus[id];
            cpu.keeps = None;
            let parked = cpu.parked.take();
            let irqs_on = parked.is_some_and(|(_, irqs_on)| irqs_on);
            let woken = cpu.waiting.as_ref().is_none_or(|w| w.woken);
            let number = u32::try_from(cpu.cpu).unwrap_or(0);
            let irq = irqs_on && !woken && self.shared.irq_pending(number, now);
            cpu.takes = irq;
            set_current(number);
            if dying {
                Wake::Dying
            } else if irq {
                Wake::Irq
            } else {
                Wake::Woken
            }
        };
        let Some(coroutine) = &mut cpus[id] else { return };
        if let CoroutineResult::Return(()) = coroutine.resume(wake) {
            self.retire(&mut cpus[id]);
        }
    }

    /// Keeps the stack of a CPU that is done.
    fn retire(&self, slot: &mut Option<CpuCoroutine>) {
        if let Some(coroutine) = slot.take() {
            let stack = coroutine.into_stack();
            STACKS.with(|stacks| stacks.borrow_mut().push(stack));
        }
    }

    fn service(&mut self, index: usize) {
        let now = {
            let mut state = self.shared.state.borrow_mut();
            state.now += SERVICE_NS;
            if let Some(kernel) = self.shared.kernel.get() {
                kernel.set_clock(state.now);
            }
            state.now
        };
        let device = &mut self.devices[index];
        device.at = match device.worker.service(now) {
            Next::At(at) => Some(at),
            Next::Idle | Next::Again => None,
        };
    }

    /// Ends what is left: politely, round by round, then by force.
    fn tear_down(&self, cpus: &mut [Option<CpuCoroutine>]) {
        self.shared.state.borrow_mut().dying = true;
        for _ in 0..POLITE_ROUNDS {
            for id in 0..cpus.len() {
                self.resume(cpus, id);
            }
            if cpus.iter().all(Option::is_none) {
                return;
            }
        }
        for slot in cpus {
            if let Some(coroutine) = slot {
                coroutine.force_unwind();
            }
            self.retire(slot);
        }
    }
}

impl Drop for Lockstep {
    fn drop(&mut self) {
        let _quiet = Quiet::begin();
        let mut actors: Vec<Option<CpuCoroutine>> = Vec::new();
        actors.resize_with(TASKS, || None);
        actors.append(&mut self.tasks);
        self.shared.spawned.borrow_mut().clear();
        if actors.len() > TASKS {
            self.tear_down(&mut actors);
        }
    }
}
