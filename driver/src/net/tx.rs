//! The transmit queue: a header and the pieces of a packet, each mapped while the device has it.
//!
//! What can't be mapped is undone in the reverse order and comes back. What the device is done with is unmapped and freed
//! by the poll, or before the next packet (`free_old_xmit_skbs`). Neighbours: `netdev` polls it; `frame`.
//! Left out: stopping the queue before it is full.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[cfg(lowzone_mutants)]
use lowzone_guest_mem::dma::misuse;
use lowzone_guest_mem::dma::{DmaDevice, MapError, Mapped, RawMapping, ToDevice};
use lowzone_guest_mem::gfp::GFP_ATOMIC;
use lowzone_guest_mem::kmalloc::kzalloc;
use lowzone_guest_mem::lock::SpinLock;
use lowzone_guest_mem::wait::{WaitError, WaitQueue};
#[cfg(lowzone_mutants)]
use lowzone_guest_mem::zone::AllocError;
use lowzone_guest_mem::{Cpu, DmaAddr, KBuf};

#[cfg(lowzone_mutants)]
use crate::mutant::{self, Mutant};
use crate::net::{FRAGS, Frame, HEADER, MOST, Piece, TransmitError, TransmitFailure};
use crate::virtio::VirtioError;
use crate::virtio::ring::{RingError, RingStats, Segment, Virtqueue};
use crate::virtio::transport::{QueueLayout, Transport};

/// The number of the transmit queue.
pub(super) const INDEX: u16 = 1;

/// Bytes that a transfer of hardware like that of [`UnmapUnpaddedLength`](Mutant::UnmapUnpaddedLength) is a multiple of.
#[cfg(lowzone_mutants)]
const WORD: usize = 4;

/// What the transmit queue did so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TransmitStats {
    /// Packets given to the device.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets that the device is done with.
    pub completed: u64,
    /// Packets lost for want of a header.
    pub no_header: u64,
    /// Packets lost because a piece could not be mapped.
    pub no_mapping: u64,
    /// The most packets in flight at once.
    pub peak: u16,
    /// The ring's own.
    pub ring: RingStats,
}

/// A piece while the device has it.
enum Sent {
    Buffer(Mapped<KBuf, ToDevice>),
    Raw(RawMapping),
}

/// A packet while the device has it.
struct InFlight {
    header: Mapped<KBuf, ToDevice>,
    pieces: [Option<Sent>; FRAGS],
}

struct State {
    vq: Option<Virtqueue>,
    slots: Vec<Option<InFlight>>,
    free: Vec<u16>,
    stats: TransmitStats,
}

/// The transmit queue.
pub(super) struct TransmitQueue {
    dma: DmaDevice,
    state: SpinLock<State>,
    /// Packets that the device is done with; read without the lock by whoever waits.
    completed: AtomicU64,
    room: WaitQueue,
    dead: AtomicBool,
}

impl TransmitQueue {
    /// A queue of `size` entries, and where the device finds it. Process context.
    ///
    /// # Errors
    /// No coherent memory.
    pub(super) fn new(
        cpu: &Cpu<'_>,
        dma: &DmaDevice,
        size: u16,
        features: u64,
    ) -> Result<(Self, QueueLayout), VirtioError> {
        let vq = Virtqueue::new(cpu, dma, INDEX, size, features)?;
        let layout = vq.layout();
        let slots = std::iter::repeat_with(|| None).take(usize::from(size)).collect();
        let (free, stats) = ((0..size).rev().collect(), TransmitStats::default());
        let queue = Self {
            dma: dma.clone(),
            state: SpinLock::new(State { vq: Some(vq), slots, free, stats }),
            completed: AtomicU64::new(0),
            room: WaitQueue::new(),
            dead: AtomicBool::new(false),
        };
        Ok((queue, layout))
    }

    pub(super) fn stats(&self, cpu: &Cpu<'_>) -> TransmitStats {
        let state = self.state.lock_irqsave(cpu);
        let ring = state.vq.as_ref().map(Virtqueue::stats).unwrap_or(state.stats.ring);
        TransmitStats { ring, ..state.stats }
    }

    /// Takes nothing more and wakes whoever waits. Any context.
    pub(super) fn kill(&self, cpu: &Cpu<'_>) {
        self.dead.store(true, Ordering::Release);
        self.room.wake_up_all(cpu);
    }

    /// Asks for no interrupts; a hint only (`virtqueue_disable_cb`). Any context.
    pub(super) fn disable_interrupts(&self, cpu: &Cpu<'_>) {
        if let Some(vq) = &mut self.state.lock_irqsave(cpu).vq {
            vq.disable_interrupts(cpu);
        }
    }

    /// Asks for an interrupt; `false` if there is something already (`virtqueue_enable_cb`). Any context.
    pub(super) fn enable_interrupts(&self, cpu: &Cpu<'_>) -> bool {
        self.state.lock_irqsave(cpu).vq.as_mut().is_none_or(|vq| vq.enable_interrupts(cpu))
    }

    /// Maps a packet and puts it on the ring; the device is told by [`TransmitQueue::commit`]. Any context.
    ///
    /// # Errors
    /// [`TransmitError`] with the packet, of which nothing is mapped.
    pub(super) fn send(&self, cpu: &Cpu<'_>, frame: Frame) -> Result<(), TransmitError> {
        let _span = cpu.span("start_xmit");
        let fail = |frame, why| Err(TransmitError { frame: Box::new(frame), why });
        if self.dead.load(Ordering::Acquire) {
            return fail(frame, TransmitFailure::Dead);
        }
        let len = frame.len();
        if len == 0 || len > MOST as u64 {
            return fail(frame, TransmitFailure::Length(len));
        }
        let header = kzalloc(cpu, HEADER, GFP_ATOMIC);
        #[cfg(lowzone_mutants)]
        let header = if mutant::is(Mutant::UninitSkipUnmap) { header_with_flag(cpu) } else { header };
        let header = match header {
            Ok(header) => header,
            Err(error) => return self.lost(cpu, Box::new(frame), error.into()),
        };
        let header = match self.dma.map_single::<ToDevice>(cpu, header) {
            Ok(header) => header,
            Err(MapError { why, .. }) => return self.lost(cpu, Box::new(frame), why.into()),
        };
        let pieces = match self.map(cpu, frame) {
            Ok(pieces) => pieces,
            Err(TransmitError { frame, why }) => {
                drop(header.unmap(cpu));
                #[cfg(lowzone_mutants)]
                let frame = if mutant::is(Mutant::TouchAfterXmitError) { touch_freed(cpu, frame) } else { frame };
                return self.lost(cpu, frame, why);
            }
        };
        self.add(cpu, InFlight { header, pieces }, len).or_else(|(packet, error)| {
            drop(packet.header.unmap(cpu));
            let full = matches!(error, RingError::Full { .. });
            fail(unmap(cpu, packet.pieces), if full { TransmitFailure::Full } else { error.into() })
        })
    }

    fn lost(&self, cpu: &Cpu<'_>, frame: Box<Frame>, why: TransmitFailure) -> Result<(), TransmitError> {
        let stats = &mut self.state.lock_irqsave(cpu).stats;
        match why {
            TransmitFailure::NoHeader(_) => stats.no_header += 1,
            _ => stats.no_mapping += 1,
        }
        Err(TransmitError { frame, why })
    }

    fn map_piece(&self, cpu: &Cpu<'_>, buf: KBuf) -> Result<Mapped<KBuf, ToDevice>, MapError<KBuf>> {
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::UnmapUnpaddedLength) {
            let padded = buf.len().next_multiple_of(WORD) as u64;
            return misuse::map_padded(cpu, &self.dma, buf, padded);
        }
        self.dma.map_single(cpu, buf)
    }

    /// Maps every piece; if one fails, those before it are unmapped again, the last first.
    fn map(&self, cpu: &Cpu<'_>, mut frame: Frame) -> Result<[Option<Sent>; FRAGS], TransmitError> {
        let mut sent = [const { None }; FRAGS];
        for at in 0..FRAGS {
            sent[at] = match frame.pieces[at].take() {
                None => break,
                Some(Piece::Raw(raw)) => Some(Sent::Raw(raw)),
                Some(Piece::Buffer(buf)) => match self.map_piece(cpu, buf) {
                    Ok(mapped) => Some(Sent::Buffer(mapped)),
                    Err(MapError { buf, why }) => {
                        frame.pieces[at] = Some(Piece::Buffer(buf));
                        for earlier in (0..at).rev() {
                            frame.pieces[earlier] = sent[earlier].take().map(|piece| piece.unmap(cpu));
                        }
                        return Err(TransmitError { frame: Box::new(frame), why: why.into() });
                    }
                },
            };
        }
        Ok(sent)
    }

    #[expect(clippy::result_large_err, reason = "the packet comes back; a box would allocate on the request path")]
    fn add(&self, cpu: &Cpu<'_>, packet: InFlight, len: u64) -> Result<(), (InFlight, RingError)> {
        let none = Segment { addr: DmaAddr::new(0), len: 0, write: false };
        let mut chain = [none; FRAGS + 1];
        chain[0] = Segment { addr: packet.header.dma_addr(), len: u32::try_from(HEADER).unwrap_or(0), write: false };
        let mut count = 1;
        for piece in packet.pieces.iter().flatten() {
            chain[count] = piece.segment();
            count += 1;
        }
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::DescriptorOffByOne) {
            describe_inline(cpu, &chain[..count]);
        }
        let mut state = self.state.lock_irqsave(cpu);
        let state = &mut *state;
        let (Some(vq), Some(slot)) = (&mut state.vq, state.free.pop()) else {
            return Err((packet, RingError::Full { wanted: count }));
        };
        if let Err(error) = vq.add(cpu, &chain[..count], slot) {
            state.free.push(slot);
            return Err((packet, error));
        }
        state.stats.peak = state.stats.peak.max(vq.in_flight());
        state.stats.packets += 1;
        state.stats.bytes += len;
        state.slots[usize::from(slot)] = Some(packet);
        Ok(())
    }

    /// Rings the doorbell for what was sent since the last call, if the device wants to know. Any context.
    pub(super) fn commit(&self, cpu: &Cpu<'_>, transport: &dyn Transport) {
        let kick = self.state.lock_irqsave(cpu).vq.as_mut().is_some_and(|vq| vq.kick_prepare(cpu));
        if kick {
            transport.notify(cpu, INDEX);
        }
    }

    /// Unmaps and frees what the device is done with (`free_old_xmit_skbs`). Any context.
    ///
    /// # Errors
    /// [`RingError`]: the queue is broken.
    pub(super) fn reap(&self, cpu: &Cpu<'_>) -> Result<(), RingError> {
        let mut any = false;
        while let Some(packet) = self.pop(cpu)? {
            any = true;
            packet.free(cpu);
            self.completed.fetch_add(1, Ordering::Release);
        }
        if any {
            self.room.wake_up_all(cpu);
        }
        Ok(())
    }

    fn pop(&self, cpu: &Cpu<'_>) -> Result<Option<InFlight>, RingError> {
        let mut state = self.state.lock_irqsave(cpu);
        let state = &mut *state;
        let Some(vq) = &mut state.vq else { return Ok(None) };
        let Some(used) = vq.pop(cpu)? else { return Ok(None) };
        state.free.push(used.token);
        state.stats.completed += 1;
        Ok(state.slots[usize::from(used.token)].take())
    }

    /// Packets that the device is done with. Any context.
    pub(super) fn completed(&self) -> u64 {
        self.completed.load(Ordering::Acquire)
    }

    /// Waits until more packets than `seen` are done, at most `timeout` nanoseconds. Process context.
    ///
    /// # Errors
    /// [`WaitError`].
    pub(super) fn wait(&self, cpu: &Cpu<'_>, seen: u64, timeout: u64) -> Result<(), WaitError> {
        let over = || self.completed() > seen || self.dead.load(Ordering::Acquire);
        self.room.wait_event_timeout(cpu, timeout, over)
    }

    /// After the reset: unmaps and frees what was still in flight, then the ring.
    pub(super) fn take_down(&self, cpu: &Cpu<'_>) {
        let (vq, lost) = {
            let mut state = self.state.lock_irqsave(cpu);
            state.stats.ring = state.vq.as_ref().map(Virtqueue::stats).unwrap_or_default();
            (state.vq.take(), state.slots.iter_mut().filter_map(Option::take).collect::<Vec<_>>())
        };
        lost.into_iter().for_each(|packet| packet.free(cpu));
        drop(vq);
    }
}

impl InFlight {
    /// Unmaps it and frees it.
    fn free(self, cpu: &Cpu<'_>) {
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::NeverUnmapped) {
            drop(misuse::never_unmap(cpu, self.header));
            return drop(unmap(cpu, self.pieces));
        }
        #[cfg(lowzone_mutants)]
        let sampled =
            self.pieces[0].as_ref().is_none_or(|first| matches!(first, Sent::Buffer(mapped) if mapped.bounced()));
        let header = self.header.unmap(cpu);
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::UninitSkipUnmap) && skips(&header) || mutant::is(Mutant::UnmapSampledOnce) && !sampled {
            return drop(self.pieces.map(|piece| piece.map(|piece| piece.never_unmap(cpu))));
        }
        drop(header);
        drop(unmap(cpu, self.pieces));
    }
}

impl Sent {
    fn segment(&self) -> Segment {
        let (addr, len) = match self {
            Self::Buffer(mapped) => (mapped.dma_addr(), mapped.len()),
            Self::Raw(raw) => (raw.dma, raw.len),
        };
        Segment { addr, len: u32::try_from(len).unwrap_or(u32::MAX), write: false }
    }

    /// The bugs [`UninitSkipUnmap`](Mutant::UninitSkipUnmap) and [`UnmapSampledOnce`](Mutant::UnmapSampledOnce), which does
    /// no harm but to what bounced.
    #[cfg(lowzone_mutants)]
    fn never_unmap(self, cpu: &Cpu<'_>) -> Piece {
        match self {
            Self::Buffer(mapped) if mapped.bounced() || mutant::is(Mutant::UninitSkipUnmap) => {
                Piece::Buffer(misuse::never_unmap(cpu, mapped))
            }
            other => other.unmap(cpu),
        }
    }

    fn unmap(self, cpu: &Cpu<'_>) -> Piece {
        match self {
            Self::Buffer(mapped) => Piece::Buffer(mapped.unmap(cpu)),
            Self::Raw(raw) => Piece::Raw(raw),
        }
    }
}

fn unmap(cpu: &Cpu<'_>, pieces: [Option<Sent>; FRAGS]) -> Frame {
    Frame { pieces: pieces.map(|piece| piece.map(|piece| piece.unmap(cpu))) }
}

/// The bug [`UninitSkipUnmap`](Mutant::UninitSkipUnmap): a header with a flag behind it that nobody writes.
#[cfg(lowzone_mutants)]
fn header_with_flag(cpu: &Cpu<'_>) -> Result<KBuf, AllocError> {
    let mut header = KBuf::kmalloc(cpu, HEADER + 1, GFP_ATOMIC)?;
    let _ = header.write_at(0, &[0; HEADER]);
    Ok(header)
}

#[cfg(lowzone_mutants)]
fn skips(header: &KBuf) -> bool {
    let mut flag = [0];
    let _ = header.read_at(HEADER, &mut flag);
    flag != [0]
}

/// The bug [`TouchAfterXmitError`](Mutant::TouchAfterXmitError): the packet goes, then it is looked at.
#[cfg(lowzone_mutants)]
fn touch_freed(cpu: &Cpu<'_>, frame: Box<Frame>) -> Box<Frame> {
    let first = match &frame.pieces[0] {
        Some(Piece::Buffer(buf)) => Some(buf.phys()),
        _ => None,
    };
    drop(frame);
    first.into_iter().for_each(|at| misuse::load(cpu, at, &mut [0]));
    Box::default()
}

/// The bug [`DescriptorOffByOne`](Mutant::DescriptorOffByOne): a request of 16 bytes and an array as long as a packet may
/// have pieces, into which the header goes too.
#[cfg(lowzone_mutants)]
fn describe_inline(cpu: &Cpu<'_>, chain: &[Segment]) {
    let Ok(request) = KBuf::kmalloc(cpu, 16 * (1 + FRAGS), GFP_ATOMIC) else { return };
    for (at, segment) in (16..).step_by(16).zip(chain) {
        misuse::scribble(cpu, request.phys().wrapping_add(at), &segment.addr.get().to_le_bytes());
        misuse::scribble(cpu, request.phys().wrapping_add(at + 8), &u64::from(segment.len).to_le_bytes());
    }
}
