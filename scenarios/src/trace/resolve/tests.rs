//! What is resolved is what a naive reading of the same events finds.

use lowzone_guest_mem::trace::Kind;
use proptest::prelude::*;

use super::super::event::{Event, Raw};
use super::super::format::Header;
use super::*;

/// What a machine with one device, one queue and a few buffers may do; impossible steps are left out.
#[derive(Clone, Copy, Debug)]
enum Act {
    Alloc(u64),
    Free(u64),
    Map(u64),
    Unmap(u64),
    Add(u64, u64),
    Kick,
    Take(u64),
    Give(u64),
    Interrupt,
    Used(u64),
    /// With its number, or by address alone.
    Access(u64, bool),
}

fn act() -> impl Strategy<Value = Act> {
    let n = || 0_u64..5;
    prop_oneof![
        n().prop_map(Act::Alloc),
        n().prop_map(Act::Free),
        n().prop_map(Act::Map),
        n().prop_map(Act::Map),
        n().prop_map(Act::Unmap),
        (n(), n()).prop_map(|(a, b)| Act::Add(a, b)),
        (n(), n()).prop_map(|(a, b)| Act::Add(a, b)),
        Just(Act::Kick),
        n().prop_map(Act::Take),
        n().prop_map(Act::Give),
        Just(Act::Interrupt),
        n().prop_map(Act::Used),
        (n(), any::<bool>()).prop_map(|(n, tagged)| Act::Access(n, tagged)),
    ]
}

const DEV: u16 = 1;
const OWNER: u64 = 7;

/// What is known of a transaction by keeping everything.
#[derive(Clone, Debug, Default, PartialEq)]
struct Plain {
    id: u64,
    buffer: u64,
    allocated: Option<Mark>,
    freed: Option<Mark>,
    live: bool,
    writes: u64,
    requests: Vec<Request>,
}

/// A machine that remembers all.
#[derive(Default)]
struct Shadow {
    events: Vec<Event>,
    all: Vec<Plain>,
    allocated: [Option<Mark>; 5],
    /// Chains in flight by head: where their requests are.
    flying: [Option<Vec<(usize, usize)>>; 5],
    untold: Vec<u64>,
    given: [Option<u64>; 5],
    added: [u64; 5],
    interrupt: Option<Mark>,
}

fn at(buffer: u64) -> u64 {
    0x10_000 * (buffer + 1)
}

impl Shadow {
    fn event(&mut self, kind: Kind, addr: u64, len: u32, tag: u64, details: &[Raw]) -> Mark {
        let number = self.events.len() as u64;
        let raw = Raw { ts: 10 * number, addr, tag, len, kind: kind.number(), dev: DEV, who: 0 };
        let mut event = Event::new(number, raw);
        details.iter().for_each(|detail| event.add(detail));
        self.events.push(event);
        Mark { ts: raw.ts, event: number }
    }

    fn live(&self, buffer: u64) -> Option<usize> {
        self.all.iter().rposition(|t| t.live && t.buffer == buffer)
    }

    fn each(&mut self, head: u64, turn: impl Fn(&mut Request)) {
        for &(t, r) in self.flying[index(head)].iter().flatten() {
            turn(&mut self.all[t].requests[r]);
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Alloc(b) if self.allocated[index(b)].is_none() => {
                self.allocated[index(b)] = Some(self.event(Kind::Kmalloc, at(b), 4096, OWNER, &[]));
            }
            Act::Free(b) if self.allocated[index(b)].is_some() => {
                let made = self.allocated[index(b)].take();
                let freed = self.event(Kind::Kfree, at(b), 4096, OWNER, &[]);
                self.all
                    .iter_mut()
                    .filter(|t| t.buffer == b && t.allocated == made)
                    .for_each(|t| t.freed = Some(freed));
            }
            Act::Map(b) if self.allocated[index(b)].is_some() && self.live(b).is_none() => {
                let id = self.all.len() as u64 + 1;
                let buffer = Raw { kind: Kind::Buffer.number(), addr: at(b), tag: OWNER, ..Raw::default() };
                self.event(Kind::DmaMapPage, at(b), 4096, id, &[buffer]);
                let allocated = self.allocated[index(b)];
                self.all.push(Plain { id, buffer: b, allocated, live: true, ..Plain::default() });
            }
            Act::Unmap(b) => {
                if let Some(t) = self.live(b) {
                    let id = self.all[t].id;
                    self.event(Kind::DmaUnmapPage, at(b), 4096, id, &[]);
                    self.all[t].live = false;
                }
            }
            Act::Access(b, tagged) => {
                if let Some(t) = self.live(b) {
                    self.event(Kind::PortWrite, at(b) + 8, 8, if tagged { self.all[t].id } else { 0 }, &[]);
                    self.all[t].writes += 1;
                }
            }
            other => self.queue(other),
        }
    }

    fn queue(&mut self, act: Act) {
        match act {
            Act::Add(head, b) if self.flying[index(head)].is_none() => {
                let segment = Raw { kind: Kind::Segment.number(), addr: at(b) + 64, len: 8, tag: 1, ..Raw::default() };
                let added = self.event(Kind::VirtqAdd, head, 0, 1, &[segment]);
                let request = Request { head, segments: 1, write: true, added, ..Request::default() };
                // What was unmapped already is named too, unless something is mapped there.
                let t = self.live(b).or_else(|| self.all.iter().rposition(|t| t.buffer == b));
                let places = t.into_iter().map(|t| {
                    self.all[t].requests.push(request);
                    (t, self.all[t].requests.len() - 1)
                });
                self.flying[index(head)] = Some(places.collect());
                (self.given[index(head)], self.added[index(head)]) = (None, added.event);
                self.untold.push(head);
            }
            Act::Kick => {
                let mark = self.event(Kind::VirtqKick, 0, 0, 1, &[]);
                std::mem::take(&mut self.untold)
                    .into_iter()
                    .for_each(|head| self.each(head, |r| r.kicked = Some(mark)));
            }
            Act::Take(head) => {
                let mark = self.event(Kind::VirtqTake, head, 0, 0, &[]);
                self.each(head, |r| r.taken = r.taken.or(Some(mark)));
            }
            Act::Give(head) => {
                // As the lab's own device tells it: behind an access.
                let give = Raw { ts: 5, addr: head, tag: 9, kind: Kind::Give.number(), ..Raw::default() };
                let mark = Mark { ts: 5, ..self.event(Kind::PortWrite, 8, 8, 0, &[give]) };
                self.given[index(head)] = self.given[index(head)].or(Some(mark.event));
                self.each(head, |r| (r.given, r.written) = (r.given.or(Some(mark)), Some(9)));
            }
            Act::Interrupt => self.interrupt = Some(self.event(Kind::IrqEntry, 65, 0, 0, &[])),
            Act::Used(head) if self.flying[index(head)].is_some() => {
                let mark = self.event(Kind::VirtqUsed, head, 0, 1, &[]);
                let since = self.given[index(head)].unwrap_or(self.added[index(head)]);
                let interrupt = self.interrupt.filter(|interrupt| interrupt.event > since);
                self.each(head, |r| (r.used, r.interrupt) = (Some(mark), interrupt));
                self.flying[index(head)] = None;
                self.untold.retain(|&waiting| waiting != head);
            }
            _ => {}
        }
    }
}

fn index(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn lives_are_those_of_a_reading_that_keeps_everything(acts in prop::collection::vec(act(), 0..120)) {
        let mut shadow = Shadow::default();
        acts.into_iter().for_each(|act| shadow.act(act));
        let (mut all, names) = (Transactions::new(), Names::new(&Header::default()));
        for event in &shadow.events {
            all.take(event, &names);
        }
        prop_assert_eq!(all.made(), shadow.all.len() as u64);
        let mut found: Vec<_> = all.rest().map(|t| Plain {
            id: t.id,
            buffer: t.dma / 0x10_000 - 1,
            allocated: t.allocated,
            freed: t.freed.map(|(mark, _)| mark),
            live: t.is_live(),
            writes: t.writes,
            requests: t.requests,
        }).collect();
        found.sort_by_key(|t| t.id);
        prop_assert_eq!(found, shadow.all);
    }
}

#[test]
fn what_ends_is_given_after_so_many_others_and_memory_holds_no_more() {
    let (mut all, names, mut given) = (Transactions::new(), Names::default(), 0);
    let mut take = |number: u64, kind: Kind, addr: u64, tag: u64| {
        let raw = Raw { ts: number, addr, tag, len: 64, kind: kind.number(), dev: DEV, who: 0 };
        all.take(&Event::new(number, raw), &names);
        given += std::iter::from_fn(|| all.settled()).count();
        assert!(all.known.len() <= LATE + 1 && all.dead.len() <= LATE && all.mapped.len() <= 1);
    };
    let many = LATE as u64 + 500;
    for id in 1..=many {
        take(id * 2, Kind::DmaMapPage, id * 64, id);
        take(id * 2 + 1, Kind::DmaUnmapPage, id * 64, id);
    }
    assert_eq!(given, 500);
}
