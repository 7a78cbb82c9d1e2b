//! The chains that a transaction was in: which descriptor, and when it was added, kicked, taken, given back and used.
//!
//! `Chains` holds those in flight, by device, queue and head, so its size is that of the rings. What only the driver
//! saw and what only the device saw come from different records; either may be missing. Neighbours: `resolve`, which
//! keeps the [`Request`]s with their transactions. Left out: what the device did in between.

use std::collections::BTreeMap;

use super::event::Event;

/// A moment: when, and by which event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The clock.
    pub ts: u64,
    /// The event's number.
    pub event: u64,
}

impl Mark {
    /// The moment of an event.
    pub fn of(event: &Event) -> Self {
        Self { ts: event.raw.ts, event: event.number }
    }
}

/// One time that a descriptor led the device to a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The queue.
    pub queue: u32,
    /// The chain's first descriptor.
    pub head: u64,
    /// Which segment of the chain it was, from 0; the first, if it was several.
    pub segment: usize,
    /// Segments of the chain.
    pub segments: usize,
    /// Whether the device was allowed to write it.
    pub write: bool,
    /// When the driver made it available.
    pub added: Mark,
    /// When the device was told, if it was.
    pub kicked: Option<Mark>,
    /// When the device took it off the ring.
    pub taken: Option<Mark>,
    /// When the device gave it back.
    pub given: Option<Mark>,
    /// Bytes that the device says it wrote.
    pub written: Option<u64>,
    /// The interrupt after which the driver saw it.
    pub interrupt: Option<Mark>,
    /// When the driver took it off the ring.
    pub used: Option<Mark>,
}

/// What happens to a chain that was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Kicked,
    Taken,
    Given(u64),
    Used(Option<Mark>),
}

impl Request {
    /// Notes what happened; what happened before stays.
    pub(super) fn note(&mut self, turn: Turn, at: Mark) {
        match turn {
            Turn::Kicked => drop(self.kicked.get_or_insert(at)),
            Turn::Taken => drop(self.taken.get_or_insert(at)),
            Turn::Given(written) => {
                self.given.get_or_insert(at);
                self.written.get_or_insert(written);
            }
            Turn::Used(interrupt) => (self.used, self.interrupt) = (Some(at), interrupt),
        }
    }
}

/// A queue: device and number.
pub(super) type QueueId = (u16, u32);

/// A chain in flight: when it was added, when given back, and the transactions that it leads to.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) added: Mark,
    pub(super) given: Option<Mark>,
    pub(super) transactions: Vec<u64>,
}

/// Interrupts of a device that came last, by CPU.
type Interrupts = BTreeMap<(u16, u16), Mark>;

/// Chains in flight, and the last interrupts.
#[derive(Debug, Default)]
pub(super) struct Chains {
    flying: BTreeMap<(QueueId, u64), Chain>,
    /// Heads that were added since the device was last told.
    untold: BTreeMap<QueueId, Vec<u64>>,
    interrupts: Interrupts,
}

impl Chains {
    pub(super) fn add(&mut self, queue: QueueId, head: u64, added: Mark, transactions: Vec<u64>) {
        self.flying.insert((queue, head), Chain { added, given: None, transactions });
        let untold = self.untold.entry(queue).or_default();
        // Not twice, or a driver that never kicks would make it grow.
        if !untold.contains(&head) {
            untold.push(head);
        }
    }

    /// The heads that a kick tells the device of.
    pub(super) fn told(&mut self, queue: QueueId) -> Vec<u64> {
        self.untold.remove(&queue).unwrap_or_default()
    }

    pub(super) fn flying(&mut self, queue: QueueId, head: u64) -> Option<&mut Chain> {
        self.flying.get_mut(&(queue, head))
    }

    pub(super) fn end(&mut self, queue: QueueId, head: u64) -> Option<Chain> {
        if let Some(untold) = self.untold.get_mut(&queue) {
            untold.retain(|&waiting| waiting != head);
        }
        self.flying.remove(&(queue, head))
    }

    pub(super) fn interrupt(&mut self, event: &Event) {
        self.interrupts.insert((event.raw.dev, event.raw.who), Mark::of(event));
    }

    /// A handler ended: an interrupt of nobody's brings nothing more.
    pub(super) fn interrupt_over(&mut self, event: &Event) {
        if event.raw.dev == 0 {
            self.interrupts.remove(&(0, event.raw.who));
        }
    }

    /// The interrupt that let CPU `who` see a chain: its own last one of the device, or its line's, or another CPU's;
    /// none if they all came before the chain was given back.
    pub(super) fn told_by(&self, dev: u16, who: u16, chain: &Chain) -> Option<Mark> {
        let since = chain.given.unwrap_or(chain.added).event;
        let mut own = [(dev, who), (0, who)].into_iter().filter_map(|key| self.interrupts.get(&key).copied());
        let others = self.interrupts.range((dev, 0)..=(dev, u16::MAX)).map(|(_, &mark)| mark);
        let others = others.filter(|mark| mark.event > since).max_by_key(|mark| mark.event);
        own.find(|mark| mark.event > since).or(others)
    }
}
