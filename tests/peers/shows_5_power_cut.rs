//! The server dies under load, and whatever was not flushed is dropped or torn: what was acknowledged after a flush
//! is there.
//!
//! The server writes to an image and logs writes and flushes beside it. After kill -9 the test makes the image anew
//! from what it was before and the log: everything up to the last flush, and of the writes after it some, whole or
//! some sectors of them. Each sector says which version of which block it is.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lowzone::world::Random;
use lowzone_device::store::{Entry, entries};
use lowzone_tests::image::Folder;

use crate::server::Server;
use lowzone_tests::disk::{Disk, Wait};

const BLOCK: usize = 4096;
const BLOCKS: usize = 256;
const ROUNDS: u64 = 20;
const DEPTH: usize = 32;
const FLUSH: u64 = u64::MAX;

/// What the driver knows.
struct Known {
    /// The last version acknowledged as written, by block.
    written: Vec<u64>,
    /// The last version acknowledged before a flush that was acknowledged.
    durable: Vec<u64>,
    /// The last version sent.
    sent: Vec<u64>,
    version: u64,
    flushes: u64,
}

fn sector(block: u64, version: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    for (place, word) in bytes.as_chunks_mut::<16>().0.iter_mut().zip(0_u64..) {
        place[..8].copy_from_slice(&(block << 32 | word).to_le_bytes());
        place[8..].copy_from_slice(&version.to_le_bytes());
    }
    bytes
}

/// Writes and flushes on two queues until the device answers no more.
fn load(disk: &mut Disk, known: &mut Known, random: &mut Random, killed: &AtomicBool) {
    let mut busy = vec![false; BLOCKS];
    let mut slots: [Vec<usize>; 2] = [(0..DEPTH).collect(), (DEPTH..2 * DEPTH).collect()];
    // By slot: the block and version it writes. By queue: what a flush under way will make durable.
    let mut writes = vec![(0_usize, 0_u64); 2 * DEPTH];
    let mut flushing: [Option<Vec<u64>>; 2] = [None, None];
    let mut done = Vec::new();
    loop {
        for queue in 0..2 {
            while let Some(slot) = slots[queue].pop() {
                let block = usize::try_from(random.next() % BLOCKS as u64).unwrap();
                if busy[block] {
                    slots[queue].push(slot);
                    break;
                }
                known.version += 1;
                (busy[block], known.sent[block], writes[slot]) = (true, known.version, (block, known.version));
                let bytes = sector(block as u64, known.version).repeat(BLOCK / 512);
                disk.pages.put(slot * BLOCK, &bytes);
                disk.write(queue, (block * BLOCK) as u64, slot * BLOCK, BLOCK, slot as u64);
            }
            if flushing[queue].is_none() && random.next().is_multiple_of(8) {
                flushing[queue] = Some(known.written.clone());
                disk.flush(queue, FLUSH);
            }
            disk.kick(queue);
            let over = killed.load(Ordering::Relaxed);
            if disk.reap(queue, Duration::from_millis(if over { 20 } else { 2 }), &mut done) == 0 && over {
                return;
            }
            for (tag, ret) in done.drain(..) {
                assert_eq!(ret, 0);
                if tag == FLUSH {
                    for (durable, seen) in known.durable.iter_mut().zip(flushing[queue].take().unwrap()) {
                        *durable = seen.max(*durable);
                    }
                    known.flushes += 1;
                } else {
                    let slot = usize::try_from(tag).unwrap();
                    let (block, version) = writes[slot];
                    (busy[block], known.written[block]) = (false, version);
                    slots[queue].push(slot);
                }
            }
        }
    }
}

/// What a power cut leaves of `image`, given what was written and flushed since.
fn cut(image: &mut [u8], log: &[u8], random: &mut Random) -> (usize, usize) {
    let log = entries(log);
    let flushed = log.iter().rposition(|entry| *entry == Entry::Flush).map_or(0, |at| at + 1);
    let (mut whole, mut lost) = (0, 0);
    for (nth, entry) in log.iter().enumerate() {
        let Entry::Write(offset, bytes) = entry else { continue };
        let at = usize::try_from(*offset).unwrap();
        let fate = random.next();
        for (sector, bytes) in bytes.chunks(512).enumerate() {
            let stays = nth < flushed || fate.is_multiple_of(4) || (fate % 4 == 1 && fate >> (8 + sector) & 1 == 1);
            if stays {
                image[at + sector * 512..][..bytes.len()].copy_from_slice(bytes);
                whole += 1;
            } else {
                lost += 1;
            }
        }
    }
    (whole, lost)
}

/// The blocks that hold what they may not, and what each block is known to hold.
fn judge(image: &[u8], known: &Known) -> (Vec<String>, Vec<u64>) {
    let (mut wrong, mut least) = (Vec::new(), Vec::new());
    for (block, bytes) in image.chunks(BLOCK).enumerate() {
        let mut oldest = u64::MAX;
        for found in bytes.chunks(512) {
            let version = u64::from_le_bytes(*found[8..].first_chunk().unwrap());
            let (durable, sent) = (known.durable[block], known.sent[block]);
            if !(durable..=sent).contains(&version) || found != sector(block as u64, version) {
                wrong.push(format!("block {block}: version {version}, flushed {durable}, sent {sent}"));
            }
            oldest = oldest.min(version);
        }
        least.push(oldest);
    }
    (wrong, least)
}

/// One life of the server, cut short; what is wrong with what is left.
fn life(folder: &Folder, image: &Path, no_flush: bool, known: &mut Known, random: &mut Random) -> Vec<String> {
    let (log, mut before) = (folder.path().join("log"), fs::read(image).unwrap());
    let _ = fs::remove_file(&log);
    let mut args = vec!["--image", image.to_str().unwrap(), "--write-log", log.to_str().unwrap(), "--queues", "2"];
    if no_flush {
        args.push("--no-flush");
    }
    let server = Server::start(args);
    let mut disk = Disk::connect(&server.socket(), 2, 2 * DEPTH * BLOCK, Wait::EventFd).unwrap();
    let killed = AtomicBool::new(false);
    let moment = Duration::from_micros(2_000 + random.next() % 120_000);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(moment);
            server.kill();
            killed.store(true, Ordering::Relaxed);
        });
        load(&mut disk, known, random, &killed);
    });
    drop(disk);
    let (whole, lost) = cut(&mut before, &fs::read(&log).unwrap(), random);
    fs::write(image, &before).unwrap();
    let (wrong, least) = judge(&before, known);
    println!("killed after {moment:?}: {} flushes so far, {whole} sectors stay, {lost} are lost", known.flushes);
    // What was lost was never promised: from here on it is what is there that counts.
    (known.durable, known.written) = (least.clone(), least);
    wrong
}

fn lives(no_flush: bool) -> (Vec<String>, Known) {
    let folder = Folder::new();
    let bytes: Vec<u8> = (0..BLOCKS as u64).flat_map(|block| sector(block, 0).repeat(BLOCK / 512)).collect();
    let image = folder.file("disk.img", &bytes);
    let none = || vec![0; BLOCKS];
    let mut known = Known { written: none(), durable: none(), sent: none(), version: 0, flushes: 0 };
    let mut random = Random::new(if no_flush { 2 } else { 1 });
    let mut wrong = Vec::new();
    for _ in 0..ROUNDS {
        wrong.extend(life(&folder, &image, no_flush, &mut known, &mut random));
    }
    (wrong, known)
}

#[test]
fn what_was_acknowledged_after_a_flush_outlives_twenty_deaths_of_the_server() {
    let (wrong, known) = lives(false);
    println!("{} versions written, {} flushes acknowledged", known.version, known.flushes);
    assert!(wrong.is_empty(), "{} sectors, such as {}", wrong.len(), wrong[0]);
    assert!(known.flushes > ROUNDS && known.version > 1000, "hardly any load");
}

#[test]
fn a_device_whose_flush_does_nothing_is_caught() {
    let (wrong, known) = lives(true);
    println!("{} flushes acknowledged, {} sectors lost, such as {:?}", known.flushes, wrong.len(), wrong.first());
    assert!(!wrong.is_empty(), "nothing was lost in spite of {} flushes that did nothing", known.flushes);
}
