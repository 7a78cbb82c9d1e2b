//! Raw calls that the types don't let happen: a window unmapped under its holder's feet, a claim given back twice.
//!
//! Neighbours: [`super`], whose honest calls end here too. Only scenarios, tests and drivers with a bug seeded into
//! them call this.

use super::{IoMem, IoMisuse};
use crate::addr::{PhysAddr, VirtAddr};
use crate::cpu::Cpu;
use crate::env::Class;
use crate::finding::FindingKind;

/// Unmaps a window and leaves it with its holder (`iounmap`): as often as called, but only once rightly. Process
/// context. Dropping the holder is not another call.
#[track_caller]
pub fn iounmap(cpu: &Cpu<'_>, window: &IoMem) {
    let owner = cpu.owner();
    cpu.might_sleep("iounmap");
    let _ = cpu.point_for(Class::Release, window.len, owner);
    if !window.unmap(owner) {
        let at = VirtAddr::new(window.virt.get() - window.virt.page_offset());
        warn(cpu, IoMisuse::BadUnmap { at }, vec![("mapped at", window.owner), ("unmapped at", owner)]);
    }
}

/// Gives a range back by numbers (`release_mem_region`): right or wrong, as often as called. Not in
/// handlers and softirqs: the lock that it takes is not theirs.
#[track_caller]
pub fn release_mem_region(cpu: &Cpu<'_>, at: PhysAddr, len: u64) {
    let owner = cpu.owner();
    cpu.wrong_context(!cpu.in_task(), "release_mem_region", Some("CONFIG_PROVE_LOCKING"));
    let _ = cpu.point_for(Class::Release, len, owner);
    let released = cpu.kernel().regions.lock().release(at, len);
    if !released {
        let (start, end) = (at.get(), at.get().saturating_add(len).saturating_sub(1));
        warn(cpu, IoMisuse::BadRelease { start, end }, vec![("released at", owner)]);
    }
}

/// A finding that Linux prints each time.
fn warn(cpu: &Cpu<'_>, misuse: IoMisuse, sites: Vec<(&'static str, crate::site::Owner)>) {
    cpu.kernel().log().print(cpu.now(), &misuse.to_string());
    cpu.emit(FindingKind::Io(misuse), None, sites);
}
