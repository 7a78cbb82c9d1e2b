//! What a connection's process is told by the server: one line of JSON on its command line.
//!
//! Neighbours: [`super::server`] writes it, [`super::session`] reads it.

use std::fs::File;
use std::path::PathBuf;

use lowzone_device::blk::BlkOptions;
use lowzone_device::store::{ImageStore, LoggedStore, NullStore, Store};
use serde::{Deserialize, Serialize};

use super::error::ServeError;

/// What a connection serves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Config {
    /// Its number, from 1.
    pub number: u64,
    /// Queues.
    pub queues: u16,
    /// The largest size of a queue.
    pub queue_size: u16,
    /// Refuse writes.
    pub read_only: bool,
    /// Offer DISCARD and WRITE_ZEROES.
    pub discard: bool,
    /// Address bits the device decodes.
    pub width: u8,
    /// Where the data is.
    pub store: StoreAt,
    /// Send records of every access.
    pub trace: bool,
    /// The monotonic clock when the server began, in nanoseconds: what records count from.
    pub began: u64,
}

/// Where a connection finds the store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum StoreAt {
    /// Nowhere: this many bytes of zeroes.
    Null(u64),
    /// In the file of this inherited descriptor.
    File {
        /// The descriptor.
        fd: i32,
        /// Append what is written and flushed to this file, for tests of what survives.
        log: Option<PathBuf>,
        /// A flush does nothing: for tests that such a device is caught.
        no_flush: bool,
    },
}

impl Config {
    /// The device's options.
    pub fn options(&self) -> BlkOptions {
        BlkOptions {
            queues: self.queues,
            queue_size: self.queue_size,
            read_only: self.read_only,
            discard: self.discard,
            depth: usize::from(self.queue_size),
            ..BlkOptions::default()
        }
    }

    /// Opens the store; each call gives a file position of its own, so that queues don't wait for one another.
    pub fn open(&self) -> Result<Store, ServeError> {
        let failed = |source: std::io::Error| ServeError::Log { source };
        Ok(match &self.store {
            StoreAt::Null(size) => Store::Null(NullStore::new(*size)?),
            StoreAt::File { fd, log, no_flush } => {
                let image = ImageStore::open(format!("/proc/self/fd/{fd}"), self.read_only)?;
                match log {
                    None => Store::Image(image),
                    Some(path) => {
                        let log = File::options().append(true).create(true).open(path).map_err(failed)?;
                        Store::Logged(LoggedStore::new(image, log, !no_flush))
                    }
                }
            }
        })
    }
}
