//! The threads world: CPUs are OS threads, device workers event loops, and time is real.
//!
//! Each CPU of the machine has a thread for the world's whole life, and so has each worker; between steps they sleep.
//! Whoever waits looks for a while before it sleeps (`poll`), so that a request costs no trip through the host's
//! scheduler. Interrupts are taken by the CPU that they are for, at its points, in its waits, or by its idle task.
//!
//! What can't go on is told and torn down: a deadlock when it happens, a step in which nothing moves after the
//! [patience](Threads::set_patience), a body that passes too many points when it does. A CPU that passes no points can't
//! be stopped: its machine is [condemned](lowzone_guest_mem::kernel::Kernel::condemn) and its thread left to itself.
//!
//! Neighbours: `guest_mem::env`, which this implements; `wire::InProc`, which tells whom to wake. Left out: order; two
//! runs are never the same, so there is no digest. Peers in other processes belong here, where time is theirs too; a
//! lockstep world that waits for one is left out.

mod baton;
mod bell;
mod cpu;
mod cpu_env;
mod decider;
mod ear;
mod poll;
mod seat;
mod shared;
mod tasks;
mod waits;
mod watch;
mod worker;

use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use lowzone_device::Worker;
use lowzone_guest_mem::fault::FaultSpec;
use lowzone_guest_mem::finding::FindingKind;
use lowzone_guest_mem::kernel::KernelRef;
use thiserror::Error;

use super::{Body, Exit, FUEL};
use crate::explore::observer::Observer;
use crate::wire::InProc;
use baton::Baton;
use bell::Bell;
use seat::{Job, Seat, State};
use shared::{Roster, Shared};
use watch::{Over, watch};

/// How long nothing may move: twice what Linux's block layer gives a request.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long CPUs that are torn down are waited for.
const GRACE: Duration = Duration::from_secs(2);

/// Why a world of threads could not be made.
#[derive(Debug, Error)]
pub enum ThreadsError {
    /// The host gives no more threads.
    #[error("the host gives no thread for {what}: {source}")]
    Thread {
        /// What it was for.
        what: String,
        /// The host's reason.
        source: io::Error,
    },
    /// The host gives no more eventfds.
    #[error("the host gives no eventfd: {0}")]
    EventFd(io::Error),
    /// The host gives no event loop.
    #[error("the host gives no event loop: {0}")]
    Events(event_manager::Error),
}

/// A worker and the slot of the function that it belongs to.
pub type Placed = (usize, Box<dyn Worker>);

/// A world of threads around one machine and its bus.
pub struct Threads {
    shared: Arc<Shared>,
    crew: Vec<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
    patience: Duration,
    /// A CPU's thread can't be stopped.
    lost: bool,
}

impl Threads {
    /// A world whose time begins now, with these device queues; one for each bus. `seed` is the chance of injectors.
    /// Peers that interrupt by a descriptor are on the bus already.
    ///
    /// # Errors
    /// [`ThreadsError`]: the host has no threads or descriptors left.
    pub fn new(kernel: KernelRef, bus: Arc<InProc>, workers: Vec<Placed>, seed: u64) -> Result<Self, ThreadsError> {
        let cpus = kernel.get().map_or(1, |kernel| kernel.config().cpus);
        let hearing = (0..cpus).map(|cpu| Seat::hearing(bus.outside(cpu)));
        let resting = std::iter::repeat_with(|| Ok(Seat::default())).take(tasks::MOST);
        let seats = hearing.chain(resting).collect::<io::Result<_>>().map_err(ThreadsError::EventFd)?;
        let batons = (0..cpus).map(|_| Baton::default()).collect();
        let bells = workers.iter().map(|&(slot, _)| Bell::new(slot)).collect::<io::Result<_>>();
        let roster = Arc::new(Roster { seats, batons, bells: bells.map_err(ThreadsError::EventFd)? });
        if let Some(kernel) = kernel.get() {
            kernel.trace().share();
        }
        bus.on_stir({
            let roster = roster.clone();
            move |who| roster.stir(who)
        });
        let shared = Arc::new(Shared::new((kernel, seed), bus, roster, FUEL));
        let mut world = Self { shared, crew: Vec::new(), workers: Vec::new(), patience: PATIENCE, lost: false };
        world.hire(workers)?;
        Ok(world)
    }

    /// Starts the threads; those that were started are ended by `Drop` if one can't be.
    fn hire(&mut self, workers: Vec<Placed>) -> Result<(), ThreadsError> {
        for id in 0..self.shared.cpus() {
            let shared = self.shared.clone();
            let name = format!("cpu{id}");
            let thread = Builder::new().name(name.clone()).stack_size(cpu::STACK);
            let thread = thread.spawn(move || cpu::attend(&shared, id));
            let thread = thread.map_err(|source| ThreadsError::Thread { what: name, source })?;
            self.crew.push(thread);
        }
        for (index, (slot, worker)) in workers.into_iter().enumerate() {
            let shared = self.shared.clone();
            let name = format!("device{slot}.{index}");
            let (begun, answer) = sync_channel(1);
            let serve = move || worker::serve(worker, &shared.roster.bells[index], &shared, &begun);
            let thread = Builder::new().name(name.clone()).spawn(serve);
            self.workers.push(thread.map_err(|source| ThreadsError::Thread { what: name, source })?);
            // A thread that is gone without an answer panicked; the first step says so.
            answer.recv().unwrap_or(Ok(()))?;
        }
        Ok(())
    }

    /// From now on `observer` sees every point; the one before it comes back.
    pub fn observe(&mut self, observer: Option<Observer>) -> Option<Observer> {
        self.shared.decider.observe(observer)
    }

    /// From now on these injectors decide what nobody else fails; the ones before them come back.
    pub fn inject(&mut self, spec: FaultSpec) -> FaultSpec {
        self.shared.decider.inject(spec)
    }

    /// The injectors, with what they counted so far.
    pub fn injectors(&self) -> FaultSpec {
        self.shared.decider.injectors()
    }

    /// Limits the points that one CPU may pass before it counts as hung.
    pub fn set_fuel(&mut self, points: u64) {
        self.shared.fuel.store(points, Ordering::Relaxed);
    }

    /// Limits how long points may be passed with no device and no interrupt moving anything, before a step is given up;
    /// ten times as long where none are passed. A minute unless set.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Whether CPUs that wait look for a while before they sleep; they do unless told.
    pub fn set_looking(&mut self, looking: bool) {
        self.shared.looking.store(looking, Ordering::Relaxed);
    }

    /// Points passed so far.
    pub fn points(&self) -> u64 {
        watch::points(&self.shared)
    }

    /// Nanoseconds since the world began.
    pub fn now(&self) -> u64 {
        self.shared.now()
    }

    /// Runs one body a CPU, until all have ended; how each did, by CPU.
    ///
    /// A body beyond the machine's CPUs never runs: it counts as torn down.
    pub fn run(&mut self, bodies: Vec<Body>) -> Vec<Exit> {
        self.run_until(bodies, |_| {})
    }

    /// [`Threads::run`], but `before_teardown` sees the machine while CPUs are still parked, if any are.
    pub fn run_until(&mut self, bodies: Vec<Body>, before_teardown: impl FnOnce(usize)) -> Vec<Exit> {
        let given = bodies.len();
        if self.lost {
            return vec![Exit::TornDown; given];
        }
        self.shared.closing.store(false, Ordering::SeqCst);
        let mut bodies = bodies.into_iter();
        for seat in self.shared.roster.seats.iter().take(self.shared.cpus()) {
            seat.give(bodies.next().map_or(Job::Idle, Job::Run));
        }
        let shared = self.shared.clone();
        let running =
            || shared.roster.seats.iter().take(given.min(shared.cpus())).filter(|seat| seat.exit().is_none()).count();
        let mut over = watch(&shared, self.patience, || running() == 0, || self.fit());
        match over {
            Over::Deadlock => shared.report(FindingKind::Deadlock { parked: running() }),
            Over::Hang => shared.report(FindingKind::Hang { points: self.points() }),
            Over::Done => over = self.dismiss(),
            Over::NoWorker => {}
        }
        let left = running();
        if left > 0 {
            before_teardown(left);
        }
        let exit =
            |at: usize| shared.roster.seats[..shared.cpus()].get(at).and_then(Seat::exit).unwrap_or(Exit::TornDown);
        let exits = (0..given).map(exit).collect();
        if over != Over::Done {
            self.tear_down();
        }
        self.pass_on();
        exits
    }

    /// Whether every worker is at work.
    fn fit(&self) -> bool {
        !self.workers.iter().any(JoinHandle::is_finished)
    }

    /// Sends every CPU home once it has no interrupt left to take.
    fn dismiss(&self) -> Over {
        self.shared.call(&self.shared.closing);
        watch(&self.shared, self.patience, || self.home(self.shared.cpus()), || self.fit())
    }

    fn all_home(&self) -> bool {
        self.home(usize::MAX)
    }

    fn home(&self, first: usize) -> bool {
        self.shared.roster.seats.iter().take(first).all(|seat| seat.state() == State::Home)
    }

    /// Ends what is left; who doesn't listen is left behind, and the machine with it.
    fn tear_down(&mut self) {
        self.shared.call(&self.shared.dying);
        if self.shared.await_news(GRACE, || self.all_home()) {
            self.shared.dying.store(false, Ordering::SeqCst);
            return;
        }
        self.lost = true;
        if let Some(kernel) = self.shared.kernel.get() {
            kernel.condemn();
        }
    }

    /// A worker's panic goes on here, as it would in lockstep.
    fn pass_on(&mut self) {
        while let Some(at) = self.workers.iter().position(JoinHandle::is_finished) {
            if let Err(panic) = self.workers.swap_remove(at).join() {
                resume_unwind(panic);
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if !self.lost && !self.all_home() {
            // Whoever ran the step unwinds.
            self.tear_down();
        }
        self.shared.roster.bells.iter().for_each(Bell::stop);
        for worker in self.workers.drain(..) {
            // A panic was passed on by the step in which it happened, or nobody was there to see it.
            drop(worker.join());
        }
        let at_home = self.shared.roster.seats.iter().filter(|seat| seat.state() == State::Home);
        at_home.for_each(|seat| seat.give(Job::Quit));
        if !self.lost {
            let tasks = std::mem::take(&mut *self.shared.task_crew());
            for thread in self.crew.drain(..).chain(tasks) {
                drop(thread.join());
            }
        }
    }
}
