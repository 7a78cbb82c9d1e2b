//! `Transport`: how a virtio driver reaches its device, whatever lies between.
//!
//! Neighbours: `pci` implements it; `blk` consumes it. Left out: what only one transport has (vectors of PCI are
//! numbers here).

use lowzone_guest_mem::{Cpu, DmaAddr};

use crate::virtio::VirtioError;

/// The vector number for "none" (`VIRTIO_MSI_NO_VECTOR`).
pub const NO_VECTOR: u16 = 0xffff;

/// Where a queue lies, as the device is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueLayout {
    /// Entries: a power of two.
    pub size: u16,
    /// The descriptor table.
    pub desc: DmaAddr,
    /// The available ring.
    pub avail: DmaAddr,
    /// The used ring.
    pub used: DmaAddr,
}

/// Makes the memory of a queue once its largest size is known.
pub type MakeQueue<'a> = dyn FnMut(u16) -> Result<QueueLayout, VirtioError> + 'a;

/// A virtio transport. All methods in process context, but `notify` and `isr`, which any context may call.
pub trait Transport: Send + Sync {
    /// Resets the device and agrees on features, up to FEATURES_OK (virtio 1.2, 3.1.1 steps 1-6).
    ///
    /// # Errors
    /// [`VirtioError`]; the device is told FAILED.
    fn negotiate(&self, cpu: &Cpu<'_>, wanted: u64) -> Result<u64, VirtioError>;

    /// Reads the device's own config space, whole at one generation.
    ///
    /// # Errors
    /// [`VirtioError::BadConfig`] if it never holds still.
    fn config_read(&self, cpu: &Cpu<'_>, offset: u64, to: &mut [u8]) -> Result<(), VirtioError>;

    /// Sets up and enables one queue; `make` gets the device's largest size and answers where the queue lies.
    ///
    /// # Errors
    /// [`VirtioError::NoQueue`], [`VirtioError::NoVector`], or `make`'s own.
    fn setup_queue(&self, cpu: &Cpu<'_>, index: u16, vector: u16, make: &mut MakeQueue<'_>) -> Result<(), VirtioError>;

    /// Tells the device which vector its config changes have, then that the driver is ready (DRIVER_OK).
    ///
    /// # Errors
    /// [`VirtioError::NoVector`], [`VirtioError::Gone`].
    fn driver_ok(&self, cpu: &Cpu<'_>, config_vector: u16) -> Result<(), VirtioError>;

    /// Rings the doorbell of a queue.
    fn notify(&self, cpu: &Cpu<'_>, index: u16);

    /// Reads and clears the cause of an INTx: bit 0 queues, bit 1 config.
    fn isr(&self, cpu: &Cpu<'_>) -> u8;

    /// Whether the device asks for a reset, or is gone.
    fn needs_reset(&self, cpu: &Cpu<'_>) -> bool;

    /// Resets the device and waits until it acknowledges.
    ///
    /// # Errors
    /// [`VirtioError::NoReset`], [`VirtioError::Gone`].
    fn reset(&self, cpu: &Cpu<'_>) -> Result<(), VirtioError>;
}
