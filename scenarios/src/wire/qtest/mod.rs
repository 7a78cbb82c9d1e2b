//! `Qemu`: the driver's half on QEMU's devices, joined by the qtest protocol.
//!
//! QEMU runs no guest: its CPU is halted at reset and its devices are driven from outside. Register and config
//! accesses are text on a socket pair ([`protocol`]); guest RAM is the machine's own memfd, which QEMU maps as well, so
//! DMA is QEMU's and unseen by the lab (no `sees_dma`); MSI messages are aimed at words of a page that the kernel
//! never manages, and a thread that polls them passes them on to the lab's interrupt controller ([`mailbox`]). [`process`] starts and ends the
//! emulator; [`peer`] says which devices it gets, `map` which stand in for a scenario's. Time is real.
//!
//! The machine is QEMU's `pc`: its RAM splits where the lab's does, at any size up to 3 GiB (q35 is fixed to 2 GiB).
//! Neighbours: `wire::inproc`, which joins the same traits in one process. Left out: bridges, hot-plug, port I/O BARs.

pub mod bus;
pub mod mailbox;
pub(crate) mod map;
pub mod peer;
pub mod process;
pub mod protocol;

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

pub use bus::Qemu;
pub use peer::{BlkPeer, Drive, Peer};

/// What went wrong with the emulator.
#[derive(Debug, Error)]
pub enum QtestError {
    /// The program isn't there.
    #[error("{program} is not installed: the Debian package is qemu-system-x86")]
    Missing {
        /// Its name.
        program: &'static str,
    },
    /// Something of the host's that it needs could not be made.
    #[error("{what}: {source}")]
    Host {
        /// What was to be made.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// RAM that its machine can't lay out as the lab does.
    #[error("QEMU's pc puts at most 3 GiB of {ram} bytes of RAM below 4 GiB; this machine has {low} there")]
    Split {
        /// Bytes of RAM.
        ram: u64,
        /// Bytes of it below 4 GiB.
        low: u64,
    },
    /// A path that can't be put into its command line.
    #[error("{path:?} is not UTF-8, which QEMU's options must be")]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// It ended, at once or in the middle.
    #[error("QEMU ended: {said}")]
    Ended {
        /// What it printed.
        said: String,
    },
    /// It doesn't answer.
    #[error("QEMU did not answer '{command}' within {limit:?}{said}")]
    Silent {
        /// What was asked.
        command: String,
        /// How long it had.
        limit: Duration,
        /// What it printed.
        said: String,
    },
    /// An answer that is none.
    #[error("QEMU answered '{answer}' to '{command}'")]
    Answer {
        /// What was asked.
        command: String,
        /// What came.
        answer: String,
    },
}
