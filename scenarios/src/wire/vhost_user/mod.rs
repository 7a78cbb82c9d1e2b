//! vhost-user: our driver on a device in another process, which maps the machine's RAM itself.
//!
//! [`VhostUser`] is the front end: a virtio transport without PCI. `link` is one connection, with a thread that waits
//! for the peer's interrupts and for its end; `lines` are the eventfds and interrupt vectors, which outlive it. The
//! peer reaches all RAM, so nothing sees what it touches. It lives in real time, so the world is that of threads.
//!
//! Neighbours: `driver::virtio::transport`, which this implements; `wire::InProc`, which takes the interrupts. Mirrors
//! QEMU's docs/interop/vhost-user.rst, front-end part. Left out: an IOMMU (so ACCESS_PLATFORM is not passed on),
//! requests from the back end, hence config changes, in-flight regions, migration.

pub(crate) mod fits;
mod front;
mod lines;
mod link;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use front::VhostUser;

/// Why a vhost-user device can't be reached, or can't be any more.
#[derive(Debug, Error)]
pub enum VhostUserError {
    /// Nobody listens there.
    #[error("vhost-user socket {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// A path that no socket can have.
    #[error("vhost-user socket {}: a socket's path has at most {limit} bytes, this one has {len}", path.display())]
    LongPath {
        /// The path.
        path: PathBuf,
        /// Bytes of it.
        len: usize,
        /// The most that there can be.
        limit: usize,
    },
    /// Something else is there.
    #[error("vhost-user socket {}: is there and no socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The peer refused a request, or answered with something else.
    #[error("vhost-user peer at {}: {request}: {source}", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What it was asked.
        request: &'static str,
        /// What is wrong.
        source: vhost::Error,
    },
    /// The peer doesn't offer what there is no other way for.
    #[error("vhost-user peer at {}: it does not offer {missing} (it offers {offered:#x})", path.display())]
    Lacks {
        /// The socket.
        path: PathBuf,
        /// The feature.
        missing: &'static str,
        /// The word that the feature's bit is missing from.
        offered: u64,
    },
    /// The peer has nothing that requests could be put on.
    #[error("vhost-user peer at {}: GET_QUEUE_NUM: it has no queues", path.display())]
    NoQueues {
        /// The socket.
        path: PathBuf,
    },
    /// The peer did not answer in time; most serve one front end after the other.
    #[error("vhost-user peer at {}: no answer for {seconds} s; one that serves another front end gives none", path.display())]
    Silent {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The peer closed the connection; its process ended, for instance.
    #[error("vhost-user peer at {} closed the connection", path.display())]
    Closed {
        /// The socket.
        path: PathBuf,
    },
    /// The peer's disk is smaller than the scenario's.
    #[error("vhost-user peer at {}: its disk has {has} bytes, and the scenario's has {wanted}", path.display())]
    Small {
        /// The socket.
        path: PathBuf,
        /// Bytes of the peer's.
        has: u64,
        /// Bytes of the scenario's.
        wanted: u64,
    },
    /// Another number of sockets than devices.
    #[error(
        "a socket for each device, in their order: the scenario has {devices}, and --wire vhost-user names {sockets}"
    )]
    Sockets {
        /// Devices of the scenario.
        devices: usize,
        /// Sockets that were named.
        sockets: usize,
    },
    /// All interrupt vectors are taken.
    #[error("no interrupt vectors for {queues} queues")]
    NoVectors {
        /// How many queues there are.
        queues: u16,
    },
    /// The host gives no eventfd, epoll or thread.
    #[error("the host gives no {what}: {source}")]
    Host {
        /// What it was.
        what: &'static str,
        /// The host's reason.
        source: io::Error,
    },
}

impl VhostUserError {
    fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}

#[cfg(test)]
mod tests;
