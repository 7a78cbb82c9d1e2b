//! The capability list: laid out once, from offset 0x40 on, each entry linked to the next.
//!
//! Neighbour: [`crate::pci::config`], which takes the finished list. Mirrors PCI 3.0 section 6.7 and appendix H,
//! and for the vendor entries virtio 1.2 section 4.1.4. Left out: extended capabilities.

use thiserror::Error;

/// Where the list may begin: the end of the type-0 header.
pub const FIRST: usize = 0x40;
/// Where config space ends.
pub const END: usize = 0x100;

/// Capability id of MSI.
pub const MSI: u8 = 0x05;
/// Capability id of vendor-specific entries, virtio's own.
pub const VENDOR: u8 = 0x09;
/// Capability id of MSI-X.
pub const MSIX: u8 = 0x11;

/// A list that can't be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CapsError {
    /// Config space is full.
    #[error("capability {id:#04x} of {len} bytes does not fit at {at:#x}")]
    Full {
        /// The capability.
        id: u8,
        /// Its length with the two bytes of its head.
        len: usize,
        /// Where it would have to lie.
        at: usize,
    },
    /// The mask is not as long as the body.
    #[error("capability {id:#04x}: a body of {body} bytes with a mask of {mask}")]
    Mask {
        /// The capability.
        id: u8,
        /// Bytes of the body.
        body: usize,
        /// Bytes of the mask.
        mask: usize,
    },
}

/// A capability list under construction.
#[derive(Debug, Clone)]
pub struct CapabilityList {
    bytes: [u8; END],
    mask: [u8; END],
    next: usize,
    link: Option<usize>,
    first: u8,
}

impl Default for CapabilityList {
    fn default() -> Self {
        Self { bytes: [0; END], mask: [0; END], next: FIRST, link: None, first: 0 }
    }
}

impl CapabilityList {
    /// Appends a capability: `body` is what follows id and link, bits set in `writable` can be written. Returns
    /// its offset in config space.
    ///
    /// # Errors
    /// [`CapsError::Full`] if config space has no room left, [`CapsError::Mask`] if the lengths differ.
    ///
    /// ```
    /// use lowzone_device::pci::caps::{CapabilityList, VENDOR};
    /// let mut list = CapabilityList::default();
    /// assert_eq!(list.push(VENDOR, &[16, 1], &[0, 0]), Ok(0x40));
    /// assert_eq!(list.push(VENDOR, &[16, 2], &[0, 0]), Ok(0x44));
    /// ```
    pub fn push(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u8, CapsError> {
        let at = self.next;
        let len = body.len() + 2;
        if body.len() != writable.len() {
            return Err(CapsError::Mask { id, body: body.len(), mask: writable.len() });
        }
        let full = CapsError::Full { id, len, at };
        let offset = u8::try_from(at).map_err(|_| full)?;
        if END - at < len {
            return Err(full);
        }
        self.bytes[at] = id;
        self.bytes[at + 2..at + len].copy_from_slice(body);
        self.mask[at + 2..at + len].copy_from_slice(writable);
        match self.link {
            Some(link) => self.bytes[link] = offset,
            None => self.first = offset,
        }
        self.link = Some(at + 1);
        self.next = (at + len).next_multiple_of(4);
        Ok(offset)
    }

    /// The offset of the first capability, zero if there is none.
    pub fn first(&self) -> u8 {
        self.first
    }

    /// Copies the list into config space and its write mask.
    pub(crate) fn install(&self, bytes: &mut [u8; END], mask: &mut [u8; END]) {
        bytes[FIRST..].copy_from_slice(&self.bytes[FIRST..]);
        mask[FIRST..].copy_from_slice(&self.mask[FIRST..]);
    }
}

/// The body of a virtio vendor capability (virtio 1.2, 4.1.4): structure `cfg_type` at `offset` in `bar`.
pub fn virtio_body(cfg_type: u8, bar: u8, offset: u32, length: u32) -> [u8; 14] {
    let mut body = [0; 14];
    body[0] = 16;
    body[1] = cfg_type;
    body[2] = bar;
    body[6..10].copy_from_slice(&offset.to_le_bytes());
    body[10..14].copy_from_slice(&length.to_le_bytes());
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_linked_and_the_last_link_is_zero() {
        let mut list = CapabilityList::default();
        let first = list.push(VENDOR, &virtio_body(1, 0, 0x100, 56), &[0; 14]).unwrap();
        let second = list.push(MSIX, &[3, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[0; 10]).unwrap();
        let (mut bytes, mut mask) = ([0u8; END], [0u8; END]);
        list.install(&mut bytes, &mut mask);
        assert_eq!((list.first(), first, second), (0x40, 0x40, 0x50));
        assert_eq!(bytes[0x40..0x50], [9, 0x50, 16, 1, 0, 0, 0, 0, 0, 1, 0, 0, 56, 0, 0, 0]);
        assert_eq!(bytes[0x50..0x54], [0x11, 0, 3, 0]);
    }

    #[test]
    fn a_full_list_refuses_and_stays_as_it_was() {
        let mut list = CapabilityList::default();
        assert!(list.push(VENDOR, &[0; 150], &[0; 150]).is_ok());
        assert_eq!(list.push(VENDOR, &[0; 60], &[0; 60]), Err(CapsError::Full { id: 9, len: 62, at: 0xd8 }));
        assert!(list.push(VENDOR, &[0; 38], &[0; 38]).is_ok());
        assert_eq!(list.push(VENDOR, &[], &[]), Err(CapsError::Full { id: 9, len: 2, at: 0x100 }));
        assert_eq!(list.push(VENDOR, &[1], &[]), Err(CapsError::Mask { id: 9, body: 1, mask: 0 }));
    }
}
