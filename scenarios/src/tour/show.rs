//! The tour as text and as JSON.

use std::io::{self, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use lowzone_guest_mem::kernel::Kernel;

use super::Seen;
use crate::render::bytes;

/// The machine, in a line.
pub(super) fn machine(kernel: &Kernel) -> String {
    let config = kernel.config();
    let zones = kernel.zone_stats();
    let zones =
        zones.iter().filter(|zone| zone.managed > 0).map(|zone| format!("{} {}", zone.zone, bytes(zone.managed << 12)));
    let lists = if config.pcp { "lists of pages for each CPU" } else { "no lists of pages for each CPU" };
    format!(
        "{:?}, {} of RAM, {} CPUs, {lists}; {}",
        config.arch,
        bytes(config.ram),
        config.cpus,
        zones.collect::<Vec<_>>().join(", ")
    )
}

pub(super) fn print(seen: &Seen, json: bool) -> io::Result<()> {
    let out = &mut anstream::stdout();
    if json {
        let text = serde_json::to_string_pretty(seen).map_err(io::Error::other)?;
        return writeln!(out, "{text}");
    }
    writeln!(out, "machine  {}\n", seen.machine)?;
    for stop in &seen.stops {
        let mut t = table(&[stop.title, "gave", "zones"]);
        for did in &stop.did {
            t.add_row([&did.call, &did.got, &did.zones]);
        }
        print_table(out, &t)?;
    }
    let header = [
        "allocator",
        "unit",
        "largest",
        "phys",
        "virt",
        "sleeps",
        "DMA-able at",
        "zone",
        "aligned",
        "slack",
        "ns/pair",
    ];
    let mut t = table(&header);
    for e in &seen.table {
        let cost = e.cost_ns.to_string();
        t.add_row([
            e.allocator,
            &e.unit,
            &e.largest,
            e.physical,
            e.virt,
            e.sleeps,
            &e.dma,
            &e.zone,
            &e.alignment,
            &e.slack,
            &cost,
        ]);
    }
    print_table(out, &t)?;
    let mut t = table(&["LDD3 says", "today"]);
    for change in &seen.ldd3 {
        t.add_row([change.book, change.now]);
    }
    print_table(out, &t)?;
    seen.wrong.iter().try_for_each(|wrong| writeln!(out, "wrong    {wrong}"))
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header.iter().copied());
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if index == 0 { 2 } else { 0 }, 2));
    }
    table
}

fn print_table(out: &mut dyn Write, table: &Table) -> io::Result<()> {
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    writeln!(out)
}
