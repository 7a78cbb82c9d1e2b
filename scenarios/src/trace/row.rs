//! One event as people and programs read it: the same fields as a line of text and as JSON.
//!
//! Neighbours: `show`, `diff`, `around`. Left out: colour; lines are often long and go through `grep`.

use std::fmt;

use lowzone_guest_mem::trace::Kind;
use serde::Serialize;

use super::event::{Event, Link};
use super::names::Names;

/// One event, with its numbers resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    pub(super) event: u64,
    pub(super) ns: u64,
    pub(super) producer: String,
    pub(super) kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) device: Option<String>,
    pub(super) addr: u64,
    pub(super) len: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) transaction: Option<u64>,
    /// The tag of a kind for which it is neither a transaction nor an owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) finding: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) direction: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) phys: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bounced: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) buffer: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) buffer_zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) allocated_by: Option<String>,
    /// Why the request was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refused: Option<String>,
    /// Descriptors of a chain, and chains that the device took or gave back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) links: Vec<String>,
}

impl Row {
    pub(super) fn of(event: &Event, names: &Names) -> Self {
        let raw = &event.raw;
        let kind = event.kind();
        let transaction = Some(event.transaction()).filter(|&id| id != 0);
        let other = kind.is_none_or(|kind| !kind.tag_is_owner() && !kind.tag_is_transaction());
        let register = matches!(kind, Some(Kind::MmioRead | Kind::MmioWrite));
        let finding = (kind == Some(Kind::Finding)).then(|| names.finding(raw.len));
        let mut row = Self {
            event: event.number,
            ns: raw.ts,
            producer: names.producer(raw.who),
            kind: names.kind(raw.kind),
            device: names.device(raw.dev),
            addr: raw.addr,
            len: raw.len,
            transaction,
            value: (register || (other && raw.tag != 0)).then_some(raw.tag),
            finding: finding.map(|known| known.map_or_else(|| "?".to_owned(), |finding| finding.name.clone())),
            by: event.by.and_then(|word| names.owner(word)),
            ..Self::default()
        };
        if let Some((phys, shape, by)) = event.mapping {
            row.phys = Some(phys);
            row.by = names.owner(by);
            row.direction = shape.map(|shape| shape.dir.to_string());
            row.zone = shape.map(|shape| shape.zone.to_string());
            row.bounced = shape.map(|shape| shape.bounced);
            row.buffer_zone = shape.map(|shape| shape.buffer_zone.to_string());
        }
        if let Some((buffer, by)) = event.buffer {
            row.buffer = Some(buffer);
            row.allocated_by = names.owner(by);
        }
        row.links = event.links().filter_map(text).collect();
        row.refused = event.refused().map(|number| names.refusal(number).unwrap_or("?").to_owned());
        row
    }

    fn mapping(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(phys) = self.phys else { return Ok(()) };
        let text = |part: &Option<String>| part.clone().unwrap_or_else(|| "?".to_owned());
        write!(f, " {} phys={phys:#x} ({})", text(&self.direction), text(&self.zone))?;
        if let (Some(true), Some(buffer)) = (self.bounced, self.buffer) {
            write!(f, " bounced from {buffer:#x} ({})", text(&self.buffer_zone))?;
        }
        Ok(())
    }
}

fn text(link: &Link) -> Option<String> {
    Some(match link {
        Link::Segment { addr, len, write } => format!("{}{addr:#x}+{len}", if *write { "w:" } else { "r:" }),
        Link::Take { queue, head, .. } => format!("takes {queue}:{head}"),
        Link::Give { queue, head, written, .. } => format!("gives {queue}:{head} written={written}"),
        Link::Refused(_) => return None,
    })
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>7} {:>10} ns  {:<6} {:<26}", self.event, self.ns, self.producer, self.kind)?;
        match self.kind.as_str() {
            "lowzone:finding" => write!(f, " {}", self.finding.as_deref().unwrap_or("?"))?,
            "virtq:add" | "virtq:used" | "virtq:take" | "virtq:give" | "virtq:kick" | "virtq:call" => {
                if let Some(device) = &self.device {
                    write!(f, " {device}")?;
                }
                write!(f, " queue={} head={}", self.len, self.addr)?;
                if let Some(value) = self.value {
                    write!(f, " value={value}")?;
                }
            }
            "irq:irq_handler_entry" | "irq:irq_handler_exit" => {
                write!(f, " {}", self.addr)?;
                if let Some(device) = &self.device {
                    write!(f, " of {device}")?;
                }
            }
            "lowzone:step" => write!(f, " {}", self.addr)?,
            _ => {
                if let Some(device) = &self.device {
                    write!(f, " {device}")?;
                }
                write!(f, " addr={:#x} len={}", self.addr, self.len)?;
                if let Some(value) = self.value {
                    write!(f, " value={value:#x}")?;
                }
            }
        }
        if let Some(id) = self.transaction {
            write!(f, " tx={id}")?;
        }
        self.mapping(f)?;
        if let Some(by) = &self.by {
            write!(f, " by {by}")?;
        }
        match &self.allocated_by {
            Some(allocated) if self.allocated_by != self.by => write!(f, ", buffer of {allocated}")?,
            _ => {}
        }
        self.links.iter().try_for_each(|link| write!(f, " [{link}]"))?;
        match &self.refused {
            Some(why) => write!(f, " REFUSED: {}", why.replace('\n', ";")),
            None => Ok(()),
        }
    }
}
