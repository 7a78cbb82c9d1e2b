//! `Golden`: one table, and the comparison of each of its rows.
//!
//! A closure sees a row's input columns and nothing else, so that no result can be read off the row it is compared
//! with. Neighbours: `explained`, which rows may differ; `tables`, how many there must be. Left out: what a column means, which is each area's.

use std::collections::BTreeMap;
use std::io::Write;

use crate::explained::{self, Explained};
use crate::tables;

/// A table of measured rows.
pub struct Golden {
    /// Its file's name without the ending.
    pub name: &'static str,
    /// The file.
    pub text: &'static str,
    /// The columns that say what was done.
    pub inputs: &'static [&'static str],
    /// The columns that must come out equal; where the measured cell is empty it is not compared.
    pub compare: &'static [&'static str],
}

/// The inputs of one row.
pub struct Inputs<'a> {
    table: &'static str,
    cells: BTreeMap<&'a str, &'a str>,
}

impl<'a> Inputs<'a> {
    /// The cell of an input column.
    pub fn get(&self, column: &str) -> &'a str {
        self.cells.get(column).unwrap_or_else(|| panic!("{}: {column} is no input", self.table))
    }

    /// The same as a number.
    pub fn number<T: std::str::FromStr>(&self, column: &str) -> T {
        let cell = self.get(column);
        cell.parse().unwrap_or_else(|_| panic!("{}: {column} is {cell}, no number", self.table))
    }

    /// All inputs, joined: what names the row.
    fn key(&self, inputs: &[&str]) -> String {
        inputs.iter().map(|column| self.get(column)).collect::<Vec<_>>().join(" ")
    }
}

/// What the model gives for some columns.
pub type Outputs = Vec<(&'static str, String)>;

/// How many rows there were, and how they came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    pub rows: usize,
    pub equal: usize,
    pub explained: usize,
}

/// Prints a line that is seen without `--nocapture` too.
pub fn say(line: &str) {
    // Not println!, whose lines a passing test keeps to itself.
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
}

impl Golden {
    /// Compares every row with what `compute` makes of its inputs, prints the count and fails on what nobody explains.
    pub fn run(&self, mut compute: impl FnMut(&Inputs<'_>) -> Outputs) -> Tally {
        let tally = self.tally(&mut compute);
        if self.name != tables::NONE {
            say(&format!("{}: {} rows, {} equal, {} explained", self.name, tally.rows, tally.equal, tally.explained));
            tables::check(self.name, tally.rows);
        }
        assert!(tally.rows > 0 && tally.rows > tally.explained, "{}: a whole table can't be explained", self.name);
        tally
    }

    fn tally(&self, compute: &mut dyn FnMut(&Inputs<'_>) -> Outputs) -> Tally {
        let (mut tally, mut wrong, mut used) = (Tally::default(), Vec::new(), Vec::new());
        let mut lines = self.text.lines();
        let columns: Vec<_> = lines.next().unwrap().split('\t').collect();
        for column in self.inputs.iter().chain(self.compare) {
            assert!(columns.contains(column), "{} has no column {column}", self.name);
        }
        for line in lines {
            let cells: Vec<_> = line.splitn(columns.len(), '\t').collect();
            assert_eq!(cells.len(), columns.len(), "{}: {line}", self.name);
            let row: BTreeMap<_, _> = columns.iter().copied().zip(cells).collect();
            let inputs = self.inputs.iter().map(|&column| (column, row[column])).collect();
            let inputs = Inputs { table: self.name, cells: inputs };
            let (key, outputs) = (inputs.key(self.inputs), compute(&inputs));
            tally.rows += 1;
            let mut differing = self.differing(&row, &outputs, &key);
            let before = differing.len();
            differing.retain(|(column, said)| match explained::find(self.name, &key, column) {
                Some(entry) => {
                    say(&format!("{} {key}: {said}; {}: {}", self.name, entry.cause, entry.why));
                    used.push(entry);
                    false
                }
                None => true,
            });
            tally.equal += usize::from(before == 0);
            tally.explained += usize::from(before > 0 && differing.is_empty());
            wrong.extend(differing.into_iter().map(|(_, said)| format!("{key}: {said}")));
        }
        assert!(wrong.is_empty(), "{}: {} differ:\n{}", self.name, wrong.len(), wrong.join("\n"));
        let idle: Vec<&Explained> = explained::of(self.name).filter(|entry| !used.contains(entry)).collect();
        assert!(idle.is_empty(), "{}: nothing differs where {idle:?} explains it", self.name);
        tally
    }

    /// The compared columns that differ, each with what it said.
    fn differing(&self, row: &BTreeMap<&str, &str>, outputs: &Outputs, key: &str) -> Vec<(&'static str, String)> {
        for (column, _) in outputs {
            assert!(self.compare.contains(column), "{} {key}: {column} is not compared", self.name);
        }
        let mut differing = Vec::new();
        for &column in self.compare.iter().filter(|&&column| !row[column].is_empty()) {
            let seen = outputs.iter().find(|(name, _)| *name == column).map(|(_, value)| value.as_str());
            match seen {
                None => differing.push((column, format!("{column} was not computed, measured {}", row[column]))),
                Some(seen) if seen != row[column] => {
                    differing.push((column, format!("{column} is {seen}, measured {}", row[column])));
                }
                Some(_) => {}
            }
        }
        differing
    }
}

#[test]
fn golden_a_row_that_differs_is_red_and_an_input_is_all_that_is_seen() {
    let table = Golden { name: tables::NONE, text: "a\tb\n1\t2\n3\t\n", inputs: &["a"], compare: &["b"] };
    let double = |inputs: &Inputs<'_>| vec![("b", (inputs.number::<u32>("a") * 2).to_string())];
    assert_eq!(table.run(double), Tally { rows: 2, equal: 2, explained: 0 });
    let red = |compute: fn(&Inputs<'_>) -> Outputs| {
        std::panic::catch_unwind(|| Golden { ..table }.run(compute)).unwrap_err().downcast::<String>().unwrap()
    };
    assert!(red(|_| vec![("b", "3".to_owned())]).contains("1: b is 3, measured 2"));
    assert!(red(|_| Vec::new()).contains("b was not computed"));
    assert!(red(|inputs| vec![("b", inputs.get("b").to_owned())]).contains("b is no input"));
}
