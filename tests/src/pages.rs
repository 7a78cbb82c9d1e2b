//! Memory that is shared with a device in another process.

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// A mapped memfd.
pub struct Pages {
    /// The file, for those who map it too.
    pub file: File,
    region: MmapRegion<()>,
}

impl Pages {
    /// So many bytes of zeroes.
    ///
    /// # Panics
    /// If the host has none.
    pub fn new(len: usize) -> Self {
        let file: File = memfd_create("pages", MemfdFlags::CLOEXEC).unwrap().into();
        file.set_len(len as u64).unwrap();
        let region = MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), len).unwrap();
        Self { file, region }
    }

    /// The file's descriptor.
    pub fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.region.size()
    }

    /// Whether it has none; it always has some.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where a byte lies in this process.
    ///
    /// # Panics
    /// Outside.
    pub fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.len());
        self.region.as_ptr().wrapping_add(offset)
    }

    fn slice(&self, offset: usize, len: usize) -> VolatileSlice<'_> {
        self.region.get_slice(offset, len).unwrap()
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// Outside.
    pub fn put(&self, offset: usize, bytes: &[u8]) {
        self.slice(offset, bytes.len()).copy_from(bytes);
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// Outside.
    pub fn get(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.slice(offset, len).read_slice(&mut bytes, 0).unwrap();
        bytes
    }
}
