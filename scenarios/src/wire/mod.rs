//! Wires: what joins a driver to a device.
//!
//! [`inproc`] joins them in one process: register accesses decode to calls, interrupts queue until a CPU takes them.
//! [`qtest`] joins the driver to QEMU's devices, [`vhost_user`] to one behind a socket. [`kind`] says which wires there
//! are, and what can't be told on which; [`outside`] is how a peer interrupts.
//! [`tap`] turns what a device's bus master refuses into findings. Neighbours: `device`, `driver`, `guest_mem`; this
//! is one of the few places that sees all three.

pub mod inproc;
pub mod kind;
pub mod outside;
pub mod qtest;
pub mod tap;
pub mod vhost_user;

pub use inproc::{InProc, Stir};
pub use kind::{Skip, TwoWires, WireKind};
pub use outside::Outside;
pub use qtest::Qemu;
pub use tap::LabTap;
pub use vhost_user::VhostUser;
