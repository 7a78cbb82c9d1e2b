//! The driver: one sum at a time, by interrupt, with a deadline.
//!
//! What to look at: `probe` gives back all that it took when any step fails (each thing frees itself when dropped);
//! the device is stopped before memory that it might still touch is unmapped or freed; no wait is without an end;
//! nothing that the device says is believed unchecked.

use std::sync::Arc;

use lowzone::driver::bus::Bdf;
use lowzone::driver::pci::{Msix, PciDevice, PciId};
use lowzone::driver::{Driver, ProbeError};
use lowzone::guest_mem::dma::{Coherent, ToDevice, dma_bit_mask};
use lowzone::guest_mem::env::{IrqHandler, IrqReturn};
use lowzone::guest_mem::irq::{IrqLine, request_irq};
use lowzone::guest_mem::{Cpu, KBuf, gfp::GFP_KERNEL, iomem::IoMem, lock::Mutex, wait::WaitQueue};
use lowzone::kit::{DriverKind, DriverSpec, ExerciseError, Kind, LabDriver, MakeError};

use crate::regs::*;

pub const KIND: DriverKind = DriverKind { kind: Kind::new("sum"), make };

/// Bytes of one exercise.
const BYTES: usize = 2048;

fn make(spec: &DriverSpec) -> Result<Arc<dyn LabDriver>, MakeError> {
    let timeout = u64::from(spec.deadline_ms) * 1_000_000;
    Ok(Arc::new(SumDriver { mask: dma_bit_mask(spec.dma_mask), timeout, bound: Mutex::new(Vec::new()) }))
}

/// What requests and the interrupt handler share.
struct Engine {
    regs: IoMem,
    desc: Coherent,
    done: WaitQueue,
    /// Held from START to the end: there is one descriptor.
    turn: Mutex<()>,
}

impl IrqHandler for Engine {
    fn hardirq(&self, cpu: &Cpu<'_>) -> IrqReturn {
        let status = self.regs.readl(cpu, STATUS);
        if status == 0 {
            return IrqReturn::None; // The line may be shared.
        }
        self.regs.writel(cpu, STATUS, status);
        self.done.wake_up_all(cpu);
        IrqReturn::Handled
    }
}

impl Engine {
    /// After this the device touches no memory: a read comes back only when the write before it has arrived.
    fn stop(&self, cpu: &Cpu<'_>) {
        self.regs.writel(cpu, CONTROL, RESET);
        self.regs.readl(cpu, STATUS);
    }

    fn sum(&self, cpu: &Cpu<'_>, device: &PciDevice, bytes: &[u8], timeout: u64) -> Result<u64, ExerciseError> {
        let _turn = self.turn.lock(cpu);
        let mut buf = KBuf::kmalloc(cpu, bytes.len(), GFP_KERNEL).map_err(ExerciseError::failed)?;
        buf.write_at(0, bytes).map_err(ExerciseError::failed)?;
        let mapped = device.dma().map_single::<ToDevice>(cpu, buf).map_err(|error| ExerciseError::failed(error.why))?;
        self.desc.write_u64(cpu, ADDR, mapped.dma_addr().get());
        self.desc.write_u32(cpu, LEN, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.desc.write_u32(cpu, STATE, 0);
        let [a, b, c, d, e, f, g, h] = self.desc.dma_addr().get().to_le_bytes();
        self.regs.writel(cpu, DESC_LO, u32::from_le_bytes([a, b, c, d]));
        self.regs.writel(cpu, DESC_HI, u32::from_le_bytes([e, f, g, h]));
        cpu.wmb(); // The descriptor is whole before the device is told.
        self.regs.writel(cpu, CONTROL, START);
        // Memory tells, not the interrupt: one that is lost, late or not ours does no harm.
        let waited = self.done.wait_event_timeout(cpu, timeout, || self.desc.read_u32(cpu, STATE) != 0);
        if waited.is_err() {
            self.stop(cpu);
        }
        drop(mapped.unmap(cpu));
        waited.map_err(ExerciseError::failed)?;
        cpu.dma_rmb(); // The sum is read after the state that announced it.
        match self.desc.read_u32(cpu, STATE) {
            GOOD => Ok(self.desc.read_u64(cpu, SUM)),
            state => Err(ExerciseError::Device { state }),
        }
    }
}

/// A device in service. Fields are dropped in this order: no interrupt finds its handler's memory gone.
struct Bound {
    line: IrqLine,
    msix: Option<Msix>,
    engine: Arc<Engine>,
}

impl Bound {
    fn new(cpu: &Cpu<'_>, device: &Arc<PciDevice>, mask: u64) -> Result<Self, ProbeError> {
        device.enable();
        device.dma().set_mask(cpu, mask)?;
        device.dma().set_coherent_mask(cpu, mask)?;
        let regs = device.map_bar(cpu, 0, 0, REGISTERS)?;
        let id = regs.readl(cpu, ID);
        if id != MAGIC {
            return Err(ProbeError::WrongId { seen: id });
        }
        let desc = device.dma().alloc_coherent(cpu, DESC_BYTES, GFP_KERNEL)?;
        let engine = Arc::new(Engine { regs, desc, done: WaitQueue::new(), turn: Mutex::new(()) });
        let msix = device.enable_msix(cpu, 1).ok();
        let irq = msix.as_ref().and_then(|msix| msix.irq(0)).map_or_else(|| device.intx(), Ok)?;
        let line = request_irq(cpu, irq, engine.clone())?;
        device.set_master();
        Ok(Self { line, msix, engine })
    }
}

struct SumDriver {
    mask: u64,
    timeout: u64,
    bound: Mutex<Vec<(Bdf, Bound)>>,
}

impl SumDriver {
    fn engine(&self, cpu: &Cpu<'_>, at: Bdf) -> Option<Arc<Engine>> {
        self.bound.lock(cpu).iter().find(|(place, _)| *place == at).map(|(_, bound)| bound.engine.clone())
    }
}

impl Driver for SumDriver {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn ids(&self) -> &'static [PciId] {
        &[PciId { vendor: IDENTITY.vendor, device: IDENTITY.device }]
    }

    fn probe(&self, cpu: &Cpu<'_>, device: &Arc<PciDevice>) -> Result<(), ProbeError> {
        let bound = Bound::new(cpu, device, self.mask).inspect_err(|_| device.disable())?;
        self.bound.lock(cpu).push((device.at(), bound));
        Ok(())
    }

    fn remove(&self, cpu: &Cpu<'_>, device: &PciDevice) {
        let mut all = self.bound.lock(cpu);
        let Some(index) = all.iter().position(|(place, _)| *place == device.at()) else { return };
        let Bound { line, msix, engine } = all.remove(index).1;
        drop(all);
        // Interrupts first, then the device, memory last.
        line.free(cpu);
        drop(msix);
        engine.stop(cpu);
        device.disable();
    }

    fn shutdown(&self, cpu: &Cpu<'_>, device: &PciDevice) {
        if let Some(engine) = self.engine(cpu, device.at()) {
            engine.stop(cpu);
            device.disable();
        }
    }
}

impl LabDriver for SumDriver {
    fn exercise(&self, cpu: &Cpu<'_>, device: &PciDevice, nth: u64) -> Result<u64, ExerciseError> {
        let engine = self.engine(cpu, device.at()).ok_or(ExerciseError::NotBound(device.at()))?;
        let mut bytes = [0; BYTES];
        bytes.iter_mut().zip(nth..).for_each(|(byte, number)| *byte = number.to_le_bytes()[0]);
        let expected = bytes.iter().map(|&byte| u64::from(byte)).sum();
        let seen = engine.sum(cpu, device, &bytes, self.timeout)?;
        if seen == expected { Ok(BYTES as u64) } else { Err(ExerciseError::WrongData { expected, seen }) }
    }
}
