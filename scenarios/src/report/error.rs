//! Why there is no page, or not the whole of one.
//!
//! Neighbours: `cli` reports them; `trace::error` has those of trace files.

use std::io;

use thiserror::Error;

use crate::trace::TraceError;
use crate::trace::export::error::ExportError;

/// What can be wrong with a report's input or output.
#[derive(Debug, Error)]
pub(crate) enum ReportError {
    /// The trace is no trace, or broken.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The input can't be read.
    #[error("{name}: {source}")]
    Read {
        /// The file.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// It begins as JSON and isn't.
    #[error("{name}: not a trace, and as JSON broken: {source}")]
    Json {
        /// The file.
        name: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// JSON that no page is made of.
    #[error("{name}: JSON, but not of `explore --json` or `mutants --json`{hint}")]
    Unknown {
        /// The file.
        name: String,
        /// What it may be.
        hint: &'static str,
    },
    /// The page can't be written.
    #[error("cannot write the page: {0}")]
    Write(#[from] ExportError),
}
