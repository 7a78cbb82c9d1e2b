//! Who waits for what: tickets, in the order in which they were taken.
//!
//! One lock guards the table. A wake takes its CPUs off under it, and a CPU that gives up takes itself off under it, so
//! each wake-up goes to somebody who still waits, and none is lost. A CPU sees that it was woken without the lock.
//! Neighbours: `cpu_env`, the one caller.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lowzone_guest_mem::env::Key;

struct Table {
    next: u64,
    waiting: Vec<Option<(u64, Key)>>,
}

/// The waits of all CPUs.
pub(super) struct Waits {
    table: Mutex<Table>,
    /// By CPU: the number of the ticket that it waits with; 0 for none, or one that was woken.
    current: Vec<AtomicU64>,
}

impl Waits {
    /// Nobody waits, of so many CPUs and tasks, at most 128.
    pub(super) fn new(cpus: usize) -> Self {
        // Tasks that never lived are not looked at.
        let table = Table { next: 1, waiting: Vec::new() };
        let current = std::iter::repeat_with(|| AtomicU64::new(0)).take(cpus).collect();
        Self { table: Mutex::new(table), current }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces a wait; an earlier one of the same CPU is over.
    pub(super) fn prepare(&self, cpu: usize, on: Key) -> u64 {
        let mut table = self.table();
        let number = table.next;
        table.next += 1;
        if table.waiting.len() <= cpu {
            table.waiting.resize(cpu + 1, None);
        }
        table.waiting[cpu] = Some((number, on));
        self.current[cpu].store(number, Ordering::Release);
        number
    }

    /// Whether a CPU still waits with this ticket.
    pub(super) fn waits(&self, cpu: usize, number: u64) -> bool {
        self.current[cpu].load(Ordering::Acquire) == number
    }

    /// Whether a CPU waits at all.
    pub(super) fn any(&self, cpu: usize) -> bool {
        self.current[cpu].load(Ordering::Acquire) != 0
    }

    /// Gives a ticket back; `false` if it was woken before.
    pub(super) fn cancel(&self, cpu: usize, number: u64) -> bool {
        let mut table = self.table();
        let waited = table.waiting.get(cpu).is_some_and(|entry| entry.is_some_and(|(own, _)| own == number));
        if waited {
            table.waiting[cpu] = None;
            self.current[cpu].store(0, Ordering::Release);
        }
        waited
    }

    /// Wakes at most `n` waiters of `on`, the longest waiting first; a bit for each actor that was.
    pub(super) fn wake(&self, on: Key, n: usize) -> u128 {
        let mut table = self.table();
        let mut woken = 0;
        for _ in 0..n {
            let waiting = table.waiting.iter().enumerate();
            let mine = waiting.filter_map(|(cpu, entry)| entry.filter(|&(_, key)| key == on).map(|(no, _)| (no, cpu)));
            let Some((_, cpu)) = mine.min() else { break };
            table.waiting[cpu] = None;
            self.current[cpu].store(0, Ordering::Release);
            woken |= 1 << cpu;
        }
        woken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_waiting_is_woken_first_and_only_once() {
        let (waits, key, other) = (Waits::new(4), Key::fresh(), Key::fresh());
        let tickets: Vec<_> = [2, 0, 3].map(|cpu| waits.prepare(cpu, key)).into();
        waits.prepare(1, other);
        assert_eq!(waits.wake(key, 1), 1 << 2);
        assert!(!waits.waits(2, tickets[0]) && waits.waits(0, tickets[1]));
        assert!(!waits.cancel(2, tickets[0]), "it was woken: the wake-up is its own");
        assert!(waits.cancel(0, tickets[1]), "it gives up: the wake-up goes to the next");
        assert_eq!(waits.wake(key, usize::MAX), 1 << 3);
        assert_eq!((waits.wake(key, usize::MAX), waits.wake(other, 7)), (0, 1 << 1));
    }

    #[test]
    fn a_second_ticket_ends_the_first() {
        let (waits, key, other) = (Waits::new(1), Key::fresh(), Key::fresh());
        let first = waits.prepare(0, key);
        let second = waits.prepare(0, other);
        assert!(!waits.waits(0, first) && waits.waits(0, second));
        assert_eq!(waits.wake(key, 1), 0);
        assert!(waits.cancel(0, second) && !waits.any(0));
    }
}
