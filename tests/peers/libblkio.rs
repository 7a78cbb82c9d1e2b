//! The crate `blkio` (libblkio's core) on a vhost-user socket.
#![allow(unsafe_code, reason = "it leaves completions in uninitialised memory of the caller's")]

use std::mem::MaybeUninit;
use std::path::Path;
use std::time::Duration;

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};

use lowzone_tests::pages::Pages;

/// A disk, its queues and a shared buffer.
pub struct BlkioDisk {
    pub queues: Vec<Blkioq>,
    pub blkio: Blkio,
    pub pages: Pages,
}

impl BlkioDisk {
    pub fn connect(socket: &Path, queues: i32, bytes: usize) -> blkio::Result<Self> {
        let mut blkio = Blkio::new("virtio-blk-vhost-user")?;
        blkio.set_str("path", socket.to_str().unwrap())?;
        blkio.connect()?;
        blkio.set_i32("num-queues", queues)?;
        let started = blkio.start()?;
        let pages = Pages::new(bytes);
        let (addr, fd) = (pages.at(0) as usize, pages.fd());
        let region = MemoryRegion { addr, iova: 0, len: bytes, fd, fd_offset: 0, flags: 0 };
        blkio.map_mem_region(&region)?;
        Ok(Self { queues: started.queues, blkio, pages })
    }

    pub fn read(&mut self, queue: usize, start: u64, at: usize, len: usize) -> i32 {
        self.queues[queue].read(start, self.pages.at(at), len, 1, ReqFlags::empty());
        self.one(queue)
    }

    pub fn write(&mut self, queue: usize, start: u64, at: usize, len: usize) -> i32 {
        self.queues[queue].write(start, self.pages.at(at), len, 1, ReqFlags::empty());
        self.one(queue)
    }

    pub fn flush(&mut self, queue: usize) -> i32 {
        self.queues[queue].flush(1, ReqFlags::empty());
        self.one(queue)
    }

    pub fn write_zeroes(&mut self, queue: usize, start: u64, len: u64) -> i32 {
        self.queues[queue].write_zeroes(start, len, 1, ReqFlags::empty());
        self.one(queue)
    }

    pub fn discard(&mut self, queue: usize, start: u64, len: u64) -> i32 {
        self.queues[queue].discard(start, len, 1, ReqFlags::empty());
        self.one(queue)
    }

    fn one(&mut self, queue: usize) -> i32 {
        let mut done: [MaybeUninit<Completion>; 1] = [MaybeUninit::uninit()];
        let mut limit = Duration::from_secs(10);
        let got = self.queues[queue].do_io(&mut done, 1, Some(&mut limit), None).unwrap();
        assert_eq!(got, 1, "no answer");
        // SAFETY: `do_io` said that it has written one.
        let done = unsafe { done[0].assume_init_ref() };
        assert_eq!(done.user_data, 1);
        done.ret
    }
}
