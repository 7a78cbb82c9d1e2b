//! From text to a checked scenario.
//!
//! In this order, so that the first complaint is the most basic one: TOML, the shape (keys), the types, then each
//! `--set`, then the checks; an image that only a `--set` names is therefore no problem of the file. Neighbours: all
//! of `spec`. Left out: reading files.

use std::ops::Range;

use serde::Deserialize;
use toml::de::DeTable;
use toml::{Table, Value};

use super::check::{Fault, check};
use super::locate::Places;
use super::path::KeyPath;
use super::{Kinds, Problem, Scenario, Set, SpecError, catalogue, explain, set, shape};

/// The text of a scenario and what to call it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// A file's path, or the name of an embedded scenario.
    pub name: String,
    /// The whole text.
    pub text: String,
}

impl Source {
    /// The embedded scenario of this name, such as `block/low-zone`.
    pub fn embedded(name: &str) -> Option<Self> {
        catalogue::find(name).map(|text| Self { name: name.to_owned(), text: text.to_owned() })
    }
}

/// Reads a scenario, replaces what `sets` say, one after the other, and checks the result.
///
/// # Errors
/// The first problem, with its place in the file, or with the `--set` that brought it in.
///
/// ```
/// use lowzone::spec::{Set, Size, Source, load};
/// let source = Source::embedded("block/low-zone").unwrap();
/// let scenario = load(&source, &[Set::parse("ram=2G").unwrap()]).unwrap();
/// assert_eq!(scenario.machine.ram, Size(2 << 30));
///
/// let text = "story = 'x'\n[machine]\nrma = '6G'\n".to_owned();
/// let error = load(&Source { name: "x.toml".to_owned(), text }, &[]).unwrap_err();
/// assert_eq!(error.to_string(), "x.toml:3:1: unknown key 'rma'");
/// assert_eq!(error.problem().help().as_deref(), Some("did you mean 'ram'?"));
/// ```
pub fn load(source: &Source, sets: &[Set]) -> Result<Scenario, SpecError> {
    load_with(source, sets, &Kinds::default())
}

/// [`load`] in a program that has these kinds of drivers and devices.
///
/// # Errors
/// As [`load`].
pub fn load_with(source: &Source, sets: &[Set], kinds: &Kinds) -> Result<Scenario, SpecError> {
    let in_file = |problem, bytes| SpecError::in_file(problem, source, bytes);
    let document =
        DeTable::parse(&source.text).map_err(|error| in_file(explain::syntax(error.message()), error.span()))?;
    let places = Places::of(document.get_ref());
    shape::check(&places).map_err(|(problem, bytes)| in_file(*problem, bytes))?;
    let mut scenario: Scenario = toml::from_str(&source.text).map_err(|error| {
        let path = error.span().and_then(|bytes| places.path_of(&bytes));
        in_file(explain::value(error.message(), path), error.span())
    })?;
    let mut applied = Vec::new();
    if !sets.is_empty() {
        let mut file: Table = source
            .text
            .parse()
            .map_err(|error: toml::de::Error| in_file(explain::syntax(error.message()), error.span()))?;
        for set in sets {
            let (path, next) = apply(set, &mut file).map_err(|problem| SpecError::in_set(problem, set))?;
            scenario = next;
            applied.push((path, set));
        }
    }
    match check(&scenario, kinds) {
        Ok(()) => Ok(scenario),
        Err(fault) => Err(blame(fault, &applied).unwrap_or_else(|fault| {
            let bytes = place(&fault, &places);
            in_file(*fault.problem, bytes)
        })),
    }
}

/// Replaces one value in the file and reads it again.
fn apply(set: &Set, file: &mut Table) -> Result<(KeyPath, Scenario), Problem> {
    let path = set.resolve(file)?;
    let mut first = None;
    for value in set.values() {
        let mut changed = file.clone();
        set::assign(&mut changed, &path, value);
        match Scenario::deserialize(Value::Table(changed.clone())) {
            Ok(scenario) => {
                *file = changed;
                return Ok((path, scenario));
            }
            // `image=7` means the file called 7, so a text is tried too; the first complaint is the better one.
            Err(error) => first = first.or_else(|| Some(explain::value(error.message(), Some(&path)))),
        }
    }
    Err(first.unwrap_or_else(|| Problem::SetForm { text: format!("{}={}", set.path, set.value) }))
}

/// The last `--set` of a value that took part in a fault is to blame; without one, the fault comes back.
fn blame(fault: Fault, applied: &[(KeyPath, &Set)]) -> Result<SpecError, Fault> {
    let guilty = |wanted: &KeyPath| applied.iter().rev().find(|(path, _)| path.overlaps(wanted)).map(|(_, set)| *set);
    match fault.paths.iter().find_map(guilty) {
        Some(set) => Ok(SpecError::in_set(*fault.problem, set)),
        None => Err(fault),
    }
}

/// The place of the first value that is written out, or of the table around the one that is not; a key is shown itself.
fn place(fault: &Fault, places: &Places) -> Option<Range<usize>> {
    let written = fault.paths.iter().find_map(|path| places.get(path));
    let key = matches!(*fault.problem, Problem::UnknownKey { .. });
    written
        .map(|entry| if key { entry.key.clone() } else { entry.value.clone() })
        .or_else(|| fault.paths.first().and_then(|path| places.nearest(path)))
}
