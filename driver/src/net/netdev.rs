//! One network device: probe in the specification's order, polling, and teardown in the asserted one.
//!
//! An interrupt asks for no further ones and leaves the rest to a softirq, which takes packets up to a budget and asks
//! for interrupts again when there are no more (NAPI). Probe gives back everything it took when any step fails, in
//! the reverse order. Teardown: interrupts freed, polls and refill stopped, device reset and its reset acknowledged,
//! then memory unmapped, then freed. Neighbours: `rx`, `tx`. Left out: NAPI's weights across devices.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::dma::dma_bit_mask;
use lowzone_guest_mem::env::{IrqHandler, IrqReturn};
use lowzone_guest_mem::gfp::{GFP_ATOMIC, GFP_KERNEL};
use lowzone_guest_mem::irq::{IrqLine, request_irq};
use lowzone_guest_mem::lock::Locked;
#[cfg(lowzone_mutants)]
use lowzone_guest_mem::percpu;
use lowzone_guest_mem::percpu::{PerCpu, alloc_percpu};
use lowzone_guest_mem::tasklet::Tasklet;
#[cfg(lowzone_mutants)]
use lowzone_guest_mem::timer::{Timer, TimerCallback};
use lowzone_guest_mem::wait::WaitError;
use lowzone_guest_mem::workqueue::DelayedWork;

use crate::driver::ProbeError;
#[cfg(lowzone_mutants)]
use crate::mutant::{self, Mutant};
use crate::net::rx::{self, ReceiveQueue, ReceiveStats};
use crate::net::tx::{self, TransmitQueue, TransmitStats};
use crate::net::{Frame, Packet, ReceiveError, TransmitError};
use crate::pci::{Msix, PciDevice};
use crate::virtio::pci::VirtioPci;
use crate::virtio::transport::{NO_VECTOR, QueueLayout, Transport};
use crate::virtio::{F_ACCESS_PLATFORM, F_EVENT_IDX, F_INDIRECT_DESC, VirtioError};

const F_MAC: u64 = 1 << 5;
/// Packets that one poll takes (`NAPI_POLL_WEIGHT`).
const BUDGET: usize = 64;
/// When refill is tried again after it failed even where it may sleep: half a second, as in Linux.
const REFILL_AGAIN: u64 = 500_000_000;
/// ISR bits: a queue has something; the configuration changed.
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// How to probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NetOptions {
    /// Bits of the streaming mask that the driver promises.
    pub dma_mask: u8,
    /// Bits of the coherent mask.
    pub coherent_mask: u8,
    /// Whether to become bus master; a driver that forgets is a classic.
    pub bus_master: bool,
    /// The most entries a queue may have; 0 = as many as the device allows.
    pub queue_size: u16,
    /// Whether to take MSI-X if there is any.
    pub msix: bool,
    /// Whether to agree to indirect descriptors.
    pub indirect: bool,
    /// Whether to agree to EVENT_IDX.
    pub event_idx: bool,
}

impl Default for NetOptions {
    /// A 32-bit driver that uses whatever the device has.
    fn default() -> Self {
        Self {
            dma_mask: 32,
            coherent_mask: 32,
            bus_master: true,
            queue_size: 0,
            msix: true,
            indirect: true,
            event_idx: true,
        }
    }
}

/// What a network device did so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NetStats {
    /// Receiving.
    pub receive: ReceiveStats,
    /// Sending.
    pub transmit: TransmitStats,
    /// Interrupts of its queues.
    pub interrupts: u64,
    /// Polls of the receive queue.
    pub polls: u64,
    /// Times that the work had to post buffers.
    pub refills: u64,
}

/// What handlers, polls and the refill work need.
struct Core {
    transport: Arc<dyn Transport>,
    rx: ReceiveQueue,
    tx: TransmitQueue,
    rx_napi: Tasklet,
    tx_napi: Tasklet,
    refill: DelayedWork,
    #[cfg(lowzone_mutants)]
    refill_timer: Timer,
    /// Nothing is scheduled any more.
    stopping: AtomicBool,
    interrupts: AtomicU64,
    polls: AtomicU64,
    /// Counted by the CPU that a work runs on.
    refills: PerCpu<u64>,
}

impl Core {
    fn new(
        cpu: &Cpu<'_>,
        transport: Arc<dyn Transport>,
        (rx, tx): (ReceiveQueue, TransmitQueue),
        refills: PerCpu<u64>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|core: &Weak<Self>| {
            // A pointer that keeps nothing alive: the core owns who calls it.
            let call = |function: fn(&Self, &Cpu<'_>)| {
                let core = core.clone();
                move |cpu: &Cpu<'_>| core.upgrade().into_iter().for_each(|core| function(&core, cpu))
            };
            Self {
                transport,
                rx,
                tx,
                rx_napi: Tasklet::new(cpu, call(Self::poll_rx)),
                tx_napi: Tasklet::new(cpu, call(Self::poll_tx)),
                refill: DelayedWork::new(cpu, call(Self::refill_work)),
                #[cfg(lowzone_mutants)]
                refill_timer: Timer::new(cpu, Arc::new(RefillTimer(core.clone()))),
                stopping: AtomicBool::new(false),
                interrupts: AtomicU64::new(0),
                polls: AtomicU64::new(0),
                refills,
            }
        })
    }

    fn kill(&self, cpu: &Cpu<'_>) {
        self.rx.kill(cpu);
        self.tx.kill(cpu);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Has a queue polled (`virtqueue_napi_schedule`).
    fn schedule(&self, cpu: &Cpu<'_>, receive: bool) {
        if self.is_stopping() {
            return;
        }
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        if receive {
            self.rx.disable_interrupts(cpu);
            self.rx_napi.schedule(cpu);
        } else {
            self.tx.disable_interrupts(cpu);
            self.tx_napi.schedule(cpu);
        }
    }

    /// `virtnet_poll`.
    fn poll_rx(&self, cpu: &Cpu<'_>) {
        let _span = cpu.span("virtnet_poll");
        self.polls.fetch_add(1, Ordering::Relaxed);
        let Ok(done) = self.rx.poll(cpu, BUDGET) else { return self.kill(cpu) };
        if self.rx.is_low(cpu, BUDGET) && !self.rx.refill(cpu, &*self.transport, GFP_ATOMIC) && !self.is_stopping() {
            self.refill_later(cpu, 0);
        }
        let more = done == BUDGET || !self.rx.enable_interrupts(cpu);
        if more && !self.is_stopping() {
            self.rx_napi.schedule(cpu);
        }
    }

    /// `virtnet_poll_tx`.
    fn poll_tx(&self, cpu: &Cpu<'_>) {
        let _span = cpu.span("virtnet_poll_tx");
        if self.tx.reap(cpu).is_err() {
            return self.kill(cpu);
        }
        if !self.tx.enable_interrupts(cpu) && !self.is_stopping() {
            self.tx_napi.schedule(cpu);
        }
    }

    #[track_caller]
    fn refill_later(&self, cpu: &Cpu<'_>, delay: u64) {
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::GfpKernelInTimer) {
            return self.refill_timer.modify(cpu, cpu.now().saturating_add(delay));
        }
        self.refill.modify(cpu, delay);
    }

    /// `refill_work`: posts buffers where it may sleep for them.
    fn refill_work(&self, cpu: &Cpu<'_>) {
        let _span = cpu.span("refill_work");
        self.count_refill(cpu);
        if !self.rx.refill(cpu, &*self.transport, GFP_KERNEL) && !self.is_stopping() {
            self.refill_later(cpu, REFILL_AGAIN);
        }
    }

    fn count_refill(&self, cpu: &Cpu<'_>) {
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::PercpuPreemptible) {
            return self.refills.__this_cpu_add(cpu, 1);
        }
        self.refills.this_cpu_inc(cpu);
    }

    /// Looks whether the device goes on; if not, no packet does. Whether it is over.
    fn config_changed(&self, cpu: &Cpu<'_>) -> bool {
        let over = self.transport.needs_reset(cpu);
        if over {
            self.kill(cpu);
        }
        over
    }

    /// Polls and refill come to their end; nothing schedules them again. Process context.
    fn stop(&self, cpu: &Cpu<'_>) {
        self.stopping.store(true, Ordering::Release);
        self.kill(cpu);
        self.rx_napi.kill(cpu);
        self.tx_napi.kill(cpu);
        self.refill.cancel_sync(cpu);
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::GfpKernelInTimer) {
            self.refill_timer.delete_sync(cpu);
        }
    }
}

/// The bug [`GfpKernelInTimer`](Mutant::GfpKernelInTimer).
#[cfg(lowzone_mutants)]
struct RefillTimer(Weak<Core>);

#[cfg(lowzone_mutants)]
impl TimerCallback for RefillTimer {
    fn expired(&self, cpu: &Cpu<'_>) {
        self.0.upgrade().into_iter().for_each(|core| core.refill_work(cpu));
    }
}

/// A queue's own vector (`skb_recv_done`, `skb_xmit_done`).
struct QueueVector {
    core: Arc<Core>,
    receive: bool,
}

impl IrqHandler for QueueVector {
    fn hardirq(&self, cpu: &Cpu<'_>) -> IrqReturn {
        let _span = cpu.span("vring_interrupt");
        self.core.schedule(cpu, self.receive);
        IrqReturn::Handled
    }
}

/// The vector of config changes.
struct ConfigVector(Arc<Core>);

impl IrqHandler for ConfigVector {
    fn hardirq(&self, cpu: &Cpu<'_>) -> IrqReturn {
        self.0.config_changed(cpu);
        IrqReturn::Handled
    }
}

/// The pin, shared by everything.
struct Intx {
    core: Arc<Core>,
    pci: Arc<PciDevice>,
}

impl IrqHandler for Intx {
    fn hardirq(&self, cpu: &Cpu<'_>) -> IrqReturn {
        let isr = self.core.transport.isr(cpu);
        if isr == 0 {
            return IrqReturn::None;
        }
        [true, false].into_iter().for_each(|receive| self.core.schedule(cpu, receive));
        let over = isr & ISR_CONFIG != 0 && self.core.config_changed(cpu);
        if over && isr & !(ISR_QUEUE | ISR_CONFIG) != 0 {
            // All-ones: reading it acknowledged nothing, and the pin would interrupt for ever.
            self.pci.set_intx(false);
        }
        IrqReturn::Handled
    }
}

/// Interrupts first, vectors after: the order in which they are given back.
struct Interrupts {
    lines: Vec<IrqLine>,
    vectors: Option<Msix>,
}

/// A network device in service.
pub struct NetDevice {
    pci: Arc<PciDevice>,
    core: Arc<Core>,
    interrupts: Locked<Option<Interrupts>>,
    mac: [u8; 6],
}

/// Turns decoding and DMA off again, unless probe got to its end.
struct Enabled<'a>(Option<&'a PciDevice>);

impl Drop for Enabled<'_> {
    fn drop(&mut self) {
        if let Some(pci) = self.0 {
            pci.disable();
        }
    }
}

impl NetDevice {
    pub(crate) fn probe(cpu: &Cpu<'_>, pci: &Arc<PciDevice>, options: &NetOptions) -> Result<Self, ProbeError> {
        pci.enable();
        let mut enabled = Enabled(Some(pci));
        pci.dma().set_mask(cpu, dma_bit_mask(options.dma_mask))?;
        pci.dma().set_coherent_mask(cpu, dma_bit_mask(options.coherent_mask))?;
        let transport: Arc<dyn Transport> = Arc::new(VirtioPci::new(cpu, pci)?);
        if options.bus_master {
            pci.set_master();
        }
        let device = Self::start(cpu, pci, options, &transport).inspect_err(|_error| {
            #[cfg(lowzone_mutants)]
            if matches!(_error, ProbeError::Own { .. }) {
                return enabled.0 = None;
            }
            // What the device knows of must not be freed under it; one that won't reset is cut off from memory.
            if transport.reset(cpu).is_err() {
                pci.disable();
            }
        })?;
        enabled.0 = None;
        Ok(device)
    }

    /// From the transport's reset to DRIVER_OK and the first buffers.
    fn start(
        cpu: &Cpu<'_>,
        pci: &Arc<PciDevice>,
        options: &NetOptions,
        transport: &Arc<dyn Transport>,
    ) -> Result<Self, ProbeError> {
        let _span = cpu.span("init_vqs");
        let optional = |on: bool, bit: u64| if on { bit } else { 0 };
        let wanted = F_ACCESS_PLATFORM
            | F_MAC
            | optional(options.indirect, F_INDIRECT_DESC)
            | optional(options.event_idx, F_EVENT_IDX);
        let features = transport.negotiate(cpu, wanted)?;
        let mut mac = [0; 6];
        if features & F_MAC != 0 {
            transport.config_read(cpu, 0, &mut mac)?;
        }
        let refills = alloc_percpu(cpu);
        #[cfg(lowzone_mutants)]
        let refills =
            if mutant::is(Mutant::PercpuNull) { Ok(percpu::misuse::unchecked(cpu, refills)) } else { refills };
        let refills = refills?;
        let vectors = if options.msix { pci.enable_msix(cpu, 3).ok() } else { None };
        let vector = |entry: u16| if vectors.is_some() { entry } else { NO_VECTOR };
        let place = (transport.as_ref(), options.queue_size);
        let dma = pci.dma();
        let rx = set_up(cpu, place, (rx::INDEX, vector(1)), |size| ReceiveQueue::new(cpu, dma, size, features));
        let tx = rx.and_then(|rx| {
            let made = set_up(cpu, place, (tx::INDEX, vector(2)), |size| TransmitQueue::new(cpu, dma, size, features));
            match made {
                Ok(tx) => Ok((rx, tx)),
                Err(error) => {
                    // The device knows of the first ring already.
                    let _ = transport.reset(cpu);
                    Err(error)
                }
            }
        });
        let core = Core::new(cpu, transport.clone(), tx?, refills);
        let ready = request_lines(cpu, pci, &core, vectors.as_ref()).and_then(|lines| {
            transport.driver_ok(cpu, vector(0))?;
            Ok(lines)
        });
        match ready {
            Ok(lines) => {
                if !core.rx.refill(cpu, &*core.transport, GFP_KERNEL) {
                    #[cfg(lowzone_mutants)]
                    if mutant::is(Mutant::FreeAfterLateOpen) {
                        return Err(free_running(cpu, &core, lines));
                    }
                    core.refill_later(cpu, 0);
                }
                let interrupts = Locked::new(Some(Interrupts { lines, vectors }));
                Ok(Self { pci: pci.clone(), core, interrupts, mac })
            }
            Err(error) => {
                core.stop(cpu);
                // Before the rings go, which the device knows of.
                if transport.reset(cpu).is_err() {
                    pci.disable();
                }
                Err(error)
            }
        }
    }

    /// Its address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Sends a packet and tells the device. Any context.
    ///
    /// # Errors
    /// [`TransmitError`] with the packet.
    pub fn transmit(&self, cpu: &Cpu<'_>, frame: Frame) -> Result<(), TransmitError> {
        self.transmit_more(cpu, frame)?;
        self.commit(cpu);
        Ok(())
    }

    /// Sends a packet that others follow: the device is told by [`NetDevice::commit`] (`netdev_xmit_more`). Any context.
    ///
    /// # Errors
    /// [`TransmitError`] with the packet.
    pub fn transmit_more(&self, cpu: &Cpu<'_>, frame: Frame) -> Result<(), TransmitError> {
        if self.core.tx.reap(cpu).is_err() {
            self.core.kill(cpu);
        }
        self.core.tx.send(cpu, frame)
    }

    /// Tells the device about what was sent since it was last told. Any context.
    pub fn commit(&self, cpu: &Cpu<'_>) {
        self.core.tx.commit(cpu, &*self.core.transport);
    }

    /// Packets sent that the device is done with. Any context.
    pub fn completed(&self) -> u64 {
        self.core.tx.completed()
    }

    /// Waits until the device is done with more packets than `seen`, at most `timeout` nanoseconds. Process context.
    ///
    /// # Errors
    /// [`WaitError`].
    pub fn wait_completed(&self, cpu: &Cpu<'_>, seen: u64, timeout: u64) -> Result<(), WaitError> {
        self.core.tx.wait(cpu, seen, timeout)
    }

    /// The next packet that has come, if one has. Any context.
    pub fn try_receive(&self) -> Option<Packet> {
        self.core.rx.take()
    }

    /// Waits for a packet, at most `timeout` nanoseconds. Process context.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub fn receive(&self, cpu: &Cpu<'_>, timeout: u64) -> Result<Packet, ReceiveError> {
        self.core.rx.wait(cpu, timeout)
    }

    /// What it did so far.
    pub fn stats(&self, cpu: &Cpu<'_>) -> NetStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NetStats {
            receive: self.core.rx.stats(cpu),
            transmit: self.core.tx.stats(cpu),
            interrupts: get(&self.core.interrupts),
            polls: get(&self.core.polls),
            refills: self.core.refills.sum(),
        }
    }

    /// Stops everything that could reach memory, interrupts first; memory stays.
    pub(crate) fn quiesce(&self, cpu: &Cpu<'_>) {
        self.core.stopping.store(true, Ordering::Release);
        let interrupts = self.interrupts.lock().take();
        if let Some(Interrupts { lines, vectors }) = interrupts {
            lines.into_iter().for_each(|line| line.free(cpu));
            drop(vectors);
        }
        self.core.stop(cpu);
        // A device that won't acknowledge is cut off from memory instead.
        let _ = self.core.transport.reset(cpu);
        self.pci.disable();
    }

    /// Takes the device out of service and gives everything back.
    pub(crate) fn tear_down(&self, cpu: &Cpu<'_>) {
        self.quiesce(cpu);
        self.core.rx.take_down(cpu);
        self.core.tx.take_down(cpu);
    }
}

/// Makes one queue and tells the device where it lies.
fn set_up<Q>(
    cpu: &Cpu<'_>,
    (transport, most): (&dyn Transport, u16),
    (index, vector): (u16, u16),
    make: impl Fn(u16) -> Result<(Q, QueueLayout), VirtioError>,
) -> Result<Q, ProbeError> {
    let mut made = None;
    transport.setup_queue(cpu, index, vector, &mut |max| {
        let size = if most == 0 { max } else { most.min(max) };
        let (queue, layout) = make(size)?;
        made = Some(queue);
        Ok(layout)
    })?;
    made.ok_or_else(|| VirtioError::NoQueue { index, size: 0 }.into())
}

fn request_lines(
    cpu: &Cpu<'_>,
    pci: &Arc<PciDevice>,
    core: &Arc<Core>,
    vectors: Option<&Msix>,
) -> Result<Vec<IrqLine>, ProbeError> {
    let Some(vectors) = vectors else {
        return Ok(vec![request_irq(cpu, pci.intx()?, Arc::new(Intx { core: core.clone(), pci: pci.clone() }))?]);
    };
    let number = |entry: u16| vectors.irq(entry).ok_or(VirtioError::NoVector { index: entry, vector: entry });
    let mut lines = vec![request_irq(cpu, number(0)?, Arc::new(ConfigVector(core.clone())))?];
    for (entry, receive) in [(1, true), (2, false)] {
        lines.push(request_irq(cpu, number(entry)?, Arc::new(QueueVector { core: core.clone(), receive }))?);
    }
    Ok(lines)
}

/// The bug [`FreeAfterLateOpen`](Mutant::FreeAfterLateOpen): everything goes but the device's knowledge of it.
#[cfg(lowzone_mutants)]
fn free_running(cpu: &Cpu<'_>, core: &Core, lines: Vec<IrqLine>) -> ProbeError {
    core.stop(cpu);
    lines.into_iter().for_each(|line| line.free(cpu));
    core.rx.take_down(cpu);
    core.tx.take_down(cpu);
    ProbeError::own(-12, ReceiveError::Dead)
}
