//! What a run showed: plain numbers and texts, ready to be printed or compared.
//!
//! Neighbours: `lab` fills it, `expect` judges it, `render` prints it. No wall clock and no host address is in it: the
//! same scenario and seed give the same result, byte for byte; in threads, the same data and verdict.

use lowzone_guest_mem::fault::{FaultAttr, Tally};
use lowzone_guest_mem::kernel::Kernel;
use lowzone_guest_mem::mempool::PoolUse;
use lowzone_guest_mem::site::Owner;
use lowzone_guest_mem::stats::{self, LeakSite};
use serde::Serialize;

use crate::bill::Bill;
use crate::lab::Slot;
use crate::spec::{CanaryState, Scenario};
use crate::wire::WireKind;
use crate::world::WorldKind;

mod refusal;

pub use refusal::{RefusalRow, SlotsRow, ZoneRow};

/// The machine, in numbers.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct MachineRow {
    /// Bytes of RAM.
    pub ram: u64,
    /// Of them, below 4 GiB.
    pub low: u64,
    /// The kernel's architecture.
    pub arch: &'static str,
    /// CPUs.
    pub cpus: u32,
    /// Bytes of the bounce pool, as asked for.
    pub swiotlb: u64,
}

/// Where a piece of coherent memory of a queue lay.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct RingRow {
    /// The device.
    pub device: String,
    /// The queue.
    pub queue: u16,
    /// What it held.
    pub what: String,
    /// Guest-physical address.
    pub phys: u64,
    /// Bytes.
    pub bytes: u64,
    /// The zone.
    pub zone: String,
}

/// One `io` step.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct IoRow {
    /// Its label.
    pub label: String,
    /// Where its buffers came from.
    pub memory: String,
    /// The zones that they really lay in.
    pub zones: Vec<String>,
    /// Requests completed.
    pub requests: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Bytes moved, both ways.
    pub bytes: u64,
    /// Streaming mappings made.
    pub maps: u64,
    /// Of them, bounced.
    pub bounces: u64,
    /// Bytes that the bounce pool copied, both ways.
    pub bounced_bytes: u64,
    /// Slots that the bounced mappings took, added up.
    pub slots: u64,
    /// The most pages that buffers held at once.
    pub pages_held: u64,
    /// Submissions that had to be tried again: no ring or bounce room.
    pub retries: u64,
    /// SHA-256 of what was read back; empty if it was compared as bytes only.
    pub sha256: String,
    /// Reads that went well and gave other bytes than were written.
    pub mismatched: u64,
    /// Requests whose data was compared.
    pub compared: u64,
    /// Whether every byte read was the byte written; nothing read is nothing verified.
    pub verified: bool,
}

/// One `copy` step.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct CopyRow {
    /// The device read.
    pub from: String,
    /// The device written and read back.
    pub to: String,
    /// Bytes copied.
    pub bytes: u64,
    /// Requests, all three passes together.
    pub requests: u64,
    /// SHA-256 of the source, read past the device if it is a file.
    pub source: String,
    /// SHA-256 of the data on its way.
    pub read: String,
    /// SHA-256 of what was read back from the copy.
    pub copy: String,
}

/// One `clear` step.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct ClearRow {
    /// Its label.
    pub label: String,
    /// How blocks were cleared.
    pub how: String,
    /// Bytes written before and read after, in all.
    pub bytes: u64,
    /// Bytes cleared.
    pub cleared: u64,
    /// Requests that cleared them.
    pub requests: u64,
    /// Bytes that the device was handed for that.
    pub told: u64,
    /// Streaming mappings made for that.
    pub maps: u64,
    /// Of them, bounced.
    pub bounces: u64,
    /// Bytes that the bounce pool copied for that.
    pub bounced_bytes: u64,
    /// Slots that the bounced mappings took, added up.
    pub slots: u64,
    /// Requests that failed, of all kinds.
    pub failed: u64,
    /// Blocks read back and compared.
    pub compared: u64,
    /// Of them, blocks that were not as they should be.
    pub mismatched: u64,
}

/// One `exercise` step.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct ExerciseRow {
    /// Its label.
    pub label: String,
    /// The device.
    pub device: String,
    /// Pieces of work that went well.
    pub done: u64,
    /// Pieces that failed, and the driver said so.
    pub failed: u64,
    /// Pieces that the driver said went well, with a wrong result.
    pub wrong: u64,
    /// Bytes of those that went well.
    pub bytes: u64,
}

/// One `dma` step.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct DmaRow {
    /// Its label.
    pub label: String,
    /// The device.
    pub device: String,
    /// Where the memory was asked for.
    pub memory: String,
    /// Which way the bytes went.
    pub dir: String,
    /// The streaming mask that the driver had promised.
    pub mask: u64,
    /// The coherent mask.
    pub coherent_mask: u64,
    /// The zone that the memory lay in; empty if there was none.
    pub zone: String,
    /// Its guest-physical address.
    pub phys: u64,
    /// The address that the device was told; `None` if it was told nothing.
    pub told: Option<u64>,
    /// Whether it went through the bounce pool.
    pub bounced: bool,
    /// Bytes moved, both ways.
    pub bytes: u64,
    /// Why it failed; empty if it did not.
    pub failed: String,
    /// Whether other bytes came back than were sent, and nobody said so.
    pub wrong: bool,
    /// Whether bytes came back and were compared.
    pub compared: bool,
}

/// One `packets` step: every packet is delivered, or lost for a cause.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct PacketsRow {
    /// Its label.
    pub label: String,
    /// The device.
    pub device: String,
    /// Packets that there were to be sent.
    pub offered: u64,
    /// Packets that came, and were compared.
    pub delivered: u64,
    /// Of these, not as they were sent, out of order, or twice.
    pub wrong: u64,
    /// Bytes of those that came.
    pub bytes: u64,
    /// Packets lost.
    pub lost: LostRow,
    /// Packets neither delivered nor lost: nobody knows where they are.
    pub missing: u64,
    /// The most mappings that were live at once when a tenth of the packets was done with.
    pub streaming_peak_warm: u64,
    /// The most mappings that were live at once, to the end.
    pub streaming_peak: u64,
    /// Polls of the receive queue.
    pub polls: u64,
    /// Times that buffers could not be posted from a poll.
    pub refill_failed: u64,
    /// Times that the work posted them.
    pub refills: u64,
    /// The longest time without a packet, in nanoseconds of the world's clock.
    pub longest_wait: u64,
}

/// Packets lost, by cause.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub struct LostRow {
    /// No memory for its bytes.
    pub no_memory: u64,
    /// The driver had no memory for its header.
    pub no_header: u64,
    /// The driver could not map it.
    pub no_mapping: u64,
    /// The device found no buffer for it.
    pub no_buffer: u64,
    /// The buffer was too small.
    pub too_small: u64,
    /// The device took it for no packet.
    pub no_packet: u64,
    /// The device was refused memory.
    pub fault: u64,
    /// The driver got less than a packet back, which is none of the device's faults.
    pub short: u64,
    /// Too many waited to be taken.
    pub backlog: u64,
}

impl LostRow {
    /// All of them.
    pub fn total(&self) -> u64 {
        let by_driver = self.no_memory + self.no_header + self.no_mapping + self.short + self.backlog;
        by_driver + self.no_buffer + self.too_small + self.no_packet + self.fault
    }
}

/// What one mempool cost and gave.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct MempoolRow {
    /// What it takes its elements from.
    pub kind: &'static str,
    /// Who made it.
    pub owner: String,
    /// Elements to keep in reserve.
    pub min_nr: u64,
    /// Bytes of one element.
    pub element: u64,
    /// Elements handed out.
    pub allocs: u64,
    /// Of these, from the reserve.
    pub dips: u64,
    /// Requests that got NULL.
    pub refused: u64,
    /// Sleeps for an element.
    pub waits: u64,
    /// Bytes of the reserve that were never needed.
    pub idle_bytes: u64,
    /// Whether it was worth its memory.
    pub verdict: String,
}

/// One CPU's part in a `story` step.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct StoryRow {
    /// The story.
    pub story: String,
    /// The mistake that it was to make.
    pub mistake: Option<String>,
    /// What was seen, in order.
    pub facts: Vec<FactRow>,
}

/// One fact of a story.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct FactRow {
    /// What was done or looked at.
    pub what: String,
    /// What must be seen, if that is known.
    pub expected: Option<String>,
    /// What was seen.
    pub seen: String,
}

/// One device's totals.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct DeviceRow {
    /// Its name in the scenario.
    pub name: String,
    /// Its place on the bus.
    pub at: String,
    /// Requests that it completed.
    pub requests: u64,
    /// Of them, not OK.
    pub failed: u64,
    /// Bytes that it moved, both ways.
    pub bytes: u64,
    /// Interrupts that it raised.
    pub interrupts: u64,
    /// DMA mappings made for it: streaming, then coherent.
    pub maps: u64,
    /// Coherent allocations made for it.
    pub coherent: u64,
    /// Mappings that were refused.
    pub map_failures: u64,
    /// Mappings that bounced.
    pub bounces: u64,
    /// Bytes that the bounce pool copied for it.
    pub bounced_bytes: u64,
}

/// One queue's totals, as the driver saw them.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct QueueRow {
    /// The device.
    pub device: String,
    /// The queue.
    pub queue: u16,
    /// Requests completed.
    pub requests: u64,
    /// Of them, out of order.
    pub out_of_order: u64,
    /// The most in flight.
    pub peak: u16,
    /// Interrupts that found something.
    pub interrupts: u64,
    /// Doorbells rung.
    pub kicks: u64,
    /// Chains in the ring itself.
    pub direct: u64,
    /// Chains in indirect tables.
    pub indirect: u64,
}

/// What one injector did.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct FaultRow {
    /// The class whose requests it decided.
    pub class: String,
    /// Requests of the class.
    pub asked: u64,
    /// Of them, those that mask, order and cache let through, so that an attribute decided.
    pub eligible: u64,
    /// Of them, those that were made to fail.
    pub failed: u64,
}

impl FaultRow {
    pub(crate) fn of(attr: &FaultAttr) -> Self {
        let Tally { requests, eligible, forced } = attr.tally();
        Self { class: attr.class().name().to_owned(), asked: requests, eligible, failed: forced }
    }
}

/// One finding.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct FindingRow {
    /// Its name, as scenario files expect it.
    pub name: String,
    /// All of it: text, call sites, what Linux would do.
    pub text: String,
}

/// Everything that a run showed.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct RunResult {
    /// The scenario's name.
    pub scenario: String,
    /// Its story.
    pub story: String,
    /// The world's seed.
    pub seed: u64,
    /// Which world: `lockstep` or `threads`.
    pub world: String,
    /// Whose the devices were, if not the lab's own in this process: `qemu`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub wire: String,
    /// The machine.
    pub machine: MachineRow,
    /// Where rings lay.
    pub rings: Vec<RingRow>,
    /// The `io` steps.
    pub io: Vec<IoRow>,
    /// The `copy` steps.
    pub copies: Vec<CopyRow>,
    /// The `clear` steps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clears: Vec<ClearRow>,
    /// The `exercise` steps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exercises: Vec<ExerciseRow>,
    /// The `dma` steps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dma: Vec<DmaRow>,
    /// The `packets` steps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub packets: Vec<PacketsRow>,
    /// The `story` steps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stories: Vec<StoryRow>,
    /// Mempools, in the order they were made.
    pub mempools: Vec<MempoolRow>,
    /// The devices.
    pub devices: Vec<DeviceRow>,
    /// The queues.
    pub queues: Vec<QueueRow>,
    /// The most requests in flight at once, on one device.
    pub peak_in_flight: u32,
    /// The most bounce slots in use at once.
    pub swiotlb_peak: u32,
    /// Raw requests, and io requests, that failed.
    pub failed_requests: u64,
    /// What became of the canary.
    pub canary: Option<CanaryState>,
    /// What was made to fail.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FaultRow>,
    /// What was found.
    pub findings: Vec<FindingRow>,
    /// What was left over.
    pub leaks: Vec<String>,
    /// The same by call site, the most bytes first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub leak_sites: Vec<LeakSiteRow>,
    /// The kernel's log.
    pub log: Vec<String>,
    /// Lines that the log's rate limit kept back.
    pub log_suppressed: u64,
    /// What was refused for want of memory, zone by zone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<RefusalRow>,
    /// Refusals beyond those that are kept.
    #[serde(skip_serializing_if = "is_zero")]
    pub refusals_more: u64,
    /// What its DMA cost; none if nobody asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bill: Option<Bill>,
    /// Whether an image changed in size while it was in use.
    pub input_changed: bool,
    /// What a step could not do.
    pub errors: Vec<String>,
    /// The errnos of failed probes.
    pub probe_errors: Vec<i32>,
    /// DMA transactions: mappings and coherent allocations.
    pub transactions: u64,
    /// Events recorded.
    pub events: u64,
    /// Nanoseconds of the world's clock: virtual in lockstep, real in threads.
    pub virtual_ns: u64,
    /// Whether it was stopped early.
    pub interrupted: bool,
    /// The digest of all events, 16 hexadecimal digits; empty in threads, where it would mean nothing.
    pub digest: String,
}

/// What one call site has left behind.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LeakSiteRow {
    /// What they are.
    pub resource: String,
    /// The call site.
    pub owner: String,
    /// How many.
    pub count: u64,
    /// Their bytes together.
    pub bytes: u64,
    /// Where the first of them stands among the leaks.
    #[serde(skip)]
    pub first: usize,
}

impl LeakSiteRow {
    fn of(site: &LeakSite) -> Self {
        let LeakSite { resource, owner, count, bytes, first } = site;
        Self { resource: resource.to_string(), owner: owner.to_string(), count: *count, bytes: *bytes, first: *first }
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl RunResult {
    pub(crate) fn new(name: &str, scenario: &Scenario, seed: u64, place: (WorldKind, &WireKind)) -> Self {
        let (world, wire) = place;
        let machine = &scenario.machine;
        Self {
            scenario: name.to_owned(),
            story: scenario.story.clone(),
            seed,
            world: world.name().to_owned(),
            wire: if *wire == WireKind::InProc { String::new() } else { wire.to_string() },
            machine: MachineRow {
                ram: machine.ram.bytes(),
                low: machine.low_bytes(),
                arch: machine.arch.name(),
                cpus: machine.cpus,
                swiotlb: machine.swiotlb.bytes(),
            },
            ..Self::default()
        }
    }

    pub(crate) fn add_device(&mut self, slot: &Slot) {
        let totals = slot.counters.as_ref().map(|counters| counters.totals()).unwrap_or_default();
        // A peer's device counts for itself: what the driver saw completed must do.
        let peer = !self.wire.is_empty();
        let queues = || self.queues.iter().filter(|queue| queue.device == slot.name);
        let completed = queues().map(|queue| queue.requests).sum();
        let interrupts = queues().map(|queue| queue.interrupts).sum();
        let dma = slot.dma.counters();
        self.transactions += dma.maps + dma.coherent;
        self.devices.push(DeviceRow {
            name: slot.name.clone(),
            at: slot.at.to_string(),
            requests: if peer { completed } else { totals.requests },
            failed: totals.failed,
            bytes: totals.bytes_read + totals.bytes_written,
            interrupts: if peer { interrupts } else { totals.interrupts },
            maps: dma.maps,
            coherent: dma.coherent,
            map_failures: dma.map_failures,
            bounces: dma.bounces,
            bounced_bytes: dma.bounced_bytes,
        });
    }

    /// Takes what the kernel knows once the steps are over.
    pub(crate) fn conclude(&mut self, kernel: &Kernel, virtual_ns: u64, interrupted: bool) {
        kernel.inspect_slabs(Owner::default());
        self.mempools = kernel.mempools().iter().map(mempool).collect();
        let leaks = stats::leaks(kernel);
        self.leaks = leaks.iter().map(|leak| leak.finding(virtual_ns, Owner::default()).to_string()).collect();
        self.leak_sites = stats::by_site(&leaks).iter().map(LeakSiteRow::of).collect();
        let row = |finding: &lowzone_guest_mem::finding::Finding| FindingRow {
            name: finding.kind.name().to_owned(),
            text: finding.to_string(),
        };
        self.findings = kernel.findings().iter().map(row).collect();
        self.log.splice(0..0, kernel.log().lines().into_iter().map(|line| line.text));
        self.log_suppressed = kernel.log().suppressed();
        let (refusals, more) = kernel.refusals();
        self.refusals = refusals.iter().map(RefusalRow::of).collect();
        self.refusals_more = more;
        self.swiotlb_peak = kernel.swiotlb_usage().1;
        self.events = kernel.trace().events();
        if self.world == WorldKind::Lockstep.name() && kernel.trace().whole() {
            self.digest = format!("{:016x}", kernel.trace().digest());
        }
        self.io.iter_mut().for_each(|row| row.verified &= row.compared > 0);
        self.virtual_ns = virtual_ns;
        self.interrupted = interrupted;
    }

    /// Bytes moved by all steps.
    pub fn bytes(&self) -> u64 {
        let exercises = self.exercises.iter().map(|row| row.bytes).sum::<u64>();
        self.io.iter().map(|row| row.bytes).sum::<u64>()
            + exercises
            + self.clears.iter().map(|row| row.bytes).sum::<u64>()
            + self.dma.iter().map(|row| row.bytes).sum::<u64>()
            + self.packets.iter().map(|row| row.bytes).sum::<u64>()
            + self.copies.iter().map(|row| row.bytes * 3).sum::<u64>()
    }
}

fn mempool(pool: &PoolUse) -> MempoolRow {
    MempoolRow {
        kind: pool.kind,
        owner: pool.created.to_string(),
        min_nr: pool.min_nr,
        element: pool.element,
        allocs: pool.allocs,
        dips: pool.dips,
        refused: pool.refused,
        waits: pool.waits,
        idle_bytes: pool.idle_bytes(),
        verdict: pool.verdict().to_string(),
    }
}
