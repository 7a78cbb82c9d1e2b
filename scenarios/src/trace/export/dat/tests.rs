//! Pages read back as the kernel's documentation says, whatever the times and lengths; `trace-cmd` reads whole files in
//! `tests/peers`.

use proptest::prelude::*;

use super::format::{formats, layout};
use super::pages::{LONGEST, PAGE, Pages};
use crate::trace::export::schema::EVENTS;
use crate::trace::format::{u32_at, u64_at};

/// The events of a page: time and payload, with its padding to 4 bytes.
fn read(page: &[u8]) -> Vec<(u64, Vec<u8>)> {
    assert_eq!(page.len(), PAGE);
    let mut now = u64_at(page, 0).unwrap();
    let end = 16 + usize::try_from(u64_at(page, 8).unwrap()).unwrap();
    assert!(end <= PAGE && page[end..].iter().all(|&byte| byte == 0));
    let (mut at, mut events) = (16, Vec::new());
    while at < end {
        let word = u32_at(page, at).unwrap();
        let (kind, delta) = (word & 31, u64::from(word >> 5));
        at += 4;
        now += delta;
        if kind == 30 {
            now += u64::from(u32_at(page, at).unwrap()) << 27;
            at += 4;
            continue;
        }
        assert!(kind <= 28, "type_len {kind}");
        let length = if kind == 0 {
            at += 4;
            usize::try_from(u32_at(page, at - 4).unwrap()).unwrap() - 4
        } else {
            usize::try_from(kind).unwrap() * 4
        };
        events.push((now, page[at..at + length].to_vec()));
        at += length;
    }
    assert_eq!(at, end);
    events
}

/// Everything that was pushed, read back, and how many pages it took.
fn written(events: &[(u64, Vec<u8>)]) -> (Vec<(u64, Vec<u8>)>, u64) {
    let (mut pages, mut seen) = (Pages::default(), Vec::new());
    let mut keep = |number: u64, page: &[u8]| {
        assert!(number == 0 || !seen.is_empty());
        seen.extend(read(page));
        Ok::<_, ()>(())
    };
    for (ts, payload) in events {
        pages.push(*ts, payload, &mut keep).unwrap();
    }
    pages.turn(&mut keep).unwrap();
    pages.turn(|_, _| Err("an empty page")).unwrap();
    (seen, pages.filled())
}

fn padded(events: &[(u64, Vec<u8>)]) -> Vec<(u64, Vec<u8>)> {
    let pad = |payload: &Vec<u8>| {
        let mut payload = payload.clone();
        payload.resize(payload.len().next_multiple_of(4), 0);
        payload
    };
    events.iter().map(|(ts, payload)| (*ts, pad(payload))).collect()
}

#[test]
fn a_gap_of_more_than_27_bits_is_told_and_one_of_more_than_59_begins_a_page() {
    let gaps = [(1 << 27) - 1, 1 << 27, (1 << 27) + 1, (1 << 59) - 1];
    for gap in gaps {
        let events = [(5, vec![1; 8]), (5 + gap, vec![2; 8])];
        assert_eq!(written(&events), (padded(&events), 1), "{gap:#x}");
    }
    for (from, to) in [(5, 5 + (1 << 59)), (0, u64::MAX), (5, 4)] {
        let events = [(from, vec![1; 8]), (to, vec![2; 8])];
        assert_eq!(written(&events), (padded(&events), 2), "{from} {to}");
    }
}

#[test]
fn a_page_is_filled_to_its_last_byte_and_no_further() {
    // A header of 4 bytes and 112 of payload: 35 events and 20 bytes fill the 4080 bytes of a page.
    let mut events = vec![(9, vec![7; 112]); 35];
    events.push((9, vec![8; 16]));
    assert_eq!(written(&events), (padded(&events), 1));
    events.push((9, vec![9; 1]));
    assert_eq!(written(&events), (padded(&events), 2));
    let longest = [(1, vec![3; LONGEST]), (1 << 40, vec![4; LONGEST])];
    assert_eq!(written(&longest), (padded(&longest), 2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_pushed_is_read(
        events in prop::collection::vec((any::<u64>(), 0_u32..64, prop::collection::vec(any::<u8>(), 1..260)), 0..80),
    ) {
        let mut now = 0_u64;
        let events: Vec<_> = events
            .into_iter()
            .map(|(step, shift, payload)| {
                now = now.wrapping_add(step >> shift);
                (now, payload)
            })
            .collect();
        prop_assert_eq!(written(&events).0, padded(&events));
    }
}

#[test]
fn no_two_fields_lie_on_each_other_and_every_event_is_told() {
    for (_, schema) in EVENTS {
        let fields = layout(schema.fields);
        let mut at = 8;
        for (offset, field) in fields {
            assert_eq!(offset, at, "{}.{}", schema.name, field.name);
            assert!(offset.is_multiple_of(field.form.bytes()), "{}.{}", schema.name, field.name);
            at += field.form.bytes();
        }
    }
    assert_eq!(formats().iter().map(|(_, texts)| texts.len()).sum::<usize>(), EVENTS.len());
}
