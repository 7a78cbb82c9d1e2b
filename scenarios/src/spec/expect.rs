//! The `[expect]` table: what must be seen, no more and no less.
//!
//! Neighbours: the runner, which compares. Left out: figures that follow the machine, such as bounces; a file with
//! them would fail under `--set machine.ram=…`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the run must show. Without this table: no finding, no leak, no failed request.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "an [expect] table")]
pub struct Expect {
    /// Names of the findings, such as "beyond-width", in any order, each as often as it is seen. Default [].
    pub findings: Vec<String>,
    /// Resources left over after the last step. Default 0.
    pub leaks: u64,
    /// Requests that end in an error, those of raw steps among them. Default 0.
    pub failed_requests: u64,
    /// Transfers of `dma` steps that brought other bytes though the driver said that all went well. Default 0.
    pub wrong_data: u64,
    /// What has become of the canary; needs a `canary` step. Default: not compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryState>,
}

/// What has become of a canary.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CanaryState {
    /// A device wrote over it.
    Hit,
    /// It is as it was placed.
    Intact,
}
