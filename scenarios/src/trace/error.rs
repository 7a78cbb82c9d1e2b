//! What can be wrong with a trace file, and with a question about one.
//!
//! Every error of a file names it and the byte where reading ended. Neighbours: `reader`, `writer`, the views.

use std::io;

use thiserror::Error;

use super::export::ExportError;
use super::format::VERSION;

/// Why a trace could not be read, or not to its end, or not be written.
#[derive(Debug, Error)]
pub enum TraceError {
    /// It could not be opened or created.
    #[error("{name}: {source}")]
    Open {
        /// The file.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// It doesn't begin with the magic.
    #[error("{name}: not a lowzone trace: byte {offset} differs from the magic's")]
    Foreign {
        /// The file.
        name: String,
        /// The first byte that differs.
        offset: u64,
    },
    /// Its numbers have another byte order.
    #[error("{name}: byte 8: the byte-order mark is {found:#010x}, not little-endian")]
    Endian {
        /// The file.
        name: String,
        /// The mark found.
        found: u32,
    },
    /// A later version of the format.
    #[error("{name}: byte 12: format version {found}, written by {program}; this program reads version {VERSION}")]
    Newer {
        /// The file.
        name: String,
        /// Its version.
        found: u16,
        /// Who wrote it, as far as its first block can be read.
        program: String,
    },
    /// It ends in the middle of something.
    #[error("{name}: cut off at byte {at}, inside what begins at byte {offset}")]
    Truncated {
        /// The file.
        name: String,
        /// Where the unfinished part begins.
        offset: u64,
        /// Where the file ends.
        at: u64,
    },
    /// It ends between two blocks, but its writer hadn't ended it.
    #[error("{name}: ends at byte {offset} without an end block: its writer was stopped, or the file was cut")]
    NoEnd {
        /// The file.
        name: String,
        /// Where it ends.
        offset: u64,
    },
    /// Bytes that no writer wrote.
    #[error("{name}: damaged in the block at byte {offset}: {what}")]
    Damaged {
        /// The file.
        name: String,
        /// Where the block begins.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// What was read once is gone.
    #[error("{name} is no file: this reads a trace twice, so write it into one first")]
    NoFile {
        /// What it is called.
        name: String,
    },
    /// The system could not read it.
    #[error("{name}: byte {offset}: {source}")]
    Read {
        /// The file.
        name: String,
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// It could not be written to its end.
    #[error("cannot write the trace: {source}; {lost} events are lost")]
    Write {
        /// Events that are not in the file.
        lost: u64,
        /// Why.
        source: io::Error,
    },
}

/// Why a question about a trace has no answer.
#[derive(Debug, Error)]
pub(crate) enum ViewError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
    #[error("{name}: no event kind is called '{kind}'; for instance {example}")]
    NoKind { name: String, kind: String, example: String },
    #[error("{name}: no device is called '{device}'{known}")]
    NoDevice { name: String, device: String, known: String },
    #[error(
        "{name} doesn't say when its clock began: only traces of threads, of peers and of `lowzone serve` are joined"
    )]
    NoClock { name: String },
    #[error("{name} has no mappings: the first file is the driver's record, of `lowzone run --trace`")]
    NoDriver { name: String },
    #[error("{name} has mappings: the second file is the device's record, of `lowzone serve --trace`")]
    NoPeer { name: String },
    #[error("{name}: which device is the other file of? --device: {known}")]
    WhichDevice { name: String, known: String },
    #[error("{name}: no DMA transaction {id}; there were {made}")]
    NoTransaction { name: String, id: u64, made: u64 },
}
