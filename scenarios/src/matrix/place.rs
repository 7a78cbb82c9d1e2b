//! Where the matrix runs a scenario: on a wire, or on a named machine in one of the worlds.
//!
//! Neighbours: the parent, which runs; `peer`, the other side of a wire. Left out: a wire of a named machine.

use clap::ValueEnum;

use super::{Cell, Story, child, peer};
use crate::cli::{CliError, with_causes};
use crate::kit::Kit;
use crate::spec::{NamedMachine, Need};
use crate::wire::WireKind;
use crate::world::WorldKind;
use peer::StorageDaemon;

/// One column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Column {
    Wire(Wire),
    Machine(NamedMachine, WorldKind),
}

/// A wire, or a world of the wire in this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Wire {
    /// Both halves in one process, in lockstep.
    Lockstep,
    /// Both halves in one process, on threads.
    Threads,
    /// The driver on QEMU's devices, over qtest.
    Qemu,
    /// The driver on qemu-storage-daemon's disk, over vhost-user.
    VhostUser,
}

impl Column {
    /// These wires, or all.
    pub(super) fn wires(chosen: &[Wire]) -> Vec<Self> {
        let wires = if chosen.is_empty() { Wire::value_variants() } else { chosen };
        wires.iter().copied().map(Self::Wire).collect()
    }

    /// Every machine, in both worlds.
    pub(super) fn machines() -> Vec<Self> {
        let worlds = |&machine| WorldKind::value_variants().iter().map(move |&world| Self::Machine(machine, world));
        NamedMachine::value_variants().iter().flat_map(worlds).collect()
    }

    /// What stands over it; columns with one name that follow each other share it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Wire(wire) => wire.name(),
            Self::Machine(machine, _) => machine.name(),
        }
    }

    /// What tells it from those that share its name.
    pub(super) const fn world(self) -> Option<WorldKind> {
        match self {
            Self::Wire(_) => None,
            Self::Machine(_, world) => Some(world),
        }
    }

    /// The whole of it.
    pub(super) fn label(self) -> String {
        self.world().map_or_else(|| self.name().to_owned(), |world| format!("{} ({})", self.name(), world.name()))
    }

    /// The peer's program and the package that has it.
    pub(super) const fn peer(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Wire(wire) => wire.peer(),
            Self::Machine(..) => None,
        }
    }

    /// Runs a scenario here.
    pub(super) fn run(self, kit: &Kit, story: &Story) -> Result<Cell, CliError> {
        match self {
            Self::Wire(wire) => wire.run(story),
            Self::Machine(machine, world) => on_machine(kit, machine, world, story),
        }
    }
}

impl Wire {
    const fn name(self) -> &'static str {
        match self {
            Self::Lockstep => "lockstep",
            Self::Threads => "threads",
            Self::Qemu => "qemu",
            Self::VhostUser => "vhost-user",
        }
    }

    /// The wire, without its sockets: whether a story can be told does not depend on them.
    fn kind(self) -> WireKind {
        match self {
            Self::Lockstep | Self::Threads => WireKind::InProc,
            Self::Qemu => WireKind::Qemu,
            Self::VhostUser => WireKind::VhostUser(Vec::new()),
        }
    }

    const fn peer(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Lockstep | Self::Threads => None,
            Self::Qemu => Some(("qemu-system-x86_64", "qemu-system-x86")),
            Self::VhostUser => Some(("qemu-storage-daemon", "qemu-system-common")),
        }
    }

    fn run(self, story: &Story) -> Result<Cell, CliError> {
        if let Err(skip) = self.kind().expects(&story.scenario) {
            return Ok(Cell::Exempt { why: skip.to_string() });
        }
        if let Some(cell) = (self == Self::Threads).then(|| needs_lockstep(story)).flatten() {
            return Ok(cell);
        }
        if let Some((program, package)) = self.peer()
            && !peer::is_here(program)
        {
            return Ok(Cell::Skipped { want: format!("{program} (package {package})") });
        }
        let mut arguments = story.arguments();
        // They end when this drops, after the run.
        let mut daemons = Vec::new();
        match self {
            Self::Lockstep => {}
            Self::Threads => arguments.extend(["--world", "threads"].map(str::to_owned)),
            Self::Qemu => arguments.extend(["--wire", "qemu"].map(str::to_owned)),
            Self::VhostUser => {
                for device in &story.scenario.device {
                    let daemon = StorageDaemon::start(device, &daemons)?;
                    arguments.extend(["--wire".to_owned(), format!("vhost-user={}", daemon.socket().display())]);
                    daemons.push(daemon);
                }
            }
        }
        Ok(child(&arguments)?)
    }
}

fn needs_lockstep(story: &Story) -> Option<Cell> {
    let need = Need::Lockstep;
    story.scenario.needs.contains(&need).then(|| Cell::Exempt { why: format!("needs {need}") })
}

/// Runs a scenario on a machine: it must show what its file says of that.
fn on_machine(kit: &Kit, machine: NamedMachine, world: WorldKind, story: &Story) -> Result<Cell, CliError> {
    let sets: Vec<_> = machine.sets().into_iter().chain(story.sets.iter().cloned()).collect();
    let there = match kit.load(&story.source, &sets) {
        Ok(scenario) => scenario.on(machine),
        Err(error) => return Ok(Cell::Failed { why: with_causes(&error) }),
    };
    if let Err(why) = there {
        return Ok(Cell::Exempt { why });
    }
    if let Some(cell) = (world == WorldKind::Threads).then(|| needs_lockstep(story)).flatten() {
        return Ok(cell);
    }
    let mut arguments = story.arguments();
    arguments.extend(["--machine", machine.name(), "--world", world.name()].map(str::to_owned));
    Ok(child(&arguments)?)
}
