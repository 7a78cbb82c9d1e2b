//! The laboratory: scenario files, the worlds that run them, and the program `lowzone`.
//!
//! [`spec`] reads a scenario; [`lab`] builds the machine, its devices and its driver from it and runs the steps in a
//! [`world`], over a [`wire`]; [`expect`] judges the [`result`]. This crate is the composition root: only it sees both
//! halves. A program of one's own is a [`kit`] and [`main!`]; what a driver or device is written against is here again
//! as [`guest_mem`], [`driver`] and [`device`].
#![forbid(unsafe_code)]

mod bench;
pub mod bill;
mod cli;
mod compare;
pub mod expect;
pub mod explore;
mod fresh;
mod host;
mod inspect;
pub mod kit;
pub mod lab;
mod matrix;
mod mutants;
mod progress;
#[cfg(lowzone_mutants)]
mod removals;
mod render;
mod report;
pub mod result;
mod serve;
pub mod spec;
mod step;
mod story;
mod tour;
pub mod trace;
mod watch;
pub mod wire;
pub mod world;

pub use lowzone_device as device;
pub use lowzone_driver as driver;
pub use lowzone_guest_mem as guest_mem;

/// Runs the program of a kit with this process's arguments: `run`, `explore`, `replay`, `list` and the rest.
pub fn run_main(kit: kit::Kit) -> std::process::ExitCode {
    cli::main(kit)
}

/// The `main` of a program with a [`kit::Kit`] of its own.
///
/// ```no_run
/// use lowzone::kit::{Entry, Kit};
///
/// const KIT: Kit = Kit::new("mine").scenarios(&[Entry { name: "first", text: "story = 'x'\nstep = [{ probe = {} }]" }]);
/// lowzone::main!(KIT);
/// ```
#[macro_export]
macro_rules! main {
    ($kit:expr) => {
        fn main() -> ::std::process::ExitCode {
            $crate::run_main($kit)
        }
    };
}
