//! `lowzone mutants --races`: how many schedules it takes to find bugs that only some orders of events show.
//!
//! Each race is looked for by the schedules of its driver's scenario alone, from ten seeds. Neighbours: the parent.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

use super::{Campaign, Mutants, MutantsError, Program, Seeded, WEAK};
use crate::cli::CliError;

/// The most schedules for one seed.
const MOST: u64 = 2000;
/// The seeds.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=10;
/// One race: schedules until it was found, by seed; `None` where it was not.
#[derive(Debug, Serialize)]
struct Race {
    name: String,
    scenario: String,
    schedules: Vec<Option<usize>>,
    median: usize,
    maximum: usize,
}

impl Race {
    fn new(name: &str, scenario: &str, schedules: Vec<Option<usize>>) -> Self {
        let missed = usize::try_from(MOST).unwrap_or(usize::MAX) + 1;
        let mut sorted: Vec<_> = schedules.iter().map(|count| count.unwrap_or(missed)).collect();
        sorted.sort_unstable();
        let (median, maximum) = (sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
        Self { name: name.to_owned(), scenario: scenario.to_owned(), schedules, median, maximum }
    }

    fn is_found(&self) -> bool {
        self.schedules.iter().all(Option::is_some)
    }
}

/// Runs it.
pub(super) fn run(program: &Program, known: &[Seeded], options: &Mutants) -> Result<ExitCode, CliError> {
    let known: Vec<_> = known.iter().filter_map(|seeded| Some((&seeded.name, seeded.race.as_ref()?))).collect();
    let mut races = Vec::new();
    let progress = crate::progress::bar(known.len());
    for (name, (scenario, weak)) in known {
        progress.set_message(name.clone());
        let campaign = Campaign { scenario, set: if *weak { &[WEAK] } else { &[] }, schedules: MOST };
        let count = |seed: u64| {
            let answer =
                program.campaign(name, campaign.args(options.jobs), &["--seed".to_owned(), seed.to_string()])?;
            let found = !answer.wrong.is_empty();
            Ok(found.then(|| answer.cases()))
        };
        let counts = SEEDS.map(count).collect::<Result<Vec<_>, MutantsError>>()?;
        races.push(Race::new(name, scenario, counts));
        progress.inc(1);
    }
    progress.finish_and_clear();
    print(&mut anstream::stdout(), &races, options.json)?;
    Ok(if races.iter().all(Race::is_found) { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn print(out: &mut dyn Write, races: &[Race], json: bool) -> io::Result<()> {
    if json {
        return writeln!(out, "{}", serde_json::to_string_pretty(races)?);
    }
    writeln!(out, "schedules until each race is found, seeds {} to {}, at most {MOST}\n", SEEDS.start(), SEEDS.end())?;
    writeln!(out, "  {:<28} {:<16} {:>6} {:>7}  by seed", "bug", "scenario", "median", "maximum")?;
    for race in races {
        let by_seed: Vec<_> =
            race.schedules.iter().map(|count| count.map_or("missed".to_owned(), |count| count.to_string())).collect();
        let Race { name, scenario, median, maximum, .. } = race;
        writeln!(out, "  {name:<28} {scenario:<16} {median:>6} {maximum:>7}  {}", by_seed.join(" "))?;
    }
    let found = races.iter().filter(|race| race.is_found()).count();
    writeln!(out, "\n{found} of {} found by every seed; 0: the clean run was enough", races.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_that_misses_a_race_is_told_and_counts_as_more_than_all() {
        let race = Race::new("a-race", "block/low-zone", vec![Some(3), None, Some(1)]);
        assert_eq!((race.median, race.maximum, race.is_found()), (3, 2001, false));
        let mut text = Vec::new();
        print(&mut text, &[race], false).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("3 missed 1") && text.contains("0 of 1 found"), "{text}");
    }
}
