//! A machine whose disk is behind a vhost-user socket, by hand: the test's own code runs on its CPUs, in real time.
//!
//! Neighbours: `rig`, the same with a disk in this process; `daemon`, which serves.

use std::path::Path;
use std::sync::Arc;

use lowzone::wire::{InProc, VhostUser};
use lowzone::world::{Body, Exit, Threads};
use lowzone_driver::blk::{BlkDriver, BlkOptions, Disk};
use lowzone_driver::bus::Bdf;
use lowzone_driver::virtio::VirtioDevice;
use lowzone_guest_mem::dma::DmaDevice;
use lowzone_guest_mem::kernel::{Kernel, Machine, MachineConfig};
use lowzone_guest_mem::stats::leaks;

/// The name that the disk goes by.
pub const AT: Bdf = Bdf { bus: 0, device: 1, function: 0 };

/// The machine, its disk and its driver.
pub struct FrontRig {
    /// Who runs when.
    pub world: Threads,
    /// Interrupts.
    pub bus: Arc<InProc>,
    /// The wire.
    pub wire: Arc<VhostUser>,
    /// The driver.
    pub driver: Arc<BlkDriver>,
    /// What the driver binds to.
    pub device: VirtioDevice,
    // Last: the machine is reset when it drops.
    machine: Machine,
}

impl FrontRig {
    /// A machine of `cpus` CPUs with a disk at this socket, and no driver bound to it.
    ///
    /// # Panics
    /// If nobody serves there.
    pub fn new(socket: &Path, cpus: u32, options: BlkOptions) -> Self {
        let machine = Machine::acquire(MachineConfig { cpus, ..MachineConfig::default() }).unwrap();
        let kernel = machine.kernel_ref();
        let bus = Arc::new(InProc::new(kernel, cpus));
        let wire = VhostUser::connect(kernel, bus.clone(), socket).unwrap_or_else(|error| panic!("{error}"));
        let wire = Arc::new(wire);
        let (dma, irqs) = (DmaDevice::new(kernel, "virtio0"), wire.irqs());
        let device = VirtioDevice { transport: wire.clone(), dma, irqs };
        let world = Threads::new(kernel, bus.clone(), Vec::new(), 1).unwrap();
        Self { world, bus, wire, driver: Arc::new(BlkDriver::new(options)), device, machine }
    }

    /// The kernel.
    pub fn kernel(&self) -> &'static Kernel {
        self.machine.kernel()
    }

    /// Binds the driver; the disk that it makes.
    ///
    /// # Panics
    /// If its probe fails.
    pub fn bind(&mut self) -> Arc<Disk> {
        let (driver, device) = (self.driver.clone(), self.device.clone());
        self.run(vec![Box::new(move |cpu| driver.probe_virtio(cpu, AT, &device).unwrap())]);
        self.driver.disk(AT).unwrap()
    }

    /// Lets go of the disk.
    pub fn unbind(&mut self) {
        let (driver, device) = (self.driver.clone(), self.device.clone());
        self.run(vec![Box::new(move |cpu| driver.remove_virtio(cpu, AT, &device))]);
    }

    /// Runs one body a CPU.
    ///
    /// # Panics
    /// If one does not end well.
    #[track_caller]
    pub fn run(&mut self, bodies: Vec<Body>) {
        let exits = self.world.run(bodies);
        assert!(exits.iter().all(|&exit| exit == Exit::Finished), "{exits:?} {:?}", self.kernel().findings());
    }

    /// Asserts that nothing is left over and nothing was found.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn assert_clean(&self) {
        let findings: Vec<_> = self.kernel().findings().iter().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "{findings:#?}");
        let left = leaks(self.kernel());
        assert!(left.is_empty(), "{left:#?}");
        self.kernel().validate().unwrap_or_else(|broken| panic!("{broken}"));
    }
}
