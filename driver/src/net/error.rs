//! Why a packet is not sent, or not received.
//!
//! Neighbours: `tx`, `netdev`, which say so.

use lowzone_guest_mem::dma::MapFailure;
use lowzone_guest_mem::wait::WaitError;
use lowzone_guest_mem::zone::AllocError;
use thiserror::Error;

use crate::net::Frame;
use crate::virtio::ring::RingError;

/// Why a packet was not sent; its pieces come back, unmapped.
#[derive(Debug, Error)]
#[error("{why}")]
pub struct TransmitError {
    /// The packet.
    pub frame: Box<Frame>,
    /// Why.
    pub why: TransmitFailure,
}

/// Why a packet was not sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum TransmitFailure {
    /// No room on the ring: try again after a completion (`NETDEV_TX_BUSY`).
    #[error("the ring is full")]
    Full,
    /// No memory for its header: the packet is lost.
    #[error("no memory for a header: {0}")]
    NoHeader(#[from] AllocError),
    /// A piece could not be mapped: the packet is lost.
    #[error(transparent)]
    Map(#[from] MapFailure),
    /// No piece, or more bytes than a packet has: the packet is lost.
    #[error("a packet of {0} bytes")]
    Length(u64),
    /// The ring refused it for another reason.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The device is broken, gone or being removed.
    #[error("the device is no longer in service")]
    Dead,
}

/// Why nothing was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ReceiveError {
    /// Nothing came in time.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// The device is broken, gone or being removed.
    #[error("the device is no longer in service")]
    Dead,
}
