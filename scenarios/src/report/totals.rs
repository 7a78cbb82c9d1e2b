//! What the head of the page counts, over all events of the trace: of the run, of each kind and device.
//!
//! Neighbours: `scan` feeds it. Left out: curves (`series`).

use std::collections::BTreeMap;

use lowzone_guest_mem::trace::Kind;
use serde::Serialize;

use crate::trace::{Event, Names};

/// One device's part.
#[derive(Debug, Default, Serialize)]
struct Device {
    maps: u64,
    coherent: u64,
    refused: u64,
    bounced: u64,
    bounced_bytes: u64,
    reads: u64,
    read_bytes: u64,
    writes: u64,
    write_bytes: u64,
    violations: u64,
}

/// Everything that is counted.
#[derive(Debug, Default, Serialize)]
pub(super) struct Totals {
    pub(super) events: u64,
    transactions: u64,
    interrupts: u64,
    findings: u64,
    violations: u64,
    refused: u64,
    kinds: BTreeMap<String, u64>,
    devices: BTreeMap<String, Device>,
}

impl Totals {
    pub(super) fn take(&mut self, event: &Event, names: &Names) {
        self.events += 1;
        *self.kinds.entry(names.kind(event.raw.kind)).or_default() += 1;
        let (kind, len) = (event.kind(), u64::from(event.raw.len));
        self.interrupts += u64::from(kind == Some(Kind::IrqEntry));
        self.findings += u64::from(kind == Some(Kind::Finding));
        self.violations += u64::from(kind == Some(Kind::PortViolation));
        self.transactions += u64::from(event.is_map());
        self.refused += u64::from(event.is_refused_map());
        let Some(name) = names.device(event.raw.dev) else { return };
        let device = self.devices.entry(name).or_default();
        if event.is_map() {
            let calls = if kind == Some(Kind::DmaAlloc) { &mut device.coherent } else { &mut device.maps };
            *calls += 1;
            let bounced = event.mapping.and_then(|(_, shape, _)| shape).is_some_and(|shape| shape.bounced);
            device.bounced += u64::from(bounced);
        }
        device.refused += u64::from(event.is_refused_map());
        device.bounced_bytes = device.bounced_bytes.saturating_add(u64::from(event.copied));
        match kind {
            Some(Kind::SwiotlbBounced) => device.bounced_bytes = device.bounced_bytes.saturating_add(len),
            Some(Kind::PortRead) => {
                device.reads += 1;
                device.read_bytes = device.read_bytes.saturating_add(len);
            }
            Some(Kind::PortWrite) => {
                device.writes += 1;
                device.write_bytes = device.write_bytes.saturating_add(len);
            }
            Some(Kind::PortViolation) => device.violations += 1,
            _ => {}
        }
    }
}
