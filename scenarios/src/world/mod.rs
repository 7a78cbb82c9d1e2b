//! Worlds: who runs when.
//!
//! [`lockstep`] runs everything in one thread, one actor at a time, by a seed, in virtual time: the same seed gives the
//! same run to the byte. Neighbours: `lab`, which fills a world with CPUs and devices. Left out so far: the threads
//! world.

pub mod lockstep;
pub mod panics;
mod random;

pub use lockstep::{Body, Exit, Lockstep};
pub use random::Random;
