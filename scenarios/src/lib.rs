//! The laboratory: scenario files, the worlds that run them, and the program `lowzone`.
//!
//! [`spec`] reads a scenario; [`lab`] builds the machine, its devices and its driver from it and runs the steps in a
//! [`world`], over a [`wire`]; [`expect`] judges the [`result`]. This crate is the composition root: only it sees both
//! halves.
#![forbid(unsafe_code)]

mod bench;
pub mod cli;
mod compare;
pub mod expect;
pub mod explore;
pub mod lab;
mod progress;
mod render;
pub mod result;
pub mod spec;
mod step;
pub mod trace;
pub mod wire;
pub mod world;
