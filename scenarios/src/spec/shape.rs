//! The shape of a file: no key that its table doesn't know, none missing, one verb a step.
//!
//! The schema made from the types decides, before serde reads the values, because serde tells neither where a
//! missing key's table starts nor where else an unknown key belongs. Neighbours: `schema`, `locate`; `explain` takes
//! over for values. Left out: values.

use std::ops::Range;

use super::Problem;
use super::locate::{Entry, Places};
use super::nearest::nearest;
use super::path::{KeyPath, Part};
use super::schema;

/// A problem and its bytes (`None`: the file as a whole).
type Misshapen = (Box<Problem>, Option<Range<usize>>);

/// The first unknown key or wrong step in the order of the text; if there is none, the first missing key.
///
/// A mistyped key is both, and the unknown one is the one to show.
pub(super) fn check(places: &Places) -> Result<(), Misshapen> {
    for entry in places.iter() {
        match entry.path.parts() {
            [.., Part::Key(name)] => known_key(entry, name)?,
            [Part::Key(list), Part::Index(_)] if list == "step" => verb(entry, places)?,
            _ => {}
        }
    }
    missing(&KeyPath::default(), places, None)?;
    let mut tables = places.iter().filter(|entry| entry.is_table());
    tables.try_for_each(|entry| missing(&entry.path, places, Some(entry.value.clone())))
}

/// Whether its table knows this key.
fn known_key(entry: &Entry, name: &str) -> Result<(), Misshapen> {
    match schema::at(&entry.path) {
        Some(_) => Ok(()),
        // Which keys go there only the kind knows.
        None if schema::in_free(&entry.path) => Ok(()),
        None => Err((Box::new(unknown(&entry.path, name)), Some(entry.key.clone()))),
    }
}

/// The complaint about a key that the table around it doesn't know.
pub(super) fn unknown(path: &KeyPath, name: &str) -> Problem {
    let table = path.parent().unwrap_or_default();
    let valid: Vec<String> = schema::keys_of(&table).map(|known| known.path.leaf().to_owned()).collect();
    let near = nearest(name, valid.iter().map(String::as_str)).map(str::to_owned);
    let key = name.to_owned();
    if matches!(table.parts(), [Part::Key(list), Part::Index(_)] if list == "step") {
        return Problem::UnknownVerb { verb: key, near, verbs: valid };
    }
    let same = schema::known().iter().filter(|known| known.path.leaf() == name);
    // An index stands for any element here, so it is left away: `device.width`.
    let elsewhere = same.map(|known| known.path.to_string().replace("[0]", "")).collect();
    Problem::UnknownKey { key, near, elsewhere, valid }
}

/// Whether a table has all the keys it needs.
fn missing(table: &KeyPath, places: &Places, at: Option<Range<usize>>) -> Result<(), Misshapen> {
    let lost = schema::keys_of(table)
        // The verbs are each required in their own alternative of the schema, none of them in all.
        .filter(|known| known.required && known.path.parent().is_some_and(|table| !is_step(&table)))
        .map(|known| known.path.leaf())
        .find(|name| places.get(&table.key(name)).is_none());
    match lost {
        Some(name) => Err((Box::new(Problem::MissingKey { key: name.to_owned() }), at)),
        None => Ok(()),
    }
}

fn is_step(path: &KeyPath) -> bool {
    matches!(path.parts(), [Part::Key(list), Part::Index(_)] if list == "step")
}

/// Whether a step is a table with one verb.
fn verb(step: &Entry, places: &Places) -> Result<(), Misshapen> {
    if !step.is_table() {
        let (key, found, expected) = ("step".to_owned(), step.kind.to_owned(), "a table with one verb".to_owned());
        return Err((Box::new(Problem::Mismatch { key, found, expected }), Some(step.value.clone())));
    }
    let here: Vec<&Entry> = places.iter().filter(|entry| entry.path.parent().as_ref() == Some(&step.path)).collect();
    match here.as_slice() {
        [] => {
            let verbs = schema::keys_of(&step.path).map(|known| known.path.leaf().to_owned()).collect();
            Err((Box::new(Problem::NoVerb { verbs }), Some(step.value.clone())))
        }
        [_, second, ..] if here.iter().all(|entry| schema::at(&entry.path).is_some()) => {
            let verbs = here.iter().map(|entry| entry.path.leaf().to_owned()).collect();
            Err((Box::new(Problem::ManyVerbs { verbs }), Some(second.key.clone())))
        }
        // One verb; or one of them is unknown, which its own entry will say.
        _ => Ok(()),
    }
}
