//! The kernel: RAM and one instance of every allocator over it, as a value.
//!
//! [`Kernel`] holds the tables; [`Machine`] is the loan of one, from a pool of recycled machines.
//!
//! Neighbours: everything in this crate hangs on it; worlds borrow one for a run. Left out: several kernels over one
//! RAM (kexec), hot-plug.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use crate::addr::{PAGE_SIZE, PhysAddr};
use crate::arch::{Arch, PAE_LIMIT};
use crate::dma::atomic::AtomicPools;
use crate::dma::device::DeviceState;
use crate::dma::ownership::Watched;
use crate::dma::swiotlb::{Geometry, Pool};
use crate::env::Key;
use crate::finding::{Finding, Resource};
use crate::iomem::posted::Posted;
use crate::iomem::region::Regions;
use crate::iospace::IoSpace;
use crate::irq::IrqTable;
use crate::klog::KernelLog;
use crate::kmap::{Kmaps, SLOTS, SLOTS_PAE};
use crate::lock::{Holder, Locked};
use crate::mempool::{PoolBook, PoolUse};
use crate::page::tell_bad_pages;
use crate::pcp::{PcpSettings, PerCpuPages};
use crate::percpu::PerCpuArea;
use crate::ram::{HIGH_START, Ram, RamError};
use crate::reclaim::Shrinkers;
use crate::refusal::{Refusals, Refused};
use crate::site::Owner;
use crate::slab::{CacheStats, Front, SLABINFO_HEAD, SlabCaches};
use crate::softirq::Softirqs;
use crate::timer::Timers;
use crate::trace::{Kind, Producer, Record, Recorder};
use crate::vmalloc::{Areas, drain_deferred};
use crate::weak::Weak as WeakMemory;
use crate::workqueue::Queues;
use crate::zone::{Allocated, Layout, ZoneKind, ZoneStats, Zones};

mod machine;
mod sanitize;
#[cfg(test)]
mod tests;

pub use machine::{Boot, KernelRef, MAX_CPUS, Machine, MachineConfig, MachineError};
pub use sanitize::Sanitize;

/// The page allocator and the slab caches that live on it, under one lock: a slab refill takes pages.
pub(crate) struct Memory {
    pub(crate) zones: Zones,
    pub(crate) slabs: SlabCaches,
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
    condemned: AtomicBool,
    next_transaction: AtomicU64,
    ram: Ram,
    pub(crate) memory: Locked<Memory>,
    /// The slabs, of which most calls need no more.
    pub(crate) slabs: Arc<Front>,
    pub(crate) pcp: PerCpuPages,
    pub(crate) vmalloc: Locked<Areas>,
    pub(crate) shrinkers: Shrinkers,
    pub(crate) refusals: Refusals,
    pub(crate) swiotlb: Locked<Option<Pool>>,
    pub(crate) watched: Watched,
    pub(crate) atomic_pools: Locked<AtomicPools>,
    pub(crate) devices: Locked<Vec<Arc<DeviceState>>>,
    io: Locked<Option<Arc<dyn IoSpace>>>,
    pub(crate) regions: Locked<Regions>,
    pub(crate) posted: Posted,
    weak: Option<Box<WeakMemory>>,
    irqs: IrqTable,
    timers: Timers,
    softirqs: Softirqs,
    workqueues: Queues,
    next_task: AtomicU32,
    /// The books of every mempool there was.
    pub(crate) mempools: Locked<Vec<Arc<PoolBook>>>,
    pub(crate) percpu: Locked<PerCpuArea>,
    pub(crate) kmaps: Locked<Kmaps>,
    pub(crate) kmap_waiters: Key,
    registry: Locked<Vec<Live>>,
    /// Every driver lock that was ever taken here.
    locks: Locked<Vec<Weak<Holder>>>,
    findings: Locked<Vec<Finding>>,
    log: KernelLog,
    trace: Recorder,
    /// Something waits for [`Kernel::run_chores`].
    chores: AtomicBool,
}

impl Kernel {
    fn new(config: MachineConfig) -> Result<Self, MachineError> {
        if !(1..=MAX_CPUS).contains(&config.cpus) {
            return Err(MachineError::Cpus(config.cpus));
        }
        let ram = Ram::new(config.ram, config.low)?;
        let ram = if config.coherent { ram } else { ram.non_coherent() };
        if config.arch == Arch::X86_32 && ram.end() > PAE_LIMIT {
            return Err(MachineError::BeyondPae { end: ram.end() });
        }
        let pool = Self::bounce_pool(&config, &ram)?;
        let mut ranges = vec![PhysAddr::new(0)..PhysAddr::new(ram.low())];
        if ram.end() > HIGH_START {
            ranges.push(PhysAddr::new(HIGH_START)..PhysAddr::new(ram.end()));
        }
        let mut reserved = config.boot.reserved().to_vec();
        let low = pool.as_ref().map_or(Self::pool_end(&config, &ram), |pool| pool.base().get());
        let atomic_pools = AtomicPools::of(&config, &ram, low);
        reserved.extend(atomic_pools.ranges());
        reserved.extend(pool.as_ref().map(|pool| pool.base()..PhysAddr::new(Self::pool_end(&config, &ram))));
        let zones = Zones::booted(Layout::new(&ranges, &reserved)?.on(config.arch), config.boot.late.into());
        let pcp = PerCpuPages::new(&zones, config.cpus, config.pcp);
        let slabs = SlabCaches::new(config.cpus, config.sanitize.slub_debug(), config.sanitize.quarantine());
        let kmap_slots = if ram.end() > HIGH_START { SLOTS_PAE } else { SLOTS };
        Ok(Self {
            config,
            generation: AtomicU64::new(0),
            clock: AtomicU64::new(0),
            condemned: AtomicBool::new(false),
            next_transaction: AtomicU64::new(1),
            ram,
            slabs: slabs.front(),
            memory: Locked::new(Memory { zones, slabs }),
            pcp,
            vmalloc: Locked::new(Areas::new(config.arch.vmalloc(), config.cpus)),
            shrinkers: Shrinkers::default(),
            refusals: Refusals::default(),
            swiotlb: Locked::new(pool),
            watched: Watched::default(),
            atomic_pools: Locked::new(atomic_pools),
            devices: Locked::default(),
            io: Locked::default(),
            regions: Locked::default(),
            posted: Posted::default(),
            weak: config.weak.then(|| Box::new(WeakMemory::new(config.cpus))),
            irqs: IrqTable::default(),
            timers: Timers::default(),
            softirqs: Softirqs::new(config.cpus),
            workqueues: Queues::default(),
            next_task: AtomicU32::new(1),
            mempools: Locked::default(),
            percpu: Locked::new(PerCpuArea::new(config.cpus)),
            kmaps: Locked::new(Kmaps::new(kmap_slots)),
            kmap_waiters: Key::fresh(),
            registry: Locked::default(),
            locks: Locked::default(),
            findings: Locked::default(),
            log: KernelLog::default(),
            trace: Recorder::default(),
            chores: AtomicBool::new(false),
        })
    }

    /// Where the bounce pool ends: it needs an address.
    fn pool_end(config: &MachineConfig, ram: &Ram) -> u64 {
        ram.low().min(config.arch.lowmem_end())
    }

    /// The pool at the top of low RAM. On x86 it is set up only where some RAM is out of a 32-bit device's reach or it
    /// is forced, and an IOMMU takes its place.
    fn bounce_pool(config: &MachineConfig, ram: &Ram) -> Result<Option<Pool>, MachineError> {
        let needed = config.swiotlb_force || ram.end() > HIGH_START;
        if config.swiotlb == 0 || config.iommu.is_some() || !needed {
            return Ok(None);
        }
        let bytes = Geometry::of(config.swiotlb, config.cpus)?.bytes().next_multiple_of(PAGE_SIZE);
        let low = Self::pool_end(config, ram);
        let base = low.checked_sub(bytes).filter(|&base| base > 0);
        let base = base.ok_or(MachineError::PoolTooLarge { pool: bytes, low })?;
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

    /// What is under way between CPUs and devices; `None` on a machine that orders it.
    #[inline]
    pub(crate) fn weak(&self) -> Option<&WeakMemory> {
        self.weak.as_deref()
    }

    /// Whether a register write may arrive later.
    pub(crate) fn posts_writes(&self) -> bool {
        self.config.posted_writes || self.config.weak
    }

    /// Delivers what is under way to a function's registers: a configuration access of it comes after.
    pub fn push_posted(&self, function: u64) {
        if self.posts_writes() {
            self.posted.push(self, function);
        }
    }

    /// Its interrupt lines.
    pub fn irqs(&self) -> &IrqTable {
        &self.irqs
    }

    /// Its timers.
    pub fn timers(&self) -> &Timers {
        &self.timers
    }

    pub(crate) fn softirqs(&self) -> &Softirqs {
        &self.softirqs
    }

    pub(crate) fn workqueues(&self) -> &Queues {
        &self.workqueues
    }

    /// The next task's number.
    pub(crate) fn next_task(&self) -> u32 {
        self.next_task.fetch_add(1, Ordering::Relaxed)
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

    /// Sets the clock unless it is later already, as it may be where several threads keep it.
    pub fn advance_clock(&self, now: u64) {
        self.clock.fetch_max(now, Ordering::Relaxed);
    }

    /// This machine is never lent again: a thread that can't be stopped goes on using it.
    pub fn condemn(&self) {
        self.condemned.store(true, Ordering::Relaxed);
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

    /// Takes the findings so far off the list, for a test that makes many.
    #[cfg(test)]
    pub(crate) fn take_findings(&self) -> Vec<Finding> {
        std::mem::take(&mut *self.findings.lock())
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

    /// The number of this life of the machine, from 1.
    pub(crate) fn life(&self) -> u64 {
        self.generation.load(Ordering::Relaxed) + 1
    }

    /// Tells the leak check of a driver's lock.
    pub(crate) fn book_lock(&self, holder: &Arc<Holder>) {
        let mut locks = self.locks.lock();
        if locks.len() == locks.capacity() {
            locks.retain(|lock| lock.strong_count() > 0);
        }
        locks.push(Arc::downgrade(holder));
    }

    /// The driver's locks that are held: by which CPU, since where.
    pub(crate) fn held_locks(&self) -> Vec<(u32, Owner)> {
        self.locks.lock().iter().filter_map(Weak::upgrade).filter_map(|lock| lock.held()).collect()
    }

    /// How each mempool was used, those that are gone included, in the order they were made.
    pub fn mempools(&self) -> Vec<PoolUse> {
        self.mempools.lock().iter().map(|book| book.usage()).collect()
    }

    pub(crate) fn registered(&self) -> Vec<Live> {
        self.registry.lock().clone()
    }

    /// `/proc/buddyinfo`.
    pub fn buddyinfo(&self) -> String {
        self.memory.lock().zones.buddyinfo()
    }

    /// `/proc/zoneinfo`.
    pub fn zoneinfo(&self) -> String {
        crate::zone::zoneinfo::zoneinfo(self)
    }

    /// The zone of an address, or `None` if nothing that is managed lies there.
    pub fn zone_of(&self, at: PhysAddr) -> Option<ZoneKind> {
        self.memory.lock().zones.zone_of(at.pfn())
    }

    /// The numbers of all zones (`/proc/zoneinfo`).
    pub fn zone_stats(&self) -> [ZoneStats; ZoneKind::ALL.len()] {
        self.memory.lock().zones.stats()
    }

    /// The zones that have memory, in the order in which a request that may use all of them asks (`build_zonelists`).
    pub fn zonelist(&self) -> Vec<ZoneKind> {
        self.zone_stats().iter().rev().filter(|zone| zone.managed > 0).map(|zone| zone.zone).collect()
    }

    /// A setting below `/proc/sys/vm`, as Linux prints it; `None` for one that means nothing here.
    pub fn sysctl_vm(&self, name: &str) -> Option<String> {
        self.pcp.shared().sysctl(name)
    }

    /// The allocated block that holds an address.
    pub fn page_at(&self, at: PhysAddr) -> Option<Allocated> {
        self.memory.lock().zones.lookup(at.pfn())
    }

    /// For each zone what a CPU's lists of it may hold, and the pages that all CPUs' lists hold.
    pub fn pcp_stats(&self) -> [(PcpSettings, u64); ZoneKind::ALL.len()] {
        let counts = self.pcp.counts();
        ZoneKind::ALL.map(|zone| (self.pcp.settings()[zone.index()], counts[zone.index()]))
    }

    /// Gives the pages on all CPUs' lists back to their zones (`drain_all_pages`).
    pub fn drain_all_pages(&self) {
        self.pcp.drain_all(&self.memory);
        tell_bad_pages(self, Owner::default());
    }

    /// `/proc/slabinfo`: caches without a slab are left out.
    pub fn slabinfo(&self) -> String {
        let there = self.slab_stats().into_iter().filter(|stats| stats.slabs > 0);
        there.fold(SLABINFO_HEAD.to_owned(), |text, stats| format!("{text}{stats}\n"))
    }

    /// The numbers of all slab caches: `kmalloc`'s, then drivers' in the order they were created.
    pub fn slab_stats(&self) -> Vec<CacheStats> {
        self.memory.lock().slabs.stats().collect()
    }

    /// The live object that holds a byte of memory.
    pub fn object_at(&self, phys: PhysAddr) -> Option<crate::slab::Object> {
        let memory = self.memory.lock();
        memory.slabs.lookup(&memory.zones, phys)
    }

    /// Looks at every byte that a sanitizer watches and lets all go that the quarantine holds (`slabinfo -v`); what was
    /// overwritten is reported. Nothing to do on a machine without sanitizers.
    pub fn inspect_slabs(&self, by: Owner) {
        crate::kmalloc::object::inspect(self, by);
    }

    /// How often an allocation woke background reclaim (`kswapd`), which has nothing to do here.
    pub fn kswapd_wakeups(&self) -> u64 {
        self.pcp.shared().kswapd_wakeups()
    }

    /// Each request that was refused for want of memory, oldest first, and how many more there were than are kept.
    pub fn refusals(&self) -> (Vec<Refused>, u64) {
        self.refusals.all()
    }

    /// The text of a `detail:refused` record in the trace.
    pub fn refusal_text(&self, number: u32) -> Option<String> {
        self.refusals.told(number)
    }

    /// Slots of the bounce pool in use, and the most that ever were.
    pub fn swiotlb_usage(&self) -> (u32, u32) {
        self.swiotlb.lock().as_ref().map_or((0, 0), |pool| {
            let stats = pool.stats();
            (stats.used, stats.high_water)
        })
    }

    /// Pages that the page allocator was given (`totalram_pages`).
    pub(crate) fn total_pages(&self) -> u64 {
        self.memory.lock().zones.stats().iter().map(|zone| zone.managed).sum()
    }

    /// Something was left to be done when a CPU next waits.
    pub(crate) fn has_chores(&self) {
        self.chores.store(true, Ordering::Relaxed);
    }

    /// Does what is done while time passes for a CPU: a worker's frees, and its writes on their way to devices.
    pub(crate) fn run_chores(&self, cpu: u32) {
        if self.chores.load(Ordering::Relaxed) && self.chores.swap(false, Ordering::Relaxed) {
            drain_deferred(self);
        }
        if self.config.posted_writes {
            self.posted.settle(self, cpu);
        }
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
        self.posted.reset();
        if let Some(weak) = &self.weak {
            weak.reset();
        }
        self.regions.lock().reset();
        self.irqs.reset();
        self.timers.reset();
        self.softirqs.reset();
        self.workqueues.reset();
        self.next_task.store(1, Ordering::Relaxed);
        self.mempools.lock().clear();
        self.percpu.lock().reset();
        self.kmaps.lock().reset();
        self.registry.lock().clear();
        self.locks.lock().clear();
        self.findings.lock().clear();
        self.log.reset();
        self.trace.reset();
        self.clock.store(0, Ordering::Relaxed);
        self.next_transaction.store(1, Ordering::Relaxed);
        {
            let mut memory = self.memory.lock();
            let Memory { zones, slabs } = &mut *memory;
            zones.reset();
            slabs.reset();
        }
        self.pcp.reset();
        self.vmalloc.lock().reset();
        self.chores.store(false, Ordering::Relaxed);
        self.shrinkers.reset();
        self.refusals.reset();
        self.watched.reset();
        if let Some(pool) = self.swiotlb.lock().as_mut() {
            pool.reset();
        }
        self.atomic_pools.lock().reset();
        self.ram.reset()
    }
}
