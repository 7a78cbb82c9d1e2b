//! Scenario files: TOML in, a typed and checked [`Scenario`] out, with errors that name file, line and column.
//!
//! [`load`] reads a [`Source`], applies [`Set`]s (`--set path=value`) and checks the result; [`schema`] is the JSON
//! Schema for editors; [`catalogue`] holds the embedded scenarios; [`Kinds`] are the drivers and devices there are. Nothing runs here. Neighbours: the command line,
//! which reads files, and the runner, which takes a [`Scenario`]. Left out: inheritance between files, variables.

pub mod catalogue;

mod check;
mod device;
mod driver;
mod error;
mod expect;
mod explain;
mod explore;
mod fault;
mod kind;
mod load;
mod locate;
mod machine;
mod nearest;
mod need;
mod on;
mod options;
mod path;
mod problem;
mod sanitizer;
mod scenario;
mod schema;
mod set;
mod shape;
mod size;
mod step;
mod step_check;
#[cfg(test)]
mod tests;
pub(crate) mod text;

pub use device::{Beyond, Device, StoreSpec};
pub use driver::Driver;
pub use error::SpecError;
pub use expect::{CanaryState, Expect};
pub use explore::Explore;
pub use fault::{FaultError, FaultTable, Faults, faults};
pub(crate) use kind::NET_OPTIONS;
pub use kind::{EDU, Kind, Kinds, StoryKind, VIRTIO_BLK, VIRTIO_NET};
pub use load::{Source, load, load_with};
pub use machine::{Arch, DEFAULT_LOW, Iommu, Machine};
pub use need::Need;
pub use on::{NamedMachine, On, OnMachine};
pub use options::{OptionError, OptionValue, Options};
pub use problem::Problem;
pub use sanitizer::Sanitizer;
pub use scenario::Scenario;
pub use schema::{schema, schema_with};
pub use set::Set;
pub use size::{Size, SizeError};
pub use step::{
    AllocGfp, CanaryStep, ClearStep, Clearing, CopyStep, DEFAULT_BYTES, DmaDirection, DmaStep, ExerciseStep, HoldStep,
    InFlightStep, IoStep, IrqAllocStep, MapDirection, Memory, PacketsFrom, PacketsStep, Pattern, ProbeStep,
    RawPacketStep, RawReadStep, RecoverStep, RemoveStep, ShutdownStep, Step, StoryStep, Unmap,
};
