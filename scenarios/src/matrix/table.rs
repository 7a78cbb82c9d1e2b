//! The matrix as a table or as JSON: a row for each scenario, a column for each place, and what each column comes to.
//!
//! Columns with one name that follow each other, a machine's worlds, are one column of the text. Neighbours: the parent,
//! which fills it.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::{Cell, Column, Row, peer};
use crate::render::bytes;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
/// The narrowest column, and the narrowest first one.
const WIDTH: usize = 12;
const FIRST: usize = 28;

/// The width of a column with these texts.
fn width(least: usize, texts: impl Iterator<Item = usize>) -> usize {
    texts.map(|text| text + 2).fold(least, usize::max)
}

/// One place, summed up.
#[derive(Debug, Serialize)]
struct Sum {
    column: &'static str,
    /// The world, where a column has two.
    #[serde(skip_serializing_if = "Option::is_none")]
    world: Option<&'static str>,
    /// The peer's own words for its version.
    peer: Option<String>,
    passed: usize,
    failed: usize,
    exempt: usize,
    skipped: usize,
    /// Bytes that steps moved over it.
    bytes: u64,
}

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    columns: Vec<Sum>,
    rows: Vec<Row>,
    #[serde(skip)]
    places: Vec<Column>,
}

impl Sum {
    fn new(column: Column, cells: &[&Cell]) -> Self {
        let count = |what: fn(&Cell) -> bool| cells.iter().filter(|cell| what(cell)).count();
        Self {
            column: column.name(),
            world: column.world().map(crate::world::WorldKind::name),
            peer: column.peer().and_then(|(program, _)| peer::version(program)),
            passed: count(|cell| matches!(cell, Cell::Passed { .. })),
            failed: count(|cell| matches!(cell, Cell::Failed { .. })),
            exempt: count(|cell| matches!(cell, Cell::Exempt { .. })),
            skipped: count(|cell| matches!(cell, Cell::Skipped { .. })),
            bytes: cells.iter().map(|cell| if let Cell::Passed { bytes } = cell { *bytes } else { 0 }).sum(),
        }
    }
}

impl Cell {
    /// What it is called, how, and why it is that.
    fn words(&self) -> (Style, &'static str, &str) {
        match self {
            Self::Passed { .. } => (GOOD, "passed", ""),
            Self::Failed { why } => (BAD, "failed", why),
            Self::Exempt { why } => (DIM, "exempt", why),
            Self::Skipped { want } => (BAD, "skipped for want of", want),
        }
    }
}

/// What one cell of the text says for the cells of a scenario that share its column.
fn shown(cells: &[Cell], places: &[Column]) -> (Style, &'static str) {
    let has = |what: fn(&Cell) -> bool| cells.iter().position(what);
    if has(|cell| matches!(cell, Cell::Failed { .. })).is_some() {
        return (BAD, "FAILED");
    }
    if has(|cell| matches!(cell, Cell::Skipped { .. })).is_some() {
        return (BAD, "skipped");
    }
    let exempt = has(|cell| matches!(cell, Cell::Exempt { .. })).is_some();
    match (has(|cell| matches!(cell, Cell::Passed { .. })), exempt) {
        (None, _) => (DIM, "exempt"),
        (Some(_), false) => (GOOD, "passed"),
        // In one world, and the other can't tell it.
        (Some(one), true) => (GOOD, places.get(one).and_then(|place| place.world()).map_or("passed", |w| w.name())),
    }
}

impl Table {
    pub(super) fn new(columns: &[Column], rows: Vec<Row>) -> Self {
        let sum = |(index, &column): (usize, &Column)| {
            let cells: Vec<_> = rows.iter().filter_map(|row| row.cells.get(index)).collect();
            Sum::new(column, &cells)
        };
        let sums = columns.iter().enumerate().map(sum).collect();
        Self { columns: sums, rows, places: columns.to_vec() }
    }

    /// Whether nothing failed and, if peers are required, nothing was skipped.
    pub(super) fn is_good(&self, require_peers: bool) -> bool {
        self.columns.iter().all(|sum| sum.failed == 0 && (sum.skipped == 0 || !require_peers))
    }

    /// Columns with one name: where they begin, and which they are.
    fn groups(&self) -> impl Iterator<Item = (usize, &[Column])> {
        let groups = self.places.chunk_by(|one, next| one.name() == next.name());
        groups.scan(0, |at, group| {
            let from = *at;
            *at += group.len();
            Some((from, group))
        })
    }

    pub(super) fn print(&self, out: &mut dyn Write, json: bool) -> io::Result<()> {
        if json {
            return writeln!(out, "{}", serde_json::to_string_pretty(self)?);
        }
        let wide = width(WIDTH, self.places.iter().map(|place| place.name().len()));
        let first = width(FIRST, self.rows.iter().map(|row| row.scenario.len()));
        write!(out, "{BOLD}{:<first$}", "scenario")?;
        self.groups().try_for_each(|(_, group)| write!(out, "{:<wide$}", group[0].name()))?;
        writeln!(out, "{BOLD:#}")?;
        for row in &self.rows {
            write!(out, "{:<first$}", row.scenario)?;
            for (from, group) in self.groups() {
                let (style, text) = shown(&row.cells[from..from + group.len()], group);
                write!(out, "{style}{text:<wide$}{style:#}")?;
            }
            writeln!(out)?;
        }
        writeln!(out)?;
        self.print_reasons(out)?;
        let wide = width(WIDTH, self.places.iter().map(|place| place.label().len()));
        for (sum, place) in self.columns.iter().zip(&self.places) {
            let (name, style) = (place.label(), if sum.failed > 0 { BAD } else { GOOD });
            write!(out, "{name:<wide$}{style}{} passed, {} failed{style:#}", sum.passed, sum.failed)?;
            write!(out, ", {} exempt, {} skipped; {}", sum.exempt, sum.skipped, bytes(sum.bytes))?;
            writeln!(out, "{}", sum.peer.as_ref().map(|peer| format!("; {peer}")).unwrap_or_default())?;
        }
        Ok(())
    }

    /// One line for all places where one scenario came to the same for the same reason.
    fn print_reasons(&self, out: &mut dyn Write) -> io::Result<()> {
        for row in &self.rows {
            let mut told: Vec<(&Cell, Vec<Column>)> = Vec::new();
            for (cell, &place) in row.cells.iter().zip(&self.places) {
                match told.iter_mut().find(|(other, _)| *other == cell) {
                    Some((_, places)) => places.push(place),
                    None => told.push((cell, vec![place])),
                }
            }
            for (cell, places) in told.iter().filter(|(cell, _)| !matches!(cell, Cell::Passed { .. })) {
                let (style, what, why) = cell.words();
                writeln!(out, "{style}{what}{style:#} {} on {}: {why}", row.scenario, self.all_of(places))?;
            }
        }
        writeln!(out)
    }

    /// The names of some places; those of a whole world together, and those of a whole column.
    fn all_of(&self, places: &[Column]) -> String {
        let has_all =
            |like: &dyn Fn(&Column) -> bool| self.places.iter().filter(|p| like(p)).all(|p| places.contains(p));
        let mut names: Vec<String> = Vec::new();
        for place in places {
            let name = match place.world() {
                Some(world) if has_all(&|p| p.world() == Some(world)) => format!("all machines ({})", world.name()),
                _ if has_all(&|p| p.name() == place.name()) => place.name().to_owned(),
                _ => place.label(),
            };
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.join(", ")
    }
}
