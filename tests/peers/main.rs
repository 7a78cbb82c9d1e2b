//! The device against drivers that others wrote, in other processes' memory: over vhost-user.
//!
//! These drivers take raw pointers into memory that the device writes too, so the modules that call them, and only
//! they, are allowed what the rest of the workspace is not.
#![deny(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod bad_peers;
mod bench;
mod broken_exports;
mod crimes;
mod exports;
mod libblkio;
mod like_qemu;
mod raw;
mod server;
mod shows_2_guest;
mod shows_4_drivers;
mod shows_5_power_cut;
mod trace_processor;
mod traced;
