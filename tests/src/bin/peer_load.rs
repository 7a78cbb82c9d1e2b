//! `lowzone-peer-load SOCKET DEPTH eventfd|poll MILLISECONDS`: the crate `virtio-driver` under load on a vhost-user disk.
//!
//! Random reads of 4 KiB, so many in flight, for so long; then it prints how many were done, and in how many
//! nanoseconds. `lowzone bench peers` starts it: the crate's calls are unsafe, and that program has none.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a load that can't go on says why and gives no figure")]

use std::path::Path;
use std::time::{Duration, Instant};

use lowzone::world::Random;
use lowzone_tests::disk::{Disk, Wait};

const BLOCK: usize = 4096;

fn main() {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [socket, depth, wait, millis] = &words[..] else { panic!("SOCKET DEPTH eventfd|poll MILLISECONDS") };
    let wait = match wait.as_str() {
        "eventfd" => Wait::EventFd,
        "poll" => Wait::Poll,
        other => panic!("'{other}' is neither eventfd nor poll"),
    };
    let (depth, time) = (depth.parse().unwrap(), Duration::from_millis(millis.parse().unwrap()));
    let (requests, took) = load(Path::new(socket), depth, wait, time);
    println!("{requests} {}", took.as_nanos());
}

/// How many reads were done, and the time that they took.
fn load(socket: &Path, depth: usize, wait: Wait, time: Duration) -> (u64, Duration) {
    let mut disk = Disk::connect(socket, 1, depth * BLOCK, wait).unwrap();
    let blocks = disk.capacity() / BLOCK as u64;
    let mut random = Random::new(depth as u64);
    let mut done: Vec<(u64, i32)> = (0..depth as u64).map(|tag| (tag, 0)).collect();
    let (mut requests, begun) = (0_u64, Instant::now());
    loop {
        for (tag, ret) in done.drain(..) {
            assert_eq!(ret, 0, "a request failed");
            let offset = random.next() % blocks * BLOCK as u64;
            disk.read(0, offset, usize::try_from(tag).unwrap() * BLOCK, BLOCK, tag);
        }
        disk.kick(0);
        requests += disk.reap(0, Duration::from_secs(5), &mut done) as u64;
        assert!(!done.is_empty(), "no answer");
        let took = begun.elapsed();
        if took > time {
            return (requests, took);
        }
    }
}
