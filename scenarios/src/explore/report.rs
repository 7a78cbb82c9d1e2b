//! A campaign's result for people, for programs and for CI.
//!
//! Points of the same class, scope path and line are one row. Every report says that faults were injected. Nothing
//! here depends on time, processes or the number of jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::campaign::{Case, Record};
use super::case::{Prepared, Verdict};
use super::detector::Detected;
use super::inventory::{Inventory, NotClean};
use super::orders::Orders;
use super::place::Strike;
use super::token::{CLEAN, Token, faults, fingerprint};

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Points of one class, scope path and source line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The class.
    pub class: String,
    /// The scope path.
    pub scope: String,
    /// The source line.
    pub site: String,
    /// Cases.
    pub cases: usize,
    /// Of them, failed right.
    pub failed_right: usize,
    /// Of them, absorbed.
    pub absorbed: usize,
    /// Of them, mishandled.
    pub wrong: usize,
    /// Of them, possible on a real machine.
    pub natural: usize,
}

/// A mishandled case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wrong {
    /// What repeats it.
    pub token: String,
    /// The source line that was struck.
    pub site: String,
    /// Whether a real machine can do this.
    pub natural: bool,
    /// Who told.
    pub detector: Option<Detected>,
    /// What was wrong.
    pub why: Vec<String>,
    /// The events before the first finding, or before the fault where none was made; none of a child that died.
    pub record: Vec<String>,
}

impl Wrong {
    /// What was done to the driver.
    fn what(&self) -> String {
        let ordered = [":schedule#", ":order#"].iter().any(|class| self.token.contains(class));
        let how = if self.natural { "can really happen" } else { "by injection only" };
        match (ordered, self.token.contains('+')) {
            (true, false) => "another order of events".to_owned(),
            (true, true) => format!("another order of events, with a fault injected ({how})"),
            (false, _) => format!("a fault injected at {} ({how})", or_device(&self.site)),
        }
    }
}

/// Runs with the order of events changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Schedules {
    /// How many.
    pub run: usize,
    /// How many there were until the first was mishandled, that one included.
    pub until_found: Option<usize>,
}

impl Schedules {
    fn of(records: &[Record]) -> Self {
        let ordered: Vec<_> = records.iter().filter(|r| r.faults.iter().any(|strike| !strike.is_fault())).collect();
        Self { run: ordered.len(), until_found: ordered.iter().position(|r| r.is_wrong()).map(|at| at + 1) }
    }

    fn is_empty(&self) -> bool {
        self.run == 0
    }
}

/// A campaign, summed up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The scenario.
    pub scenario: String,
    /// The fingerprint of what it says.
    pub fingerprint: String,
    /// The world's seed.
    pub seed: u64,
    /// The digest of the clean run.
    pub clean_digest: String,
    /// Points by class, interrupts and completions.
    pub points: BTreeMap<String, u64>,
    /// Whether the clean run was not clean, so that no fault was injected.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// Cases run.
    pub cases: usize,
    /// Runs with the order of events changed; and of them the first that was mishandled, counted from 1.
    #[serde(skip_serializing_if = "Schedules::is_empty")]
    pub schedules: Schedules,
    /// Orders of events with a bounded number of exceptions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orders: Option<Orders>,
    /// Faults of the inventory that no case carried out.
    pub missing: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
    /// The mishandled cases.
    pub wrong: Vec<Wrong>,
    /// Every case: its faults and verdict.
    pub verdicts: Vec<(String, Verdict)>,
}

fn scope(strike: &Strike) -> String {
    match strike {
        Strike::Fail { place, .. } | Strike::Remove { place } => place.scope.clone(),
        Strike::Irq { .. } | Strike::Completion { .. } => "device".to_owned(),
        Strike::Schedule { .. } | Strike::Order { .. } => "everything".to_owned(),
    }
}

/// The row of a case: class, scope path and source line.
fn row_of(case: &Case, site: &str) -> (String, String, String) {
    let Some(first) = case.first() else { return (CLEAN.to_owned(), String::new(), String::new()) };
    if !first.is_fault() {
        let fault = if case.len() > 1 { " + fault" } else { "" };
        return (format!("{}{fault}", first.class()), scope(first), String::new());
    }
    let pair = if case.len() > 1 { " (pairs)" } else { "" };
    (format!("{}{pair}", first.class()), scope(first), site.to_owned())
}

impl Report {
    /// The report of a campaign that ended with its clean run, because that was not clean: no fault was injected.
    pub fn not_clean(prepared: &Prepared, NotClean { inventory, outcome }: &NotClean) -> Self {
        let record = Record { number: 0, faults: Vec::new(), outcome: outcome.clone() };
        let report = Self::new(prepared, inventory, &[], &[record]);
        Self { stopped: true, ..report }
    }

    /// Sums a campaign up that had to carry out the `wanted` faults.
    pub fn new(prepared: &Prepared, inventory: &Inventory, wanted: &[Strike], records: &[Record]) -> Self {
        let done: BTreeSet<_> = records.iter().filter(|r| r.outcome.struck).map(|r| faults(&r.faults)).collect();
        let missing = wanted.iter().map(ToString::to_string).filter(|name| !done.contains(name)).collect();
        let mut rows: BTreeMap<(String, String, String), Row> = BTreeMap::new();
        let mut wrong = Vec::new();
        for record in records {
            let key = row_of(&record.faults, &record.outcome.site);
            let row = rows.entry(key.clone()).or_insert_with(|| Row {
                class: key.0,
                scope: key.1,
                site: key.2,
                ..Row::default()
            });
            row.cases += 1;
            row.natural += usize::from(record.outcome.natural);
            match record.outcome.verdict {
                Verdict::FailedRight => row.failed_right += 1,
                Verdict::Absorbed => row.absorbed += 1,
                Verdict::Wrong => {
                    row.wrong += 1;
                    wrong.push(Wrong {
                        token: Token::new(prepared, &record.faults).to_string(),
                        site: record.outcome.site.clone(),
                        natural: record.outcome.natural,
                        detector: record.outcome.detector.clone(),
                        why: record.outcome.why.clone(),
                        record: record.outcome.record.clone(),
                    });
                }
            }
        }
        let mut points: BTreeMap<_, _> =
            inventory.by_class().into_iter().map(|(class, n)| (class.to_owned(), n as u64)).collect();
        points.insert("interrupt".to_owned(), inventory.messages);
        points.insert("completion".to_owned(), inventory.completions);
        Self {
            scenario: prepared.name.clone(),
            fingerprint: fingerprint(prepared),
            seed: prepared.seed,
            clean_digest: inventory.digest.clone(),
            points,
            stopped: false,
            cases: records.len(),
            orders: None,
            schedules: Schedules::of(records),
            missing,
            rows: rows.into_values().collect(),
            wrong,
            verdicts: records.iter().map(|r| (faults(&r.faults), r.outcome.verdict)).collect(),
        }
    }

    /// Whether every fault was tried and none was mishandled.
    pub fn is_clean(&self) -> bool {
        self.wrong.is_empty() && self.missing.is_empty()
    }

    /// The table, the mishandled cases with what repeats them, and the sum.
    pub(crate) fn print(&self, out: &mut dyn Write, program: &str, verbose: bool) -> io::Result<()> {
        let what =
            if self.stopped { "the clean run alone" } else { "every failure injected by the lab, one case each" };
        writeln!(out, "{BOLD}{}{BOLD:#}  {what}", self.scenario)?;
        let points: Vec<_> = self.points.iter().map(|(class, n)| format!("{n} {class}")).collect();
        writeln!(out, "points   {}\n", points.join(", "))?;
        writeln!(
            out,
            "  {:<16} {:<34} {:<34} {:>6} {:>6} {:>8} {:>6}",
            "fault", "in", "at", "cases", "failed", "absorbed", "wrong"
        )?;
        for row in self.rows.iter().filter(|row| verbose || row.wrong > 0 || !row.class.starts_with("mmio")) {
            let style = if row.wrong > 0 { BAD } else { Style::new() };
            writeln!(
                out,
                "  {style}{:<16} {:<34} {:<34} {:>6} {:>6} {:>8} {:>6}{style:#}",
                row.class, row.scope, row.site, row.cases, row.failed_right, row.absorbed, row.wrong
            )?;
        }
        let hidden = self.rows.iter().filter(|row| row.wrong == 0 && row.class.starts_with("mmio")).count();
        if !verbose && hidden > 0 {
            writeln!(out, "  … {hidden} rows of register accesses, none wrong (-v)")?;
        }
        writeln!(out)?;
        self.print_wrong(out, program, verbose)?;
        for name in &self.missing {
            writeln!(out, "{BAD}not carried out{BAD:#}  {name}")?;
        }
        if let Some(Orders { exceptions, run, complete }) = self.orders {
            let whole = if complete { "there are no more" } else { "not all that there are" };
            writeln!(out, "orders   {run} with at most {exceptions} exceptions: {whole}")?;
        }
        let style = if self.is_clean() { GOOD } else { BAD };
        writeln!(
            out,
            "result   {} cases, {style}{} wrong{style:#}, {} not carried out; clean run {}",
            self.cases,
            self.wrong.len(),
            self.missing.len(),
            self.clean_digest
        )
    }

    fn print_wrong(&self, out: &mut dyn Write, program: &str, verbose: bool) -> io::Result<()> {
        let shown = if verbose { usize::MAX } else { 10 };
        for wrong in self.wrong.iter().take(shown) {
            if self.stopped {
                writeln!(out, "{BAD}wrong{BAD:#}  the clean run: nothing was injected, and nothing will be")?;
            } else {
                writeln!(out, "{BAD}wrong{BAD:#}  {}", wrong.what())?;
            }
            for why in &wrong.why {
                writeln!(out, "       {}", why.replace('\n', "\n       "))?;
            }
            for line in &wrong.record {
                writeln!(out, "       {DIM}{line}{DIM:#}")?;
            }
            writeln!(out, "       {program} replay '{}'\n", wrong.token)?;
        }
        match self.wrong.len().saturating_sub(shown) {
            0 => Ok(()),
            more => writeln!(out, "… {more} more (-v)\n"),
        }
    }

    /// One test case for each case, as JUnit's XML has them.
    pub(crate) fn junit(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>")?;
        let (name, failures) = (escape(&self.scenario), self.wrong.len() + self.missing.len());
        let tests = self.verdicts.len() + self.missing.len();
        writeln!(out, "<testsuite name=\"{name}\" tests=\"{tests}\" failures=\"{failures}\">")?;
        for (fault, verdict) in &self.verdicts {
            let test = format!("  <testcase classname=\"{name}\" name=\"{}\"", escape(fault));
            let whole = format!(":{fault}");
            let wrong = self.wrong.iter().find(|w| *verdict == Verdict::Wrong && w.token.ends_with(&whole));
            match wrong {
                Some(w) => writeln!(out, "{test}><failure>{}</failure></testcase>", escape(&w.why.join("\n")))?,
                None => writeln!(out, "{test}/>")?,
            }
        }
        for fault in &self.missing {
            let fault = escape(fault);
            writeln!(
                out,
                "  <testcase classname=\"{name}\" name=\"{fault}\"><failure>not carried out</failure></testcase>"
            )?;
        }
        writeln!(out, "</testsuite>")
    }
}

fn or_device(site: &str) -> &str {
    if site.is_empty() { "the device's side" } else { site }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() && c != '\n' => escaped.push('?'),
            c => escaped.push(c),
        }
    }
    escaped
}
