//! The devices of a scenario, joined to its machine by a wire.
//!
//! In process they are the kit's; on a peer others stand in for them, and what the scenario stores is handed over.
//! Interrupts come in at the same controller either way. Neighbours: `wire`, `kit`; `lab`, which runs steps on what is
//! joined here.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use lowzone_device::Worker;
use lowzone_device::store::{ImageStore, MemoryStore, Store};
use lowzone_driver::bus::PciBus;
use lowzone_driver::virtio::VirtioDevice;
use lowzone_guest_mem::dma::DmaDevice;
use lowzone_guest_mem::kernel::Machine;

use super::{LabError, Slot};
use crate::kit::{DeviceEnv, Kit};
use crate::spec::{Device, Scenario, StoreSpec};
use crate::wire::inproc::place;
use crate::wire::qtest::map;
use crate::wire::vhost_user::VhostUserError;
use crate::wire::{InProc, Qemu, VhostUser, WireKind};
use crate::world::Placed;

/// What a wire has joined.
pub(super) struct Joined {
    pub(super) bus: Arc<dyn PciBus>,
    pub(super) slots: Vec<Slot>,
    /// What serves the devices in this process.
    pub(super) workers: Vec<Placed>,
    pub(super) peer: Option<Peer>,
}

/// Whose the devices are.
pub(super) enum Peer {
    Qemu(Arc<Qemu>),
    Sockets(Vec<Arc<VhostUser>>),
}

impl Peer {
    /// Has `told` called once it, or one of those at sockets, is gone.
    pub(super) fn on_failure(&self, told: impl Fn() + Send + Sync + Clone + 'static) {
        match self {
            Self::Qemu(qemu) => qemu.on_failure(told),
            Self::Sockets(sockets) => sockets.iter().for_each(|socket| socket.on_failure(told.clone())),
        }
    }

    /// What went wrong with it.
    pub(super) fn failure(&self) -> Option<String> {
        match self {
            Self::Qemu(qemu) => qemu.failure(),
            Self::Sockets(sockets) => sockets.iter().find_map(|socket| socket.failure()),
        }
    }
}

/// Joins a scenario's devices to its machine; `controller` is where their interrupts go.
pub(super) fn join(
    kit: &Kit,
    machine: &Machine,
    controller: &Arc<InProc>,
    scenario: &Scenario,
    wire: &WireKind,
) -> Result<Joined, LabError> {
    match wire {
        WireKind::InProc => in_process(kit, machine, controller, scenario),
        WireKind::Qemu => on_qemu(machine, controller, scenario),
        WireKind::VhostUser(paths) => at_sockets(machine, controller, scenario, paths),
    }
}

fn in_process(kit: &Kit, machine: &Machine, bus: &Arc<InProc>, scenario: &Scenario) -> Result<Joined, LabError> {
    machine.kernel().set_io_space(bus.clone());
    let (mut slots, mut workers): (Vec<Slot>, Vec<Placed>) = (Vec::new(), Vec::new());
    for device in &scenario.device {
        let store = open_store(device, &slots)?;
        let (slot, served) = plug(kit, (machine, bus), device, store.map(Arc::new))?;
        workers.extend(served.into_iter().map(|worker| -> Placed { (slots.len(), worker) }));
        slots.push(slot);
    }
    Ok(Joined { bus: bus.clone(), slots, workers, peer: None })
}

fn on_qemu(machine: &Machine, controller: &Arc<InProc>, scenario: &Scenario) -> Result<Joined, LabError> {
    let mut slots = Vec::new();
    let mut peers = Vec::new();
    for (index, device) in scenario.device.iter().enumerate() {
        // Opened for what it says of itself, and closed again before the emulator opens it.
        let capacity = open_store(device, &slots)?.as_ref().map_or(0, Store::capacity);
        peers.push(map::peer(device, capacity));
        let at = Qemu::place(index);
        let dma = DmaDevice::new(machine.kernel_ref(), &at.to_string());
        slots.push(Slot { capacity, ..Slot::of(device, at, dma) });
    }
    let bus = Arc::new(Qemu::start(machine.kernel_ref(), controller.clone(), &peers)?);
    machine.kernel().set_io_space(bus.clone());
    Ok(Joined { bus: bus.clone(), slots, workers: Vec::new(), peer: Some(Peer::Qemu(bus)) })
}

fn at_sockets(
    machine: &Machine,
    controller: &Arc<InProc>,
    scenario: &Scenario,
    paths: &[PathBuf],
) -> Result<Joined, LabError> {
    machine.kernel().set_io_space(controller.clone());
    let (devices, sockets) = (scenario.device.len(), paths.len());
    if devices != sockets {
        return Err(VhostUserError::Sockets { devices, sockets }.into());
    }
    let (mut slots, mut wires): (Vec<Slot>, Vec<_>) = (Vec::new(), Vec::new());
    for (index, (device, path)) in scenario.device.iter().zip(paths).enumerate() {
        let wire = Arc::new(VhostUser::connect(machine.kernel_ref(), controller.clone(), path)?);
        let wanted = open_store(device, &slots)?.as_ref().map_or(0, Store::capacity);
        let has = wire.capacity()?;
        if has < wanted {
            return Err(VhostUserError::Small { path: path.clone(), has, wanted }.into());
        }
        let dma = DmaDevice::new(machine.kernel_ref(), &format!("virtio{index}"));
        wire.irqs().iter().for_each(|&irq| machine.kernel().irqs().set_device(irq, dma.index()));
        let virtio = VirtioDevice { transport: wire.clone(), dma: dma.clone(), irqs: wire.irqs() };
        let at = place(index);
        slots.push(Slot { capacity: has, virtio: Some(virtio), image: None, ..Slot::of(device, at, dma) });
        wires.push(wire);
    }
    Ok(Joined { bus: controller.clone(), slots, workers: Vec::new(), peer: Some(Peer::Sockets(wires)) })
}

fn open_store(device: &Device, earlier: &[Slot]) -> Result<Option<Store>, LabError> {
    let failed = |source| LabError::Store { device: device.name.clone(), source };
    let memory = |bytes| MemoryStore::zeroed(bytes).map(Store::Memory).map_err(failed);
    match device.store() {
        Some(StoreSpec::Image(path)) => ImageStore::open(path, device.read_only).map(Store::Image).map_err(failed),
        Some(StoreSpec::Memory(bytes)) => memory(bytes),
        Some(StoreSpec::SizeOf(name)) => {
            memory(earlier.iter().find(|other| other.name == name).map_or(0, |other| other.capacity))
        }
        None => return Ok(None),
    }
    .map(Some)
}

fn plug(
    kit: &Kit,
    (machine, wire): (&Machine, &Arc<InProc>),
    device: &Device,
    store: Option<Arc<Store>>,
) -> Result<(Slot, Vec<Box<dyn Worker>>), LabError> {
    let capacity = store.as_ref().map_or(0, |store| store.capacity());
    let no_kind = || LabError::NoKind { what: "device", kind: device.kind.clone() };
    let kind = kit.device(&device.kind).ok_or_else(no_kind)?;
    let (at, irq) = wire.next_slot();
    let dma = DmaDevice::new(machine.kernel_ref(), &at.to_string());
    let env = DeviceEnv { spec: device, irq, store, dma: &dma, kernel: machine.kernel_ref() };
    let made = (kind.make)(&env).map_err(|source| LabError::Device { device: device.name.clone(), source })?;
    wire.plug(made.function, made.slot);
    let slot = Slot { counters: made.counters, script: made.script, capacity, ..Slot::of(device, at, dma) };
    Ok((slot, made.workers))
}

impl Slot {
    /// A place with a device of which nothing is known but what the scenario says.
    fn of(device: &Device, at: lowzone_driver::bus::Bdf, dma: DmaDevice) -> Self {
        let image = device.image.as_ref().map(PathBuf::from);
        let written = Mutex::new(image.iter().map(|_| 0..u64::MAX).collect());
        Self {
            name: device.name.clone(),
            at,
            dma,
            virtio: None,
            counters: None,
            script: None,
            image,
            capacity: 0,
            width: device.width,
            written,
        }
    }
}
