//! `pci_reset_function`: a function back to power-on, with its place on the bus and its MSI restored.
//!
//! For a device that has no reset register of its own. Mirrors drivers/pci/pci.c (`pci_save_state`,
//! `pci_restore_state`). Left out: MSI-X, which is off afterwards; waiting for a slow device.

use lowzone_guest_mem::iospace::Width;

use super::msi::CAP_MSI;
use super::{PciDevice, PciError};

/// The header's registers from the last to the command register, so that decoding comes back last.
const HEADER: [u16; 9] = [0x3c, 0x24, 0x20, 0x1c, 0x18, 0x14, 0x10, 0x0c, 0x04];

impl PciDevice {
    /// Resets the function and puts back what enumeration and the driver had set up. When it returns, nothing that
    /// was started before touches memory any more, if the bus can reset it. Any context.
    ///
    /// # Errors
    /// [`PciError::Gone`] if nobody answers at its place.
    pub fn reset(&self) -> Result<(), PciError> {
        if self.config_read(0, Width::B2) == 0xffff {
            return Err(PciError::Gone { at: self.at });
        }
        let msi = self.find_capability(CAP_MSI).ok();
        // Address and data before the control word in the same register as the id, which turns it on.
        let msi = msi.into_iter().flat_map(|cap| [cap + 12, cap + 8, cap + 4, cap]);
        let saved = msi.chain(HEADER).map(|at| (at, self.config_read(at, Width::B4)));
        let saved: Vec<_> = saved.collect();
        self.bus.reset(self.at);
        for (at, value) in saved {
            self.config_write(at, Width::B4, value);
        }
        Ok(())
    }
}
