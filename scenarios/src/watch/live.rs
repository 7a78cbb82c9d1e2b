//! What goes on just now, from the records of the run: mappings, rings, events.
//!
//! It remembers what is live, not what was, so its memory is bounded by what is mapped at once. Neighbours: `draw`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowzone_guest_mem::trace::{Kind, Producer, Record, Shape, Sink};

/// A device's mappings.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Mappings {
    /// Live now.
    pub(super) live: u64,
    /// Bytes of the live ones.
    pub(super) bytes: u64,
    /// The most that were live at once.
    pub(super) peak: u64,
    /// Live now with a copy in the bounce pool.
    pub(super) bounced: u64,
    /// Made so far.
    pub(super) made: u64,
    /// Refused so far.
    pub(super) refused: u64,
    /// Bytes that the device was let read and write.
    pub(super) moved: u64,
    /// Accesses that no mapping allowed.
    pub(super) violations: u64,
}

/// A virtqueue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Ring {
    /// Chains that the device has.
    pub(super) in_flight: u64,
    /// The most at once.
    pub(super) peak: u64,
    /// Chains put on it so far.
    pub(super) added: u64,
    /// Doorbells so far.
    pub(super) kicks: u64,
}

/// The sums.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    /// The clock of the last record.
    pub(super) clock: u64,
    /// Events so far.
    pub(super) events: u64,
    /// The step that runs.
    pub(super) step: u64,
    /// Interrupts taken so far.
    pub(super) interrupts: u64,
    /// By device.
    pub(super) mappings: BTreeMap<u16, Mappings>,
    /// By device and queue.
    pub(super) rings: BTreeMap<(u16, u32), Ring>,
    /// By transaction: its bytes, and whether it bounced.
    open: BTreeMap<u64, (u32, bool)>,
    /// The transaction of each producer's last map call, whose detail comes next.
    mapped: BTreeMap<u16, (u64, u16)>,
}

impl Sums {
    fn take(&mut self, who: Producer, record: &Record) {
        if record.kind.is_detail() {
            return self.detail(who, record);
        }
        self.events += 1;
        self.clock = self.clock.max(record.ts);
        match record.kind {
            Kind::DmaMapPage | Kind::DmaMapSg | Kind::DmaMapResource | Kind::DmaAlloc => self.map(who, record),
            Kind::DmaUnmapPage | Kind::DmaUnmapSg | Kind::DmaUnmapResource | Kind::DmaFree => self.unmap(record),
            Kind::PortRead | Kind::PortWrite => self.device(record).moved += u64::from(record.len),
            Kind::PortViolation => self.device(record).violations += 1,
            Kind::VirtqAdd => {
                let ring = self.ring(record);
                (ring.added, ring.in_flight) = (ring.added + 1, ring.in_flight + 1);
                ring.peak = ring.peak.max(ring.in_flight);
            }
            Kind::VirtqKick => self.ring(record).kicks += 1,
            Kind::VirtqUsed => {
                let ring = self.ring(record);
                ring.in_flight = ring.in_flight.saturating_sub(1);
            }
            Kind::IrqEntry => self.interrupts += 1,
            Kind::Step => self.step = record.addr,
            _ => {}
        }
    }

    fn device(&mut self, record: &Record) -> &mut Mappings {
        self.mappings.entry(record.dev).or_default()
    }

    fn ring(&mut self, record: &Record) -> &mut Ring {
        self.rings.entry((record.dev, record.len)).or_default()
    }

    fn map(&mut self, who: Producer, record: &Record) {
        if record.tag == 0 {
            self.device(record).refused += 1;
            return;
        }
        self.open.insert(record.tag, (record.len, false));
        self.mapped.insert(who.0, (record.tag, record.dev));
        let device = self.device(record);
        (device.made, device.live) = (device.made + 1, device.live + 1);
        device.peak = device.peak.max(device.live);
        device.bytes += u64::from(record.len);
    }

    fn unmap(&mut self, record: &Record) {
        let Some((len, bounced)) = self.open.remove(&record.tag) else { return };
        let device = self.device(record);
        device.live = device.live.saturating_sub(1);
        device.bytes = device.bytes.saturating_sub(u64::from(len));
        device.bounced = device.bounced.saturating_sub(u64::from(bounced));
        if device.live == 0 {
            // The rings are gone with their memory, and so are the chains on them.
            let rings = self.rings.iter_mut().filter(|((dev, _), _)| *dev == record.dev);
            rings.for_each(|(_, ring)| ring.in_flight = 0);
        }
    }

    fn detail(&mut self, who: Producer, record: &Record) {
        let bounced = Shape::unpack(record.len).is_some_and(|shape| shape.bounced);
        if record.kind != Kind::Mapping || !bounced {
            return;
        }
        let Some((id, dev)) = self.mapped.remove(&who.0) else { return };
        if let Some((_, mark)) = self.open.get_mut(&id) {
            *mark = true;
            self.mappings.entry(dev).or_default().bounced += 1;
        }
    }
}

/// The sums, shared by the run that feeds them and the thread that draws them.
#[derive(Clone, Default)]
pub(crate) struct Live(Arc<Mutex<Sums>>);

impl Live {
    fn lock(&self) -> MutexGuard<'_, Sums> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sums as they are now.
    pub(super) fn sums(&self) -> Sums {
        self.lock().clone()
    }
}

impl Sink for Live {
    fn page(&mut self, page: &[(Producer, Record)]) {
        let mut sums = self.lock();
        page.iter().for_each(|(who, record)| sums.take(*who, record));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: Kind, len: u32, dev: u16, tag: u64) -> (Producer, Record) {
        (Producer(0), Record { ts: 7, addr: 0x1000, len, kind, dev, tag })
    }

    #[test]
    fn sums_follow_maps_refusals_rings_and_accesses() {
        let mut live = Live::default();
        let bounced = 1 | 4 | 1 << 4 | 2 << 6;
        live.page(&[
            record(Kind::DmaMapPage, 4096, 1, 5),
            record(Kind::Mapping, bounced, 1, 0),
            record(Kind::DmaMapPage, 512, 1, 6),
            record(Kind::DmaMapPage, 512, 1, 0),
            record(Kind::VirtqAdd, 2, 1, 0),
            record(Kind::VirtqAdd, 2, 1, 1),
            record(Kind::VirtqKick, 2, 1, 2),
            record(Kind::PortRead, 100, 1, 5),
            record(Kind::PortViolation, 8, 1, 5),
            record(Kind::VirtqUsed, 2, 1, 0),
        ]);
        let seen = live.sums();
        let expected =
            Mappings { live: 2, bytes: 4608, peak: 2, bounced: 1, made: 2, refused: 1, moved: 100, violations: 1 };
        assert_eq!(seen.mappings[&1], expected);
        assert_eq!(seen.rings[&(1, 2)], Ring { in_flight: 1, peak: 2, added: 2, kicks: 1 });
        assert_eq!((seen.events, seen.clock), (9, 7), "a detail is no event");
        live.page(&[record(Kind::DmaUnmapPage, 4096, 1, 5), record(Kind::DmaUnmapPage, 1, 1, 99)]);
        let after = live.sums().mappings[&1];
        assert_eq!((after.live, after.bytes, after.bounced, after.peak), (1, 512, 0, 2));
        live.page(&[record(Kind::DmaUnmapPage, 512, 1, 6)]);
        assert_eq!(live.sums().rings[&(1, 2)].in_flight, 0, "no memory, no ring");
    }
}
