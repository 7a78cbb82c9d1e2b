//! The JSON Schema of scenario files, and what is known from it: which keys are valid where.
//!
//! The schema is made from the types, so editors and our own errors agree. Neighbours: `shape` (unknown and missing
//! keys), `set` (bare keys), `explain` (ranges). Left out: limits between keys, which JSON Schema can't say.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::path::{KeyPath, Part};
use super::{Kinds, Scenario};

/// The JSON Schema (draft 2020-12) that editors use to check and complete scenario files.
///
/// ```
/// let schema = lowzone::spec::schema();
/// assert_eq!(schema["required"], serde_json::json!(["story"]));
/// ```
pub fn schema() -> Value {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Scenario>().to_value()
}

/// [`schema`] with the names of these kinds, so that editors offer them.
///
/// ```
/// let schema = lowzone::spec::schema_with(&lowzone::spec::Kinds::default());
/// let kinds = &schema["$defs"]["Device"]["properties"]["kind"]["enum"];
/// assert_eq!(*kinds, serde_json::json!(["virtio-blk", "edu", "virtio-net"]));
/// ```
pub fn schema_with(kinds: &Kinds) -> Value {
    let mut schema = schema();
    for (table, kinds) in [("Device", &kinds.devices), ("Driver", &kinds.drivers)] {
        let names: Vec<_> = kinds.iter().map(|kind| kind.name).collect();
        if let Some(kind) = schema.pointer_mut(&format!("/$defs/{table}/properties/kind")) {
            kind["enum"] = names.into();
        }
    }
    schema
}

/// One key that a scenario may have.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// Where it belongs; every index in it is 0 and stands for any.
    pub(super) path: KeyPath,
    /// Whether its table must have it.
    pub(super) required: bool,
    /// The smallest and largest integer it takes, where the schema says.
    pub(super) range: (Option<u64>, Option<u64>),
    /// Whether it is a table that may have any key.
    pub(super) free: bool,
}

static KNOWN: LazyLock<Vec<Known>> = LazyLock::new(|| {
    let root = schema();
    let mut out = Vec::new();
    walk(&root, &root, &KeyPath::default(), &mut out);
    out
});

/// All keys, each table's together.
pub(super) fn known() -> &'static [Known] {
    &KNOWN
}

/// The keys valid in the table at `path`.
pub(super) fn keys_of(path: &KeyPath) -> impl Iterator<Item = &'static Known> {
    let table = pattern(path);
    known().iter().filter(move |known| known.path.parent().as_ref() == Some(&table))
}

/// What is known of the key at `path`.
pub(super) fn at(path: &KeyPath) -> Option<&'static Known> {
    let wanted = pattern(path);
    known().iter().find(|known| known.path == wanted)
}

/// Whether a path leads into a table that may have any key.
pub(super) fn in_free(path: &KeyPath) -> bool {
    path.parent().as_ref().and_then(at).is_some_and(|known| known.free)
}

/// The path with every index 0, as [`Known::path`] has it.
fn pattern(path: &KeyPath) -> KeyPath {
    path.parts().iter().fold(KeyPath::default(), |out, part| match part {
        Part::Key(name) => out.key(name),
        Part::Index(_) => out.index(0),
    })
}

fn walk(root: &Value, schema: &Value, path: &KeyPath, out: &mut Vec<Known>) {
    if let Some(pointer) = schema["$ref"].as_str().and_then(|text| text.strip_prefix('#')) {
        // The types hold no type within itself, so this ends.
        return walk(root, root.pointer(pointer).unwrap_or(&Value::Null), path, out);
    }
    for list in ["anyOf", "oneOf", "allOf"] {
        for choice in schema[list].as_array().into_iter().flatten() {
            walk(root, choice, path, out);
        }
    }
    if schema["items"].is_object() {
        walk(root, &schema["items"], &path.index(0), out);
    }
    let required = schema["required"].as_array();
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = path.key(name);
        let required = required.is_some_and(|names| names.iter().any(|n| n == name));
        let range = (inner["minimum"].as_u64(), inner["maximum"].as_u64());
        let target = inner["$ref"].as_str().and_then(|text| root.pointer(text.strip_prefix('#')?)).unwrap_or(inner);
        let free = target["additionalProperties"].is_object();
        out.push(Known { path: path.clone(), required, range, free });
        walk(root, inner, &path, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> KeyPath {
        KeyPath::parse(text).unwrap()
    }

    #[test]
    fn every_table_and_verb_is_known() {
        for text in ["story", "machine.ram", "device[3].width", "driver.dma_mask", "step[0].probe", "expect.findings"] {
            assert!(at(&path(text)).is_some(), "{text}");
        }
        let verbs: Vec<_> = keys_of(&path("step[7]")).map(|known| known.path.leaf()).collect();
        assert_eq!(
            verbs,
            [
                "probe",
                "io",
                "exercise",
                "dma",
                "packets",
                "raw_packet",
                "copy",
                "clear",
                "raw_read",
                "irq_alloc",
                "canary",
                "hold",
                "story",
                "in_flight",
                "shutdown",
                "remove",
                "recover"
            ]
        );
        assert!(at(&path("machine.width")).is_none());
    }

    #[test]
    fn required_and_ranges_come_from_the_types() {
        assert!(at(&path("device[0].name")).unwrap().required);
        assert!(!at(&path("device[0].width")).unwrap().required);
        assert_eq!(at(&path("device[0].width")).unwrap().range, (Some(1), Some(64)));
    }

    /// Finds objects that describe keys but say nothing about one of them.
    fn undescribed(schema: &Value, at: &str, out: &mut Vec<String>) {
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            if !inner["description"].is_string() && !inner["$ref"].is_string() {
                out.push(format!("{at}.{name}"));
            }
        }
        match schema {
            Value::Object(map) => map.iter().for_each(|(name, inner)| undescribed(inner, &format!("{at}/{name}"), out)),
            Value::Array(list) => list.iter().for_each(|inner| undescribed(inner, at, out)),
            _ => {}
        }
    }

    #[test]
    fn every_key_has_a_description_and_every_table_is_closed() {
        let schema = schema();
        let mut missing = Vec::new();
        undescribed(&schema, "", &mut missing);
        assert_eq!(missing, Vec::<String>::new());
        for name in ["Machine", "Device", "Driver", "Expect", "IoStep"] {
            assert_eq!(schema["$defs"][name]["additionalProperties"], false, "{name}");
        }
        assert_eq!(schema["$defs"]["Machine"]["properties"]["ram"]["default"], "6G");
    }
}
