//! Bouncing: the copy of a buffer that the device is given in the pool, when it is made and what is said if it can't be.
//!
//! Every map copies in, whatever the direction and attributes, so that a device which writes less than it was given
//! leaves the driver's own old bytes and never somebody else's. Mirrors `swiotlb_map` and its like in
//! kernel/dma/swiotlb.c. Neighbours: `raw` decides who bounces, [`crate::dma::swiotlb`] which slots. The RAM behind a
//! buffer is copied by physical address: pages of high memory need no kmap here, which Linux makes page by page.

use super::MapFailure;
use super::raw::{Piece, Placed, Terms};
use crate::addr::PhysAddr;
use crate::cpu::Cpu;
use crate::dma::attrs::Attrs;
use crate::dma::device::DmaDevice;
use crate::dma::swiotlb::{SLOT_SIZE, SwiotlbError};
use crate::env::{Class, Verdict};
use crate::kernel::Kernel;
use crate::refusal::{Refusal, Refused};
use crate::site::{Owner, Site};
use crate::trace::{Kind, owner_word};

impl DmaDevice {
    /// Takes slots for a piece and copies it in (`swiotlb_map`).
    pub(super) fn place_in_pool(
        &self,
        cpu: &Cpu<'_>,
        piece: Piece,
        terms: Terms,
        owner: Owner,
    ) -> Result<Placed, MapFailure> {
        let Piece { orig, len, .. } = piece;
        let (size, kernel, mask) = (usize::try_from(len).unwrap_or(usize::MAX), cpu.kernel(), self.mask());
        cpu.trace(Kind::SwiotlbBounced, orig.get(), size, self.index(), owner_word(owner));
        if cpu.point_for(Class::SwiotlbSlot, len, owner) == Verdict::Fail {
            return Err(MapFailure::Refused { len });
        }
        let slot = match kernel.swiotlb.lock().as_mut() {
            Some(pool) => pool.map(cpu.id(), orig, size, self.constraints()),
            None => {
                let addr = self.bus_address(orig);
                return Err(MapFailure::Overflow { what: "DMA addr", addr, len, mask });
            }
        };
        let slot = slot.inspect_err(|error| {
            if !terms.attrs.contains(Attrs::NO_WARN) {
                warn_full(kernel, self, *error);
            }
            self.book_refusal(cpu, *error, owner);
        })?;
        let bounce = self.bus_address(slot.phys);
        if !Self::capable(bounce, len, mask) {
            release_slots(kernel, slot.phys, len);
            let overflow = MapFailure::Overflow { what: "swiotlb addr", addr: bounce, len, mask };
            return Err(warn_pool_beyond(kernel, self, overflow));
        }
        // Both lie in RAM: one is the caller's buffer, the other the pool.
        let copies = !planted!(NoCopyIn);
        #[cfg(lowzone_mutants)]
        let copies = copies && !(leaks() && terms.dir == crate::dma::direction::Dir::FromDevice);
        if copies {
            let _ = kernel.ram().copy(orig, slot.phys, size);
        }
        let mut counters = self.state.counters.lock();
        counters.bounces += 1;
        counters.bounced_bytes += len;
        counters.bounced_slots += u64::from(slot.count);
        Ok(Placed { phys: slot.phys, dma: bounce, bounced: true })
    }

    /// The pool had no room.
    fn book_refusal(&self, cpu: &Cpu<'_>, error: SwiotlbError, owner: Owner) {
        let (SwiotlbError::Full { size, total, used } | SwiotlbError::TooLarge { size, total, used }) = error else {
            return;
        };
        let refusal = Refusal::Slots { bytes: size, wanted: size.div_ceil(SLOT_SIZE), total, used };
        let device = Some(self.name().to_owned());
        cpu.kernel().refusals.book(Refused { at: cpu.now(), owner, device, refusal });
    }

    /// Copies between a place in the bounce pool and what it stands for, no more than was mapped there; how much it was.
    pub(super) fn bounce(&self, kernel: &Kernel, bounce: PhysAddr, len: u64, to_cpu: bool) -> u64 {
        let origin = kernel.swiotlb.lock().as_ref().and_then(|pool| pool.lookup(bounce));
        let Some(origin) = origin else { return 0 };
        let len = origin.fits(len).unwrap_or_else(|error| {
            warn_too_long(kernel, self, error);
            origin.remaining
        });
        let len = if planted!(CopyLong) { len + 1 } else { len - u64::from(planted!(CopyShort)) };
        let (from, to) = if to_cpu { (bounce, origin.orig) } else { (origin.orig, bounce) };
        // Both lie in RAM: one is the caller's buffer, the other the pool.
        let _ = kernel.ram().copy(from, to, usize::try_from(len).unwrap_or(0));
        self.state.counters.lock().bounced_bytes += len;
        len
    }
}

/// Whether the seeded bug is in by which a slot for the device to write into begins with what was in it before: which one
/// is said by the environment, as to the drivers (`swiotlb-info-leak`).
#[cfg(lowzone_mutants)]
fn leaks() -> bool {
    static CHOSEN: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *CHOSEN.get_or_init(|| std::env::var("LOWZONE_MUTANT").is_ok_and(|name| name == "swiotlb-info-leak"))
}

/// Gives a mapping's slots back.
pub(super) fn release_slots(kernel: &Kernel, at: PhysAddr, len: u64) {
    if planted!(SlotKept) {
        return;
    }
    if let Some(pool) = kernel.swiotlb.lock().as_mut() {
        // The ledger knew the mapping as bounced, so the pool knows it too; a wrong length is the ledger's to report.
        let _ = pool.unmap(at, len);
    }
}

/// `dev_warn_ratelimited`: not tracked, so that its place is this line for every caller.
fn warn_full(kernel: &Kernel, device: &DmaDevice, error: SwiotlbError) {
    kernel.log().ratelimited(kernel.clock(), Site::caller(), || format!("{}: {error}", device.name()));
}

/// WARN_ONCE of dma_direct_map_page, for the whole kernel.
pub(super) fn warn_no_pool(kernel: &Kernel, device: &DmaDevice, failure: MapFailure) -> MapFailure {
    kernel.log().once(kernel.clock(), Site::caller(), format!("{}: {failure}", device.name()));
    failure
}

/// dev_err_once of dma_direct_map_resource.
pub(super) fn warn_resource(kernel: &Kernel, device: &DmaDevice, failure: MapFailure) -> MapFailure {
    kernel.log().once(kernel.clock(), Site::caller(), format!("{}: {failure}", device.name()));
    failure
}

/// WARN_ON_ONCE of dma_map_page_attrs.
pub(super) fn warn_no_mask(kernel: &Kernel, device: &DmaDevice) -> MapFailure {
    let failure = MapFailure::NoMask;
    kernel.log().once(kernel.clock(), Site::caller(), format!("{}: {failure}", device.name()));
    failure
}

/// WARN_ONCE of swiotlb_map, for the whole kernel.
fn warn_pool_beyond(kernel: &Kernel, device: &DmaDevice, failure: MapFailure) -> MapFailure {
    kernel.log().once(kernel.clock(), Site::caller(), format!("{}: {failure}", device.name()));
    failure
}

/// WARN_ONCE of swiotlb_bounce, for the whole kernel.
fn warn_too_long(kernel: &Kernel, device: &DmaDevice, error: SwiotlbError) {
    kernel.log().once(kernel.clock(), Site::caller(), format!("{}: {error}", device.name()));
}
