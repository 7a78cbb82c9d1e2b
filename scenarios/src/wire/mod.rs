//! Wires: what joins a driver to a device.
//!
//! [`inproc`] joins them in one process: register accesses decode to calls, interrupts queue until a CPU takes them.
//! [`vhost_user`] joins the driver to a device behind a socket.
//! [`tap`] turns what a device's bus master refuses into findings. Neighbours: `device`, `driver`, `guest_mem`; this
//! is one of the few places that sees all three.

pub mod inproc;
pub mod tap;
pub mod vhost_user;

pub use inproc::{InProc, Stir};
pub use tap::LabTap;
pub use vhost_user::VhostUser;
