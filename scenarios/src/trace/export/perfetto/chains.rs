//! Which transactions a chain of descriptors leads to, from the time it is posted until it is taken back.
//!
//! A descriptor has a DMA address; what is mapped there when it is posted is what the device will touch. Memory is bounded
//! by what is mapped and posted at once. Neighbours: `perfetto` draws them as flows. Left out: chains whose descriptors
//! are not in the trace.

use std::collections::BTreeMap;

use lowzone_guest_mem::trace::Kind;

use crate::trace::event::{Event, Link};

/// A chain: device, queue, head.
type Key = (u16, u32, u64);

/// What is mapped, and the chains that are posted.
#[derive(Debug, Default)]
pub(super) struct Chains {
    /// By device and address: bytes and transaction.
    mapped: BTreeMap<(u16, u64), (u64, u64)>,
    posted: BTreeMap<Key, Vec<u64>>,
}

impl Chains {
    /// Takes an event into account; the transactions of the chains that it is about.
    pub(super) fn take(&mut self, event: &Event) -> Vec<u64> {
        let raw = &event.raw;
        if event.is_map() {
            self.mapped.insert((raw.dev, raw.addr), (u64::from(raw.len), raw.tag));
        } else if event.is_unmap() {
            self.mapped.remove(&(raw.dev, raw.addr));
        }
        let own = (raw.dev, raw.len, raw.addr);
        match event.kind() {
            Some(Kind::VirtqAdd) => {
                let found = self.behind(event);
                self.posted.insert(own, found.clone());
                found
            }
            Some(Kind::VirtqUsed) => self.posted.remove(&own).unwrap_or_default(),
            Some(Kind::VirtqTake | Kind::VirtqGive) => self.of(own),
            _ => {
                let chains = event.links().filter_map(|link| match *link {
                    Link::Take { queue, head, .. } | Link::Give { queue, head, .. } => Some((raw.dev, queue, head)),
                    Link::Segment { .. } | Link::Refused(_) => None,
                });
                chains.flat_map(|key| self.of(key)).collect()
            }
        }
    }

    fn of(&self, key: Key) -> Vec<u64> {
        self.posted.get(&key).cloned().unwrap_or_default()
    }

    /// The transactions that the descriptors of a chain being added lie in, each once.
    fn behind(&self, event: &Event) -> Vec<u64> {
        let dev = event.raw.dev;
        let mut found = Vec::new();
        for link in event.links() {
            let &Link::Segment { addr, .. } = link else { continue };
            let below = self.mapped.range((dev, 0)..=(dev, addr)).next_back();
            if let Some((_, &(_, id))) = below.filter(|((_, start), (len, _))| addr - start < *len)
                && !found.contains(&id)
            {
                found.push(id);
            }
        }
        found
    }
}
