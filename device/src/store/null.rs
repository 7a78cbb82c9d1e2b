//! `NullStore`: a store that holds nothing, for measuring what everything else costs.
//!
//! Neighbours: [`super::Store`]. Left out: any kind of data.

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::{StoreError, check_range, check_size, length};

/// Bytes of zeroes that are copied at a time.
const CHUNK: usize = 16 << 10;

/// A store that reads as zeroes and drops what is written.
#[derive(Debug)]
pub struct NullStore {
    pub(super) size: u64,
}

impl NullStore {
    /// A store that claims to have `size` bytes.
    ///
    /// # Errors
    /// [`StoreError::Size`] unless that is one or more whole sectors.
    ///
    /// ```
    /// use lowzone_device::store::{NullStore, Store};
    ///
    /// assert_eq!(Store::Null(NullStore::new(1 << 40)?).capacity(), 1 << 40);
    /// assert!(NullStore::new(511).is_err());
    /// # Ok::<(), lowzone_device::store::StoreError>(())
    /// ```
    pub fn new(size: u64) -> Result<Self, StoreError> {
        check_size(size).map(|size| Self { size })
    }

    pub(super) fn read_at<B: BitmapSlice>(&self, offset: u64, to: &VolatileSlice<'_, B>) -> Result<(), StoreError> {
        static ZEROES: [u8; CHUNK] = [0; CHUNK];
        check_range(offset, to.len(), self.size)?;
        let mut done = 0;
        while done < to.len() {
            let step = (to.len() - done).min(CHUNK);
            to.subslice(done, step)?.copy_from(&ZEROES[..step]);
            done += step;
        }
        Ok(())
    }

    pub(super) fn write_at<B: BitmapSlice>(&self, offset: u64, from: &VolatileSlice<'_, B>) -> Result<(), StoreError> {
        check_range(offset, from.len(), self.size)
    }

    pub(super) fn clear(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        check_range(offset, length(offset, len, self.size)?, self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_zeroes_whatever_was_written_and_ends_where_it_says() {
        let store = NullStore::new(1 << 20).unwrap();
        let mut bytes = vec![7; CHUNK * 2 + 5];
        let len = bytes.len();
        store.write_at(0, &VolatileSlice::from(&mut bytes[..])).unwrap();
        store.read_at(3, &VolatileSlice::from(&mut bytes[..len - 1])).unwrap();
        assert!(bytes[..len - 1].iter().all(|byte| *byte == 0) && bytes[len - 1] == 7);
        let beyond = store.write_at((1 << 20) - 1, &VolatileSlice::from(&mut bytes[..2]));
        assert!(matches!(beyond, Err(StoreError::Beyond { .. })));
    }
}
