//! The observer of a device's memory accesses.
//!
//! A [`Tap`] is told of each grant of memory to the device, of each refusal, and of the bytes that really moved; and of
//! the chains that its rings take and give back.
//! Addresses are the device's own, after the wrap of a too narrow bus: where memory is really hit; refusals carry
//! the address the device asked for. Neighbour: [`crate::pci::BusMaster`], the only caller.

use crate::pci::Refusal;

/// Sees every access of one bus master. It must not call back into the device.
pub trait Tap: Send + Sync {
    /// The device was admitted to `len` bytes at `addr`; it has touched none of them yet.
    fn granted(&self, addr: u64, len: usize, write: bool);

    /// The device has moved `len` bytes at `addr`: into memory if `write`.
    fn moved(&self, addr: u64, len: usize, write: bool);

    /// The device asked for `len` bytes at `addr` and hit `hit` instead, having only `width` address bits.
    fn wrapped(&self, addr: u64, hit: u64, len: usize, write: bool, width: u8);

    /// The device asked for `len` bytes at `addr` and was turned away.
    fn refused(&self, addr: u64, len: usize, write: bool, why: Refusal);

    /// The device took the chain at `head` off the ring of a queue.
    fn took(&self, _queue: u16, _head: u16) {}

    /// The device gave the chain `id` of a queue back with `len` bytes written; the driver may not see it yet.
    fn gave(&self, _queue: u16, _id: u32, _len: u32) {}
}

/// Sees nothing.
impl Tap for () {
    fn granted(&self, _addr: u64, _len: usize, _write: bool) {}
    fn moved(&self, _addr: u64, _len: usize, _write: bool) {}
    fn wrapped(&self, _addr: u64, _hit: u64, _len: usize, _write: bool, _width: u8) {}
    fn refused(&self, _addr: u64, _len: usize, _write: bool, _why: Refusal) {}
}

/// Many workers may share one observer.
impl<T: Tap + ?Sized> Tap for std::sync::Arc<T> {
    fn granted(&self, addr: u64, len: usize, write: bool) {
        (**self).granted(addr, len, write);
    }

    fn moved(&self, addr: u64, len: usize, write: bool) {
        (**self).moved(addr, len, write);
    }

    fn wrapped(&self, addr: u64, hit: u64, len: usize, write: bool, width: u8) {
        (**self).wrapped(addr, hit, len, write, width);
    }

    fn refused(&self, addr: u64, len: usize, write: bool, why: Refusal) {
        (**self).refused(addr, len, write, why);
    }

    fn took(&self, queue: u16, head: u16) {
        (**self).took(queue, head);
    }

    fn gave(&self, queue: u16, id: u32, len: u32) {
        (**self).gave(queue, id, len);
    }
}
