//! Requests a second with nothing behind the device: ours and QEMU's storage daemon, under the same driver.

use std::path::Path;
use std::time::{Duration, Instant};

use lowzone::world::Random;

use crate::disk::{Disk, Wait};
use crate::server::Server;

pub const BLOCK: usize = 4096;
pub const DISK: u64 = 1 << 30;
const ROUNDS: usize = 7;
/// A ratio that no noise explains; the goal is 1.
const SLOWER: f64 = 0.75;

/// Random reads of 4 KiB a second, with `depth` in flight.
pub fn iops(socket: &Path, depth: usize, wait: Wait, time: Duration) -> f64 {
    let mut disk = Disk::connect(socket, 1, depth * BLOCK, wait).unwrap();
    let mut random = Random::new(depth as u64);
    let mut done: Vec<(u64, i32)> = (0..depth as u64).map(|tag| (tag, 0)).collect();
    let (mut count, begun) = (0_u64, Instant::now());
    loop {
        for (tag, ret) in done.drain(..) {
            assert_eq!(ret, 0);
            let offset = random.next() % (DISK / BLOCK as u64) * BLOCK as u64;
            disk.read(0, offset, usize::try_from(tag).unwrap() * BLOCK, BLOCK, tag);
        }
        disk.kick(0);
        count += disk.reap(0, Duration::from_secs(5), &mut done) as u64;
        assert!(!done.is_empty(), "no answer");
        if begun.elapsed() > time {
            return count as f64 / begun.elapsed().as_secs_f64();
        }
    }
}

pub fn middle(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}

/// The goal: no slower than QEMU's in any row, by the median of ratios of interleaved rounds. Ours fills what is read
/// with zeroes, QEMU's leaves it as it was.
#[test]
fn as_fast_as_qemu_at_depth_1_and_64() {
    if std::env::var_os("LOWZONE_LONG").is_none() {
        return;
    }
    let ours = Server::start(["--null", "1G"]);
    let Some(qemu) = Server::qemu_null(DISK) else {
        panic!("qemu-storage-daemon is not installed (Debian: qemu-system-x86 or qemu-utils)");
    };
    let mut slower = Vec::new();
    for (depth, wait) in [(1, Wait::EventFd), (1, Wait::Poll), (64, Wait::EventFd), (64, Wait::Poll)] {
        let time = Duration::from_millis(700);
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let mut measure = |mine: bool| {
                let socket = if mine { ours.socket() } else { qemu.socket() };
                let iops = iops(&socket, depth, wait, time);
                if mine { here.push(iops) } else { there.push(iops) }
            };
            measure(round % 2 == 0);
            measure(round % 2 == 1);
        }
        let ratio = middle(here.iter().zip(&there).map(|(a, b)| a / b).collect());
        let [_, a, _] = middle(here);
        let [_, b, _] = middle(there);
        let [low, mid, high] = ratio;
        println!("depth {depth:>2} {wait:?}: ours {a:.0}, qemu {b:.0}; ratio {mid:.2} [{low:.2} {high:.2}]");
        if mid < SLOWER {
            slower.push(format!("depth {depth} {wait:?}: {mid:.2}"));
        }
    }
    assert!(slower.is_empty(), "slower than QEMU: {slower:?}");
}
