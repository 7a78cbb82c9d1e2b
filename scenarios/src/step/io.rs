//! `io`: reads and writes of one device, with every byte that is read compared.
//!
//! The work is split over as many CPUs as the disk has queues, or as the step says, each on a stretch of the disk of its
//! own, so that what a read must see is known whatever the world does. `write-read` writes blocks and reads them back;
//! `random` keeps a plain disk in memory beside the real one.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use lowzone_driver::blk::{Completed, Data, Disk, Op, Pending, Request, SECTOR};
use lowzone_guest_mem::Cpu;
use sha2::{Digest, Sha256};

use super::data;
use crate::lab::{Bench, Slot, Verify, lock};
use crate::result::IoRow;
use crate::spec::{AllocGfp, IoStep, Pattern};
use crate::world::{Body, Random};

/// What the content of `write-read` follows from: the same in every run, so that seeds differ in order only.
const CONTENT_SEED: u64 = 0x10a0_5eed;

/// One body for each CPU that takes part.
pub(super) fn bodies(bench: &Arc<Bench>, step: &IoStep, label: String) -> Vec<Body> {
    let Some(slot) = bench.slot(&step.device) else { return Vec::new() };
    let Some(disk) = bench.disk(&step.device) else {
        bench.failed(format!("{label}: {} has no driver", step.device));
        return Vec::new();
    };
    let cpus = bench.kernel.config().cpus;
    let workers = cpus.min(step.submitters.unwrap_or(disk.queues().into())).max(1);
    let base = slot.dma.counters();
    let written = lock(&slot.written).clone();
    lock(&slot.written).push(written_by(step, workers, slot));
    let index = {
        let mut result = lock(&bench.result);
        let memory = format!("{:?}", step.memory).to_lowercase();
        result.io.push(IoRow { label, memory, verified: true, ..IoRow::default() });
        result.io.len() - 1
    };
    let lengths = step.lengths();
    bench.control.begin(step.requests * lengths.start().midpoint(*lengths.end()));
    (0..workers)
        .map(|worker| {
            let (bench, step, disk, written) = (bench.clone(), step.clone(), disk.clone(), written.clone());
            let body: Body = Box::new(move |cpu| {
                let Some(slot) = bench.slot(&step.device) else { return };
                let _span = cpu.span("io");
                let mut work = Work::new(cpu, &bench, slot, &disk, &step, (worker, workers));
                match step.pattern {
                    Pattern::WriteRead => work.write_read(),
                    Pattern::Random => work.random(&written),
                }
                work.finish(index, base);
            });
            body
        })
        .collect()
}

/// Places drawn before a completion is waited for.
const DRAWS: u32 = 16;

/// A request in flight and what its data must be.
struct Flight {
    pending: Pending,
    op: Op,
    /// Bytes on the disk, relative to this CPU's stretch.
    at: Range<u64>,
    held: u64,
}

struct Work<'a> {
    cpu: &'a Cpu<'a>,
    bench: &'a Bench,
    slot: &'a Slot,
    disk: &'a Disk,
    step: &'a IoStep,
    worker: u32,
    queue: u16,
    /// Requests of this CPU.
    requests: u64,
    depth: usize,
    /// This CPU's stretch of the disk, in bytes.
    base: u64,
    room: u64,
    flights: VecDeque<Flight>,
    /// Requests were submitted that the device was not told of.
    uncommitted: bool,
    /// Where a write failed and none succeeded since, or where others have written.
    unknown: Vec<Range<u64>>,
    /// What the stretch holds.
    shadow: Vec<u8>,
    scratch: Vec<u8>,
    hash: Sha256,
    zones: BTreeSet<&'static str>,
    held: u64,
    /// Reads compared.
    compared: u64,
    row: IoRow,
}

fn share(all: u64, worker: u32, workers: u32) -> u64 {
    let (worker, workers) = (u64::from(worker), u64::from(workers));
    all / workers + u64::from(worker < all % workers)
}

/// Bytes of the disk that a step may write.
fn written_by(step: &IoStep, workers: u32, slot: &Slot) -> Range<u64> {
    let start = step.start.bytes();
    match step.pattern {
        Pattern::Random => start..slot.capacity,
        Pattern::WriteRead => {
            let blocks = (step.requests / 2).div_ceil(u64::from(workers)) * u64::from(workers);
            start..start + blocks * step.lengths().end()
        }
    }
}

/// Takes a range out of those that are there.
fn without(ranges: &mut Vec<Range<u64>>, at: &Range<u64>) {
    for index in (0..ranges.len()).rev() {
        let old = ranges[index].clone();
        if old.start < at.end && at.start < old.end {
            ranges.swap_remove(index);
            let left = [old.start..at.start, at.end..old.end];
            ranges.extend(left.into_iter().filter(|part| part.start < part.end));
        }
    }
}

impl<'a> Work<'a> {
    fn new(
        cpu: &'a Cpu<'a>,
        bench: &'a Bench,
        slot: &'a Slot,
        disk: &'a Disk,
        step: &'a IoStep,
        (worker, workers): (u32, u32),
    ) -> Self {
        let start = step.start.bytes();
        let longest = *step.lengths().end();
        // What the device says of itself may be a lie, and room is made for all of it.
        let capacity = (disk.capacity() * SECTOR).min(slot.capacity).saturating_sub(start);
        let (room, requests) = match step.pattern {
            Pattern::Random => (capacity / u64::from(workers) / SECTOR * SECTOR, share(step.requests, worker, workers)),
            Pattern::WriteRead => {
                let blocks = share(step.requests / 2, worker, workers);
                ((step.requests / 2).div_ceil(u64::from(workers)) * longest, blocks * 2)
            }
        };
        let depth = usize::try_from(share(u64::from(step.depth), worker, workers)).unwrap_or(1).max(1);
        Self {
            cpu,
            bench,
            slot,
            disk,
            step,
            worker,
            queue: u16::try_from(worker).unwrap_or(0) % disk.queues().max(1),
            requests,
            depth,
            base: start + u64::from(worker) * room,
            room,
            flights: VecDeque::with_capacity(depth),
            uncommitted: false,
            unknown: Vec::new(),
            shadow: vec![0; usize::try_from(room).unwrap_or(0)],
            scratch: vec![0; usize::try_from(longest).unwrap_or(0)],
            hash: Sha256::new(),
            zones: BTreeSet::new(),
            held: 0,
            compared: 0,
            row: IoRow { verified: true, ..IoRow::default() },
        }
    }

    fn write_read(&mut self) {
        let block = *self.step.lengths().end();
        let mut content = Random::new(CONTENT_SEED ^ u64::from(self.worker));
        content.fill(&mut self.shadow);
        for op in [Op::Write, Op::Read] {
            for index in 0..self.requests / 2 {
                if self.bench.control.stopped() {
                    break;
                }
                self.launch(op, index * block..(index + 1) * block);
            }
            while self.collect() {}
        }
    }

    fn random(&mut self, written: &[Range<u64>]) {
        let own = |at: u64| at.saturating_sub(self.base).min(self.room);
        let earlier = written.iter().map(|old| own(old.start)..own(old.end));
        self.unknown.extend(earlier.filter(|old| old.start < old.end));
        let seed = self.step.seed.unwrap_or(self.bench.seed);
        let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9).wrapping_add(u64::from(self.worker)));
        for _ in 0..self.requests {
            if self.bench.control.stopped() {
                break;
            }
            let at = self.draw(&mut random);
            let write = random.below(2) == 0;
            if write {
                random.fill(&mut self.shadow[bytes(&at)]);
            }
            self.launch(if write { Op::Write } else { Op::Read }, at);
        }
        while self.collect() {}
    }

    /// A random stretch that no request in flight touches: two on the same bytes would have no order.
    fn draw(&mut self, random: &mut Random) -> Range<u64> {
        let lengths = self.step.lengths();
        loop {
            let sectors = lengths.start() / SECTOR + random.below((lengths.end() - lengths.start()) / SECTOR + 1);
            let len = (sectors * SECTOR).min(self.room);
            for _ in 0..DRAWS {
                let start = random.below((self.room - len) / SECTOR + 1) * SECTOR;
                let at = start..start + len;
                if !self.flights.iter().any(|f| f.at.start < at.end && at.start < f.at.end) {
                    return at;
                }
            }
            // The disk is too small for so many in flight.
            self.collect();
        }
    }

    fn launch(&mut self, op: Op, at: Range<u64>) {
        // A full window is emptied by half, so that the device gets requests in batches and one doorbell for each.
        if self.flights.len() >= self.depth {
            while self.flights.len() > self.depth / 2 && self.collect() {}
        }
        let len = bytes(&at).len();
        let gfp = data::mask(self.step.gfp.unwrap_or(AllocGfp::Kernel));
        let mut buffer = loop {
            match data::allocate(self.cpu, &self.slot.dma, self.step.memory, len, gfp) {
                Ok(buffer) => break buffer,
                // Memory comes back with completions.
                Err(_) if self.collect() => self.row.retries += 1,
                Err(error) => return self.fail_at(op, &at, &error.to_string()),
            }
        };
        if let Some(zone) = data::zone(&buffer) {
            self.zones.insert(zone_name(zone));
        }
        if op == Op::Write && !data::fill(self.cpu, &mut buffer, &self.shadow[bytes(&at)]) {
            return self.fail("a buffer is smaller than its request");
        }
        let held = data::pages(&buffer);
        self.held += held;
        self.row.pages_held = self.row.pages_held.max(self.held);
        let request = Request { op, sector: (self.base + at.start) / SECTOR, data: buffer };
        let (cpu, disk, queue) = (self.cpu, self.disk, self.queue);
        let mut retries = 0;
        let pending = data::submit(cpu, disk, queue, request, &mut retries, || self.collect());
        self.row.retries += retries;
        match pending {
            Ok(pending) => {
                self.flights.push_back(Flight { pending, op, at, held });
                self.uncommitted = true;
            }
            Err(error) => {
                self.held -= held;
                self.fail_at(op, &at, &error.why.to_string());
            }
        }
    }

    /// Waits for the oldest request in flight; `false` if there is none.
    fn collect(&mut self) -> bool {
        let Some(flight) = self.flights.pop_front() else { return false };
        let Flight { pending, op, at, held } = flight;
        if std::mem::take(&mut self.uncommitted) {
            self.disk.commit(self.cpu, self.queue);
        }
        let completed = self.disk.wait(self.cpu, pending);
        self.held -= held;
        self.row.requests += 1;
        self.settle(op, &at, completed);
        true
    }

    fn settle(&mut self, op: Op, at: &Range<u64>, completed: Completed) {
        let data = match data::good(completed) {
            Ok(data) => data,
            Err(error) => return self.fail_at(op, at, &error),
        };
        let len = at.end - at.start;
        if op == Op::Write {
            without(&mut self.unknown, at);
        }
        self.row.bytes += len;
        self.bench.control.advance(len);
        // What a failed write left behind nobody knows.
        let known = !self.unknown.iter().any(|old| old.start < at.end && at.start < old.end);
        if op == Op::Read && known {
            self.compare(at, &data);
        }
    }

    fn compare(&mut self, at: &Range<u64>, data: &Data) {
        let expected = &self.shadow[bytes(at)];
        let seen = &mut self.scratch[..expected.len()];
        let same = data::read(self.cpu, data, seen) && seen == expected;
        self.row.verified &= same;
        self.row.mismatched += u64::from(!same);
        self.compared += 1;
        if self.bench.verify == Verify::Sha256 {
            self.hash.update(&*seen);
        }
    }

    fn fail_at(&mut self, op: Op, at: &Range<u64>, why: &str) {
        if op == Op::Write {
            self.unknown.push(at.clone());
        }
        self.fail(why);
    }

    fn fail(&mut self, why: &str) {
        self.row.failed += 1;
        let mut result = lock(&self.bench.result);
        // Requests that fail are counted; the first tells why.
        result.failed_requests += 1;
        let text = format!("{}: request failed: {why}", self.step.device);
        if !result.log.contains(&text) {
            result.log.push(text);
        }
    }

    fn finish(self, index: usize, base: lowzone_guest_mem::dma::DmaCounters) {
        let mut result = lock(&self.bench.result);
        // Read under the lock, so that whoever comes last has seen the most.
        let now = self.slot.dma.counters();
        let Some(row) = result.io.get_mut(index) else { return };
        row.requests += self.row.requests;
        row.failed += self.row.failed;
        row.bytes += self.row.bytes;
        row.pages_held += self.row.pages_held;
        row.retries += self.row.retries;
        row.mismatched += self.row.mismatched;
        row.compared += self.compared;
        // A CPU that was stopped may have read nothing yet; any other must have.
        row.verified &= self.row.verified && (self.compared > 0 || self.bench.control.stopped());
        // The last CPU to end leaves the step's whole difference.
        row.maps = now.maps - base.maps;
        row.bounces = now.bounces - base.bounces;
        row.bounced_bytes = now.bounced_bytes - base.bounced_bytes;
        row.slots = now.bounced_slots - base.bounced_slots;
        for zone in self.zones {
            if !row.zones.iter().any(|known| known == zone) {
                row.zones.push(zone.to_owned());
            }
        }
        row.zones.sort();
        if self.bench.verify == Verify::Sha256 {
            let own = format!("{:x}", self.hash.finalize());
            // With several CPUs each has a stream of its own: the result is the exclusive-or, whatever order they end in.
            row.sha256 = if row.sha256.is_empty() { own } else { xor_hex(&row.sha256, &own) };
        }
    }
}

fn bytes(at: &Range<u64>) -> Range<usize> {
    let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    number(at.start)..number(at.end)
}

fn zone_name(zone: lowzone_guest_mem::zone::ZoneKind) -> &'static str {
    use lowzone_guest_mem::zone::ZoneKind;
    match zone {
        ZoneKind::Dma => "DMA",
        ZoneKind::Dma32 => "DMA32",
        ZoneKind::Normal => "Normal",
        ZoneKind::HighMem => "HighMem",
    }
}

fn xor_hex(a: &str, b: &str) -> String {
    let digit = |c: char| c.to_digit(16).unwrap_or(0);
    a.chars().zip(b.chars()).filter_map(|(a, b)| char::from_digit(digit(a) ^ digit(b), 16)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_out_of_ranges_leaves_the_rest() {
        let mut ranges = vec![0..10, 20..30, 40..50];
        without(&mut ranges, &(25..42));
        without(&mut ranges, &(3..5));
        without(&mut ranges, &(10..20));
        ranges.sort_by_key(|range| range.start);
        assert_eq!(ranges, [0..3, 5..10, 20..25, 42..50]);
        without(&mut ranges, &(0..60));
        assert_eq!(ranges, []);
    }

    #[test]
    fn shares_add_up_and_hashes_mix_in_any_order() {
        for all in 0..50 {
            assert_eq!((0..4).map(|w| share(all, w, 4)).sum::<u64>(), all);
        }
        assert_eq!(xor_hex("0f", "f1"), "fe");
        assert_eq!(xor_hex(&xor_hex("12", "34"), "56"), xor_hex(&xor_hex("56", "12"), "34"));
    }
}
