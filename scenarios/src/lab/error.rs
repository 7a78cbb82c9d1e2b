//! Why a scenario could not be set up.
//!
//! Neighbours: the parent and `join`, which say so; `cli`, which prints it. Left out: what goes wrong in a run, which is
//! in its result.

use lowzone_device::store::StoreError;
use lowzone_guest_mem::kernel::MachineError;
use thiserror::Error;

use crate::kit::MakeError;
use crate::spec::{FaultError, Need};
use crate::wire::Skip;
use crate::wire::qtest::QtestError;
use crate::wire::vhost_user::VhostUserError;
use crate::world::ThreadsError;

/// Why a scenario could not be set up.
#[derive(Debug, Error)]
pub enum LabError {
    /// The machine.
    #[error("machine: {0}")]
    Machine(#[from] MachineError),
    /// A device's store.
    #[error("device {device}: {source}")]
    Store {
        /// The device.
        device: String,
        /// What is wrong.
        source: StoreError,
    },
    /// A device.
    #[error("device {device}: {source}")]
    Device {
        /// The device.
        device: String,
        /// What is wrong, in its kind's words.
        source: MakeError,
    },
    /// The emulator.
    #[error("wire: {0}")]
    Wire(#[from] QtestError),
    /// The peer behind a socket.
    #[error("wire: {0}")]
    Socket(#[from] VhostUserError),
    /// The scenario's story can't be told on the wire.
    #[error("{scenario} {skip}")]
    Skip {
        /// The scenario.
        scenario: String,
        /// What it lacks.
        skip: Skip,
    },
    /// The world of threads.
    #[error("world: {0}")]
    World(#[from] ThreadsError),
    /// The scenario's story depends on what this world is not.
    #[error("{scenario} needs {need}: {why}")]
    Needs {
        /// The scenario.
        scenario: String,
        /// What its file says.
        need: Need,
        /// Why this world can't.
        why: &'static str,
    },
    /// The driver.
    #[error("driver {driver}: {source}")]
    Driver {
        /// Its kind.
        driver: String,
        /// What is wrong, in its kind's words.
        source: MakeError,
    },
    /// What is made to fail; a scenario that was loaded has nothing wrong there.
    #[error(transparent)]
    Fault(#[from] FaultError),
    /// A kind that the program doesn't have; a scenario that was loaded in it has none such.
    #[error("no kind '{kind}' of {what}")]
    NoKind {
        /// `driver` or `device`.
        what: &'static str,
        /// The name.
        kind: String,
    },
}
