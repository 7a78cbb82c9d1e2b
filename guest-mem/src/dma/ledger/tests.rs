//! dma-debug's texts and order, the device's verdicts to the byte against sets of bytes, and the room that is kept.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::dma::mapping::Entries;

const BASE: u64 = 0x2c0_0000;

fn at(offset: u64) -> DmaAddr {
    DmaAddr::new(BASE + offset)
}

fn new(id: u64, dma: DmaAddr, len: u64, dir: Dir, kind: Kind) -> NewMapping {
    let phys = PhysAddr::new(dma.get() + 0x1000_0000);
    let (map_owner, alloc_owner) = (Owner::default(), Owner::default());
    let (bounced, checked) = (false, true);
    NewMapping {
        id,
        dma,
        phys,
        orig: phys,
        len,
        dir,
        kind,
        entries: Entries::default(),
        bounced,
        map_owner,
        alloc_owner,
        mapped_at: id,
        checked,
    }
}

fn single(id: u64, offset: u64, len: u64, dir: Dir) -> NewMapping {
    new(id, at(offset), len, dir, Kind::Single)
}

fn texts(misuses: &Misuses) -> Vec<String> {
    misuses.iter().map(ToString::to_string).collect()
}

fn unmap(ledger: &mut Ledger, offset: u64, len: u64, dir: Dir, kind: Kind) -> (bool, Vec<String>) {
    let ended = ledger.unmap(at(offset), len, dir, kind, Owner::default(), 99);
    assert_eq!(ledger.validate(), Ok(()));
    (ended.mapping.is_some(), texts(&ended.misuses))
}

fn refused(ledger: &mut Ledger, offset: u64, len: u64, write: bool) -> Option<Violation> {
    match ledger.admit(at(offset), len, write, 7) {
        Verdict::Granted(_) => None,
        Verdict::Refused(violation) => Some(violation),
    }
}

#[test]
fn a_wrong_unmap_ends_the_mapping_and_says_what_dma_debug_says() {
    let mut ledger = Ledger::new();
    let free = "device driver tries to free DMA memory it has not allocated [device address=0x0000000002c00000]";
    let never = unmap(&mut ledger, 0, 64, Dir::ToDevice, Kind::Single);
    assert_eq!(never, (false, vec![format!("{free} [size=64 bytes]")]));

    ledger.map(single(1, 0, 64, Dir::ToDevice));
    assert!(!unmap(&mut ledger, 8, 56, Dir::ToDevice, Kind::Single).0, "an inner address is none");
    assert_eq!(unmap(&mut ledger, 0, 64, Dir::ToDevice, Kind::Single), (true, vec![]));
    assert!(!unmap(&mut ledger, 0, 64, Dir::ToDevice, Kind::Single).0, "twice");
    assert_eq!(ledger.died_at(at(63)).unwrap().mapping.id, 1);

    ledger.map(NewMapping { checked: false, ..single(2, 0, 64, Dir::ToDevice) });
    let all = unmap(&mut ledger, 0, 32, Dir::FromDevice, Kind::Coherent);
    let here = "[device address=0x0000000002c00000]";
    let expected = [
        format!("device driver frees DMA memory with different size {here} [map size=64 bytes] [unmap size=32 bytes]"),
        format!(
            "device driver frees DMA memory with wrong function {here} [size=32 bytes] \
             [mapped as single] [unmapped as coherent]"
        ),
        format!(
            "device driver frees DMA memory with different direction {here} [size=32 bytes] \
             [mapped with DMA_TO_DEVICE] [unmapped with DMA_FROM_DEVICE]"
        ),
        format!("device driver failed to check map error{here} [size=32 bytes] [mapped as single]"),
    ];
    assert_eq!(all, (true, expected.to_vec()));
    assert!(ledger.is_empty());
    let invalid = ledger.unmap(DmaAddr::new(u64::MAX), 64, Dir::ToDevice, Kind::Single, Owner::default(), 0);
    assert_eq!(texts(&invalid.misuses), ["device driver tries to free an invalid DMA memory address"]);
    assert_eq!(invalid.misuses.iter().next().unwrap().linux(), Some("CONFIG_DMA_API_DEBUG"));
}

#[test]
fn coherent_memory_is_freed_by_its_own_call_at_its_own_address() {
    let mut ledger = Ledger::new();
    let region = new(1, at(0), 4096, Dir::Bidirectional, Kind::Coherent);
    ledger.map(NewMapping { checked: false, ..region });
    let right = ledger.free_coherent(at(0), 4096, region.phys, Owner::default(), 0);
    assert!(right.misuses.is_empty(), "nothing to be checked, for coherent memory");
    ledger.map(region);
    let wrong = ledger.free_coherent(at(0), 4096, PhysAddr::new(0x1000), Owner::default(), 0);
    let expected = "device driver frees DMA memory with different CPU address [device address=0x0000000002c00000] \
                    [size=4096 bytes] [cpu alloc address=0x0000000012c00000] [cpu free address=0x0000000000001000]";
    assert_eq!(texts(&wrong.misuses), [expected]);
    ledger.map(region);
    assert_eq!(texts(&ledger.sync(at(64), 64, true, Dir::ToDevice).misuses), [""; 0]);
    assert_eq!(refused(&mut ledger, 64, 64, true), None, "a sync of coherent memory does nothing");
}

#[test]
fn of_several_mappings_at_an_address_the_perfect_one_is_meant_or_none() {
    let mut ledger = Ledger::new();
    for (id, len) in [(1, 128), (2, 64), (3, 64)] {
        ledger.map(single(id, 0, len, Dir::ToDevice));
    }
    assert!(!unmap(&mut ledger, 0, 32, Dir::ToDevice, Kind::Single).0, "three candidates, none perfect");
    let oldest = ledger.unmap(at(0), 64, Dir::ToDevice, Kind::Single, Owner::default(), 0);
    assert_eq!(oldest.mapping.unwrap().id, 2);
    assert!(!unmap(&mut ledger, 0, 64, Dir::FromDevice, Kind::Single).0);
    assert_eq!(unmap(&mut ledger, 0, 64, Dir::ToDevice, Kind::Single), (true, vec![]));
    assert_eq!(unmap(&mut ledger, 0, 64, Dir::ToDevice, Kind::Single).1.len(), 1, "the only one left, of 128");
}

#[test]
fn a_check_marks_one_mapping_the_oldest_first() {
    let mut ledger = Ledger::new();
    let ids = [1, 2].map(|id| ledger.map(NewMapping { checked: false, ..single(id, 0, 64, Dir::ToDevice) }));
    assert!(ledger.check(at(0)));
    assert_eq!(ids.map(|id| ledger.get(id).unwrap().checked), [true, false]);
    assert!(ledger.check(at(0)) && !ledger.check(at(0)) && !ledger.check(at(1)));
}

#[test]
fn a_wrong_sync_says_what_dma_debug_says() {
    use Dir::{Bidirectional, FromDevice, ToDevice};
    let sync = |mapped, for_cpu, synced| {
        let mut ledger = Ledger::new();
        ledger.map(single(1, 0, 64, mapped));
        let texts = texts(&ledger.sync(at(16), 8, for_cpu, synced).misuses);
        texts.iter().map(|text| text.split(" DMA").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (other, cpu, device) =
        ("device driver syncs", "device driver syncs device read-only", "device driver syncs device write-only");
    for (mapped, for_cpu, synced, expected) in [
        (ToDevice, true, ToDevice, vec![]),
        (ToDevice, true, FromDevice, vec![other, cpu]),
        (ToDevice, true, Bidirectional, vec![other, cpu]),
        (ToDevice, false, FromDevice, vec![other]),
        (FromDevice, true, ToDevice, vec![other]),
        (FromDevice, true, Bidirectional, vec![other]),
        (FromDevice, false, FromDevice, vec![]),
        (FromDevice, false, ToDevice, vec![other, device]),
        (FromDevice, false, Bidirectional, vec![other, device]),
        (Bidirectional, true, FromDevice, vec![]),
        (Bidirectional, false, ToDevice, vec![]),
    ] {
        assert_eq!(sync(mapped, for_cpu, synced), expected, "{mapped} {for_cpu} {synced}");
    }
    let mut ledger = Ledger::new();
    ledger.map(single(1, 0, 64, ToDevice));
    let read_only = ledger.sync(at(0), 64, true, FromDevice).misuses;
    let expected = "device driver syncs device read-only DMA memory for cpu [device address=0x0000000002c00000] \
                    [size=64 bytes] [mapped with DMA_TO_DEVICE] [synced with DMA_FROM_DEVICE]";
    assert_eq!(texts(&read_only)[1], expected);
    let outside = ledger.sync(at(0), 65, true, ToDevice);
    let expected = "device driver tries to sync DMA memory it has not allocated [device address=0x0000000002c00000] \
                    [size=65 bytes]";
    assert_eq!((outside.mapping, texts(&outside.misuses)), (None, vec![expected.to_owned()]));
}

#[test]
fn a_sync_takes_the_nearest_bucket_that_is_not_ambiguous() {
    let mut ledger = Ledger::new();
    let far = ledger.map(single(1, 0, 0x8000, Dir::Bidirectional));
    let near = ledger.map(single(2, 0x4000, 0x1000, Dir::Bidirectional));
    assert_eq!(ledger.sync(at(0x4200), 16, false, Dir::FromDevice).mapping, Some(near));
    ledger.map(single(3, 0x4100, 0x1000, Dir::Bidirectional));
    assert_eq!(ledger.sync(at(0x4200), 16, true, Dir::FromDevice).mapping, Some(far));
    assert_eq!(ledger.get(far).unwrap().cpu_window.map(|window| (window.from, window.to)), Some((0x4200, 0x4210)));
}

#[test]
fn the_device_is_stopped_at_the_byte_and_told_why() {
    let mut ledger = Ledger::new();
    ledger.map(single(1, 0, 100, Dir::ToDevice));
    ledger.map(single(2, 100, 28, Dir::FromDevice));
    assert_eq!(refused(&mut ledger, 0, 100, false), None);
    assert!(matches!(refused(&mut ledger, 0, 100, true), Some(Violation::WrongDirection { .. })));
    let both = refused(&mut ledger, 96, 8, false).unwrap();
    assert!(matches!(both, Violation::Outside { mapping: Mapping { id: 1, .. }, before: 0, past: 4, .. }), "{both}");
    let into = DmaAddr::new(BASE - 10);
    let Verdict::Refused(Violation::Outside { before, past, mapping, .. }) = ledger.admit(into, 200, true, 0) else {
        panic!("it begins before the first mapping");
    };
    assert_eq!((mapping.id, before, past), (1, 10, 90));
    let gap = refused(&mut ledger, 128, 1, true).unwrap();
    assert!(matches!(gap, Violation::Unmapped { .. }));
    let expected = "device writes memory that is not mapped for DMA [device address=0x0000000002c00080] [size=1 bytes]";
    assert_eq!((gap.to_string().as_str(), gap.linux(), gap.mapping()), (expected, None, None));
    let wrap = ledger.admit(DmaAddr::new(u64::MAX), u64::MAX, true, 0);
    assert!(matches!(wrap, Verdict::Refused(Violation::Unmapped { .. })), "no access wraps round to the first byte");
    assert_eq!(ledger.live().next().unwrap().touched.read_bytes, 100);
}

#[test]
fn of_several_mappings_the_one_that_explains_most_is_named() {
    let mut ledger = Ledger::new();
    for (id, offset, len) in [(1, 0, 45), (2, 10, 60), (3, 20, 40), (4, 20, 30)] {
        ledger.map(single(id, offset, len, Dir::ToDevice));
    }
    let named = |violation: Option<Violation>| violation.and_then(|it| it.mapping().map(|mapping| mapping.id));
    assert_eq!(named(refused(&mut ledger, 30, 120, false)), Some(2), "the fewest bytes outside");
    assert_eq!(named(refused(&mut ledger, 30, 8, true)), Some(4), "the nearest beginning, the newest there");
    assert_eq!(named(refused(&mut ledger, 15, 8, true)), Some(2));
}

#[test]
fn a_grant_is_counted_and_leads_to_the_bytes_of_the_bounce_slot() {
    let mut ledger = Ledger::new();
    let id = ledger.map(NewMapping { orig: PhysAddr::new(0x9000), ..single(1, 0, 64, Dir::Bidirectional) });
    for (len, write, now) in [(8, true, 40), (16, false, 50), (1, true, 60)] {
        assert!(matches!(ledger.admit(at(4), len, write, now), Verdict::Granted(_)));
    }
    let mapping = ledger.get(id).unwrap();
    let expected =
        crate::dma::mapping::Touched { reads: 1, read_bytes: 16, writes: 2, write_bytes: 9, first: Some(40) };
    assert_eq!(mapping.touched, expected);
    assert_eq!(mapping.translate(at(63)), Some(PhysAddr::new(BASE + 0x1000_003f)));
    assert_eq!(mapping.translate(at(64)), None);
}

#[test]
fn after_a_shutdown_nothing_is_granted_until_the_driver_lets_go() {
    let mut ledger = Ledger::new();
    ledger.map(single(1, 0, 64, Dir::FromDevice));
    assert_eq!(refused(&mut ledger, 0, 64, true), None);
    ledger.set_shut_down(true);
    let refused_then = refused(&mut ledger, 0, 64, true);
    assert!(matches!(refused_then, Some(Violation::AfterShutdown { mapping, .. }) if mapping.id == 1));
    ledger.set_shut_down(false);
    assert_eq!(refused(&mut ledger, 0, 64, true), None);
}

#[test]
fn an_open_window_keeps_the_device_out_of_its_bytes_only() {
    let mut ledger = Ledger::new();
    ledger.map(single(1, 0, 64, Dir::FromDevice));
    let epoch = ledger.epoch();
    assert!(ledger.sync(at(0), 16, true, Dir::FromDevice).misuses.is_empty());
    assert_ne!(ledger.epoch(), epoch, "a cached verdict is out of date");
    assert!(matches!(refused(&mut ledger, 15, 2, true), Some(Violation::WhileCpuOwns { .. })));
    assert_eq!(refused(&mut ledger, 16, 48, true), None);
    assert!(ledger.sync(at(0), 64, false, Dir::FromDevice).misuses.is_empty());
    assert_eq!(refused(&mut ledger, 0, 64, true), None);
}

#[test]
fn a_late_access_names_both_ends_of_the_mapping_that_was_until_it_is_forgotten() {
    let mut ledger = Ledger::new();
    let (mapper, unmapper) = (Owner { site: crate::Site::caller(), ..Owner::default() }, Owner::default());
    ledger.map(NewMapping { map_owner: mapper, ..single(1, 0, 64, Dir::FromDevice) });
    assert!(ledger.unmap(at(0), 64, Dir::FromDevice, Kind::Single, unmapper, 5).misuses.is_empty());
    let Some(late @ Violation::AfterUnmap { dead, .. }) = refused(&mut ledger, 60, 8, true) else {
        panic!("unmapped, and not long ago");
    };
    assert_eq!((dead.mapping.map_owner, dead.unmap_owner, dead.unmapped_at), (mapper, unmapper, 5));
    assert!(late.to_string().starts_with("device writes DMA memory after its unmap [device address=0x"), "{late}");
    for id in 0..DEAD as u64 + 10 {
        assert_eq!(ledger.dead().next().unwrap().mapping.id, if id == 0 { 1 } else { 100 + id - 1 });
        assert_eq!(ledger.died_at(at(0)).is_some(), id < DEAD as u64, "{id} later");
        ledger.map(single(100 + id, 4096, 64, Dir::ToDevice));
        assert!(unmap(&mut ledger, 4096, 64, Dir::ToDevice, Kind::Single).0);
    }
    assert!(ledger.dead().map(|dead| dead.mapping.id).eq((110..110 + DEAD as u64).rev()), "the newest first");
    assert!(matches!(refused(&mut ledger, 60, 4, true), Some(Violation::Unmapped { .. })));
}

#[test]
fn what_is_left_at_unbind_is_told_as_linux_tells_it() {
    let mut ledger = Ledger::new();
    assert_eq!(ledger.pending(), None);
    ledger.map(single(3, 0x400, 128, Dir::FromDevice));
    ledger.map(single(2, 0, 64, Dir::ToDevice));
    ledger.map(new(1, DmaAddr::new(0x1_011f_8000), 4096, Dir::Bidirectional, Kind::Coherent));
    let text = ledger.pending().unwrap().to_string();
    let expected = "device driver has pending DMA allocations while released from device [count=3]\n\
                    One of leaked entries details: [device address=0x0000000002c00000] [size=64 bytes] \
                    [mapped with DMA_TO_DEVICE] [mapped as single]";
    assert_eq!(text, expected, "bucket 5632 comes after 2300; in it, the last mapped");
    assert_eq!(ledger.live().map(|it| it.id).collect::<Vec<_>>(), [2, 3, 1]);
}

#[test]
fn a_full_round_of_the_book_needs_no_more_room_the_second_time() {
    let mut ledger = Ledger::new();
    let round = |ledger: &mut Ledger| {
        let ids: Vec<_> = (0..300).map(|i| ledger.map(single(i, i * 512, 512, Dir::ToDevice))).collect();
        for i in 0..300 {
            assert!(unmap(ledger, i * 512, 512, Dir::ToDevice, Kind::Single).0);
        }
        assert_eq!(ledger.get(ids[0]), None, "a stale handle finds nothing");
        (ledger.slab.capacity(), ledger.free.capacity(), ledger.dead.capacity())
    };
    let room = round(&mut ledger);
    assert_eq!(round(&mut ledger), room);
    let old = ledger.map(single(1, 0, 64, Dir::ToDevice));
    ledger.clear();
    assert_eq!((ledger.get(old), ledger.len(), ledger.died_at(at(0)), ledger.validate()), (None, 0, None, Ok(())));
    ledger.map(single(1, 0, 64, Dir::ToDevice));
    assert_eq!(ledger.get(old), None, "nor does one from before the clear");
    assert_eq!(round(&mut ledger), room);
}

/// A mapping as sets of bytes, one bit each.
#[derive(Clone, Debug)]
struct Shadow {
    id: u64,
    dma: u64,
    len: u64,
    dir: Dir,
    kind: Kind,
    cpu: u128,
}

fn bytes(at: u64, len: u64) -> u128 {
    (at..at + len).fold(0, |set, byte| set | 1 << byte)
}

impl Shadow {
    fn bytes(&self) -> u128 {
        bytes(self.dma, self.len)
    }

    fn sync(&mut self, range: u128, for_cpu: bool) {
        let span = |set: u128| u128::MAX >> set.leading_zeros() & u128::MAX << set.trailing_zeros();
        if for_cpu {
            let near = range | range << 1 | range >> 1;
            self.cpu = if self.cpu & near == 0 { range } else { span(self.cpu | range) };
            return;
        }
        let left = self.cpu & !range;
        let low = left & (range & range.wrapping_neg()).wrapping_sub(1);
        let high = left & !low;
        self.cpu = if high.count_ones() > low.count_ones() { high } else { low };
    }
}

#[derive(Default)]
struct Book {
    live: Vec<Shadow>,
    dead: Vec<Shadow>,
    granted: u64,
}

impl Book {
    /// The perfect one, or the only one, in the order of the map calls, coherent memory first.
    fn pick(&self, held: impl Fn(&Shadow) -> bool, perfect: impl Fn(&Shadow) -> bool) -> Option<usize> {
        let all: Vec<_> = (0..self.live.len()).filter(|&i| held(&self.live[i])).collect();
        all.iter().copied().find(|&i| perfect(&self.live[i])).or(if all.len() == 1 { Some(all[0]) } else { None })
    }

    fn check(&mut self, dma: u64, len: u64, write: bool, verdict: &Verdict<'_>) {
        let range = bytes(dma, len);
        let allows = |it: &Shadow| if write { it.dir != Dir::ToDevice } else { it.dir != Dir::FromDevice };
        let holds = |it: &Shadow| range & !it.bytes() == 0;
        let any = |list: &[Shadow], range: u128| list.iter().rev().find(|it| it.bytes() & range != 0).map(|it| it.id);
        let good = self.live.iter().any(|it| holds(it) && allows(it) && range & it.cpu == 0);
        let first = bytes(dma, 1);
        match verdict {
            Verdict::Granted(mapping) => {
                let it = self.live.iter().find(|it| it.id == mapping.id).unwrap();
                assert!(holds(it) && allows(it) && range & it.cpu == 0);
                self.granted += len;
            }
            Verdict::Refused(violation) => {
                assert!(!good, "{violation}");
                let its = violation.mapping().and_then(|it| self.live.iter().find(|live| live.id == it.id));
                let blocked = self.live.iter().any(holds);
                match violation {
                    Violation::WrongDirection { .. } => assert!(its.is_some_and(|it| holds(it) && !allows(it))),
                    Violation::WhileCpuOwns { .. } => assert!(its.is_some_and(|it| holds(it) && it.cpu & range != 0)),
                    Violation::AfterShutdown { .. } => panic!("nobody shuts down here: {violation}"),
                    Violation::Outside { before, past, .. } => {
                        let its = its.unwrap();
                        let out = (range & !its.bytes()).count_ones();
                        assert_eq!((u64::from(out), blocked), (before + past, false));
                        let by_first = its.bytes() & first != 0;
                        assert!(by_first || any(&self.live, first).or(any(&self.dead, first)).is_none());
                    }
                    Violation::AfterUnmap { dead, .. } => {
                        assert_eq!(any(&self.live, first), None);
                        let by_first = any(&self.dead, first);
                        assert!(by_first.is_some() || any(&self.live, range).is_none());
                        assert_eq!(Some(dead.mapping.id), by_first.or(any(&self.dead, range)));
                    }
                    Violation::Unmapped { .. } => {
                        assert_eq!(any(&self.live, range).or(any(&self.dead, range)), None);
                    }
                }
            }
        }
    }
}

type Step = (u8, u64, u64, u8, bool);

fn dir(n: u8) -> Dir {
    [Dir::ToDevice, Dir::FromDevice, Dir::Bidirectional][usize::from(n % 3)]
}

/// One step on both books; small numbers, so that mappings overlap, repeat and meet.
fn apply(ledger: &mut Ledger, book: &mut Book, id: u64, (what, a, b, d, flag): Step) {
    let (dma, len, dir) = (DmaAddr::new(a), b, dir(d));
    match what {
        0..4 => {
            let kind = if what == 0 { Kind::Coherent } else { Kind::Single };
            ledger.map(new(id, dma, len, dir, kind));
            book.live.push(Shadow { id, dma: a, len, dir, kind, cpu: 0 });
        }
        4..6 if !book.live.is_empty() => {
            let it = book.live[usize::from(d) % book.live.len()].clone();
            let len = if flag { it.len } else { len };
            let same = |other: &Shadow| (other.len, other.dir, other.kind) == (len, it.dir, it.kind);
            let picked = book.pick(|other| other.dma == it.dma, same).map(|i| book.live.remove(i));
            let ended = ledger.unmap(DmaAddr::new(it.dma), len, it.dir, it.kind, Owner::default(), id);
            assert_eq!(ended.mapping.map(|gone| gone.id), picked.as_ref().map(|gone| gone.id));
            book.dead.extend(picked);
        }
        6..8 => {
            let range = bytes(a, len);
            let perfect = |it: &Shadow| (it.len, it.dir, it.kind) == (len, dir, Kind::Single);
            let picked = book.pick(|it| range & !it.bytes() == 0, perfect);
            let synced = ledger.sync(dma, len, flag, dir);
            let its = synced.mapping.and_then(|id| ledger.get(id)).map(|it| it.id);
            assert_eq!(its, picked.map(|i| book.live[i].id));
            if let Some(it) = picked.map(|i| &mut book.live[i]).filter(|it| it.kind == Kind::Single) {
                it.sync(range, flag);
            }
        }
        _ => book.check(a, len, flag, &ledger.admit(dma, len, flag, id)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn every_verdict_is_that_of_sets_of_bytes(
        steps in vec((0u8..14, 0u64..90, 1u64..32, any::<u8>(), any::<bool>()), 1..200)
    ) {
        let (mut ledger, mut book) = (Ledger::new(), Book::default());
        for (id, step) in steps.into_iter().enumerate() {
            apply(&mut ledger, &mut book, id as u64, step);
            prop_assert_eq!(ledger.validate(), Ok(()));
            prop_assert_eq!(ledger.len(), book.live.len());
        }
        let mut expected: Vec<_> = book.live.iter().map(|it| (it.dma, it.kind == Kind::Single, it.id)).collect();
        expected.sort_unstable();
        let live: Vec<_> = ledger.live().map(|it| (it.dma.get(), it.kind == Kind::Single, it.id)).collect();
        prop_assert_eq!(live, expected);
        let all = ledger.live().chain(ledger.dead().map(|dead| &dead.mapping));
        let bytes: u64 = all.map(|it| it.touched.read_bytes + it.touched.write_bytes).sum();
        prop_assert_eq!(bytes, book.granted);
    }
}
