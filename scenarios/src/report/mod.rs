//! The page: what a trace or a campaign showed, as one HTML file that asks nobody for anything.
//!
//! A trace is read twice. [`scan`] counts, draws the curves and picks what must stay; [`collect`] takes the events that
//! stay into [`columns`]; [`pack`] puts them, compressed, beside the script that draws them. What campaigns and benches
//! have to tell goes into the same page ([`campaign`]). Memory is bounded by what is mapped at once and by the events
//! that the page holds, not by the file.
//!
//! Neighbours: `trace` reads, `cli` has the options. Left out: everything that only a browser can do, which `page/*`
//! does.

pub(crate) mod campaign;
pub(crate) mod cli;
mod collect;
mod columns;
pub(crate) mod error;
mod pack;
mod scan;
mod series;
#[cfg(test)]
mod tests;
mod totals;
