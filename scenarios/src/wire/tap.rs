//! `LabTap`: what a device's bus master refuses or bends, as findings with the mapping's call sites; and, for those who
//! watch, which chains its rings take and give back.
//!
//! Neighbours: `device::Tap`, `guest_mem::finding`. Left out: grants, which the port records itself.

use lowzone_device::Tap;
use lowzone_device::pci::Refusal;
use lowzone_guest_mem::DmaAddr;
use lowzone_guest_mem::dma::DmaDevice;
use lowzone_guest_mem::finding::{Finding, FindingKind};
use lowzone_guest_mem::kernel::KernelRef;
use lowzone_guest_mem::trace::{Kind, Record};

/// The observer of one device's accesses.
pub struct LabTap {
    kernel: KernelRef,
    device: DmaDevice,
}

impl LabTap {
    /// Observes `device`.
    pub fn new(kernel: KernelRef, device: &DmaDevice) -> Self {
        Self { kernel, device: device.clone() }
    }

    fn report(&self, kind: FindingKind, addr: u64) {
        let Some(kernel) = self.kernel.get() else { return };
        let mut sites = Vec::new();
        // Who posted it: the live mapping that has this address, as the driver sees it.
        if let Some((mapped, allocated)) = self.device.mapped_by(DmaAddr::new(addr)) {
            sites.push(("posted by the mapping at", mapped));
            sites.push(("allocated at", allocated));
        }
        let device = Some(self.device.name().to_owned());
        let transaction = self.device.transaction_at(DmaAddr::new(addr));
        let finding = Finding { kind, device, at: kernel.clock(), sites };
        kernel.report_for(finding, self.device.producer(), transaction);
    }

    /// Tells those who watch what a ring of the device did.
    fn link(&self, kind: Kind, queue: u16, head: u64, tag: u64) {
        if let Some(kernel) = self.kernel.get().filter(|kernel| kernel.trace().watched()) {
            let (ts, dev) = (kernel.clock(), self.device.index());
            let record = Record { ts, addr: head, len: queue.into(), kind, dev, tag };
            kernel.trace().link(self.device.producer(), record);
        }
    }
}

impl Tap for LabTap {
    fn granted(&self, _addr: u64, _len: usize, _write: bool) {}

    fn moved(&self, _addr: u64, _len: usize, _write: bool) {}

    fn wrapped(&self, addr: u64, hit: u64, len: usize, write: bool, width: u8) {
        self.report(FindingKind::BeyondWidth { addr, len, width, write, hit: Some(hit) }, addr);
    }

    fn refused(&self, addr: u64, len: usize, write: bool, why: Refusal) {
        match why {
            Refusal::BeyondWidth { width } => {
                self.report(FindingKind::BeyondWidth { addr, len, width, write, hit: None }, addr);
            }
            Refusal::BusMasterOff => self.report(FindingKind::BusMasterOff { addr, len, write }, addr),
            // The port under the bus master reported it already.
            Refusal::Memory => {}
        }
    }

    fn took(&self, queue: u16, head: u16) {
        self.link(Kind::Take, queue, head.into(), 0);
    }

    fn gave(&self, queue: u16, id: u32, len: u32) {
        self.link(Kind::Give, queue, id.into(), len.into());
    }
}
