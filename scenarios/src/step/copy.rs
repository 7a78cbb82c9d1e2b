//! `copy`: one device to another and back, with the SHA-256 of all three compared.
//!
//! The source is read through its device and each buffer is written to the target as it is; then the target is read
//! back. If the source is a file its hash is taken from the file too, past the device.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use lowzone_driver::blk::{Data, Disk, Pending, Request, SECTOR};
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::{Cpu, KBuf};
use sha2::{Digest, Sha256};

use super::data;
use crate::lab::{Bench, lock};
use crate::result::CopyRow;
use crate::spec::CopyStep;
use crate::world::Body;

/// The body of a copy.
pub(super) fn body(bench: &Arc<Bench>, step: &CopyStep) -> Body {
    let (bench, step) = (bench.clone(), step.clone());
    Box::new(move |cpu| {
        let (Some(from), Some(to)) = (bench.disk(&step.from), bench.disk(&step.to)) else {
            return bench.failed(format!("copy: {} or {} has no driver", step.from, step.to));
        };
        bench.slot(&step.to).into_iter().for_each(|slot| lock(&slot.written).push(0..u64::MAX));
        let bytes = from.capacity() * SECTOR;
        bench.control.begin(bytes * 3);
        let mut copy = Copy { cpu, bench: &bench, step: &step, bytes, requests: 0, retries: 0 };
        let row = copy.run(&from, &to);
        match row {
            Ok(row) => lock(&bench.result).copies.push(row),
            Err(why) => {
                lock(&bench.result).failed_requests += 1;
                bench.failed(format!("copy of {} to {}: {why}", step.from, step.to));
            }
        }
    })
}

struct Copy<'a> {
    cpu: &'a Cpu<'a>,
    bench: &'a Bench,
    step: &'a CopyStep,
    bytes: u64,
    requests: u64,
    retries: u64,
}

impl Copy<'_> {
    fn run(&mut self, from: &Disk, to: &Disk) -> Result<CopyRow, String> {
        let mut on_its_way = Sha256::new();
        let mut back = Sha256::new();
        self.forward(from, to, &mut on_its_way)?;
        let flush = self.submit(to, Request::flush(), &mut VecDeque::new(), &mut |_, _| Ok(()))?;
        data::good(to.wait(self.cpu, flush))?;
        self.read_back(to, &mut back)?;
        let read = format!("{:x}", on_its_way.finalize());
        let image = self.bench.slot(&self.step.from).and_then(|slot| slot.image.clone());
        let source = match image {
            Some(path) => hash_file(&path).map_err(|error| format!("{}: {error}", path.display()))?,
            None => read.clone(),
        };
        Ok(CopyRow {
            from: self.step.from.clone(),
            to: self.step.to.clone(),
            bytes: self.bytes,
            requests: self.requests,
            source,
            read,
            copy: format!("{:x}", back.finalize()),
        })
    }

    /// Reads the source in order and writes each buffer on as it comes.
    fn forward(&mut self, from: &Disk, to: &Disk, hash: &mut Sha256) -> Result<(), String> {
        let mut reads = VecDeque::new();
        let mut writes = VecDeque::new();
        let depth = self.depth();
        let mut next = 0;
        while next < self.bytes || !reads.is_empty() {
            while next < self.bytes && reads.len() < depth && !self.bench.control.stopped() {
                let len = self.chunk(next);
                self.start_read(from, next, len, &mut reads)?;
                next += len;
            }
            let Some((at, pending)) = reads.pop_front() else { break };
            let data = self.collect_read(from, pending, hash)?;
            let len = data.len();
            let request = Request::write(at / SECTOR, data);
            let mut done = |copy: &mut Self, pending| copy.collect_write(to, pending);
            let pending = self.submit(to, request, &mut writes, &mut done)?;
            writes.push_back(pending);
            self.bench.control.advance(len);
            while writes.len() >= depth {
                if let Some(pending) = writes.pop_front() {
                    self.collect_write(to, pending)?;
                }
            }
        }
        writes.into_iter().try_for_each(|pending| self.collect_write(to, pending))
    }

    fn read_back(&mut self, disk: &Disk, hash: &mut Sha256) -> Result<(), String> {
        let mut reads = VecDeque::new();
        let depth = self.depth();
        let mut next = 0;
        while next < self.bytes || !reads.is_empty() {
            while next < self.bytes && reads.len() < depth && !self.bench.control.stopped() {
                let len = self.chunk(next);
                self.start_read(disk, next, len, &mut reads)?;
                next += len;
            }
            let Some((_, pending)) = reads.pop_front() else { break };
            self.collect_read(disk, pending, hash)?;
        }
        Ok(())
    }

    fn depth(&self) -> usize {
        usize::try_from(self.step.depth).unwrap_or(1).max(1)
    }

    fn chunk(&self, at: u64) -> u64 {
        self.step.bytes_per_request.bytes().min(self.bytes - at)
    }

    fn start_read(
        &mut self,
        disk: &Disk,
        at: u64,
        len: u64,
        reads: &mut VecDeque<(u64, Pending)>,
    ) -> Result<(), String> {
        let size = usize::try_from(len).map_err(|_| format!("{len} bytes in one request"))?;
        let buffer = KBuf::kmalloc(self.cpu, size, GFP_KERNEL).map_err(|error| error.to_string())?;
        let request = Request::read(at / SECTOR, Data::Streaming(buffer));
        // Reads in flight must stay in order for the hash, so room is waited for, not made.
        let pending = self.submit(disk, request, &mut VecDeque::new(), &mut |_, _| Ok(()))?;
        reads.push_back((at, pending));
        Ok(())
    }

    fn submit(
        &mut self,
        disk: &Disk,
        request: Request,
        others: &mut VecDeque<Pending>,
        done: &mut dyn FnMut(&mut Self, Pending) -> Result<(), String>,
    ) -> Result<Pending, String> {
        let mut retries = 0;
        let mut failed = None;
        let cpu = self.cpu;
        let pending = data::submit(cpu, disk, 0, request, &mut retries, || match others.pop_front() {
            Some(oldest) => {
                failed = failed.take().or(done(self, oldest).err());
                true
            }
            None => false,
        });
        self.retries += retries;
        match (failed, pending) {
            (Some(error), _) => Err(error),
            (None, Ok(pending)) => {
                disk.commit(cpu, 0);
                Ok(pending)
            }
            (None, Err(error)) => Err(error.why.to_string()),
        }
    }

    fn collect_read(&mut self, disk: &Disk, pending: Pending, hash: &mut Sha256) -> Result<Data, String> {
        let data = data::good(disk.wait(self.cpu, pending))?;
        self.requests += 1;
        self.bench.control.advance(data.len());
        let mut bytes = vec![0; usize::try_from(data.len()).unwrap_or(0)];
        data::read(self.cpu, &data, &mut bytes);
        hash.update(&bytes);
        Ok(data)
    }

    fn collect_write(&mut self, disk: &Disk, pending: Pending) -> Result<(), String> {
        data::good(disk.wait(self.cpu, pending))?;
        self.requests += 1;
        Ok(())
    }
}

fn hash_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(format!("{:x}", hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}
