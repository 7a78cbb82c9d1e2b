//! Which way the data of a streaming mapping goes: as a value for the books, as a type for the compiler.
//!
//! The value is [`Dir`] (Linux: `enum dma_data_direction`); the types are the three zero-sized markers, which carry
//! the same fact at compile time, so that a limit such as "the device may read this" is a trait bound
//! ([`DeviceReads`], [`DeviceWrites`]) and not a check at run time.
//!
//! Neighbours: mappings, the ledger. Left out: `DMA_NONE`, which Linux answers with a BUG.

use std::fmt;

/// The direction of a mapping, as a value (`enum dma_data_direction`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dir {
    /// `DMA_TO_DEVICE`: the device reads only.
    ToDevice,
    /// `DMA_FROM_DEVICE`: the device writes, and the driver relies on no byte it wrote before.
    FromDevice,
    /// `DMA_BIDIRECTIONAL`: both; also the direction that Linux books for coherent memory.
    Bidirectional,
}

impl Dir {
    /// Whether the device may read memory mapped in this direction.
    pub const fn device_reads(self) -> bool {
        matches!(self, Self::ToDevice | Self::Bidirectional)
    }

    /// Whether the device may write memory mapped in this direction.
    pub const fn device_writes(self) -> bool {
        matches!(self, Self::FromDevice | Self::Bidirectional)
    }
}

impl fmt::Display for Dir {
    /// The name in C, as dma-debug prints it (kernel/dma/debug.c, `dir2name`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ToDevice => "DMA_TO_DEVICE",
            Self::FromDevice => "DMA_FROM_DEVICE",
            Self::Bidirectional => "DMA_BIDIRECTIONAL",
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// The direction of a mapping, as a type; sealed: there are three.
///
/// ```
/// use lowzone_guest_mem::dma::direction::{Bidirectional, DeviceWrites, Dir, Direction};
///
/// fn receive<D: DeviceWrites>() -> Dir {
///     D::DIR
/// }
/// assert_eq!(receive::<Bidirectional>(), Dir::Bidirectional);
/// ```
///
/// A bound that does not hold does not compile:
///
/// ```compile_fail,E0277
/// use lowzone_guest_mem::dma::direction::{DeviceWrites, Dir, ToDevice};
///
/// fn receive<D: DeviceWrites>() -> Dir {
///     D::DIR
/// }
/// receive::<ToDevice>();
/// ```
pub trait Direction: sealed::Sealed + Copy + Send + Sync + 'static {
    /// The same direction as a value.
    const DIR: Dir;
}

/// Directions in which the device may read.
pub trait DeviceReads: Direction {}

/// Directions in which the device may write.
pub trait DeviceWrites: Direction {}

/// Marker of [`Dir::ToDevice`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ToDevice;

/// Marker of [`Dir::FromDevice`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FromDevice;

/// Marker of [`Dir::Bidirectional`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bidirectional;

impl sealed::Sealed for ToDevice {}
impl sealed::Sealed for FromDevice {}
impl sealed::Sealed for Bidirectional {}

impl Direction for ToDevice {
    const DIR: Dir = Dir::ToDevice;
}
impl Direction for FromDevice {
    const DIR: Dir = Dir::FromDevice;
}
impl Direction for Bidirectional {
    const DIR: Dir = Dir::Bidirectional;
}

impl DeviceReads for ToDevice {}
impl DeviceReads for Bidirectional {}
impl DeviceWrites for FromDevice {}
impl DeviceWrites for Bidirectional {}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads<D: DeviceReads>() -> bool {
        D::DIR.device_reads()
    }

    fn writes<D: DeviceWrites>() -> bool {
        D::DIR.device_writes()
    }

    #[test]
    fn a_type_that_promises_an_access_has_a_value_that_allows_it() {
        assert!(reads::<ToDevice>() && reads::<Bidirectional>());
        assert!(writes::<FromDevice>() && writes::<Bidirectional>());
        assert!(!Dir::ToDevice.device_writes());
        assert!(!Dir::FromDevice.device_reads());
    }

    #[test]
    fn names_are_those_of_the_kernel() {
        let names = [ToDevice::DIR, FromDevice::DIR, Bidirectional::DIR].map(|dir| dir.to_string());
        assert_eq!(names, ["DMA_TO_DEVICE", "DMA_FROM_DEVICE", "DMA_BIDIRECTIONAL"]);
    }
}
