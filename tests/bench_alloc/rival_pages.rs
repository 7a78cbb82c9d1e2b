//! Frame allocators of other crates, each behind a lock, as their users share them.

use std::sync::Mutex;

use bitmap_allocator::{BitAlloc, BitAlloc1M};
use buddy_system_allocator::FrameAllocator;

use crate::job::{Ops, Side, Task};

/// Frames of 4 GiB.
const FRAMES: usize = 1 << 20;

/// A bitmap of frames.
pub struct Bits(Mutex<Box<BitAlloc1M>>);

impl Bits {
    pub fn new() -> Self {
        let mut bits = Box::new(BitAlloc1M::DEFAULT);
        bits.insert(0..FRAMES);
        Self(Mutex::new(bits))
    }
}

impl Ops for &Bits {
    type Piece = (usize, usize);

    fn take(&self, order: usize) -> (usize, usize) {
        let mut bits = self.0.lock().unwrap();
        let frame = if order == 0 { bits.alloc() } else { bits.alloc_contiguous(None, 1 << order, order) };
        (frame.expect("frames"), order)
    }

    fn give(&self, (frame, order): (usize, usize)) {
        let mut bits = self.0.lock().unwrap();
        assert!(if order == 0 { bits.dealloc(frame) } else { bits.dealloc_contiguous(frame, 1 << order) });
    }
}

impl Side for Bits {
    type Piece = (usize, usize);

    fn name(&self) -> &'static str {
        "bitmap-allocator"
    }

    fn on<T: Task<(usize, usize)>>(&self, _cpu: u32, task: T) -> T::Out {
        task.run(&self)
    }
}

/// Buddies in ordered sets.
pub struct Buddy(Mutex<FrameAllocator>);

impl Buddy {
    pub fn new() -> Self {
        let mut frames = FrameAllocator::new();
        frames.add_frame(0, FRAMES);
        Self(Mutex::new(frames))
    }
}

impl Ops for &Buddy {
    type Piece = (usize, usize);

    fn take(&self, order: usize) -> (usize, usize) {
        (self.0.lock().unwrap().alloc(1 << order).expect("frames"), order)
    }

    fn give(&self, (frame, order): (usize, usize)) {
        self.0.lock().unwrap().dealloc(frame, 1 << order);
    }
}

impl Side for Buddy {
    type Piece = (usize, usize);

    fn name(&self) -> &'static str {
        "buddy_system"
    }

    fn on<T: Task<(usize, usize)>>(&self, _cpu: u32, task: T) -> T::Out {
        task.run(&self)
    }
}
