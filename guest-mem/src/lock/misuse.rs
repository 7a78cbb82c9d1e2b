//! Unlocking by who doesn't hold the lock: what the guards' types forbid and C can do.
//!
//! The lock stays with its holder and the crime is told: on hardware two CPUs would be inside at once. Only scenarios
//! and tests call this. Neighbours: `lock`.

use super::{Core, Mutex, SpinLock};
use crate::cpu::Cpu;
use crate::finding::FindingKind;
use crate::lock::BadUnlock;

/// Gives back a spinlock that this CPU may not hold (`spin_unlock`). Any context.
#[track_caller]
pub fn spin_unlock<T>(cpu: &Cpu<'_>, lock: &SpinLock<T>) {
    unlock(cpu, &lock.0);
}

/// Gives back a mutex that this task may not hold (`mutex_unlock`). Any context.
#[track_caller]
pub fn mutex_unlock<T>(cpu: &Cpu<'_>, mutex: &Mutex<T>) {
    unlock(cpu, &mutex.0);
}

#[track_caller]
fn unlock<T>(cpu: &Cpu<'_>, core: &Core<T>) {
    let (lock, by) = (core.name, cpu.owner());
    let (bad, mut sites) = match core.holder.held() {
        None => (BadUnlock::Free { lock, cpu: cpu.id() }, Vec::new()),
        Some(_) if core.holder.is_task(cpu) => return,
        Some((owner, since)) => (BadUnlock::WrongOwner { lock, cpu: cpu.id(), owner }, vec![("held since", since)]),
    };
    sites.insert(0, ("given back at", by));
    cpu.emit(FindingKind::BadUnlock(bad), None, sites);
}
