//! `Setting`: in which world, and on which wire.
//!
//! Neighbours: `world`, `wire`. Left out: the seed, which is a world's own affair.

use crate::wire::WireKind;
use crate::world::WorldKind;

/// Where a scenario runs: in a world, on a wire. A peer's time is its own, so its world is that of threads.
///
/// ```
/// use lowzone::lab::Setting;
/// use lowzone::wire::WireKind;
/// use lowzone::world::WorldKind;
///
/// assert_eq!(Setting::from(WireKind::Qemu).world(), WorldKind::Threads);
/// assert_eq!(Setting::from(WireKind::InProc), Setting::from(WorldKind::Lockstep));
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Setting {
    world: WorldKind,
    wire: WireKind,
}

impl Setting {
    /// Who runs when.
    pub fn world(&self) -> WorldKind {
        self.world
    }

    /// What joins the driver to its devices.
    pub fn wire(&self) -> &WireKind {
        &self.wire
    }
}

impl From<WorldKind> for Setting {
    fn from(world: WorldKind) -> Self {
        Self { world, wire: WireKind::InProc }
    }
}

impl From<WireKind> for Setting {
    fn from(wire: WireKind) -> Self {
        let world = if wire == WireKind::InProc { WorldKind::Lockstep } else { WorldKind::Threads };
        Self { world, wire }
    }
}
