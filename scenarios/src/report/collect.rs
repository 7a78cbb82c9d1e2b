//! The later readings of a trace: the events that the page holds.
//!
//! Up to [`MOST`] events all of them are there. Of a longer trace everything about findings, faults and the longest
//! transactions stays. Of the others each stays with all its events or goes, and so does each event of no transaction,
//! by a hash of its number: the same file gives the same page. A transaction that goes on for ever (a ring) keeps its
//! first events, and of the later ones the same share as everything else.
//!
//! Neighbours: `scan` says what must stay, `columns` holds it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use lowzone_guest_mem::trace::Kind;
use serde::Serialize;

use super::columns::Columns;
use super::scan::Scan;
use crate::trace::{Event, Reader, TraceError};

/// Events of a page, unless there are more faults.
pub(super) const MOST: u64 = 100_000;
/// Events of one transaction that stay with it.
const WHOLE: u32 = 256;
/// Prices are below this.
const ALL: u32 = 4096;

/// What became of the events.
#[derive(Debug, Serialize)]
pub(super) struct Thinned {
    /// Events of the trace.
    total: u64,
    /// Of them on the page.
    kept: u64,
    /// Of these, for being faults or of faulty or outlying transactions.
    must: u64,
    /// Of 4096 others, so many stay.
    share: u32,
}

/// What each event costs: it stays where the share is higher.
pub(super) struct Prices<'a> {
    scan: &'a Scan,
    around: BTreeSet<u64>,
    /// Events so far of each transaction that is mapped.
    seen: BTreeMap<u64, u32>,
}

impl<'a> Prices<'a> {
    pub(super) fn new(scan: &'a Scan) -> Self {
        Self { scan, around: scan.kept_around(), seen: BTreeMap::new() }
    }

    /// The price of the next event; none if it stays at any.
    pub(super) fn of(&mut self, event: &Event) -> Option<u32> {
        let scan = self.scan;
        let (id, number) = (event.transaction(), hash(event.number));
        let count = self.seen.get(&id).copied().unwrap_or(0);
        if event.is_unmap() {
            self.seen.remove(&id);
        } else if id != 0 {
            self.seen.insert(id, count.saturating_add(1));
        }
        let fault = matches!(event.kind(), Some(Kind::Finding | Kind::PortViolation | Kind::Step));
        if fault || event.is_refused_map() || self.around.contains(&event.number) {
            return None;
        }
        let whole = event.is_map() || event.is_unmap() || count < WHOLE;
        match (id, whole) {
            (0, _) => Some(number),
            (id, true) => (!scan.must_stay(id)).then(|| hash(id)),
            (id, false) if scan.must_stay(id) => Some(number),
            (id, false) => Some(number.max(hash(id))),
        }
    }
}

/// splitmix64's last step, to a price.
fn hash(number: u64) -> u32 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    u32::try_from((z ^ (z >> 31)) % u64::from(ALL)).unwrap_or(0)
}

/// The highest share that fits, and how many events stay at any.
fn share<R: Read>(reader: &mut Reader<R>, scan: &Scan) -> (u32, u64) {
    let (mut prices, mut must, mut at) = (Prices::new(scan), 0_u64, BTreeMap::<u32, u64>::new());
    while let Ok(Some(event)) = reader.next_event() {
        match prices.of(&event) {
            None => must += 1,
            Some(price) => *at.entry(price).or_default() += 1,
        }
    }
    let mut kept = must;
    for (price, events) in at {
        kept += events;
        if kept > MOST {
            return (price, must);
        }
    }
    (ALL, must)
}

/// Takes the events that stay; `open` reads the trace from its beginning each time.
///
/// # Errors
/// [`TraceError`] of opening. Where the file is broken was told by the first reading: it ends there again.
pub(super) fn collect<R: Read>(
    open: impl Fn() -> Result<Reader<R>, TraceError>,
    scan: &Scan,
) -> Result<(Columns, Thinned), TraceError> {
    let total = scan.totals.events;
    let (share, must) = if total <= MOST { (ALL, total) } else { share(&mut open()?, scan) };
    let (mut columns, mut prices, mut reader) = (Columns::default(), Prices::new(scan), open()?);
    while let Ok(Some(event)) = reader.next_event() {
        if prices.of(&event).is_none_or(|price| price < share) {
            columns.push(&event, reader.names());
        }
    }
    let thinned = Thinned { total, kept: columns.len(), must, share };
    Ok((columns, thinned))
}
