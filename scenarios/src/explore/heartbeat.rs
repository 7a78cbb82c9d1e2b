//! The pulse of a campaign's child: a loop that passes no point is noticed, however loaded the machine is.
//!
//! The world beats at each point it passes. A thread beside the case looks at the beats and at the processor time that
//! the process has used: much of it without a beat is an endless loop, and the child ends itself with [`LOOPS`].
//! Waiting costs no processor time, so a machine that gives the child none condemns nobody. Neighbours: `worker`, which
//! starts it; `campaign`, which reads the exit code. Left out: loops that pass points, which fuel ends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The exit code of a child whose case runs without passing a point.
pub(crate) const LOOPS: u8 = 77;
/// Processor time without a beat: a case takes a thousandth of it, points and all.
const MOST: Duration = Duration::from_secs(2);
/// How often the thread looks.
const LOOK: Duration = Duration::from_millis(100);

static BEATS: AtomicU64 = AtomicU64::new(0);

/// A point was passed, or a case begun; `count` differs from the one before.
pub(crate) fn beat(count: u64) {
    BEATS.store(count, Ordering::Relaxed);
}

fn used() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let part = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), part)
}

/// Ends this process when it uses processor time without a beat.
pub(crate) fn watch() {
    std::thread::spawn(|| {
        let (mut beats, mut since) = (BEATS.load(Ordering::Relaxed), used());
        loop {
            std::thread::sleep(LOOK);
            let now = BEATS.load(Ordering::Relaxed);
            if now != beats {
                (beats, since) = (now, used());
            } else if used().saturating_sub(since) > MOST {
                std::process::exit(LOOPS.into());
            }
        }
    });
}
