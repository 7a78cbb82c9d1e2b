//! How long a thread looks before it sleeps.
//!
//! To wake a sleeping thread costs microseconds, on a virtual machine dozens; to look costs the processor. So a thread
//! looks for a while first, longer after sleeps that were short, less after long ones. Mirrors
//! drivers/cpuidle/governors/haltpoll.c with its defaults. While it looks it gives its processor away now and then: there
//! may be more threads than processors. Neighbours: `cpu_env`, `idle` and `worker`, which sleep.

use std::time::{Duration, Instant};

/// The longest look (`guest_halt_poll_ns`).
const MOST: Duration = Duration::from_micros(200);
/// The first look (`guest_halt_poll_grow_start`).
const START: Duration = Duration::from_micros(50);
/// Looks between two yields, and between two looks at the clock.
const TURNS: u32 = 32;

/// The time that one thread looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Poll(Duration);

impl Poll {
    /// A thread that has not slept yet.
    pub(super) const fn new() -> Self {
        Self(START)
    }

    /// Looks until `done`, for as long as pays; whether it was.
    pub(super) fn until(self, mut done: impl FnMut() -> bool) -> bool {
        let begun = Instant::now();
        loop {
            for _ in 0..TURNS {
                if done() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if begun.elapsed() >= self.0 {
                return false;
            }
            std::thread::yield_now();
        }
    }

    /// Learns from a sleep.
    pub(super) fn slept(&mut self, slept: Duration) {
        if slept > MOST {
            let shrunk = self.0 / 2;
            self.0 = if shrunk < START { Duration::ZERO } else { shrunk };
        } else if slept > self.0 {
            self.0 = (self.0 * 2).clamp(START, MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_sleeps_make_the_look_longer_and_long_ones_end_it() {
        let mut poll = Poll::new();
        [60, 150, 150].into_iter().for_each(|us| poll.slept(Duration::from_micros(us)));
        assert_eq!(poll.0, MOST);
        (0..3).for_each(|_| poll.slept(Duration::from_millis(1)));
        assert_eq!(poll.0, Duration::ZERO);
        poll.slept(Duration::from_micros(10));
        assert_eq!(poll.0, START);
    }

    #[test]
    fn a_look_ends_when_it_is_done_or_does_not_pay() {
        let mut left = 100;
        assert!(Poll(MOST).until(|| {
            left -= 1;
            left == 0
        }));
        assert!(!Poll::new().until(|| false));
    }
}
