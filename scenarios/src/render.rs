//! Results as text for people.
//!
//! Colour comes from anstyle and is stripped by anstream where it isn't wanted (pipes, NO_COLOR). Neighbours: `cli`.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

use crate::expect::Mismatch;
use crate::result::{ClearRow, DmaRow, FactRow, FaultRow, IoRow, RunResult};
use crate::spec::Arch;

const BOLD: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// The `story` line of a scenario file that can't be loaded as it is.
pub(crate) fn story(text: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix("story = "));
    line.unwrap_or_default().trim_matches('"').to_owned()
}

pub(crate) fn bytes(n: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if n >= 1 << shift {
            let (whole, tenth) = (n >> shift, ((n & ((1 << shift) - 1)) * 10) >> shift);
            return if tenth == 0 { format!("{whole} {unit}") } else { format!("{whole}.{tenth} {unit}") };
        }
    }
    format!("{n} B")
}

pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.iter().copied());
    table
}

pub(crate) fn print(out: &mut dyn Write, table: &mut Table, right_from: usize) -> io::Result<()> {
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if index == 0 { 2 } else { 0 }, 2));
        if index >= right_from {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    writeln!(out)
}

/// One line, for one of several seeds.
pub(crate) fn line(out: &mut dyn Write, r: &RunResult) -> io::Result<()> {
    let bounces: u64 = r.devices.iter().map(|d| d.bounces).sum();
    let requests: u64 = r.devices.iter().map(|d| d.requests).sum();
    let faults: String = r.faults.iter().map(|f| format!("  {} of {} {} failed", f.failed, f.asked, f.class)).collect();
    let digest = if r.digest.is_empty() { r.world.clone() } else { format!("digest {}", r.digest) };
    writeln!(
        out,
        "seed {:<6} {digest}  {requests} requests  {}  {bounces} bounces  {} transactions  {} findings  {} leaks{faults}",
        r.seed,
        bytes(r.bytes()),
        r.transactions,
        r.findings.len(),
        r.leaks.len()
    )
}

/// The whole result.
pub(crate) fn result(out: &mut dyn Write, r: &RunResult, verbose: bool) -> io::Result<()> {
    writeln!(out, "{BOLD}{}{BOLD:#}  {}", r.scenario, r.story)?;
    let m = &r.machine;
    let high = m.ram - m.low;
    let arch = if m.arch == Arch::default().name() { String::new() } else { format!("{}, ", m.arch) };
    writeln!(
        out,
        "machine  {arch}{} of RAM, {} of it above 4 GiB; {} CPUs; bounce pool {}\n",
        bytes(m.ram),
        bytes(high),
        m.cpus,
        if high > 0 && m.swiotlb > 0 { bytes(m.swiotlb) } else { "none".to_owned() }
    )?;
    rings(out, r, verbose)?;
    io_steps(out, r)?;
    clears(out, r)?;
    exercises(out, r)?;
    transfers(out, r)?;
    packets(out, r)?;
    copies(out, r)?;
    stories(out, r)?;
    mempools(out, r)?;
    if verbose {
        queues(out, r)?;
        refusals(out, r)?;
    }
    log(out, r, verbose)?;
    for finding in &r.findings {
        writeln!(out, "{BAD}finding{BAD:#}  {}\n", finding.text.replace('\n', "\n       "))?;
    }
    leaks(out, r)?;
    summary(out, r)
}

/// One of each call site, with what the site has left in all.
fn leaks(out: &mut dyn Write, r: &RunResult) -> io::Result<()> {
    for site in &r.leak_sites {
        let first = r.leaks.get(site.first).map_or("", String::as_str).trim_start_matches("leak: ");
        writeln!(out, "{BAD}leak{BAD:#}  {}", first.replace('\n', "\n    "))?;
        if site.count > 1 {
            writeln!(out, "      {} of this call site, {} bytes in all", site.count, site.bytes)?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn rings(out: &mut dyn Write, r: &RunResult, verbose: bool) -> io::Result<()> {
    let mut t = table(&["rings", "queue", "zone", "address", "bytes"]);
    let shown = if verbose { usize::MAX } else { 3 };
    for row in r.rings.iter().take(shown) {
        t.add_row([
            format!("{} {}", row.device, row.what),
            row.queue.to_string(),
            row.zone.clone(),
            format!("{:#x}", row.phys),
            row.bytes.to_string(),
        ]);
    }
    if r.rings.is_empty() {
        return Ok(());
    }
    print(out, &mut t, 3)?;
    if r.rings.len() > shown {
        writeln!(out, "  … {} more (-v)\n", r.rings.len() - shown)?;
    }
    Ok(())
}

fn io_steps(out: &mut dyn Write, r: &RunResult) -> io::Result<()> {
    if r.io.is_empty() {
        return Ok(());
    }
    let mut t = table(&["io", "buffers in", "requests", "bytes", "maps", "bounced", "copied", "slots", "pages held"]);
    for row in &r.io {
        t.add_row([
            row.label.clone(),
            row.zones.join(", "),
            row.requests.to_string(),
            bytes(row.bytes),
            row.maps.to_string(),
            row.bounces.to_string(),
            bytes(row.bounced_bytes),
            row.slots.to_string(),
            row.pages_held.to_string(),
        ]);
    }
    print(out, &mut t, 2)?;
    for row in &r.io {
        writeln!(out, "  {:<10} {}", row.label, verdict(row))?;
    }
    writeln!(out)
}

fn verdict(row: &IoRow) -> String {
    let retries = if row.retries > 0 { format!(", {} submissions tried again", row.retries) } else { String::new() };
    let failed = if row.failed > 0 { format!(", {BAD}{} failed{BAD:#}", row.failed) } else { String::new() };
    let hash = row.sha256.get(..16).map(|h| format!("SHA-256 {h}… ")).unwrap_or_default();
    if row.requests == 0 && row.failed > 0 {
        return format!("{BAD}all {} failed{BAD:#}{retries}", row.failed);
    }
    if row.verified {
        format!("{hash}{GOOD}verified{GOOD:#}{failed}{retries}")
    } else {
        format!("{hash}{BAD}not what was written{BAD:#}{failed}{retries}")
    }
}

fn clears(out: &mut dyn Write, r: &RunResult) -> io::Result<()> {
    if r.clears.is_empty() {
        return Ok(());
    }
    let mut t = table(&["cleared", "how", "requests", "bytes", "handed over", "maps", "bounced", "copied", "slots"]);
    for row in &r.clears {
        t.add_row([
            row.label.clone(),
            row.how.clone(),
            row.requests.to_string(),
            bytes(row.cleared),
            bytes(row.told),
            row.maps.to_string(),
            row.bounces.to_string(),
            bytes(row.bounced_bytes),
            row.slots.to_string(),
        ]);
    }
    print(out, &mut t, 2)?;
    for row in &r.clears {
        let failed = if row.failed > 0 { format!(", {BAD}{} failed{BAD:#}", row.failed) } else { String::new() };
        let ClearRow { compared, mismatched, .. } = row;
        if row.mismatched == 0 && row.compared > 0 {
            writeln!(out, "  {:<10} {compared} blocks {GOOD}verified{GOOD:#}{failed}", row.label)?;
        } else {
            writeln!(out, "  {:<10} {BAD}{mismatched} of {compared} blocks wrong{BAD:#}{failed}", row.label)?;
        }
    }
    writeln!(out)
}

fn exercises(out: &mut dyn Write, r: &RunResult) -> io::Result<()> {
    let mut t = table(&["exercise", "device", "done", "failed", "wrong", "bytes"]);
    for row in &r.exercises {
        t.add_row([
            row.label.clone(),
            row.device.clone(),
            row.done.to_string(),
            row.failed.to_string(),
            row.wrong.to_string(),
            bytes(row.bytes),
        ]);
    }
    if r.exercises.is_empty() { Ok(()) } else { print(out, &mut t, 2) }
}

fn transfers(out: &mut dyn Write, r: &RunResult) -> io::Result<()> {
    let mut t = table(&["dma", "device", "mask", "memory", "zone", "address", "told", "bytes", "result"]);
    let bits = |mask: u64| format!("{} bits", mask.count_ones());
    for row in &r.dma {
        t.add_row([
            row.label.clone(),
            row.device.clone(),
            bits(if row.memory == "coherent" { row.coherent_mask } else { row.mask }),
            row.memory.clone(),
            row.zone.clone(),
            format!("{:#x}", row.phys),
            row.told.map_or_else(|| "nothing".to_owned(), |at| format!("{at:#x}")),
            bytes(row.bytes),
            outcome(row).to_owned(),
        ]);
    }
    if r.dma.is_empty() { Ok(()) } else { print(out, &mut t, usize::MAX) }
}

fn packets(out: &mut dyn Write, r: &RunResult) -> io::Result<()> {
    let mut t =
        table(&["packets", "device", "offered", "delivered", "wrong", "lost", "bytes", "polls", "refills", "maps"]);
    for row in &r.packets {
        t.add_row([
            row.label.clone(),
            row.device.clone(),
            row.offered.to_string(),
            row.delivered.to_string(),
            row.wrong.to_string(),
            (row.lost.total() + row.missing).to_string(),
            bytes(row.bytes),
            row.polls.to_string(),
            row.refills.to_string(),
            row.streaming_peak.to_string(),
        ]);
    }
    if r.packets.is_empty() {
        return Ok(());
    }
    print(out, &mut t, 2)?;
    for row in r.packets.iter().filter(|row| row.lost.total() + row.missing > 0) {
        let l = row.lost;
        let causes = [
            ("no memory", l.no_memory),
            ("no header", l.no_header),
            ("no mapping", l.no_mapping),
            ("no buffer posted", l.no_buffer),
            ("buffer too small", l.too_small),
            ("no packet", l.no_packet),
            ("memory refused", l.fault),
            ("cut short", l.short),
            ("backlog full", l.backlog),
            ("missing", row.missing),
        ];
        let told: Vec<_> = causes.iter().filter(|(_, n)| *n > 0).map(|(cause, n)| format!("{cause} {n}")).collect();
        writeln!(out, "  {:<10} lost: {}", row.label, told.join(", "))?;
    }
    writeln!(out)
}

fn outcome(row: &DmaRow) -> &'static str {
    match row {
        DmaRow { wrong: true, .. } => "wrong",
        DmaRow { failed, .. } if !failed.is_empty() => "failed",
        DmaRow { bounced: true, .. } => "bounced",
        DmaRow { compared: true, .. } => "verified",
        _ => "done",
    }
}

fn copies(out: &mut dyn Write, r: &RunResult) -> io::Result<()> {
    for row in &r.copies {
        let same = row.source == row.read && row.read == row.copy;
        writeln!(
            out,
            "copy     {} to {} and back: {} in {} requests",
            row.from,
            row.to,
            bytes(row.bytes),
            row.requests
        )?;
        writeln!(out, "  source  SHA-256 {}", row.source)?;
        writeln!(out, "  read    SHA-256 {}", row.read)?;
        let word = if same { format!("{GOOD}equal{GOOD:#}") } else { format!("{BAD}not equal{BAD:#}") };
        writeln!(out, "  copy    SHA-256 {}  {word}\n", row.copy)?;
    }
    Ok(())
}

fn stories(out: &mut dyn Write, r: &RunResult) -> io::Result<()> {
    for (part, row) in r.stories.iter().enumerate().filter(|(_, row)| !row.facts.is_empty()) {
        let parts = r.stories.iter().filter(|other| other.story == row.story).count();
        let told = if parts > 1 { format!("{}, part {}", row.story, part + 1) } else { row.story.clone() };
        let mut t = table(&[&told, "seen", ""]);
        for FactRow { what, expected, seen } in &row.facts {
            let judged = expected.as_ref().filter(|expected| *expected != seen);
            let judged = judged.map(|expected| format!("expected {expected}")).unwrap_or_default();
            t.add_row([what, seen, &judged]);
        }
        print(out, &mut t, usize::MAX)?;
    }
    Ok(())
}

fn mempools(out: &mut dyn Write, r: &RunResult) -> io::Result<()> {
    if r.mempools.is_empty() {
        return Ok(());
    }
    let mut t = table(&["mempool", "reserve", "allocs", "dips", "refused", "waits", "never needed", "verdict"]);
    for row in &r.mempools {
        t.add_row([
            format!("{} {}", row.kind, row.owner),
            format!("{} x {}", row.min_nr, bytes(row.element)),
            row.allocs.to_string(),
            row.dips.to_string(),
            row.refused.to_string(),
            row.waits.to_string(),
            bytes(row.idle_bytes),
            row.verdict.clone(),
        ]);
    }
    print(out, &mut t, 1)
}

fn queues(out: &mut dyn Write, r: &RunResult) -> io::Result<()> {
    let mut t = table(&["queue", "requests", "out of order", "peak", "interrupts", "doorbells", "direct", "indirect"]);
    for row in &r.queues {
        t.add_row([
            format!("{} {}", row.device, row.queue),
            row.requests.to_string(),
            row.out_of_order.to_string(),
            row.peak.to_string(),
            row.interrupts.to_string(),
            row.kicks.to_string(),
            row.direct.to_string(),
            row.indirect.to_string(),
        ]);
    }
    if r.queues.is_empty() { Ok(()) } else { print(out, &mut t, 1) }
}

fn refusals(out: &mut dyn Write, r: &RunResult) -> io::Result<()> {
    for row in &r.refusals {
        let device = row.device.as_ref().map(|device| format!("{device}: ")).unwrap_or_default();
        writeln!(out, "memory   {device}{}\n         asked at {}", row.text.replace('\n', "\n       "), row.site)?;
    }
    match (r.refusals.is_empty(), r.refusals_more) {
        (true, _) => return Ok(()),
        (_, 0) => {}
        (_, more) => writeln!(out, "memory   … {more} more refusals")?,
    }
    writeln!(out)
}

fn log(out: &mut dyn Write, r: &RunResult, verbose: bool) -> io::Result<()> {
    let shown = if verbose { r.log.len() } else { 3 };
    for line in r.log.iter().take(shown) {
        writeln!(out, "kernel   {line}")?;
    }
    let hidden = r.log.len().saturating_sub(shown);
    match (hidden, r.log_suppressed) {
        (0, 0) => {}
        (0, n) => writeln!(out, "kernel   {n} callbacks suppressed")?,
        (more, n) => writeln!(out, "kernel   … {more} more lines (-v), {n} callbacks suppressed")?,
    }
    if r.log.is_empty() { Ok(()) } else { writeln!(out) }
}

fn summary(out: &mut dyn Write, r: &RunResult) -> io::Result<()> {
    let sum = |pick: fn(&crate::result::DeviceRow) -> u64| r.devices.iter().map(pick).sum::<u64>();
    let ooo: u64 = r.queues.iter().map(|q| q.out_of_order).sum();
    writeln!(
        out,
        "totals   {} requests ({} failed), {}, {} bounces, {} interrupts, {} transactions",
        sum(|d| d.requests),
        r.failed_requests,
        bytes(r.bytes()),
        sum(|d| d.bounces),
        sum(|d| d.interrupts),
        r.transactions
    )?;
    writeln!(
        out,
        "         peak {} in flight, {ooo} out of order, {} bounce slots at most, {} events",
        r.peak_in_flight, r.swiotlb_peak, r.events
    )?;
    for FaultRow { class, asked, eligible, failed } in &r.faults {
        writeln!(out, "fault    {class}: {asked} asked, {eligible} eligible, {failed} failed")?;
    }
    if let Some(canary) = r.canary {
        writeln!(out, "canary   {canary:?}")?;
    }
    let digest = match (r.digest.as_str(), r.wire.as_str()) {
        ("", "") => format!("in {}", r.world),
        ("", wire) => format!("in {}, devices of {wire}", r.world),
        (digest, _) => format!("digest {digest}"),
    };
    let style = |bad: bool| if bad { BAD } else { GOOD };
    let (f, l) = (style(!r.findings.is_empty()), style(!r.leaks.is_empty()));
    writeln!(
        out,
        "result   {f}{} findings{f:#}, {l}{} leaks{l:#}, {digest}{}",
        r.findings.len(),
        r.leaks.len(),
        if r.interrupted { ", stopped early" } else { "" }
    )
}

/// What was expected and what was seen, side by side.
pub(crate) fn mismatches(out: &mut dyn Write, wrong: &[Mismatch]) -> io::Result<()> {
    writeln!(out, "{BAD}not as expected{BAD:#}")?;
    for Mismatch { what, expected, seen } in wrong {
        writeln!(out, "  {what}\n    expected  {expected}\n    seen      {seen}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_the_largest_unit() {
        let cases = [(512, "512 B"), (8192, "8 KiB"), (1 << 20, "1 MiB"), (6 << 30, "6 GiB"), (3 << 19, "1.5 MiB")];
        for (n, text) in cases {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(bytes(330_000_000), "314.7 MiB");
    }
}
