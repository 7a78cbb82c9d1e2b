//! Pages that a device reaches: never bounced, and synced like any streaming mapping.
//!
//! [`DmaDevice::alloc_noncoherent`] gives pages that are mapped from the first moment on, for memory that is used again
//! and again where coherent memory would be uncached; [`DmaDevice::alloc_pages`] the same pages before they are mapped.
//! Zone and retries are those of `coherent`. The zeroes are in RAM, not in a cache. Mirrors `dma_alloc_pages` and
//! `dma_alloc_noncoherent` of kernel/dma/mapping.c and direct.c. Neighbours: `coherent`, `streaming`, whose
//! [`Mapped`] this is. Left out: `dma_alloc_noncontiguous`.

use crate::cpu::Cpu;
use crate::dma::coherent::CoherentError;
use crate::dma::device::DmaDevice;
use crate::dma::direction::Direction;
use crate::dma::streaming::{Mapped, Piece, Placed, Terms};
use crate::gfp::Gfp;
use crate::kbuf::KBuf;
use crate::page::Pages;
use crate::site::Owner;

impl DmaDevice {
    /// Allocates zeroed pages that the device reaches, to be mapped like any buffer (half of `dma_alloc_pages`).
    ///
    /// The zone follows the coherent mask, as in Linux. With a mask that may sleep: process context only; else any.
    ///
    /// # Errors
    /// [`CoherentError`].
    #[track_caller]
    pub fn alloc_pages(&self, cpu: &Cpu<'_>, len: usize, gfp: Gfp) -> Result<KBuf, CoherentError> {
        self.pages_in_reach(cpu, len, gfp, "dma_alloc_pages", cpu.owner())
    }

    /// Allocates zeroed pages that are the device's from now on (`dma_alloc_noncoherent`): they lie in its reach, so
    /// that they are in place even where all mappings bounce. Unmapped and dropped they are freed. Context as
    /// [`DmaDevice::alloc_pages`].
    ///
    /// # Errors
    /// [`CoherentError`].
    ///
    /// ```
    /// # use lowzone_guest_mem::dma::{CoherentError, DmaDevice, FromDevice};
    /// # use lowzone_guest_mem::{Cpu, gfp::GFP_KERNEL};
    /// fn receive(cpu: &Cpu<'_>, device: &DmaDevice) -> Result<[u8; 4], CoherentError> {
    ///     let mut buffer = device.alloc_noncoherent::<FromDevice>(cpu, 4096, GFP_KERNEL)?;
    ///     let mut head = [0; 4];
    ///     // Within what was allocated.
    ///     let _ = buffer.sync_for_cpu(cpu).read_at(0, &mut head);
    ///     Ok(head)
    /// }
    /// ```
    #[track_caller]
    pub fn alloc_noncoherent<D: Direction>(
        &self,
        cpu: &Cpu<'_>,
        len: usize,
        gfp: Gfp,
    ) -> Result<Mapped<KBuf, D>, CoherentError> {
        let owner = cpu.owner();
        let buf = self.pages_in_reach(cpu, len, gfp, "dma_alloc_noncoherent", owner)?;
        let (phys, terms) = (buf.phys(), Terms::single(D::DIR));
        let piece = Piece { orig: phys, len: len as u64, owner };
        let dma = self.enter(phys, piece.len, D::DIR, self.coherent_mask())?;
        let raw = self.book(cpu, piece, Placed { phys, dma, bounced: false }, terms, owner);
        Ok(self.mapped(raw, terms, buf))
    }

    #[track_caller]
    fn pages_in_reach(
        &self,
        cpu: &Cpu<'_>,
        len: usize,
        gfp: Gfp,
        what: &'static str,
        owner: Owner,
    ) -> Result<KBuf, CoherentError> {
        if self.coherent_mask() == 0 {
            return Err(self.warn_no_coherent_mask(cpu, "__dma_alloc_pages"));
        }
        let block = self.zeroed_block(cpu, len, gfp, what, owner)?;
        Ok(KBuf::of_pages(Pages::own(cpu, block, owner), len))
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::dma::iommu::IommuMode;
    use crate::dma::{Bidirectional, DmaPort};
    use crate::gfp::GFP_KERNEL;
    use crate::kernel::MachineConfig;
    use crate::testing::Lab;

    #[test]
    fn they_are_never_bounced_and_synced_on_every_machine() {
        let plain = MachineConfig::default;
        for config in [
            plain(),
            MachineConfig { swiotlb_force: true, ..plain() },
            MachineConfig { iommu: Some(IommuMode::Strict), ..plain() },
            MachineConfig { coherent: false, ..plain() },
        ] {
            let lab = Lab::of(config);
            let (cpu, device) = (lab.cpu(), lab.device(32));
            let mut memory = device.alloc_noncoherent::<Bidirectional>(&cpu, 5000, GFP_KERNEL).unwrap();
            assert_eq!((memory.bounced(), memory.len(), lab.kernel().swiotlb_usage().0), (false, 5000, 0));
            let (port, at) = (DmaPort::new(&device), GuestAddress(memory.dma_addr().get()));
            let mut bytes = [1; 5000];
            port.read_slice(&mut bytes, at).unwrap();
            assert_eq!(bytes, [0; 5000]);
            let mut byte = [1];
            {
                let mut window = memory.sync_for_cpu(&cpu);
                window.read_at(0, &mut byte).unwrap();
                window.write_at(1, &[7]).unwrap();
            }
            port.read_slice(&mut bytes[..2], at).unwrap();
            assert_eq!((byte, &bytes[..2]), ([0], &[0, 7][..]));
            port.write_slice(&[9], at).unwrap();
            memory.sync_for_cpu(&cpu).read_at(0, &mut byte).unwrap();
            assert_eq!((byte, lab.leaks()), ([9], vec![crate::finding::Resource::Mapping]));
            drop(memory);
            assert_eq!((lab.leaks().len(), lab.findings()), (0, vec![]));
        }
    }

    #[test]
    fn without_a_mask_there_are_none_and_it_is_told_once() {
        let lab = Lab::new();
        let (cpu, bare) = (lab.cpu(), DmaDevice::bare(lab.machine.kernel_ref(), "bare"));
        for _ in 0..2 {
            assert!(bare.alloc_pages(&cpu, 64, GFP_KERNEL).is_err());
        }
        let text = "bare: WARNING: kernel/dma/mapping.c __dma_alloc_pages: the device has no coherent mask";
        assert_eq!(lab.log(), [text]);
        for len in [0, 4 << 20 | 1, usize::MAX] {
            assert!(lab.device(64).alloc_noncoherent::<Bidirectional>(&cpu, len, GFP_KERNEL).is_err());
        }
        assert_eq!((lab.log().len(), lab.findings(), lab.leaks().len()), (2, vec!["order-too-large"; 3], 0));
    }
}
