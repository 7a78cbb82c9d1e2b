//! A CPU's baton: of the tasks that share a CPU the one that has it runs.
//!
//! A CPU that has only its first task never looks at it. Where there are more, whoever waits gives the baton back, and
//! at some points it goes to the next in line, unless its holder is atomic. Handed on directly, so that nobody starves.
//! Neighbours: `cpu_env`, which passes points and waits; `tasks`, which starts the others.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often a waiter looks whether the world ends.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Line {
    holder: Option<usize>,
    waiting: VecDeque<usize>,
}

/// One CPU's.
#[derive(Default)]
pub(super) struct Baton {
    /// Tasks beside the first one, alive.
    others: AtomicUsize,
    /// How many wait for it.
    queued: AtomicUsize,
    line: Mutex<Line>,
    moved: Condvar,
}

impl Baton {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another task begins to share the CPU.
    pub(super) fn join(&self) {
        self.others.fetch_add(1, Ordering::SeqCst);
    }

    /// A task has ended.
    pub(super) fn leave(&self) {
        self.others.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether the CPU has more than its first task: one load.
    pub(super) fn shared(&self) -> bool {
        self.others.load(Ordering::SeqCst) > 0
    }

    /// Whether somebody waits for it: one load.
    pub(super) fn wanted(&self) -> bool {
        self.queued.load(Ordering::Relaxed) > 0
    }

    /// Takes it, once it is this actor's turn; without it if the world ends.
    pub(super) fn take(&self, actor: usize, dying: impl Fn() -> bool) {
        let mut line = self.line();
        if line.holder == Some(actor) {
            return;
        }
        if line.holder.is_none() && line.waiting.is_empty() {
            line.holder = Some(actor);
            return;
        }
        line.waiting.push_back(actor);
        self.queued.fetch_add(1, Ordering::Relaxed);
        while line.holder != Some(actor) && !dying() {
            line = self.moved.wait_timeout(line, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        if line.holder != Some(actor) {
            line.waiting.retain(|&other| other != actor);
            self.queued.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Gives it to the next in line, if this actor has it.
    pub(super) fn give(&self, actor: usize) {
        let mut line = self.line();
        if line.holder == Some(actor) {
            line.holder = line.waiting.pop_front();
            if line.holder.is_some() {
                self.queued.fetch_sub(1, Ordering::Relaxed);
                self.moved.notify_all();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn it_goes_round_in_the_order_of_asking() {
        let baton = Arc::new(Baton::default());
        baton.join();
        assert!(baton.shared() && !baton.wanted());
        baton.take(0, || false);
        let order = Arc::new(Mutex::new(Vec::new()));
        let threads: Vec<_> = (1..4)
            .map(|actor| {
                let (own, order) = (baton.clone(), order.clone());
                let thread = std::thread::spawn(move || {
                    own.take(actor, || false);
                    order.lock().unwrap().push(actor);
                    own.give(actor);
                });
                while baton.line().waiting.len() < actor {
                    std::thread::yield_now();
                }
                thread
            })
            .collect();
        assert!(baton.wanted() && order.lock().unwrap().is_empty());
        baton.give(0);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!((order.lock().unwrap().as_slice(), baton.wanted()), ([1, 2, 3].as_slice(), false));
    }

    #[test]
    fn who_dies_goes_on_without_it_and_gives_nothing_away() {
        let baton = Baton::default();
        baton.take(0, || false);
        baton.take(1, || true);
        baton.give(1);
        assert_eq!((baton.line().holder, baton.wanted()), (Some(0), false));
        assert!(!baton.shared());
    }
}
