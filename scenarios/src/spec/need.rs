//! What a scenario's story depends on beside its machine.
//!
//! Neighbours: `lab`, which refuses a world that is not so; wires, which say what they see. Left out: what follows from
//! the devices and steps themselves.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A property of the world or the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// One actor at a time, the same each time: the lockstep world.
    Lockstep,
    /// Each access of the device is seen: in process it always is.
    SeesDma,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lockstep => "lockstep",
            Self::SeesDma => "sees_dma",
        })
    }
}
