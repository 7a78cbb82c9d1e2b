//! The campaign as a test: every failure, and not one mishandled.

use std::process::Command;

#[test]
fn every_failure_is_handled() {
    let out = Command::new(env!("CARGO_BIN_EXE_@NAME@")).args(["explore", "first"]).output().unwrap();
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
}
