//! What stays of a long trace, and that nothing grows with its length.

use lowzone_guest_mem::trace::{Kind, Producer, Record};

use super::collect::{MOST, Prices, collect};
use super::pack;
use super::scan::Scan;
use super::series::{Curve, Histogram};
use super::totals::Totals;
use crate::trace::{Header, Reader, TraceError, Writer};

const TRANSACTIONS: u64 = 60_000;
/// Every so many transactions the device comes too late.
const LATE: u64 = 1_000;

/// 60,000 transactions of five events; a ring that goes on for ever; refused maps; some faults.
fn long() -> Vec<u8> {
    let kinds = Kind::ALL.iter().map(|kind| (kind.number(), kind.name().to_owned())).collect();
    let header = Header {
        program: "test".into(),
        scenario: "s".into(),
        seed: 7,
        clock: "virtual-ns".into(),
        began: None,
        cpus: 1,
        kinds,
        only: Vec::new(),
    };
    let mut writer = Writer::new(Vec::new(), &header, &[(1, "at".into(), "vda".into())], None).unwrap();
    let mut now = 0;
    let mut event = |kind, addr, tag| {
        now += 10;
        (Producer(0), Record { ts: now, addr, tag, len: 512, kind, dev: 1 })
    };
    writer.page(&[event(Kind::DmaAlloc, 0x1000, 1)]);
    for id in 2..TRANSACTIONS + 2 {
        let at = 0x10_0000 + id % 512 * 512;
        let mut page = vec![
            event(Kind::DmaMapPage, at, id),
            event(Kind::PortRead, 0x1000, 1),
            event(Kind::MmioWrite, 0xe000_3000, 0),
            event(Kind::PortWrite, at, id),
            event(Kind::DmaUnmapPage, at, id),
        ];
        if id % LATE == 0 {
            page.push(event(Kind::PortViolation, at, id));
            page.push(event(Kind::DmaMapPage, u64::MAX, 0));
        }
        writer.page(&page);
    }
    writer.finish(0xd1, now).unwrap()
}

fn open(bytes: &[u8]) -> Result<Reader<&[u8]>, TraceError> {
    Reader::new("t".into(), bytes)
}

#[test]
fn of_a_long_trace_every_fault_stays_with_its_transaction_and_the_rest_fits() {
    let bytes = long();
    let (mut scan, broken) = Scan::of(&mut open(&bytes).unwrap());
    assert!(broken.is_none());
    assert_eq!(scan.totals.events, 1 + TRANSACTIONS * 5 + TRANSACTIONS / LATE * 2);
    let (mut prices, mut reader, mut faults) = (Prices::new(&scan), open(&bytes).unwrap(), 0);
    while let Some(event) = reader.next_event().unwrap() {
        let price = prices.of(&event);
        let id = event.transaction();
        let faulty = event.is_refused_map() || (id > 1 && id % LATE == 0);
        faults += u64::from(faulty);
        assert!(!faulty || price.is_none(), "{event:?}");
    }
    assert_eq!(faults, TRANSACTIONS / LATE * 5);
    let (columns, thinned) = collect(|| open(&bytes), &scan).unwrap();
    assert!((MOST - 1000..=MOST).contains(&columns.len()), "{thinned:?}");
    let (again, _) = collect(|| open(&bytes), &scan).unwrap();
    let ((_, data), (_, same)) = (columns.finish(), again.finish());
    assert!(data == same, "the same trace gives the same page");
    scan.totals = Totals::default();
    assert!(pack::page(&scan.plots(), &data).unwrap().len() < 1_000_000);
}

#[test]
fn a_curve_stays_small_and_keeps_its_peaks_and_its_end() {
    let mut curve = Curve::new("c".into(), "bytes");
    for event in 0..100_000 {
        curve.add((event, event * 10), if event == 54_321 { 1_000 } else { 2 });
        curve.take((event, event * 10), if event == 54_321 { 1_000 } else { 1 });
    }
    let shown = serde_json::to_value(curve.finish()).unwrap();
    let points = shown["points"].as_array().unwrap();
    assert!((250..=601).contains(&points.len()), "{}", points.len());
    let value = |index: usize| points[index][2].as_u64().unwrap();
    assert_eq!((0..points.len()).map(value).max(), shown["peak"].as_u64());
    assert_eq!(shown["peak"], 100_000);
    let spike = |index: usize| points[index][0].as_u64().unwrap() <= 54_321 && value(index) == 55_321;
    assert!((0..points.len()).any(spike), "{points:?}");
}

#[test]
fn a_histogram_has_four_steps_to_a_doubling() {
    let mut all = Histogram::default();
    (0..4096).for_each(|value| all.add(value));
    let bars = serde_json::to_value(all.finish()).unwrap();
    let steps = bars["steps"].as_array().unwrap();
    assert_eq!((bars["count"].as_u64(), bars["most"].as_u64()), (Some(4096), Some(4095)));
    assert_eq!(steps.len(), 4 + 10 * 4);
    assert_eq!(steps.iter().map(|step| step[1].as_u64().unwrap()).sum::<u64>(), 4096);
    assert_eq!(steps.last().unwrap()[0], 3584);
}
