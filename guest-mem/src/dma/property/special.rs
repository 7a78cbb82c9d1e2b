//! Steps of the driver that are rarer: pages in the device's reach, registers, memory freed while it is mapped.

use super::held::{Lent, Whole};
use super::maps::in_direction;
use super::run::{How, Live, State, Turn};
use super::shadow::{Ask, Check, Told, ensure};
use crate::addr::PhysAddr;
use crate::cpu::Cpu;
use crate::dma::coherent::CoherentError;
use crate::dma::direction::{Bidirectional, Dir, Direction, FromDevice, ToDevice};
use crate::dma::streaming::{Resource, Window};
use crate::dma::{DmaDevice, MapFailure};
use crate::gfp::GFP_KERNEL;

/// Where the other device's registers lie.
const REGISTERS: u64 = 0xf000_0000;

fn near<D: Direction>(device: &DmaDevice, cpu: &Cpu<'_>, len: usize) -> Result<(Box<dyn Whole>, Told), CoherentError>
where
    for<'a, 'b> Window<'a, 'b, D>: Lent,
{
    let it = device.alloc_noncoherent::<D>(cpu, len, GFP_KERNEL)?;
    let told = Told { dma: it.dma_addr().get(), id: it.id(), bounced: it.bounced() };
    Ok((Box::new(it), told))
}

fn registers<D: Direction>(
    device: &DmaDevice,
    cpu: &Cpu<'_>,
    it: Resource,
) -> Result<(Box<dyn Whole>, Told), MapFailure> {
    let it = device.map_resource::<D>(cpu, it).map_err(|error| error.why)?;
    let told = Told { dma: it.dma_addr().get(), id: it.id(), bounced: it.bounced() };
    Ok((Box::new(it), told))
}

impl State {
    /// Pages that are the device's from the first moment on.
    pub(super) fn map_near(&mut self, cpu: &Cpu<'_>, turn: &mut Turn<'_>, dev: usize, dir: Dir) -> Check {
        let (len, device) = (turn.some(9000), self.devices[dev].clone());
        let (whole, told) = match in_direction!(dir, near(&device, cpu, len)) {
            Ok(made) => made,
            Err(CoherentError::Iova(_)) => {
                let book = &self.shadow.books[dev];
                let room = book.domain.as_ref().is_none_or(|domain| domain.has_room(0, len as u64, book.mask));
                ensure!(!room, "no addresses for {len} bytes");
                return Ok(());
            }
            Err(why) => return Err(why.to_string()),
        };
        // Which pages it got is the allocator's affair.
        let orig = device.behind(crate::addr::DmaAddr::new(told.dma)).map_or(0, PhysAddr::get);
        let len = len as u64;
        self.shadow.memory.clear(orig, len.next_multiple_of(4096).next_power_of_two());
        self.lives.push(Live { how: How::Whole(whole, true), dev, dir, ids: vec![told.id], spans: vec![(orig, len)] });
        let ask = Ask { orig, len, dir, skip: false, list: false, kept: false, near: true };
        self.mapped(dev, &[ask], &[told], None)
    }

    /// Registers of another device, which are no memory.
    pub(super) fn map_registers(&mut self, cpu: &Cpu<'_>, turn: &mut Turn<'_>, dev: usize, dir: Dir) -> Check {
        // Each in a page of its own, so that no two share a line.
        self.seen.registers += 1;
        let orig = REGISTERS + self.seen.registers % 8192 * 4096 + turn.dice.roll(4000);
        let (len, device) = (turn.some(5000) as u64, self.devices[dev].clone());
        let it = Resource { phys: PhysAddr::new(orig), len };
        let book = &self.shadow.books[dev];
        match in_direction!(dir, registers(&device, cpu, it)) {
            Ok((whole, told)) => {
                self.lives.push(Live {
                    how: How::Whole(whole, false),
                    dev,
                    dir,
                    ids: vec![told.id],
                    spans: Vec::new(),
                });
                let ask = Ask { orig, len, dir, skip: true, list: false, kept: false, near: true };
                self.shadow.registers(dev, &ask, told)
            }
            Err(MapFailure::Overflow { .. }) => {
                ensure!(book.domain.is_none() && orig + len - 1 > book.mask, "{orig:#x}+{len} is within the mask");
                Ok(())
            }
            Err(MapFailure::Iova(_)) => {
                let room = book.domain.as_ref().is_none_or(|domain| domain.has_room(orig, len, book.mask));
                ensure!(!room, "no addresses for {len} bytes");
                Ok(())
            }
            Err(why) => Err(why.to_string()),
        }
    }

    /// A buffer is freed while parts of it are mapped; the device goes on, and what it wrote comes back to nobody.
    pub(super) fn free_mapped(&mut self, cpu: &Cpu<'_>, turn: &mut Turn<'_>, at: usize) -> Check {
        let Some(buffer) = self.buffers[at].take() else { return Ok(()) };
        let (orig, len) = buffer.spans[0];
        drop(buffer);
        self.shadow.freed(orig, len);
        let is_part = |live: &Live| matches!(live.how, How::Part(of, _) if of == at);
        while let Some(part) = self.lives.iter().position(is_part) {
            let (dev, dir) = (self.lives[part].dev, self.lives[part].dir);
            let piece = self.shadow.find(dev, self.lives[part].ids[0]);
            let (from, len) = turn.part(piece.len as usize, 64);
            self.access(turn, dev, piece.dma + from as u64, len as u64, dir.device_writes())?;
            self.unmap(cpu, turn, part)?;
        }
        Ok(())
    }
}
