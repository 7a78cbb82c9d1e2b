//! The format end to end: what is written is read, what is broken is said, and what three scenarios' tables show.

use std::io::Write;
use std::sync::{Arc, Mutex};

use lowzone_guest_mem::site::{Owner, Scope, Site};
use lowzone_guest_mem::trace::{Kind, Producer, Record, Shape, owner_word};
use proptest::prelude::*;

use super::diff::parting;
use super::error::ViewError;
use super::event::Event;
use super::format::{BLOCK_HEADER, Header, PREFIX, u32_at};
use super::show::{Filter, show};
use super::stat::Stat;
use super::transaction::{Transaction, Transactions};
use super::tx::{Wanted, lives, tx};
use super::{Reader, TraceError, Writer};
use crate::lab::{Control, Lab, Verify};
use crate::spec::{Set, Source, load};

fn header() -> Header {
    let kinds = Kind::ALL.iter().map(|kind| (kind.number(), kind.name().to_owned())).collect();
    Header {
        program: "test".into(),
        scenario: "s".into(),
        seed: 7,
        clock: "virtual-ns".into(),
        began: None,
        cpus: 2,
        kinds,
        only: Vec::new(),
    }
}

fn devices() -> Vec<(u16, String, String)> {
    vec![(1, "0000:00:01.0".into(), "vda".into())]
}

fn written(records: &[(Producer, Record)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), &header(), &devices(), None).unwrap();
    writer.page(records);
    writer.finish(0xd1, 99).unwrap()
}

fn reader(bytes: &[u8]) -> Result<Reader<&[u8]>, TraceError> {
    Reader::new("t".into(), bytes)
}

/// Everything that can be read, and why no more could.
fn read(bytes: &[u8]) -> (Vec<Event>, Option<TraceError>) {
    let mut events = Vec::new();
    let mut reader = match reader(bytes) {
        Ok(reader) => reader,
        Err(error) => return (events, Some(error)),
    };
    loop {
        match reader.next_event() {
            Ok(Some(event)) => events.push(event),
            Ok(None) => return (events, None),
            Err(error) => {
                assert!(matches!(reader.next_event(), Ok(None)), "an error is given once, then nothing");
                return (events, Some(error));
            }
        }
    }
}

/// Where each block begins, and the end.
fn blocks(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![PREFIX];
    while let Some(&at) = starts.last().filter(|&&at| at < bytes.len()) {
        starts.push(at + BLOCK_HEADER + usize::try_from(u32_at(bytes, at + 4).unwrap()).unwrap());
    }
    starts
}

fn record(ts: u64, kind: Kind, len: u32) -> (Producer, Record) {
    (Producer(0), Record { ts, addr: ts * 3, len, kind, dev: 1, tag: 0 })
}

/// 1200 events, some with a detail: three pages, and details on both sides of their borders.
fn long() -> Vec<u8> {
    let by = Owner { site: Site::caller(), scope: Scope::ROOT.enter("long") };
    let pair = |n: u64| {
        let (who, detail) = record(n, Kind::By, 0);
        [
            Some(record(n, Kind::DmaSyncForCpu, 1)),
            (!n.is_multiple_of(3)).then_some((who, Record { tag: owner_word(by), ..detail })),
        ]
    };
    written(&(0..1200).flat_map(pair).flatten().collect::<Vec<_>>())
}

#[test]
fn a_file_cut_anywhere_gives_what_came_before_and_the_offset() {
    let bytes = long();
    let (all, error) = read(&bytes);
    assert!(error.is_none() && all.len() == 1200);
    assert!(all.iter().all(|event| event.by.is_none() == event.number.is_multiple_of(3)), "details find their event");
    let starts = blocks(&bytes);
    assert!(starts.len() > 6, "several pages: {starts:?}");
    for &cut in &starts[1..starts.len() - 1] {
        let (some, error) = read(&bytes[..cut]);
        assert_eq!(some, all_but_details(&all, some.len(), &some));
        assert!(matches!(error, Some(TraceError::NoEnd { offset, .. }) if offset == cut as u64), "{cut}: {error:?}");
        let (same, error) = read(&bytes[..cut + 5]);
        assert_eq!(same, some);
        let fits = matches!(error, Some(TraceError::Truncated { offset, at, .. })
            if offset == cut as u64 && at == cut as u64 + 5);
        assert!(fits, "{cut}: {error:?}");
    }
    let (_, error) = read(&[&bytes[..], b"more bytes than one header has"].concat());
    assert!(matches!(error, Some(TraceError::Damaged { .. })), "{error:?}");
}

/// The first events of `all`; the last of a cut file may lack details that were on the next page.
fn all_but_details(all: &[Event], n: usize, seen: &[Event]) -> Vec<Event> {
    let mut first = all[..n].to_vec();
    if let (Some(last), Some(seen)) = (first.last_mut(), seen.last()) {
        assert_eq!(last.raw, seen.raw);
        *last = *seen;
    }
    first
}

#[test]
fn foreign_newer_and_swapped_files_are_told_apart() {
    let bytes = long();
    let with = |at: usize, new: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        read(&bytes).1
    };
    assert!(matches!(with(3, b"?"), Some(TraceError::Foreign { offset: 3, .. })));
    assert!(matches!(read(b"").1, Some(TraceError::Foreign { offset: 0, .. })));
    assert!(matches!(read(b"LZTRACE").1, Some(TraceError::Truncated { offset: 0, at: 7, .. })));
    assert!(matches!(with(8, &[4, 3, 2, 1]), Some(TraceError::Endian { found: 0x0102_0304, .. })));
    match with(12, &[9]) {
        Some(TraceError::Newer { found: 9, program, .. }) => assert_eq!(program, "test"),
        other => panic!("{other:?}"),
    }
    // Record bytes changed, then a whole block taken out.
    let starts = blocks(&bytes);
    assert!(matches!(with(starts[3] + 40, &[0xff]), Some(TraceError::Damaged { .. })));
    let without = [&bytes[..starts[3]], &bytes[starts[4]..]].concat();
    assert!(matches!(read(&without).1, Some(TraceError::Damaged { what: "a block is missing before it", .. })));
}

fn any_record() -> impl Strategy<Value = (Producer, Record)> {
    let kind = prop::sample::select(Kind::ALL);
    (any::<u16>(), any::<(u64, u64, u64)>(), any::<u32>(), kind, any::<u16>())
        .prop_map(|(who, (ts, addr, tag), len, kind, dev)| (Producer(who), Record { ts, addr, len, kind, dev, tag }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_was_written_is_read(records in prop::collection::vec(any_record(), 0..700)) {
        let (events, error) = read(&written(&records));
        prop_assert!(error.is_none());
        let made: Vec<_> = records.iter().filter(|(_, record)| !record.kind.is_detail()).collect();
        prop_assert_eq!(events.len(), made.len());
        for ((who, record), event) in made.into_iter().zip(&events) {
            let raw = &event.raw;
            prop_assert_eq!((raw.who, raw.ts, raw.addr, raw.len), (who.0, record.ts, record.addr, record.len));
            prop_assert_eq!((raw.kind, raw.dev), (record.kind.number(), record.dev));
            prop_assert!(record.kind.tag_is_owner() || raw.tag == record.tag);
        }
    }

    /// Broken files: an error or fewer events, never a panic; views neither.
    #[test]
    fn no_mutation_makes_the_reader_panic(
        records in prop::collection::vec(any_record(), 0..60),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(), fix in any::<bool>(),
    ) {
        let mut bytes = written(&records);
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        if fix {
            // Checksums made right again, so that what lies behind them is tried too.
            for at in blocks_of(&bytes) {
                let end = at + BLOCK_HEADER + usize::try_from(u32_at(&bytes, at + 4).unwrap()).unwrap();
                let sum = super::format::checksum(&bytes[at..at + 12], &bytes[at + BLOCK_HEADER..end]);
                bytes[at + 12..at + 16].copy_from_slice(&sum.to_le_bytes());
            }
        }
        let (events, _) = read(&bytes);
        prop_assert!(events.len() <= bytes.len() / 34);
        for wrong in [false, true] {
            if let (Ok(mut a), Ok(mut b)) = (reader(&bytes), reader(&bytes)) {
                let _ = tx(&mut a, &Wanted { wrong, ..Wanted::default() }, wrong, &mut std::io::sink());
                let _ = show(&mut b, &Filter::default(), wrong, &mut std::io::sink());
            }
        }
        if let Ok(mut a) = reader(&bytes) {
            let _ = Stat::of(&mut a);
        }
    }
}

/// Whole blocks of a file that may be broken.
fn blocks_of(bytes: &[u8]) -> Vec<usize> {
    let (mut found, mut at) = (Vec::new(), PREFIX);
    while let Some(length) = u32_at(bytes, at + 4).and_then(|n| usize::try_from(n).ok()) {
        if at + BLOCK_HEADER + length > bytes.len() {
            break;
        }
        found.push(at);
        at += BLOCK_HEADER + length;
    }
    found
}

/// A file in memory that two can hold.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs a scenario that comes with the program; its trace, its digest, and the events before its first finding.
fn traced(name: &str, seed: u64, set: &[&str]) -> (Vec<u8>, String, Vec<String>) {
    let sets: Vec<_> = set.iter().map(|text| Set::parse(text).unwrap()).collect();
    let scenario = load(&Source::embedded(name).unwrap(), &sets).unwrap();
    let mut lab = Lab::new(name, scenario, seed, Verify::Bytes, Arc::new(Control::default())).unwrap();
    let file = Shared::default();
    lab.stream_to(Box::new(file.clone())).unwrap();
    let result = lab.run();
    lab.end_stream().unwrap();
    let around = super::around(lab.kernel(), 1, &lab.devices());
    let bytes = file.0.lock().unwrap().clone();
    (bytes, result.digest, around)
}

fn transactions(bytes: &[u8]) -> Vec<Transaction> {
    let (mut reader, mut all, mut done) = (reader(bytes).unwrap(), Transactions::new(), Vec::new());
    while let Some(event) = reader.next_event().unwrap() {
        all.take(&event, reader.names());
        done.extend(std::iter::from_fn(|| all.settled()));
    }
    done.into_iter().chain(all.rest()).collect()
}

fn text(bytes: &[u8], wanted: &Wanted) -> Result<String, ViewError> {
    let mut out = Vec::new();
    tx(&mut reader(bytes).unwrap(), wanted, false, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn low_zone_maps_touches_and_unmaps_everything() {
    let (bytes, digest, around) = traced("block/low-zone", 1, &[]);
    assert!(around.is_empty(), "no finding, nothing around it");
    let all = transactions(&bytes);
    assert_eq!((all.len(), all.iter().filter(|t| t.shape.unwrap().bounced).count()), (99, 32));
    for t in &all {
        assert!(t.unmapped.is_some() && t.wrong.is_empty(), "{t:?}");
        let shape = t.shape.unwrap();
        assert_eq!(shape.zone.to_string(), "DMA32", "a 32-bit device reaches all of them: {t:?}");
        assert_eq!(t.dma, t.phys);
        assert_eq!(shape.bounced, t.buffer != t.phys);
        assert_eq!(shape.bounced, t.buffer >= 1 << 32);
        if !shape.coherent {
            assert_eq!((t.touched(), t.reads + t.writes), (8192, 1), "one access of all of it: {t:?}");
            let (mapped, first, (unmapped, by)) = (t.mapped.unwrap(), t.first.unwrap(), t.unmapped.unwrap());
            assert!(mapped < first && first < unmapped && by != 0, "{t:?}");
        }
    }
    let mut reader = reader(&bytes).unwrap();
    let (stat, broken) = Stat::of(&mut reader);
    assert!(broken.is_none());
    let end = stat.end.unwrap();
    assert_eq!((format!("{:016x}", end.digest), end.events, end.lost), (digest, stat.events, 0));
    assert_eq!((stat.transactions, stat.bounced, stat.live_at_end), (99, 32, 0));
    assert_eq!(stat.kinds["dma:dma_map_page"].events, 64);
    assert!(reader.names().owner(all[0].mapped_by).unwrap().contains("driver/src/blk/queue.rs:"));
}

#[test]
fn a_use_after_unmap_names_its_transaction_although_that_has_ended() {
    let (bytes, _, around) = traced("block/use-after-unmap", 1, &[]);
    let all = transactions(&bytes);
    let wrong: Vec<_> = all.iter().filter(|t| !t.wrong.is_empty()).collect();
    let [bad] = wrong[..] else { panic!("{wrong:?}") };
    assert_eq!(bad.wrong[0].1, "after-unmap");
    assert_eq!((bad.touched(), bad.first), (0, None), "nothing of it was granted");
    assert!(bad.unmapped.unwrap().0 < bad.wrong[0].0);
    let table = text(&bytes, &Wanted { wrong: true, ..Wanted::default() }).unwrap();
    assert_eq!(table.lines().count(), 2, "{table}");
    assert!(table.contains("unmapped scenarios/src/step/raw.rs:"), "{table}");
    // The same without the crime.
    let (clean, ..) = traced("block/use-after-unmap", 1, &["unmap=after-completion"]);
    assert_eq!(text(&clean, &Wanted { wrong: true, ..Wanted::default() }).unwrap(), "");
    // The record around it ends with the violation itself.
    assert_eq!(around.len(), 16);
    assert!(around[15].trim_start().starts_with("-1 ") && around[15].contains("port:violation"), "{around:#?}");
    assert!(around[15].contains(&format!("tx={}", bad.id)));
}

#[test]
fn what_is_too_wide_is_told_of_its_mapping_and_who_finds_it() {
    let (bytes, ..) = traced("block/too-wide", 1, &[]);
    let all = transactions(&bytes);
    let bad = all.iter().find(|t| !t.wrong.is_empty()).unwrap();
    assert_eq!(bad.wrong[0].1, "beyond-width");
    assert!(bad.dma >= 1 << 32 && bad.touched() == 0, "{bad:?}");
    let covers = |addr: u64| Wanted { addr: Some(addr), ..Wanted::default() };
    let named = text(&bytes, &covers(bad.dma + 4095)).unwrap();
    assert!(named.contains("by its dma address") && named.contains("beyond-width"), "{named}");
    assert_eq!(text(&bytes, &covers(bad.dma + 4096)).unwrap(), "", "one byte further is nobody's");
    let missing = life_of(&bytes, &[bad.id, 999]);
    assert!(matches!(missing, Err(ViewError::NoTransaction { id: 999, .. })));
}

fn life_of(bytes: &[u8], ids: &[u64]) -> Result<String, ViewError> {
    let mut out = Vec::new();
    lives(|| reader(bytes), ids, (false, false), &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

/// What happened, in this order, in lines that hold these words.
fn in_order(life: &str, words: &[&str]) {
    let mut lines = life.lines();
    for word in words {
        assert!(lines.any(|line| line.contains(word)), "'{word}' is missing, or too early:\n{life}");
    }
}

#[test]
fn the_life_of_a_use_after_unmap_answers_who_which_descriptor_when_and_what() {
    let (bytes, ..) = traced("block/use-after-unmap", 1, &[]);
    let bad = transactions(&bytes).into_iter().find(|t| !t.wrong.is_empty()).unwrap();
    let [request] = bad.requests[..] else { panic!("{bad:?}") };
    assert_eq!((request.queue, request.segment, request.segments, request.write), (0, 1, 3, true));
    let (unmapped, _) = bad.unmapped.unwrap();
    let turns = [request.added, request.kicked.unwrap(), request.taken.unwrap(), request.given.unwrap()];
    assert!(bad.mapped.unwrap() < unmapped && unmapped < turns[0].ts, "{bad:?}");
    assert!(turns.is_sorted_by_key(|mark| mark.event) && bad.wrong[0].0 < turns[3].ts, "{bad:?}");
    assert!(request.interrupt.unwrap().event < request.used.unwrap().event);
    assert!(bad.allocated.unwrap().ts < bad.mapped.unwrap() && bad.freed.unwrap().0.ts > unmapped);
    let mapped = format!("mapped: dma:dma_map_page 4096 bytes at {:#x} (+0x0), scenarios/src/step/raw.rs:", bad.dma);
    in_order(
        &life_of(&bytes, &[bad.id]).unwrap(),
        &[
            "wrong: after-unmap",
            "allocated: kmem:mm_page_alloc",
            &mapped,
            "unmapped: dma:dma_unmap_page, scenarios/src/step/raw.rs:",
            "posted: descriptor 2 of 3 in chain 0 of queue 0, which the device may write",
            "the device is told",
            "the device takes the chain",
            "the device reaches for 4096 bytes",
            "FINDING after-unmap",
            "the device gives the chain back",
            "interrupt",
            "the driver takes the chain off the ring",
            "freed: kmem:mm_page_free",
        ],
    );
}

#[test]
fn the_life_of_what_is_too_wide_names_its_descriptor_and_what_came_of_it() {
    let (bytes, ..) = traced("block/too-wide", 1, &[]);
    let bad = transactions(&bytes).into_iter().find(|t| !t.wrong.is_empty()).unwrap();
    in_order(
        &life_of(&bytes, &[bad.id]).unwrap(),
        &[
            "0 reads and 0 writes touched 0 bytes; in 1 chains; wrong: beyond-width",
            "allocated: kmem:kmalloc",
            "mapped: dma:dma_map_page 4096 bytes at 0x100000000 (+0x0), scenarios/src/step/raw.rs:",
            "posted: descriptor 2 of 3 in chain 0 of queue 0",
            "FINDING beyond-width",
            "unmapped: dma:dma_unmap_page, scenarios/src/step/raw.rs:",
            "freed: kmem:kfree",
        ],
    );
}

#[test]
fn every_class_of_transaction_has_an_allocation_a_free_and_its_requests() {
    // Streaming over kmalloc and pages, slabs and bounces; packets; lists; an engine without rings.
    for (name, chains) in [("block/low-zone", true), ("net/loop-back", true), ("edu/selftest", false)] {
        let (bytes, ..) = traced(name, 1, &[]);
        let all = transactions(&bytes);
        assert!(all.len() > 8, "{name}");
        for t in &all {
            let (Some(allocated), Some((freed, _))) = (t.allocated, t.freed) else { panic!("{name}: {t:?}") };
            assert!(allocated.ts <= t.mapped.unwrap() && t.unmapped.unwrap().0 <= freed.ts, "{name}: {t:?}");
            if chains && !t.shape.unwrap().coherent {
                assert_eq!(t.chains, 1, "{name}: {t:?}");
                assert!(t.requests[0].taken.is_some() || t.reads + t.writes == 0, "{name}: {t:?}");
            }
        }
    }
}

#[test]
fn a_buffer_is_found_by_its_own_address_and_by_its_bounce_slot() {
    let (bytes, ..) = traced("block/low-zone", 1, &[]);
    let all = transactions(&bytes);
    let bounced = all.iter().find(|t| t.shape.unwrap().bounced).unwrap();
    for (addr, what) in [(bounced.buffer, "buffer"), (bounced.phys, "dma")] {
        let found = text(&bytes, &Wanted { addr: Some(addr), ..Wanted::default() }).unwrap();
        assert!(found.contains(&format!("by its {what} address")), "{found}");
    }
}

#[test]
fn one_seed_gives_one_file_and_two_part_where_their_digests_do() {
    let (a, digest, _) = traced("block/low-zone", 1, &[]);
    let (again, ..) = traced("block/low-zone", 1, &[]);
    assert_eq!(a, again, "the same bytes, whatever ran before in this process");
    let first = read(&a).0.iter().find_map(|event| event.by).unwrap();
    assert_eq!(first & 0xffff_ffff, 1, "sites are numbered by the file, in the order they appear");
    let (mut x, mut y) = (reader(&a).unwrap(), reader(&again).unwrap());
    assert_eq!(parting(&mut x, &mut y).unwrap().differ, "none");
    let (b, other, _) = traced("block/low-zone", 2, &[]);
    assert_ne!(digest, other);
    let (mut x, mut y) = (reader(&a).unwrap(), reader(&b).unwrap());
    let found = parting(&mut x, &mut y).unwrap();
    assert_eq!((found.differ, found.before.len()), ("events", 5));
    let (x, y) = (found.a.unwrap(), found.b.unwrap());
    assert_eq!((x.event, y.event), (found.same, found.same));
    assert_ne!((x.kind, x.len, x.producer), (y.kind, y.len, y.producer));
}

#[test]
fn a_transaction_left_mapped_is_wrong_only_in_a_whole_file() {
    let (bytes, ..) = traced("block/leak", 1, &[]);
    let table = text(&bytes, &Wanted { wrong: true, ..Wanted::default() }).unwrap();
    assert!(table.contains("never unmapped"), "{table}");
    let starts = blocks(&bytes);
    let mut out = Vec::new();
    let cut = &bytes[..starts[starts.len() - 2]];
    let error = tx(&mut reader(cut).unwrap(), &Wanted::default(), false, &mut out);
    assert!(matches!(error, Err(ViewError::Trace(TraceError::NoEnd { .. }))));
    let shown = String::from_utf8(out).unwrap();
    assert!(shown.lines().count() > 3 && !shown.contains("never unmapped"), "{shown}");
}

#[test]
fn a_full_disk_is_an_error_that_counts_what_is_lost() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut writer = Writer::new(Full(30_000), &header(), &[], None).unwrap();
    let records: Vec<_> = (0..2000).map(|n| record(n, Kind::Kmalloc, 8)).collect();
    writer.page(&records);
    assert!(matches!(writer.finish(0, 0), Err(TraceError::Write { lost: 1488, .. })));
}

#[test]
fn filters_choose_events_by_number_kind_and_device() {
    let (bytes, ..) = traced("block/low-zone", 1, &[]);
    let lines = |filter: &Filter| {
        let mut out = Vec::new();
        show(&mut reader(&bytes).unwrap(), filter, true, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let maps = lines(&Filter { kind: Some("dma:dma_map".into()), ..Filter::default() });
    assert_eq!(maps.len(), 64);
    assert!(maps.iter().all(|map| map["bounced"].is_boolean() && map["by"].is_string() && map["phys"].is_u64()));
    let some = lines(&Filter { from: 100, count: Some(3), ..Filter::default() });
    let numbers: Vec<_> = some.iter().map(|event| event["event"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [100, 101, 102]);
    assert!(lines(&Filter { dev: Some(1), ..Filter::default() }).iter().all(|event| event["device"] == "vda"));
    assert!(lines(&Filter { dev: Some(2), ..Filter::default() }).is_empty());
}

#[test]
fn shapes_of_foreign_bits_are_shown_as_unknown() {
    let id = 5;
    let map = (Producer(0), Record { ts: 1, addr: 64, len: 8, kind: Kind::DmaMapPage, dev: 1, tag: id });
    let detail = (Producer(0), Record { kind: Kind::Mapping, len: u32::MAX, tag: 0, ..map.1 });
    assert_eq!(Shape::unpack(u32::MAX), None);
    let table = text(&written(&[map, detail]), &Wanted::default()).unwrap();
    assert!(table.lines().nth(1).unwrap().contains('?'), "{table}");
}

#[test]
fn a_refused_request_says_which_test_said_no() {
    let refusals = |bytes: &[u8]| {
        let mut out = Vec::new();
        show(&mut reader(bytes).unwrap(), &Filter::default(), false, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        text.lines().filter(|line| line.contains("REFUSED")).map(str::to_owned).collect::<Vec<_>>()
    };
    let (full, ..) = traced("block/swiotlb-full", 1, &[]);
    let lines = refusals(&full);
    let map = lines.iter().find(|line| line.contains("dma:dma_map_page")).unwrap_or_else(|| panic!("{lines:?}"));
    assert!(map.contains("swiotlb") && map.contains("used") && map.contains("the device reaches"), "{map}");
    // Zone by zone.
    let (dry, ..) = traced("alloc/dma32-dry", 1, &[]);
    let lines = refusals(&dry);
    assert!(lines.iter().any(|line| line.contains("DMA32: ") && line.contains("mark")), "{lines:?}");
    // Nothing but a fault that was injected.
    let (flaky, ..) = traced("block/flaky-memory", 1, &[]);
    let lines = refusals(&flaky);
    assert!(!lines.is_empty() && lines.iter().any(|line| line.contains("injected")), "{lines:?}");
    assert!(refusals(&traced("block/low-zone", 1, &[]).0).is_empty());
}

#[test]
fn one_seed_gives_the_same_bytes_whatever_the_scenario() {
    for name in ["net/loop-back", "block/random-queues", "block/flaky-memory", "block/swiotlb-full", "edu/selftest"] {
        let (a, b) = (traced(name, 3, &[]).0, traced(name, 3, &[]).0);
        assert!(a == b && read(&a).1.is_none(), "{name}: {} and {} bytes", a.len(), b.len());
    }
}
