//! The `[explore]` table: how a campaign shortens a scenario.
//!
//! Neighbours: `crate::explore`, which runs one. Left out: budgets; a campaign is complete or it says what is left.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How `lowzone explore` runs the scenario: once for each point, so it should be short.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "an [explore] table")]
pub struct Explore {
    /// Requests of each `io` step, times of each `exercise` step, packets of each `packets` step and blocks of each `clear`
    /// step, even, 2 to 1000000. Default 4.
    #[schemars(range(min = 2, max = 1_000_000))]
    pub requests: u64,
}

impl Default for Explore {
    fn default() -> Self {
        Self { requests: 4 }
    }
}
