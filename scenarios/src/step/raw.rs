//! `raw_read`, `raw_packet` and `irq_alloc`: one request by raw calls, which can do wrong what the types would not allow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lowzone_device::net::frame;
use lowzone_driver::blk::{Data, Request};
use lowzone_driver::net::{Frame, Piece};
use lowzone_guest_mem::dma::{Dir, misuse};
use lowzone_guest_mem::env::{IrqHandler, IrqReturn};
use lowzone_guest_mem::gfp::{GFP_KERNEL, Gfp};
use lowzone_guest_mem::irq::request_irq;
use lowzone_guest_mem::wait::sleep;
use lowzone_guest_mem::{Cpu, KBuf};

use super::data;
use crate::lab::{Bench, lock};
use crate::spec::{IrqAllocStep, MapDirection, Memory, RawPacketStep, RawReadStep, Unmap};
use crate::world::Body;

/// Bytes of a raw request.
const BYTES: usize = 4096;
/// How long a raw packet may take.
const PACKET_NS: u64 = 5_000_000_000;
/// Bytes that the handler of `irq_alloc` allocates.
const IRQ_BYTES: usize = 256;

/// One read whose buffer is mapped and unmapped by hand.
pub(super) fn read(bench: &Arc<Bench>, step: &RawReadStep) -> Body {
    let (bench, step) = (bench.clone(), step.clone());
    Box::new(move |cpu| {
        if let Err(why) = raw_read(cpu, &bench, &step) {
            lock(&bench.result).failed_requests += 1;
            lock(&bench.result).log.push(format!("{}: raw request failed: {why}", step.device));
        }
    })
}

fn raw_read(cpu: &Cpu<'_>, bench: &Bench, step: &RawReadStep) -> Result<(), String> {
    let (Some(disk), Some(slot)) = (bench.disk(&step.device), bench.slot(&step.device)) else {
        return Err("no driver".to_owned());
    };
    let marked = lock(&bench.canary).as_mut().and_then(|canary| canary.buffer.take());
    let buffer = match (marked, step.memory) {
        (Some(buffer), _) => buffer,
        (None, memory) => match data::allocate(cpu, &slot.dma, memory, BYTES, GFP_KERNEL).map_err(|e| e.to_string())? {
            Data::Streaming(buffer) => buffer,
            _ => return Err("a raw request wants a buffer to map".to_owned()),
        },
    };
    let dir = match step.direction {
        MapDirection::FromDevice => Dir::FromDevice,
        MapDirection::ToDevice => Dir::ToDevice,
    };
    let raw = misuse::map_single(cpu, &slot.dma, &buffer, dir).map_err(|e| e.to_string())?;
    if step.unmap == Unmap::BeforeDoorbell {
        misuse::unmap_single(cpu, &slot.dma, raw.dma, raw.len, dir);
    }
    let pending = disk.submit(cpu, 0, Request::read(0, Data::Raw(raw))).map_err(|e| e.why.to_string());
    let outcome = pending.and_then(|pending| data::good(disk.wait(cpu, pending)));
    match step.unmap {
        Unmap::AfterCompletion => misuse::unmap_single(cpu, &slot.dma, raw.dma, raw.len, dir),
        // The crime: mapping and buffer are forgotten, as by a driver that lost its pointer.
        Unmap::Never => std::mem::forget(buffer),
        Unmap::BeforeDoorbell => {}
    }
    outcome.map(|_| ())
}

/// One packet whose buffer is mapped and unmapped by hand.
pub(super) fn send(bench: &Arc<Bench>, step: &RawPacketStep) -> Body {
    let (bench, step) = (bench.clone(), step.clone());
    Box::new(move |cpu| {
        if let Err(why) = raw_packet(cpu, &bench, &step) {
            lock(&bench.result).failed_requests += 1;
            lock(&bench.result).log.push(format!("{}: raw packet failed: {why}", step.device));
        }
    })
}

fn raw_packet(cpu: &Cpu<'_>, bench: &Bench, step: &RawPacketStep) -> Result<(), String> {
    let slot = bench.slot(&step.device).ok_or("no device")?;
    let net = bench.driver.net(slot.at).ok_or("no driver")?;
    let mut room = [0; frame::MOST];
    let packet = frame::make(bench.seed, 0, &mut room);
    let mut buffer = KBuf::kmalloc(cpu, packet.len(), GFP_KERNEL).map_err(|e| e.to_string())?;
    buffer.write_at(0, packet).map_err(|e| e.to_string())?;
    let dir = match step.direction {
        MapDirection::FromDevice => Dir::FromDevice,
        MapDirection::ToDevice => Dir::ToDevice,
    };
    let raw = misuse::map_single(cpu, &slot.dma, &buffer, dir).map_err(|e| e.to_string())?;
    if step.unmap == Unmap::BeforeDoorbell {
        misuse::unmap_single(cpu, &slot.dma, raw.dma, raw.len, dir);
    }
    let mut packet = Frame::new();
    // The first piece always fits.
    let _ = packet.push(Piece::Raw(raw));
    let seen = net.completed();
    let sent = net.transmit(cpu, packet).map_err(|e| e.why.to_string());
    let done = sent.and_then(|()| net.wait_completed(cpu, seen, PACKET_NS).map_err(|e| e.to_string()));
    match step.unmap {
        Unmap::AfterCompletion => misuse::unmap_single(cpu, &slot.dma, raw.dma, raw.len, dir),
        // The crime: mapping and buffer are forgotten, as by a driver that lost its pointer.
        Unmap::Never => std::mem::forget(buffer),
        Unmap::BeforeDoorbell => {}
    }
    done
}

/// How often, and how long each time, an interrupt is waited for that has ended its request already.
const LOOKS: u32 = 50;
const LOOK_NS: u64 = 1_000_000;

/// Allocates in hard-interrupt context, with whatever mask it was given, at its first interrupt: how many there are is
/// the device's affair.
struct AllocInHandler {
    gfp: Gfp,
    done: AtomicBool,
}

impl IrqHandler for AllocInHandler {
    fn hardirq(&self, cpu: &Cpu<'_>) -> IrqReturn {
        let _span = cpu.span("careless_handler");
        if !self.done.swap(true, Ordering::Relaxed) {
            drop(KBuf::kmalloc(cpu, IRQ_BYTES, self.gfp));
        }
        IrqReturn::Handled
    }
}

/// One read with a second handler on the queue's interrupt, which allocates.
pub(super) fn irq_alloc(bench: &Arc<Bench>, step: &IrqAllocStep) -> Body {
    let (bench, step) = (bench.clone(), step.clone());
    Box::new(move |cpu| {
        let Some(disk) = bench.disk(&step.device) else {
            return bench.failed(format!("irq_alloc: {} has no driver", step.device));
        };
        let gfp = data::mask(step.gfp);
        // The last line is a queue's: with MSI-X the first is the configuration's.
        let Some(irq) = disk.irqs().last().copied() else { return bench.failed("irq_alloc: no interrupt".to_owned()) };
        let handler = Arc::new(AllocInHandler { gfp, done: AtomicBool::new(false) });
        let line = match request_irq(cpu, irq, handler.clone()) {
            Ok(line) => line,
            Err(error) => return bench.failed(error.to_string()),
        };
        let raw = RawReadStep {
            device: step.device.clone(),
            direction: MapDirection::FromDevice,
            unmap: Unmap::AfterCompletion,
            memory: Memory::High,
        };
        if let Err(why) = raw_read(cpu, &bench, &raw) {
            bench.failed(format!("irq_alloc: {why}"));
        }
        // The driver's own handler may have ended the request while another CPU is still to call ours.
        for _ in 0..LOOKS {
            if handler.done.load(Ordering::Relaxed) || sleep(cpu, LOOK_NS).is_err() {
                break;
            }
        }
        line.free(cpu);
    })
}
