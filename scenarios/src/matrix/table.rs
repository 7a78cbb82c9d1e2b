//! The matrix as a table or as JSON: a row for each scenario, a column for each wire, and what each column comes to.
//!
//! Neighbours: the parent, which fills it.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::{Cell, Column, Row, peer};
use crate::render::bytes;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// One wire, summed up.
#[derive(Debug, Serialize)]
struct Sum {
    column: Column,
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
}

impl Sum {
    fn new(column: Column, cells: &[&Cell]) -> Self {
        let count = |what: fn(&Cell) -> bool| cells.iter().filter(|cell| what(cell)).count();
        Self {
            column,
            peer: column.peer().and_then(|(program, _)| peer::version(program)),
            passed: count(|cell| matches!(cell, Cell::Passed { .. })),
            failed: count(|cell| matches!(cell, Cell::Failed { .. })),
            exempt: count(|cell| matches!(cell, Cell::Exempt { .. })),
            skipped: count(|cell| matches!(cell, Cell::Skipped { .. })),
            bytes: cells.iter().map(|cell| if let Cell::Passed { bytes } = cell { *bytes } else { 0 }).sum(),
        }
    }
}

impl Table {
    pub(super) fn new(columns: &[Column], rows: Vec<Row>) -> Self {
        let sum = |(index, &column): (usize, &Column)| {
            let cells: Vec<_> = rows.iter().filter_map(|row| row.cells.get(index)).collect();
            Sum::new(column, &cells)
        };
        let columns = columns.iter().enumerate().map(sum).collect();
        Self { columns, rows }
    }

    /// Whether nothing failed and, if peers are required, nothing was skipped.
    pub(super) fn is_good(&self, require_peers: bool) -> bool {
        self.columns.iter().all(|sum| sum.failed == 0 && (sum.skipped == 0 || !require_peers))
    }

    pub(super) fn print(&self, out: &mut dyn Write, json: bool) -> io::Result<()> {
        if json {
            return writeln!(out, "{}", serde_json::to_string_pretty(self)?);
        }
        write!(out, "{BOLD}{:<28}", "scenario")?;
        for sum in &self.columns {
            write!(out, "{:<12}", sum.column.name())?;
        }
        writeln!(out, "{BOLD:#}")?;
        for row in &self.rows {
            write!(out, "{:<28}", row.scenario)?;
            for cell in &row.cells {
                let (style, text) = match cell {
                    Cell::Passed { .. } => (GOOD, "passed"),
                    Cell::Failed { .. } => (BAD, "FAILED"),
                    Cell::Exempt { .. } => (DIM, "exempt"),
                    Cell::Skipped { .. } => (BAD, "skipped"),
                };
                write!(out, "{style}{text:<12}{style:#}")?;
            }
            writeln!(out)?;
        }
        writeln!(out)?;
        self.print_reasons(out)?;
        for sum in &self.columns {
            let (name, style) = (sum.column.name(), if sum.failed > 0 { BAD } else { GOOD });
            write!(out, "{name:<12}{style}{} passed, {} failed{style:#}", sum.passed, sum.failed)?;
            write!(out, ", {} exempt, {} skipped; {}", sum.exempt, sum.skipped, bytes(sum.bytes))?;
            writeln!(out, "{}", sum.peer.as_ref().map(|peer| format!("; {peer}")).unwrap_or_default())?;
        }
        Ok(())
    }

    fn print_reasons(&self, out: &mut dyn Write) -> io::Result<()> {
        for row in &self.rows {
            for (cell, sum) in row.cells.iter().zip(&self.columns) {
                let (style, what, why) = match cell {
                    Cell::Passed { .. } => continue,
                    Cell::Failed { why } => (BAD, "failed", why),
                    Cell::Exempt { why } => (DIM, "exempt", why),
                    Cell::Skipped { want } => (BAD, "skipped for want of", want),
                };
                writeln!(out, "{style}{what}{style:#} {} on {}: {why}", row.scenario, sum.column.name())?;
            }
        }
        writeln!(out)
    }
}
