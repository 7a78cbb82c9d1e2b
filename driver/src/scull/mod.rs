//! scull: LDD3's memory devices, three drivers that differ in where their quanta come from.
//!
//! A [`Scull`] is a file in kernel memory: a list of items, each a table of pointers to quanta, which are allocated when
//! they are first written. `scullc` takes its quanta from a slab cache of its own, `scullp` whole pages, `scullv` pages
//! that need not lie side by side ([`Backing`]). Reads and writes stop at the end of a quantum, as the originals' do.
//!
//! Neighbours: `guest_mem`'s allocators; `scenarios`, which tells one workload over all three. Left out: `mmap`, so that
//! `trim` is never busy; user space, whose bytes come as slices; asynchronous writes.

mod backing;
mod device;
mod error;

pub use backing::Backing;
pub use device::Scull;
pub use error::ScullError;

/// Quanta of one item (`scull*_qset`).
pub const QSET: usize = 500;
