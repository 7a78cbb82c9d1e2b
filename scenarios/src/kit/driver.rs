//! `LabDriver`: a driver that the lab can put to work.
//!
//! A kernel's driver does what its users ask; here a scenario's `exercise` step asks for one piece of work at a time,
//! and the driver itself knows how to ask its device and what the answer must be. Neighbours: `step::exercise`, the
//! caller. Left out: several pieces of work at once; a driver may start CPUs' worth of it in one `exercise`.

use std::error::Error;
use std::sync::Arc;

use lowzone_driver::Driver;
use lowzone_driver::blk::{BlkDriver, Disk};
use lowzone_driver::bus::Bdf;
use lowzone_driver::edu::Edu;
use lowzone_driver::net::NetDevice;
use lowzone_driver::pci::PciDevice;
use lowzone_guest_mem::Cpu;
use thiserror::Error;

use super::MakeError;
use crate::spec::{self, Kind};

/// Why a piece of work is not done.
#[derive(Debug, Error)]
pub enum ExerciseError {
    /// The driver is not bound to the device.
    #[error("{0} has no driver")]
    NotBound(Bdf),
    /// It failed, and the driver says so: what it must do where it can't do the work.
    #[error(transparent)]
    Failed(Box<dyn Error + Send + Sync>),
    /// The device ended it otherwise than well: [`Failed`](Self::Failed) for the many drivers that know no more.
    #[error("the device ended it with state {state:#x}")]
    Device {
        /// What the device said.
        state: u32,
    },
    /// The driver says that it went well, and it did not: a false success.
    #[error("the result is {seen:#x}, it must be {expected:#x}")]
    WrongData {
        /// What the result must be.
        expected: u64,
        /// What it is; of long data a sum or the first difference.
        seen: u64,
    },
}

impl ExerciseError {
    /// A failure that the driver itself reports.
    pub fn failed(error: impl Error + Send + Sync + 'static) -> Self {
        Self::Failed(Box::new(error))
    }
}

/// A driver that scenarios can use.
pub trait LabDriver: Driver {
    /// Does the `nth` piece of work (from 0) with `device`, checks its result and gives its bytes. Process context.
    ///
    /// What is asked follows from `nth` alone, so that a run repeats.
    ///
    /// # Errors
    /// [`ExerciseError`]: `Failed` is what a driver should say under a fault, `WrongData` never.
    fn exercise(&self, cpu: &Cpu<'_>, device: &PciDevice, nth: u64) -> Result<u64, ExerciseError>;

    /// The disk made of the function at `at`, of a driver whose [`Kind`] has disks.
    fn disk(&self, _at: Bdf) -> Option<Arc<Disk>> {
        None
    }

    /// The driver itself, if it also serves virtio devices that no PCI bus found.
    fn virtio(&self) -> Option<&BlkDriver> {
        None
    }

    /// The network device made of the function at `at`, of a driver whose [`Kind`] has packets.
    fn net(&self, _at: Bdf) -> Option<Arc<NetDevice>> {
        None
    }

    /// The `edu` device made of the function at `at`, of a driver whose [`Kind`] has an engine.
    fn edu(&self, _at: Bdf) -> Option<Arc<Edu>> {
        None
    }
}

/// A kind of driver.
#[derive(Clone, Copy, Debug)]
pub struct DriverKind {
    /// What scenarios call it, and which options it takes.
    pub kind: Kind,
    /// Makes the driver from the `[driver]` table.
    pub make: fn(&spec::Driver) -> Result<Arc<dyn LabDriver>, MakeError>,
}
