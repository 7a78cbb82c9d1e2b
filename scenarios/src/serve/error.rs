//! What can be wrong with a socket, a store, a peer or what it says.
//!
//! Neighbours: everything in [`super`]. Errors of the server end it with exit code 2; errors of a connection end the
//! connection and are told on standard error.

use std::io;
use std::path::PathBuf;

use lowzone_device::blk::DeviceError;
use lowzone_device::pci::BusMasterError;
use lowzone_device::store::StoreError;
use thiserror::Error;

use super::memory::MemoryError;
use super::queue::QueueError;

/// Why nothing is served, or a connection ended.
#[derive(Debug, Error)]
pub(crate) enum ServeError {
    #[error("{}: a socket's path has at most {limit} bytes, this one has {len}", path.display())]
    LongPath { path: PathBuf, len: usize, limit: usize },
    #[error("{}: another server listens there", path.display())]
    InUse { path: PathBuf },
    #[error("{}: is there and no socket; it is left alone", path.display())]
    NotASocket { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the log of writes: {source}")]
    Log { source: io::Error },
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    BusMaster(#[from] BusMasterError),
    #[error("{what}: {source}")]
    System { what: &'static str, source: io::Error },
    #[error(transparent)]
    Trace(#[from] crate::trace::TraceError),
    #[error("the server's words can't be read: {0}")]
    Config(serde_json::Error),
    #[error("no vhost-user: a message begins with {code:#x}, {flags:#x}, where a request of version 1 was due")]
    Foreign { code: u32, flags: u32 },
    #[error("message {code} is none that this device knows")]
    Unknown { code: u32 },
    #[error("message {name} is not served: nothing of the kind was offered")]
    Unserved { name: String },
    #[error("IOTLB messages are not served: the peer put the device behind a vIOMMU")]
    Iotlb,
    #[error("message {name} claims {size} bytes: at most {limit}")]
    Oversized { name: String, size: u32, limit: usize },
    #[error("the peer was gone in the middle of a message, after {got} bytes")]
    Cut { got: usize },
    #[error("the peer sent {got} bytes of a message and then nothing for {seconds} s")]
    Stalled { got: usize, seconds: u64 },
    #[error("message {name}: {source}")]
    Message { name: String, source: vhost::vhost_user::Error },
    #[error("message {name} of {size} bytes: its length or what is in it is wrong")]
    Malformed { name: String, size: u32 },
    #[error("message {name}: {has} files came with it, and {wanted} belong to it")]
    Files { name: String, has: usize, wanted: usize },
    #[error("message {name}: features {wanted:#x} were not offered")]
    Features { name: &'static str, wanted: u64 },
    #[error("queue {index} of {queues}")]
    NoQueue { index: u32, queues: usize },
    #[error("memory: {0}")]
    Memory(#[from] MemoryError),
    #[error("queue {index}: {source}")]
    Queue { index: usize, source: QueueError },
}

impl ServeError {
    /// Names the call to the system that failed.
    pub(super) fn system(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
