//! `--set path=value`: one value of a scenario replaced from outside.
//!
//! The path is a full one (`machine.ram`, `device.vda.width`, `device[0].width`, `step[1].io.requests`; the index or
//! name may be left out where there is one element, or one step of that verb), or a bare key. A bare key means the
//! one place of the file that has it; a key that the file leaves to its default means the one place of this file
//! where the schema would take it. Neighbours: `load`, which applies them and blames them. Left out: removing a key.

use toml::{Table, Value};

use super::path::{KeyPath, Part};
use super::{Problem, SpecError, nearest::nearest, schema, shape};

/// A value from outside the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set {
    /// A full path or a bare key, as it was given.
    pub path: String,
    /// The value: TOML, or a text without quotes.
    pub value: String,
}

impl Set {
    /// Reads `path=value`, split at the first `=`.
    ///
    /// # Errors
    /// [`Problem::SetForm`] without `=`, or with something before it that is no path.
    ///
    /// ```
    /// use lowzone::spec::Set;
    /// let set = Set::parse("machine.ram=2G").unwrap();
    /// assert_eq!((set.path.as_str(), set.value.as_str()), ("machine.ram", "2G"));
    /// assert!(Set::parse("machine.ram").is_err());
    /// ```
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let parts = text.split_once('=').map(|(path, value)| (path.trim(), value));
        match parts.filter(|(path, _)| KeyPath::parse(path).is_some()) {
            Some((path, value)) => Ok(Self { path: path.to_owned(), value: value.to_owned() }),
            None => Err(SpecError::in_argument("--set", Problem::SetForm { text: text.to_owned() }, text, 0)),
        }
    }

    /// The values it can mean, the likeliest first: what it is as TOML, then its text as it stands.
    pub(super) fn values(&self) -> Vec<Value> {
        let text = Value::String(self.value.clone());
        match self.value.parse::<Value>() {
            Ok(Value::String(inner)) => vec![Value::String(inner)],
            Ok(value) => vec![value, text],
            Err(_) => vec![text],
        }
    }

    /// The one place of this file that it means.
    pub(super) fn resolve(&self, file: &Table) -> Result<KeyPath, Problem> {
        let form = || Problem::SetForm { text: format!("{}={}", self.path, self.value) };
        let path = KeyPath::parse(&self.path).ok_or_else(form)?;
        match path.parts() {
            [Part::Key(key)] if !known_at_root(key) => bare(key, file),
            _ => full(&path, file),
        }
    }
}

fn known_at_root(key: &str) -> bool {
    schema::at(&KeyPath::default().key(key)).is_some()
}

/// The place of a bare key.
fn bare(key: &str, file: &Table) -> Result<KeyPath, Problem> {
    let mut here = Vec::new();
    occurrences(key, &Value::Table(file.clone()), &KeyPath::default(), &mut here);
    if here.is_empty() {
        for known in schema::known().iter().filter(|known| known.path.leaf() == key) {
            could_be(known.path.parts(), Some(file), &KeyPath::default(), &mut here);
        }
    }
    match here.as_slice() {
        [only] => Ok(only.clone()),
        [] if schema::known().iter().any(|known| known.path.leaf() == key) => {
            Err(Problem::SetNowhere { path: key.to_owned(), near: None })
        }
        [] => Err(no_such(key)),
        many => {
            Err(Problem::SetAmbiguous { key: key.to_owned(), paths: many.iter().map(KeyPath::to_string).collect() })
        }
    }
}

fn no_such(key: &str) -> Problem {
    let near = nearest(key, schema::known().iter().map(|known| known.path.leaf()));
    Problem::SetNowhere { path: key.to_owned(), near: near.map(str::to_owned) }
}

/// Where a key stands in the file.
fn occurrences(key: &str, value: &Value, path: &KeyPath, out: &mut Vec<KeyPath>) {
    match value {
        Value::Table(table) => {
            for (name, inner) in table {
                let path = path.key(name);
                if name == key {
                    out.push(path.clone());
                }
                occurrences(key, inner, &path, out);
            }
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, inner)| occurrences(key, inner, &path.index(i), out));
        }
        _ => {}
    }
}

/// Where a key could stand in the file: in tables that may be made at the root, in devices and verbs that are there.
fn could_be(rest: &[Part], table: Option<&Table>, path: &KeyPath, out: &mut Vec<KeyPath>) {
    match rest {
        [Part::Key(last)] => out.push(path.key(last)),
        [Part::Key(list), Part::Index(_), rest @ ..] => {
            let elements = table.and_then(|table| table.get(list)).and_then(Value::as_array);
            for (i, element) in elements.into_iter().flatten().enumerate() {
                could_be(rest, element.as_table(), &path.key(list).index(i), out);
            }
        }
        [Part::Key(name), rest @ ..] => {
            let inner = table.and_then(|table| table.get(name)).and_then(Value::as_table);
            if inner.is_some() || path.parts().is_empty() {
                could_be(rest, inner, &path.key(name), out);
            }
        }
        _ => {}
    }
}

/// The place of a path that starts at the root.
fn full(path: &KeyPath, file: &Table) -> Result<KeyPath, Problem> {
    let root = Value::Table(file.clone());
    let mut now = Some(&root);
    let mut out = KeyPath::default();
    let mut parts = path.parts().iter().peekable();
    while let Some(part) = parts.next() {
        if let (Part::Key(key), Some(Value::Array(list))) = (part, now) {
            let at = element(key, list, &out, path)?;
            out = out.index(at);
            now = list.get(at);
            if now.and_then(|device| device.get("name")).and_then(Value::as_str) == Some(key) && parts.peek().is_some()
            {
                continue;
            }
        }
        let last = parts.peek().is_none();
        let next = match part {
            Part::Key(key) => now.and_then(Value::as_table).and_then(|table| table.get(key)),
            Part::Index(at) => now.and_then(Value::as_array).and_then(|list| list.get(*at)),
        };
        let step = match part {
            Part::Key(key) => out.key(key),
            Part::Index(at) => out.index(*at),
        };
        let free = schema::at(&step).is_some_and(|known| known.free);
        let known = schema::at(&step).is_some() || schema::in_free(&step);
        match part {
            Part::Key(key) if !known && now.is_none_or(|value| !value.is_array()) => {
                return Err(shape::unknown(&step, key));
            }
            // A key left to its default may be given, and so may a table that lies in no list and one of options.
            Part::Key(_) if next.is_none() && (last || free || in_no_list(&out)) && !is_step(&out) => {}
            _ if next.is_none() => return Err(Problem::SetNowhere { path: step.to_string(), near: None }),
            _ => {}
        }
        out = step;
        now = next;
    }
    Ok(out)
}

fn in_no_list(path: &KeyPath) -> bool {
    path.parts().iter().all(|part| part.name().is_some())
}

fn is_step(path: &KeyPath) -> bool {
    matches!(path.parts(), [Part::Key(list), Part::Index(_)] if list == "step")
}

/// The element of a list that a key picks: the device of that name, the only element, or the only one with that key.
fn element(key: &str, list: &[Value], at: &KeyPath, path: &KeyPath) -> Result<usize, Problem> {
    let named = |value: &Value| value.get("name").and_then(Value::as_str) == Some(key);
    if let Some(i) = list.iter().position(named) {
        return Ok(i);
    }
    if list.len() == 1 {
        return Ok(0);
    }
    let has = |(i, value): (usize, &Value)| value.get(key).map(|_| i);
    match list.iter().enumerate().filter_map(has).collect::<Vec<_>>().as_slice() {
        [only] => Ok(*only),
        [] if is_step(&at.index(0)) => Err(Problem::SetNowhere { path: path.to_string(), near: None }),
        some => {
            let count = if some.is_empty() { (0..list.len()).collect() } else { some.to_vec() };
            let paths = count.iter().map(|&i| at.index(i).key(key).to_string()).collect();
            Err(Problem::SetAmbiguous { key: path.to_string(), paths })
        }
    }
}

/// Puts a value where a path, resolved in this file, leads to; tables on the way are made.
pub(super) fn assign(file: &mut Table, path: &KeyPath, value: Value) {
    let Some((Part::Key(first), rest)) = path.parts().split_first() else { return };
    let mut now = file.entry(first).or_insert_with(|| Value::Table(Table::new()));
    for part in rest {
        let next = match (part, now) {
            (Part::Key(key), Value::Table(table)) => {
                Some(table.entry(key).or_insert_with(|| Value::Table(Table::new())))
            }
            (Part::Index(at), Value::Array(list)) => list.get_mut(*at),
            _ => None,
        };
        let Some(next) = next else { return };
        now = next;
    }
    *now = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "story = 's'\n[machine]\nram = '6G'\n\
        [[device]]\nname = 'vda'\nkind = 'virtio-blk'\nsize = '8M'\n\
        [[device]]\nname = 'vdb'\nkind = 'virtio-blk'\nimage = ''\n\
        [[step]]\nprobe = {}\n[[step]]\nio = { device = 'vda', requests = 4 }\n";

    fn resolve(path: &str) -> Result<String, Problem> {
        let set = Set { path: path.to_owned(), value: String::new() };
        set.resolve(&FILE.parse().unwrap()).map(|path| path.to_string())
    }

    #[test]
    fn full_paths_and_bare_keys_find_their_place() {
        for (given, place) in [
            ("machine.ram", "machine.ram"),
            ("machine.low", "machine.low"),
            ("driver.dma_mask", "driver.dma_mask"),
            ("device[1].width", "device[1].width"),
            ("device.vdb.width", "device[1].width"),
            ("step[1].io.requests", "step[1].io.requests"),
            ("step.io.depth", "step[1].io.depth"),
            ("ram", "machine.ram"),
            ("image", "device[1].image"),
            ("dma_mask", "driver.dma_mask"),
            ("leaks", "expect.leaks"),
            ("depth", "step[1].io.depth"),
            ("fault.slab.ignore-gfp-wait", "fault.slab.ignore-gfp-wait"),
            ("story", "story"),
        ] {
            assert_eq!(resolve(given).as_deref(), Ok(place), "{given}");
        }
    }

    #[test]
    fn what_is_ambiguous_lists_the_paths() {
        let help = |path| resolve(path).unwrap_err().help().unwrap();
        assert_eq!(help("queues"), "give the full path: device[0].queues, device[1].queues, driver.queues");
        assert_eq!(help("name"), "give the full path: device[0].name, device[1].name");
        assert_eq!(help("device.width"), "give the full path: device[0].width, device[1].width");
    }

    #[test]
    fn what_is_nowhere_offers_the_nearest() {
        let problem = |path| resolve(path).unwrap_err();
        assert_eq!(problem("imgae").help().as_deref(), Some("did you mean 'image'?"));
        assert_eq!(problem("machine.rma").help().as_deref(), Some("did you mean 'ram'?"));
        assert_eq!(problem("device.vda.widht").help().as_deref(), Some("did you mean 'width'?"));
        assert_eq!(problem("unmap").to_string(), "this scenario has no 'unmap'");
        assert_eq!(problem("fault.slap.times").help().as_deref(), Some("did you mean 'slab'?"));
        assert_eq!(problem("step[7].io.depth").to_string(), "this scenario has no 'step[7]'");
        assert_eq!(problem("step[0].io.depth").to_string(), "this scenario has no 'step[0].io'");
        assert_eq!(problem("step.copy.depth").to_string(), "this scenario has no 'step.copy.depth'");
        assert_eq!(problem("machine.ram.low").to_string(), "unknown key 'low'");
    }

    #[test]
    fn values_are_toml_or_text() {
        let values = |value: &str| Set { path: "x".into(), value: value.into() }.values();
        assert_eq!(values("2G"), [Value::String("2G".into())]);
        assert_eq!(values("64"), [Value::Integer(64), Value::String("64".into())]);
        assert_eq!(values("'64'"), [Value::String("64".into())]);
        assert_eq!(values("/tmp/a b.img"), [Value::String("/tmp/a b.img".into())]);
        assert_eq!(values("[]").len(), 2);
    }
}
