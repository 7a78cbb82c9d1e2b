//! The worker of a queue pair: a state machine that does one phase a call.
//!
//! The phases: pop one chain of the transmit ring; read its bytes; give it back; pop one buffer of the receive ring;
//! write the packet into it; give it back; interrupt, for either ring. A packet that finds no buffer is lost and counted.
//! Between phases it holds descriptors and bytes of its own, never slices. One worker has both rings, since a packet
//! goes from one to the other. Neighbours: [`super::frame`], [`crate::virtio::ring`].

use std::sync::Arc;

use vm_memory::GuestMemory;

use super::config::Source;
use super::counters::Cause;
use super::frame;
use crate::counters::{Counters, Tally};
use crate::pci::BusMaster;
use crate::tap::Tap;
use crate::virtio::{Chain, QueueHost, QueueShared, Ring, RingError};
use crate::worker::{Next, Worker};

/// Bytes of `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;
/// The header of every packet that goes up: nothing offloaded, in one buffer.
const PLAIN: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// Bytes of an Ethernet header; what is shorter is no packet.
const ETHERNET: usize = 14;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// One ring of the pair.
struct Side {
    queue: u16,
    shared: Arc<QueueShared>,
    ring: Option<Ring>,
    /// Popped, and not yet read or written.
    held: Option<Chain>,
    /// Done with, so many bytes written; waiting to be given back.
    landed: Option<(Chain, u32)>,
    /// Something was given back and the driver not yet asked whether it wants to know.
    owing: bool,
}

impl Side {
    fn new(queue: u16, shared: Arc<QueueShared>) -> Self {
        Self { queue, shared, ring: None, held: None, landed: None, owing: false }
    }

    /// Whether the driver has set the ring up; takes it over if so.
    fn active(&mut self) -> Result<bool, RingError> {
        if self.ring.is_none() {
            self.ring = self.shared.config().map(Ring::new).transpose()?;
        }
        Ok(self.ring.is_some())
    }

    fn forget(&mut self) {
        (self.ring, self.held, self.landed, self.owing) = (None, None, None, false);
    }
}

/// The worker of a network device.
pub struct NetWorker<M: GuestMemory, T: Tap = ()> {
    source: Option<Source>,
    host: Arc<dyn QueueHost>,
    counters: Arc<Counters>,
    receive: Side,
    transmit: Side,
    mem: BusMaster<M, T>,
    /// The transmit ring was not found empty since the doorbell last rang.
    draining: bool,
    /// A packet on its way up, behind its header.
    packet: Option<Vec<u8>>,
    /// Storage of the packet before.
    spare: Vec<u8>,
    /// The number of the source's next packet, and when it is due; `None` until the driver is ready.
    next: Option<(u64, u64)>,
    /// A ring is broken: nothing until a reset.
    stopped: bool,
    tally: Tally,
}

impl<M: GuestMemory, T: Tap> std::fmt::Debug for NetWorker<M, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetWorker").field("next", &self.next).field("stopped", &self.stopped).finish_non_exhaustive()
    }
}

impl<M: GuestMemory, T: Tap> NetWorker<M, T> {
    pub(super) fn new(
        source: Option<Source>,
        host: Arc<dyn QueueHost>,
        counters: Arc<Counters>,
        [receive, transmit]: [Arc<QueueShared>; 2],
        mem: BusMaster<M, T>,
    ) -> Self {
        let (receive, transmit) = (Side::new(RECEIVE, receive), Side::new(TRANSMIT, transmit));
        let (packet, spare, next, tally) = (None, Vec::new(), None, Tally::default());
        let (draining, stopped) = (false, false);
        Self { source, host, counters, receive, transmit, mem, draining, packet, spare, next, stopped, tally }
    }

    fn unfinished(&self) -> bool {
        let busy = |side: &Side| side.landed.is_some() || side.owing;
        !self.stopped
            && (self.draining
                || self.packet.is_some()
                || self.transmit.held.is_some()
                || busy(&self.transmit)
                || busy(&self.receive))
    }

    fn drop_all(&mut self) {
        self.receive.forget();
        self.transmit.forget();
        (self.draining, self.packet, self.next, self.stopped) = (false, None, None, false);
        self.mem.take_fault();
    }

    fn acknowledge_reset(&mut self) {
        self.drop_all();
        // Before the driver sees the reset done: whoever reads them next reads of the new life.
        self.counters.packets.restart();
        for side in [&self.receive, &self.transmit] {
            if side.shared.resetting() {
                side.shared.finish_reset();
                self.host.reset_done(side.queue);
            }
        }
    }

    /// One phase; whether there was one to do.
    fn phase(&mut self, now: u64) -> Result<bool, RingError> {
        for side in [&mut self.receive, &mut self.transmit] {
            let Some(ring) = &mut side.ring else { continue };
            if let Some((chain, len)) = side.landed.take() {
                ring.publish(&self.mem, chain.head, len)?;
                ring.recycle(chain);
                side.owing = true;
                self.tally.requests += 1;
                return Ok(true);
            }
            if std::mem::take(&mut side.owing) {
                if ring.needs_interrupt(&self.mem)? {
                    self.host.used_buffers(side.queue);
                }
                return Ok(true);
            }
        }
        if let Some(packet) = self.packet.take() {
            self.bring(packet)?;
        } else if let Some(chain) = self.transmit.held.take() {
            self.read(chain);
        } else if self.draining {
            self.pop()?;
        } else {
            return Ok(self.make(now));
        }
        Ok(true)
    }

    /// Takes the next chain that the driver sends.
    fn pop(&mut self) -> Result<(), RingError> {
        let Some(ring) = &mut self.transmit.ring else {
            self.draining = false;
            return Ok(());
        };
        self.transmit.held = ring.pop(&self.mem)?;
        if self.transmit.held.is_none() {
            self.draining = ring.arm(&self.mem)?;
        }
        Ok(())
    }

    /// Reads what the driver sends; without a source it goes up again.
    fn read(&mut self, chain: Chain) {
        let mut bytes = std::mem::take(&mut self.spare);
        bytes.clear();
        let readable = chain.descs.iter().filter(|segment| !segment.write);
        let len = readable.clone().fold(0, |sum: usize, segment| sum + usize::try_from(segment.len).unwrap_or(0));
        let counters = &self.counters.packets;
        Counters::add(&counters.sent, 1);
        let fits = (HEADER + ETHERNET..=HEADER + frame::MOST).contains(&len);
        let mut read = fits;
        for segment in readable.filter(|_| fits) {
            let from = bytes.len();
            bytes.resize(from + usize::try_from(segment.len).unwrap_or(0), 0);
            read = self.mem.fetch(segment.addr, &mut bytes[from..]).is_ok();
            if !read {
                break;
            }
            self.mem.moved(segment.addr, bytes.len() - from, false);
        }
        if self.note_fault() || !read {
            counters.drop(if fits { Cause::Fault } else { Cause::NoPacket });
            self.tally.failed += 1;
            self.spare = bytes;
        } else {
            self.tally.bytes_written += bytes.len() as u64;
            bytes[..HEADER].copy_from_slice(&PLAIN);
            if self.source.is_some() {
                counters.drop(Cause::NoWire);
                self.spare = bytes;
            } else {
                self.packet = Some(bytes);
            }
        }
        self.transmit.landed = Some((chain, 0));
    }

    /// Makes the source's next packet if it is due.
    fn make(&mut self, now: u64) -> bool {
        let (Some(source), Some((number, due))) = (self.source, self.next) else { return false };
        if number == source.packets || due > now {
            return false;
        }
        let mut room = [0; frame::MOST];
        let mut bytes = std::mem::take(&mut self.spare);
        bytes.clear();
        bytes.extend_from_slice(&PLAIN);
        bytes.extend_from_slice(frame::make(source.seed, number, &mut room));
        Counters::add(&self.counters.packets.made, 1);
        self.packet = Some(bytes);
        self.next = Some((number + 1, now.saturating_add(source.interval)));
        true
    }

    /// Brings a packet to the driver: a buffer first, then its bytes.
    fn bring(&mut self, packet: Vec<u8>) -> Result<(), RingError> {
        let counters = &self.counters.packets;
        let Some(chain) = self.receive.held.take() else {
            let popped = if self.receive.active()? { self.receive.ring.as_mut() } else { None };
            self.receive.held = popped.map(|ring| ring.pop(&self.mem)).transpose()?.flatten();
            if self.receive.held.is_some() {
                self.packet = Some(packet);
            } else {
                counters.drop(Cause::NoBuffer);
                self.spare = packet;
            }
            return Ok(());
        };
        let writable = chain.descs.iter().filter(|segment| segment.write);
        let room = writable.clone().fold(0, |sum: u64, segment| sum + u64::from(segment.len));
        let len = packet.len();
        if room < len as u64 {
            counters.drop(Cause::TooSmall);
            self.receive.held = Some(chain);
            self.spare = packet;
            return Ok(());
        }
        let (mut rest, mut written) = (&packet[..], true);
        for segment in writable {
            let (part, behind) = rest.split_at(rest.len().min(usize::try_from(segment.len).unwrap_or(usize::MAX)));
            if part.is_empty() || !written {
                break;
            }
            written = self.mem.put(segment.addr, part).is_ok();
            if written {
                self.mem.moved(segment.addr, part.len(), true);
            }
            rest = behind;
        }
        if self.note_fault() || !written {
            counters.drop(Cause::Fault);
            self.tally.failed += 1;
            self.receive.landed = Some((chain, 0));
        } else {
            Counters::add(&counters.delivered, 1);
            self.tally.bytes_read += len as u64;
            self.receive.landed = Some((chain, u32::try_from(len).unwrap_or(0)));
        }
        self.spare = packet;
        Ok(())
    }

    /// Takes a fault out of the latch and counts it.
    fn note_fault(&self) -> bool {
        let fault = self.mem.take_fault();
        if let Some(fault) = fault {
            self.counters.count_fault(fault);
        }
        fault.is_some()
    }

    fn fail(&mut self, error: RingError) {
        if self.mem.is_gone() {
            // Pulled out in the middle of a phase: nobody to tell, and no fault of the ring's.
            self.drop_all();
            return;
        }
        self.counters.keep_ring_error(error);
        self.drop_all();
        self.stopped = true;
        self.host.needs_reset();
    }

    /// Takes over rings that the driver has set up; the source begins with the receive ring.
    fn look(&mut self, now: u64) -> Result<(), RingError> {
        if self.receive.ring.is_none() && self.receive.active()? {
            self.next = Some((0, now));
        }
        self.transmit.active()?;
        Ok(())
    }

    /// What to wait for when nothing can be done now.
    fn rest(&self) -> Next {
        match (self.source, self.next) {
            (Some(source), Some((number, due))) if number < source.packets => Next::At(due),
            _ => Next::Idle,
        }
    }
}

impl<M: GuestMemory + Send, T: Tap> Worker for NetWorker<M, T> {
    fn ready(&self) -> bool {
        let sides = [&self.receive, &self.transmit];
        sides.iter().any(|side| side.shared.resetting())
            || (!self.stopped && sides.iter().any(|side| side.shared.attention()))
            || self.unfinished()
    }

    fn service(&mut self, now: u64) -> Next {
        if self.receive.shared.resetting() || self.transmit.shared.resetting() {
            self.acknowledge_reset();
            return Next::Idle;
        }
        if self.stopped {
            return Next::Idle;
        }
        // Taken before the rings are looked at: a doorbell that rings later is seen later. The receive ring's says
        // only that there are buffers, which is looked at with each packet.
        self.receive.shared.take_kick();
        self.draining |= self.transmit.shared.take_kick();
        let done = self.look(now).and_then(|()| self.phase(now));
        self.counters.settle(&mut self.tally);
        match done {
            Err(error) => {
                self.fail(error);
                Next::Idle
            }
            Ok(true) if self.unfinished() => Next::Again,
            Ok(_) => self.rest(),
        }
    }
}
