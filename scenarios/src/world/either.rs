//! `World`: one or the other.
//!
//! Neighbours: `lockstep`, `threads`; `lab`, which has one. Left out: a trait; there are two worlds, and one program.

use std::fmt;
use std::sync::Arc;

use clap::ValueEnum;
use lowzone_guest_mem::fault::FaultSpec;
use lowzone_guest_mem::kernel::KernelRef;
use lowzone_guest_mem::trace::{Kind, Producer, Record};

use super::{Body, Exit, Lockstep, Placed, Schedule, Threads, ThreadsError};
use crate::explore::observer::Observer;
use crate::wire::InProc;

/// Which world a scenario runs in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum WorldKind {
    /// One actor at a time, in virtual time, by the seed: the same run again, to the byte. For finding bugs.
    #[default]
    Lockstep,
    /// CPUs and devices on threads of this machine, in real time: no two runs are the same. For real races and real speed.
    Threads,
}

impl WorldKind {
    /// Its name on the command line and in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lockstep => "lockstep",
            Self::Threads => "threads",
        }
    }

    /// What the times of a record count.
    pub const fn clock(self) -> &'static str {
        match self {
            Self::Lockstep => "virtual-ns",
            Self::Threads => "monotonic-ns",
        }
    }
}

impl fmt::Display for WorldKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The world that a lab runs in.
pub enum World {
    /// See [`super::lockstep`].
    Lockstep(Lockstep),
    /// See [`super::threads`].
    Threads(Threads),
}

impl World {
    /// A world at time 0 with these device queues; the seed is lockstep's, and the chance of injectors.
    ///
    /// # Errors
    /// [`ThreadsError`], of threads only.
    pub fn new(
        kind: WorldKind,
        kernel: KernelRef,
        bus: Arc<InProc>,
        workers: Vec<Placed>,
        seed: u64,
    ) -> Result<Self, ThreadsError> {
        Ok(match kind {
            WorldKind::Lockstep => {
                let workers = workers.into_iter().map(|(_, worker)| worker).collect();
                Self::Lockstep(Lockstep::new(kernel, bus, workers, seed))
            }
            WorldKind::Threads => Self::Threads(Threads::new(kernel, bus, workers, seed)?),
        })
    }

    /// Which it is.
    pub fn kind(&self) -> WorldKind {
        match self {
            Self::Lockstep(_) => WorldKind::Lockstep,
            Self::Threads(_) => WorldKind::Threads,
        }
    }

    /// Nanoseconds since it began.
    pub fn now(&self) -> u64 {
        match self {
            Self::Lockstep(world) => world.now(),
            Self::Threads(world) => world.now(),
        }
    }

    /// Runs one body a CPU, until all have ended; how each did, by CPU.
    pub fn run(&mut self, bodies: Vec<Body>) -> Vec<Exit> {
        match self {
            Self::Lockstep(world) => world.run(bodies),
            Self::Threads(world) => world.run(bodies),
        }
    }

    /// Limits the points that may be passed before a CPU counts as hung: by the whole world in lockstep, by each CPU in
    /// threads.
    pub fn set_fuel(&mut self, points: u64) {
        match self {
            Self::Lockstep(world) => world.set_fuel(points),
            Self::Threads(world) => world.set_fuel(points),
        }
    }

    /// From now on this picks who goes on in lockstep; how many could, at each choice point of the one before.
    pub fn schedule(&mut self, schedule: Schedule) -> Vec<u8> {
        match self {
            Self::Lockstep(world) => world.schedule(schedule),
            Self::Threads(_) => Vec::new(),
        }
    }

    /// From now on `observer` sees every point; the one before it comes back.
    pub fn observe(&mut self, observer: Option<Observer>) -> Option<Observer> {
        match self {
            Self::Lockstep(world) => world.observe(observer),
            Self::Threads(world) => world.observe(observer),
        }
    }

    /// From now on these injectors decide at every point that nobody else fails; the ones before them come back, with
    /// what they counted.
    pub fn inject(&mut self, spec: FaultSpec) -> FaultSpec {
        match self {
            Self::Lockstep(world) => world.inject(spec),
            Self::Threads(world) => world.inject(spec),
        }
    }

    /// The injectors, with what they counted so far.
    pub fn injectors(&self) -> FaultSpec {
        match self {
            Self::Lockstep(world) => world.injectors(),
            Self::Threads(world) => world.injectors(),
        }
    }

    /// Stops in the debugger at the first point after this event; in lockstep only, where events have numbers.
    pub fn stop_at(&mut self, event: Option<u64>) {
        if let Self::Lockstep(world) = self {
            world.stop_at(event);
        }
    }

    /// Marks the beginning of a step in the record of `kernel`.
    pub fn mark(&self, kernel: KernelRef, step: u64) {
        if let Some(kernel) = kernel.get() {
            let record = Record { ts: self.now(), addr: step, len: 0, kind: Kind::Step, dev: 0, tag: step };
            kernel.trace().emit(Producer(0), record);
        }
    }
}
