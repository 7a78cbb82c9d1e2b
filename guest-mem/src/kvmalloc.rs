//! `kvmalloc`: kmalloc where it can be had, vmalloc where it can't.
//!
//! For buffers that only the CPU reads and that may be large: physically contiguous memory is tried first, without
//! effort beyond one page, and virtually contiguous memory is the fallback, for masks that may sleep. Whoever gives
//! such a buffer to a device is right on most days and wrong on a fragmented machine.
//!
//! Mirrors `kvmalloc_node` of mm/util.c. Neighbours: `kbuf`, `vmalloc`. Left out: `kvrealloc`.

use thiserror::Error;

use crate::addr::{PAGE_SIZE, VirtAddr};
use crate::cpu::Cpu;
use crate::gfp::Gfp;
use crate::kbuf::{KBuf, OutOfBounds};
use crate::vmalloc::{__vmalloc, VBuf, VmallocError, vfree};
use crate::zone::AllocError;

/// Why there is no memory (Linux's NULL).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum KvmallocError {
    /// kmalloc failed, and vmalloc was not tried: at most a page was asked for, or the mask may not sleep.
    #[error(transparent)]
    Kmalloc(#[from] AllocError),
    /// vmalloc failed too.
    #[error(transparent)]
    Vmalloc(#[from] VmallocError),
    /// More than 2 GiB: a size that only a bug asks for.
    #[error("kvmalloc of {size} bytes")]
    Crazy {
        /// The size.
        size: usize,
    },
    /// The product of count and size is no number.
    #[error("kvmalloc of {count} times {size} bytes")]
    Overflow {
        /// How many.
        count: usize,
        /// Bytes of each.
        size: usize,
    },
}

/// Memory from [`kvmalloc`]; freed when dropped.
#[must_use = "the memory is freed when this is dropped"]
#[derive(Debug)]
pub enum KvBuf {
    /// Physically contiguous.
    Kmalloc(KBuf),
    /// Virtually contiguous only.
    Vmalloc(VBuf),
}

/// Allocates `len` bytes (`kvmalloc`). With a mask that may sleep: process context only; else any, kmalloc alone.
///
/// ```
/// # use lowzone_guest_mem::Cpu;
/// use lowzone_guest_mem::gfp::GFP_KERNEL;
/// use lowzone_guest_mem::kvmalloc::{KvBuf, kvfree, kvmalloc};
///
/// fn table(cpu: &Cpu<'_>) {
///     let table = kvmalloc(cpu, 5 << 20, GFP_KERNEL).unwrap();
///     assert!(matches!(table, KvBuf::Vmalloc(_)), "kmalloc ends at 4 MiB");
///     kvfree(cpu, table);
/// }
/// ```
///
/// # Errors
/// [`KvmallocError`].
#[track_caller]
pub fn kvmalloc(cpu: &Cpu<'_>, len: usize, gfp: Gfp) -> Result<KvBuf, KvmallocError> {
    let small = len as u64 <= PAGE_SIZE;
    let mut first = gfp;
    if !small {
        first |= Gfp::NOWARN;
        first.set(Gfp::NORETRY, gfp.contains(Gfp::NORETRY) || !gfp.contains(Gfp::RETRY_MAYFAIL));
        // Never to fail is what the fallback sees to.
        first.remove(Gfp::NOFAIL);
    }
    let error = match KBuf::kmalloc(cpu, len, first) {
        Ok(buf) => return Ok(KvBuf::Kmalloc(buf)),
        Err(error) => error,
    };
    if small || !gfp.may_sleep() {
        return Err(error.into());
    }
    if i32::try_from(len).is_err() {
        return Err(KvmallocError::Crazy { size: len });
    }
    Ok(KvBuf::Vmalloc(__vmalloc(cpu, len, gfp)?))
}

/// [`kvmalloc`], zeroed (`kvzalloc`). Context as [`kvmalloc`].
///
/// # Errors
/// [`KvmallocError`].
#[track_caller]
pub fn kvzalloc(cpu: &Cpu<'_>, len: usize, gfp: Gfp) -> Result<KvBuf, KvmallocError> {
    kvmalloc(cpu, len, gfp | Gfp::ZERO)
}

/// [`kvmalloc`] of `count` elements (`kvmalloc_array`). Context as [`kvmalloc`].
///
/// # Errors
/// [`KvmallocError::Overflow`] where the product is none, else as [`kvmalloc`].
#[track_caller]
pub fn kvmalloc_array(cpu: &Cpu<'_>, count: usize, size: usize, gfp: Gfp) -> Result<KvBuf, KvmallocError> {
    let len = count.checked_mul(size).ok_or(KvmallocError::Overflow { count, size })?;
    kvmalloc(cpu, len, gfp)
}

/// Frees memory of either kind (`kvfree`). Of vmalloc's: process context, for of the two kinds one may sleep.
#[track_caller]
pub fn kvfree(cpu: &Cpu<'_>, buf: KvBuf) {
    match buf {
        KvBuf::Kmalloc(buf) => drop(buf),
        KvBuf::Vmalloc(buf) => vfree(cpu, buf),
    }
}

impl KvBuf {
    /// How many bytes were asked for.
    pub fn len(&self) -> usize {
        match self {
            Self::Kmalloc(buf) => buf.len(),
            Self::Vmalloc(buf) => buf.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the driver's pointer would hold; [`crate::vmalloc::is_vmalloc_addr`] tells of which kind it is.
    pub fn virt(&self) -> VirtAddr {
        match self {
            Self::Kmalloc(buf) => buf.virt(),
            Self::Vmalloc(buf) => buf.virt(),
        }
    }

    /// Copies bytes out of it. Any context.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    #[track_caller]
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<(), OutOfBounds> {
        match self {
            Self::Kmalloc(buf) => buf.read_at(offset, to),
            Self::Vmalloc(buf) => buf.read_at(offset, to),
        }
    }

    /// Copies bytes into it. Any context.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    #[track_caller]
    pub fn write_at(&mut self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        match self {
            Self::Kmalloc(buf) => buf.write_at(offset, from),
            Self::Vmalloc(buf) => buf.write_at(offset, from),
        }
    }
}

#[cfg(test)]
mod tests;
