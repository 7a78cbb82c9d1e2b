//! `MemoryStore`: a store in the memory of the process, gone with it.
//!
//! Sparse: what was never written reads as zero and costs a pointer for each 64 KiB, so that a large disk is made at
//! once. What is cleared by whole chunks is given back. Neighbours: [`super::Store`].

use std::ops::Range;
use std::sync::Mutex;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::{StoreError, check_range, check_size, length};
use crate::lock;

/// Bytes that are allocated together.
const CHUNK: usize = 64 << 10;

/// A store in memory.
#[derive(Debug)]
pub struct MemoryStore {
    chunks: Mutex<Vec<Option<Box<[u8]>>>>,
    pub(super) size: u64,
}

/// The pieces of `len` bytes from `offset` on, by chunk: `(chunk, range in it, range in the access)`.
fn pieces(offset: usize, len: usize) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done;
        let start = at % CHUNK;
        let step = (CHUNK - start).min(len - done);
        let access = done..done + step;
        done += step;
        (step > 0).then_some((at / CHUNK, start..start + step, access))
    })
}

impl MemoryStore {
    /// A store of `size` zero bytes.
    ///
    /// # Errors
    /// [`StoreError::Size`] unless that is one or more whole sectors, and addressable.
    pub fn zeroed(size: u64) -> Result<Self, StoreError> {
        let size = check_size(size)?;
        let len = usize::try_from(size).map_err(|_| StoreError::Size { size })?;
        Ok(Self { chunks: Mutex::new(vec![None; len.div_ceil(CHUNK)]), size })
    }

    fn start(&self, offset: u64, len: usize) -> Result<usize, StoreError> {
        check_range(offset, len, self.size)?;
        usize::try_from(offset).map_err(|_| StoreError::Beyond { offset, len, size: self.size })
    }

    pub(super) fn read_at<B: BitmapSlice>(&self, offset: u64, to: &VolatileSlice<'_, B>) -> Result<(), StoreError> {
        static ZEROS: [u8; CHUNK] = [0; CHUNK];
        let start = self.start(offset, to.len())?;
        let chunks = lock(&self.chunks);
        for (chunk, within, access) in pieces(start, to.len()) {
            let bytes = chunks.get(chunk).and_then(Option::as_deref).unwrap_or(&ZEROS);
            to.subslice(access.start, access.len())?.copy_from(&bytes[within]);
        }
        Ok(())
    }

    pub(super) fn write_at<B: BitmapSlice>(&self, offset: u64, from: &VolatileSlice<'_, B>) -> Result<(), StoreError> {
        let start = self.start(offset, from.len())?;
        let mut chunks = lock(&self.chunks);
        for (chunk, within, access) in pieces(start, from.len()) {
            if let Some(slot) = chunks.get_mut(chunk) {
                let bytes = slot.get_or_insert_with(|| vec![0; CHUNK].into_boxed_slice());
                from.subslice(access.start, access.len())?.copy_to(&mut bytes[within]);
            }
        }
        Ok(())
    }

    pub(super) fn clear(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        let len = length(offset, len, self.size)?;
        let start = self.start(offset, len)?;
        let mut chunks = lock(&self.chunks);
        for (chunk, within, _) in pieces(start, len) {
            match chunks.get_mut(chunk) {
                Some(slot) if within.len() == CHUNK => *slot = None,
                Some(Some(bytes)) => bytes[within].fill(0),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_is_cut_at_chunks_and_nowhere_else() {
        let cut: Vec<_> = pieces(CHUNK - 3, CHUNK + 5).collect();
        assert_eq!(cut, [(0, CHUNK - 3..CHUNK, 0..3), (1, 0..CHUNK, 3..CHUNK + 3), (2, 0..2, CHUNK + 3..CHUNK + 5)]);
        assert_eq!(pieces(7, 0).count(), 0);
    }

    #[test]
    fn a_huge_store_is_made_at_once_and_holds_what_is_written_across_chunks() {
        let store = MemoryStore::zeroed(1 << 34).unwrap();
        let at = (1 << 33) - 5;
        let mut bytes: Vec<u8> = (0..200_000_u32).map(|i| i.to_le_bytes()[0] | 1).collect();
        store.write_at(at, &VolatileSlice::from(&mut bytes[..])).unwrap();
        let mut back = vec![9; bytes.len() + 2];
        store.read_at(at - 1, &VolatileSlice::from(&mut back[..])).unwrap();
        assert_eq!((back[0], &back[1..=bytes.len()], back[bytes.len() + 1]), (0, &bytes[..], 0));
    }
}
