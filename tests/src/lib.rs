//! The harness of the end-to-end tests: the program, scenarios in this process, images, and a machine by hand.
//!
//! [`program`] runs `lowzone` as a user would; [`scenario`] runs one through the library; [`image`] makes files to
//! work on; [`rig`] is a machine with one disk on which a test runs code of its own;
//! [`browser`] shows the pages that `lowzone report` writes. The tests are in `e2e/`, what must
//! not compile is in `ui/`. [`disk`] is the crate `virtio-driver` on a vhost-user socket: its calls take raw pointers, so
//! that module, and no other, has unsafe code. Left out: anything that a test could assert with one line.
#![deny(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a harness that can't go on fails its test")]

pub mod browser;
pub mod daemon;
pub mod disk;
pub mod front;
pub mod image;
pub mod pages;
pub mod peer;
pub mod played;
pub mod program;
pub mod rig;
pub mod scenario;
