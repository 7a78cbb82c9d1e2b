//! What is live between devices and RAM, as rows: mappings, the bounce pool, IOMMU domains; as text and as JSON.
//!
//! Neighbours: the parent, which says when to look; `guest_mem::dma`, whose books are copied. Left out: what was mapped
//! and is no more (`trace tx`).

use std::io::{self, Write};

use comfy_table::{CellAlignment, Table};
use lowzone_guest_mem::dma::DmaDevice;
use lowzone_guest_mem::dma::iommu::IommuMode;
use lowzone_guest_mem::dma::swiotlb::{Pool, SLOT_SIZE};
use lowzone_guest_mem::kernel::Kernel;
use serde::Serialize;

use crate::render::bytes;

/// The live mappings of one device.
#[derive(Serialize)]
pub(super) struct Mappings {
    device: String,
    mask: u64,
    coherent_mask: u64,
    live: Vec<Mapped>,
}

/// One live mapping.
#[derive(Serialize)]
struct Mapped {
    transaction: u64,
    dma: u64,
    phys: u64,
    buffer: u64,
    bytes: u64,
    direction: String,
    kind: String,
    bounced: bool,
    mapped_by: String,
    allocated_by: String,
}

impl Mappings {
    pub(super) fn of(name: &str, device: &DmaDevice) -> Self {
        let live = device.live_mappings().into_iter().map(|mapping| Mapped {
            transaction: mapping.id,
            dma: mapping.dma.get(),
            phys: mapping.phys.get(),
            buffer: mapping.orig.get(),
            bytes: mapping.len,
            direction: mapping.dir.to_string(),
            kind: mapping.kind.to_string(),
            bounced: mapping.bounced,
            mapped_by: mapping.map_owner.to_string(),
            allocated_by: mapping.alloc_owner.to_string(),
        });
        let live = live.collect();
        Self { device: name.to_owned(), mask: device.mask(), coherent_mask: device.coherent_mask(), live }
    }

    pub(super) fn text(&self, out: &mut dyn Write) -> io::Result<()> {
        let (device, live) = (&self.device, self.live.len());
        let bounced = self.live.iter().filter(|mapping| mapping.bounced).count();
        writeln!(
            out,
            "{device}: {live} live, {bounced} of them bounced; mask {:#x}, coherent {:#x}",
            self.mask, self.coherent_mask
        )?;
        if self.live.is_empty() {
            return Ok(());
        }
        let header = ["id", "address", "bytes", "direction", "kind", "lies at", "bounced from", "mapped", "allocated"];
        let mut t = table(&header, &[0, 1, 2, 5]);
        for m in &self.live {
            t.add_row([
                m.transaction.to_string(),
                hex(m.dma),
                m.bytes.to_string(),
                m.direction.clone(),
                m.kind.clone(),
                hex(m.phys),
                if m.bounced { hex(m.buffer) } else { "-".to_owned() },
                m.mapped_by.clone(),
                m.allocated_by.clone(),
            ]);
        }
        print(out, &t)
    }
}

/// The bounce pool.
#[derive(Serialize)]
pub(super) struct Bounce {
    base: u64,
    bytes: u64,
    slot_bytes: u64,
    slots: u32,
    used: u32,
    high_water: u32,
    areas: Vec<Area>,
    taken: Vec<Taken>,
}

/// One area of the pool, which is one CPU's first choice.
#[derive(Serialize)]
struct Area {
    slots: u32,
    used: u32,
    next: u32,
    /// The longest first.
    free_runs: Vec<FreeRuns>,
}

/// Runs of free slots of one length.
#[derive(Serialize)]
struct FreeRuns {
    slots: u32,
    runs: u32,
}

/// What one mapping holds of the pool.
#[derive(Serialize)]
struct Taken {
    slot: u32,
    slots: u32,
    phys: u64,
    buffer: u64,
    bytes: u64,
}

impl Bounce {
    pub(super) fn of(kernel: &Kernel) -> Option<Self> {
        kernel.swiotlb_view().as_ref().map(Self::of_pool)
    }

    fn of_pool(pool: &Pool) -> Self {
        let stats = pool.stats();
        let runs = pool.free_runs().into_iter().map(|runs| {
            let by_length = runs.into_iter().rev();
            by_length.map(|(slots, runs)| FreeRuns { slots, runs }).collect()
        });
        let areas = pool.areas().zip(runs);
        let taken = pool.taken().map(|taken| Taken {
            slot: taken.slot.index,
            slots: taken.slot.count,
            phys: taken.slot.phys.get(),
            buffer: taken.orig.get(),
            bytes: taken.len,
        });
        Self {
            base: pool.base().get(),
            bytes: pool.bytes(),
            slot_bytes: SLOT_SIZE,
            slots: stats.total,
            used: stats.used,
            high_water: stats.high_water,
            areas: areas
                .map(|(area, free_runs)| Area { slots: area.total, used: area.used, next: area.next, free_runs })
                .collect(),
            taken: taken.collect(),
        }
    }

    pub(super) fn text(&self, out: &mut dyn Write) -> io::Result<()> {
        let (slots, used, most) = (self.slots, self.used, self.high_water);
        writeln!(
            out,
            "{} at {:#x}: {slots} slots of {} bytes, {used} taken, {most} at most",
            bytes(self.bytes),
            self.base,
            self.slot_bytes
        )?;
        let mut t = table(&["area", "slots", "taken", "next", "free runs"], &[0, 1, 2, 3]);
        for (index, area) in self.areas.iter().enumerate() {
            let runs = area.free_runs.iter().map(|free| format!("{} × {}", free.runs, free.slots));
            let runs = runs.collect::<Vec<_>>().join(", ");
            t.add_row([index.to_string(), area.slots.to_string(), area.used.to_string(), area.next.to_string(), runs]);
        }
        print(out, &t)?;
        if self.taken.is_empty() {
            return Ok(());
        }
        let mut t = table(&["slot", "slots", "lies at", "buffer", "bytes"], &[0, 1, 2, 3, 4]);
        for taken in &self.taken {
            let (slot, slots) = (taken.slot.to_string(), taken.slots.to_string());
            t.add_row([slot, slots, hex(taken.phys), hex(taken.buffer), taken.bytes.to_string()]);
        }
        print(out, &t)
    }
}

/// What one device sees through its IOMMU.
#[derive(Serialize)]
pub(super) struct Domain {
    device: String,
    mode: &'static str,
    mapped_pages: usize,
    stale_pages: usize,
    flushes: u64,
    runs: Vec<Run>,
}

/// Pages in a row that it sees in the same way.
#[derive(Serialize)]
struct Run {
    dma: u64,
    phys: u64,
    bytes: u64,
    read: bool,
    write: bool,
    stale: bool,
}

impl Domain {
    pub(super) fn of(name: &str, device: &DmaDevice) -> Option<Self> {
        let view = device.domain_view()?;
        let mode = match view.mode {
            IommuMode::Strict => "strict",
            IommuMode::Lazy => "lazy",
        };
        let runs = view.runs.into_iter().map(|run| Run {
            dma: run.dma.get(),
            phys: run.phys.get(),
            bytes: run.len,
            read: run.read,
            write: run.write,
            stale: run.stale,
        });
        Some(Self {
            device: name.to_owned(),
            mode,
            mapped_pages: view.stats.mapped,
            stale_pages: view.stats.stale,
            flushes: view.stats.flushes,
            runs: runs.collect(),
        })
    }

    pub(super) fn text(&self, out: &mut dyn Write) -> io::Result<()> {
        let (device, mode, mapped, stale) = (&self.device, self.mode, self.mapped_pages, self.stale_pages);
        writeln!(out, "{device}: {mode}; {mapped} pages mapped, {stale} stale, {} flushes", self.flushes)?;
        if self.runs.is_empty() {
            return Ok(());
        }
        let mut t = table(&["address", "bytes", "lies at", "device", "state"], &[0, 1, 2]);
        for run in &self.runs {
            let may = match (run.read, run.write) {
                (true, true) => "reads, writes",
                (true, false) => "reads",
                (false, true) => "writes",
                (false, false) => "-",
            };
            let state = if run.stale { "unmapped, not flushed" } else { "mapped" };
            t.add_row([hex(run.dma), run.bytes.to_string(), hex(run.phys), may.to_owned(), state.to_owned()]);
        }
        print(out, &t)
    }
}

fn hex(address: u64) -> String {
    format!("{address:#x}")
}

fn table(header: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header.iter().copied());
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if index == 0 { 2 } else { 0 }, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn print(out: &mut dyn Write, table: &Table) -> io::Result<()> {
    table.lines().try_for_each(|line| writeln!(out, "{}", line.trim_end()))
}
