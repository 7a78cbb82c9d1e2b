//! Our block driver over vhost-user, on qemu-storage-daemon's disk.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lowzone::world::{Body, Random};
use lowzone_driver::blk::{BlkOptions, Data, Disk, Pending, Request};
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::{Cpu, KBuf};
use lowzone_tests::daemon::{self, Backing, Daemon};
use lowzone_tests::front::{AT, FrontRig};
use lowzone_tests::program::{Outcome, lowzone};

const BLOCK: usize = 4096;
const SECTORS: u64 = BLOCK as u64 / 512;
const DEPTH: usize = 64;

/// A folder in memory that goes away with this.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("/dev/shm/lowzone-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn image(&self, bytes: u64) -> PathBuf {
        let path = self.0.join("disk.img");
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    fn socket(&self) -> PathBuf {
        self.0.join("disk.sock")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn options() -> BlkOptions {
    BlkOptions { dma_mask: 64, coherent_mask: 64, ..BlkOptions::default() }
}

/// The bytes of a block after its `version`th write; version 0 was never written.
fn content(block: u64, version: u32) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    if version > 0 {
        Random::new(block << 32 | u64::from(version)).fill(&mut bytes);
    }
    bytes
}

struct Flight {
    pending: Pending,
    block: u64,
    /// The version that it writes; none: it reads.
    writes: Option<u32>,
}

/// One CPU's part of the disk, and what must be there.
struct Part {
    first: u64,
    /// By block: the newest version that was acknowledged.
    sure: Vec<u32>,
    /// By block: versions that may be there instead, since a write of them failed.
    maybe: Vec<Vec<u32>>,
    /// By block: the newest version that was ever submitted.
    newest: Vec<u32>,
    busy: Vec<bool>,
    done: u64,
    failed: u64,
}

impl Part {
    fn new(first: u64, blocks: usize) -> Self {
        let (sure, newest) = (vec![0; blocks], vec![0; blocks]);
        Self { first, sure, maybe: vec![Vec::new(); blocks], newest, busy: vec![false; blocks], done: 0, failed: 0 }
    }

    fn at(&self, block: u64) -> usize {
        usize::try_from(block - self.first).unwrap()
    }

    /// Random reads and writes at full depth, until so many are done or one fails.
    fn work(&mut self, cpu: &Cpu<'_>, disk: &Disk, queue: u16, requests: u64, seed: u64, total: &AtomicU64) {
        let mut random = Random::new(seed);
        let mut flights: Vec<Flight> = Vec::new();
        let failed = self.failed;
        for _ in 0..requests {
            if flights.len() == DEPTH {
                disk.commit(cpu, queue);
                let half = flights.split_off(DEPTH / 2);
                for flight in std::mem::replace(&mut flights, half) {
                    self.settle(cpu, disk, flight);
                    total.fetch_add(1, Ordering::Relaxed);
                }
            }
            if self.failed > failed {
                break;
            }
            let mut block = self.first + random.below(self.sure.len() as u64);
            while self.busy[self.at(block)] {
                block = self.first + random.below(self.sure.len() as u64);
            }
            match self.launch(cpu, disk, queue, block, random.below(2) == 0) {
                Some(flight) => flights.push(flight),
                None => break,
            }
        }
        disk.commit(cpu, queue);
        flights.into_iter().for_each(|flight| self.settle(cpu, disk, flight));
    }

    fn launch(&mut self, cpu: &Cpu<'_>, disk: &Disk, queue: u16, block: u64, write: bool) -> Option<Flight> {
        let at = self.at(block);
        let mut buf = KBuf::kmalloc(cpu, BLOCK, GFP_KERNEL).unwrap();
        let writes = write.then_some(self.newest[at] + 1);
        let request = match writes {
            Some(version) => {
                buf.write_at(0, &content(block, version)).unwrap();
                Request::write(block * SECTORS, Data::Streaming(buf))
            }
            None => Request::read(block * SECTORS, Data::Streaming(buf)),
        };
        let Ok(pending) = disk.submit_more(cpu, queue, request) else {
            self.failed += 1;
            return None;
        };
        self.busy[at] = true;
        self.newest[at] = writes.unwrap_or(self.newest[at]);
        Some(Flight { pending, block, writes })
    }

    fn settle(&mut self, cpu: &Cpu<'_>, disk: &Disk, flight: Flight) {
        let (at, completed) = (self.at(flight.block), disk.wait(cpu, flight.pending));
        self.busy[at] = false;
        let good = completed.result.is_ok();
        self.done += u64::from(good);
        self.failed += u64::from(!good);
        match (flight.writes, completed.data) {
            (Some(version), _) if good => {
                self.sure[at] = version;
                self.maybe[at].clear();
            }
            (Some(version), _) => self.maybe[at].push(version),
            (None, Some(Data::Streaming(buf))) if good => self.compare(flight.block, &buf),
            (None, data) => assert!(!good, "a read that went well has its data: {data:?}"),
        }
    }

    /// Asserts that a block holds what was acknowledged last, or something newer that failed.
    fn compare(&self, block: u64, buf: &KBuf) {
        let mut seen = [0; BLOCK];
        buf.read_at(0, &mut seen).unwrap();
        self.assert_possible(block, &seen, "read");
    }

    fn assert_possible(&self, block: u64, seen: &[u8], by: &str) {
        let at = self.at(block);
        let mut possible = std::iter::once(&self.sure[at]).chain(&self.maybe[at]);
        let right = possible.any(|&version| content(block, version) == seen);
        assert!(right, "block {block} {by}: neither version {} nor {:?}", self.sure[at], self.maybe[at]);
    }

    /// Reads every block.
    fn read_back(&mut self, cpu: &Cpu<'_>, disk: &Disk, queue: u16) {
        let blocks = self.first..self.first + self.sure.len() as u64;
        for block in blocks {
            let flight = self.launch(cpu, disk, queue, block, false).unwrap();
            disk.commit(cpu, queue);
            self.settle(cpu, disk, flight);
        }
    }
}

/// Two CPUs at two queues, each with its half of the disk.
fn work(
    rig: &mut FrontRig,
    disk: &Arc<Disk>,
    parts: Vec<Part>,
    requests: u64,
    seed: u64,
    total: &Arc<AtomicU64>,
) -> Vec<Part> {
    run_parts(rig, parts, {
        let (disk, total) = (disk.clone(), total.clone());
        move |cpu, part, queue| part.work(cpu, &disk, queue, requests, seed ^ u64::from(queue), &total)
    })
}

fn run_parts(
    rig: &mut FrontRig,
    parts: Vec<Part>,
    what: impl Fn(&Cpu<'_>, &mut Part, u16) + Send + Sync + 'static,
) -> Vec<Part> {
    let (what, (tell, told)) = (Arc::new(what), std::sync::mpsc::channel());
    let bodies = (0_u16..).zip(parts).map(|(queue, mut part)| -> Body {
        let (what, tell) = (what.clone(), tell.clone());
        Box::new(move |cpu| {
            what(cpu, &mut part, queue);
            tell.send((queue, part)).unwrap();
        })
    });
    rig.run(bodies.collect());
    drop(tell);
    let mut parts: Vec<_> = told.into_iter().collect();
    parts.sort_by_key(|&(queue, _)| queue);
    parts.into_iter().map(|(_, part)| part).collect()
}

fn halves(bytes: u64) -> Vec<Part> {
    let blocks = usize::try_from(bytes / BLOCK as u64 / 2).unwrap();
    vec![Part::new(0, blocks), Part::new(blocks as u64, blocks)]
}

/// The peer's file holds what was acknowledged: our driver is not asked here.
fn compare_file(path: &Path, parts: &[Part]) {
    let bytes = std::fs::read(path).unwrap();
    for part in parts {
        for (block, _) in (part.first..).zip(&part.sure) {
            let at = usize::try_from(block).unwrap() * BLOCK;
            part.assert_possible(block, &bytes[at..at + BLOCK], "in the file");
        }
    }
}

/// A million requests at depth 64 on two queues, each verified; `kill -9` in the middle, three times: each request of then
/// fails or was really done, and the disk comes back.
#[test]
fn shows_3_a_million_random_requests_lose_nothing_by_a_daemon_that_is_killed_in_the_middle() {
    if !daemon::is_here() {
        return;
    }
    const BYTES: u64 = 16 << 20;
    let scratch = Scratch::new("killed");
    let image = scratch.image(BYTES);
    let mut daemon = Daemon::start(&scratch.socket(), Backing::File(image.clone()), 2);
    let mut rig = FrontRig::new(daemon.socket(), 2, options());
    let mut parts = halves(BYTES);
    let (begun, mut done) = (Instant::now(), 0);
    for round in 0..3 {
        let disk = rig.bind();
        assert_eq!((disk.queues(), disk.capacity()), (2, BYTES / 512));
        let total = Arc::new(AtomicU64::new(0));
        parts = std::thread::scope(|scope| {
            scope.spawn(|| {
                while total.load(Ordering::Relaxed) < 300_000 + 777 * round {
                    std::thread::sleep(Duration::from_micros(200));
                }
                daemon.kill();
            });
            work(&mut rig, &disk, std::mem::take(&mut parts), u64::MAX, 11 + round, &total)
        });
        assert!(parts.iter().all(|part| part.failed > 0), "it was killed under load");
        let said = rig.wire.failure().unwrap();
        assert!(said.ends_with("closed the connection"), "{said}");
        drop(disk);
        rig.unbind();
        rig.assert_clean();
        compare_file(&image, &parts);
        daemon.restart();
        for part in &mut parts {
            done += std::mem::take(&mut part.done);
            part.failed = 0;
        }
    }
    let disk = rig.bind();
    assert_eq!(rig.wire.failure(), None);
    let left = 1_000_000_u64.saturating_sub(done).max(10_000).div_ceil(2);
    parts = work(&mut rig, &disk, parts, left, 17, &Arc::default());
    assert_eq!(parts.iter().map(|part| (part.done, part.failed)).collect::<Vec<_>>(), [(left, 0); 2]);
    println!("{} verified requests in {:.1?}", done + 2 * left, begun.elapsed());
    let peak = disk.peak_in_flight();
    assert!(peak > 64, "both queues were busy at once: {peak}");
    let back = disk.clone();
    parts = run_parts(&mut rig, parts, move |cpu, part, queue| part.read_back(cpu, &back, queue));
    assert!(parts.iter().all(|part| part.failed == 0));
    compare_file(&image, &parts);
    drop(disk);
    rig.unbind();
    rig.assert_clean();
}

#[test]
fn a_disk_whose_daemon_stays_away_is_gone_and_its_probe_says_so() {
    if !daemon::is_here() {
        return;
    }
    let scratch = Scratch::new("gone");
    let mut daemon = Daemon::start(&scratch.socket(), Backing::Null(1 << 20), 1);
    let mut rig = FrontRig::new(daemon.socket(), 1, options());
    daemon.kill();
    let (driver, device) = (rig.driver.clone(), rig.device.clone());
    rig.run(vec![Box::new(move |cpu| {
        let error = driver.probe_virtio(cpu, AT, &device).unwrap_err();
        assert_eq!(error.errno(), -19, "{error}");
    })]);
    let said = rig.wire.failure().unwrap();
    assert!(said.contains("disk.sock: Connection refused"), "{said}");
    rig.assert_clean();
}

fn run(daemon: &Daemon, args: &[&str]) -> Outcome {
    let wire = format!("vhost-user={}", daemon.socket().display());
    lowzone([&["run"], args, &["--wire", &wire]].concat())
}

#[test]
fn scenarios_run_at_a_socket_and_those_that_can_not_are_skipped() {
    if !daemon::is_here() {
        return;
    }
    let scratch = Scratch::new("scenarios");
    for (name, queues) in [
        ("block/low-zone", 1),
        ("block/random-queues", 4),
        ("block/swiotlb-full", 1),
        ("block/flaky-memory", 1),
        ("block/sleep-in-irq", 1),
        ("block/leak", 1),
    ] {
        let daemon = Daemon::start(&scratch.socket(), Backing::File(scratch.image(64 << 20)), queues);
        let done = run(&daemon, &[name]);
        assert_eq!(done.code, Some(0), "{name}: {done:?}");
    }
    let daemon = Daemon::start(&scratch.socket(), Backing::File(scratch.image(1 << 20)), 1);
    for (args, why) in [
        (&["block/use-after-unmap"][..], "needs sees_dma: it is about the finding after-unmap"),
        (&["edu/selftest"], "the device at a socket is of kind 'virtio-blk'"),
    ] {
        let skipped = run(&daemon, args);
        assert!(skipped.code == Some(0) && skipped.stdout.contains(why), "{args:?}: {skipped:?}");
    }
    let lonely = run(&daemon, &["block/copy-image", "--set", "image=x"]);
    assert_eq!(lonely.code, Some(2), "two disks want two sockets: {lonely:?}");
    let small = run(&daemon, &["block/low-zone"]);
    assert!(small.stderr.contains("its disk has 1048576 bytes, and the scenario's has 8388608"), "{small:?}");
    assert_eq!((small.code, run(&daemon, &["block/low-zone", "--world", "lockstep"]).code), (Some(2), Some(2)));
}
