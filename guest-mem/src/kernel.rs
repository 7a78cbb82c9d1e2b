//! The kernel: RAM and one instance of every allocator over it, as a value.
//!
//! Machines are made once, pooled for ever and recycled: a fresh 8 GiB machine costs milliseconds, a reset one
//! microseconds. [`Machine`] is the loan of one; [`KernelRef`] is the handle that buffers and devices keep, which
//! knows the generation it belongs to and is dead after the reset.
//!
//! Neighbours: everything in this crate hangs on it; worlds borrow one for a run. Left out: several kernels over one
//! RAM (kexec), hot-plug.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use crate::addr::{PAGE_SIZE, PhysAddr};
use crate::dma::device::DeviceState;
use crate::dma::swiotlb::{Geometry, Pool, PoolError};
use crate::finding::{Finding, Resource};
use crate::iospace::IoSpace;
use crate::irq::IrqTable;
use crate::klog::KernelLog;
use crate::lock::Locked;
use crate::ram::{HIGH_START, Ram, RamError};
use crate::site::Owner;
use crate::slab::Kmalloc;
use crate::timer::Timers;
use crate::trace::{Kind, Producer, Record, Recorder};
use crate::zone::{Layout, LayoutError, Zones};

/// The most CPUs a machine may have.
pub const MAX_CPUS: u32 = 64;

/// What a machine is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MachineConfig {
    /// Bytes of RAM.
    pub ram: u64,
    /// At most this many of them below 4 GiB.
    pub low: u64,
    /// CPUs.
    pub cpus: u32,
    /// Bytes of the bounce pool; 0 = none. Like Linux on x86 it exists only if RAM reaches above 4 GiB.
    pub swiotlb: u64,
    /// What the bridge adds to a physical address to make the bus address.
    pub dma_offset: u64,
}

impl Default for MachineConfig {
    /// 6 GiB, 3 of them below 4 GiB, two CPUs, a 64 MiB bounce pool, bus addresses equal to physical ones.
    fn default() -> Self {
        Self { ram: 6 << 30, low: 3 << 30, cpus: 2, swiotlb: 64 << 20, dma_offset: 0 }
    }
}

/// Why a machine could not be made.
#[derive(Debug, Error)]
pub enum MachineError {
    /// RAM could not be made.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A number of CPUs outside 1..=64.
    #[error("{0} CPUs: a machine has 1 to {MAX_CPUS}")]
    Cpus(u32),
    /// RAM leaves nothing to allocate.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The bounce pool doesn't fit below 4 GiB.
    #[error("a bounce pool of {pool} bytes in {low} bytes of RAM below 4 GiB")]
    PoolTooLarge {
        /// Bytes of the pool.
        pool: u64,
        /// Bytes of RAM below 4 GiB.
        low: u64,
    },
    /// The bounce pool could not be made.
    #[error(transparent)]
    Swiotlb(#[from] PoolError),
}

/// The page allocator and the slab caches that live on it, under one lock: a slab refill takes pages.
pub(crate) struct Memory {
    pub(crate) zones: Zones,
    pub(crate) kmalloc: Kmalloc,
}

/// A live resource that has no table of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Live {
    id: u64,
    /// What it is.
    pub resource: Resource,
    /// Its address or number.
    pub at: PhysAddr,
    /// Its size in bytes, or 0.
    pub bytes: u64,
    /// Who made it.
    pub owner: Owner,
}

/// One machine's kernel.
pub struct Kernel {
    config: MachineConfig,
    generation: AtomicU64,
    clock: AtomicU64,
    next_transaction: AtomicU64,
    ram: Ram,
    pub(crate) memory: Locked<Memory>,
    pub(crate) swiotlb: Locked<Option<Pool>>,
    pub(crate) devices: Locked<Vec<Arc<DeviceState>>>,
    io: Locked<Option<Arc<dyn IoSpace>>>,
    irqs: IrqTable,
    timers: Timers,
    registry: Locked<Vec<Live>>,
    findings: Locked<Vec<Finding>>,
    log: KernelLog,
    trace: Recorder,
}

impl Kernel {
    fn new(config: MachineConfig) -> Result<Self, MachineError> {
        if !(1..=MAX_CPUS).contains(&config.cpus) {
            return Err(MachineError::Cpus(config.cpus));
        }
        let ram = Ram::new(config.ram, config.low)?;
        let pool = Self::bounce_pool(&config, &ram)?;
        let mut ranges = vec![PhysAddr::new(0)..PhysAddr::new(ram.low())];
        if ram.end() > HIGH_START {
            ranges.push(PhysAddr::new(HIGH_START)..PhysAddr::new(ram.end()));
        }
        let reserved = pool.as_ref().map(|pool| pool.base()..PhysAddr::new(ram.low()));
        let zones = Zones::new(Layout::new(&ranges, reserved.as_slice())?);
        let kmalloc = Kmalloc::new(config.cpus);
        Ok(Self {
            config,
            generation: AtomicU64::new(0),
            clock: AtomicU64::new(0),
            next_transaction: AtomicU64::new(1),
            ram,
            memory: Locked::new(Memory { zones, kmalloc }),
            swiotlb: Locked::new(pool),
            devices: Locked::default(),
            io: Locked::default(),
            irqs: IrqTable::default(),
            timers: Timers::default(),
            registry: Locked::default(),
            findings: Locked::default(),
            log: KernelLog::default(),
            trace: Recorder::default(),
        })
    }

    /// The pool at the top of low RAM. On x86 it is set up only where some RAM is out of a 32-bit device's reach.
    fn bounce_pool(config: &MachineConfig, ram: &Ram) -> Result<Option<Pool>, MachineError> {
        if config.swiotlb == 0 || ram.end() <= HIGH_START {
            return Ok(None);
        }
        let bytes = Geometry::of(config.swiotlb, config.cpus)?.bytes().next_multiple_of(PAGE_SIZE);
        let base = ram.low().checked_sub(bytes).filter(|&base| base > 0);
        let base = base.ok_or(MachineError::PoolTooLarge { pool: bytes, low: ram.low() })?;
        Ok(Some(Pool::new(PhysAddr::new(base), config.swiotlb, config.cpus)?))
    }

    /// What the machine is made of.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Its RAM.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Its interrupt lines.
    pub fn irqs(&self) -> &IrqTable {
        &self.irqs
    }

    /// Its timers.
    pub fn timers(&self) -> &Timers {
        &self.timers
    }

    /// Its event records.
    pub fn trace(&self) -> &Recorder {
        &self.trace
    }

    /// What the kernel printed, rate-limited as Linux's is.
    pub fn log(&self) -> &KernelLog {
        &self.log
    }

    /// The world's nanoseconds, for what has no CPU (port, ledger).
    pub fn clock(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    /// Sets the clock; only the world does.
    pub fn set_clock(&self, now: u64) {
        self.clock.store(now, Ordering::Relaxed);
    }

    /// The next DMA transaction's number.
    pub(crate) fn next_transaction(&self) -> u64 {
        self.next_transaction.fetch_add(1, Ordering::Relaxed)
    }

    /// Joins the physical address space of device registers; the wire does this once.
    pub fn set_io_space(&self, io: Arc<dyn IoSpace>) {
        *self.io.lock() = Some(io);
    }

    pub(crate) fn io_space(&self) -> Option<Arc<dyn IoSpace>> {
        self.io.lock().clone()
    }

    /// Reports a finding, by the CPU that runs on this thread.
    pub fn report(&self, finding: Finding) {
        let transaction = finding.kind.transaction();
        self.report_for(finding, crate::cpu::current(), transaction);
    }

    /// Reports a finding about a DMA transaction (0 = none), by whoever saw it.
    pub fn report_for(&self, finding: Finding, who: Producer, transaction: u64) {
        let (ts, addr) = (finding.at, finding.kind.address());
        let number = {
            let mut findings = self.findings.lock();
            findings.push(finding);
            u32::try_from(findings.len()).unwrap_or(u32::MAX)
        };
        self.trace.finding(who, Record { ts, addr, len: number, kind: Kind::Finding, dev: 0, tag: transaction });
    }

    /// The finding of a number, counted from 1.
    pub fn finding(&self, number: usize) -> Option<Finding> {
        self.findings.lock().get(number.checked_sub(1)?).cloned()
    }

    /// Every finding so far, in order.
    pub fn findings(&self) -> Vec<Finding> {
        self.findings.lock().clone()
    }

    /// Books a resource that has no table of its own, for the leak check.
    pub fn register(&self, resource: Resource, at: PhysAddr, bytes: u64, owner: Owner) -> u64 {
        let mut registry = self.registry.lock();
        let id = registry.last().map_or(1, |live| live.id + 1);
        registry.push(Live { id, resource, at, bytes, owner });
        id
    }

    /// Takes a booked resource off the books; an unknown number is ignored.
    pub fn unregister(&self, id: u64) {
        self.registry.lock().retain(|live| live.id != id);
    }

    pub(crate) fn registered(&self) -> Vec<Live> {
        self.registry.lock().clone()
    }

    /// `/proc/buddyinfo`.
    pub fn buddyinfo(&self) -> String {
        self.memory.lock().zones.buddyinfo()
    }

    /// Slots of the bounce pool in use, and the most that ever were.
    pub fn swiotlb_usage(&self) -> (u32, u32) {
        self.swiotlb.lock().as_ref().map_or((0, 0), |pool| {
            let stats = pool.stats();
            (stats.used, stats.high_water)
        })
    }

    /// Checks every invariant of every allocator; `Err` carries the first that is broken.
    ///
    /// # Errors
    /// The broken invariant, in words.
    pub fn validate(&self) -> Result<(), crate::stats::Broken> {
        crate::stats::validate(self)
    }

    /// Back to the state of a fresh machine, touching only what was touched. Returns the pages cleared.
    fn reset(&self) -> Result<u64, RamError> {
        // Whoever still holds a handle must see it dead before the tables go.
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.devices.lock().clear();
        *self.io.lock() = None;
        self.irqs.reset();
        self.timers.reset();
        self.registry.lock().clear();
        self.findings.lock().clear();
        self.log.reset();
        self.trace.reset();
        self.clock.store(0, Ordering::Relaxed);
        self.next_transaction.store(1, Ordering::Relaxed);
        {
            let mut memory = self.memory.lock();
            let Memory { zones, kmalloc } = &mut *memory;
            zones.reset();
            kmalloc.reset();
        }
        if let Some(pool) = self.swiotlb.lock().as_mut() {
            pool.reset();
        }
        self.ram.reset()
    }
}

/// A handle to a kernel, dead once its machine was recycled.
#[derive(Clone, Copy)]
pub struct KernelRef {
    kernel: &'static Kernel,
    generation: u64,
}

impl KernelRef {
    /// The kernel, or `None` if its machine was recycled since.
    pub fn get(self) -> Option<&'static Kernel> {
        (self.kernel.generation.load(Ordering::Relaxed) == self.generation).then_some(self.kernel)
    }

    /// The kernel, whatever its generation: for a CPU, which can't outlive its machine's loan.
    pub(crate) fn get_unchecked(self) -> &'static Kernel {
        self.kernel
    }
}

static POOL: Mutex<Vec<&'static Kernel>> = Mutex::new(Vec::new());

/// The loan of a machine; given back and reset when dropped.
pub struct Machine {
    kernel: &'static Kernel,
}

impl Machine {
    /// A machine in its fresh state: a recycled one if there is one of this kind, else a new one.
    ///
    /// # Errors
    /// [`MachineError`] names what can't be.
    pub fn acquire(config: MachineConfig) -> Result<Self, MachineError> {
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        let found = pool.iter().position(|kernel| kernel.config == config);
        let kernel = match found {
            Some(index) => pool.swap_remove(index),
            // Leaked on purpose: handles are `&'static` plus a generation, and the pool reuses it for ever.
            None => Box::leak(Box::new(Kernel::new(config)?)),
        };
        Ok(Self { kernel })
    }

    /// The kernel on it.
    pub fn kernel(&self) -> &'static Kernel {
        self.kernel
    }

    /// The handle that a world's CPUs get.
    pub fn kernel_ref(&self) -> KernelRef {
        KernelRef { kernel: self.kernel, generation: self.kernel.generation.load(Ordering::Relaxed) }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A machine whose RAM can't be cleared is never lent again.
        if self.kernel.reset().is_ok() {
            POOL.lock().unwrap_or_else(PoisonError::into_inner).push(self.kernel);
        }
    }
}
