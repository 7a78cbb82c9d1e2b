//! What a bench measured, for a page: costs as bars, each with the range of its rounds where it has one.
//!
//! Neighbours: `dma` fills it, `report` writes the page. Left out: text, which each bench prints itself.

use std::path::Path;

use serde::Serialize;

use crate::report::campaign::Sort;
use crate::report::cli::campaign;
use crate::report::error::ReportError;

/// One cost.
#[derive(Debug, Serialize)]
pub(super) struct Cost {
    pub(super) name: String,
    pub(super) value: f64,
    /// What a tenth of the rounds was below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) low: Option<f64>,
    /// What a tenth of the rounds was above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) high: Option<f64>,
}

impl Cost {
    /// One that was counted.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub(super) fn exact(name: String, count: u64) -> Self {
        Self { name, value: count as f64, low: None, high: None }
    }
}

/// Costs that are compared with each other.
#[derive(Debug, Serialize)]
pub(super) struct Plot {
    pub(super) title: String,
    pub(super) unit: &'static str,
    pub(super) rows: Vec<Cost>,
}

/// All of a bench.
#[derive(Debug, Serialize)]
pub(super) struct Bench {
    pub(super) bench: &'static str,
    pub(super) plots: Vec<Plot>,
}

impl Bench {
    /// Writes its page.
    pub(super) fn page(&self, to: &Path) -> Result<(), ReportError> {
        campaign(Sort::Bench, self, to)
    }
}
