use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use crate::blk::BlkOptions;
use crate::misbehave::{LATE, Mishap};
use crate::pci::{Refusal, Width};
use crate::testing::{DATA, INDIRECT, Irq, NEXT, Rig, Seen, WRITE};
use crate::virtio::common::NEEDS_RESET;
use crate::worker::Next;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const NOBODY: u8 = 0xff;

fn rig() -> Rig {
    let rig = Rig::running(&BlkOptions::default());
    rig.disk(|bytes| bytes.fill(0xd1));
    rig
}

/// A rig whose completion 0 goes wrong.
fn first(what: Mishap) -> Rig {
    let rig = rig();
    rig.device.script.plan(0, what, false);
    rig
}

fn complete(rig: &mut Rig) -> Vec<(u32, u32)> {
    rig.kick(0);
    assert!(rig.run(10_000) < 10_000);
    used(rig)
}

fn used(rig: &mut Rig) -> Vec<(u32, u32)> {
    let ram = rig.ram.clone();
    rig.queues[0].used(&ram)
}

/// Submits a read of one sector to a place of its own.
fn read(rig: &mut Rig, nth: u64) -> u32 {
    rig.request(DATA + nth * 0x2000, IN, 0, 512, true).into()
}

fn status(rig: &Rig, nth: u64) -> u8 {
    rig.status_of(DATA + nth * 0x2000)
}

/// Calls the worker at `now` until it has nothing more to do then.
fn rest_at(rig: &mut Rig, now: u64) -> Next {
    loop {
        let next = rig.device.workers[0].service(now);
        assert_eq!(next == Next::Again, rig.device.workers[0].ready());
        if next != Next::Again {
            return next;
        }
    }
}

#[test]
fn a_late_completion_comes_when_it_is_due_and_others_overtake_it() {
    let mut rig = first(Mishap::CompletionLate);
    let (late, other) = (read(&mut rig, 0), read(&mut rig, 1));
    rig.kick(0);
    assert_eq!(rest_at(&mut rig, 5), Next::At(5 + LATE));
    assert_eq!((used(&mut rig), status(&rig, 0), rig.sink.take().len()), (vec![(other, 513)], NOBODY, 1));
    rig.write_used_event(0, 1);
    let third = read(&mut rig, 2);
    rig.kick(0);
    assert!(rig.device.workers[0].ready());
    assert_eq!(rest_at(&mut rig, 9), Next::At(5 + LATE));
    assert_eq!((used(&mut rig), rig.sink.take().len()), (vec![(third, 513)], 1));
    rig.write_used_event(0, 2);
    rig.log.take();
    assert_eq!(rig.device.workers[0].service(4 + LATE), Next::At(5 + LATE));
    assert_eq!(rig.log.take(), []);
    assert_eq!(rest_at(&mut rig, 5 + LATE), Next::Idle);
    assert_eq!((used(&mut rig), status(&rig, 0), rig.sink.take().len()), (vec![(late, 513)], 0, 1));
    assert_eq!(rig.device.counters.totals().requests, 3);
}

#[test]
fn a_reset_forgets_what_is_late() {
    let mut rig = first(Mishap::CompletionLate);
    read(&mut rig, 0);
    rig.kick(0);
    assert_eq!(rest_at(&mut rig, 0), Next::At(LATE));
    rig.write(20, Width::B1, 0);
    rig.log.take();
    assert_eq!(rest_at(&mut rig, 1), Next::Idle);
    assert_eq!((rest_at(&mut rig, LATE), rig.log.take(), rig.status()), (Next::Idle, vec![], 0));
}

#[test]
fn no_more_is_late_than_the_queue_has_entries() {
    let mut rig = Rig::running(&BlkOptions { queue_size: 4, ..BlkOptions::default() });
    rig.device.script.plan(0, Mishap::CompletionLate, true);
    let head = rig.request(DATA, IN, 0, 512, true);
    let ram = rig.ram.clone();
    rig.kick(0);
    // The driver cheats: it makes the same chain available again and again.
    for _ in 0..7 {
        rest_at(&mut rig, 0);
        rig.queues[0].offer(&ram, head);
        rig.kick(0);
    }
    assert_eq!((rest_at(&mut rig, 0), rig.device.script.completions()), (Next::At(LATE), 4));
    assert_eq!(rest_at(&mut rig, LATE), Next::At(2 * LATE));
    assert_eq!(rig.device.script.completions(), 8);
}

#[test]
fn twice_is_the_same_element_twice() {
    let mut rig = first(Mishap::CompletionTwice);
    let (head, next) = (read(&mut rig, 0), read(&mut rig, 1));
    assert_eq!(complete(&mut rig), [(head, 513), (head, 513), (next, 513)]);
    assert_eq!((status(&rig, 0), rig.device.counters.totals().requests), (0, 2));
}

#[test]
fn never_leaves_status_and_ring_alone() {
    let mut rig = first(Mishap::CompletionNever);
    read(&mut rig, 0);
    assert_eq!((complete(&mut rig), status(&rig, 0), rig.sink.take()), (vec![], NOBODY, vec![]));
    let next = read(&mut rig, 1);
    assert_eq!((complete(&mut rig), rig.device.counters.totals().requests), (vec![(next, 513)], 1));
}

#[test]
fn a_wrong_id_is_a_descriptor_that_heads_nothing() {
    let mut rig = first(Mishap::WrongId);
    let (head, next) = (read(&mut rig, 0), read(&mut rig, 1));
    assert_eq!(complete(&mut rig), [(head + 1, 513), (next, 513)]);
    assert_eq!(status(&rig, 0), 0);
}

#[test]
fn a_wrong_id_lies_beyond_the_ring_if_the_chain_has_one_entry_and_the_driver_is_told() {
    let mut rig = first(Mishap::WrongId);
    let (ram, table) = (rig.ram.clone(), DATA + 0x8000);
    rig.header(DATA, IN, 0);
    let layout = &mut rig.queues[0];
    layout.put(&ram, table, 0, (DATA, 16, NEXT, 1));
    layout.put(&ram, table, 1, (DATA + 0x1000, 512, NEXT | WRITE, 2));
    layout.put(&ram, table, 2, (DATA + 0x800, 1, WRITE, 0));
    layout.put(&ram, layout.desc, 5, (table, 48, INDIRECT, 0));
    layout.offer(&ram, 5);
    assert_eq!(complete(&mut rig), [(16 + 5, 513)]);
    assert_eq!(rig.sink.take(), [Irq::Msi(1, 0xfee0_0000, 1)]);
    rig.queues[0].next_desc = 6;
    rig.write_used_event(0, 1);
    let next = read(&mut rig, 1);
    assert_eq!((complete(&mut rig), rig.sink.take().len()), (vec![(next, 513)], 1));
}

#[test]
fn a_wrong_length_is_more_than_there_is_room_for() {
    for (kind, into, room) in [(IN, true, 513), (OUT, false, 1)] {
        let mut rig = first(Mishap::WrongLength);
        let head = rig.request(DATA, kind, 0, 512, into);
        assert_eq!(complete(&mut rig), [(head.into(), room + 1)]);
        assert_eq!(status(&rig, 0), 0);
    }
}

#[test]
fn an_io_error_is_told_though_the_data_moved() {
    let mut rig = first(Mishap::IoError);
    rig.ram.write_slice(&[7; 512], GuestAddress(DATA + 0x1000)).unwrap();
    rig.request(DATA, OUT, 0, 512, false);
    assert_eq!(complete(&mut rig).len(), 1);
    rig.disk(|bytes| assert_eq!(bytes[..513], [[7; 512].as_slice(), &[0xd1]].concat()));
    let totals = rig.device.counters.totals();
    assert_eq!((status(&rig, 0), totals.failed, totals.faults), (1, 1, 0));
}

#[test]
fn a_feigned_fault_looks_like_a_real_one_and_its_data_does_not_move() {
    let mut rig = first(Mishap::DmaFault);
    rig.request(DATA, IN, 0, 40 << 10, true);
    assert_eq!(complete(&mut rig), [(0, (32 << 10) + 1)]);
    assert_eq!(rig.bytes(DATA + 0x1000 + (32 << 10) - 1, 2), [0xd1, 0]);
    let addr = DATA + 0x1000 + (32 << 10);
    assert!(rig.log.take().contains(&Seen::Refused(addr, 8 << 10, true, Refusal::Memory)));
    let first = rig.device.counters.first_fault().map(|fault| (fault.addr, fault.why));
    assert_eq!(first, Some((addr, Refusal::Memory)));
    let totals = rig.device.counters.totals();
    assert_eq!((status(&rig, 0), totals.faults, totals.failed, rig.status() & NEEDS_RESET), (1, 1, 1, 0));
    rig.device.script.plan(1, Mishap::DmaFault, false);
    rig.request(DATA, OUT, 0, 512, false);
    complete(&mut rig);
    rig.disk(|bytes| assert_eq!(bytes[0], 0xd1));
    assert!(rig.log.take().contains(&Seen::Refused(DATA + 0x1000, 512, false, Refusal::Memory)));
    let next = read(&mut rig, 1);
    assert_eq!((complete(&mut rig), rig.device.counters.totals().faults), (vec![(next, 513)], 2));
}

#[test]
fn a_feigned_fault_without_data_is_one_of_the_header() {
    let mut rig = first(Mishap::DmaFault);
    rig.request(DATA, FLUSH, 0, 0, false);
    assert_eq!((complete(&mut rig), status(&rig, 0)), (vec![(0, 1)], 1));
    assert_eq!(rig.device.counters.first_fault().map(|fault| fault.addr), Some(DATA));
}

#[test]
fn needs_reset_stops_the_queue_until_it_is_reset() {
    let mut rig = first(Mishap::NeedsReset);
    read(&mut rig, 0);
    read(&mut rig, 1);
    assert_eq!((complete(&mut rig), rig.sink.take()), (vec![], vec![Irq::Msi(0, 0xfee0_0000, 0)]));
    assert_eq!(rig.status() & NEEDS_RESET, NEEDS_RESET);
    assert!(rig.device.counters.take_ring_error().is_none());
    rig.kick(0);
    assert_eq!(rig.run(10), 0);
    rig.write(20, Width::B1, 0);
    rig.run(10);
    rig.start(u64::MAX, 1, 16);
    let head = read(&mut rig, 0);
    assert_eq!(complete(&mut rig), [(head, 513)]);
}

#[test]
fn completions_are_counted_over_all_queues() {
    let mut rig = Rig::running(&BlkOptions { queues: 2, ..BlkOptions::default() });
    rig.device.script.plan(1, Mishap::WrongLength, false);
    let ram = rig.ram.clone();
    for (queue, len) in [(1u16, 513), (0, 514), (1, 513)] {
        rig.header(DATA, IN, 0);
        let request = [(DATA, 16, false), (DATA + 0x1000, 512, true), (DATA + 0x800, 1, true)];
        let layout = &mut rig.queues[usize::from(queue)];
        let head = layout.submit(&ram, &request);
        rig.kick(queue);
        rig.run(100);
        assert_eq!(rig.queues[usize::from(queue)].used(&ram), [(head.into(), len)]);
    }
}

/// What the driver sees of request `nth` of three descriptors: used elements and status.
fn expected(nth: u64, what: Option<Mishap>) -> (Vec<(u32, u32)>, u8) {
    let head = u32::try_from(3 * nth).unwrap();
    let one = (head, 513);
    match what {
        None => (vec![one], 0),
        Some(Mishap::CompletionLate | Mishap::CompletionNever | Mishap::NeedsReset) => (vec![], NOBODY),
        Some(Mishap::CompletionTwice) => (vec![one, one], 0),
        Some(Mishap::WrongId) => (vec![(head + 1, 513)], 0),
        Some(Mishap::WrongLength) => (vec![(head, 514)], 0),
        Some(Mishap::IoError) => (vec![one], 1),
        Some(Mishap::DmaFault) => (vec![(head, 1)], 1),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Five equal reads complete in their order, each as it is fated: at once, or when the late ones are due.
    #[test]
    fn each_request_meets_its_fate_and_no_other(
        fates in prop::array::uniform5(prop::option::of(prop::sample::select(&Mishap::ALL[..]))),
    ) {
        let mut rig = rig();
        for (nth, fate) in (0u64..).zip(fates) {
            if let Some(what) = fate {
                rig.device.script.plan(nth, what, false);
            }
            read(&mut rig, nth);
        }
        rig.kick(0);
        rest_at(&mut rig, 0);
        let stops = fates.iter().position(|fate| *fate == Some(Mishap::NeedsReset));
        let until = stops.unwrap_or(fates.len());
        let mut elements = Vec::new();
        for (nth, fate) in (0u64..).zip(&fates[..until]) {
            let (seen, byte) = expected(nth, *fate);
            elements.extend(seen);
            prop_assert_eq!(status(&rig, nth), byte);
        }
        prop_assert_eq!(used(&mut rig), elements);
        rest_at(&mut rig, LATE);
        let late = |nth: &u64| fates[usize::try_from(*nth).unwrap()] == Some(Mishap::CompletionLate);
        let due: Vec<_> = (0u64..5).filter(|nth| stops.is_none() && late(nth)).collect();
        let elements: Vec<_> = due.iter().flat_map(|nth| expected(*nth, None).0).collect();
        prop_assert_eq!(used(&mut rig), elements);
        prop_assert!(due.iter().all(|nth| status(&rig, *nth) == 0));
        prop_assert_eq!(rig.status() & NEEDS_RESET != 0, stops.is_some());
    }
}
