//! One CPU's thread as the world sees it: what it does, what it is given to do, and how it is woken.
//!
//! Every flag is set before the thread is roused and looked at before it sleeps, so no wake-up is lost. A CPU sleeps on
//! its descriptors (`ear`), a task, which no peer interrupts, parks: an unpark that comes first makes the park return.
//! Neighbours: `cpu_env` and `idle`, the thread's own side; `watch`, which looks on.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use lowzone_guest_mem::env::Task;

use super::ear::Ear;
use crate::wire::Outside;
use crate::world::{Body, Exit};

/// What a CPU does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Nothing, between two steps.
    Home = 0,
    /// It runs, or waits with a deadline.
    Busy = 1,
    /// It waits for interrupts only.
    Idle = 2,
    /// It waits without a deadline: another CPU must wake it.
    Waits = 3,
}

/// What a CPU is to do in a step.
pub(super) enum Job {
    /// This, and then to take interrupts.
    Run(Body),
    /// A task, and nothing after it.
    Task(Task),
    /// To take interrupts.
    Idle,
    /// To end.
    Quit,
}

#[derive(Default)]
struct Desk {
    job: Option<Job>,
    exit: Option<Exit>,
}

/// One CPU.
#[repr(align(128))]
#[derive(Default)]
pub(super) struct Seat {
    state: AtomicU8,
    /// An interrupt may be pending.
    irq: AtomicBool,
    points: AtomicU64,
    /// Interrupts taken.
    irqs: AtomicU64,
    /// `None`: a task's.
    ear: Option<Ear>,
    thread: OnceLock<Thread>,
    desk: Mutex<Desk>,
}

impl Seat {
    /// That of a CPU, which peers interrupt by these descriptors; the one that is made by default is a task's.
    ///
    /// # Errors
    /// The host's, out of descriptors for instance.
    pub(super) fn hearing(outside: Vec<Arc<Outside>>) -> io::Result<Self> {
        Ok(Self { ear: Some(Ear::new(outside)?), ..Self::default() })
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the thread of a task's seat, for those who wake it.
    pub(super) fn seat(&self, thread: &Thread) {
        self.thread.get_or_init(|| thread.clone());
    }

    /// Whether a thread sits here.
    pub(super) fn taken(&self) -> bool {
        self.thread.get().is_some()
    }

    /// Makes the thread look again.
    pub(super) fn rouse(&self) {
        if let Some(ear) = &self.ear {
            ear.rouse();
        } else if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Its thread sleeps until roused, for at most so long, unless `over`.
    pub(super) fn sleep(&self, most: Option<Duration>, over: impl Fn() -> bool) {
        match (&self.ear, most) {
            (Some(ear), _) => ear.sleep(most, over),
            (None, _) if over() => {}
            (None, Some(most)) => std::thread::park_timeout(most),
            (None, None) => std::thread::park(),
        }
    }

    /// Makes interrupts of what the CPU's peers have done. No system call.
    pub(super) fn look(&self) {
        self.ear.iter().for_each(Ear::look);
    }

    /// An interrupt may be pending.
    pub(super) fn interrupt(&self) {
        self.irq.store(true, Ordering::SeqCst);
        self.rouse();
    }

    /// Whether an interrupt may be pending.
    pub(super) fn irq(&self) -> bool {
        self.irq.load(Ordering::SeqCst)
    }

    /// Takes the mark that an interrupt may be pending; it is set again by who finds one.
    pub(super) fn take_irq(&self) -> bool {
        self.irq() && self.irq.swap(false, Ordering::SeqCst)
    }

    /// An interrupt was found, and more may be pending.
    pub(super) fn irq_taken(&self) {
        self.irqs.fetch_add(1, Ordering::Relaxed);
        self.irq.store(true, Ordering::SeqCst);
    }

    /// Interrupts taken so far.
    pub(super) fn irqs(&self) -> u64 {
        self.irqs.load(Ordering::Relaxed)
    }

    /// Passes a point; how many the CPU passed.
    pub(super) fn pass(&self) -> u64 {
        // Only the CPU's own thread counts.
        let points = self.points.load(Ordering::Relaxed) + 1;
        self.points.store(points, Ordering::Relaxed);
        points
    }

    /// Points passed so far.
    pub(super) fn points(&self) -> u64 {
        self.points.load(Ordering::Relaxed)
    }

    /// What the CPU does.
    pub(super) fn state(&self) -> State {
        match self.state.load(Ordering::SeqCst) {
            0 => State::Home,
            2 => State::Idle,
            3 => State::Waits,
            _ => State::Busy,
        }
    }

    /// The CPU's own thread says what it does.
    pub(super) fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::SeqCst);
    }

    /// Gives the CPU something to do.
    pub(super) fn give(&self, job: Job) {
        {
            let mut desk = self.desk();
            (desk.job, desk.exit) = (Some(job), None);
            self.set_state(State::Busy);
        }
        self.rouse();
    }

    /// What the CPU is to do, once there is something.
    pub(super) fn next_job(&self) -> Job {
        loop {
            if let Some(job) = self.desk().job.take() {
                return job;
            }
            self.sleep(None, || self.desk().job.is_some());
        }
    }

    /// Notes how the body ended.
    pub(super) fn ended(&self, exit: Exit) {
        self.desk().exit = Some(exit);
    }

    /// How the body ended, if it did.
    pub(super) fn exit(&self) -> Option<Exit> {
        self.desk().exit
    }
}
