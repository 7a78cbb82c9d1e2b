//! The laboratory: scenario files, the worlds that run them, and the program `lowzone`.
//!
//! [`spec`] reads a scenario; [`lab`] builds the machine, its devices and its driver from it and runs the steps in a
//! [`world`], over a [`wire`]. This crate is the composition root: only it sees both halves.
#![forbid(unsafe_code)]

pub mod spec;
pub mod wire;
pub mod world;
