//! What a connection's process tells the server: frames over a socket pair.
//!
//! A frame is {kind 1 byte, length 4 bytes little-endian, payload}. The other way nothing is sent; when the server
//! closes its side the process ends its connection. Neighbours: [`super::server`] reads, [`super::session`] and
//! [`super::tap`] write.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use lowzone_device::Totals;
use lowzone_guest_mem::trace::{Kind, Producer, Record};
use serde::{Deserialize, Serialize};

const COUNTS: u8 = 1;
const RECORDS: u8 = 2;
const HEADER: usize = 5;
/// Bytes of a record: time, address, tag, length, kind, device.
const RECORD: usize = 32;
/// Records that are sent together.
pub(super) const PAGE: usize = 512;
/// The longest payload.
const LIMIT: usize = PAGE * RECORD;

/// What a connection has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    pub requests: u64,
    pub failed: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub flushes: u64,
    pub calls: u64,
    pub faults: u64,
}

impl Counts {
    /// The device's numbers; `calls` is counted by the queues.
    pub fn new(totals: &Totals, calls: u64) -> Self {
        let Totals { requests, failed, bytes_read, bytes_written, flushes, faults, .. } = *totals;
        Self { requests, failed, bytes_read, bytes_written, flushes, calls, faults }
    }

    /// Adds another connection's.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.flushes += other.flushes;
        self.calls += other.calls;
        self.faults += other.faults;
    }
}

/// The end of the connection's process.
pub(super) struct Link(Mutex<UnixStream>);

impl Link {
    pub fn new(stream: UnixStream) -> Self {
        Self(Mutex::new(stream))
    }

    fn send(&self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let mut frame = Vec::with_capacity(HEADER + payload.len());
        frame.push(kind);
        frame.extend(u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        frame.extend(payload);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(&frame)
    }

    /// Sends what was done; once, at the end.
    pub fn counts(&self, counts: &Counts) -> io::Result<()> {
        self.send(COUNTS, &serde_json::to_vec(counts)?)
    }

    /// Sends records, at most [`PAGE`].
    pub fn records(&self, records: &[Record]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(records.len() * RECORD);
        for record in records {
            bytes.extend(record.ts.to_le_bytes());
            bytes.extend(record.addr.to_le_bytes());
            bytes.extend(record.tag.to_le_bytes());
            bytes.extend(record.len.to_le_bytes());
            bytes.extend(record.kind.number().to_le_bytes());
            bytes.extend(record.dev.to_le_bytes());
        }
        self.send(RECORDS, &bytes)
    }
}

/// One frame, at the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Counts(Counts),
    Records(Vec<(Producer, Record)>),
}

fn record(bytes: &[u8; RECORD]) -> Option<(Producer, Record)> {
    let (words, _) = bytes.as_chunks::<8>();
    let word = |at: usize| words.get(at).map_or(0, |word| u64::from_le_bytes(*word));
    let [.., a, b, c, d, kind0, kind1, dev0, dev1] = *bytes;
    let dev = u16::from_le_bytes([dev0, dev1]);
    let record = Record {
        ts: word(0),
        addr: word(1),
        len: u32::from_le_bytes([a, b, c, d]),
        kind: Kind::from_number(u16::from_le_bytes([kind0, kind1]))?,
        dev,
        tag: word(2),
    };
    Some((Producer(dev), record))
}

/// Reads the next frame; `None` at the end, also where it comes in the middle of one: the process was killed.
pub(super) fn next(from: &mut impl Read) -> Option<Frame> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header).ok()?;
    let [kind, length @ ..] = header;
    let len = usize::try_from(u32::from_le_bytes(length)).ok().filter(|len| *len <= LIMIT)?;
    let mut payload = vec![0; len];
    from.read_exact(&mut payload).ok()?;
    match kind {
        COUNTS => serde_json::from_slice(&payload).ok().map(Frame::Counts),
        RECORDS => {
            let (records, _) = payload.as_chunks::<RECORD>();
            Some(Frame::Records(records.iter().filter_map(record).collect()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_as_they_were_sent_and_half_a_frame_is_the_end() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let link = Link::new(here);
        let counts = Counts { requests: 3, faults: 1, ..Counts::default() };
        let record = Record { ts: 1, addr: u64::MAX, len: 4096, kind: Kind::PortWrite, dev: 2, tag: 7 };
        link.records(&[record; 3]).unwrap();
        link.counts(&counts).unwrap();
        link.0.lock().unwrap().write_all(&[RECORDS, 32, 0, 0, 0, 9]).unwrap();
        drop(link);
        assert_eq!(next(&mut there), Some(Frame::Records(vec![(Producer(2), record); 3])));
        assert_eq!(next(&mut there), Some(Frame::Counts(counts)));
        assert_eq!(next(&mut there), None);
    }
}
