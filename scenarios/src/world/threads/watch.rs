//! The one who looks on while a step runs: when it is over, and whether it ever will be.
//!
//! A deadlock is seen at once, as in lockstep: every CPU waits for another one, no timer and no worker is on its way,
//! twice in a row with nothing moved in between. A step in which nothing moves that a device or an interrupt would move
//! is given up after a while; it may be a loop. Neighbours: `seat`, `bell`, which are looked at; the world, which acts.

use std::time::{Duration, Instant};

use super::seat::{Seat, State};
use super::shared::Shared;

/// How often somebody looks, while nobody tells.
const TICK: Duration = Duration::from_millis(10);

/// How much more patience there is while no points are passed.
const COMPUTING: u32 = 10;

/// Why nothing more is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Over {
    /// It is done.
    Done,
    /// Everybody waits for somebody else.
    Deadlock,
    /// Nothing moved for too long.
    Hang,
    /// A worker's thread has ended: it panicked.
    NoWorker,
}

/// What has moved so far.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Moved {
    /// Device work and interrupts.
    io: u64,
    points: u64,
}

fn moved(shared: &Shared) -> Moved {
    let seats = &shared.roster.seats;
    let phases: u64 = shared.roster.bells.iter().map(|bell| bell.phases()).sum();
    let ended = seats.iter().filter(|seat| seat.exit().is_some() || seat.state() == State::Home).count();
    let irqs: u64 = seats.iter().map(Seat::irqs).sum();
    Moved { io: phases + irqs + ended as u64, points: points(shared) }
}

/// Points that all CPUs have passed.
pub(super) fn points(shared: &Shared) -> u64 {
    shared.roster.seats.iter().map(Seat::points).sum()
}

/// Whether nobody can move by himself.
fn blocked(shared: &Shared) -> bool {
    let seats = &shared.roster.seats;
    let still = |(id, seat): (usize, &Seat)| match seat.state() {
        State::Home => true,
        State::Idle => !seat.irq(),
        // Woken already, and not yet running.
        State::Waits => shared.waits.any(id),
        State::Busy => false,
    };
    let now = shared.now();
    seats.iter().enumerate().all(still)
        && shared.roster.bells.iter().all(|bell| bell.silent())
        && shared.next_timer().is_none_or(|at| at <= now)
        && shared.bus.next_late().is_none()
}

/// Waits until `done`, or until it can't come to that within `patience`; `fit` is false once a worker's thread is gone.
pub(super) fn watch(shared: &Shared, patience: Duration, done: impl Fn() -> bool, fit: impl Fn() -> bool) -> Over {
    let (mut last, mut since, mut suspected) = (Moved::default(), Instant::now(), false);
    loop {
        if shared.await_news(TICK, &done) {
            return Over::Done;
        }
        if !fit() {
            return Over::NoWorker;
        }
        let (now, stuck) = (moved(shared), blocked(shared));
        if stuck && suspected && now == last {
            return if done() { Over::Done } else { Over::Deadlock };
        }
        suspected = stuck;
        if now.io != last.io {
            since = Instant::now();
        }
        // Who passes points polls; who passes none may have much to compute, and is given more time.
        let limit = if now.points == last.points { patience.saturating_mul(COMPUTING) } else { patience };
        if since.elapsed() > limit {
            return Over::Hang;
        }
        last = now;
        // Who armed a timer takes it; if that CPU is gone, another one must look.
        if shared.next_timer().is_some_and(|at| at <= shared.now()) {
            shared.roster.seats.iter().for_each(Seat::rouse);
        }
    }
}
