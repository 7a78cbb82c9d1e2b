//! `sanitizers`: what lies around an object on a machine that watches, and what each watch finds.
//!
//! The mistakes: a byte written behind the object, one written into it after it was freed, and objects that nobody frees.
//! None is noticed at once: the first when the object is freed, the second when it leaves the quarantine, the third at
//! the end.

use lowzone_guest_mem::PhysAddr;
use lowzone_guest_mem::dma::misuse;
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::kmalloc::{kfree, kmalloc};
use lowzone_guest_mem::kmem_cache::{SlabFlags, kmem_cache_create};

use super::{StoryError, Telling};

/// The mistakes.
pub(super) const MISTAKES: &[&str] = &["overflow", "use-after-free", "forgotten"];

/// Tells it.
pub(super) fn tell(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let byte_at = |at: PhysAddr| {
        let mut byte = [0];
        cpu.kernel().ram().read(at, &mut byte).map(|()| format!("{:02x}", byte[0]))
    };
    let cache = kmem_cache_create(cpu, "watched", 64, 0, SlabFlags::DEBUG, None)?;
    let object = cache.alloc(cpu, GFP_KERNEL)?;
    let at = object.phys();
    telling.expect("64 bytes take", 160, cache.geometry().size)?;
    telling.expect("a fresh object begins with", "6b", byte_at(at)?)?;
    telling.expect("and ends with", "a5", byte_at(at.wrapping_add(63))?)?;
    telling.expect("behind it lies", "cc", byte_at(at.wrapping_add(64))?)?;
    cache.free(cpu, object);
    cache.destroy(cpu);

    let buf = kmalloc(cpu, 64, GFP_KERNEL)?;
    let at = buf.phys();
    if telling.makes("overflow") {
        misuse::scribble(cpu, at.wrapping_add(64), &[0x41]);
    }
    kfree(buf);
    if telling.makes("use-after-free") {
        misuse::scribble(cpu, at.wrapping_add(8), &[0x42]);
    }
    for _ in 0..if telling.makes("forgotten") { 3 } else { 0 } {
        std::mem::forget(kmalloc(cpu, 100, GFP_KERNEL)?);
    }
    telling.expect("what was freed last is held back", true, kmalloc(cpu, 64, GFP_KERNEL)?.phys() != at)
}
