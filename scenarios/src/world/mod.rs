//! Worlds: who runs when.
//!
//! [`lockstep`] runs everything in one thread, one actor at a time, by a seed, in virtual time: the same seed gives the
//! same run to the byte. [`threads`] runs CPUs and device workers on threads of the host, in real time: what works in
//! lockstep must work there too, and peers in other processes need it. Neighbours: `lab`, which fills a world with CPUs
//! and devices.

mod either;
mod inject;
pub mod lockstep;
pub mod panics;
mod random;
pub mod threads;

pub use either::{World, WorldKind};
pub use lockstep::{Exception, Lockstep, Schedule};
pub use random::Random;
pub use threads::{Placed, Threads, ThreadsError};

use lowzone_guest_mem::cpu::Cpu;

/// Points after which a CPU counts as hung.
const FUEL: u64 = 400_000_000;

/// What a CPU runs.
pub type Body = Box<dyn FnOnce(&Cpu<'_>) + Send>;

/// How a CPU's body ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// It returned.
    Finished,
    /// It panicked.
    Panicked,
    /// It deadlocked on itself or hung.
    Halted,
    /// It was still parked and was torn down.
    TornDown,
}
