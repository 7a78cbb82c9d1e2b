//! `kmalloc`: what each size really gets, what a `krealloc` keeps, and what can't be had.
//!
//! The mistake: a buffer is freed twice. Linux's list then hands one object out to two holders; here it is a finding.

use lowzone_guest_mem::KBuf;
use lowzone_guest_mem::dma::misuse;
use lowzone_guest_mem::gfp::{__GFP_NOWARN, GFP_DMA, GFP_KERNEL};
use lowzone_guest_mem::kmalloc::{
    KMALLOC_MAX_SIZE, ZERO_SIZE_PTR, kcalloc, kfree_sensitive, kmalloc, kmalloc_size_roundup, kmemdup, krealloc, ksize,
    kzalloc,
};

use super::{StoryError, Telling};

/// Tells it.
pub(super) fn tell(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    for (size, gets) in [(1, 8), (65, 96), (100, 128), (129, 192), (8192, 8192), (8193, 16384), (12289, 16384)] {
        let buf = kmalloc(cpu, size, GFP_KERNEL)?;
        telling.expect(format_args!("ksize(kmalloc({size}))"), gets, ksize(&buf))?;
        telling.expect(format_args!("kmalloc_size_roundup({size})"), gets, kmalloc_size_roundup(size))?;
    }
    let cache_of = |buf: &KBuf| cpu.kernel().object_at(buf.phys()).and_then(|object| object.cache).unwrap_or("pages");
    let dma = kmalloc(cpu, 1000, GFP_KERNEL | GFP_DMA)?;
    telling.expect("kmalloc(1000, GFP_KERNEL|GFP_DMA) is from", "dma-kmalloc-1k", cache_of(&dma))?;
    telling.expect("kmalloc(8193) is from", "pages", cache_of(&kmalloc(cpu, 8193, GFP_KERNEL)?))?;
    let nothing = kmalloc(cpu, 0, GFP_KERNEL)?;
    telling.expect("kmalloc(0) is ZERO_SIZE_PTR", true, nothing.virt() == ZERO_SIZE_PTR)?;
    let most = kmalloc(cpu, KMALLOC_MAX_SIZE + 1, GFP_KERNEL | __GFP_NOWARN);
    telling.expect(
        "kmalloc(4 MiB + 1)",
        "order 11 is above 10",
        most.map_or_else(|e| e.to_string(), |_| "memory".into()),
    )?;
    telling.expect("kcalloc(2^63, 3) is refused", true, kcalloc(cpu, 1 << 63, 3, GFP_KERNEL).is_err())?;

    let buf = kmemdup(cpu, b"a driver's state, forty bytes of it here", GFP_KERNEL)?;
    let at = buf.phys();
    let buf = krealloc(cpu, Some(buf), 64, GFP_KERNEL)?;
    telling.expect("krealloc from 40 to 64 bytes stays", true, buf.phys() == at)?;
    let buf = krealloc(cpu, Some(buf), 65, GFP_KERNEL)?;
    telling.expect("krealloc to 65 bytes moves", true, buf.phys() != at)?;
    let mut bytes = [0; 8];
    buf.read_at(0, &mut bytes)?;
    telling.expect("what it held", "a driver", String::from_utf8_lossy(&bytes))?;
    let at = buf.phys();
    let buf = krealloc(cpu, Some(buf), 10, GFP_KERNEL)?;
    telling.expect("krealloc to 10 bytes keeps the object", 96, if buf.phys() == at { ksize(&buf) } else { 0 })?;
    kfree_sensitive(buf);

    let last = kzalloc(cpu, 64, GFP_KERNEL)?;
    if telling.makes("double-free") {
        misuse::free_buffer(cpu, &last);
    }
    drop(last);
    Ok(())
}
