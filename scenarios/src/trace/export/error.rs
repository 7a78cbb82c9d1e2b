//! Why an export could not be written. Neighbours: `output`, `export`; what is wrong with a trace is `TraceError`'s.

use std::io;

use thiserror::Error;

/// Why an export could not be written.
#[derive(Debug, Error)]
pub(crate) enum ExportError {
    /// The system would not.
    #[error("{name}: {source}")]
    Write { name: String, source: io::Error },
    /// It would replace the trace.
    #[error("{name}: it would replace what it is made of; name another file with -o")]
    Same { name: String },
    /// Pages can't be put in their places there.
    #[error("{name}: trace.dat is not written from beginning to end; name a file with -o")]
    Seek { name: String },
    /// Nobody reads these bytes there.
    #[error("this format is no text, and standard output is a terminal; name a file with -o")]
    Terminal,
}
