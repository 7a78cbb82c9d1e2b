//! Who may touch which physical addresses: `request_mem_region` and what `/proc/iomem` would show.
//!
//! A claim keeps other drivers from claiming, and nobody from mapping: `ioremap` doesn't look, as Linux's doesn't.
//! Mirrors kernel/resource.c for busy regions. Neighbours: [`super`], a PCI core that claims BARs. Left out: the tree
//! of bridges and devices above the claims, I/O ports.

use thiserror::Error;

use crate::addr::PhysAddr;
use crate::cpu::Cpu;
use crate::kernel::KernelRef;
use crate::site::Owner;

/// Why a range was not given; Linux's NULL, without a word.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RegionError {
    /// No bytes, or past the end of the address space.
    #[error("no memory region of {len} bytes at {at}")]
    BadRange {
        /// The first byte.
        at: PhysAddr,
        /// How many bytes.
        len: u64,
    },
    /// Somebody has a part of it.
    #[error("{len:#x} bytes at {at:#x} belong to {by} in part")]
    Busy {
        /// The first byte.
        at: PhysAddr,
        /// How many bytes.
        len: u64,
        /// Who has it: the name of a claim, or `System RAM`.
        by: String,
    },
}

struct Region {
    id: u64,
    at: PhysAddr,
    len: u64,
    name: String,
    owner: Owner,
}

/// The claims of a kernel.
#[derive(Default)]
pub(crate) struct Regions {
    claims: Vec<Region>,
    last: u64,
}

impl Regions {
    pub(crate) fn reset(&mut self) {
        self.claims.clear();
        self.last = 0;
    }

    /// Gives back what was claimed with exactly these numbers; whether there was such a claim.
    pub(super) fn release(&mut self, at: PhysAddr, len: u64) -> bool {
        let found = self.claims.iter().position(|claim| (claim.at, claim.len) == (at, len));
        found.map(|index| self.claims.remove(index)).is_some()
    }

    fn claim(&mut self, at: PhysAddr, len: u64, name: &str, owner: Owner) -> Result<u64, RegionError> {
        let end = at.get() + len;
        let taken = |claim: &&Region| claim.at.get() < end && at.get() < claim.at.get() + claim.len;
        if let Some(claim) = self.claims.iter().find(taken) {
            return Err(RegionError::Busy { at, len, by: claim.name.clone() });
        }
        self.last += 1;
        self.claims.push(Region { id: self.last, at, len, name: name.to_owned(), owner });
        Ok(self.last)
    }

    /// Every claim: first byte, bytes, who made it.
    pub(crate) fn live(&self) -> impl Iterator<Item = (PhysAddr, u64, Owner)> {
        self.claims.iter().map(|claim| (claim.at, claim.len, claim.owner))
    }
}

/// A claimed range; given back when dropped (`release_mem_region`).
#[must_use = "the claim is given back when this is dropped"]
pub struct MemRegion {
    kernel: KernelRef,
    id: u64,
    at: PhysAddr,
    len: u64,
}

impl std::fmt::Debug for MemRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemRegion({} + {:#x})", self.at, self.len)
    }
}

/// Claims a range of physical addresses for `name` (`request_mem_region`). Process context.
///
/// # Errors
/// [`RegionError`]: RAM and what is claimed already are busy.
#[track_caller]
pub fn request_mem_region(cpu: &Cpu<'_>, at: PhysAddr, len: u64, name: &str) -> Result<MemRegion, RegionError> {
    cpu.might_sleep("request_mem_region");
    let owner = cpu.owner();
    at.checked_add(len).filter(|_| len > 0).ok_or(RegionError::BadRange { at, len })?;
    let kernel = cpu.kernel();
    if kernel.ram().overlaps(at, len) {
        return Err(RegionError::Busy { at, len, by: "System RAM".to_owned() });
    }
    let id = kernel.regions.lock().claim(at, len, name, owner)?;
    Ok(MemRegion { kernel: cpu.kernel_ref(), id, at, len })
}

impl MemRegion {
    /// The physical address of its first byte.
    pub fn phys(&self) -> PhysAddr {
        self.at
    }

    /// How many bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has none; a claim always has some.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for MemRegion {
    fn drop(&mut self) {
        if let Some(kernel) = self.kernel.get() {
            kernel.regions.lock().claims.retain(|claim| claim.id != self.id);
        }
    }
}
