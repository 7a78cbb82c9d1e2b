//! The `kmalloc` family: bytes of any size, by their C names.
//!
//! Each gives a [`KBuf`], which frees itself; [`kfree`] only says so. What a request really gets, where it lies and what
//! happens when it can't be had is the same for all of them: [`KBuf::kmalloc`].
//!
//! Mirrors `include/linux/slab.h` and `mm/slab_common.c` of 6.1. Neighbours: `slab` holds the caches, `object` is the door
//! to them, `kmem_cache` has a driver's own. Left out: nodes (`kmalloc_node`), `kvmalloc`, strings (`kstrdup`).

use thiserror::Error;

use crate::cpu::Cpu;
use crate::gfp::{__GFP_ZERO, Gfp};
use crate::kbuf::KBuf;
use crate::slab::get_order;
use crate::zone::AllocError;

pub(crate) mod object;
#[cfg(test)]
mod property;
pub(crate) mod report;
#[cfg(test)]
mod tests;

pub use crate::slab::{KMALLOC_MAX_CACHE_SIZE, KMALLOC_MAX_SIZE, ZERO_SIZE_PTR, kmalloc_size_roundup};

/// The most bytes that *Linux Device Drivers* calls portable; today's limit is [`KMALLOC_MAX_SIZE`].
pub const PORTABLE_SIZE: usize = 128 << 10;

/// A buffer that could not be resized, and is as it was.
#[derive(Debug, Error)]
#[error("{error}")]
pub struct KreallocFailure {
    /// The buffer, unchanged; `None` if there was none.
    pub buf: Option<KBuf>,
    /// Why.
    pub error: AllocError,
}

/// Allocates `size` bytes (`kmalloc`). With a mask that may sleep: process context only.
///
/// # Errors
/// As [`KBuf::kmalloc`].
#[track_caller]
pub fn kmalloc(cpu: &Cpu<'_>, size: usize, gfp: Gfp) -> Result<KBuf, AllocError> {
    KBuf::kmalloc(cpu, size, gfp)
}

/// Allocates `size` bytes of zeros (`kzalloc`). Context as [`kmalloc`].
///
/// # Errors
/// As [`KBuf::kmalloc`].
#[track_caller]
pub fn kzalloc(cpu: &Cpu<'_>, size: usize, gfp: Gfp) -> Result<KBuf, AllocError> {
    KBuf::kmalloc(cpu, size, gfp | __GFP_ZERO)
}

/// Allocates an array of `n` times `size` bytes (`kmalloc_array`). Context as [`kmalloc`].
///
/// # Errors
/// [`AllocError::TooLarge`] if the product is no number, before anything is asked; else as [`KBuf::kmalloc`].
#[track_caller]
pub fn kmalloc_array(cpu: &Cpu<'_>, n: usize, size: usize, gfp: Gfp) -> Result<KBuf, AllocError> {
    let bytes = n.checked_mul(size).ok_or(AllocError::TooLarge { order: get_order(u64::MAX) })?;
    KBuf::kmalloc(cpu, bytes, gfp)
}

/// Allocates an array of zeros (`kcalloc`). Context as [`kmalloc`].
///
/// # Errors
/// As [`kmalloc_array`].
#[track_caller]
pub fn kcalloc(cpu: &Cpu<'_>, n: usize, size: usize, gfp: Gfp) -> Result<KBuf, AllocError> {
    kmalloc_array(cpu, n, size, gfp | __GFP_ZERO)
}

/// Allocates a copy of some bytes (`kmemdup`). Context as [`kmalloc`].
///
/// # Errors
/// As [`KBuf::kmalloc`].
#[track_caller]
pub fn kmemdup(cpu: &Cpu<'_>, from: &[u8], gfp: Gfp) -> Result<KBuf, AllocError> {
    let mut buf = KBuf::kmalloc(cpu, from.len(), gfp)?;
    // As long as what it holds.
    let _ = buf.write_at(0, from);
    Ok(buf)
}

/// Changes a buffer's size and keeps its bytes (`krealloc`). Context as [`kmalloc`].
///
/// The buffer stays where it is while the object it has is large enough, so it never becomes less memory; else it moves.
/// To 0 it is freed and becomes [`ZERO_SIZE_PTR`]; from nothing it is a `kmalloc`.
///
/// # Errors
/// [`KreallocFailure`] gives the buffer back as it was: in C the old pointer is still good, and `p = krealloc(p, …)` leaks.
#[track_caller]
pub fn krealloc(cpu: &Cpu<'_>, buf: Option<KBuf>, size: usize, gfp: Gfp) -> Result<KBuf, KreallocFailure> {
    let Some(buf) = buf else {
        return KBuf::kmalloc(cpu, size, gfp).map_err(|error| KreallocFailure { buf: None, error });
    };
    if size > 0 && ksize(&buf) >= size {
        return Ok(buf.resized(size));
    }
    let mut larger = match KBuf::kmalloc(cpu, size, gfp) {
        Ok(larger) => larger,
        Err(error) => return Err(KreallocFailure { buf: Some(buf), error }),
    };
    let mut bytes = vec![0; buf.len().min(size)];
    // Both are at least as long.
    let _ = buf.read_at(0, &mut bytes);
    let _ = larger.write_at(0, &bytes);
    Ok(larger)
}

/// Frees a buffer (`kfree`). Any context.
pub fn kfree(buf: KBuf) {
    drop(buf);
}

/// Overwrites all that a buffer's object holds with zeros, then frees it (`kfree_sensitive`). Any context.
pub fn kfree_sensitive(buf: KBuf) {
    let usable = ksize(&buf);
    let mut buf = buf.resized(usable);
    let zeros = [0; 256];
    for at in (0..usable).step_by(zeros.len()) {
        let _ = buf.write_at(at, &zeros[..zeros.len().min(usable - at)]);
    }
}

/// The bytes that a buffer's object holds (`ksize`); 0 for [`ZERO_SIZE_PTR`]. Any context.
///
/// Not a licence to use them: since 6.1 what lies beyond the size asked for belongs to the allocator. Ask for
/// [`kmalloc_size_roundup`] bytes instead.
pub fn ksize(buf: &KBuf) -> usize {
    buf.usable()
}
