//! Raw calls by address, as C has them: what the types don't let happen.
//!
//! Nothing here bypasses the books. Neighbours: [`super`]. Only scenarios, tests and drivers with a bug seeded into
//! them call this.

use super::{AreaMisuse, free_at, is_vmalloc_addr, report};
use crate::addr::VirtAddr;
use crate::cpu::Cpu;
use crate::dma::DmaDevice;
use crate::dma::streaming::MapFailure;
use crate::env::Class;
use crate::finding::FindingKind;
use crate::site::Site;

/// Frees an address (`vfree`): right or wrong, as often as called; NULL is ignored. Context as [`super::vfree`].
#[track_caller]
pub fn vfree(cpu: &Cpu<'_>, at: VirtAddr) {
    let owner = cpu.owner();
    if !cpu.in_interrupt() {
        cpu.might_sleep("vfree");
    }
    if at.get() == 0 {
        return;
    }
    let _ = cpu.point_for(Class::Release, 0, owner);
    if !cpu.in_interrupt() {
        free_at(cpu.kernel(), "vfree", at, owner);
    } else {
        cpu.kernel().vmalloc.lock().defer(at, owner);
        cpu.kernel().has_chores();
    }
}

/// Unmaps an address (`vunmap`): right or wrong, as often as called; NULL is ignored. Process context only.
#[track_caller]
pub fn vunmap(cpu: &Cpu<'_>, at: VirtAddr) {
    let owner = cpu.owner();
    if cpu.in_interrupt() {
        return report(cpu.kernel(), AreaMisuse::InInterrupt { call: "vunmap" }, vec![("called at", owner)]);
    }
    cpu.might_sleep("vunmap");
    if at.get() != 0 {
        let _ = cpu.point_for(Class::Release, 0, owner);
        free_at(cpu.kernel(), "vunmap", at, owner);
    }
}

/// Hands a vmalloc address to a device (`dma_map_single`): refused and reported, printed once. Any context.
///
/// # Errors
/// [`MapFailure::Vmalloc`], always; an address of another kind is the business of [`crate::dma::misuse`].
#[track_caller]
pub fn map_single(cpu: &Cpu<'_>, device: &DmaDevice, at: VirtAddr, len: u64) -> Result<(), MapFailure> {
    let owner = cpu.owner();
    if !is_vmalloc_addr(cpu.kernel(), at) {
        return Err(MapFailure::Refused { len });
    }
    let made = cpu.kernel().vmalloc.lock().find(at).map(|(_, area)| ("allocated at", area.owner));
    let sites = [("mapped at", owner)].into_iter().chain(made).collect();
    let text = format!("{}: {}", device.name(), AreaMisuse::DmaMap);
    warn_once(cpu, text);
    cpu.emit(FindingKind::Area(AreaMisuse::DmaMap), Some(device.name().to_owned()), sites);
    Err(MapFailure::Vmalloc { len })
}

/// dev_WARN_ONCE, for the whole kernel: not tracked, so that its place is this line.
fn warn_once(cpu: &Cpu<'_>, text: String) {
    cpu.kernel().log().once(cpu.now(), Site::caller(), text);
}
