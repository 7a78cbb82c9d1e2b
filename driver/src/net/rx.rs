//! The receive queue: buffers that wait for packets, and packets that wait to be taken.
//!
//! Each buffer is a streaming mapping of its own, unmapped when the device gives it back. New ones are posted where the
//! poll is, which may not sleep; what fails there is left to a work that may (`try_fill_recv`, `refill_work`).
//! Neighbours: `netdev` polls it and has the work. Left out: buffers cut from pages, used again, or merged.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(lowzone_mutants)]
use lowzone_guest_mem::dma::misuse;
use lowzone_guest_mem::dma::{DmaDevice, FromDevice, MapError, Mapped};
use lowzone_guest_mem::gfp::Gfp;
use lowzone_guest_mem::lock::{Locked, SpinLock};
use lowzone_guest_mem::wait::WaitQueue;
use lowzone_guest_mem::{Cpu, KBuf};

#[cfg(lowzone_mutants)]
use crate::mutant::{self, Mutant};
use crate::net::{ETHERNET, HEADER, MOST, Packet, ReceiveError};
use crate::virtio::VirtioError;
use crate::virtio::ring::{RingError, RingStats, Segment, Virtqueue};
use crate::virtio::transport::{QueueLayout, Transport};

/// The number of the receive queue.
pub(super) const INDEX: u16 = 0;
/// Packets that wait to be taken at most (`net.core.netdev_max_backlog`).
pub const BACKLOG: usize = 1000;
/// Bytes of a buffer.
const BUFFER: usize = HEADER + MOST;

/// What the receive queue did so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReceiveStats {
    /// Packets that came and were kept.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets lost because too many waited to be taken.
    pub backlog: u64,
    /// Buffers that came back with less than a packet.
    pub short: u64,
    /// Times that no buffer could be allocated.
    pub no_memory: u64,
    /// Times that a buffer could not be mapped.
    pub no_mapping: u64,
    /// The fewest buffers that were posted when a packet was taken off the ring.
    pub least_posted: u16,
    /// The ring's own.
    pub ring: RingStats,
}

/// A buffer that the device gave back, and how much of it it wrote.
type Returned = (Mapped<KBuf, FromDevice>, u32);

struct State {
    vq: Option<Virtqueue>,
    /// By slot: the buffer while the device has it.
    posted: Vec<Option<Mapped<KBuf, FromDevice>>>,
    free: Vec<u16>,
    stats: ReceiveStats,
    /// Buffers that are free, of slots that still name them.
    #[cfg(lowzone_mutants)]
    stale: Vec<KBuf>,
}

/// The receive queue.
pub(super) struct ReceiveQueue {
    dma: DmaDevice,
    size: u16,
    state: SpinLock<State>,
    backlog: Locked<VecDeque<Packet>>,
    arrived: WaitQueue,
    dead: AtomicBool,
}

impl ReceiveQueue {
    /// A queue of `size` entries with no buffer yet, and where the device finds it. Process context.
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
        let posted = std::iter::repeat_with(|| None).take(usize::from(size)).collect();
        let stats = ReceiveStats { least_posted: size, ..ReceiveStats::default() };
        let state = State {
            vq: Some(vq),
            posted,
            free: (0..size).rev().collect(),
            stats,
            #[cfg(lowzone_mutants)]
            stale: Vec::new(),
        };
        let queue = Self {
            dma: dma.clone(),
            size,
            state: SpinLock::new(state),
            backlog: Locked::new(VecDeque::with_capacity(BACKLOG)),
            arrived: WaitQueue::new(),
            dead: AtomicBool::new(false),
        };
        Ok((queue, layout))
    }

    pub(super) fn stats(&self, cpu: &Cpu<'_>) -> ReceiveStats {
        let state = self.state.lock_irqsave(cpu);
        let ring = state.vq.as_ref().map(Virtqueue::stats).unwrap_or(state.stats.ring);
        ReceiveStats { ring, ..state.stats }
    }

    /// Takes nothing more and wakes whoever waits. Any context.
    pub(super) fn kill(&self, cpu: &Cpu<'_>) {
        self.dead.store(true, Ordering::Release);
        self.arrived.wake_up_all(cpu);
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

    /// Takes up to `budget` packets off the ring; how many. Any context.
    ///
    /// # Errors
    /// [`RingError`]: the queue is broken.
    pub(super) fn poll(&self, cpu: &Cpu<'_>, budget: usize) -> Result<usize, RingError> {
        for done in 0..budget {
            let Some((mapped, wrote)) = self.pop(cpu)? else {
                self.wake(cpu, done);
                return Ok(done);
            };
            #[cfg(lowzone_mutants)]
            let wrote = if mutant::is(Mutant::MissingSyncForCpu) && buffers(cpu, &mapped) == 0 { 0 } else { wrote };
            // Only now do the bytes belong to the CPU.
            self.keep(cpu, mapped.unmap(cpu), usize::try_from(wrote).unwrap_or(0));
        }
        self.wake(cpu, budget);
        Ok(budget)
    }

    fn wake(&self, cpu: &Cpu<'_>, done: usize) {
        if done > 0 {
            self.arrived.wake_up_all(cpu);
        }
    }

    fn pop(&self, cpu: &Cpu<'_>) -> Result<Option<Returned>, RingError> {
        let mut state = self.state.lock_irqsave(cpu);
        let state = &mut *state;
        let Some(vq) = &mut state.vq else { return Ok(None) };
        let in_flight = vq.in_flight();
        let Some(used) = vq.pop(cpu)? else { return Ok(None) };
        state.stats.least_posted = state.stats.least_posted.min(in_flight);
        state.free.push(used.token);
        // A chain in flight has its buffer.
        Ok(state.posted[usize::from(used.token)].take().map(|mapped| (mapped, used.len)))
    }

    fn keep(&self, cpu: &Cpu<'_>, buf: KBuf, wrote: usize) {
        let len = wrote.saturating_sub(HEADER);
        let short = len < ETHERNET;
        let kept = !short && {
            let mut backlog = self.backlog.lock();
            let room = backlog.len() < BACKLOG;
            if room {
                backlog.push_back(Packet { buf, len });
            }
            room
        };
        let stats = &mut self.state.lock_irqsave(cpu).stats;
        match (kept, short) {
            (true, _) => (stats.packets, stats.bytes) = (stats.packets + 1, stats.bytes + len as u64),
            (false, true) => stats.short += 1,
            (false, false) => stats.backlog += 1,
        }
    }

    /// The next packet that has come, if one has. Any context.
    pub(super) fn take(&self) -> Option<Packet> {
        self.backlog.lock().pop_front()
    }

    /// Waits for a packet, at most `timeout` nanoseconds. Process context.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub(super) fn wait(&self, cpu: &Cpu<'_>, timeout: u64) -> Result<Packet, ReceiveError> {
        let mut packet = None;
        let waited = self.arrived.wait_event_timeout(cpu, timeout, || {
            packet = self.take();
            packet.is_some() || self.dead.load(Ordering::Acquire)
        });
        match (packet, waited) {
            (Some(packet), _) => Ok(packet),
            (None, Err(error)) => Err(error.into()),
            (None, Ok(())) => Err(ReceiveError::Dead),
        }
    }

    /// Whether more than half of what a poll takes is missing (`virtnet_receive`). Any context.
    pub(super) fn is_low(&self, cpu: &Cpu<'_>, budget: usize) -> bool {
        self.state.lock_irqsave(cpu).free.len() > budget.min(usize::from(self.size)) / 2
    }

    /// Posts buffers until the ring is full; whether it is (`try_fill_recv`). With a mask that may sleep: process context.
    pub(super) fn refill(&self, cpu: &Cpu<'_>, transport: &dyn Transport, gfp: Gfp) -> bool {
        let _span = cpu.span("try_fill_recv");
        let mut posted = 0;
        let full = loop {
            if self.dead.load(Ordering::Acquire) {
                break true;
            }
            let Some(slot) = self.state.lock_irqsave(cpu).free.pop() else { break true };
            if !self.post(cpu, slot, gfp) {
                self.state.lock_irqsave(cpu).free.push(slot);
                break false;
            }
            posted += 1;
        };
        let kick = posted > 0 && self.state.lock_irqsave(cpu).vq.as_mut().is_some_and(|vq| vq.kick_prepare(cpu));
        if kick {
            transport.notify(cpu, INDEX);
        }
        full
    }

    /// Posts one buffer under a slot's number; `false`, and nothing is left of it, if it can't be had.
    fn post(&self, cpu: &Cpu<'_>, slot: u16, gfp: Gfp) -> bool {
        #[cfg(lowzone_mutants)]
        let held = mutant::is(Mutant::GfpKernelUnderLock).then(|| self.state.lock_irqsave(cpu));
        let allocated = KBuf::kmalloc(cpu, BUFFER, gfp);
        #[cfg(lowzone_mutants)]
        drop(held);
        let Ok(buf) = allocated else {
            self.state.lock_irqsave(cpu).stats.no_memory += 1;
            return false;
        };
        let mapped = match self.dma.map_single::<FromDevice>(cpu, buf) {
            Ok(mapped) => mapped,
            Err(MapError { buf, .. }) => {
                self.state.lock_irqsave(cpu).stats.no_mapping += 1;
                #[cfg(lowzone_mutants)]
                let Some(buf) = self.mislay(cpu, buf) else { return false };
                drop(buf);
                return false;
            }
        };
        let segment = Segment { addr: mapped.dma_addr(), len: u32::try_from(BUFFER).unwrap_or(0), write: true };
        let mut state = self.state.lock_irqsave(cpu);
        let state = &mut *state;
        let added = state.vq.as_mut().is_some_and(|vq| vq.add(cpu, &[segment], slot).is_ok());
        if added {
            state.posted[usize::from(slot)] = Some(mapped);
        }
        added
    }

    /// What the bugs [`MapErrorLeak`](Mutant::MapErrorLeak) and [`DoubleFreeOnMapError`](Mutant::DoubleFreeOnMapError) do
    /// with a buffer that can't be mapped.
    #[cfg(lowzone_mutants)]
    fn mislay(&self, cpu: &Cpu<'_>, buf: KBuf) -> Option<KBuf> {
        if mutant::is(Mutant::MapErrorLeak) {
            std::mem::forget(buf);
        } else if mutant::is(Mutant::DoubleFreeOnMapError) {
            misuse::free_buffer(cpu, &buf);
            self.state.lock_irqsave(cpu).stale.push(buf);
        } else {
            return Some(buf);
        }
        None
    }

    /// After the reset: unmaps and frees every buffer, then the ring, then what nobody took.
    pub(super) fn take_down(&self, cpu: &Cpu<'_>) {
        let (vq, posted) = {
            let mut state = self.state.lock_irqsave(cpu);
            state.stats.ring = state.vq.as_ref().map(Virtqueue::stats).unwrap_or_default();
            (state.vq.take(), state.posted.iter_mut().filter_map(Option::take).collect::<Vec<_>>())
        };
        posted.into_iter().for_each(|mapped| drop(mapped.unmap(cpu)));
        drop(vq);
        #[cfg(lowzone_mutants)]
        self.state.lock_irqsave(cpu).stale.clear();
        let waiting = std::mem::take(&mut *self.backlog.lock());
        drop(waiting);
    }
}

/// The bug [`MissingSyncForCpu`](Mutant::MissingSyncForCpu): in how many buffers a packet came, read from one that is
/// still the device's.
#[cfg(lowzone_mutants)]
fn buffers(cpu: &Cpu<'_>, mapped: &Mapped<KBuf, FromDevice>) -> u16 {
    let mut num_buffers = [0; 2];
    let _ = misuse::read_mapped(cpu, mapped, HEADER - 2, &mut num_buffers);
    u16::from_le_bytes(num_buffers)
}
