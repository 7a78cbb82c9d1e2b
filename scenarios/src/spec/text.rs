//! A scenario as text, as short as it can be said.
//!
//! Neighbours: `load`, which reads it back; `explore::shrink`, which writes files. Left out: comments.

use serde::Deserialize;
use toml::{Table, Value};

use super::Scenario;
use super::path::{KeyPath, Part};

/// A scenario as the table of its file, without what is the default anyway.
pub(crate) fn table(scenario: &Scenario) -> Table {
    // All of a scenario serialises; an empty table reads back as nothing.
    let mut table = Table::try_from(scenario).unwrap_or_default();
    for path in paths(&table) {
        let mut less = table.clone();
        take(&mut less, &path);
        if Scenario::deserialize(Value::Table(less.clone())).is_ok_and(|same| same == *scenario) {
            table = less;
        }
    }
    table
}

/// The paths of all values, tables before what is in them.
pub(crate) fn paths(table: &Table) -> Vec<KeyPath> {
    let mut all = Vec::new();
    for (key, value) in table {
        inner(value, &KeyPath::default().key(key), &mut all);
    }
    all
}

fn inner(value: &Value, at: &KeyPath, all: &mut Vec<KeyPath>) {
    if matches!(at.parts().last(), Some(Part::Key(_))) {
        all.push(at.clone());
    }
    match value {
        Value::Table(table) => table.iter().for_each(|(key, value)| inner(value, &at.key(key), all)),
        Value::Array(list) => list.iter().enumerate().for_each(|(nth, value)| inner(value, &at.index(nth), all)),
        _ => {}
    }
}

/// The value at a path.
pub(crate) fn find<'a>(table: &'a mut Table, path: &KeyPath) -> Option<&'a mut Value> {
    let (Part::Key(first), rest) = path.parts().split_first()? else { return None };
    rest.iter().try_fold(table.get_mut(first)?, |value, part| match part {
        Part::Key(key) => value.get_mut(key.as_str()),
        Part::Index(at) => value.get_mut(*at),
    })
}

/// Takes the value of a key away, if it is there.
pub(crate) fn take(table: &mut Table, path: &KeyPath) {
    let outer = path.parent().unwrap_or_default();
    if outer.parts().is_empty() {
        table.remove(path.leaf());
    } else if let Some(Value::Table(inner)) = find(table, &outer) {
        inner.remove(path.leaf());
    }
}

/// The text of a file's table: its plain keys, its tables, then its lists of tables, one line a key.
pub(crate) fn text(table: &Table) -> String {
    let mut text = String::new();
    let lines = |inner: &Table| inner.iter().map(|(key, value)| format!("{key} = {value}\n")).collect::<String>();
    let of_tables = |value: &Value| value.as_array().is_some_and(|list| list.iter().any(Value::is_table));
    let plain = |value: &Value| !value.is_table() && !of_tables(value);
    let order = ["story", "needs", "strikes"];
    let rank = |key: &str| order.iter().position(|known| *known == key).unwrap_or(order.len());
    let mut keys: Vec<_> = table.iter().filter(|(_, value)| plain(value)).collect();
    keys.sort_by_key(|(key, _)| rank(key));
    keys.iter().for_each(|(key, value)| text += &format!("{key} = {value}\n"));
    for (key, value) in table.iter().filter(|(_, value)| value.is_table()) {
        text += &format!("\n[{key}]\n{}", value.as_table().map(lines).unwrap_or_default());
    }
    for (key, value) in table.iter().filter(|(_, value)| of_tables(value)) {
        for element in value.as_array().into_iter().flatten().filter_map(Value::as_table) {
            text += &format!("\n[[{key}]]\n{}", lines(element));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::{Source, load};
    use super::*;

    #[test]
    fn every_scenario_reads_back_from_its_short_text_as_itself() {
        for entry in super::super::catalogue::entries() {
            let source = Source { name: entry.name.to_owned(), text: entry.text.to_owned() };
            let Ok(scenario) = load(&source, &[]) else { continue };
            let text = text(&table(&scenario));
            let again = load(&Source { name: entry.name.to_owned(), text: text.clone() }, &[]);
            assert_eq!(again.ok().as_ref(), Some(&scenario), "{text}");
            let plain = entry.text.lines().filter(|line| !line.starts_with('#')).count();
            assert!(text.lines().count() <= plain + 1, "{}:\n{text}", entry.name);
        }
    }
}
