//! One disk: probe in the specification's order, requests, and teardown in the asserted one.
//!
//! Probe gives back everything it took when any step fails, in the reverse order. Teardown: no new requests,
//! interrupts freed, device reset and its reset acknowledged, then memory unmapped, then freed.
//! Neighbours: `queue`, `host` (what the disk hangs on). Left out: two disks sharing an interrupt.

use std::sync::Arc;

use lowzone_guest_mem::dma::{DmaDevice, dma_bit_mask};
use lowzone_guest_mem::env::{IrqHandler, IrqReturn};
use lowzone_guest_mem::irq::{IrqLine, request_irq};
use lowzone_guest_mem::lock::Locked;
use lowzone_guest_mem::zone::ZoneKind;
use lowzone_guest_mem::{Cpu, PhysAddr};

use crate::blk::clear::{Clearing, F_DISCARD, F_WRITE_ZEROES};
use crate::blk::host::{Held, Host};
use crate::blk::queue::{BlkQueue, Gauge, Pending, QueueStats};
use crate::blk::request::{Completed, Request, SubmitError, SubmitFailure};
use crate::driver::ProbeError;
#[cfg(lowzone_mutants)]
use crate::mutant::{self, Mutant};
use crate::pci::PciDevice;
use crate::virtio::pci::VirtioPci;
use crate::virtio::transport::{NO_VECTOR, Transport};
use crate::virtio::{F_ACCESS_PLATFORM, F_EVENT_IDX, F_INDIRECT_DESC, VirtioDevice, VirtioError};

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_MQ: u64 = 1 << 12;
/// Offset of `num_queues` in the device's config.
const CONFIG_NUM_QUEUES: u64 = 34;
/// ISR bits: a queue has something; the configuration changed.
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// How to probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlkOptions {
    /// Bits of the streaming mask that the driver promises.
    pub dma_mask: u8,
    /// Bits of the coherent mask.
    pub coherent_mask: u8,
    /// Whether to become bus master; a driver that forgets is a classic.
    pub bus_master: bool,
    /// The most queues to use; 0 = all.
    pub queues: u16,
    /// The most entries a queue may have; 0 = as many as the device allows.
    pub queue_size: u16,
    /// Whether to take MSI-X if there is any.
    pub msix: bool,
    /// Whether whoever waits looks at the ring itself, and no queue interrupts (`poll_queues`, but of all queues).
    pub polled: bool,
    /// Whether to agree to indirect descriptors.
    pub indirect: bool,
    /// Whether to agree to EVENT_IDX.
    pub event_idx: bool,
    /// Nanoseconds that a request may take.
    pub timeout: u64,
}

impl Default for BlkOptions {
    /// A 32-bit driver that uses whatever the device has; 30 s a request, as Linux's block layer.
    fn default() -> Self {
        Self {
            dma_mask: 32,
            coherent_mask: 32,
            bus_master: true,
            queues: 0,
            queue_size: 0,
            msix: true,
            polled: false,
            indirect: true,
            event_idx: true,
            timeout: 30_000_000_000,
        }
    }
}

/// Where a piece of coherent memory of a queue lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingPlace {
    /// The queue.
    pub queue: u16,
    /// What it holds.
    pub what: &'static str,
    /// Its first byte.
    pub phys: PhysAddr,
    /// How many bytes.
    pub len: usize,
    /// Its zone.
    pub zone: ZoneKind,
}

/// What the interrupt handlers need: everything but the interrupts themselves.
struct Core {
    transport: Arc<dyn Transport>,
    queues: Vec<Arc<BlkQueue>>,
    gauge: Arc<Gauge>,
}

/// A queue's own vector.
struct QueueVector(Arc<BlkQueue>);

impl IrqHandler for QueueVector {
    fn hardirq(&self, cpu: &Cpu<'_>) -> IrqReturn {
        let _span = cpu.span("vring_interrupt");
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::GfpKernelInHandler) {
            drop(lowzone_guest_mem::KBuf::kmalloc(cpu, 64, lowzone_guest_mem::gfp::GFP_KERNEL));
        }
        // With a vector of its own nobody else can have raised it, found something or not.
        self.0.reap(cpu);
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

/// A handler's pointer to its device as C has it: it keeps nothing alive.
#[cfg(lowzone_mutants)]
struct Dangling(std::sync::Weak<Core>);

#[cfg(lowzone_mutants)]
impl IrqHandler for Dangling {
    fn hardirq(&self, cpu: &Cpu<'_>) -> IrqReturn {
        self.0.upgrade().map_or(IrqReturn::None, |core| ConfigVector(core).hardirq(cpu))
    }
}

/// The pin, shared by everything.
struct Intx {
    core: Arc<Core>,
    pci: Arc<PciDevice>,
}

impl IrqHandler for Intx {
    fn hardirq(&self, cpu: &Cpu<'_>) -> IrqReturn {
        let core = &self.core;
        let isr = core.transport.isr(cpu);
        if isr == 0 {
            return IrqReturn::None;
        }
        core.queues.iter().for_each(|queue| {
            queue.reap(cpu);
        });
        let over = isr & ISR_CONFIG != 0 && core.config_changed(cpu);
        if over && isr & !(ISR_QUEUE | ISR_CONFIG) != 0 {
            // All-ones: reading it acknowledged nothing, and the pin would interrupt for ever. Config space is another way.
            self.pci.set_intx(false);
        }
        IrqReturn::Handled
    }
}

impl Core {
    /// Looks whether the device goes on; if not, no request does. Whether it is over.
    fn config_changed(&self, cpu: &Cpu<'_>) -> bool {
        let over = self.transport.needs_reset(cpu);
        if over {
            self.queues.iter().for_each(|queue| queue.kill(cpu));
        }
        over
    }
}

/// Interrupts first, vectors after: the order in which they are given back.
struct Interrupts {
    lines: Vec<IrqLine>,
    vectors: Option<Held>,
}

/// A disk in service.
pub struct Disk {
    host: Host,
    core: Arc<Core>,
    interrupts: Locked<Option<Interrupts>>,
    capacity: u64,
    features: u64,
    clearing: Clearing,
    timeout: u64,
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

impl Disk {
    pub(crate) fn probe(cpu: &Cpu<'_>, pci: &Arc<PciDevice>, options: &BlkOptions) -> Result<Self, ProbeError> {
        pci.enable();
        let mut enabled = Enabled(Some(pci));
        let bits = options.dma_mask;
        #[cfg(lowzone_mutants)]
        let bits = if mutant::is(Mutant::MaskTooWide) { 64 } else { bits };
        pci.dma().set_mask(cpu, dma_bit_mask(bits))?;
        pci.dma().set_coherent_mask(cpu, dma_bit_mask(options.coherent_mask))?;
        let transport = Arc::new(VirtioPci::new(cpu, pci)?);
        if options.bus_master {
            pci.set_master();
        }
        #[cfg(lowzone_mutants)]
        let kept = transport.clone();
        let disk = Self::start(cpu, Host::Pci(pci.clone()), options, transport);
        #[cfg(lowzone_mutants)]
        if disk.is_err() && mutant::is(Mutant::IoremapLeak) {
            std::mem::forget(kept);
        }
        let disk = disk?;
        enabled.0 = None;
        Ok(disk)
    }

    pub(crate) fn probe_virtio(cpu: &Cpu<'_>, device: &VirtioDevice, options: &BlkOptions) -> Result<Self, ProbeError> {
        device.dma.set_mask(cpu, dma_bit_mask(options.dma_mask))?;
        device.dma.set_coherent_mask(cpu, dma_bit_mask(options.coherent_mask))?;
        Self::start(cpu, Host::Own(device.clone()), options, device.transport.clone())
    }

    /// From the transport's reset to DRIVER_OK; on failure the device is reset before anything is freed.
    fn start(
        cpu: &Cpu<'_>,
        host: Host,
        options: &BlkOptions,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, ProbeError> {
        let _span = cpu.span("init_vqs");
        let features = transport.negotiate(cpu, wanted_features(options))?;
        let (capacity, count) = read_config(cpu, &*transport, features, options)?;
        let clearing = Clearing::read(cpu, &*transport, features)?;
        let wanted = if options.polled { 1 } else { count + 1 };
        let mut vectors = if options.msix { host.vectors(cpu, wanted).ok() } else { None };
        let mut queues = Vec::new();
        let gauge = Arc::new(Gauge::default());
        let set_up = (0..count).try_for_each(|index| {
            let vector = if vectors.is_some() && !options.polled { index + 1 } else { NO_VECTOR };
            queues.push(set_up_queue(cpu, host.dma(), (&*transport, features), options, (index, vector), &gauge)?);
            Ok(())
        });
        let core = Arc::new(Core { transport, queues, gauge });
        let ready = set_up.and_then(|()| {
            let lines = request_lines(cpu, &host, &core, vectors.as_ref())?;
            let config_vector = if vectors.is_some() { 0 } else { NO_VECTOR };
            core.transport.driver_ok(cpu, config_vector)?;
            Ok(lines)
        });
        match ready {
            Ok(lines) => {
                let interrupts = Locked::new(Some(Interrupts { lines, vectors: vectors.take() }));
                Ok(Self { host, core, interrupts, capacity, features, clearing, timeout: options.timeout })
            }
            Err(error) => {
                // What the device knows of must not be freed under it; a device that won't reset is cut off.
                if core.transport.reset(cpu).is_err() {
                    host.cut_off();
                }
                Err(error)
            }
        }
    }

    /// Sectors of 512 bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The agreed features.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// What may be cleared.
    pub(crate) fn clearing(&self) -> Clearing {
        self.clearing
    }

    /// How many queues are in use.
    pub fn queues(&self) -> u16 {
        u16::try_from(self.core.queues.len()).unwrap_or(u16::MAX)
    }

    /// The interrupt numbers it uses.
    pub fn irqs(&self) -> Vec<u32> {
        self.interrupts.lock().iter().flat_map(|held| held.lines.iter().map(IrqLine::irq)).collect()
    }

    /// Submits a request to a queue and tells the device. Any context.
    ///
    /// # Errors
    /// [`SubmitError`] with the data and the reason.
    pub fn submit(&self, cpu: &Cpu<'_>, queue: u16, request: Request) -> Result<Pending, SubmitError> {
        let pending = self.submit_more(cpu, queue, request)?;
        self.commit(cpu, queue);
        Ok(pending)
    }

    /// Submits a request that others follow: the device is told by [`Disk::commit`] (`bd->last` unset). Any context.
    ///
    /// # Errors
    /// [`SubmitError`] with the data and the reason.
    pub fn submit_more(&self, cpu: &Cpu<'_>, queue: u16, request: Request) -> Result<Pending, SubmitError> {
        match self.core.queues.get(usize::from(queue)) {
            Some(chosen) => chosen.submit(cpu, request),
            None => Err(SubmitError { data: request.data, why: SubmitFailure::NoQueue(queue) }),
        }
    }

    /// Tells the device about what was submitted to a queue since it was last told (`commit_rqs`). Any context.
    pub fn commit(&self, cpu: &Cpu<'_>, queue: u16) {
        if let Some(chosen) = self.core.queues.get(usize::from(queue)) {
            chosen.commit(cpu, &*self.core.transport);
        }
    }

    /// Waits for a request, at most as long as the driver's timeout. Process context.
    pub fn wait(&self, cpu: &Cpu<'_>, pending: Pending) -> Completed {
        pending.wait(cpu, self.timeout)
    }

    /// What each queue carried.
    pub fn stats(&self, cpu: &Cpu<'_>) -> Vec<QueueStats> {
        self.core.queues.iter().map(|queue| queue.stats(cpu)).collect()
    }

    /// The most requests that were in flight at once, on all queues together.
    pub fn peak_in_flight(&self) -> u32 {
        self.core.gauge.peak()
    }

    /// Where rings, tables, headers and status bytes lie.
    pub fn ring_places(&self, cpu: &Cpu<'_>) -> Vec<RingPlace> {
        let mut places = Vec::new();
        for (index, queue) in (0_u16..).zip(&self.core.queues) {
            queue.for_each_place(cpu, |what, memory| {
                let (phys, len, zone) = (memory.phys(), memory.len(), memory.zone());
                places.push(RingPlace { queue: index, what, phys, len, zone });
            });
        }
        places
    }

    /// Stops everything that could reach memory, interrupts first; memory stays.
    pub(crate) fn quiesce(&self, cpu: &Cpu<'_>) {
        for queue in &self.core.queues {
            queue.drain(cpu, self.timeout);
            queue.kill(cpu);
        }
        let interrupts = self.interrupts.lock().take();
        if let Some(Interrupts { lines, vectors }) = interrupts {
            lines.into_iter().for_each(|line| line.free(cpu));
            drop(vectors);
        }
        // A device that won't acknowledge is cut off from memory instead.
        let _ = self.core.transport.reset(cpu);
        self.host.cut_off();
    }

    /// Takes the disk out of service and gives everything back.
    pub(crate) fn tear_down(&self, cpu: &Cpu<'_>) {
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::FreeBeforeStop) {
            self.core.queues.iter().for_each(|queue| queue.take_down(cpu));
        }
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::UnmapBeforeStop) {
            self.core.queues.iter().for_each(|queue| queue.give_up(cpu));
        }
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::RemoveWithoutStop) {
            drop(self.interrupts.lock().take());
            return self.core.queues.iter().for_each(|queue| queue.take_down(cpu));
        }
        self.quiesce(cpu);
        for queue in &self.core.queues {
            queue.take_down(cpu);
        }
    }
}

fn wanted_features(options: &BlkOptions) -> u64 {
    let optional = |on: bool, bit: u64| if on { bit } else { 0 };
    F_ACCESS_PLATFORM
        | F_SEG_MAX
        | F_RO
        | F_BLK_SIZE
        | F_FLUSH
        | F_MQ
        | F_DISCARD
        | F_WRITE_ZEROES
        | optional(options.indirect, F_INDIRECT_DESC)
        | optional(options.event_idx, F_EVENT_IDX)
}

/// Capacity in sectors and the number of queues to use.
fn read_config(
    cpu: &Cpu<'_>,
    transport: &dyn Transport,
    features: u64,
    options: &BlkOptions,
) -> Result<(u64, u16), VirtioError> {
    let mut capacity = [0; 8];
    transport.config_read(cpu, 0, &mut capacity)?;
    let mut queues = [1, 0];
    if features & F_MQ != 0 {
        transport.config_read(cpu, CONFIG_NUM_QUEUES, &mut queues)?;
    }
    let (capacity, queues) = (u64::from_le_bytes(capacity), u16::from_le_bytes(queues));
    if capacity == 0 || capacity > u64::MAX / 512 {
        return Err(VirtioError::BadConfig { field: "capacity", value: capacity });
    }
    if queues == 0 {
        return Err(VirtioError::BadConfig { field: "num_queues", value: 0 });
    }
    // The vector table has an entry for each queue and one for config changes.
    let most = if options.queues == 0 { u16::MAX - 1 } else { options.queues };
    Ok((capacity, queues.min(most)))
}

fn set_up_queue(
    cpu: &Cpu<'_>,
    dma: &DmaDevice,
    (transport, features): (&dyn Transport, u64),
    options: &BlkOptions,
    (index, vector): (u16, u16),
    gauge: &Arc<Gauge>,
) -> Result<Arc<BlkQueue>, ProbeError> {
    let mut made = None;
    let mut refused = None;
    let result = transport.setup_queue(cpu, index, vector, &mut |max| {
        let size = if options.queue_size == 0 { max } else { options.queue_size.min(max) };
        match BlkQueue::new(cpu, dma, (index, size), (features, options.polled), gauge) {
            Ok((queue, layout)) => {
                made = Some(Arc::new(queue));
                Ok(layout)
            }
            Err(error) => {
                refused = Some(error);
                Err(VirtioError::NoQueue { index, size })
            }
        }
    });
    match (refused, result, made) {
        (Some(error), _, _) => Err(error),
        (None, Err(error), _) => Err(error.into()),
        (None, Ok(()), Some(queue)) => Ok(queue),
        (None, Ok(()), None) => Err(VirtioError::NoQueue { index, size: 0 }.into()),
    }
}

fn request_lines(
    cpu: &Cpu<'_>,
    host: &Host,
    core: &Arc<Core>,
    vectors: Option<&Held>,
) -> Result<Vec<IrqLine>, ProbeError> {
    let Some(vectors) = vectors else {
        let (irq, pci) = host.line()?;
        return Ok(vec![request_irq(cpu, irq, Arc::new(Intx { core: core.clone(), pci }))?]);
    };
    let number = |entry: u16| vectors.irq(entry).ok_or(VirtioError::NoVector { index: entry, vector: entry });
    let mut lines = vec![request_irq(cpu, number(0)?, Arc::new(ConfigVector(core.clone())))?];
    #[cfg(lowzone_mutants)]
    if mutant::is(Mutant::IrqNotFreed) {
        lines.clear();
        std::mem::forget(request_irq(cpu, number(0)?, Arc::new(Dangling(Arc::downgrade(core))))?);
    }
    for (entry, queue) in (1_u16..).zip(core.queues.iter().filter(|queue| !queue.polled())) {
        lines.push(request_irq(cpu, number(entry)?, Arc::new(QueueVector(queue.clone())))?);
    }
    Ok(lines)
}
