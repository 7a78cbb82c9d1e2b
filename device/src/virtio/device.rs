//! What a device type tells its transport, and what its workers ask of it.
//!
//! [`VirtioDevice`] is implemented by a device type and consumed by [`crate::virtio::pci`]; [`QueueHost`] is
//! implemented by a transport and consumed by workers, so that the same worker runs behind another transport.

/// The fixed facts of a virtio device type.
pub trait VirtioDevice: Send + Sync {
    /// The device type (virtio 1.2, chapter 5): 2 is a block device.
    fn device_type(&self) -> u16;

    /// The PCI class code, 24 bits.
    fn class(&self) -> u32;

    /// The features offered.
    fn features(&self) -> u64;

    /// The number of queues.
    fn queues(&self) -> u16;

    /// The largest size of each queue, a power of two.
    fn queue_size(&self) -> u16;

    /// Bytes of device-specific configuration.
    fn config_len(&self) -> u32;

    /// Copies configuration from `offset` on into `to`; both lie within [`config_len`](Self::config_len).
    fn read_config(&self, offset: u32, to: &mut [u8]);
}

/// What a worker asks of the transport its queue hangs on.
pub trait QueueHost: Send + Sync {
    /// Buffers of `queue` were used and the driver wants to know.
    fn used_buffers(&self, queue: u16);

    /// The device can't go on until the driver resets it.
    fn needs_reset(&self);

    /// The worker of `queue` has dropped everything and will touch no memory of the driver's any more.
    fn reset_done(&self, queue: u16);
}
