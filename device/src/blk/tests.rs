use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::pci::{Beyond, Width};
use crate::testing::{DATA, HIGH, HIGH_LEN, INDIRECT, Irq, NEXT, RAM, Rig, SECTORS, Seen, WRITE};
use crate::virtio::common::NEEDS_RESET;
use crate::virtio::{EVENT_IDX, RingError};
use crate::worker::Next;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

fn one() -> BlkOptions {
    BlkOptions::default()
}

/// Runs what was submitted on queue 0 and returns what came back.
fn complete(rig: &mut Rig) -> Vec<(u32, u32)> {
    rig.kick(0);
    assert!(rig.run(10_000) < 10_000);
    let ram = rig.ram.clone();
    rig.queues[0].used(&ram)
}

#[test]
fn what_is_written_is_read_back() {
    let mut rig = Rig::running(&one());
    let data: Vec<u8> = (0..4096u32).map(|nth| nth.to_le_bytes()[0] ^ nth.to_le_bytes()[1]).collect();
    rig.ram.write_slice(&data, GuestAddress(DATA + 0x1000)).unwrap();
    let head = rig.request(DATA, OUT, 3, 4096, false);
    assert_eq!(complete(&mut rig), [(head.into(), 1)]);
    assert_eq!(rig.status_of(DATA), 0);
    rig.disk(|bytes| assert!(bytes[3 * 512..][..4096] == data && bytes[..3 * 512] == [0; 3 * 512]));
    let head = rig.request(DATA + 0x4000, IN, 3, 4096, true);
    assert_eq!(complete(&mut rig), [(head.into(), 4097)]);
    assert!(rig.bytes(DATA + 0x5000, 4096) == data);
    let totals = rig.device.counters.totals();
    assert_eq!((totals.requests, totals.failed, totals.bytes_read, totals.bytes_written), (2, 0, 4096, 4096));
}

#[test]
fn header_and_data_may_be_cut_anywhere() {
    let mut rig = Rig::running(&one());
    rig.header(DATA, OUT, 1);
    let ram = rig.ram.clone();
    // Header and data share a segment, and no two segments touch.
    let tail = rig.bytes(DATA + 3, 13);
    ram.write_slice(&tail, GuestAddress(DATA + 0x100)).unwrap();
    ram.write_slice(&[0xab; 7], GuestAddress(DATA + 0x10d)).unwrap();
    ram.write_slice(&[0xab; 505], GuestAddress(DATA + 0x200)).unwrap();
    let cut = [(DATA, 3, false), (DATA + 0x100, 20, false), (DATA + 0x200, 505, false), (DATA + 0x800, 1, true)];
    rig.queues[0].submit(&ram, &cut);
    complete(&mut rig);
    assert_eq!(rig.status_of(DATA), 0);
    rig.disk(|bytes| assert!(bytes[512..1024] == [0xab; 512] && bytes[1024] == 0));
    rig.header(DATA, IN, 1);
    let cut = [(DATA, 16, false), (DATA + 0x1000, 100, true), (DATA + 0x2000, 412 + 1, true)];
    rig.queues[0].submit(&ram, &cut);
    assert_eq!(complete(&mut rig)[0].1, 513);
    assert_eq!(rig.bytes(DATA + 0x1000, 101), [vec![0xab; 100], vec![0]].concat());
    assert_eq!(rig.bytes(DATA + 0x2000, 414), [vec![0xab; 412], vec![0, 0]].concat());
}

#[test]
fn get_id_and_flush() {
    let mut rig = Rig::running(&BlkOptions { id: *b"twenty bytes of name", ..one() });
    rig.request(DATA, GET_ID, 0, 20, true);
    assert_eq!(complete(&mut rig)[0].1, 21);
    assert_eq!(rig.bytes(DATA + 0x1000, 21), b"twenty bytes of name\0");
    rig.request(DATA, FLUSH, 0, 0, false);
    assert_eq!(complete(&mut rig)[0].1, 1);
    assert_eq!((rig.status_of(DATA), rig.device.counters.totals().flushes), (0, 1));
}

#[test]
fn a_flush_waits_for_the_writes_before_it() {
    let mut rig = Rig::running(&one());
    let write = rig.request(DATA, OUT, 0, 96 << 10, false);
    let flush = rig.request(DATA + 0x20000, FLUSH, 0, 0, false);
    let after = rig.request(DATA + 0x22000, IN, 0, 512, true);
    let heads: Vec<u32> = complete(&mut rig).iter().map(|(head, _)| *head).collect();
    assert_eq!(heads, [after, write, flush].map(u32::from));
}

#[test]
fn a_short_request_overtakes_a_long_one() {
    let mut rig = Rig::running(&one());
    let long = rig.request(DATA, IN, 0, 64 << 10, true);
    let short = rig.request(DATA + 0x20000, IN, 0, 512, true);
    let heads: Vec<u32> = complete(&mut rig).iter().map(|(head, _)| *head).collect();
    assert_eq!(heads, [short, long].map(u32::from));
    assert_eq!(rig.device.counters.totals().peak_in_flight, 2);
}

#[test]
fn one_call_moves_one_piece_at_most() {
    let mut rig = Rig::running(&one());
    rig.request(DATA, IN, 0, 40 << 10, true);
    rig.kick(0);
    let mut phases = Vec::new();
    while rig.device.workers[0].ready() {
        rig.log.take();
        rig.device.workers[0].service(0);
        let moved = |seen: &Seen| match seen {
            Seen::Moved(addr, len, true) if *addr >= DATA + 0x1000 => Some(*len),
            _ => None,
        };
        phases.push(rig.log.take().iter().filter_map(moved).collect::<Vec<_>>());
    }
    let data: Vec<_> = phases.iter().filter(|phase| !phase.is_empty()).cloned().collect();
    assert_eq!(data, [[16 << 10], [16 << 10], [8 << 10]]);
}

#[test]
fn bad_requests_fail_with_a_status_and_move_nothing() {
    let last = SECTORS - 1;
    for (kind, sector, len, into, status) in [
        (IN, SECTORS, 512, true, 1),
        (IN, last, 1024, true, 1),
        (IN, u64::MAX, 512, true, 1),
        (IN, u64::MAX / 512, 512, true, 1),
        (OUT, last, 1024, false, 1),
        (OUT, 0, 513, false, 1),
        (IN, 0, 511, true, 1),
        (2, 0, 512, true, 2),
        (11, 0, 512, false, 2),
    ] {
        let mut rig = Rig::running(&one());
        rig.ram.write_slice(&[7; 1024], GuestAddress(DATA + 0x1000)).unwrap();
        rig.request(DATA, kind, sector, len, into);
        assert_eq!(complete(&mut rig).len(), 1);
        assert_eq!(rig.status_of(DATA), status, "{kind} {sector} {len}");
        assert_eq!(rig.bytes(DATA + 0x1000, 1024), [7; 1024]);
        rig.disk(|bytes| assert!(bytes.iter().all(|byte| *byte == 0)));
    }
}

#[test]
fn a_read_only_device_refuses_writes_alone() {
    let mut rig = Rig::running(&BlkOptions { read_only: true, ..one() });
    assert_eq!(rig.offered() & 1 << 5, 1 << 5);
    rig.request(DATA, OUT, 0, 512, false);
    complete(&mut rig);
    assert_eq!(rig.status_of(DATA), 1);
    rig.request(DATA, IN, 0, 512, true);
    complete(&mut rig);
    assert_eq!(rig.status_of(DATA), 0);
}

#[test]
fn a_short_header_fails_and_a_missing_status_breaks_the_queue() {
    let mut rig = Rig::running(&one());
    let ram = rig.ram.clone();
    rig.queues[0].submit(&ram, &[(DATA, 15, false), (DATA + 0x800, 1, true)]);
    assert_eq!(complete(&mut rig), [(0, 1)]);
    assert_eq!(rig.status_of(DATA), 1);
    rig.queues[0].submit(&ram, &[(DATA, 16, false)]);
    assert_eq!(complete(&mut rig), []);
    assert_eq!(rig.status() & NEEDS_RESET, NEEDS_RESET);
    assert!(matches!(rig.device.counters.take_ring_error(), Some(RingError::NoStatus { head: 2 })));
}

#[test]
fn an_indirect_request_is_served() {
    let mut rig = Rig::running(&one());
    let (ram, table) = (rig.ram.clone(), DATA + 0x8000);
    rig.header(DATA, IN, 0);
    rig.disk(|bytes| bytes[..512].fill(0x5a));
    let layout = &mut rig.queues[0];
    layout.put(&ram, table, 0, (DATA, 16, NEXT, 1));
    layout.put(&ram, table, 1, (DATA + 0x1000, 512, NEXT | WRITE, 2));
    layout.put(&ram, table, 2, (DATA + 0x800, 1, WRITE, 0));
    layout.put(&ram, layout.desc, 5, (table, 48, INDIRECT, 0));
    layout.offer(&ram, 5);
    assert_eq!(complete(&mut rig), [(5, 513)]);
    assert_eq!(rig.bytes(DATA + 0x1000, 512), [0x5a; 512]);
}

#[test]
fn data_beyond_the_width_fails_that_request_alone() {
    let mut rig = Rig::running(&one());
    let ram = rig.ram.clone();
    rig.header(DATA, IN, 0);
    rig.disk(|bytes| bytes.fill(9));
    rig.queues[0].submit(&ram, &[(DATA, 16, false), (HIGH, 512, true), (DATA + 0x800, 1, true)]);
    rig.request(DATA + 0x4000, IN, 0, 512, true);
    let lens: Vec<u32> = complete(&mut rig).iter().map(|(_, len)| *len).collect();
    assert_eq!((lens, rig.status_of(DATA), rig.status_of(DATA + 0x4000)), (vec![1, 513], 1, 0));
    assert_eq!(rig.bytes(HIGH, 512), [0; 512]);
    assert_eq!(rig.device.counters.totals().faults, 1);
    assert_eq!(rig.device.counters.first_fault().map(|fault| fault.addr), Some(HIGH));
    assert_eq!(rig.status() & NEEDS_RESET, 0);
}

#[test]
fn a_status_out_of_reach_still_gives_the_request_back() {
    let mut rig = Rig::running(&one());
    let ram = rig.ram.clone();
    rig.header(DATA, IN, 0);
    rig.queues[0].submit(&ram, &[(DATA, 16, false), (DATA + 0x1000, 512, true), (HIGH, 1, true)]);
    assert_eq!(complete(&mut rig), [(0, 512)]);
    assert_eq!(rig.device.counters.totals().failed, 1);
}

#[test]
fn a_wrapping_device_hits_the_wrong_memory() {
    let mut rig = Rig::new(&one(), Hardware { beyond: Beyond::Wrap, ..Hardware::default() });
    rig.place();
    rig.start(u64::MAX, 1, 16);
    rig.disk(|bytes| bytes.fill(9));
    let ram = rig.ram.clone();
    rig.header(DATA, IN, 0);
    rig.queues[0].submit(&ram, &[(DATA, 16, false), (HIGH + 0x2000, 512, true), (DATA + 0x800, 1, true)]);
    complete(&mut rig);
    assert_eq!(rig.status_of(DATA), 0, "the device has no idea");
    assert_eq!((rig.bytes(HIGH + 0x2000, 512), rig.bytes(0x2000, 512)), (vec![0; 512], vec![9; 512]));
    assert!(rig.log.take().contains(&Seen::Moved(0x2000, 512, true)));
}

#[test]
fn after_a_reset_nothing_in_flight_touches_memory() {
    let mut rig = Rig::running(&one());
    rig.disk(|bytes| bytes.fill(9));
    rig.request(DATA, IN, 0, 64 << 10, true);
    rig.kick(0);
    for _ in 0..4 {
        assert_eq!(rig.device.workers[0].service(0), Next::Again);
    }
    rig.write(20, Width::B1, 0);
    let before = rig.bytes(0, RAM);
    rig.log.take();
    assert_ne!(rig.status(), 0);
    assert_eq!(rig.run(100), 1);
    assert_eq!((rig.status(), rig.log.take()), (0, vec![]));
    assert!(rig.bytes(0, RAM) == before);
    rig.start(u64::MAX, 1, 16);
    rig.request(DATA, IN, 0, 512, true);
    assert_eq!(complete(&mut rig), [(0, 513)]);
}

#[test]
fn no_interrupt_silences_a_driver_without_event_idx() {
    let mut rig = Rig::new(&one(), Hardware::default());
    rig.place();
    rig.msix(2);
    rig.start(!EVENT_IDX, 1, 16);
    rig.ram.write_obj(1u16, GuestAddress(rig.queues[0].avail)).unwrap();
    rig.request(DATA, IN, 0, 512, true);
    assert_eq!((complete(&mut rig).len(), rig.sink.take()), (1, vec![]));
    rig.ram.write_obj(0u16, GuestAddress(rig.queues[0].avail)).unwrap();
    rig.request(DATA, IN, 0, 512, true);
    assert_eq!((complete(&mut rig).len(), rig.sink.take()), (1, vec![Irq::Msi(1, 0xfee0_0000, 1)]));
}

#[test]
fn depth_bounds_what_is_in_flight_and_nothing_is_left_behind() {
    let mut rig = Rig::running(&BlkOptions { depth: 2, ..one() });
    for nth in 0..5 {
        rig.request(DATA + nth * 0x2000, IN, 0, 512, true);
    }
    assert_eq!(complete(&mut rig).len(), 5);
    assert_eq!(rig.device.counters.totals().peak_in_flight, 2);
}

#[test]
fn every_queue_serves_its_own_ring() {
    let mut rig = Rig::running(&BlkOptions { queues: 3, ..one() });
    let ram = rig.ram.clone();
    for queue in 0..3u16 {
        let at = DATA + u64::from(queue) * 0x4000;
        rig.header(at, OUT, queue.into());
        rig.ram.write_slice(&[u8::try_from(queue).unwrap() + 1; 512], GuestAddress(at + 0x1000)).unwrap();
        let request = [(at, 16, false), (at + 0x1000, 512, false), (at + 0x800, 1, true)];
        rig.queues[usize::from(queue)].submit(&ram, &request);
        rig.kick(queue);
    }
    rig.run(1000);
    assert_eq!(rig.sink.take().len(), 3);
    rig.disk(|bytes| assert_eq!([bytes[0], bytes[512], bytes[1024]], [1, 2, 3]));
}

#[test]
fn impossible_options_are_errors() {
    let build = |options: BlkOptions, width| {
        let store = crate::store::MemoryStore::zeroed(512).map(crate::store::Store::Memory).unwrap();
        let hardware = Hardware { width, ..Hardware::default() };
        let irq = std::sync::Arc::<crate::testing::Sink>::default();
        blk(&options, hardware, store.into(), irq, |_| (crate::testing::ram(), ())).err()
    };
    assert_eq!(build(BlkOptions { blk_size: 511, ..one() }, 32), Some(DeviceError::BlkSize { size: 511 }));
    assert_eq!(build(BlkOptions { depth: 0, ..one() }, 32), Some(DeviceError::Depth { depth: 0 }));
    let width = crate::pci::BusMasterError::Width { width: 65 };
    assert_eq!(build(one(), 65), Some(DeviceError::BusMaster(width)));
}

const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Puts a list of ranges where a request at `at` has its data.
fn list(rig: &Rig, at: u64, ranges: &[(u64, u32, u32)]) -> u32 {
    for (nth, (sector, sectors, flags)) in (0..).zip(ranges) {
        let entry = GuestAddress(at + 0x1000 + 16 * nth);
        let bytes = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
        rig.ram.write_slice(&bytes, entry).unwrap();
    }
    u32::try_from(ranges.len() * 16).unwrap()
}

#[test]
fn ranges_are_cleared_and_nothing_else() {
    let mut rig = Rig::running(&one());
    rig.disk(|bytes| bytes.fill(0xd1));
    for (at, kind, ranges) in [
        (DATA, DISCARD, &[(1, 2, 0), (8, 1, 0)][..]),
        (DATA + 0x4000, WRITE_ZEROES, &[(16, 4, 0), (32, 1, 1), (40, 0, 0)]),
    ] {
        let len = list(&rig, at, ranges);
        let head = rig.request(at, kind, 0, len, false);
        assert_eq!(complete(&mut rig), [(head.into(), 1)]);
        assert_eq!(rig.status_of(at), 0);
    }
    let cleared = [1..3, 8..9, 16..20, 32..33];
    rig.disk(|bytes| {
        for (sector, bytes) in (0..).zip(bytes.chunks(512)) {
            let wanted = if cleared.iter().any(|range| range.contains(&sector)) { 0 } else { 0xd1 };
            assert!(bytes.iter().all(|byte| *byte == wanted), "sector {sector}");
        }
    });
    assert_eq!(rig.device.counters.totals().failed, 0);
}

#[test]
fn a_list_may_be_cut_anywhere_and_is_read_as_one() {
    let mut rig = Rig::running(&one());
    rig.disk(|bytes| bytes.fill(0xd1));
    rig.header(DATA, WRITE_ZEROES, 0);
    list(&rig, DATA, &[(1, 1, 0), (3, 1, 0)]);
    let ram = rig.ram.clone();
    let cut = [(DATA, 16, false), (DATA + 0x1000, 5, false), (DATA + 0x1005, 20, false), (DATA + 0x1019, 7, false)];
    rig.queues[0].submit(&ram, &[&cut[..], &[(DATA + 0x800, 1, true)]].concat());
    complete(&mut rig);
    assert_eq!(rig.status_of(DATA), 0);
    rig.disk(|bytes| assert!(bytes[512..1024] == [0; 512] && bytes[1024] == 0xd1 && bytes[1536..2048] == [0; 512]));
}

#[test]
fn a_bad_list_changes_nothing_and_says_why() {
    let (ioerr, unsupp) = (1, 2);
    let many: Vec<_> = (0..65).map(|nth| (nth, 1, 0)).collect();
    for (kind, ranges, cut, status) in [
        (DISCARD, &[(0, 1, 0), (SECTORS, 1, 0)][..], 0, ioerr),
        (WRITE_ZEROES, &[(0, 1, 0), (u64::MAX, 1, 0)], 0, ioerr),
        (WRITE_ZEROES, &[(0, 1, 0), (0, 32769, 0)], 0, ioerr),
        (WRITE_ZEROES, &[(0, 1, 0), (1, 1, 2)], 0, unsupp),
        (DISCARD, &[(0, 1, 0), (1, 1, 1)], 0, unsupp),
        (DISCARD, &[(0, 1, 0)], 1, ioerr),
        (DISCARD, &[], 0, ioerr),
        (DISCARD, &many, 0, ioerr),
        (14, &[(0, 1, 0)], 0, unsupp),
    ] {
        let mut rig = Rig::running(&one());
        rig.disk(|bytes| bytes.fill(0xd1));
        let len = list(&rig, DATA, ranges) - cut;
        rig.request(DATA, kind, 0, len, false);
        complete(&mut rig);
        assert_eq!(rig.status_of(DATA), status, "{kind} {ranges:?}");
        rig.disk(|bytes| assert!(bytes.iter().all(|byte| *byte == 0xd1)));
    }
    for options in [BlkOptions { discard: false, ..one() }, BlkOptions { read_only: true, ..one() }] {
        let mut rig = Rig::running(&options);
        let len = list(&rig, DATA, &[(0, 1, 0)]);
        rig.request(DATA, DISCARD, 0, len, false);
        complete(&mut rig);
        assert_eq!(rig.status_of(DATA), unsupp, "not offered");
    }
}

#[test]
fn a_list_out_of_reach_fails_its_request_and_a_flush_waits_for_what_is_being_cleared() {
    let mut rig = Rig::running(&one());
    rig.header(DATA, DISCARD, 0);
    let ram = rig.ram.clone();
    rig.queues[0].submit(&ram, &[(DATA, 16, false), (1 << 40, 16, false), (DATA + 0x800, 1, true)]);
    complete(&mut rig);
    assert_eq!(rig.status_of(DATA), 1);
    assert_eq!(rig.device.counters.totals().failed, 1);
    let ranges: Vec<_> = (0..20).map(|nth| (nth, 1, 0)).collect();
    let len = list(&rig, DATA, &ranges);
    let first = rig.request(DATA, WRITE_ZEROES, 0, len, false);
    let second = rig.request(DATA + 0x4000, FLUSH, 0, 0, false);
    assert_eq!(complete(&mut rig), [(first.into(), 1), (second.into(), 1)]);
}

/// Where a hostile driver's descriptors point: often somewhere sensible, sometimes anywhere.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (0u64..16).prop_map(|nth| DATA + nth * 0x1000),
        2 => DATA..DATA + 0x10000,
        1 => Just(0x10000u64),
        1 => HIGH..HIGH + 0x10000,
        1 => any::<u64>(),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![3 => Just(16u32), 3 => Just(512), 3 => Just(1), 1 => Just(48), 2 => 0u32..0x3000, 1 => any::<u32>()]
}

fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let flags = prop_oneof![4 => Just(NEXT), 3 => Just(NEXT | WRITE), 3 => Just(WRITE), 1 => 0u16..8];
    let next = prop_oneof![9 => 0u16..16, 1 => any::<u16>()];
    (address(), length(), flags, next)
}

/// Every byte that a writable descriptor, in the ring or in an indirect table, allows to change. Tables are looked
/// for at every 16 bytes: more than is allowed, never less.
fn writable(descriptors: &[(u64, u32, u16, u16)]) -> Vec<std::ops::Range<u64>> {
    let of = |desc: &(u64, u32, u16, u16)| desc.0..desc.0.saturating_add(desc.1.into());
    descriptors.iter().filter(|desc| desc.2 & WRITE != 0).map(of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_hostile_ring_is_survived_and_only_writable_memory_changes(
        mut chains in prop::collection::vec(descriptor(), 16),
        table in prop::collection::vec(descriptor(), 4),
        headers in prop::collection::vec((0u32..15, 0u64..300), 16),
        heads in prop::collection::vec(prop_oneof![20 => 0u16..16, 1 => any::<u16>()], 1..12),
        (flags, event, jump) in (0u16..2, any::<u16>(), prop_oneof![9 => Just(None), 1 => any::<u16>().prop_map(Some)]),
        features in prop_oneof![Just(u64::MAX), Just(!EVENT_IDX)],
    ) {
        let mut rig = Rig::new(&one(), Hardware::default());
        rig.place();
        rig.msix(2);
        rig.start(features, 1, 16);
        rig.disk(|bytes| bytes.fill(0xd1));
        let (ram, at) = (rig.ram.clone(), DATA + 0xf000);
        for (nth, (kind, sector)) in (0u64..).zip(&headers) {
            rig.header(DATA + nth * 0x1000, *kind, *sector);
        }
        // One descriptor leads to the table, which nothing else overwrites but by a descriptor of its own.
        chains[3] = (at, 64, INDIRECT, 0);
        let layout = &mut rig.queues[0];
        for (nth, desc) in (0u16..).zip(&chains) {
            layout.put(&ram, layout.desc, nth, *desc);
        }
        for (nth, desc) in (0u16..).zip(&table) {
            layout.put(&ram, at, nth, *desc);
        }
        heads.iter().for_each(|head| layout.offer(&ram, *head));
        ram.write_obj(flags, GuestAddress(layout.avail)).unwrap();
        if let Some(jump) = jump {
            ram.write_obj(jump, GuestAddress(layout.avail + 2)).unwrap();
        }
        rig.write_used_event(0, event);
        let (low, high) = (rig.bytes(0, RAM), rig.bytes(HIGH, HIGH_LEN));
        rig.kick(0);
        // A bound on phases: pieces of at most 16 KiB of what fits the disk, a few phases besides for each head.
        prop_assert!(rig.run(20_000) < 20_000);
        prop_assert!(rig.bytes(HIGH, HIGH_LEN) == high);
        let mut allowed = writable(&chains);
        allowed.extend(writable(&table));
        allowed.push(rig.queues[0].used..rig.queues[0].used + 0x1000);
        let after = rig.bytes(0, RAM);
        // A request that wrote over descriptors has made its own rules: seen, not judged.
        let ring = rig.queues[0].desc..rig.queues[0].used;
        let rewritten = allowed.iter().take(20).any(|range| {
            (range.start < ring.end && ring.start < range.end) || (range.start < at + 64 && at < range.end)
        });
        if !rewritten {
            for (addr, (was, is)) in (0u64..).zip(low.iter().zip(&after)) {
                prop_assert!(was == is || allowed.iter().any(|range| range.contains(&addr)), "{:#x}", addr);
            }
        }
    }

    #[test]
    fn any_register_access_is_survived(
        accesses in prop::collection::vec(
            (0u8..4, prop_oneof![3 => 0u64..60, 1 => 0x1000u64..0x1004, 1 => 0x3000u64..0x3008, 1 => 0x4000u64..0x4030,
             1 => 0x6000u64..0x6010, 1 => any::<u64>()],
             0u8..4, prop_oneof![4 => 0u64..16, 1 => any::<u64>()]), 1..120),
    ) {
        let mut rig = Rig::running(&one());
        let function = std::sync::Arc::clone(&rig.device.function);
        for (what, offset, width, value) in accesses {
            let width = Width::from_bytes(1 << width).unwrap();
            let low = u32::try_from(value & 0xffff_ffff).unwrap();
            let at = u16::try_from(offset & 0xffff).unwrap();
            match what {
                0 => { let _ = function.bar_read(0, offset, width); }
                1 => { let _ = function.bar_write(0, offset, width, value); }
                2 => { function.config_read(at, width); }
                _ => function.config_write(at, width, low),
            }
            prop_assert!(rig.run(200) < 200);
        }
        function.reset();
        rig.run(200);
        rig.place();
        prop_assert_eq!(rig.status(), 0);
    }
}
