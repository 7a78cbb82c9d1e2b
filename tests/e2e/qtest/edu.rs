//! QEMU's edu, driven by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lowzone_driver::bus::PciBus;
use lowzone_driver::pci::PciDevice;
use lowzone_guest_mem::dma::dma_bit_mask;
use lowzone_guest_mem::env::{IrqHandler, IrqReturn};
use lowzone_guest_mem::iomem::IoMem;
use lowzone_guest_mem::iospace::Width;
use lowzone_guest_mem::irq::request_irq;
use lowzone_guest_mem::kernel::MachineConfig;
use lowzone_guest_mem::wait::sleep;
use lowzone_guest_mem::{Cpu, PhysAddr};

use super::{Rig, end, small};
use lowzone::wire::qtest::{Peer, Qemu};
use lowzone_tests::peer;

/// QEMU's edu: registers, and commands that wait by polling.
struct Edu<'a> {
    cpu: &'a Cpu<'a>,
    pci: &'a Arc<PciDevice>,
    regs: IoMem,
}

const TO_EDU: u64 = 1;
const FROM_EDU: u64 = 0b11;
const BUFFER: u64 = 0x40000;

impl<'a> Edu<'a> {
    fn new(cpu: &'a Cpu<'a>, pci: &'a Arc<PciDevice>) -> Self {
        pci.enable();
        pci.set_master();
        let regs = pci.map_bar(cpu, 0, 0, 0x1000).unwrap();
        Self { cpu, pci, regs }
    }

    fn dma(&self, from: u64, to: u64, len: u64, command: u64) {
        self.regs.writeq(self.cpu, 0x80, from);
        self.regs.writeq(self.cpu, 0x88, to);
        self.regs.writeq(self.cpu, 0x90, len);
        self.regs.writeq(self.cpu, 0x98, command);
        let begun = Instant::now();
        while self.regs.readq(self.cpu, 0x98) & 1 == 1 {
            assert!(begun.elapsed() < Duration::from_secs(20), "the transfer never ends");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What is at `from` by way of the device's buffer.
    fn fetch(&self, from: u64, len: usize) -> Vec<u8> {
        let ram = self.cpu.kernel().ram();
        let to = PhysAddr::new(0x20_0000);
        ram.write(to, &vec![0xee; len]).unwrap();
        self.dma(from, BUFFER, len as u64, TO_EDU);
        self.dma(BUFFER, to.get(), len as u64, FROM_EDU);
        let mut bytes = vec![0; len];
        ram.read(to, &mut bytes).unwrap();
        bytes
    }

    fn factorial(&self, n: u32) -> u32 {
        self.regs.writel(self.cpu, 0x08, n);
        let begun = Instant::now();
        while self.regs.readl(self.cpu, 0x20) & 1 == 1 {
            assert!(begun.elapsed() < Duration::from_secs(20), "the factorial never ends");
        }
        self.regs.readl(self.cpu, 0x08)
    }
}

fn edu(bits: u8) -> Peer {
    Peer::Edu { mask: dma_bit_mask(bits) }
}

#[test]
fn edu_answers_and_computes() {
    if !peer::qemu() {
        return;
    }
    let rig = Rig::new(small(), &[edu(28)]);
    let (cpu, devices) = (rig.cpu(), rig.devices());
    assert_eq!(devices.len(), 1);
    let pci = &devices[0];
    assert_eq!((pci.id().vendor, pci.id().device, pci.bar(0).unwrap().len), (0x1234, 0x11e8, 1 << 20));
    assert_eq!(pci.at(), Qemu::place(0));
    {
        let edu = Edu::new(&cpu, pci);
        assert_eq!(edu.regs.readl(&cpu, 0), 0x0100_00ed);
        edu.regs.writel(&cpu, 4, 0x1234_5678);
        assert_eq!(edu.regs.readl(&cpu, 4), !0x1234_5678);
        assert_eq!([0, 1, 10, 12, 13].map(|n| edu.factorial(n)), [1, 1, 3_628_800, 479_001_600, 1_932_053_504]);
        edu.pci.disable();
        // Nothing decodes the address any more: a hole reads 0 in QEMU, where a PC's bus gives all-ones.
        assert_eq!(edu.regs.readl(&cpu, 0), 0);
    }
    rig.assert_clean();
}

#[test]
fn edu_moves_data_both_ways_within_its_mask() {
    if !peer::qemu() {
        return;
    }
    let rig = Rig::new(small(), &[edu(28)]);
    let (cpu, devices) = (rig.cpu(), rig.devices());
    let edu = Edu::new(&cpu, &devices[0]);
    let ram = rig.machine.kernel().ram();
    // 4095 bytes: this version ends the emulator when a transfer ends at the very end of the buffer.
    let bytes: Vec<u8> = (0..4095_u32).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
    ram.write(PhysAddr::new(0x40_0123), &bytes).unwrap();
    assert_eq!(edu.fetch(0x40_0123, 4095), bytes);

    // 0x10300000 has a bit that the device drops: it reads the canary at 0x300000, and nobody is told.
    let high = PhysAddr::new(0x1030_0000);
    ram.write(high, b"what the driver meant").unwrap();
    ram.write(PhysAddr::new(high.get() & dma_bit_mask(28)), b"CANARY, 256 MiB below").unwrap();
    assert_eq!(edu.fetch(high.get(), 21), b"CANARY, 256 MiB below");
    drop(edu);
    rig.assert_clean();
    drop((cpu, devices));
    let said = end(rig);
    assert!(said.contains("EDU: clamping DMA"), "{said}");
}

#[test]
fn edu_with_32_bits_reaches_what_it_is_given_and_the_bus_master_bit_rules() {
    if !peer::qemu() {
        return;
    }
    let rig = Rig::new(MachineConfig::default(), &[edu(32)]);
    let (cpu, devices) = (rig.cpu(), rig.devices());
    let edu = Edu::new(&cpu, &devices[0]);
    let ram = rig.machine.kernel().ram();
    assert_eq!((ram.total(), ram.low()), (6 << 30, 3 << 30), "RAM lies as QEMU lays it");
    // The last low page, and bytes that lie 4 GiB above others.
    let last = PhysAddr::new((3 << 30) - 4096);
    ram.write(last, b"the last low page").unwrap();
    assert_eq!(edu.fetch(last.get(), 17), b"the last low page");
    ram.write(PhysAddr::new(0x1_0050_0000), b"above 4 GiB").unwrap();
    ram.write(PhysAddr::new(0x50_0000), b"below 4 GiB").unwrap();
    assert_eq!(edu.fetch(0x1_0050_0000, 11), b"below 4 GiB");

    let to = PhysAddr::new(0x60_0000);
    ram.write(to, b"untouched").unwrap();
    let command = edu.pci.config_read(4, Width::B2);
    edu.pci.config_write(4, Width::B2, command & !4);
    edu.dma(BUFFER, to.get(), 9, FROM_EDU);
    let mut bytes = [0; 9];
    ram.read(to, &mut bytes).unwrap();
    assert_eq!(&bytes, b"untouched", "a device that is no bus master writes nothing");
    drop(edu);
    rig.assert_clean();
}

struct Count(Arc<AtomicU32>, Arc<IoMem>);

impl IrqHandler for Count {
    fn hardirq(&self, cpu: &Cpu<'_>) -> IrqReturn {
        let causes = self.1.readl(cpu, 0x24);
        if causes == 0 {
            return IrqReturn::None;
        }
        self.1.writel(cpu, 0x64, causes);
        self.0.fetch_or(causes, Ordering::Relaxed);
        IrqReturn::Handled
    }
}

/// Waits as a driver does; the causes that came.
fn causes(cpu: &Cpu<'_>, seen: &AtomicU32) -> u32 {
    let begun = Instant::now();
    while seen.load(Ordering::Relaxed) == 0 && begun.elapsed() < Duration::from_secs(10) {
        sleep(cpu, 1_000_000).unwrap();
    }
    seen.swap(0, Ordering::Relaxed)
}

#[test]
fn interrupts_come_by_pin_and_by_message() {
    if !peer::qemu() {
        return;
    }
    let rig = Rig::new(small(), &[edu(28), edu(28)]);
    let (cpu, devices) = (rig.cpu(), rig.devices());
    for (index, pci) in devices.iter().enumerate() {
        pci.enable();
        pci.set_master();
        let regs = Arc::new(pci.map_bar(&cpu, 0, 0, 0x1000).unwrap());
        let seen = Arc::new(AtomicU32::new(0));
        let handler = Arc::new(Count(seen.clone(), regs.clone()));
        let line = pci.intx().unwrap();
        assert_eq!(line, 17 + u32::try_from(index).unwrap(), "each slot has its own line");
        let irq = request_irq(&cpu, line, handler.clone()).unwrap();
        regs.writel(&cpu, 0x60, 0xbeef);
        assert_eq!(causes(&cpu, &seen), 0xbeef);
        regs.writel(&cpu, 0x20, 0x80);
        regs.writel(&cpu, 0x08, 5);
        assert_eq!((causes(&cpu, &seen), regs.readl(&cpu, 0x08)), (1, 120));
        irq.free(&cpu);

        let vector = rig.bus.alloc_vector(0).unwrap();
        let cap = pci.find_capability(5).unwrap();
        pci.config_write(cap + 4, Width::B4, u32::try_from(vector.addr).unwrap());
        pci.config_write(cap + 8, Width::B4, 0);
        pci.config_write(cap + 12, Width::B2, vector.data);
        pci.config_write(cap + 2, Width::B2, pci.config_read(cap + 2, Width::B2) | 1);
        let irq = request_irq(&cpu, vector.irq, handler).unwrap();
        regs.writel(&cpu, 0x60, 0x77);
        assert_eq!(causes(&cpu, &seen), 0x77);
        // The last transfer's interrupt comes 100 ms after its command, when nobody talks to the device.
        regs.writeq(&cpu, 0x90, 8);
        regs.writeq(&cpu, 0x80, 0x20_0000);
        regs.writeq(&cpu, 0x88, BUFFER);
        regs.writeq(&cpu, 0x98, 0b101);
        assert_eq!(causes(&cpu, &seen), 0x100);
        irq.free(&cpu);
        rig.bus.free_vector(vector.irq);
    }
    drop(devices);
    rig.assert_clean();
}
