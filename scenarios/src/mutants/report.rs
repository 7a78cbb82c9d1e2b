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
    scenario: &'static str,
    found: usize,
    total: usize,
    mutants: Vec<Row>,
}

impl Score {
    pub(super) fn new(scenario: &'static str, mutants: Vec<Row>) -> Self {
        let found = mutants.iter().filter(|row| row.found.is_some()).count();
        Self { scenario, found, total: mutants.len(), mutants }
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
        writeln!(out, "{BOLD}{}{BOLD:#}  each seeded bug alone, by the stock campaign\n", self.scenario)?;
        writeln!(out, "  {:<24} {:<29} {:>9}  token", "bug", "first detector", "cases")?;
        for row in &self.mutants {
            let name = &row.seeded.name;
            match &row.found {
                Some(found) => {
                    let detector = found.detector.as_ref().map(ToString::to_string).unwrap_or_default();
                    let cases = if found.cases == 0 { "clean run".to_owned() } else { found.cases.to_string() };
                    writeln!(out, "  {name:<24} {detector:<29} {cases:>9}  {}", found.token)?;
                }
                None => writeln!(out, "  {name:<24} {BAD}{:<29}{BAD:#} {:>9}", "missed", row.all)?,
            }
        }
        let style = if self.is_full() { GOOD } else { BAD };
        writeln!(out, "\nscore    {style}{} of {} found{style:#}", self.found, self.total)?;
        writeln!(out, "replay   {}=BUG {program} replay TOKEN", super::VARIABLE)
    }
}

/// The bugs and their stories.
pub(super) fn list(out: &mut dyn Write, seeded: &[Seeded], json: bool) -> io::Result<()> {
    if json {
        return writeln!(out, "{}", serde_json::to_string(seeded)?);
    }
    seeded.iter().try_for_each(|Seeded { name, story }| writeln!(out, "{name:<24} {story}"))
}

#[cfg(test)]
mod tests {
    use super::super::Found;
    use super::*;
    use crate::explore::detector::Detected;

    fn row(name: &str, found: Option<(usize, &str)>) -> Row {
        let seeded = Seeded { name: name.to_owned(), story: "a story".to_owned() };
        let found = found.map(|(cases, finding)| Found {
            detector: Some(Detected::finding(finding)),
            cases,
            token: "x@y:1:clean".to_owned(),
            why: Vec::new(),
        });
        Row { seeded, all: 700, found }
    }

    fn printed(score: &Score) -> String {
        let mut text = Vec::new();
        score.print(&mut text, "elsewhere/lowzone", false).unwrap();
        anstream::adapter::strip_bytes(&text).into_vec().into_iter().map(char::from).collect()
    }

    #[test]
    fn a_missed_bug_costs_the_score_and_says_how_many_cases_there_were() {
        let full = Score::new("x", vec![row("one", Some((0, "unmap-size"))), row("two", Some((17, "after-unmap")))]);
        assert!(full.is_full());
        let text = printed(&full);
        for part in
            ["ledger: unmap-size", "clean run", "port: after-unmap", " 17 ", "2 of 2", "elsewhere/lowzone replay"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        let short = Score::new("x", vec![row("one", None), row("two", Some((17, "after-unmap")))]);
        assert!(!short.is_full());
        let text = printed(&short);
        assert!(text.contains("missed") && text.contains("700") && text.contains("1 of 2"), "{text}");
    }
}
