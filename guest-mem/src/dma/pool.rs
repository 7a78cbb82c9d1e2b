//! `dma_pool`: small blocks of coherent memory, cut out of whole pages.
//!
//! A pool takes coherent pages as it needs them, cuts them into blocks that cross no boundary, and keeps every page
//! until it is destroyed. The block freed last is given first; in the first 4 bytes of a free block lies the offset of
//! the next one, which a device that writes late destroys. The lab keeps the list out of band as well, so that a broken
//! link is a finding and no wild pointer. With `Sanitize::POISON` free blocks hold 0xa7 and fresh ones 0xa9, as where
//! slabs are debugged. Mirrors mm/dmapool.c of 6.1, whose blocks do not even end on the boundary but for a stretch's
//! first one. Neighbours: `coherent` gives the pages, `page` (below) cuts one. Left out: `pools` in sysfs.

#[cfg(test)]
mod golden;
mod misuse;
mod page;
#[cfg(test)]
mod property;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use thiserror::Error;

use crate::addr::{DmaAddr, PAGE_SIZE, PhysAddr};
use crate::cpu::Cpu;
use crate::dma::coherent::{self, Coherent, CoherentError};
use crate::dma::device::DmaDevice;
use crate::finding::{Finding, FindingKind};
use crate::gfp::{GFP_KERNEL, Gfp};
use crate::kbuf::KBuf;
use crate::kernel::{Kernel, Sanitize};
use crate::lock::Locked;
use crate::site::Owner;
use crate::zone::{AllocError, ZoneKind};
pub use misuse::{PoolMisuse, dma_pool_free};
use page::Page;

/// Bytes of Linux's `struct dma_pool` and `struct dma_page`, which it kmallocs.
const POOL_HEADER: usize = 104;
const PAGE_HEADER: usize = 40;
/// What free and fresh blocks hold where they are watched.
const POISON_FREED: u8 = 0xa7;
const POISON_ALLOCATED: u8 = 0xa9;

/// Why a pool or a block could not be had; Linux's NULL in each case.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum DmaPoolError {
    /// No bytes, or more than can be numbered.
    #[error("a DMA pool of blocks of {size} bytes")]
    Size {
        /// The size.
        size: usize,
    },
    /// The alignment is no power of two.
    #[error("a DMA pool aligned to {align}")]
    Align {
        /// The alignment.
        align: usize,
    },
    /// The boundary is no power of two, or less than a block.
    #[error("a DMA pool of blocks of {size} bytes that cross no multiple of {boundary}")]
    Boundary {
        /// The size, rounded.
        size: usize,
        /// The boundary.
        boundary: usize,
    },
    /// No memory for what describes the pool or a page of it.
    #[error(transparent)]
    Header(#[from] AllocError),
    /// No page.
    #[error(transparent)]
    Page(#[from] CoherentError),
}

/// How a pool cuts its pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cut {
    size: u32,
    allocation: u32,
    boundary: u64,
}

impl Cut {
    fn of(size: usize, align: usize, boundary: usize) -> Result<Self, DmaPoolError> {
        let align = if align == 0 { 1 } else { align };
        if !align.is_power_of_two() {
            return Err(DmaPoolError::Align { align });
        }
        let wrong = DmaPoolError::Size { size };
        if size == 0 {
            return Err(wrong);
        }
        let size = size.max(4).checked_next_multiple_of(align).ok_or(wrong)?;
        let allocation = (size as u64).max(PAGE_SIZE);
        let boundary = if boundary == 0 {
            allocation
        } else if boundary < size || !boundary.is_power_of_two() {
            return Err(DmaPoolError::Boundary { size, boundary });
        } else {
            boundary as u64
        };
        // A boundary beyond the page would let the last block run past its end.
        let boundary = boundary.min(allocation);
        let [size, allocation] = [size as u64, allocation].map(u32::try_from);
        Ok(Self { size: size.map_err(|_| wrong)?, allocation: allocation.map_err(|_| wrong)?, boundary })
    }

    /// Where the blocks of a page begin, and last the link that ends the list (`pool_initialise_page`).
    fn offsets(self) -> Vec<u32> {
        let (mut offsets, mut offset, mut stretch) = (Vec::new(), 0, self.boundary);
        while offset < u64::from(self.allocation) {
            offsets.push(offset);
            let mut next = offset + u64::from(self.size);
            if next + u64::from(self.size) >= stretch {
                next = stretch;
                stretch += self.boundary;
            }
            offset = next;
        }
        offsets.push(offset);
        // A page and one boundary more fit 32 bits wherever the boundary does; else the link only has to end the list.
        offsets.into_iter().map(|offset| u32::try_from(offset).unwrap_or(u32::MAX)).collect()
    }
}

struct State {
    /// The newest last.
    pages: Vec<Page>,
    header: Option<KBuf>,
}

struct Shared {
    device: DmaDevice,
    name: &'static str,
    cut: Cut,
    state: Locked<State>,
}

impl Shared {
    fn watched(kernel: &Kernel) -> bool {
        kernel.config().sanitize.contains(Sanitize::POISON)
    }

    /// Tells a misuse: as a finding, and in the log what Linux would print there.
    fn report(&self, kernel: &Kernel, misuse: PoolMisuse, sites: Vec<(&'static str, Owner)>) {
        if misuse.printed(Self::watched(kernel)) {
            kernel.log().print(kernel.clock(), &format!("{}: {misuse}", self.device.name()));
        }
        let device = Some(self.device.name().to_owned());
        kernel.report(Finding { kind: FindingKind::DmaPool(misuse), device, at: kernel.clock(), sites });
    }
}

/// A pool of blocks of one size for one device; destroyed when dropped.
#[must_use = "the pool is destroyed when this is dropped"]
pub struct DmaPool {
    shared: Arc<Shared>,
}

/// Makes a pool; an alignment of 0 is 1, a boundary of 0 none but the page (`dma_pool_create`). Process context.
///
/// # Errors
/// [`DmaPoolError`], of everything but a page.
///
/// ```
/// # use lowzone_guest_mem::dma::pool::{DmaPoolError, dma_pool_create};
/// # use lowzone_guest_mem::{Cpu, dma::DmaDevice, gfp::GFP_KERNEL};
/// fn descriptor(cpu: &Cpu<'_>, device: &DmaDevice) -> Result<(), DmaPoolError> {
///     let pool = dma_pool_create(cpu, "descriptors", device, 64, 64, 0)?;
///     let block = pool.zalloc(cpu, GFP_KERNEL)?;
///     block.write_u32(cpu, 0, 1);
///     block.free(cpu);
///     pool.destroy(cpu);
///     Ok(())
/// }
/// ```
#[track_caller]
pub fn dma_pool_create(
    cpu: &Cpu<'_>,
    name: &'static str,
    device: &DmaDevice,
    size: usize,
    align: usize,
    boundary: usize,
) -> Result<DmaPool, DmaPoolError> {
    cpu.might_sleep("dma_pool_create");
    let cut = Cut::of(size, align, boundary)?;
    let header = Some(KBuf::kmalloc(cpu, POOL_HEADER, GFP_KERNEL)?);
    let state = Locked::new(State { pages: Vec::new(), header });
    Ok(DmaPool { shared: Arc::new(Shared { device: device.clone(), name, cut, state }) })
}

impl DmaPool {
    /// Takes a block, whose bytes are as they were left (`dma_pool_alloc`); zeroed with `__GFP_ZERO`. With a mask that
    /// may sleep: process context only; else any.
    ///
    /// # Errors
    /// [`DmaPoolError::Header`], [`DmaPoolError::Page`].
    #[track_caller]
    pub fn alloc(&self, cpu: &Cpu<'_>, gfp: Gfp) -> Result<Block, DmaPoolError> {
        if gfp.may_sleep() {
            cpu.might_sleep("dma_pool_alloc");
        }
        let owner = cpu.owner();
        if self.shared.device.live_for(cpu, None).is_none() {
            return Err(CoherentError::Stale.into());
        }
        let taken = match self.take(owner) {
            Some(taken) => taken,
            None => {
                let page = self.new_page(cpu, gfp - Gfp::ZERO)?;
                self.shared.state.lock().pages.push(page);
                // Another CPU may have emptied it already, as in Linux only on its next turn.
                self.take(owner).ok_or(CoherentError::Stale)?
            }
        };
        Ok(self.given(cpu, taken, gfp, owner))
    }

    /// Takes a block of zeroes (`dma_pool_zalloc`). Context as [`DmaPool::alloc`].
    ///
    /// # Errors
    /// As [`DmaPool::alloc`].
    #[track_caller]
    pub fn zalloc(&self, cpu: &Cpu<'_>, gfp: Gfp) -> Result<Block, DmaPoolError> {
        self.alloc(cpu, gfp | Gfp::ZERO)
    }

    /// The first free block of the newest page that has one.
    fn take(&self, owner: Owner) -> Option<Taken> {
        let mut state = self.shared.state.lock();
        let page = state.pages.iter_mut().rev().find(|page| page.has_free())?;
        page.take(owner)
    }

    #[track_caller]
    fn new_page(&self, cpu: &Cpu<'_>, gfp: Gfp) -> Result<Page, DmaPoolError> {
        let header = KBuf::kmalloc(cpu, PAGE_HEADER, gfp)?;
        let cut = self.shared.cut;
        let len = usize::try_from(cut.allocation).unwrap_or(usize::MAX);
        let memory: Coherent = self.shared.device.alloc_coherent(cpu, len, gfp)?;
        Ok(Page::new(cpu.kernel(), header, memory, cut, Shared::watched(cpu.kernel())))
    }

    /// Looks at a block that was taken and fills it as the mask says.
    fn given(&self, cpu: &Cpu<'_>, taken: Taken, gfp: Gfp, owner: Owner) -> Block {
        let (kernel, shared) = (cpu.kernel(), &self.shared);
        let (watched, size) = (Shared::watched(kernel), u64::from(shared.cut.size));
        let block =
            Block { pool: shared.clone(), dma: taken.dma, phys: taken.phys, zone: taken.zone, owner, given: true };
        if page::is_damaged(kernel, &taken, shared.cut.size, watched) {
            let misuse = PoolMisuse::Corrupted { pool: shared.name, block: block.virt(kernel) };
            shared.report(kernel, misuse, vec![("taken at", owner)]);
        }
        if gfp.contains(Gfp::ZERO) {
            page::fill(kernel, taken.phys, size, 0);
        } else if watched {
            page::fill(kernel, taken.phys, size, POISON_ALLOCATED);
        }
        block
    }

    /// How many blocks are out, and how many there are in the pages taken so far.
    pub fn usage(&self) -> (usize, usize) {
        let state = self.shared.state.lock();
        state.pages.iter().fold((0, 0), |(out, all), page| (out + page.out(), all + page.blocks()))
    }

    /// Gives its pages back (`dma_pool_destroy`). Process context.
    ///
    /// A page of which a block is still out is told and never freed.
    pub fn destroy(self, cpu: &Cpu<'_>) {
        cpu.might_sleep("dma_pool_destroy");
        self.empty(cpu.owner());
    }

    fn empty(&self, by: Owner) {
        let (pages, header) = {
            let mut state = self.shared.state.lock();
            (std::mem::take(&mut state.pages), state.header.take())
        };
        drop(header);
        let Some(kernel) = self.shared.device.live_kernel() else { return };
        for page in pages.into_iter().rev() {
            if let Some(owner) = page.busy() {
                let at = kernel.config().arch.direct_map(page.phys());
                let misuse = PoolMisuse::Busy { pool: self.shared.name, page: at.unwrap_or(crate::VirtAddr::new(0)) };
                self.shared.report(kernel, misuse, vec![("destroyed at", by), ("taken at", owner)]);
                page.leak();
            }
        }
    }

    /// Checks every page against its memory; for tests, O(blocks).
    ///
    /// # Errors
    /// The offset of the first free block whose link is not that of the list, or which is on it twice.
    pub fn validate(&self) -> Result<(), u32> {
        let Some(kernel) = self.shared.device.live_kernel() else { return Ok(()) };
        self.shared.state.lock().pages.iter().try_for_each(|page| page.validate(kernel))
    }
}

impl Drop for DmaPool {
    fn drop(&mut self) {
        self.empty(Owner::default());
    }
}

/// A block that was taken off its page's list.
struct Taken {
    dma: DmaAddr,
    phys: PhysAddr,
    zone: ZoneKind,
    /// What its first 4 bytes must hold.
    link: u32,
}

/// A block of a pool; given back when dropped.
#[must_use = "the block is given back when this is dropped"]
pub struct Block {
    pool: Arc<Shared>,
    dma: DmaAddr,
    phys: PhysAddr,
    zone: ZoneKind,
    owner: Owner,
    /// Unset once it was given back.
    given: bool,
}

impl Block {
    /// What the device must be told.
    pub fn dma_addr(&self) -> DmaAddr {
        self.dma
    }

    /// Where it lies.
    pub fn phys(&self) -> PhysAddr {
        self.phys
    }

    /// The zone it lies in.
    pub fn zone(&self) -> ZoneKind {
        self.zone
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        usize::try_from(self.pool.cut.size).unwrap_or(usize::MAX)
    }

    /// Whether it has none; it always has some.
    pub fn is_empty(&self) -> bool {
        false
    }

    fn virt(&self, kernel: &Kernel) -> crate::VirtAddr {
        kernel.config().arch.direct_map(self.phys).unwrap_or(crate::VirtAddr::new(0))
    }

    /// Copies bytes out; nothing is copied if the range leaves the block. Any context.
    #[track_caller]
    pub fn read(&self, cpu: &Cpu<'_>, offset: usize, to: &mut [u8]) {
        if let Some(at) = self.place(cpu, offset, to.len()) {
            coherent::load(cpu, at, to);
        }
    }

    /// Copies bytes in; nothing is copied if the range leaves the block. Any context.
    #[track_caller]
    pub fn write(&self, cpu: &Cpu<'_>, offset: usize, from: &[u8]) {
        if let Some(at) = self.place(cpu, offset, from.len()) {
            coherent::store(cpu, at, from);
        }
    }

    /// Reads 32 bits, little-endian, all-ones outside. Any context.
    #[track_caller]
    pub fn read_u32(&self, cpu: &Cpu<'_>, offset: usize) -> u32 {
        let mut bytes = [0xff; 4];
        self.read(cpu, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes 32 bits, little-endian, lost outside. Any context.
    #[track_caller]
    pub fn write_u32(&self, cpu: &Cpu<'_>, offset: usize, value: u32) {
        self.write(cpu, offset, &value.to_le_bytes());
    }

    #[track_caller]
    fn place(&self, cpu: &Cpu<'_>, offset: usize, len: usize) -> Option<PhysAddr> {
        if self.pool.device.live_kernel().is_none() {
            cpu.stale("block of a DMA pool");
            return None;
        }
        if offset.checked_add(len).is_some_and(|end| end <= self.len()) {
            return Some(self.phys.wrapping_add(offset as u64));
        }
        let (offset, len, size) = (offset as u64, len as u64, self.len() as u64);
        let kind = FindingKind::OutOfBounds { what: "block of a DMA pool", offset, len, size };
        let sites = vec![("accessed at", cpu.owner()), ("taken at", self.owner)];
        cpu.emit(kind, Some(self.pool.device.name().to_owned()), sites);
        None
    }

    /// Gives it back (`dma_pool_free`). Any context.
    #[track_caller]
    pub fn free(mut self, cpu: &Cpu<'_>) {
        let owner = cpu.owner();
        let _ = cpu.point_for(crate::env::Class::Release, self.len() as u64, owner);
        self.give(owner);
    }

    fn give(&mut self, by: Owner) {
        if std::mem::replace(&mut self.given, false) {
            misuse::free_raw(&self.pool, self.phys, self.dma, by);
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.give(Owner::default());
    }
}
