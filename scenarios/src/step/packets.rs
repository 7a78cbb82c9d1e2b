//! `packets`: packets through a network device and back, or from its source, each compared to the byte.
//!
//! Whatever is sent is delivered or lost, and what is lost has a cause that the driver or the device has counted: the
//! books must close. It runs on one CPU; the others take interrupts. Neighbours: `device::net::frame`, of which packets
//! are made; `driver::net`. Left out: sending and receiving at the same time.

use std::sync::Arc;

use lowzone_device::net::{Packets, frame};
use lowzone_driver::net::{ETHERNET, FRAGS, Frame, NetDevice, NetStats, Packet, Piece, ReceiveError, TransmitFailure};
use lowzone_guest_mem::dma::{CoherentError, DmaDevice};
use lowzone_guest_mem::gfp::{GFP_KERNEL, Gfp};
use lowzone_guest_mem::kbuf::OutOfBounds;
use lowzone_guest_mem::wait::WaitError;
use lowzone_guest_mem::zone::AllocError;
use lowzone_guest_mem::{Cpu, KBuf};
use thiserror::Error;

use super::data;
use crate::lab::{Bench, Slot, lock};
use crate::result::{LostRow, PacketsRow};
use crate::spec::{PacketsFrom, PacketsStep};
use crate::world::Body;

/// The seed of a source that is given none.
pub(crate) const SOURCE_SEED: u64 = 1;
/// How long one wait for a packet is: what was lost in the device wakes nobody.
const LOOK_NS: u64 = 1_000_000;
/// No packet for so long is a stall; the driver tries to post buffers again each half second.
const PATIENCE: u64 = 5_000_000_000;

/// Why a packet is not even begun.
#[derive(Debug, Error)]
pub(crate) enum NotSent {
    #[error(transparent)]
    Memory(#[from] AllocError),
    #[error(transparent)]
    Low(#[from] CoherentError),
    #[error(transparent)]
    Bytes(#[from] OutOfBounds),
    #[error(transparent)]
    Transmit(#[from] TransmitFailure),
}

/// A packet to be sent, in so many pieces.
pub(crate) fn build(cpu: &Cpu<'_>, bytes: &[u8], pieces: usize, gfp: Gfp) -> Result<Frame, NotSent> {
    let mut packet = Frame::new();
    push(cpu, &mut packet, bytes, pieces, gfp)?;
    Ok(packet)
}

/// Adds bytes to a packet in so many pieces.
fn push(cpu: &Cpu<'_>, packet: &mut Frame, bytes: &[u8], pieces: usize, gfp: Gfp) -> Result<(), NotSent> {
    for part in bytes.chunks(bytes.len().div_ceil(pieces.clamp(1, FRAGS))) {
        let mut buf = KBuf::kmalloc(cpu, part.len(), gfp)?;
        buf.write_at(0, part)?;
        // As many as fit.
        let _ = packet.push(Piece::Buffer(buf));
    }
    Ok(())
}

/// As [`build`], in one to three pieces by turns: of several the first is the Ethernet header, which the device reaches.
fn build_mixed(cpu: &Cpu<'_>, dma: &DmaDevice, bytes: &[u8], number: u64, gfp: Gfp) -> Result<Frame, NotSent> {
    let rest = usize::try_from(number).unwrap_or(0) % FRAGS;
    let (header, payload) = bytes.split_at(ETHERNET.min(bytes.len()));
    if rest == 0 {
        return build(cpu, bytes, 1, gfp);
    }
    let mut packet = Frame::new();
    let mut low = dma.alloc_pages(cpu, header.len(), gfp)?;
    low.write_at(0, header)?;
    let _ = packet.push(Piece::Buffer(low));
    push(cpu, &mut packet, payload, rest, gfp)?;
    Ok(packet)
}

/// The number of a packet that is as it was sent.
pub(crate) fn check(packet: &Packet, seed: u64) -> Option<u64> {
    let mut room = [0; frame::MOST];
    let bytes = room.get_mut(..packet.len())?;
    packet.read_at(0, bytes).ok()?;
    frame::check(seed, bytes).ok()
}

/// Sends packets that nobody waits for.
pub(super) fn send_and_forget(cpu: &Cpu<'_>, net: &NetDevice, count: usize) -> Result<(), NotSent> {
    let mut room = [0; frame::MOST];
    for number in (0..).take(count) {
        let packet = build(cpu, frame::make(0, number, &mut room), 1, GFP_KERNEL)?;
        net.transmit_more(cpu, packet).map_err(|error| error.why)?;
    }
    net.commit(cpu);
    Ok(())
}

/// Both halves' books.
#[derive(Clone, Copy, Default)]
struct Books {
    device: Packets,
    driver: NetStats,
}

/// One step on its way.
struct Run<'a, 'w> {
    cpu: &'a Cpu<'w>,
    bench: &'a Bench,
    slot: &'a Slot,
    net: Arc<NetDevice>,
    step: &'a PacketsStep,
    seed: u64,
    /// What the books said before.
    before: Books,
    row: PacketsRow,
    /// The number that the next packet has at least.
    next: u64,
    /// When the last packet came.
    last: u64,
    over: bool,
}

/// The body of the step.
pub(super) fn body(bench: &Arc<Bench>, step: &PacketsStep, label: String) -> Body {
    let (bench, step) = (bench.clone(), step.clone());
    Box::new(move |cpu| {
        let slot = bench.slot(&step.device).filter(|slot| bench.is_bound(slot.at));
        let found = slot.and_then(|slot| Some((slot, bench.driver.net(slot.at)?)));
        let Some((slot, net)) = found else {
            return bench.failed(format!("{label}: {} has no driver", step.device));
        };
        let _span = cpu.span("packets");
        bench.control.begin(0);
        let row = PacketsRow { label, device: step.device.clone(), offered: step.count, ..PacketsRow::default() };
        let from_source = step.from == PacketsFrom::Source;
        let seed = if from_source { SOURCE_SEED } else { bench.seed };
        let last = cpu.now();
        let before = Books::default();
        let mut run = Run { cpu, bench: &bench, slot, net, step: &step, seed, before, row, next: 0, last, over: false };
        if from_source {
            // The source counts from the probe on, and so do its losses.
            run.collect(step.count);
        } else {
            run.before = run.books();
            run.send_all();
        }
        run.conclude();
    })
}

impl Run<'_, '_> {
    fn books(&self) -> Books {
        let device = self.slot.counters.as_ref().map(|counters| counters.packets()).unwrap_or_default();
        Books { device, driver: self.net.stats(self.cpu) }
    }

    /// What was lost so far; losses before a packet reaches the ring are the row's own.
    fn lost(&self) -> LostRow {
        let (now, before) = (self.books(), self.before);
        let (device, was) = (now.device.dropped, before.device.dropped);
        let (receive, earlier) = (now.driver.receive, before.driver.receive);
        // A buffer that came back empty after a fault is the device's loss, not a second one.
        let fault = device.fault - was.fault;
        LostRow {
            no_buffer: device.no_buffer - was.no_buffer,
            too_small: device.too_small - was.too_small,
            no_packet: device.no_packet - was.no_packet,
            fault,
            short: (receive.short - earlier.short).saturating_sub(fault),
            backlog: receive.backlog - earlier.backlog,
            ..self.row.lost
        }
    }

    fn send_all(&mut self) {
        let mut number = 0;
        while number < self.step.count && !self.over && !self.bench.control.stopped() {
            let end = self.step.count.min(number + u64::from(self.step.burst));
            for number in number..end {
                self.send(number);
            }
            self.net.commit(self.cpu);
            self.collect(end);
            number = end;
            if number * 10 <= self.step.count {
                self.row.streaming_peak_warm = self.slot.dma.counters().peak;
            }
        }
        if self.bench.control.stopped() {
            self.row.offered = number;
        }
    }

    /// Sends one packet; waits where the ring is full.
    fn send(&mut self, number: u64) {
        let mut room = [0; frame::MOST];
        let bytes = frame::make(self.seed, number, &mut room);
        let pieces = usize::try_from(self.step.pieces).unwrap_or(1);
        let gfp = data::mask(self.step.gfp);
        let built = if self.step.mixed {
            build_mixed(self.cpu, &self.slot.dma, bytes, number, gfp)
        } else {
            build(self.cpu, bytes, pieces, gfp)
        };
        let Ok(mut packet) = built else {
            self.row.lost.no_memory += 1;
            return;
        };
        loop {
            let seen = self.net.completed();
            let Err(error) = self.net.transmit_more(self.cpu, packet) else { return };
            match error.why {
                TransmitFailure::Full => {}
                TransmitFailure::NoHeader(_) => return self.row.lost.no_header += 1,
                TransmitFailure::Map(_) => return self.row.lost.no_mapping += 1,
                // It is missing: counted at the end.
                _ => return self.over = true,
            }
            self.net.commit(self.cpu);
            if self.net.wait_completed(self.cpu, seen, PATIENCE).is_err() {
                return self.over = true;
            }
            packet = *error.frame;
        }
    }

    /// Takes packets until so many are delivered or lost.
    fn collect(&mut self, wanted: u64) {
        while !self.over && !self.bench.control.stopped() {
            while let Some(packet) = self.net.try_receive() {
                self.judge(&packet);
            }
            if self.row.delivered >= wanted || self.row.delivered + self.lost().total() >= wanted {
                return;
            }
            match self.net.receive(self.cpu, LOOK_NS) {
                Ok(packet) => self.judge(&packet),
                Err(ReceiveError::Wait(WaitError::TimedOut { .. })) if self.cpu.now() - self.last < PATIENCE => {}
                Err(_) => self.over = true,
            }
        }
    }

    fn judge(&mut self, packet: &Packet) {
        let now = self.cpu.now();
        let number = check(packet, self.seed);
        // A source doesn't stop where the step does.
        if self.step.from == PacketsFrom::Source && number.is_some_and(|number| number >= self.step.count) {
            self.last = now;
            return;
        }
        self.row.longest_wait = self.row.longest_wait.max(now - self.last);
        self.last = now;
        self.row.delivered += 1;
        self.row.bytes += packet.len() as u64;
        self.bench.control.advance(packet.len() as u64);
        // Nothing overtakes and nothing comes twice.
        match number {
            Some(number) if number >= self.next && number < self.step.count => self.next = number + 1,
            _ => self.row.wrong += 1,
        }
    }

    fn conclude(mut self) {
        let lost = self.lost();
        let (now, before) = (self.books(), self.before);
        self.row.lost = lost;
        self.row.missing = self.row.offered.saturating_sub(self.row.delivered + lost.total());
        self.row.streaming_peak = self.slot.dma.counters().peak;
        self.row.polls = now.driver.polls - before.driver.polls;
        self.row.refills = now.driver.refills - before.driver.refills;
        let failed = |stats: &NetStats| stats.receive.no_memory + stats.receive.no_mapping;
        self.row.refill_failed = failed(&now.driver) - failed(&before.driver);
        let (label, missing) = (self.row.label.clone(), self.row.missing);
        let mut result = lock(&self.bench.result);
        if missing > 0 && !self.bench.control.stopped() {
            result.errors.push(format!("{label}: {missing} packets are neither delivered nor accounted for"));
        }
        result.failed_requests += missing + if self.step.lossy { 0 } else { lost.total() };
        result.packets.push(self.row);
    }
}
