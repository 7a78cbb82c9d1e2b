//! Kinds of events: one table of numbers and names.
//!
//! Names are Linux's where Linux has a tracepoint (`kmem:*`, `dma:*` of 6.12, `swiotlb:*`, `irq:*`), the lab's own
//! otherwise. Numbers are stable: they go into files. A number from [`DETAIL`] on is no event but the rest of the one
//! before it. Neighbours: [`super::Record`] carries one. Left out: what the fields mean to a person, which viewers know.

/// Kinds from this number on continue the event that the same producer made just before.
pub const DETAIL: u16 = 0x8000;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// What a record is; the number is stable and goes into files.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum Kind {
            $($(#[$doc])* $name = $number,)*
        }

        impl Kind {
            /// Every kind, by number.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name, `system:event` as in tracefs.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// The kind of a number, if this version knows it.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// `kmem:kmalloc`: addr = where, len = bytes asked, tag = who asked.
    Kmalloc = 1, "kmem:kmalloc";
    /// `kmem:kfree`: tag = who freed, 0 from a destructor; the other releases likewise.
    Kfree = 2, "kmem:kfree";
    /// `kmem:mm_page_alloc`: len = bytes, tag = who asked.
    MmPageAlloc = 3, "kmem:mm_page_alloc";
    /// `kmem:mm_page_free`.
    MmPageFree = 4, "kmem:mm_page_free";
    /// `kmem:kmem_cache_alloc`: as `kmem:kmalloc`, len = bytes of the object; of a bulk call addr = the first, len = all.
    KmemCacheAlloc = 5, "kmem:kmem_cache_alloc";
    /// `kmem:kmem_cache_free`.
    KmemCacheFree = 6, "kmem:kmem_cache_free";
    /// `dma:dma_map_page`: addr = bus address, tag = transaction; all-ones and 0 if the map failed.
    DmaMapPage = 10, "dma:dma_map_page";
    /// `dma:dma_unmap_page`.
    DmaUnmapPage = 11, "dma:dma_unmap_page";
    /// `dma:dma_alloc`: coherent memory.
    DmaAlloc = 12, "dma:dma_alloc";
    /// `dma:dma_free`.
    DmaFree = 13, "dma:dma_free";
    /// `dma:dma_sync_single_for_cpu`.
    DmaSyncForCpu = 14, "dma:dma_sync_single_for_cpu";
    /// `dma:dma_sync_single_for_device`.
    DmaSyncForDevice = 15, "dma:dma_sync_single_for_device";
    /// `swiotlb:swiotlb_bounced`: addr = the original address, tag = who maps.
    SwiotlbBounced = 16, "swiotlb:swiotlb_bounced";
    /// `dma:dma_map_sg`: one record for each entry, as `dma:dma_map_page`.
    DmaMapSg = 17, "dma:dma_map_sg";
    /// `dma:dma_unmap_sg`: likewise.
    DmaUnmapSg = 18, "dma:dma_unmap_sg";
    /// `dma:dma_map_resource`: as `dma:dma_map_page`.
    DmaMapResource = 19, "dma:dma_map_resource";
    /// The device reads memory, through its port: tag = transaction.
    PortRead = 20, "port:read";
    /// The device writes memory.
    PortWrite = 21, "port:write";
    /// The device touches memory that no mapping gives it: tag = the transaction that it comes nearest to, or 0.
    PortViolation = 22, "port:violation";
    /// `dma:dma_unmap_resource`.
    DmaUnmapResource = 24, "dma:dma_unmap_resource";
    /// `dma:dma_sync_sg_for_cpu`: one record for each entry.
    DmaSyncSgForCpu = 25, "dma:dma_sync_sg_for_cpu";
    /// `dma:dma_sync_sg_for_device`: likewise.
    DmaSyncSgForDevice = 26, "dma:dma_sync_sg_for_device";
    /// A register read: len = width, tag = value.
    MmioRead = 30, "mmio:read";
    /// A register write.
    MmioWrite = 31, "mmio:write";
    /// A chain was put on a virtqueue: addr = head, len = queue, tag = the available index behind it.
    VirtqAdd = 40, "virtq:add";
    /// The device was told: len = queue, tag = the available index so far.
    VirtqKick = 41, "virtq:kick";
    /// A used chain was taken: addr = head, len = queue, tag = the used index behind it.
    VirtqUsed = 42, "virtq:used";
    /// The device took a chain off its ring: addr = head, len = queue.
    VirtqTake = 43, "virtq:take";
    /// The device gave a chain back: addr = head, len = queue, tag = bytes it says it wrote.
    VirtqGive = 44, "virtq:give";
    /// The device told the driver that it gave chains back: len = queue.
    VirtqCall = 45, "virtq:call";
    /// A handler begins: addr = irq, dev = whose message it is, if it is one.
    IrqEntry = 50, "irq:irq_handler_entry";
    /// A handler ended.
    IrqExit = 51, "irq:irq_handler_exit";
    /// A finding was reported: len = its number from 1, addr = the bus address if it has one, tag = transaction.
    Finding = 60, "lowzone:finding";
    /// The scenario began a step.
    Step = 61, "lowzone:step";
    /// Who made the call: tag = owner, len = bytes that the bounce pool copied in it (unmap, sync).
    By = 0x8001, "detail:by";
    /// What a map call made: addr = where the device's bytes lie, len = [`super::Shape`], tag = who mapped.
    Mapping = 0x8002, "detail:mapping";
    /// The driver's buffer behind a mapping: addr = where it lies, tag = who allocated it.
    Buffer = 0x8003, "detail:buffer";
    /// One descriptor of a chain that was added: addr = bus address, len = bytes, tag = 1 if the device may write it.
    Segment = 0x8004, "detail:segment";
    /// The device took a chain by the access before, or soon after it: as `virtq:take`.
    Take = 0x8005, "detail:take";
    /// The device gave a chain back by the access before, or soon after it: as `virtq:give`.
    Give = 0x8006, "detail:give";
    /// Why the request of the event before was refused: len = the number of the text, 0 if there were too many.
    Refused = 0x8007, "detail:refused";
}

impl Kind {
    /// The number that records and files hold.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// An event's bit in a mask of kinds; details have none of their own and go with their event.
    #[inline]
    pub const fn bit(self) -> u64 {
        1 << (self.number() & 63)
    }

    /// Whether it only continues the event before it.
    pub const fn is_detail(self) -> bool {
        self.number() >= DETAIL
    }

    /// Whether a record's len is bytes, and not a number.
    pub const fn len_is_bytes(self) -> bool {
        !matches!(
            self,
            Self::VirtqAdd
                | Self::VirtqKick
                | Self::VirtqUsed
                | Self::VirtqTake
                | Self::VirtqGive
                | Self::VirtqCall
                | Self::Finding
                | Self::Take
                | Self::Give
                | Self::Mapping
                | Self::Refused
        )
    }

    /// Whether a record's tag is an owner ([`super::owner_word`]).
    pub const fn tag_is_owner(self) -> bool {
        matches!(
            self,
            Self::Kmalloc
                | Self::Kfree
                | Self::MmPageAlloc
                | Self::MmPageFree
                | Self::KmemCacheAlloc
                | Self::KmemCacheFree
                | Self::SwiotlbBounced
                | Self::By
                | Self::Mapping
                | Self::Buffer
        )
    }

    /// Whether a record's tag is a DMA transaction.
    pub const fn tag_is_transaction(self) -> bool {
        matches!(
            self,
            Self::DmaMapPage
                | Self::DmaUnmapPage
                | Self::DmaMapSg
                | Self::DmaUnmapSg
                | Self::DmaMapResource
                | Self::DmaUnmapResource
                | Self::DmaSyncSgForCpu
                | Self::DmaSyncSgForDevice
                | Self::DmaAlloc
                | Self::DmaFree
                | Self::DmaSyncForCpu
                | Self::DmaSyncForDevice
                | Self::PortRead
                | Self::PortWrite
                | Self::PortViolation
                | Self::Finding
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_and_every_name_belongs_to_one_kind() {
        for (index, kind) in Kind::ALL.iter().enumerate() {
            assert_eq!(Kind::from_number(kind.number()), Some(*kind));
            let clash = Kind::ALL[..index].iter().any(|k| k.name() == kind.name() || k.number() >= kind.number());
            assert!(!clash, "{kind:?} shares its name, or numbers do not rise");
            assert_eq!(kind.is_detail(), kind.name().starts_with("detail:"));
            assert!(kind.is_detail() || kind.number() < 64, "{kind:?} has no bit");
            assert!(!(kind.tag_is_owner() && kind.tag_is_transaction()), "{kind:?}");
        }
        assert_eq!(Kind::from_number(0), None);
    }
}
