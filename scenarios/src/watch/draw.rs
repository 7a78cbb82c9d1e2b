//! One frame: what a person sees of the sums.
//!
//! Every figure has its name beside it, and no meaning is told by colour alone. Neighbours: `live`, `screen`.

use std::time::Duration;

use lowzone_guest_mem::dma::swiotlb::SLOT_SIZE;
use lowzone_guest_mem::kernel::Kernel;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, LineGauge, Paragraph, Row, Table, Wrap};

use super::live::{Live, Sums};

/// Findings that are shown, the last ones.
const FINDINGS: usize = 6;
const PAGE: u64 = 4096;

/// What is drawn: where the figures come from, and what they are of.
pub(crate) struct Board {
    /// The scenario, its seed and world.
    pub(crate) title: String,
    /// The kernel, for its zones and findings.
    pub(crate) kernel: &'static Kernel,
    /// The sums.
    pub(crate) live: Live,
    /// The devices' numbers in records and their names.
    pub(crate) devices: Vec<(u16, String)>,
}

impl Board {
    fn name(&self, dev: u16) -> String {
        let known = self.devices.iter().find(|(number, _)| *number == dev);
        known.map_or_else(|| format!("device {dev}"), |(_, name)| name.clone())
    }

    /// Draws one frame; `done` of `total` bytes of the step are moved.
    pub(super) fn draw(&self, frame: &mut Frame<'_>, since: Duration, (done, total): (u64, u64)) {
        let sums = self.live.sums();
        let zones: Vec<_> = self.kernel.zone_stats().into_iter().filter(|zone| zone.managed > 0).collect();
        let rows = |n: usize| Constraint::Length(u16::try_from(n + 3).unwrap_or(u16::MAX));
        let areas = Layout::vertical([
            Constraint::Length(3),
            Constraint::Length(u16::try_from(zones.len() + 3).unwrap_or(8)),
            rows(sums.mappings.len()),
            rows(sums.rings.len()),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .split(frame.area());
        self.head(frame, areas[0], &sums, since);
        let inner = block("Memory").inner(areas[1]);
        frame.render_widget(block("Memory"), areas[1]);
        let lines = Layout::vertical(vec![Constraint::Length(1); zones.len() + 1]).split(inner);
        for (zone, &line) in zones.iter().zip(lines.iter()) {
            let used = zone.managed.saturating_sub(zone.free);
            let low = if zone.free < zone.marks.low { "  below its low mark" } else { "" };
            let text = format!("{:<7} {} of {} used{low}", zone.zone.to_string(), mib(used), mib(zone.managed));
            gauge(frame, line, text, used, zone.managed);
        }
        if let Some(&line) = lines.get(zones.len()) {
            let (used, most) = self.kernel.swiotlb_usage();
            let kib = |slots: u32| u64::from(slots) * SLOT_SIZE / 1024;
            let text = format!("swiotlb {used} slots, {} KiB, in use; {most} at most", kib(used));
            gauge(frame, line, text, used.into(), most.max(1).into());
        }
        self.mappings(frame, areas[2], &sums);
        self.rings(frame, areas[3], &sums);
        self.findings(frame, areas[4]);
        let of = if total > 0 { format!("  step: {done} of {total} bytes") } else { String::new() };
        frame.render_widget(Line::from(format!(" q or Ctrl-C ends the run{of}")).dim(), areas[5]);
    }

    fn head(&self, frame: &mut Frame<'_>, area: Rect, sums: &Sums, since: Duration) {
        let text = format!(
            "step {}   clock {}.{:06} ms   {} events   {} interrupts   {:.1} s here",
            sums.step,
            sums.clock / 1_000_000,
            sums.clock % 1_000_000,
            sums.events,
            sums.interrupts,
            since.as_secs_f64()
        );
        frame.render_widget(Paragraph::new(text).block(block(&self.title)), area);
    }

    fn mappings(&self, frame: &mut Frame<'_>, area: Rect, sums: &Sums) {
        let head = ["device", "live", "bytes", "bounced", "peak", "made", "refused", "moved", "violations"];
        let rows = sums.mappings.iter().map(|(&dev, m)| {
            let figures = [m.live, m.bytes, m.bounced, m.peak, m.made, m.refused, m.moved, m.violations];
            Row::new([self.name(dev)].into_iter().chain(figures.map(|figure| figure.to_string())))
        });
        frame.render_widget(table(&head, rows, "Mappings"), area);
    }

    fn rings(&self, frame: &mut Frame<'_>, area: Rect, sums: &Sums) {
        let head = ["ring", "in flight", "peak", "added", "doorbells"];
        let rows = sums.rings.iter().map(|(&(dev, queue), ring)| {
            let figures = [ring.in_flight, ring.peak, ring.added, ring.kicks];
            let name = format!("{} queue {queue}", self.name(dev));
            Row::new([name].into_iter().chain(figures.map(|figure| figure.to_string())))
        });
        frame.render_widget(table(&head, rows, "Rings"), area);
    }

    fn findings(&self, frame: &mut Frame<'_>, area: Rect) {
        let found = self.kernel.findings();
        let lines: Vec<Line<'_>> = if found.is_empty() {
            vec![Line::from("none so far")]
        } else {
            let last = found.iter().rev().take(FINDINGS).map(|finding| {
                let name = Span::styled(finding.kind.name(), Style::new().fg(Color::Red).bold());
                Line::from(vec![Span::raw("! "), name, Span::raw(format!(": {}", finding.kind))])
            });
            last.collect()
        };
        let title = format!("Findings: {}", found.len());
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }).block(block(&title)), area);
    }
}

fn block(title: &str) -> Block<'_> {
    Block::bordered().title(format!(" {title} "))
}

fn mib(pages: u64) -> String {
    format!("{:.1} MiB", (pages * PAGE) as f64 / f64::from(1 << 20))
}

fn gauge(frame: &mut Frame<'_>, line: Rect, text: String, used: u64, most: u64) {
    let ratio = (used as f64 / most as f64).clamp(0.0, 1.0);
    frame.render_widget(LineGauge::default().ratio(ratio).label(format!("{text:<52}")), line);
}

fn table<'a>(head: &[&'a str], rows: impl Iterator<Item = Row<'a>>, title: &'a str) -> Table<'a> {
    let widths = head.iter().enumerate().map(|(at, _)| Constraint::Length(if at == 0 { 16 } else { 11 }));
    let head = Row::new(head.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).bold();
    Table::new(rows.collect::<Vec<_>>(), widths).header(head).block(block(title))
}
