//! `kmem-cache`: a driver's own cache, from its layout to its end.
//!
//! The mistakes: the cache is destroyed while an object is out, and an object is given to another cache.

use std::sync::Arc;

use lowzone_guest_mem::gfp::{GFP_ATOMIC, GFP_KERNEL};
use lowzone_guest_mem::kmem_cache::{Construct, Ctor, SlabFlags, kmem_cache_create};

use super::{StoryError, Telling};

const READY: u8 = 0xc0;

/// Tells it.
pub(super) fn tell(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let plain = kmem_cache_create(cpu, "request", 100, 0, SlabFlags::empty(), None)?;
    let lined = kmem_cache_create(cpu, "request_lined", 100, 0, SlabFlags::HWCACHE_ALIGN, None)?;
    for (cache, stride) in [(&plain, 104), (&lined, 128)] {
        let geometry = cache.geometry();
        telling.expect(format_args!("{}: bytes from object to object", cache.name()), stride, geometry.size)?;
        telling.fact(format_args!("{}: objects a slab", cache.name()), geometry.shape.objects);
    }
    let ready: Ctor = Arc::new(|object: &mut Construct<'_>| object.write_at(0, &[READY]));
    let made = kmem_cache_create(cpu, "request_made", 256, 0, SlabFlags::empty(), Some(ready))?;
    let object = made.alloc(cpu, GFP_KERNEL)?;
    let mut byte = [0];
    object.read_at(0, &mut byte)?;
    telling.expect("what the constructor wrote is there", READY, byte[0])?;
    made.free(cpu, object);

    let batch = plain.alloc_bulk(cpu, GFP_ATOMIC, 16)?;
    let active = || plain.stats().map_or(0, |stats| stats.active);
    telling.expect("objects out after a bulk of 16", 16, active())?;
    plain.free_bulk(cpu, batch);
    telling.expect("and after they are back", 0, active())?;
    telling.expect("slabs are left after a shrink", false, plain.shrink(cpu))?;

    let last = plain.alloc(cpu, GFP_KERNEL)?;
    if telling.makes("wrong-cache") {
        lined.free(cpu, last);
    } else if telling.makes("destroy-busy") {
        plain.destroy(cpu);
        drop(last);
        return Ok(());
    } else {
        plain.free(cpu, last);
    }
    for cache in [plain, lined, made] {
        cache.destroy(cpu);
    }
    telling.expect(
        "a name can be used again",
        true,
        kmem_cache_create(cpu, "request", 100, 0, SlabFlags::empty(), None).is_ok(),
    )
}
