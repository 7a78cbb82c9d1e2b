//! The texts that tell a reader of `trace.dat` how events lie in memory and how they print: tracefs' `format` files.
//!
//! Fields lie with the wide ones first, so that none needs padding. Neighbours: `schema` names the fields, `dat` packs
//! them by [`Layout`].

use std::fmt::Write;

use crate::trace::export::schema::{EVENTS, Field, Form, Schema};
use crate::trace::export::value::{DIRS, ZONES};

/// Bytes of the fields that all events have.
pub(super) const COMMON: usize = 8;

/// `events/header_page` on 64 bits.
pub(super) const HEADER_PAGE: &str = "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;
\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;
\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;
\tfield: char data;\toffset:16;\tsize:4080;\tsigned:1;
";

/// `events/header_event`.
pub(super) const HEADER_EVENT: &str = "# compressed entry header
\ttype_len    :    5 bits
\ttime_delta  :   27 bits
\tarray       :   32 bits

\tpadding     : type == 29
\ttime_extend : type == 30
\ttime_stamp : type == 31
\tdata max type_len  == 28
";

const COMMON_FIELDS: &str = "\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;
";

impl Form {
    /// Bytes that it takes in an event's fixed part.
    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::Dec | Self::Hex | Self::Ptr | Self::Site => 8,
            Self::Dec32 | Self::Dir | Self::Zone | Self::Text => 4,
            Self::Flag => 1,
        }
    }

    const fn declared(self) -> (&'static str, bool) {
        match self {
            Self::Dec => ("size_t", false),
            Self::Hex | Self::Ptr => ("u64", false),
            Self::Site => ("unsigned long", false),
            Self::Dec32 | Self::Zone => ("u32", false),
            Self::Dir => ("int", true),
            Self::Text => ("__data_loc char[]", false),
            Self::Flag => ("u8", false),
        }
    }

    const fn printed(self) -> &'static str {
        match self {
            Self::Dec => "%llu",
            Self::Hex => "%llx",
            Self::Ptr => "0x%llx",
            Self::Site => "%ps",
            Self::Dec32 | Self::Flag => "%u",
            Self::Dir | Self::Zone | Self::Text => "%s",
        }
    }
}

/// The fields of an event in the order in which they lie, each with its offset.
pub(super) fn layout(fields: &[Field]) -> Vec<(usize, Field)> {
    let mut order: Vec<_> = fields.to_vec();
    order.sort_by_key(|field| std::cmp::Reverse(field.form.bytes()));
    let mut at = COMMON;
    order
        .into_iter()
        .map(|field| {
            let here = at;
            at += field.form.bytes();
            (here, field)
        })
        .collect()
}

/// The number of an event, which its records have as `common_type`: the kind's, above those that ftrace itself has.
pub(super) const fn id(kind: u16) -> u16 {
    500 + kind
}

fn symbolic(field: &Field, names: &[&str]) -> String {
    let pairs: Vec<_> = names.iter().enumerate().map(|(n, name)| format!("{{ {n}, \"{name}\" }}")).collect();
    format!("__print_symbolic(REC->{}, {})", field.name, pairs.join(", "))
}

fn argument(field: &Field) -> String {
    match field.form {
        Form::Text => format!("__get_str({})", field.name),
        Form::Dir => symbolic(field, &DIRS),
        Form::Zone => symbolic(field, &ZONES),
        Form::Site => format!("(void *)REC->{}", field.name),
        _ => format!("REC->{}", field.name),
    }
}

/// An event's `format` file.
fn format(kind: u16, schema: &Schema) -> String {
    let mut text = format!("name: {}\nID: {}\nformat:\n{COMMON_FIELDS}\n", schema.name, id(kind));
    for (offset, field) in layout(schema.fields) {
        let (declared, signed) = field.form.declared();
        let (name, size, signed) = (field.name, field.form.bytes(), u8::from(signed));
        // Into a String: it can't fail.
        let _ = writeln!(text, "\tfield:{declared} {name};\toffset:{offset};\tsize:{size};\tsigned:{signed};");
    }
    let shown = schema.fields.iter().map(|field| {
        let label = if field.labelled() { format!("{}=", field.name) } else { String::new() };
        label + field.form.printed()
    });
    let shown: Vec<_> = shown.collect();
    let arguments: Vec<_> = schema.fields.iter().map(argument).collect();
    let _ = writeln!(text, "\nprint fmt: \"{}\", {}", shown.join(" "), arguments.join(", "));
    text
}

/// All events' `format` files by system, in the order of the kinds' first numbers.
pub(super) fn formats() -> Vec<(&'static str, Vec<String>)> {
    let mut systems: Vec<(&str, Vec<String>)> = Vec::new();
    for (kind, schema) in EVENTS {
        let text = format(kind.map_or(0, lowzone_guest_mem::trace::Kind::number), schema);
        match systems.iter_mut().find(|(system, _)| *system == schema.system) {
            Some((_, texts)) => texts.push(text),
            None => systems.push((schema.system, vec![text])),
        }
    }
    systems
}
