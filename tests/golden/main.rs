//! The measured tables, row by row: what a real Linux 6.1 did, and what the model does.
//!
//! A table is a copy of what was measured, one file each in this folder. Its test is given the input columns of each
//! row, computes the others, and [`Golden::run`] compares. A row that differs must be named in [`explained`], with a
//! cause of a closed list. One file an area; each prints `N rows, M equal, K explained`. Each constant of
//! the model that can be altered turns rows red: [`altered`].
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

#[cfg(not(lowzone_mutants))]
mod altered;
mod calm;
mod contexts;
mod cpus;
mod drain;
mod explained;
mod gfp;
mod kmalloc;
mod luck;
mod mempool;
mod pages;
mod percpu;
mod slab;
mod swiotlb;
mod table;
mod tables;
mod vmalloc;
