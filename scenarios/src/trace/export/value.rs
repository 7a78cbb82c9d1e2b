//! What a field says of one event, and texts that are safe to show.
//!
//! An unmap or a sync has no direction of its own in the record: [`Live`] remembers those of the mappings that are live,
//! so that memory is bounded by them. Texts come from the file and may hold anything: what is no printing character is
//! shown as an escape. Neighbours: `schema` says which fields there are.

use std::borrow::Cow;
use std::collections::BTreeMap;

use lowzone_guest_mem::dma::direction::Dir;
use lowzone_guest_mem::trace::Shape;

use super::schema::Of;
use crate::trace::event::Event;
use crate::trace::names::Names;
use crate::trace::shown::prints;

/// A mapping that is live.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mapped {
    pub(super) dev: u16,
    pub(super) len: u32,
    pub(super) shape: Option<Shape>,
    /// For whoever numbers places to draw them in.
    pub(super) lane: u32,
}

/// The mappings that are live, by transaction.
#[derive(Debug, Default)]
pub(super) struct Live(BTreeMap<u64, Mapped>);

impl Live {
    /// Takes an event into account; the mapping that it belongs to, if it is live or ends here.
    pub(super) fn take(&mut self, event: &Event) -> Option<Mapped> {
        let id = event.transaction();
        if event.is_map() {
            let shape = event.mapping.and_then(|(_, shape, _)| shape);
            let mapped = Mapped { dev: event.raw.dev, len: event.raw.len, shape, lane: 0 };
            self.0.insert(id, mapped);
            return Some(mapped);
        }
        if event.is_unmap() { self.0.remove(&id) } else { self.0.get(&id).copied() }
    }

    /// The live mapping of a transaction, to be changed.
    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Mapped> {
        self.0.get_mut(&id)
    }
}

/// What a field says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Value<'a> {
    Number(u64),
    /// An owner of the trace's tables.
    Owner(u64),
    Text(Cow<'a, str>),
}

/// `DMA_NONE`: a mapping that was refused, or whose beginning is not in the trace.
const NO_DIR: u64 = 3;
/// The directions' names in Linux's tracepoints, by number.
pub(super) const DIRS: [&str; 4] = ["BIDIRECTIONAL", "TO_DEVICE", "FROM_DEVICE", "NONE"];
/// The zones' names, by number; the last for what lies in none.
pub(super) const ZONES: [&str; 5] = ["DMA", "DMA32", "Normal", "HighMem", "none"];

fn dir(shape: Option<Shape>) -> u64 {
    shape.map_or(NO_DIR, |shape| match shape.dir {
        Dir::Bidirectional => 0,
        Dir::ToDevice => 1,
        Dir::FromDevice => 2,
    })
}

/// What a field says of an event, whose mapping [`Live::take`] gave.
pub(super) fn value<'a>(of: Of, event: &Event, mapped: Option<Mapped>, names: &'a Names) -> Value<'a> {
    let raw = &event.raw;
    let own = event.mapping.and_then(|(_, shape, _)| shape);
    let shape = own.or(mapped.and_then(|mapped| mapped.shape));
    let zone = |zone: Option<lowzone_guest_mem::zone::ZoneKind>| zone.map_or(4, |zone| zone.index() as u64);
    Value::Number(match of {
        Of::Device => return Value::Text(names.device(raw.dev).map_or("-".into(), |name| shown(name.into()))),
        Of::Finding => {
            let name = names.finding(raw.len).map_or("?", |finding| finding.name.as_str());
            return Value::Text(shown(name.into()));
        }
        Of::CallSite => return Value::Owner(event.mapping.map_or(event.by, |(_, _, by)| Some(by)).unwrap_or(0)),
        Of::AllocSite => return Value::Owner(event.buffer.map_or(0, |(_, by)| by)),
        Of::Dir => dir(shape),
        Of::Addr => raw.addr,
        Of::Pfn => raw.addr >> 12,
        Of::Order => u64::from(u64::from(raw.len).div_ceil(4096).max(1).next_power_of_two().trailing_zeros()),
        Of::Len => u64::from(raw.len),
        Of::Tag => raw.tag,
        Of::Tx => event.transaction(),
        Of::Phys => event.mapping.map_or(0, |(phys, ..)| phys),
        Of::Buffer => event.buffer.map_or(0, |(buffer, _)| buffer),
        Of::Zone => zone(own.map(|shape| shape.zone)),
        Of::BufferZone => zone(own.map(|shape| shape.buffer_zone)),
        Of::Bounced => u64::from(shape.is_some_and(|shape| shape.bounced)),
        Of::Copied => u64::from(event.copied),
        Of::Kind => u64::from(raw.kind),
    })
}

/// Who an owner of the trace's tables is, as a symbol's name: no white space.
pub(super) fn symbol(owner: u64, names: &Names) -> String {
    let Some(text) = names.owner(owner) else { return "nobody".to_owned() };
    word(&text.replacen(" in ", "@", 1))
}

/// The longest text that is shown of a name.
const LONGEST: usize = 200;

/// A text without what would not print or would turn the direction of what follows, and not too long.
pub(super) fn shown(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.len() <= LONGEST && text.chars().all(prints) {
        return text;
    }
    let mut safe = String::new();
    for c in text.chars() {
        if safe.len() >= LONGEST {
            safe.push('…');
            break;
        }
        if prints(c) { safe.push(c) } else { safe.extend(c.escape_default()) }
    }
    safe.into()
}

/// A text as one word.
pub(super) fn word(text: &str) -> String {
    shown(text.into()).chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_print_is_escaped_and_markup_stays_itself() {
        assert_eq!(shown("<b>\u{1b}[31m\n\u{202e}é".into()), "<b>\\u{1b}[31m\\n\\u{202e}é");
        assert_eq!(word("a b\tc"), "a_b\\tc");
        let long = shown("x".repeat(5000).into());
        assert!(long.ends_with('…') && long.len() < 210);
        assert!(matches!(shown("vda".into()), Cow::Borrowed("vda")));
    }
}
