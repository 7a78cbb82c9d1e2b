//! The virtio network device: its facts, its packets, what becomes of them, and the worker of its queue pair.
//!
//! [`net`] builds one, function and worker. It has no wire of its own: what a driver sends comes back to it (loop-back),
//! or packets come from a seeded [`Source`] and what is sent goes nowhere. Every packet that does not arrive is counted
//! by its cause. Mirrors virtio 1.2 section 5.1. Left out: several queue pairs, the control queue, offloads,
//! mergeable buffers, link status.

pub mod config;
pub mod counters;
mod device;
pub mod frame;
mod worker;

pub use config::{NetOptions, Source};
pub use counters::{Drops, Packets};
pub use device::{Net, NetDeviceError, net};
pub use worker::NetWorker;
