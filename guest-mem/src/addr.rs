//! The three address spaces, as types that never convert silently, and the page frame number.
//!
//! A [`PhysAddr`] is where a byte lies in guest RAM, a [`DmaAddr`] is what a device puts on its bus, a
//! [`VirtAddr`] is what the driver's pointer would hold. On the default machine the first two are equal, which is
//! why mixing them up survives on most real machines: here it does not compile.
//!
//! Neighbours: everything. Left out: user addresses.

use std::fmt;

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;
/// Bits of the offset within a page.
pub const PAGE_SHIFT: u32 = 12;
/// Where the direct map of all RAM begins (x86-64, 4-level paging: `page_offset_base`).
pub const PAGE_OFFSET: u64 = 0xffff_8880_0000_0000;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw address.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The address `bytes` further on, or `None` past the end of the address space.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// The address `bytes` further on, wrapping at 2^64 as an adder in hardware does.
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }

            /// The distance in bytes from `base`, or `None` if `self` lies below it.
            pub const fn offset_from(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }

            /// The offset within its page.
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// A guest-physical address: where a byte lies in RAM, or in a device's register window.
    PhysAddr
}
address! {
    /// An address as a device puts it on its bus; what `dma_map_single` returns.
    DmaAddr
}
address! {
    /// A kernel virtual address: what the driver's pointer would hold.
    VirtAddr
}

impl PhysAddr {
    /// The number of the page frame that holds this byte.
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 >> PAGE_SHIFT)
    }

    /// The address of this byte in the direct map of x86-64 (`phys_to_virt`); of any machine: [`crate::arch::Arch`].
    pub const fn direct_map(self) -> VirtAddr {
        VirtAddr(self.0.wrapping_add(PAGE_OFFSET))
    }
}

impl VirtAddr {
    /// The byte of RAM behind a direct-map address (`virt_to_phys`), or `None` below the direct map.
    pub const fn direct_map_phys(self) -> Option<PhysAddr> {
        match self.0.checked_sub(PAGE_OFFSET) {
            Some(raw) => Some(PhysAddr(raw)),
            None => None,
        }
    }
}

/// A page frame number: a physical address divided by the page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Pfn(u64);

impl Pfn {
    /// Wraps a raw frame number.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The physical address of the frame's first byte.
    pub const fn phys(self) -> PhysAddr {
        PhysAddr(self.0 << PAGE_SHIFT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_map_round_trips_and_refuses_user_addresses() {
        let phys = PhysAddr::new(0x1_2345_6789);
        assert_eq!(phys.direct_map().direct_map_phys(), Some(phys));
        assert_eq!(VirtAddr::new(0x1000).direct_map_phys(), None);
    }

    #[test]
    fn addition_stops_at_the_end_of_the_address_space() {
        assert_eq!(DmaAddr::new(u64::MAX).checked_add(1), None);
        assert_eq!(DmaAddr::new(u64::MAX).wrapping_add(2), DmaAddr::new(1));
    }
}
