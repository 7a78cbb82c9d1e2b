//! `clear`: blocks are written, every second one is cleared, and all are read back.
//!
//! What clearing costs is counted by itself: requests, mappings and bounces of the second pass alone. Cleared blocks
//! must read as zeros, but for discarded ones, whose data nobody promises; the others must be as they were. Neighbours:
//! `driver::blk::clear`; `data`. Left out: several CPUs, and several ranges in one request, which most devices refuse.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use lowzone_driver::blk::{Completed, Data, Disk, Pending, Request, SECTOR, SectorRange};
use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::gfp::GFP_KERNEL;

use super::data;
use crate::lab::{Bench, Slot, lock};
use crate::result::ClearRow;
use crate::spec::{ClearStep, Clearing, Memory};
use crate::world::{Body, Random};

/// What the content of the blocks follows from.
const CONTENT_SEED: u64 = 0xc1ea_5eed;
/// The most requests in flight.
const DEPTH: usize = 16;

/// The body of a `clear` step.
pub(super) fn body(bench: &Arc<Bench>, step: &ClearStep, label: String) -> Body {
    let (bench, step) = (bench.clone(), step.clone());
    Box::new(move |cpu| {
        let (Some(slot), Some(disk)) = (bench.slot(&step.device), bench.disk(&step.device)) else {
            return bench.failed(format!("{label}: {} has no driver", step.device));
        };
        let missing = match step.how {
            Clearing::Discard if disk.discard_limits().is_none() => "DISCARD",
            Clearing::WriteZeroes if disk.write_zeroes_limits().is_none() => "WRITE_ZEROES",
            _ => "",
        };
        if !missing.is_empty() {
            return bench.failed(format!("{label}: {} does not offer {missing}", step.device));
        }
        let _span = cpu.span("clear");
        lock(&slot.written).push(0..u64::MAX);
        let mut work = Work::new(cpu, &bench, slot, &disk, &step);
        work.pass(Pass::Write);
        let before = slot.dma.counters();
        work.pass(Pass::Clear);
        let after = slot.dma.counters();
        work.pass(Pass::Read);
        let row = ClearRow {
            label,
            how: step.how.name().to_owned(),
            maps: after.maps - before.maps,
            bounces: after.bounces - before.bounces,
            bounced_bytes: after.bounced_bytes - before.bounced_bytes,
            slots: after.bounced_slots - before.bounced_slots,
            ..work.row
        };
        lock(&bench.result).clears.push(row);
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Write,
    Clear,
    Read,
}

struct Work<'a> {
    cpu: &'a Cpu<'a>,
    bench: &'a Bench,
    slot: &'a Slot,
    disk: &'a Disk,
    step: &'a ClearStep,
    flights: VecDeque<(u64, Pending)>,
    /// What the blocks were written with.
    content: Vec<u8>,
    seen: Vec<u8>,
    /// Blocks whose last write or clearing failed.
    unknown: BTreeSet<u64>,
    row: ClearRow,
}

const fn is_cleared(block: u64) -> bool {
    block % 2 == 1
}

impl<'a> Work<'a> {
    fn new(cpu: &'a Cpu<'a>, bench: &'a Bench, slot: &'a Slot, disk: &'a Disk, step: &'a ClearStep) -> Self {
        let bytes = |size: u64| usize::try_from(size).unwrap_or(0);
        let block = step.bytes.bytes();
        let mut content = vec![0; bytes(block * step.blocks)];
        Random::new(CONTENT_SEED).fill(&mut content);
        bench.control.begin(block * step.blocks * 2);
        let (flights, unknown, seen) = (VecDeque::with_capacity(DEPTH), BTreeSet::new(), vec![0; bytes(block)]);
        Self { cpu, bench, slot, disk, step, flights, content, seen, unknown, row: ClearRow::default() }
    }

    fn pass(&mut self, pass: Pass) {
        for block in (0..self.step.blocks).filter(|&block| pass != Pass::Clear || is_cleared(block)) {
            if self.bench.control.stopped() {
                break;
            }
            if self.flights.len() >= DEPTH {
                self.collect(pass);
            }
            match self.request(pass, block) {
                Ok(request) => self.launch(pass, block, request),
                Err(why) => self.fail(pass, block, &why),
            }
        }
        while self.collect(pass) {}
    }

    fn request(&self, pass: Pass, block: u64) -> Result<Request, String> {
        let (cpu, bytes) = (self.cpu, self.step.bytes.bytes());
        let sector = (self.step.start.bytes() + block * bytes) / SECTOR;
        let sectors = u32::try_from(bytes / SECTOR).map_err(|error| error.to_string())?;
        let range = [SectorRange { sector, sectors }];
        match (pass, self.step.how) {
            (Pass::Clear, Clearing::Discard) => self.disk.discard(cpu, &range).map_err(|error| error.to_string()),
            (Pass::Clear, Clearing::WriteZeroes) => {
                self.disk.write_zeroes(cpu, &range, true).map_err(|error| error.to_string())
            }
            (Pass::Clear, Clearing::Write) => Ok(Request::write(sector, self.buffer(&vec![0; self.seen.len()])?)),
            (Pass::Write, _) => Ok(Request::write(sector, self.buffer(self.content_of(block))?)),
            (Pass::Read, _) => Ok(Request::read(sector, self.buffer(&[])?)),
        }
    }

    /// A buffer for one block that begins with these bytes.
    fn buffer(&self, bytes: &[u8]) -> Result<Data, String> {
        let buffer = data::allocate(self.cpu, &self.slot.dma, Memory::High, self.seen.len(), GFP_KERNEL);
        let mut buffer = buffer.map_err(|error| error.to_string())?;
        if data::fill(self.cpu, &mut buffer, bytes) { Ok(buffer) } else { Err("a buffer is too small".to_owned()) }
    }

    fn content_of(&self, block: u64) -> &[u8] {
        let len = self.seen.len();
        let at = usize::try_from(block).unwrap_or(0) * len;
        self.content.get(at..at + len).unwrap_or_default()
    }

    fn launch(&mut self, pass: Pass, block: u64, request: Request) {
        let told = request.data.len();
        let (cpu, disk) = (self.cpu, self.disk);
        let submitted = data::submit(cpu, disk, 0, request, &mut 0, || self.collect(pass));
        match submitted {
            Ok(pending) => {
                self.disk.commit(self.cpu, 0);
                self.row.told += if pass == Pass::Clear { told } else { 0 };
                self.flights.push_back((block, pending));
            }
            Err(error) => self.fail(pass, block, &error.why.to_string()),
        }
    }

    /// Waits for the oldest request in flight; `false` if there is none.
    fn collect(&mut self, pass: Pass) -> bool {
        let Some((block, pending)) = self.flights.pop_front() else { return false };
        let completed = self.disk.wait(self.cpu, pending);
        self.settle(pass, block, completed);
        true
    }

    fn settle(&mut self, pass: Pass, block: u64, completed: Completed) {
        let data = match data::good(completed) {
            Ok(data) => data,
            Err(why) => return self.fail(pass, block, &why),
        };
        let bytes = self.step.bytes.bytes();
        match pass {
            Pass::Clear => {
                self.row.requests += 1;
                self.row.cleared += bytes;
            }
            Pass::Write => self.row.bytes += bytes,
            Pass::Read => {
                self.row.bytes += bytes;
                self.compare(block, &data);
            }
        }
        self.bench.control.advance(if pass == Pass::Clear { 0 } else { bytes });
    }

    fn compare(&mut self, block: u64, data: &Data) {
        let free = is_cleared(block) && self.step.how == Clearing::Discard;
        if free || self.unknown.contains(&block) {
            return;
        }
        let read = data::read(self.cpu, data, &mut self.seen);
        let same = if is_cleared(block) {
            self.seen.iter().all(|&byte| byte == 0)
        } else {
            self.seen == self.content_of(block)
        };
        let same = read && same;
        self.row.compared += 1;
        self.row.mismatched += u64::from(!same);
    }

    fn fail(&mut self, pass: Pass, block: u64, why: &str) {
        if pass != Pass::Read {
            self.unknown.insert(block);
        }
        self.row.failed += 1;
        let mut result = lock(&self.bench.result);
        // Requests that fail are counted; the first tells why.
        result.failed_requests += 1;
        let text = format!("{}: request failed: {why}", self.step.device);
        if !result.log.contains(&text) {
            result.log.push(text);
        }
    }
}
