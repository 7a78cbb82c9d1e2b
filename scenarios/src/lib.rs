//! Not written yet.

pub mod spec;
