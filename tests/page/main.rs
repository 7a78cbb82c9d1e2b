//! The page of `lowzone report` in a headless Chromium: what a user sees, presses and finds.
//!
//! A binary of its own, so that what is timed here has the machine to itself. Pictures go to `target/report/`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod broken;
mod counts;
mod keys;
mod markup;
mod show;
mod speed;
mod stories;
