//! `lowzone serve`: our virtio-blk device for drivers in other processes, over vhost-user.
//!
//! The server ([`server`]) owns the socket ([`socket`]) and the store, and gives each connection to a process of its
//! own ([`session`]), one at a time. That process maps the peer's memory ([`memory`]), speaks the protocol
//! ([`vhost_user`]) and runs one thread for each queue ([`queue`], [`poller`]), which drives the device's own worker;
//! [`link`] brings its counts and its trace ([`tap`]) back to the server.
//!
//! A process for each connection is there for the one thing a peer can do that no check prevents: truncate the file
//! behind memory that is mapped. Touching such memory ends a process with SIGBUS, and it ends that one only: the
//! server says so and takes the next connection. Before it maps a file it looks at its size, so a file that was too
//! short from the beginning is an ordinary error.
//!
//! Mirrors QEMU's `docs/interop/vhost-user.rst`. Left out: packed rings, in-flight tracking across a crash of ours,
//! live migration, a vIOMMU's IOTLB messages, several connections at once.

mod claims;
pub(crate) mod cli;
mod config;
mod error;
mod link;
mod memory;
mod poller;
mod queue;
mod server;
mod session;
mod socket;
mod tap;
mod vhost_user;

pub(crate) use error::ServeError;
pub(crate) use tap::monotonic;
