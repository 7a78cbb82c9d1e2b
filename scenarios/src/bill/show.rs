//! A bill as text for people: a device's sums, then its mapping sites.
//!
//! Neighbours: the parent, whose rows these are; `render`, whose tables.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};

use super::{Bill, Cost, DeviceBill, Wider};
use crate::render::{self, bytes};

const BOLD: Style = Style::new().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Prints it.
pub(crate) fn print(out: &mut dyn Write, bill: &Bill) -> io::Result<()> {
    writeln!(out, "\n{BOLD}DMA bill{BOLD:#}")?;
    if let Some(pool) = bill.pool {
        let (most, slots) = (pool.high_water, pool.slots);
        writeln!(out, "  bounce pool: at most {most} of {slots} slots of {} bytes taken at once", pool.slot_bytes)?;
    }
    bill.devices.iter().try_for_each(|device| print_device(out, device, bill.forced))
}

fn print_device(out: &mut dyn Write, device: &DeviceBill, forced: bool) -> io::Result<()> {
    let (name, cost) = (&device.device, &device.cost);
    writeln!(out, "\n{BOLD}{name}{BOLD:#}: {}", sums(cost))?;
    if !device.whole {
        writeln!(out, "  {BAD}not whole{BAD:#}: the device's counters have other numbers than the records of the run")?;
    }
    if device.unbooked_bytes > 0 || device.unbooked_slots > 0 {
        let (copied, slots) = (bytes(device.unbooked_bytes), device.unbooked_slots);
        writeln!(out, "  and {copied} copied, {slots} slots taken for no mapping: lists that failed, wrong syncs")?;
    }
    writeln!(out)?;
    let mut t = render::table(&[
        "mapped at",
        "maps",
        "refused",
        "bounced",
        "in",
        "back",
        "slots",
        "at once",
        "unused",
        "kmalloc slack",
    ]);
    let streaming = device.sites.iter().filter(|site| site.cost.maps + site.cost.refused > 0);
    for site in streaming {
        let c = &site.cost;
        t.add_row([
            site.site.clone(),
            c.maps.to_string(),
            c.refused.to_string(),
            c.bounces.to_string(),
            bytes(c.copied_in),
            bytes(c.copied_back),
            c.slots.to_string(),
            c.slots_at_once.to_string(),
            bytes(c.slot_waste),
            slack(c),
        ]);
    }
    if cost.maps + cost.refused > 0 {
        render::print(out, &mut t, 1)?;
    }
    let mut t = render::table(&["coherent at", "allocations", "asked for", "pages", "at once", "unused"]);
    for site in device.sites.iter().filter(|site| site.cost.coherent > 0) {
        let c = &site.cost;
        t.add_row([
            site.site.clone(),
            c.coherent.to_string(),
            bytes(c.coherent_bytes),
            c.coherent_pages.to_string(),
            c.coherent_pages_at_once.to_string(),
            bytes(c.coherent_waste),
        ]);
    }
    if cost.coherent > 0 {
        render::print(out, &mut t, 1)?;
    }
    for (wider, site) in device.sites.iter().filter_map(|site| Some((site.wider?, &site.site))) {
        let Wider { bits, maps, slots, .. } = wider;
        let saved = format!("{maps} bounces, {} copied and {slots} slots less", bytes(wider.bytes));
        writeln!(out, "  a mask of {bits} bits would reach all that bounced at {site}: {saved}")?;
    }
    if forced && cost.bounces > 0 {
        writeln!(out, "  no mask would save anything: every mapping bounces here (swiotlb=force)")?;
    }
    Ok(())
}

fn sums(cost: &Cost) -> String {
    let copied = bytes(cost.copied_in + cost.copied_back);
    let waste = bytes(cost.slot_waste + cost.object_waste + cost.coherent_waste);
    format!(
        "{} of {} maps bounced, {copied} copied, {} slots taken, {} at once; {} coherent pages at once; {waste} unused",
        cost.bounces, cost.maps, cost.slots, cost.slots_at_once, cost.coherent_pages_at_once
    )
}

fn slack(cost: &Cost) -> String {
    if cost.objects == 0 { "-".to_owned() } else { format!("{} of {}", bytes(cost.object_waste), cost.objects) }
}
