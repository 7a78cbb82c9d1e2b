//! Traces: the record of a run on disk, and what can be read from it.
//!
//! [`Writer`] streams a run's records into an `.lzt` file, page by page; [`Reader`] streams them back as [`Event`]s,
//! so that neither needs the file to fit in memory. What people ask is beside it, a question a file: `show` (the
//! events), `tx` and [`transaction`] (the life of each DMA transaction), `stat`, `diff` (where two files part), and
//! [`around()`] (the events before a finding, from the flight recorder). The format is described in
//! `docs/trace-format.md`.
//!
//! Neighbours: `guest_mem::trace` makes the records, `lab` joins a writer to a run, `export` writes what other programs open.

pub mod around;
mod buffers;
pub(crate) mod cli;
mod diff;
pub mod error;
pub mod event;
pub(crate) mod export;
pub(crate) mod feed;
pub mod format;
mod join;
mod kinds;
mod life;
pub mod names;
pub mod reader;
pub mod request;
mod resolve;
mod row;
mod show;
pub(crate) mod shown;
mod stat;
#[cfg(test)]
mod tests;
mod touched;
pub mod transaction;
mod tx;
pub mod writer;

pub use around::{around, rows};
pub use error::TraceError;
pub use event::{Event, Link};
pub use format::{End, Header};
pub use kinds::{Kinds, UnknownKind};
pub use names::Names;
pub use reader::Reader;
pub(crate) use reader::twice;
pub use request::{Mark, Request};
pub use transaction::{Transaction, Transactions};
pub use writer::Writer;
