//! One queue of the block driver: slots, headers, status bytes, completion.
//!
//! A request takes a slot with a 16-byte header and a status byte in coherent memory (on different cache lines:
//! the device reads the one and writes the other), maps its data, and goes on the ring under the queue's lock.
//! The interrupt handler takes it off, checks it, unmaps it and marks the slot done; whoever holds the [`Pending`]
//! collects it. A pending that is dropped gives its slot up; the data is freed when the device is done with it.
//! A polled queue has no interrupt: whoever waits takes off what is done, its own and others' (`virtblk_poll`).
//!
//! Submitting and completing: any context. Waiting: process context. Neighbours: `virtio::ring`, `disk`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

#[cfg(lowzone_mutants)]
use lowzone_guest_mem::dma::misuse;
use lowzone_guest_mem::dma::{Coherent, DmaDevice, FromDevice, MapError, ToDevice};
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::lock::{Locked, SpinLock};
use lowzone_guest_mem::wait::{WaitError, WaitQueue};
use lowzone_guest_mem::{Cpu, DmaAddr, KBuf};

use crate::blk::request::{BlkError, Completed, Data, Op, Payload, Request, SubmitError, SubmitFailure, verdict};
use crate::driver::ProbeError;
#[cfg(lowzone_mutants)]
use crate::mutant::{self, Mutant};
use crate::virtio::ring::{RingError, RingStats, Segment, Virtqueue};
use crate::virtio::transport::{QueueLayout, Transport};

const HEADER: usize = 16;
const CACHE_LINE: usize = 64;
/// A status that no device writes: a completion that forgot its status shows.
const STATUS_UNSET: u8 = 0xff;
/// Looks at a polled ring before its CPU is left to others for a while: a device that sleeps is awake by then.
const LOOKS: u32 = 4096;
/// The fewest looks between two rests: a quarter of those before each time, since a late device is likely a lost one.
const LEAST_LOOKS: u32 = 16;
/// How long it is left to them at first, in nanoseconds; twice as long each time.
const REST: u64 = 50_000;

/// What a queue carried so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QueueStats {
    /// Requests submitted.
    pub submitted: u64,
    /// Requests completed.
    pub completed: u64,
    /// Completions of a request younger than one still in flight.
    pub out_of_order: u64,
    /// The most requests in flight at once.
    pub peak: u16,
    /// Interrupts that found something.
    pub interrupts: u64,
    /// The ring's own.
    pub ring: RingStats,
}

/// Requests in flight on all queues of a disk, now and at most.
#[derive(Debug, Default)]
pub struct Gauge {
    now: AtomicU32,
    peak: AtomicU32,
}

impl Gauge {
    fn up(&self) {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        if now > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(now, Ordering::Relaxed);
        }
    }

    fn down(&self) {
        self.now.fetch_sub(1, Ordering::Relaxed);
    }

    /// The most that were in flight at once.
    pub fn peak(&self) -> u32 {
        self.peak.load(Ordering::Relaxed)
    }
}

enum Slot {
    Free,
    InFlight {
        op: Op,
        sequence: u64,
        data: u64,
        payload: Payload,
    },
    /// Over: whoever collects it gives the slot back.
    Done,
}

#[cfg(lowzone_mutants)]
impl Slot {
    /// The bug [`UnmapWrongDirection`](Mutant::UnmapWrongDirection).
    fn unmap_backwards(&self, cpu: &Cpu<'_>, dma: &DmaDevice) {
        use lowzone_guest_mem::dma::Dir;
        if let Self::InFlight { payload: Payload::Out(mapped), .. } = self {
            misuse::unmap_single(cpu, dma, mapped.dma_addr(), mapped.len(), Dir::FromDevice);
        }
    }
}

struct State {
    vq: Option<Virtqueue>,
    /// Headers and status bytes, as long as there is the ring.
    meta: Option<Coherent>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    generations: Vec<u32>,
    newest_done: u64,
    stats: QueueStats,
}

/// One queue.
pub struct BlkQueue {
    index: u16,
    polled: bool,
    dma: DmaDevice,
    gauge: Arc<Gauge>,
    status_at: usize,
    state: SpinLock<State>,
    /// By slot: how the request ended, until it is collected: without the queue's lock, which the submitters need.
    results: Vec<Locked<Option<Completed>>>,
    /// Slots that were collected since the submitters last ran out of them.
    returned: Locked<Vec<u16>>,
    /// By slot: the generation that is done. Read without the lock by whoever waits.
    done: Vec<AtomicU32>,
    /// By slot: the generation whose pending was dropped.
    abandoned: Vec<AtomicU32>,
    any_abandoned: AtomicBool,
    /// Requests in flight.
    outstanding: AtomicU32,
    dead: AtomicBool,
    waiters: WaitQueue,
    /// Of a polled queue: those who leave their CPU to others just now.
    resting: AtomicU32,
}

fn cells(n: u16) -> Vec<AtomicU32> {
    std::iter::repeat_with(|| AtomicU32::new(0)).take(usize::from(n)).collect()
}

impl BlkQueue {
    /// A queue of `size` entries for the agreed `features`, and where the device finds it; a `polled` one interrupts
    /// nobody. Process context.
    ///
    /// # Errors
    /// No coherent memory.
    pub(crate) fn new(
        cpu: &Cpu<'_>,
        dma: &DmaDevice,
        (index, size): (u16, u16),
        (features, polled): (u64, bool),
        gauge: &Arc<Gauge>,
    ) -> Result<(Self, QueueLayout), ProbeError> {
        let mut vq = Virtqueue::new(cpu, dma, index, size, features)?;
        if polled {
            vq.disable_interrupts(cpu);
        }
        let status_at = (usize::from(size) * HEADER).next_multiple_of(CACHE_LINE);
        let meta = dma.alloc_coherent(cpu, status_at + usize::from(size), GFP_KERNEL);
        #[cfg(lowzone_mutants)]
        if meta.is_err() && mutant::is(Mutant::MissingNullCheck) {
            misuse::null_dereference(cpu, "headers of a queue");
        }
        #[cfg(lowzone_mutants)]
        if let Err(error) = meta
            && mutant::is(Mutant::ThirdUnwindLeak)
        {
            vq.forget_tables();
            return Err(error.into());
        }
        #[cfg(lowzone_mutants)]
        if meta.is_err() && mutant::is(Mutant::UnwindFreesTwice) {
            vq.free_tables_early(cpu);
        }
        let layout = vq.layout();
        let state = State {
            vq: Some(vq),
            meta: Some(meta?),
            slots: std::iter::repeat_with(|| Slot::Free).take(usize::from(size)).collect(),
            free: (0..size).rev().collect(),
            generations: vec![0; usize::from(size)],
            newest_done: 0,
            stats: QueueStats::default(),
        };
        let queue = Self {
            index,
            polled,
            dma: dma.clone(),
            gauge: gauge.clone(),
            status_at,
            state: SpinLock::new(state),
            results: std::iter::repeat_with(Locked::default).take(usize::from(size)).collect(),
            returned: Locked::new(Vec::with_capacity(usize::from(size))),
            done: cells(size),
            abandoned: cells(size),
            any_abandoned: AtomicBool::new(false),
            outstanding: AtomicU32::new(0),
            dead: AtomicBool::new(false),
            waiters: WaitQueue::new(),
            resting: AtomicU32::new(0),
        };
        Ok((queue, layout))
    }

    /// Whether whoever waits looks at the ring itself.
    pub(crate) fn polled(&self) -> bool {
        self.polled
    }

    /// Shows `with` each piece of memory that the device reaches, by name; none after the queue was taken down.
    pub(crate) fn for_each_place(&self, cpu: &Cpu<'_>, mut with: impl FnMut(&'static str, &Coherent)) {
        let state = self.state.lock_irqsave(cpu);
        let ring = state.vq.iter().flat_map(Virtqueue::memory);
        ["ring", "indirect tables"].into_iter().zip(ring).for_each(|(what, memory)| with(what, memory));
        state.meta.iter().for_each(|meta| with("headers, status", meta));
    }

    /// What it carried so far.
    pub fn stats(&self, cpu: &Cpu<'_>) -> QueueStats {
        let state = self.state.lock_irqsave(cpu);
        let ring = state.vq.as_ref().map(Virtqueue::stats).unwrap_or(state.stats.ring);
        QueueStats { ring, ..state.stats }
    }

    /// Takes nothing more and wakes whoever waits.
    pub(crate) fn kill(&self, cpu: &Cpu<'_>) {
        self.dead.store(true, Ordering::Release);
        self.waiters.wake_up_all(cpu);
    }

    /// Waits until nothing is in flight, at most `timeout` nanoseconds; a broken queue completes nothing any more.
    pub(crate) fn drain(&self, cpu: &Cpu<'_>, timeout: u64) {
        let over = || self.outstanding.load(Ordering::Acquire) == 0 || self.dead.load(Ordering::Acquire);
        // What is still out after that is taken back after the reset.
        if self.wait_until(cpu, timeout, over).is_err() {
            self.reap(cpu);
        }
    }

    /// The bug [`UnmapBeforeStop`](Mutant::UnmapBeforeStop): the data of what is in flight goes first.
    #[cfg(lowzone_mutants)]
    pub(crate) fn give_up(&self, cpu: &Cpu<'_>) {
        let lost: Vec<Slot> = self.state.lock_irqsave(cpu).slots.drain(..).collect();
        self.state.lock_irqsave(cpu).slots.extend(lost.iter().map(|_| Slot::Free));
        self.outstanding.store(0, Ordering::Release);
    }

    /// After the reset: unmaps and gives up what was still in flight, then frees the ring.
    pub(crate) fn take_down(&self, cpu: &Cpu<'_>) {
        let (vq, meta, lost) = {
            let mut state = self.state.lock_irqsave(cpu);
            let state = &mut *state;
            // What nobody will collect goes now, not with the last one who knows the queue.
            self.sweep(state);
            let lost: Vec<Slot> = state.slots.iter_mut().map(|slot| std::mem::replace(slot, Slot::Free)).collect();
            state.stats.ring = state.vq.as_ref().map(Virtqueue::stats).unwrap_or_default();
            (state.vq.take(), state.meta.take(), lost)
        };
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::UnmapWrongDirection) {
            lost.iter().for_each(|slot| slot.unmap_backwards(cpu, &self.dma));
        }
        drop(lost);
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::RingsNeverFreed) {
            return std::mem::forget(vq);
        }
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::CoherentWrongSize) {
            return vq.into_iter().for_each(|vq| vq.free_as_legacy(cpu));
        }
        drop(vq);
        drop(meta);
    }

    /// Maps the data and puts the request on the ring; the device is told by the next [`BlkQueue::commit`]. Any context.
    ///
    /// # Errors
    /// [`SubmitError`] with the data.
    pub(crate) fn submit(self: &Arc<Self>, cpu: &Cpu<'_>, request: Request) -> Result<Pending, SubmitError> {
        let Request { op, sector, data } = request;
        let len = data.len();
        let fail = |data, why| Err(SubmitError { data, why });
        if self.dead.load(Ordering::Acquire) {
            return fail(data, SubmitFailure::Dead);
        }
        let Ok(len32) = u32::try_from(len) else { return fail(data, SubmitFailure::TooLarge(len)) };
        let (payload, addr) = self.map(cpu, op, data)?;
        let mut state = self.state.lock_irqsave(cpu);
        match self.add(cpu, &mut state, op, sector, len32, (payload, addr)) {
            Ok((slot, generation)) => Ok(Pending { queue: self.clone(), slot, generation, collected: false }),
            Err((payload, why)) => {
                drop(state);
                fail(self.unmap(cpu, payload), why)
            }
        }
    }

    /// Rings the doorbell for what was submitted since the last call, if the device wants to know. Any context.
    pub(crate) fn commit(&self, cpu: &Cpu<'_>, transport: &dyn Transport) {
        let kick = self.state.lock_irqsave(cpu).vq.as_mut().is_some_and(|vq| vq.kick_prepare(cpu));
        // Outside the lock: a doorbell is a slow write.
        if kick {
            transport.notify(cpu, self.index);
        }
    }

    fn map(&self, cpu: &Cpu<'_>, op: Op, data: Data) -> Result<(Payload, Option<DmaAddr>), SubmitError> {
        let failed = |error: MapError<KBuf>| {
            #[cfg(lowzone_mutants)]
            if mutant::is(Mutant::DoubleFreeInRetry) {
                misuse::free_buffer(cpu, &error.buf);
            }
            let (len, most) = (error.buf.len() as u64, self.dma.max_mapping_size());
            let why = if len > most { SubmitFailure::TooLong { len, most } } else { error.why.into() };
            SubmitError { data: Data::Streaming(error.buf), why }
        };
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::MappingErrorUnchecked)
            && let Data::Streaming(buf) = data
        {
            return Ok(if op.device_writes() {
                let mapped = misuse::map_blindly::<FromDevice>(cpu, &self.dma, buf);
                let addr = mapped.dma_addr();
                (Payload::In(mapped), Some(addr))
            } else {
                let mapped = misuse::map_blindly::<ToDevice>(cpu, &self.dma, buf);
                let addr = mapped.dma_addr();
                (Payload::Out(mapped), Some(addr))
            });
        }
        Ok(match data {
            Data::None => (Payload::None, None),
            Data::Streaming(buf) if op.device_writes() => {
                let mapped = self.dma.map_single::<FromDevice>(cpu, buf).map_err(failed)?;
                let addr = mapped.dma_addr();
                (Payload::In(mapped), Some(addr))
            }
            Data::Streaming(buf) => {
                let mapped = self.dma.map_single::<ToDevice>(cpu, buf).map_err(failed)?;
                let addr = mapped.dma_addr();
                (Payload::Out(mapped), Some(addr))
            }
            Data::Shared(memory) => {
                let addr = memory.dma_addr();
                (Payload::Shared(memory), Some(addr))
            }
            Data::Raw(raw) => (Payload::Raw(raw), Some(raw.dma)),
        })
    }

    fn unmap(&self, cpu: &Cpu<'_>, payload: Payload) -> Data {
        match payload {
            #[cfg(lowzone_mutants)]
            Payload::None if mutant::is(Mutant::UnmapUnguarded) => misuse::null_dereference(cpu, "list of segments"),
            Payload::None => Data::None,
            Payload::Out(mapped) => Data::Streaming(mapped.unmap(cpu)),
            Payload::In(mapped) => Data::Streaming(mapped.unmap(cpu)),
            Payload::Shared(memory) => Data::Shared(memory),
            Payload::Raw(raw) => Data::Raw(raw),
        }
    }

    #[expect(clippy::result_large_err, reason = "the data comes back; a box would allocate on the request path")]
    fn add(
        &self,
        cpu: &Cpu<'_>,
        state: &mut State,
        op: Op,
        sector: u64,
        len: u32,
        (payload, addr): (Payload, Option<DmaAddr>),
    ) -> Result<(u16, u32), (Payload, SubmitFailure)> {
        if self.any_abandoned.load(Ordering::Relaxed) && self.any_abandoned.swap(false, Ordering::Acquire) {
            self.sweep(state);
        }
        if state.free.is_empty() {
            self.take_returned(state);
        }
        let (Some(vq), Some(meta)) = (&mut state.vq, &state.meta) else { return Err((payload, SubmitFailure::Dead)) };
        let Some(slot) = state.free.pop() else { return Err((payload, SubmitFailure::Full)) };
        let (header, status) = (usize::from(slot) * HEADER, self.status_at + usize::from(slot));
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&op.code().to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        meta.write(cpu, header, &bytes);
        meta.write_u8(cpu, status, STATUS_UNSET);
        let at = |offset: usize| meta.dma_addr().wrapping_add(offset as u64);
        let head = Segment { addr: at(header), len: 16, write: false };
        let tail = Segment { addr: at(status), len: 1, write: true };
        let added = match addr {
            Some(addr) => vq.add(cpu, &[head, Segment { addr, len, write: op.device_writes() }, tail], slot),
            None => vq.add(cpu, &[head, tail], slot),
        };
        if let Err(error) = added {
            state.free.push(slot);
            let full = matches!(error, RingError::Full { .. });
            return Err((payload, if full { SubmitFailure::Full } else { error.into() }));
        }
        let in_flight = vq.in_flight();
        let sequence = state.stats.submitted;
        state.stats.submitted += 1;
        self.gauge.up();
        // Only counted under the lock.
        self.outstanding.store(self.outstanding.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        state.stats.peak = state.stats.peak.max(in_flight);
        let generation = state.generations[usize::from(slot)].wrapping_add(1).max(1);
        state.generations[usize::from(slot)] = generation;
        state.slots[usize::from(slot)] = Slot::InFlight { op, sequence, data: u64::from(len), payload };
        Ok((slot, generation))
    }

    /// Frees the slots of requests that are done and whose pending was dropped.
    fn sweep(&self, state: &mut State) {
        for slot in 0..self.abandoned.len() {
            let generation = state.generations[slot];
            let given_up = self.abandoned[slot].load(Ordering::Acquire) == generation && generation != 0;
            if given_up && matches!(state.slots[slot], Slot::Done) {
                drop(self.results[slot].lock().take());
                state.slots[slot] = Slot::Free;
                state.free.push(u16::try_from(slot).unwrap_or(0));
            }
        }
    }

    /// Takes back the slots that were collected.
    fn take_returned(&self, state: &mut State) {
        for slot in self.returned.lock().drain(..) {
            state.slots[usize::from(slot)] = Slot::Free;
            state.free.push(slot);
        }
    }

    /// Takes every chain that the device is done with; whether there was any. Any context.
    pub(crate) fn reap(&self, cpu: &Cpu<'_>) -> bool {
        let mut state = self.state.lock_irqsave(cpu);
        let state = &mut *state;
        let mut any = false;
        let outcome = loop {
            let Some(vq) = &mut state.vq else { break Ok(()) };
            vq.disable_interrupts(cpu);
            match vq.pop(cpu) {
                Ok(Some(used)) => {
                    any = true;
                    self.finish(cpu, state, used.token, used.len);
                }
                Ok(None) if self.polled || vq.enable_interrupts(cpu) => break Ok(()),
                Ok(None) => {}
                Err(error) => break Err(error),
            }
        };
        if any && !self.polled {
            state.stats.interrupts += 1;
        }
        if outcome.is_err() {
            self.dead.store(true, Ordering::Release);
        }
        if outcome.is_err() || (any && (!self.polled || self.resting.load(Ordering::SeqCst) > 0)) {
            self.waiters.wake_up_all(cpu);
        }
        any
    }

    /// Waits until something is `over`, at most `timeout` nanoseconds. Process context.
    fn wait_until(&self, cpu: &Cpu<'_>, timeout: u64, over: impl Fn() -> bool) -> Result<(), WaitError> {
        if !self.polled {
            return self.waiters.wait_event_timeout(cpu, timeout, over);
        }
        let (begun, mut looks, mut rest) = (cpu.now(), LOOKS, REST);
        loop {
            for _ in 0..looks {
                self.reap(cpu);
                if over() {
                    return Ok(());
                }
            }
            let waited = cpu.now() - begun;
            if waited >= timeout {
                return Err(WaitError::TimedOut { waited });
            }
            self.resting.fetch_add(1, Ordering::SeqCst);
            let rested = self.waiters.wait_event_timeout(cpu, rest.min(timeout - waited), &over);
            self.resting.fetch_sub(1, Ordering::SeqCst);
            match rested {
                Err(WaitError::TimedOut { .. }) => {
                    looks = (looks / 4).max(LEAST_LOOKS);
                    rest = rest.saturating_mul(2);
                }
                done => return done,
            }
        }
    }

    fn finish(&self, cpu: &Cpu<'_>, state: &mut State, slot: u16, wrote: u32) {
        let at = usize::from(slot);
        let Slot::InFlight { op, sequence, data, payload } = std::mem::replace(&mut state.slots[at], Slot::Free) else {
            return;
        };
        let status = state.meta.as_ref().map_or(STATUS_UNSET, |meta| meta.read_u8(cpu, self.status_at + at));
        let result = verdict(op, status, wrote, data);
        #[cfg(lowzone_mutants)]
        let result = if mutant::is(Mutant::FalseSuccess) { Ok(()) } else { result };
        let completed = Completed { data: Some(self.unmap(cpu, payload)), result };
        state.stats.completed += 1;
        self.gauge.down();
        self.outstanding.store(self.outstanding.load(Ordering::Relaxed).saturating_sub(1), Ordering::Release);
        if sequence < state.newest_done {
            state.stats.out_of_order += 1;
        }
        state.newest_done = state.newest_done.max(sequence);
        let generation = state.generations[at];
        state.slots[at] = Slot::Done;
        *self.results[at].lock() = Some(completed);
        self.done[at].store(generation, Ordering::Release);
        if self.abandoned[at].load(Ordering::Acquire) == generation {
            drop(self.results[at].lock().take());
            state.slots[at] = Slot::Free;
            state.free.push(slot);
        }
    }
}

/// A request on its way; dropping it gives the result up.
#[must_use = "the result is given up when this is dropped"]
pub struct Pending {
    queue: Arc<BlkQueue>,
    slot: u16,
    generation: u32,
    collected: bool,
}

impl Pending {
    /// Whether it is over. Any context.
    pub fn is_done(&self) -> bool {
        let at = usize::from(self.slot);
        self.queue.done[at].load(Ordering::Acquire) == self.generation
    }

    /// Waits for it, at most `timeout` nanoseconds. Process context.
    pub fn wait(mut self, cpu: &Cpu<'_>, timeout: u64) -> Completed {
        let over = || self.is_done() || self.queue.dead.load(Ordering::Acquire);
        if !over()
            && let Err(error) = self.queue.wait_until(cpu, timeout, over)
        {
            // The device may be done and only its interrupt lost: look before giving up.
            self.queue.reap(cpu);
            if !over() {
                return Completed { data: None, result: Err(error.into()) };
            }
        }
        if !self.is_done() {
            return Completed { data: None, result: Err(BlkError::Dead) };
        }
        self.collected = true;
        let completed = self.queue.results[usize::from(self.slot)].lock().take();
        self.queue.returned.lock().push(self.slot);
        // Nobody else collects it.
        completed.unwrap_or(Completed { data: None, result: Err(BlkError::Dead) })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.collected {
            self.queue.abandoned[usize::from(self.slot)].store(self.generation, Ordering::Release);
            self.queue.any_abandoned.store(true, Ordering::Release);
        }
    }
}
