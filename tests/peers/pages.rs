//! Memory that is shared with a device in another process.

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// A mapped memfd.
pub struct Pages {
    pub file: File,
    region: MmapRegion<()>,
}

impl Pages {
    pub fn new(len: usize) -> Self {
        let file: File = memfd_create("pages", MemfdFlags::CLOEXEC).unwrap().into();
        file.set_len(len as u64).unwrap();
        let region = MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), len).unwrap();
        Self { file, region }
    }

    pub fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    pub fn len(&self) -> usize {
        self.region.size()
    }

    pub fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.len());
        self.region.as_ptr().wrapping_add(offset)
    }

    fn slice(&self, offset: usize, len: usize) -> VolatileSlice<'_> {
        self.region.get_slice(offset, len).unwrap()
    }

    pub fn put(&self, offset: usize, bytes: &[u8]) {
        self.slice(offset, bytes.len()).copy_from(bytes);
    }

    pub fn get(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.slice(offset, len).read_slice(&mut bytes, 0).unwrap();
        bytes
    }
}
