//! The stock kind `edu`: QEMU's educational device and its driver.
//!
//! Neighbours: `device::edu`, `driver::edu`. An `exercise` is a factorial by interrupt, then bytes to the device and
//! back: in turn through the driver's coherent memory and through memory from `kmalloc`, of which less comes back than
//! is mapped: the rest must stay as it was.

use std::sync::Arc;

use lowzone_device::edu::{Hardware, edu};
use lowzone_driver::bus::Bdf;
use lowzone_driver::edu::{Edu, EduDriver, EduOptions, Way};
use lowzone_driver::pci::PciDevice;
use lowzone_guest_mem::dma::dma_bit_mask;
use lowzone_guest_mem::gfp::{GFP_DMA, GFP_KERNEL, Gfp};
use lowzone_guest_mem::{Cpu, KBuf};

use super::{DeviceEnv, DeviceKind, DriverKind, ExerciseError, LabDriver, MakeError, Plugged};
use crate::spec::{Driver, EDU, Kind};
use crate::world::Random;

pub(super) const DRIVER: DriverKind = DriverKind { kind: Kind::new(EDU).engine(), make: driver };
pub(super) const DEVICE: DeviceKind = DeviceKind { kind: Kind::new(EDU), make: device };

/// Bytes that an exercise moves each way.
const BYTES: usize = 2048;
/// Bytes of those that do not come back through streaming memory.
const REST: usize = 128;
/// Operands: 13! is the first to leave 32 bits, 34! the first whose low 32 are zero.
const OPERANDS: u32 = 20;

fn driver(spec: &Driver) -> Result<Arc<dyn LabDriver>, MakeError> {
    Ok(Arc::new(EduDriver::new(EduOptions {
        dma_mask: spec.dma_mask,
        coherent_mask: spec.coherent_bits(),
        bus_master: spec.bus_master,
        msi: spec.msix,
        timeout: u64::from(spec.deadline_ms) * 1_000_000,
    })))
}

fn device(env: &DeviceEnv<'_>) -> Result<Plugged, MakeError> {
    let hardware = Hardware { width: env.spec.width, beyond: env.beyond() };
    let made = edu(hardware, env.irq.clone(), env.port(), env.tap())?;
    Ok(Plugged {
        function: made.function,
        workers: made.workers,
        slot: Some(made.slot),
        script: Some(made.script),
        counters: Some(made.counters),
    })
}

impl LabDriver for EduDriver {
    fn exercise(&self, cpu: &Cpu<'_>, device: &PciDevice, nth: u64) -> Result<u64, ExerciseError> {
        let card = self.card(device.at()).ok_or(ExerciseError::NotBound(device.at()))?;
        let n = u32::try_from(nth % u64::from(OPERANDS)).unwrap_or(0);
        let seen = card.factorial(cpu, n).map_err(ExerciseError::failed)?;
        let expected = (1..=n).fold(1, u32::wrapping_mul);
        if seen != expected {
            return Err(ExerciseError::WrongData { expected: expected.into(), seen: seen.into() });
        }
        let mut content = [0; BYTES];
        Random::new(nth).fill(&mut content);
        let back =
            if nth.is_multiple_of(2) { coherent(cpu, &card, &content) } else { streaming(cpu, &card, &content) }?;
        match content.iter().zip(&back).find(|(wanted, seen)| wanted != seen) {
            None => Ok(2 * BYTES as u64),
            Some((&expected, &seen)) => Err(ExerciseError::WrongData { expected: expected.into(), seen: seen.into() }),
        }
    }

    fn edu(&self, at: Bdf) -> Option<Arc<Edu>> {
        self.card(at)
    }
}

/// There and back through the driver's coherent memory.
fn coherent(cpu: &Cpu<'_>, card: &Edu, content: &[u8; BYTES]) -> Result<[u8; BYTES], ExerciseError> {
    let buffer = card.buffer();
    let mut back = content.map(|byte| !byte);
    buffer.write(cpu, 0, content);
    card.transfer(cpu, Way::ToDevice, buffer.dma_addr(), BYTES).map_err(ExerciseError::failed)?;
    buffer.write(cpu, 0, &back);
    card.transfer(cpu, Way::FromDevice, buffer.dma_addr(), BYTES).map_err(ExerciseError::failed)?;
    buffer.read(cpu, 0, &mut back);
    Ok(back)
}

/// There and back through memory that is mapped for each way: below 16 MiB for a device that does not reach the bounce
/// pool, else from anywhere. The last bytes don't come back, and are not touched.
fn streaming(cpu: &Cpu<'_>, card: &Edu, content: &[u8; BYTES]) -> Result<[u8; BYTES], ExerciseError> {
    let low = if card.pci().dma().mask() < dma_bit_mask(32) { GFP_DMA } else { Gfp::empty() };
    let mut back = content.map(|byte| !byte);
    let mut buf = KBuf::kmalloc(cpu, BYTES, GFP_KERNEL | low).map_err(ExerciseError::failed)?;
    buf.write_at(0, content).map_err(ExerciseError::failed)?;
    let mut buf = card.dma_to_device(cpu, buf, BYTES).map_err(|error| ExerciseError::failed(error.why))?.buf;
    buf.write_at(0, &back).map_err(ExerciseError::failed)?;
    let buf = card.dma_from_device(cpu, buf, BYTES - REST).map_err(|error| ExerciseError::failed(error.why))?.buf;
    buf.read_at(0, &mut back).map_err(ExerciseError::failed)?;
    // As if they had come.
    back[BYTES - REST..].iter_mut().for_each(|byte| *byte = !*byte);
    Ok(back)
}
