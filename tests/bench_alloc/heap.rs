//! Heaps of other crates, by Rust's own interface of allocators.
#![allow(unsafe_code, reason = "the interface of allocators is unsafe")]

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::NonNull;

use buddy_system_allocator::LockedHeap;

use crate::job::{Ops, Side, Task};

/// Bytes of the heap that has to be given its memory.
const BYTES: usize = 64 << 20;

/// One of them.
pub struct Heap<A> {
    name: &'static str,
    heap: A,
}

impl<A: GlobalAlloc> Heap<A> {
    pub fn new(name: &'static str, heap: A) -> Self {
        Self { name, heap }
    }
}

/// A buddy heap behind one lock, over memory of its own that is never given back.
pub fn buddy() -> Heap<LockedHeap<33>> {
    let memory: &'static mut [u64] = vec![0; BYTES / 8].leak();
    let heap = LockedHeap::<33>::empty();
    // SAFETY: the memory is leaked, hence valid for ever, and nobody else has it.
    unsafe { heap.lock().init(memory.as_mut_ptr() as usize, BYTES) };
    Heap::new("buddy_system", heap)
}

/// A block and what it was allocated with.
pub struct Piece {
    at: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a block belongs to whoever holds it; every allocator here may be given it back on any thread.
unsafe impl Send for Piece {}

impl<A: GlobalAlloc> Ops for &A {
    type Piece = Piece;

    fn take(&self, size: usize) -> Piece {
        let layout = Layout::from_size_align(size, 8).unwrap();
        // SAFETY: the size is not 0.
        let at = NonNull::new(unsafe { self.alloc(layout) }).expect("memory");
        // As the first word of what a driver allocates is written at once.
        // SAFETY: the block is at least 8 bytes, aligned to 8.
        unsafe { at.cast::<u64>().write_volatile(1) };
        Piece { at, layout }
    }

    fn give(&self, Piece { at, layout }: Piece) {
        // SAFETY: it was allocated by this allocator with this layout, and is given back once.
        unsafe { self.dealloc(at.as_ptr(), layout) };
    }
}

impl<A: GlobalAlloc + Sync> Side for Heap<A> {
    type Piece = Piece;

    fn name(&self) -> &'static str {
        self.name
    }

    fn on<T: Task<Piece>>(&self, _cpu: u32, task: T) -> T::Out {
        task.run(&&self.heap)
    }
}
