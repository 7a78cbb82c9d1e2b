//! The virtio block device: its facts, its configuration, its requests and the worker that serves a queue.
//!
//! [`blk`] builds one, function and workers, over a [`crate::store::Store`]. Mirrors virtio 1.2 section 5.2 and
//! Linux's `drivers/block/virtio_blk.c`. Left out: secure erase, zones, lifetime, write-back switching.

pub mod config;
mod device;
mod ranges;
mod request;
mod worker;

pub use config::BlkOptions;
pub use device::{Blk, BlkQueues, DeviceError, Hardware, blk};
pub use request::CHUNK;
pub use worker::BlkWorker;

#[cfg(test)]
mod tests;
