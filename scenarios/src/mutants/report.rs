//! The table of seeded bugs: who found each, how soon, and what repeats it.
//!
//! Nothing here depends on time, processes or the number of jobs. Neighbours: the parent, which fills it.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::{Row, Seeded};

const BOLD: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Every bug that was tried, and the score.
#[derive(Debug, Serialize)]
pub(super) struct Score {
    found: usize,
    total: usize,
    /// The same for the bugs of the list alone.
    real: (usize, usize),
    mutants: Vec<Row>,
}

impl Score {
    pub(super) fn new(mutants: Vec<Row>) -> Self {
        let found = mutants.iter().filter(|row| row.found.is_some()).count();
        let real = mutants.iter().filter(|row| row.seeded.row.is_some());
        let real = (real.clone().filter(|row| row.found.is_some()).count(), real.count());
        Self { found, total: mutants.len(), real, mutants }
    }

    /// Whether none was missed.
    pub(super) fn is_full(&self) -> bool {
        self.found == self.total
    }

    /// The table and the score, or all of it as JSON; `program` is the one that has the bugs.
    pub(super) fn print(&self, out: &mut dyn Write, program: &str, json: bool) -> io::Result<()> {
        if json {
            return writeln!(out, "{}", serde_json::to_string_pretty(self)?);
        }
        writeln!(out, "{BOLD}each seeded bug alone, by the stock campaign{BOLD:#}\n")?;
        writeln!(out, "  {:>3}  {:<26} {:<29} {:>9}  token", "row", "bug", "first detector", "cases")?;
        for row in &self.mutants {
            let number = row.seeded.row.map_or("-".to_owned(), |row| row.to_string());
            write!(out, "  {number:>3}  {:<26} ", row.seeded.name)?;
            match &row.found {
                Some(found) => {
                    let detector = found.detector.as_ref().map(ToString::to_string).unwrap_or_default();
                    let cases = if row.cases == 0 { "clean run".to_owned() } else { row.cases.to_string() };
                    let set: String = found.set.iter().map(|set| format!(" --set {set}")).collect();
                    writeln!(out, "{detector:<29} {cases:>9}  {}{set}", found.token)?;
                }
                None => writeln!(out, "{BAD}{:<29}{BAD:#} {:>9}", "missed", row.cases)?,
            }
        }
        let style = if self.is_full() { GOOD } else { BAD };
        let (real, all) = self.real;
        writeln!(
            out,
            "\nscore    {style}{} of {} found{style:#}, of the list {real} of {all}",
            self.found, self.total
        )?;
        writeln!(out, "replay   {}=BUG {program} replay TOKEN", super::VARIABLE)
    }
}

/// The bugs and their stories.
pub(super) fn list(out: &mut dyn Write, seeded: &[Seeded], json: bool) -> io::Result<()> {
    if json {
        return writeln!(out, "{}", serde_json::to_string(seeded)?);
    }
    seeded.iter().try_for_each(|Seeded { name, row, driver, machine, story, .. }| {
        let row = row.map_or("-".to_owned(), |row| row.to_string());
        let machine = if machine == "any" { String::new() } else { format!(" ({machine})") };
        writeln!(out, "{name:<26} {row:>3}  {driver:<8} {story}{machine}")
    })
}

#[cfg(test)]
mod tests {
    use super::super::Found;
    use super::*;
    use crate::explore::detector::Detected;

    fn row(name: &str, found: Option<(usize, &str)>) -> Row {
        let seeded = Seeded {
            name: name.to_owned(),
            row: Some(41),
            driver: "blk".to_owned(),
            machine: "any".to_owned(),
            story: "a story".to_owned(),
            race: None,
        };
        let cases = found.map_or(700, |(cases, _)| cases);
        let found = found.map(|(_, finding)| Found {
            detector: Some(Detected::finding(finding)),
            token: "x@y:1:clean".to_owned(),
            set: vec!["machine.weak=true".to_owned()],
            why: Vec::new(),
        });
        Row { seeded, cases, found }
    }

    fn printed(score: &Score) -> String {
        let mut text = Vec::new();
        score.print(&mut text, "elsewhere/lowzone", false).unwrap();
        anstream::adapter::strip_bytes(&text).into_vec().into_iter().map(char::from).collect()
    }

    #[test]
    fn a_missed_bug_costs_the_score_and_says_how_many_cases_there_were() {
        let full = Score::new(vec![row("one", Some((0, "unmap-size"))), row("two", Some((17, "after-unmap")))]);
        assert!(full.is_full());
        let text = printed(&full);
        for part in [
            "ledger: unmap-size",
            "clean run",
            "port: after-unmap",
            " 17 ",
            "2 of 2",
            "clean --set machine.weak",
            "elsewhere/lowzone replay",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let short = Score::new(vec![row("one", None), row("two", Some((17, "after-unmap")))]);
        assert!(!short.is_full());
        let text = printed(&short);
        assert!(text.contains("missed") && text.contains("700") && text.contains("1 of 2"), "{text}");
    }
}
