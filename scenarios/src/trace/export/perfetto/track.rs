//! Where things are drawn: tracks of CPUs, devices, transactions and counters, and their numbers.
//!
//! Transactions overlap and slices of one track must not: a device has as many lanes as it has mappings at once, all of
//! one name, which viewers draw together. Neighbours: `perfetto`. Left out: order and colours, which are a viewer's.

use std::collections::{BTreeMap, BTreeSet};

use super::proto::Message;

/// A track.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Track {
    /// The scenario's steps.
    Steps,
    /// A CPU, or what a device does by itself, by producer.
    Producer(u16),
    /// All that belongs to a device.
    Device(u16),
    /// A place for a device's transactions.
    Lane(u16, u32),
    /// Bytes that a device has mapped.
    MappedBytes(u16),
    /// Mappings that a device has.
    LiveMappings(u16),
    /// Chains that the driver has posted and not taken back, by device and queue.
    InFlight(u16, u32),
    /// Bytes of bounced mappings.
    BouncePool,
}

impl Track {
    /// Its number in the file: never 0, and of no other track.
    pub(super) fn uuid(self) -> u64 {
        let (kind, device, rest) = match self {
            Self::Steps => (1, 0, 0),
            Self::Producer(who) => (2, who, 0),
            Self::Device(dev) => (3, dev, 0),
            Self::Lane(dev, lane) => (4, dev, lane),
            Self::MappedBytes(dev) => (5, dev, 0),
            Self::LiveMappings(dev) => (6, dev, 0),
            Self::InFlight(dev, queue) => (7, dev, queue),
            Self::BouncePool => (8, 0, 0),
        };
        kind << 48 | u64::from(device) << 32 | u64::from(rest)
    }

    const fn is_counter(self) -> bool {
        matches!(self, Self::MappedBytes(_) | Self::LiveMappings(_) | Self::InFlight(..) | Self::BouncePool)
    }

    /// Fills a `TrackDescriptor`; a counter of bytes says so.
    pub(super) fn describe(self, name: &str, parent: Option<Self>, descriptor: &mut Message) {
        descriptor.number(1, self.uuid()).text(2, name);
        if let Some(parent) = parent {
            descriptor.number(5, parent.uuid());
        }
        if self.is_counter() {
            let unit = match self {
                Self::MappedBytes(_) | Self::BouncePool => 3,
                _ => 2,
            };
            descriptor.nested(8, |counter| {
                counter.number(3, unit);
            });
        }
    }
}

/// The lanes of one device.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// When the last slice of each lane ended.
    ends: Vec<u64>,
    free: BTreeSet<u32>,
}

impl Lanes {
    /// The first lane that is free at a time; threads' records may come a little out of order.
    pub(super) fn take(&mut self, ts: u64) -> u32 {
        let ends = &self.ends;
        let ended = |&&lane: &&u32| ends.get(lane as usize).is_some_and(|&end| end <= ts);
        let lane = self.free.iter().find(ended).copied();
        let lane = lane.unwrap_or_else(|| {
            self.ends.push(0);
            u32::try_from(self.ends.len() - 1).unwrap_or(u32::MAX)
        });
        self.free.remove(&lane);
        lane
    }

    /// A slice ended: its lane is free from then on.
    pub(super) fn give(&mut self, lane: u32, ts: u64) {
        if let Some(end) = self.ends.get_mut(lane as usize) {
            *end = ts;
            self.free.insert(lane);
        }
    }
}

/// Numbers that go up and down.
#[derive(Debug, Default)]
pub(super) struct Counters(BTreeMap<Track, i64>);

impl Counters {
    /// Adds to a counter; its value then.
    pub(super) fn add(&mut self, track: Track, by: i64) -> i64 {
        let value = self.0.entry(track).or_default();
        *value = value.saturating_add(by);
        *value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Slices of one lane never overlap, whatever the order of the records' times.
        #[test]
        fn no_two_mappings_share_a_lane_at_a_time(steps in prop::collection::vec((any::<bool>(), 0_u64..9, any::<prop::sample::Index>()), 0..200)) {
            let (mut lanes, mut live, mut done, mut now) = (Lanes::default(), Vec::new(), Vec::new(), 10_u64);
            for (begin, step, which) in steps {
                now = now + step - 3.min(now);
                if begin || live.is_empty() {
                    live.push((lanes.take(now), now));
                } else {
                    let (lane, from) = live.swap_remove(which.index(live.len()));
                    let to = now.max(from);
                    lanes.give(lane, to);
                    done.push((lane, from, to));
                }
            }
            done.extend(live.into_iter().map(|(lane, from)| (lane, from, u64::MAX)));
            done.sort_unstable();
            for pair in done.windows(2) {
                prop_assert!(pair[0].0 != pair[1].0 || pair[0].2 <= pair[1].1, "{:?}", pair);
            }
        }
    }
}
