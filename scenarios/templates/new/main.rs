//! A program to try a driver and a device in: `run`, `explore`, `replay` and `list`, for the scenarios below.
#![forbid(unsafe_code)]

mod device;
mod driver;
mod regs;

use lowzone::kit::{Entry, Kit};

const KIT: Kit = Kit::new("@NAME@")
    .scenarios(&[Entry { name: "first", text: include_str!("../scenarios/first.toml") }])
    .drivers(&[driver::KIND])
    .devices(&[device::KIND]);

lowzone::main!(KIT);
