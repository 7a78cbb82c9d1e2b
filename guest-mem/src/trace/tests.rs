//! What recorder and rings do together.

use super::*;

fn event(kind: Kind, len: u32) -> Record {
    Record { ts: 1, addr: 2, len, kind, dev: 0, tag: 0 }
}

#[test]
fn the_digest_sees_kind_order_length_and_producer_but_no_address_or_time() {
    let digest = |events: &[(u16, Record)]| {
        let recorder = Recorder::default();
        events.iter().for_each(|&(who, record)| recorder.emit(Producer(who), record));
        recorder.digest()
    };
    let (a, b) = (event(Kind::Kmalloc, 64), event(Kind::Kfree, 64));
    let base = digest(&[(0, a), (0, b)]);
    assert_eq!(base, digest(&[(0, Record { ts: 9, addr: 9, tag: 9, ..a }), (0, b)]));
    assert_ne!(base, digest(&[(0, b), (0, a)]));
    assert_ne!(base, digest(&[(0, event(Kind::Kmalloc, 65)), (0, b)]));
    assert_ne!(base, digest(&[(1, a), (0, b)]));
}

#[test]
fn details_are_kept_but_neither_count_nor_enter_the_digest() {
    let (with, without) = (Recorder::default(), Recorder::default());
    for recorder in [&with, &without] {
        recorder.emit(Producer(0), event(Kind::DmaMapPage, 1));
    }
    with.emit_with(Producer(0), event(Kind::DmaMapPage, 1), [event(Kind::Mapping, 2)]);
    without.emit(Producer(0), event(Kind::DmaMapPage, 1));
    assert_eq!((with.digest(), with.events()), (without.digest(), without.events()));
    assert_eq!((with.recent_of_all(9).len(), without.recent_of_all(9).len()), (3, 2));
}

proptest::proptest! {
    /// The rings, merged, are the last records in their order, whoever made them.
    #[test]
    fn the_last_events_of_all_are_merged_in_the_order_they_were_made(
        made in proptest::collection::vec((0_u16..4, 0_usize..3), 0..1200), n in 0_usize..40, shared: bool,
    ) {
        let recorder = Recorder::default();
        if shared {
            recorder.share();
        }
        let mut shadow = Vec::new();
        for (ts, &(who, details)) in (0_u64..).zip(&made) {
            let record = Record { ts, ..event(Kind::Kmalloc, u32::from(who)) };
            let rest = vec![Record { kind: Kind::By, ..record }; details];
            recorder.emit_with(Producer(who), record, rest.clone());
            shadow.extend(std::iter::once(record).chain(rest).map(|record| (Producer(who), record)));
        }
        let starts: Vec<_> =
            (0..shadow.len()).filter(|&at| !shadow[at].1.kind.is_detail()).collect();
        let from = if n == 0 { shadow.len() } else { starts.iter().rev().nth(n - 1).copied().unwrap_or(0) };
        proptest::prop_assert_eq!(recorder.recent_of_all(n), &shadow[from..]);
        proptest::prop_assert_eq!(recorder.events(), made.len() as u64);
    }
}

#[test]
fn a_shared_recorder_loses_nothing_and_keeps_details_with_their_event() {
    const EACH: u64 = 5000;
    let recorder = Recorder::default();
    recorder.share();
    recorder.capture();
    let (seen, broken) = (std::sync::Arc::new(AtomicU64::new(0)), std::sync::Arc::new(AtomicU64::new(0)));
    struct Apart(std::sync::Arc<AtomicU64>, std::sync::Arc<AtomicU64>, Option<u64>);
    impl Sink for Apart {
        fn page(&mut self, page: &[(Producer, Record)]) {
            for (_, record) in page {
                if record.kind.is_detail() {
                    self.1.fetch_add(u64::from(self.2 != Some(record.tag)), Ordering::Relaxed);
                }
                self.2 = Some(record.tag);
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    recorder.stream(Box::new(Apart(seen.clone(), broken.clone(), None)));
    std::thread::scope(|scope| {
        // Two of them write to one ring, as the workers of one device do.
        for (thread, who) in [(0, 0), (1, 7), (2, 7)] {
            let recorder = &recorder;
            scope.spawn(move || {
                for n in 0..EACH {
                    let record = Record { tag: n * 3 + thread, ..event(Kind::DmaMapPage, 1) };
                    recorder.emit_with(Producer(who), record, [Record { kind: Kind::By, ..record }]);
                }
            });
        }
    });
    recorder.end_stream();
    assert_eq!((recorder.events(), recorder.digest()), (3 * EACH, SEED));
    assert_eq!(recorder.made().collect::<Vec<_>>(), [(Producer(0), EACH), (Producer(7), 2 * EACH)]);
    assert_eq!((seen.load(Ordering::Relaxed), broken.load(Ordering::Relaxed)), (6 * EACH, 0));
    assert_eq!(recorder.take_captured().len() as u64, 3 * EACH);
    recorder.reset();
    recorder.emit(Producer(0), event(Kind::Kmalloc, 1));
    assert_ne!(recorder.digest(), SEED, "a reset recorder is not shared");
}

#[test]
fn a_ring_forgets_what_was_overwritten() {
    let recorder = Recorder::default();
    recorder.emit(Producer(1), event(Kind::Step, 0));
    (0..1500).for_each(|n| recorder.emit(Producer(0), event(Kind::Kmalloc, n)));
    let recent = recorder.recent_of_all(9999);
    assert_eq!((recent.len(), recent[0].1.len), (ring::RING, 1500 - 1024));
    (0..512).for_each(|n| {
        recorder.emit_with(Producer(0), event(Kind::Kmalloc, n), [event(Kind::By, n), event(Kind::By, n)])
    });
    let recent = recorder.recent_of_all(9999);
    assert_eq!(recent.len(), ring::RING - 1, "details of an event that is gone go too");
}

#[test]
fn a_kind_that_is_masked_out_leaves_nothing_and_no_digest() {
    let recorder = Recorder::default();
    recorder.capture();
    recorder.mask([Kind::DmaMapPage]);
    recorder.emit(Producer(0), event(Kind::Kmalloc, 1));
    recorder.emit_with(Producer(0), event(Kind::DmaUnmapPage, 1), [event(Kind::By, 0)]);
    recorder.emit_linked(Producer(0), event(Kind::VirtqAdd, 1), || [event(Kind::Segment, 0)]);
    assert_eq!((recorder.events(), recorder.recent_of_all(9), recorder.whole()), (0, vec![], false));
    recorder.emit(Producer(0), event(Kind::DmaMapPage, 1));
    recorder.finding(Producer(0), event(Kind::Finding, 1));
    let kept: Vec<_> = recorder.take_captured().into_iter().map(|(_, record)| record.kind).collect();
    assert_eq!((kept, recorder.digest()), (vec![Kind::DmaMapPage, Kind::Finding], SEED));
    recorder.reset();
    recorder.emit(Producer(0), event(Kind::Kmalloc, 1));
    assert!(recorder.whole() && recorder.digest() != SEED);
}

#[test]
fn links_are_made_for_watchers_only_and_rings_forget_them() {
    let recorder = Recorder::default();
    recorder.emit_linked(Producer(0), event(Kind::VirtqAdd, 1), || -> [Record; 0] { panic!("nobody watches") });
    recorder.link(Producer(0), event(Kind::Take, 1));
    struct Kinds(std::sync::Arc<std::sync::Mutex<Vec<Kind>>>);
    impl Sink for Kinds {
        fn page(&mut self, page: &[(Producer, Record)]) {
            self.0.lock().unwrap().extend(page.iter().map(|(_, record)| record.kind));
        }
    }
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    recorder.stream(Box::new(Kinds(seen.clone())));
    recorder.emit_linked(Producer(0), event(Kind::VirtqAdd, 1), || [event(Kind::Segment, 1)]);
    recorder.link(Producer(0), event(Kind::Take, 1));
    let digest = recorder.digest();
    recorder.end_stream();
    assert_eq!(*seen.lock().unwrap(), [Kind::VirtqAdd, Kind::Segment, Kind::Take]);
    let plain = Recorder::default();
    (0..2).for_each(|_| plain.emit(Producer(0), event(Kind::VirtqAdd, 1)));
    assert_eq!((digest, recorder.recent_of_all(9).len()), (plain.digest(), 2));
}

#[test]
fn a_sink_gets_every_record_once_and_a_finding_what_was_before_it() {
    struct Count(std::sync::Arc<AtomicU64>);
    impl Sink for Count {
        fn page(&mut self, page: &[(Producer, Record)]) {
            assert!((1..=PAGE).contains(&page.len()));
            self.0.fetch_add(page.len() as u64, Ordering::Relaxed);
        }
    }
    let (recorder, count) = (Recorder::default(), std::sync::Arc::new(AtomicU64::new(0)));
    recorder.emit(Producer(0), event(Kind::Kmalloc, 1));
    recorder.stream(Box::new(Count(count.clone())));
    (0..1030).for_each(|n| recorder.emit(Producer(0), event(Kind::Kmalloc, n)));
    recorder.finding(Producer(2), event(Kind::Finding, 1));
    assert_eq!(count.load(Ordering::Relaxed), 1024, "full pages only");
    recorder.end_stream();
    recorder.emit(Producer(0), event(Kind::Kmalloc, 1));
    assert_eq!(count.load(Ordering::Relaxed), 1031);
    let lens: Vec<_> = recorder.around(1).iter().map(|(_, r)| r.len).collect();
    assert_eq!(lens, (1014..1030).collect::<Vec<_>>());
    assert!(recorder.around(0).is_empty() && recorder.around(2).is_empty());
}

#[test]
fn an_owner_survives_its_word() {
    let owner = Owner { site: Site::caller(), scope: Scope::ROOT.enter("probe") };
    assert_eq!(owner_of(owner_word(owner)), owner);
}

#[test]
fn a_reset_recorder_counts_and_digests_like_a_fresh_one() {
    let recorder = Recorder::default();
    recorder.capture();
    recorder.emit(Producer(3), event(Kind::DmaAlloc, 1));
    assert_eq!(recorder.take_captured().len(), 1);
    recorder.reset();
    assert_eq!((recorder.digest(), recorder.events(), recorder.recent_of_all(9)), (SEED, 0, vec![]));
    recorder.emit(Producer(3), event(Kind::DmaAlloc, 1));
    assert!(recorder.take_captured().is_empty(), "a reset stops capturing");
}
