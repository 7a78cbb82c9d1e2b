//! The events before a finding, from the flight recorder of a machine that still runs.
//!
//! No file is needed: rings are always on, and the recorder keeps the last events of all producers at each finding.
//! Neighbours: `guest_mem::trace`, `row`; reports print it. Left out: what came after.

use lowzone_guest_mem::kernel::Kernel;
use lowzone_guest_mem::trace::{Kind, Producer, Record, owner_of};

use super::event::{Event, Raw};
use super::format::{Header, Table};
use super::names::Names;
use super::row::Row;

/// The last [`AROUND`](lowzone_guest_mem::trace::AROUND) events before the finding of this number, counted from 1, one
/// line each, the oldest first; the last line is numbered -1.
///
/// `devices` are a device's number in records, its place on the bus and its name. Nothing for a finding that wasn't
/// made, or that came after many others.
///
/// ```
/// use lowzone_guest_mem::kernel::{Machine, MachineConfig};
///
/// let config = MachineConfig { ram: 64 << 20, swiotlb: 0, ..MachineConfig::default() };
/// let machine = Machine::acquire(config).unwrap();
/// assert!(lowzone::trace::around(machine.kernel(), 1, &[]).is_empty());
/// ```
pub fn around(kernel: &Kernel, finding: usize, devices: &[(u16, String, String)]) -> Vec<String> {
    rows(kernel, &kernel.trace().around(finding), devices)
}

/// Records of this kernel, one line each, the last numbered -1; `devices` as in [`around`].
pub fn rows(kernel: &Kernel, records: &[(Producer, Record)], devices: &[(u16, String, String)]) -> Vec<String> {
    let names = names(kernel, records, devices);
    let events = assemble(records);
    let lines = events.iter().zip((1..=events.len()).rev());
    lines.map(|(event, back)| line(&Row::of(event, &names), back)).collect()
}

fn line(row: &Row, back: usize) -> String {
    // The events' numbers in the run are not known here, only how far back they are.
    let text = row.to_string();
    let rest = text.trim_start().split_once(' ').map_or("", |(_, rest)| rest);
    format!("{:>4} {rest}", format!("-{back}"))
}

fn assemble(records: &[(Producer, Record)]) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    for (who, record) in records {
        let raw = Raw::of(*who, record);
        match events.last_mut() {
            Some(event) if raw.is_detail() => event.add(&raw),
            _ if raw.is_detail() => {}
            _ => events.push(Event::new(0, raw)),
        }
    }
    events
}

fn names(kernel: &Kernel, records: &[(Producer, Record)], devices: &[(u16, String, String)]) -> Names {
    let kinds = Kind::ALL.iter().map(|kind| (kind.number(), kind.name().to_owned())).collect();
    let mut names = Names::new(&Header { cpus: kernel.config().cpus, kinds, ..Header::default() });
    for (number, place, name) in devices {
        names.add(Table::Device as u16, u32::from(*number), &format!("{place}\n{name}"));
    }
    for (_, record) in records {
        if record.kind.tag_is_owner() {
            let owner = owner_of(record.tag);
            names.add(Table::Site as u16, owner.site.index(), &owner.site.to_string());
            names.add(Table::Scope as u16, owner.scope.index(), &owner.scope.to_string());
        }
        let number = usize::try_from(record.len).unwrap_or(0);
        if let Some(finding) = kernel.finding(number).filter(|_| record.kind == Kind::Finding) {
            names.add(Table::Finding as u16, record.len, finding.kind.name());
        }
    }
    names
}
