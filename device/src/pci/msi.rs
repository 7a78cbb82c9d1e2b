//! MSI: one message, kept in config space itself.
//!
//! Neighbours: [`super::endpoint`], which sends it; [`super::msix`] has the message type. Mirrors PCI 3.0 section
//! 6.8.1 (PCI Express 5.0 section 7.7.1), with 64-bit addresses. Left out: several vectors, per-vector masking.

use super::caps::{self, CapabilityList, CapsError};
use super::config::ConfigSpace;
use super::msix::{Message, join};

const ENABLE: u16 = 1;
const WIDE: u16 = 1 << 7;
/// After id and link: control, both halves of the address, data.
const BODY: usize = 12;

/// The capability of one function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msi {
    at: u8,
}

impl Msi {
    /// Appends the capability to a list.
    ///
    /// # Errors
    /// [`CapsError::Full`] if config space has no room left.
    pub fn push(list: &mut CapabilityList) -> Result<Self, CapsError> {
        let (mut body, mut writable) = ([0; BODY], [0xff; BODY]);
        body[..2].copy_from_slice(&WIDE.to_le_bytes());
        writable[..2].copy_from_slice(&ENABLE.to_le_bytes());
        // A message is an aligned dword.
        writable[2] = 0xfc;
        Ok(Self { at: list.push(caps::MSI, &body, &writable)? })
    }

    /// The message to send now; `None` while the driver has not turned it on.
    pub fn message(&self, config: &ConfigSpace) -> Option<Message> {
        if config.word(self.at + 2) & ENABLE == 0 {
            return None;
        }
        let addr = join([config.dword(self.at + 4), config.dword(self.at + 8)]);
        Some(Message { vector: 0, addr, data: u32::from(config.word(self.at + 12)) })
    }
}
