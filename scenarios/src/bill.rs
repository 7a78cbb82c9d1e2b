//! The DMA bill of a run: what bouncing, rounding and coherent memory cost, by device and by mapping site, and what a
//! wider mask would save.
//!
//! It is read off the run's records while they are made, so a run without `--bill` pays nothing, and one with it none of
//! the memory of a trace. A device's own counters check it: [`DeviceBill::whole`]. Neighbours: `book`, which reads;
//! `show`, which prints; `lab`, which joins the book to a run. Left out: time, which `bench dma` measures.

mod book;
mod show;
#[cfg(test)]
mod tests;

use serde::Serialize;

pub(crate) use book::SharedBook;
pub(crate) use show::print;

/// What a run's DMA cost.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Bill {
    /// The bounce pool; none on a machine without one.
    pub pool: Option<PoolRow>,
    /// Whether every streaming mapping bounced, whatever its mask (swiotlb=force).
    pub forced: bool,
    /// Each device, in the order of their slots.
    pub devices: Vec<DeviceBill>,
}

/// The bounce pool, all devices together.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub struct PoolRow {
    /// Slots.
    pub slots: u32,
    /// Bytes of each.
    pub slot_bytes: u64,
    /// The most that were ever taken.
    pub high_water: u32,
}

/// What one device, or one of its mapping sites, cost.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Cost {
    /// Streaming mappings.
    pub maps: u64,
    /// Mappings refused, whatever for; of a list that fails each entry up to the one that did.
    pub refused: u64,
    /// Of the mappings, bounced.
    pub bounces: u64,
    /// Bytes of the bounced ones.
    pub bounced: u64,
    /// Bytes copied into the pool: each bounced mapping, and syncs for the device.
    pub copied_in: u64,
    /// Bytes copied out of it: unmaps, and syncs for the CPU.
    pub copied_back: u64,
    /// Slots taken, added up.
    pub slots: u64,
    /// The most taken at once.
    pub slots_at_once: u64,
    /// Bytes of these slots that held nothing.
    pub slot_waste: u64,
    /// Objects of kmalloc that were mapped, each counted once.
    pub objects: u64,
    /// Bytes by which their class is larger than what was asked for.
    pub object_waste: u64,
    /// Coherent allocations.
    pub coherent: u64,
    /// Bytes asked for.
    pub coherent_bytes: u64,
    /// Pages they took, added up.
    pub coherent_pages: u64,
    /// The most at once.
    pub coherent_pages_at_once: u64,
    /// Bytes of these pages that nobody asked for.
    pub coherent_waste: u64,
}

/// One device.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct DeviceBill {
    /// Its name in the scenario.
    pub device: String,
    /// All its sites together.
    #[serde(flatten)]
    pub cost: Cost,
    /// Bytes copied for no mapping that was made: entries of a list that failed, syncs of what is not mapped.
    pub unbooked_bytes: u64,
    /// Slots taken likewise.
    pub unbooked_slots: u64,
    /// Whether the records have all that the device's counters have.
    pub whole: bool,
    /// What a wider mask would save.
    pub wider: Option<Wider>,
    /// Each place that mapped or allocated, the dearest first.
    pub sites: Vec<SiteBill>,
}

/// One mapping site of a device.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct SiteBill {
    /// The source line and the spans that were open.
    pub site: String,
    /// What it cost.
    #[serde(flatten)]
    pub cost: Cost,
    /// What a wider mask would save.
    pub wider: Option<Wider>,
}

/// What a mask that reaches every buffer would save of what bounced.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Wider {
    /// Its bits.
    pub bits: u32,
    /// Mappings that would not bounce.
    pub maps: u64,
    /// Bytes that would not be copied, both ways.
    pub bytes: u64,
    /// Slots that would not be taken.
    pub slots: u64,
}
