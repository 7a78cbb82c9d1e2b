//! The data half of a device, as the world sees it: something to call until it has nothing to do.
//!
//! Neighbours: [`crate::virtio::queue`] holds the flags that make a worker ready, [`crate::blk`] and
//! [`crate::edu`] implement it. Left out: threads and event loops, which belong to the world.

/// What a worker wants after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing to do until [`Worker::ready`] turns true.
    Idle,
    /// Call again at this time, in nanoseconds of the world's clock, or when [`Worker::ready`] turns true before.
    At(u64),
    /// Work remains: call again as soon as the world likes.
    Again,
}

/// One queue's worth of a device.
///
/// A call to [`service`](Worker::service) does one phase and never waits, so that a world may put anything between
/// two phases: an unmapping, a reset, the removal of the device.
pub trait Worker: Send {
    /// Whether a doorbell, a reset or unfinished work waits; work that waits for a time asked for with [`Next::At`]
    /// does not count. Costs a few loads.
    fn ready(&self) -> bool;

    /// Does one phase of work; `now` is the world's clock in nanoseconds.
    fn service(&mut self, now: u64) -> Next;
}
