//! Other people's drivers on our device: every operation, verified; and a thousand of them one after another.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lowzone::world::Random;
use virtio_driver::VirtioFeatureFlags;

use crate::libblkio::BlkioDisk;
use crate::server::{Server, connection_of};
use lowzone_tests::disk::{Disk, WANTED, Wait};

const EIO: i32 = -5;
const EOPNOTSUPP: i32 = -95;
const DISK: u64 = 64 << 20;
const BLOCK: usize = 4096;
const DEPTH: usize = 32;

/// The content of a block, which follows from its place and a round.
fn block(offset: u64, round: u64) -> Vec<u8> {
    let mut random = Random::new(offset ^ round << 48);
    std::iter::repeat_with(|| random.next().to_le_bytes()).take(BLOCK / 8).flatten().collect()
}

/// Writes every `step`th block from `first` on, reads all back in another order, compares.
fn verify(disk: &mut Disk, queue: usize, first: u64, step: u64, round: u64) {
    let size = BLOCK as u64;
    let blocks: Vec<u64> = (0..DISK / size).filter(|nth| nth % step == first).map(|nth| nth * size).collect();
    let slot = |tag: u64| (queue * DEPTH + usize::try_from(tag).unwrap()) * BLOCK;
    for reading in [false, true] {
        let mut order: Vec<u64> = if reading { blocks.iter().rev().copied().collect() } else { blocks.clone() };
        let (mut places, mut free) = (vec![0; DEPTH], (0..DEPTH as u64).collect::<Vec<_>>());
        let mut left = order.len();
        while left > 0 {
            while let Some(tag) = if order.is_empty() { None } else { free.pop() } {
                let offset = order.pop().unwrap();
                places[usize::try_from(tag).unwrap()] = offset;
                if reading {
                    disk.read(queue, offset, slot(tag), BLOCK, tag);
                } else {
                    disk.pages.put(slot(tag), &block(offset, round));
                    disk.write(queue, offset, slot(tag), BLOCK, tag);
                }
            }
            disk.kick(queue);
            let mut done = Vec::new();
            assert!(disk.reap(queue, Duration::from_secs(20), &mut done) > 0, "no answer");
            for (tag, ret) in done {
                assert_eq!(ret, 0);
                let offset = places[usize::try_from(tag).unwrap()];
                if reading {
                    assert!(disk.pages.get(slot(tag), BLOCK) == block(offset, round), "block at {offset:#x}");
                }
                free.push(tag);
                left -= 1;
            }
        }
    }
}

fn image(folder: &Path) -> PathBuf {
    let path = folder.join("disk.img");
    fs::File::create(&path).unwrap().set_len(DISK).unwrap();
    path
}

#[test]
fn virtio_driver_verifies_on_two_queues_and_the_data_outlives_the_connection() {
    let folder = lowzone_tests::image::Folder::new();
    let path = image(folder.path());
    let server = Server::start(["--image", path.to_str().unwrap(), "--queues", "2"]);
    let features = [WANTED, WANTED & !VirtioFeatureFlags::RING_EVENT_IDX.bits()];
    for (round, (features, wait)) in (1..).zip([(features[0], Wait::EventFd), (features[1], Wait::Poll)]) {
        let mut disk = Disk::with_features(&server.socket(), 2, 2 * DEPTH * BLOCK, wait, features).unwrap();
        assert_eq!(disk.capacity(), DISK);
        verify(&mut disk, 0, 0, 2, round);
        verify(&mut disk, 1, 1, 2, round);
        disk.flush(1, 7);
        assert_eq!(disk.one(1), 0);
    }
    let mut disk = Disk::connect(&server.socket(), 1, BLOCK, Wait::EventFd).unwrap();
    disk.read(0, DISK - BLOCK as u64, 0, BLOCK, 1);
    assert_eq!(disk.one(0), 0);
    assert!(disk.pages.get(0, BLOCK) == block(DISK - BLOCK as u64, 2));
    drop(disk);
    let (outcome, _) = server.stop();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
    let requests = 2 * 2 * DISK / BLOCK as u64 + 3;
    assert!(outcome.stdout.contains(&format!("3 connections: {requests} requests, 0 failed")), "{}", outcome.stdout);
    assert!(outcome.stdout.contains(" 0 faults"), "{}", outcome.stdout);
    assert!(fs::read(&path).unwrap()[..BLOCK] == block(0, 2));
}

#[test]
fn every_operation_of_blkio_is_done_or_refused_as_it_should_be_on_two_queues() {
    let folder = lowzone_tests::image::Folder::new();
    let path = image(folder.path());
    let server = Server::start(["--image", path.to_str().unwrap(), "--queues", "2"]);
    let mut disk = BlkioDisk::connect(&server.socket(), 2, 1 << 20).unwrap();
    assert_eq!(disk.blkio.get_u64("capacity").unwrap(), DISK);
    for queue in 0..2 {
        let start = (queue as u64) << 20;
        disk.pages.put(0, &block(start, 9));
        assert_eq!(disk.write(queue, start, 0, BLOCK), 0);
        assert_eq!(disk.flush(queue), 0);
        assert_eq!(disk.read(1 - queue, start, BLOCK, BLOCK), 0);
        assert!(disk.pages.get(BLOCK, BLOCK) == block(start, 9));
        // Large enough for many pieces, and not where it was written.
        assert_eq!(disk.read(queue, start, 0, 1 << 20), 0);
        assert!(disk.pages.get(0, BLOCK) == block(start, 9));
        assert!(disk.pages.get(BLOCK, (1 << 20) - BLOCK).iter().all(|byte| *byte == 0));
        assert_eq!(disk.write(queue, DISK - 512, 0, 1024), EIO, "past the end");
        assert_eq!(disk.read(queue, DISK, 0, 512), EIO, "past the end");
        assert_eq!(disk.write_zeroes(queue, DISK - 512, 1024), EIO, "past the end");
        assert_eq!(disk.discard(queue, DISK, 512), EIO, "past the end");
        assert_eq!(disk.read(queue, DISK - 512, 0, 512), 0);
    }
    drop(disk);
    let (outcome, _) = server.stop();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
    assert!(outcome.stdout.contains("18 requests, 8 failed") && outcome.stdout.contains(" 0 faults"), "{outcome:?}");
}

#[test]
fn what_blkio_clears_reads_as_zeros_its_neighbours_stay_and_an_image_gets_its_space_back() {
    use std::os::unix::fs::MetadataExt;
    let folder = lowzone_tests::image::Folder::new();
    let path = image(folder.path());
    let server = Server::start(["--image", path.to_str().unwrap(), "--queues", "2"]);
    let mut disk = BlkioDisk::connect(&server.socket(), 2, 1 << 20).unwrap();
    let size = 1usize << 20;
    for queue in 0..2 {
        let (start, other) = ((queue as u64) << 20, 1 - queue);
        disk.pages.put(0, &vec![0x5a; size]);
        assert_eq!(disk.write(queue, start, 0, size), 0);
        let cleared = [0x1000..0x3000usize, 0x8200..0x8400, 0x4_0000..0xc_0000];
        let of = |range: &std::ops::Range<usize>| (start + range.start as u64, range.len() as u64);
        let ((a, a_len), (b, b_len), (c, c_len)) = (of(&cleared[0]), of(&cleared[1]), of(&cleared[2]));
        assert_eq!(disk.write_zeroes(queue, a, a_len), 0);
        assert_eq!(disk.write_zeroes(other, b, b_len), 0);
        assert_eq!(disk.discard(queue, c, c_len), 0);
        assert_eq!(disk.read(other, start, 0, size), 0);
        for (at, byte) in disk.pages.get(0, size).into_iter().enumerate() {
            let zero = cleared.iter().any(|range| range.contains(&at));
            assert_eq!(byte, if zero { 0 } else { 0x5a }, "{at:#x}");
        }
        assert_eq!(disk.flush(queue), 0);
    }
    drop(disk);
    let (outcome, _) = server.stop();
    assert!(outcome.code == Some(0) && outcome.stdout.contains("12 requests, 0 failed"), "{outcome:?}");
    // Two megabytes were written and one of them discarded; what the file system keeps for itself is little.
    let kept = fs::metadata(&path).unwrap().blocks() * 512;
    assert!(kept < 0x18_0000, "{kept} bytes of the image");
}

#[test]
fn what_is_not_offered_is_refused_with_eopnotsupp() {
    let server = Server::start(["--memory", "64M", "--queues", "2", "--no-discard"]);
    let mut disk = BlkioDisk::connect(&server.socket(), 2, 1 << 20).unwrap();
    for queue in 0..2 {
        assert_eq!(disk.write_zeroes(queue, 0, 4096), EOPNOTSUPP, "not offered, and it knows");
        assert_eq!(disk.discard(queue, 0, 4096), EOPNOTSUPP, "not offered, and it knows");
        assert_eq!(disk.read(queue, 0, 0, 512), 0);
    }
    drop(disk);
    let (outcome, _) = server.stop();
    assert!(outcome.code == Some(0) && outcome.stdout.contains("2 requests, 0 failed"), "{outcome:?}");
    // This driver asks though it was told that the device can't.
    let server = Server::start(["--memory", "64M", "--no-discard"]);
    let mut disk = Disk::connect(&server.socket(), 1, BLOCK, Wait::EventFd).unwrap();
    disk.discard(0, 0, 512, 1);
    assert_eq!(disk.one(0), EOPNOTSUPP);
    disk.write_zeroes(0, 0, 512, 2);
    assert_eq!(disk.one(0), EOPNOTSUPP);
    drop(disk);
    let (outcome, _) = server.stop();
    assert!(outcome.code == Some(0) && outcome.stdout.contains("2 requests, 2 failed"), "{outcome:?}");
}

#[test]
fn a_read_only_disk_refuses_writes_and_memory_mapped_later_is_reached() {
    let folder = lowzone_tests::image::Folder::new();
    let path = image(folder.path());
    let server = Server::start(["--image", path.to_str().unwrap(), "--read-only"]);
    let mut disk = Disk::connect(&server.socket(), 1, BLOCK, Wait::EventFd).unwrap();
    disk.write(0, 0, 0, 512, 1);
    assert_eq!(disk.one(0), EIO);
    // This driver asks though it was told that the device can't.
    disk.discard(0, 0, 512, 1);
    assert_eq!(disk.one(0), EOPNOTSUPP);
    disk.write_zeroes(0, 0, 512, 1);
    assert_eq!(disk.one(0), EOPNOTSUPP);
    // The queue runs: more memory stops it and starts it where it was.
    for round in 0..20 {
        let old = std::mem::replace(&mut disk.pages, lowzone_tests::pages::Pages::new(BLOCK));
        let (addr, fd) = (disk.pages.at(0) as usize, disk.pages.fd());
        disk.transport.map_mem_region(addr, BLOCK, fd, 0).unwrap();
        disk.transport.unmap_mem_region(old.at(0) as usize, BLOCK).unwrap();
        disk.pages.put(0, &[7; 512]);
        disk.read(0, 0, 0, 512, round);
        assert_eq!(disk.one(0), 0);
        assert!(disk.pages.get(0, 512).iter().all(|byte| *byte == 0));
    }
    drop(disk);
    let (outcome, _) = server.stop();
    assert!(outcome.code == Some(0) && outcome.stdout.contains("23 requests, 3 failed"), "{outcome:?}");
}

#[test]
fn a_narrow_device_refuses_what_lies_beyond_its_address_bits() {
    // The crate's rings lie at addresses of a process: far above 4 GiB.
    let server = Server::start(["--null", "1M", "--width", "32"]);
    let mut disk = Disk::connect(&server.socket(), 1, BLOCK, Wait::EventFd).unwrap();
    disk.read(0, 0, 0, 512, 1);
    disk.kick(0);
    assert_eq!(disk.reap(0, Duration::from_millis(300), &mut Vec::new()), 0);
    drop(disk);
    let (outcome, _) = server.stop();
    assert!(outcome.stderr.contains("connection 1: queue 0 stands still until it is set up again"), "{outcome:?}");
    assert!(outcome.stderr.contains("BeyondWidth { width: 32 }"), "{outcome:?}");
    assert!(outcome.code == Some(0) && outcome.stdout.contains(" 1 faults"), "{outcome:?}");
}

/// Open files and resident KiB of a process.
fn use_of(pid: rustix::process::Pid) -> (usize, u64) {
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib = resident.trim().trim_end_matches(" kB").parse().unwrap();
    (fs::read_dir(format!("{process}/fd")).unwrap().count(), kib)
}

#[test]
fn a_thousand_connections_leave_no_file_open_and_no_memory_behind() {
    const ROUNDS: u64 = 1000;
    let server = Server::start(["--memory", "64M", "--queues", "2"]);
    let mut before = (0, 0);
    for round in 0..ROUNDS {
        let mut disk = Disk::connect(&server.socket(), 2, 2 * BLOCK, Wait::EventFd).unwrap();
        let queue = usize::try_from(round % 2).unwrap();
        let offset = round * BLOCK as u64;
        // What the connection before wrote is there.
        if round > 0 {
            disk.read(queue, offset - BLOCK as u64, 0, BLOCK, 1);
            assert_eq!(disk.one(queue), 0);
            assert!(disk.pages.get(0, BLOCK) == block(offset - BLOCK as u64, 3), "round {round}");
        }
        disk.pages.put(BLOCK, &block(offset, 3));
        disk.write(queue, offset, BLOCK, BLOCK, 1);
        assert_eq!(disk.one(queue), 0);
        if round == 20 {
            before = use_of(server.pid());
        }
    }
    let last = Disk::connect(&server.socket(), 1, BLOCK, Wait::EventFd).unwrap();
    let after = use_of(server.pid());
    assert_eq!(connection_of(server.pid()).len(), 1, "one process for one connection");
    drop(last);
    println!("after 20 connections {} files, {} KiB; after {ROUNDS} {}, {}", before.0, before.1, after.0, after.1);
    assert_eq!(after.0, before.0, "files");
    assert!(after.1 <= before.1 + 256, "memory: {} KiB and then {}", before.1, after.1);
    let (outcome, _) = server.stop();
    assert!(
        outcome.code == Some(0) && outcome.stdout.contains("1001 connections: 1999 requests, 0 failed"),
        "{outcome:?}"
    );
}
