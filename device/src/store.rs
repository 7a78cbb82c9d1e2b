//! Where a block device keeps its data: a raw image file, memory of the process, or nowhere.
//!
//! Data goes straight between the store and the guest's memory: [`Store::read_at`] and [`Store::write_at`] take a
//! volatile slice, whose type depends on how the memory tracks writes. That keeps a trait object out, so [`Store`]
//! is an enum. Neighbour: [`crate::blk`]. Left out: formats other than raw, block devices of the host.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use thiserror::Error;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

use crate::lock;

mod logged;
mod memory;
mod null;

pub use logged::{Entry, LoggedStore, entries};
pub use memory::MemoryStore;
pub use null::NullStore;

/// The unit a store's size is counted in.
pub const SECTOR: u64 = 512;

/// A store that can't be opened or did not do what it was asked for.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file can't be opened: missing, or not to be read (or written).
    #[error("{}: can't be opened", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory, a pipe or a device.
    #[error("{}: not a regular file", path.display())]
    NotAFile {
        /// What was given.
        path: PathBuf,
    },
    /// A size that is zero or not in whole sectors.
    #[error("{size} bytes: a store holds one or more whole sectors of {SECTOR} bytes")]
    Size {
        /// The size in bytes.
        size: u64,
    },
    /// An image of a size that is zero or not in whole sectors.
    #[error("{}: {size} bytes: an image holds one or more whole sectors of {SECTOR} bytes", path.display())]
    ImageSize {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The file has another size than when it was opened.
    #[error("the image had {was} bytes when it was opened and has {now} now")]
    Resized {
        /// Bytes when it was opened.
        was: u64,
        /// Bytes now.
        now: u64,
    },
    /// An access beyond the end.
    #[error("{len} bytes at {offset:#x} reach beyond the store's {size}")]
    Beyond {
        /// Where it begins.
        offset: u64,
        /// Bytes.
        len: usize,
        /// Bytes of the store.
        size: u64,
    },
    /// A write to a store that is only read.
    #[error("a write at {offset:#x} of a read-only store")]
    ReadOnly {
        /// Where it begins.
        offset: u64,
    },
    /// The host's input or output failed.
    #[error("input or output failed")]
    Io(#[from] io::Error),
    /// The transfer between file and memory failed.
    #[error("the transfer failed")]
    Transfer(#[from] VolatileMemoryError),
}

/// A place for a block device's data. Sizes and offsets are in bytes.
#[derive(Debug)]
pub enum Store {
    /// A raw image file.
    Image(ImageStore),
    /// Memory of the process.
    Memory(MemoryStore),
    /// Nothing: reads give zeroes, writes are dropped.
    Null(NullStore),
    /// A raw image file, and beside it what was written and flushed, in order.
    Logged(LoggedStore),
}

impl Store {
    /// Bytes it holds: a multiple of 512, and never zero.
    pub fn capacity(&self) -> u64 {
        match self {
            Self::Image(image) => image.size,
            Self::Memory(memory) => memory.size,
            Self::Null(null) => null.size,
            Self::Logged(logged) => logged.image.size,
        }
    }

    /// Whether every write is refused.
    pub fn read_only(&self) -> bool {
        match self {
            Self::Image(image) => image.read_only,
            Self::Logged(logged) => logged.image.read_only,
            Self::Memory(_) | Self::Null(_) => false,
        }
    }

    /// Fills `to` from `offset` on.
    ///
    /// # Errors
    /// [`StoreError`]; then any part of `to` may have been overwritten.
    pub fn read_at<B: BitmapSlice>(&self, offset: u64, to: &VolatileSlice<'_, B>) -> Result<(), StoreError> {
        match self {
            Self::Image(image) => image.read_at(offset, to),
            Self::Memory(memory) => memory.read_at(offset, to),
            Self::Null(null) => null.read_at(offset, to),
            Self::Logged(logged) => logged.image.read_at(offset, to),
        }
    }

    /// Stores `from` at `offset`.
    ///
    /// # Errors
    /// [`StoreError`]; then any part of the range may have been overwritten.
    pub fn write_at<B: BitmapSlice>(&self, offset: u64, from: &VolatileSlice<'_, B>) -> Result<(), StoreError> {
        match self {
            Self::Image(image) => image.write_at(offset, from),
            Self::Memory(memory) => memory.write_at(offset, from),
            Self::Null(null) => null.write_at(offset, from),
            Self::Logged(logged) => logged.write_at(offset, from),
        }
    }

    /// Makes `len` bytes from `offset` on read as zeros, and gives their space back if it may (`unmap`) and can.
    ///
    /// # Errors
    /// [`StoreError`]; then any part of the range may have been cleared.
    pub fn clear(&self, offset: u64, len: u64, unmap: bool) -> Result<(), StoreError> {
        match self {
            Self::Image(image) => image.clear(offset, len, unmap),
            Self::Memory(memory) => memory.clear(offset, len),
            Self::Null(null) => null.clear(offset, len),
            Self::Logged(logged) => logged.clear(offset, len, unmap),
        }
    }

    /// Returns when everything written before survives a crash of the host.
    ///
    /// # Errors
    /// [`StoreError`] if that can't be promised.
    pub fn flush(&self) -> Result<(), StoreError> {
        match self {
            Self::Image(image) => image.flush(),
            Self::Memory(_) | Self::Null(_) => Ok(()),
            Self::Logged(logged) => logged.flush(),
        }
    }
}

fn check_size(size: u64) -> Result<u64, StoreError> {
    if size == 0 || !size.is_multiple_of(SECTOR) { Err(StoreError::Size { size }) } else { Ok(size) }
}

/// A length in bytes as the host counts them.
fn length(offset: u64, len: u64, size: u64) -> Result<usize, StoreError> {
    usize::try_from(len).map_err(|_| StoreError::Beyond { offset, len: usize::MAX, size })
}

fn check_range(offset: u64, len: usize, size: u64) -> Result<(), StoreError> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= size => Ok(()),
        _ => Err(StoreError::Beyond { offset, len, size }),
    }
}

/// A raw image file. Its size is fixed when it is opened; a change under way fails every later access.
#[derive(Debug)]
pub struct ImageStore {
    file: Mutex<File>,
    size: u64,
    read_only: bool,
}

impl ImageStore {
    /// Opens the image at `path`, for reading alone if `read_only`. Nothing is created or changed.
    ///
    /// # Errors
    /// [`StoreError::Open`], [`StoreError::NotAFile`] or [`StoreError::ImageSize`].
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let failed = |source| StoreError::Open { path: path.to_owned(), source };
        // Asked before opening, which would wait for ever on a pipe.
        if !path.metadata().map_err(failed)?.is_file() {
            return Err(StoreError::NotAFile { path: path.to_owned() });
        }
        let file = OpenOptions::new().read(true).write(!read_only).open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        check_size(size).map_err(|_| StoreError::ImageSize { path: path.to_owned(), size })?;
        Ok(Self { file: Mutex::new(file), size, read_only })
    }

    /// Positions the file at `offset`, once size and range are found good.
    fn seek(&self, file: &mut File, offset: u64, len: usize) -> Result<(), StoreError> {
        self.check_unchanged(file)?;
        check_range(offset, len, self.size)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(())
    }

    fn check_unchanged(&self, file: &File) -> Result<(), StoreError> {
        let now = file.metadata()?.len();
        if now == self.size { Ok(()) } else { Err(StoreError::Resized { was: self.size, now }) }
    }

    fn read_at<B: BitmapSlice>(&self, offset: u64, to: &VolatileSlice<'_, B>) -> Result<(), StoreError> {
        let mut file = lock(&self.file);
        self.seek(&mut file, offset, to.len())?;
        Ok(file.read_exact_volatile(&mut to.offset(0)?)?)
    }

    fn write_at<B: BitmapSlice>(&self, offset: u64, from: &VolatileSlice<'_, B>) -> Result<(), StoreError> {
        if self.read_only {
            return Err(StoreError::ReadOnly { offset });
        }
        let mut file = lock(&self.file);
        self.seek(&mut file, offset, from.len())?;
        Ok(file.write_all_volatile(from)?)
    }

    /// A hole where the space may go, zeros that keep it where not; both are written where the file system has neither.
    fn clear(&self, offset: u64, len: u64, unmap: bool) -> Result<(), StoreError> {
        if self.read_only {
            return Err(StoreError::ReadOnly { offset });
        }
        let mut file = lock(&self.file);
        let bytes = length(offset, len, self.size)?;
        self.seek(&mut file, offset, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        let how = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        loop {
            match fallocate(&*file, how | FallocateFlags::KEEP_SIZE, offset, len) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(write_zeros(&mut file, bytes)?),
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
    }

    fn flush(&self) -> Result<(), StoreError> {
        let file = lock(&self.file);
        self.check_unchanged(&file)?;
        Ok(file.sync_data()?)
    }
}

/// Writes zeros from where the file is.
fn write_zeros(file: &mut File, len: usize) -> io::Result<()> {
    const ZEROS: [u8; 16 << 10] = [0; 16 << 10];
    let mut left = len;
    while left > 0 {
        let step = left.min(ZEROS.len());
        file.write_all(&ZEROS[..step])?;
        left -= step;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
