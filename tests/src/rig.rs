//! A machine with one virtio disk, by hand: the test's own code runs on its CPUs.
//!
//! The disk's workers may be withheld: then nobody serves its queues, and the test itself plays the device in the
//! machine's RAM. Neighbours: `lowzone::lab`, which builds the same from a scenario.

use std::sync::Arc;

use lowzone::wire::{InProc, LabTap};
use lowzone::world::{Body, Exit, Lockstep, Threads};
use lowzone_device::Worker;
use lowzone_device::blk::{BlkOptions as DeviceOptions, Hardware, blk};
use lowzone_device::pci::{IrqSink, PciFunction};
use lowzone_device::store::{MemoryStore, Store};
use lowzone_driver::bus::PciBus;
use lowzone_driver::pci::{PciDevice, enumerate};
use lowzone_guest_mem::dma::{DmaDevice, DmaPort};
use lowzone_guest_mem::kernel::{Kernel, KernelRef, Machine, MachineConfig};
use lowzone_guest_mem::stats::{Leak, leaks};
use vm_memory::VolatileSlice;

/// Who serves the disk's queues.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Serve {
    /// The device's own workers.
    Device,
    /// Nobody: the test plays the device.
    Nobody,
}

/// The machine and its disk, in one world or the other.
pub struct Rig<W = Lockstep> {
    /// Who runs when.
    pub world: W,
    /// The bus.
    pub bus: Arc<InProc>,
    /// Where the disk's interrupts go.
    pub sink: Arc<dyn IrqSink>,
    /// The disk's DMA side.
    pub dma: DmaDevice,
    /// What the disk stores.
    pub store: Arc<Store>,
    // Last: the machine is reset when it drops.
    machine: Machine,
}

/// What a world is made around.
type Around = (KernelRef, Arc<InProc>, Vec<Box<dyn Worker>>);

/// Changes a function before it is plugged in.
pub type Wrap = dyn Fn(Arc<dyn PciFunction>) -> Arc<dyn PciFunction>;

impl Rig {
    /// A machine with a disk in memory that begins with `bytes`.
    pub fn new(config: MachineConfig, options: DeviceOptions, bytes: Vec<u8>, serve: Serve, seed: u64) -> Self {
        Self::wrapped(config, options, bytes, serve, seed, &|function| function)
    }

    /// The same, with the function changed before the bus gets it.
    pub fn wrapped(
        config: MachineConfig,
        options: DeviceOptions,
        bytes: Vec<u8>,
        serve: Serve,
        seed: u64,
        wrap: &Wrap,
    ) -> Self {
        let world = |(kernel, bus, workers): Around| Lockstep::new(kernel, bus, workers, seed);
        Self::around(config, options, bytes, serve, wrap, world)
    }

    /// Runs one body on CPU 0.
    pub fn run(&mut self, body: Body) -> Exit {
        self.world.run(vec![body])[0]
    }
}

impl Rig<Threads> {
    /// The same in the threads world.
    pub fn threads(config: MachineConfig, options: DeviceOptions, bytes: Vec<u8>, serve: Serve) -> Self {
        let placed = |workers: Vec<Box<dyn Worker>>| workers.into_iter().map(|worker| (0, worker)).collect();
        let world = |(kernel, bus, workers): Around| Threads::new(kernel, bus, placed(workers), 1).unwrap();
        Self::around(config, options, bytes, serve, &|function| function, world)
    }
}

impl<W> Rig<W> {
    fn around(
        config: MachineConfig,
        options: DeviceOptions,
        mut bytes: Vec<u8>,
        serve: Serve,
        wrap: &Wrap,
        world: impl FnOnce(Around) -> W,
    ) -> Self {
        let machine = Machine::acquire(config).unwrap();
        let bus = Arc::new(InProc::new(machine.kernel_ref(), config.cpus));
        machine.kernel().set_io_space(bus.clone());
        let (at, sink) = bus.next_slot();
        let dma = DmaDevice::new(machine.kernel_ref(), &at.to_string());
        let store = Arc::new(Store::Memory(MemoryStore::zeroed(bytes.len() as u64).unwrap()));
        store.write_at(0, &VolatileSlice::from(&mut bytes[..])).unwrap();
        let port = |_queue| (DmaPort::new(&dma), LabTap::new(machine.kernel_ref(), &dma));
        let made = blk(&options, Hardware::default(), store.clone(), sink.clone(), port).unwrap();
        bus.plug(wrap(made.function), Some(made.slot));
        let workers: Vec<Box<dyn Worker>> = if serve == Serve::Device { made.workers } else { Vec::new() };
        let world = world((machine.kernel_ref(), bus.clone(), workers));
        Self { world, bus, sink, dma, store, machine }
    }

    /// The kernel.
    pub fn kernel(&self) -> &'static Kernel {
        self.machine.kernel()
    }

    /// The disk's function, found as at boot.
    pub fn disk(&self) -> Arc<PciDevice> {
        let bus: Arc<dyn PciBus> = self.bus.clone();
        let dma = self.dma.clone();
        enumerate(&bus, |_| Some(dma.clone())).unwrap().remove(0)
    }

    /// What is left over.
    pub fn leaks(&self) -> Vec<Leak> {
        leaks(self.kernel())
    }

    /// The names of the findings so far.
    pub fn findings(&self) -> Vec<&'static str> {
        self.kernel().findings().iter().map(|finding| finding.kind.name()).collect()
    }

    /// Asserts that nothing is left over, nothing was found and every table is right.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn assert_clean(&self, what: &str) {
        let findings: Vec<_> = self.kernel().findings().iter().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "{what}: {findings:#?}");
        assert!(self.leaks().is_empty(), "{what}: {:#?}", self.leaks());
        assert_eq!(self.bus.vectors(), 0, "{what}: vectors");
        self.kernel().validate().unwrap_or_else(|broken| panic!("{what}: {broken}"));
    }
}
