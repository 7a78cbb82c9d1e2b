//! `LoggedStore`: an image, and beside it a log of what was written and flushed, in order.
//!
//! For tests of what survives a crash. The image holds what the device sees; whoever keeps the log can make from it
//! any image that a power failure could have left behind: every write before the last flush, and of those after it
//! whichever ones, whole or torn. An entry is {kind 1 byte, offset 8 bytes, length 4 bytes, data}; numbers are
//! little-endian, and one that its writer did not finish ends the log.
//!
//! Neighbours: [`super::ImageStore`]. Left out: making such an image, which is the test's.

use std::fs::File;
use std::io::Write;
use std::sync::Mutex;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::{ImageStore, StoreError, length};
use crate::lock;

const WRITE: u8 = 1;
const FLUSH: u8 = 2;
const HEADER: usize = 13;

/// An image with a log beside it.
#[derive(Debug)]
pub struct LoggedStore {
    pub(super) image: ImageStore,
    log: Mutex<File>,
    /// Whether a flush does anything.
    durable: bool,
}

/// What a log says happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// These bytes were written at this offset.
    Write(u64, Vec<u8>),
    /// Everything before was made durable.
    Flush,
}

impl LoggedStore {
    /// A store over `image` that appends to `log`. Without `durable` a flush claims to be done and does nothing.
    pub fn new(image: ImageStore, log: File, durable: bool) -> Self {
        Self { image, log: Mutex::new(log), durable }
    }

    pub(super) fn write_at<B: BitmapSlice>(&self, offset: u64, from: &VolatileSlice<'_, B>) -> Result<(), StoreError> {
        self.image.write_at(offset, from)?;
        self.note(offset, from)
    }

    fn note<B: BitmapSlice>(&self, offset: u64, from: &VolatileSlice<'_, B>) -> Result<(), StoreError> {
        let len = u32::try_from(from.len()).map_err(|_| StoreError::Size { size: from.len() as u64 })?;
        let mut entry = vec![0; HEADER + from.len()];
        entry[0] = WRITE;
        entry[1..9].copy_from_slice(&offset.to_le_bytes());
        entry[9..13].copy_from_slice(&len.to_le_bytes());
        from.copy_to(&mut entry[HEADER..]);
        Ok(lock(&self.log).write_all(&entry)?)
    }

    /// Logged as zeros that are written: after a crash there may be any part of them.
    pub(super) fn clear(&self, offset: u64, len: u64, unmap: bool) -> Result<(), StoreError> {
        self.image.clear(offset, len, unmap)?;
        let mut zeros = vec![0; length(offset, len, self.image.size)?];
        self.note(offset, &VolatileSlice::from(&mut zeros[..]))
    }

    pub(super) fn flush(&self) -> Result<(), StoreError> {
        if !self.durable {
            return Ok(());
        }
        // What the image can't promise, the log doesn't.
        self.image.flush()?;
        let mut entry = [0; HEADER];
        entry[0] = FLUSH;
        Ok(lock(&self.log).write_all(&entry)?)
    }
}

/// The entries of a log, up to one that was not finished.
///
/// ```
/// use lowzone_device::store::{Entry, entries};
///
/// let mut log = vec![1, 0, 2, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 7, 8, 9];
/// log.extend([2; 1].iter().chain([0; 12].iter()));
/// log.push(1);
/// assert_eq!(entries(&log), [Entry::Write(512, vec![7, 8, 9]), Entry::Flush]);
/// ```
pub fn entries(mut log: &[u8]) -> Vec<Entry> {
    let mut found = Vec::new();
    while let Some((header, rest)) = log.split_first_chunk::<HEADER>() {
        let [kind, a, b, c, d, e, f, g, h, length @ ..] = *header;
        let offset = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let len = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        let Some((data, rest)) = rest.split_at_checked(len) else { break };
        found.push(if kind == FLUSH { Entry::Flush } else { Entry::Write(offset, data.to_vec()) });
        log = rest;
    }
    found
}
