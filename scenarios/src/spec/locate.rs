//! Where in a file's text each key and value stands.
//!
//! The typed scenario carries no places, so that runners see plain types; this is asked for a place when there is
//! something to complain about. Neighbours: `path`, `shape`, `load`. Left out: comments and blanks.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::path::KeyPath;

/// Where one value stands.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its path.
    pub(super) path: KeyPath,
    /// Bytes of its key; of an array's element, those of the element.
    pub(super) key: Range<usize>,
    /// Bytes of the value; of a table with a header, those of the header.
    pub(super) value: Range<usize>,
    /// What it is, in TOML's words, such as `table`.
    pub(super) kind: &'static str,
}

/// Every key and element of one file, in the order of the text.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Vec<Entry>);

impl Entry {
    /// Whether it is a table.
    pub(super) fn is_table(&self) -> bool {
        self.kind == "table"
    }
}

impl Places {
    /// Lists a parsed document.
    pub(super) fn of(document: &DeTable<'_>) -> Self {
        let mut entries = Vec::new();
        list_table(document, &KeyPath::default(), &mut entries);
        entries.sort_by_key(|entry| (entry.key.start, entry.path.parts().len()));
        Self(entries)
    }

    /// All entries, in the order of the text.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter()
    }

    /// The entry of exactly this path.
    pub(super) fn get(&self, path: &KeyPath) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.path == *path)
    }

    /// The place of a value, or of the nearest table around it that is written out.
    pub(super) fn nearest(&self, path: &KeyPath) -> Option<Range<usize>> {
        let mut path = path.clone();
        loop {
            if let Some(entry) = self.get(&path) {
                return Some(entry.value.clone());
            }
            path = path.parent()?;
        }
    }

    /// The path of the innermost key or value that spans exactly these bytes.
    pub(super) fn path_of(&self, bytes: &Range<usize>) -> Option<&KeyPath> {
        let spans = |entry: &&Entry| entry.value == *bytes || entry.key == *bytes;
        self.0.iter().filter(spans).map(|entry| &entry.path).max_by_key(|path| path.parts().len())
    }
}

fn list_table(table: &DeTable<'_>, path: &KeyPath, out: &mut Vec<Entry>) {
    for (key, value) in table {
        list_value(value.get_ref(), path.key(key.get_ref()), key.span(), value.span(), out);
    }
}

fn list_value(value: &DeValue<'_>, path: KeyPath, key: Range<usize>, bytes: Range<usize>, out: &mut Vec<Entry>) {
    match value {
        DeValue::Table(table) => list_table(table, &path, out),
        DeValue::Array(array) => {
            for (i, element) in array.iter().enumerate() {
                list_value(element.get_ref(), path.index(i), element.span(), element.span(), out);
            }
        }
        _ => {}
    }
    out.push(Entry { path, key, value: bytes, kind: value.type_str() });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_found() {
        let text = "story = 'x'\n[machine]\nram = '6G'\n[[step]]\nio = { bytes = 512 }\n[[step]]\nprobe = {}\n";
        let places = Places::of(DeTable::parse(text).unwrap().get_ref());
        let word = |path: &str| {
            let entry = places.get(&KeyPath::parse(path).unwrap()).unwrap();
            (&text[entry.key.clone()], &text[entry.value.clone()])
        };
        assert_eq!(word("machine.ram"), ("ram", "'6G'"));
        assert_eq!(word("step[0].io.bytes"), ("bytes", "512"));
        assert_eq!(word("step[1].probe"), ("probe", "{}"));
        let near = places.nearest(&KeyPath::parse("machine.low").unwrap()).unwrap();
        assert_eq!(&text[near], "[machine]");
        assert_eq!(places.nearest(&KeyPath::parse("driver.msix").unwrap()), None);
        let at = text.find("512").unwrap();
        assert_eq!(places.path_of(&(at..at + 3)).unwrap().to_string(), "step[0].io.bytes");
    }
}
