//! What is allocated, by physical address: when, by whom, and which transactions used it as their buffer.
//!
//! Objects of slab caches lie in pages that were allocated too, so objects come first. Its size is that of what is
//! allocated at once. Neighbours: `resolve`. Left out: bytes and zones, which the DMA records have.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use lowzone_guest_mem::trace::Kind;

use super::event::Event;
use super::request::Mark;

/// Transactions that an allocation remembers: those that used it last.
const USERS: usize = 64;

/// One allocation.
#[derive(Clone, Debug, Default)]
struct Allocation {
    len: u64,
    made: Mark,
    by: u64,
    users: Vec<u64>,
}

/// Everything allocated.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    objects: BTreeMap<u64, Allocation>,
    pages: BTreeMap<u64, Allocation>,
}

impl Buffers {
    /// Takes an event; the transactions whose buffer it frees.
    pub(super) fn take(&mut self, kind: Kind, event: &Event) -> Vec<u64> {
        let raw = &event.raw;
        let of = match kind {
            Kind::MmPageAlloc | Kind::MmPageFree => &mut self.pages,
            _ => &mut self.objects,
        };
        match kind {
            // A refused one has no address.
            Kind::Kmalloc | Kind::KmemCacheAlloc | Kind::MmPageAlloc if raw.addr != 0 && raw.len != 0 => {
                let len = u64::from(raw.len);
                // What lies there still was freed where nobody looked.
                let stale: Vec<_> = of.range(raw.addr..raw.addr.saturating_add(len)).map(|(&at, _)| at).collect();
                stale.iter().for_each(|at| drop(of.remove(at)));
                of.insert(raw.addr, Allocation { len, made: Mark::of(event), by: raw.tag, users: Vec::new() });
                Vec::new()
            }
            Kind::Kfree | Kind::KmemCacheFree | Kind::MmPageFree => match of.entry(raw.addr) {
                // Of threads' records: the end of what lay there before comes late.
                Entry::Occupied(known) if known.get().made.ts <= raw.ts => known.remove().users,
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    /// The allocation that `addr` lies in, if it is `owner`'s: when it was made. `user` is remembered as a transaction
    /// that uses it.
    pub(super) fn used(&mut self, addr: u64, owner: u64, user: u64) -> Option<Mark> {
        let within = |of: &BTreeMap<u64, Allocation>| {
            let (&start, allocation) = of.range(..=addr).next_back()?;
            (addr - start < allocation.len).then_some(start)
        };
        let found = match (within(&self.objects), within(&self.pages)) {
            (Some(start), _) => self.objects.get_mut(&start),
            (None, Some(start)) => self.pages.get_mut(&start),
            (None, None) => None,
        };
        let found = found.filter(|found| found.by == owner)?;
        if found.users.len() == USERS {
            found.users.remove(0);
        }
        found.users.push(user);
        Some(found.made)
    }
}
