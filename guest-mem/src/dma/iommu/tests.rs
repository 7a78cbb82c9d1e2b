use std::ops::Deref;
use std::sync::{RwLock, RwLockReadGuard};

use vm_memory::iommu::{Error, Iommu, IommuMemory, Iotlb, IotlbIterator, IovaRange};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::*;
use crate::dma::{DmaPort, FromDevice, Resource, ToDevice, misuse};
use crate::gfp::GFP_KERNEL;
use crate::kbuf::KBuf;
use crate::kernel::MachineConfig;
use crate::ram::{DirtyMap, Ram, RamMap};
use crate::testing::Lab;
use crate::testing::shadow::Dice;

fn lab(mode: IommuMode) -> Lab {
    Lab::of(MachineConfig { iommu: Some(mode), ..MachineConfig::default() })
}

fn at(dma: DmaAddr) -> GuestAddress {
    GuestAddress(dma.get())
}

fn names(lab: &Lab) -> Vec<&'static str> {
    lab.findings()
}

#[test]
fn addresses_come_from_the_top_down_low_first_and_all_come_back() {
    let mut iovas = Iovas::new();
    let fresh = iovas.blocks();
    assert_eq!(iovas.alloc(1, 1, u64::MAX), Ok(0xdffff));
    assert_eq!(iovas.alloc(3, 3, u64::MAX), Ok(0xdfff8), "aligned to four pages");
    assert_eq!(iovas.alloc(1, 1, 0xfff_ffff), Ok(0xffff), "28 bits");
    assert_eq!(iovas.alloc(1, 1, 0x1fff), Ok(1));
    assert_eq!(iovas.alloc(1, 1, 0x1fff), Err(IovaError { pages: 1, mask: 0x1fff }), "page 0 is never given");
    assert_eq!(iovas.alloc(1 << 20, 1 << 20, u64::MAX), Ok((1 << 36) - (1 << 20)), "no room below 4 GiB");
    for (first, pages) in [(0xdffff, 1), (0xdfff8, 3), (0xffff, 1), (1, 1), ((1 << 36) - (1 << 20), 1 << 20)] {
        (first..first + pages).for_each(|page| iovas.release(page));
    }
    assert_eq!(iovas.blocks(), fresh);
}

#[test]
fn a_strict_domain_refuses_what_is_not_mapped_and_bounces_nothing() {
    let lab = lab(IommuMode::Strict);
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let port = DmaPort::new(&device);
    assert_eq!((device.required_mask(), device.max_mapping_size()), (0xffff_ffff, u64::MAX));
    let mut buf = KBuf::kmalloc(&cpu, 512, GFP_KERNEL).unwrap();
    buf.write_at(0, &[7; 512]).unwrap();
    let phys = buf.phys();
    assert!(phys.get() >= 1 << 32);
    let mapped = device.map_single::<ToDevice>(&cpu, buf).unwrap();
    let dma = mapped.dma_addr();
    assert!(!mapped.bounced() && dma.get() < 1 << 32 && dma.page_offset() == phys.page_offset());
    let mut bytes = [0; 512];
    port.read_slice(&mut bytes, at(dma)).unwrap();
    assert_eq!((bytes, names(&lab)), ([7; 512], vec![]));
    assert!(port.write_slice(&[1], at(dma)).is_err());
    assert_eq!(names(&lab), ["wrong-direction", "iommu-fault"]);
    drop(mapped.unmap(&cpu));
    assert!(port.read_slice(&mut bytes, at(dma)).is_err());
    assert_eq!(names(&lab)[2..], ["after-unmap", "iommu-fault"]);
}

#[test]
fn a_lazy_domain_misses_a_use_after_unmap_until_the_flush() {
    let lab = lab(IommuMode::Lazy);
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let port = DmaPort::new(&device);
    let mapped = device.map_single::<FromDevice>(&cpu, KBuf::kmalloc(&cpu, 512, GFP_KERNEL).unwrap()).unwrap();
    let dma = mapped.dma_addr();
    let buf = mapped.unmap(&cpu);
    port.write_slice(&[9; 4], at(dma)).unwrap();
    let mut bytes = [0; 4];
    buf.read_at(0, &mut bytes).unwrap();
    assert_eq!((bytes, names(&lab)), ([9; 4], vec!["after-unmap"]), "the hardware let it through, the ledger saw it");
    lab.solo.set_now(FLUSH_NS);
    assert!(port.write_slice(&[9; 4], at(dma)).is_err());
    assert_eq!(names(&lab)[1..], ["after-unmap", "iommu-fault"]);
}

#[test]
fn a_full_queue_is_flushed_and_its_addresses_are_not_given_before() {
    let mut domain = Domain::new(IommuMode::Lazy);
    let page = PhysAddr::new(0x5000);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..FLUSH_QUEUE {
        let dma = domain.map(page, 4096, Dir::ToDevice, u64::MAX, 0).unwrap();
        assert!(seen.insert(dma), "{dma:?} was given while a device could reach it");
        domain.unmap(dma, 4096, 0);
    }
    assert_eq!(domain.stats(), DomainStats { mapped: 0, stale: 0, flushes: 1 });
    assert!(seen.contains(&domain.map(page, 4096, Dir::ToDevice, u64::MAX, 0).unwrap()));
}

#[test]
fn the_rest_of_a_page_is_exposed_and_the_ledger_says_so() {
    let lab = lab(IommuMode::Strict);
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let port = DmaPort::new(&device);
    let mut neighbour = KBuf::kmalloc(&cpu, 64, GFP_KERNEL).unwrap();
    let mapped = device.map_single::<FromDevice>(&cpu, KBuf::kmalloc(&cpu, 64, GFP_KERNEL).unwrap()).unwrap();
    neighbour.write_at(0, &[1; 64]).unwrap();
    let there = (mapped.dma_addr().get() & !4095) + neighbour.phys().page_offset();
    port.write_slice(&[9; 8], GuestAddress(there)).unwrap();
    let mut bytes = [0; 8];
    neighbour.read_at(0, &mut bytes).unwrap();
    assert_eq!((bytes, names(&lab)), ([9; 8], vec!["not-mapped"]));
    drop(mapped);
}

#[test]
fn coherent_memory_lies_anywhere_and_a_mapping_that_fails_does_so_quietly() {
    let lab = lab(IommuMode::Strict);
    let (cpu, device) = (lab.cpu(), lab.device(24));
    let ring = device.alloc_coherent(&cpu, 8192, GFP_KERNEL).unwrap();
    assert!(ring.phys().get() >= 1 << 32 && ring.dma_addr().get() < 1 << 24);
    ring.write_u32(&cpu, 4096, 5);
    let mut bytes = [0; 4];
    DmaPort::new(&device).read_slice(&mut bytes, GuestAddress(ring.dma_addr().get() + 4096)).unwrap();
    assert_eq!(bytes, [5, 0, 0, 0]);
    let buf = KBuf::pages(&cpu, 10, GFP_KERNEL).unwrap();
    let maps: Vec<_> = (0..4).map(|_| misuse::map_single(&cpu, &device, &buf, Dir::ToDevice)).collect();
    assert!(maps[..3].iter().all(Result::is_err) || maps[3].is_err(), "16 MiB of addresses hold three of 4 MiB");
    for raw in maps.into_iter().flatten() {
        misuse::unmap_single(&cpu, &device, raw.dma, raw.len, Dir::ToDevice);
    }
    assert!(lab.findings().is_empty() && lab.kernel().log().lines().is_empty());
    assert!(device.set_mask(&cpu, 0xffff).is_ok(), "any mask will do");
}

#[test]
fn an_access_ends_at_registers_that_lie_between_two_pages() {
    let lab = lab(IommuMode::Strict);
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let port = DmaPort::new(&device);
    let above = device.map_single::<FromDevice>(&cpu, KBuf::pages(&cpu, 0, GFP_KERNEL).unwrap()).unwrap();
    let registers = Resource { phys: PhysAddr::new(0xf000_0000), len: 4096 };
    let registers = device.map_resource::<FromDevice>(&cpu, registers).unwrap();
    let below = device.map_single::<FromDevice>(&cpu, KBuf::pages(&cpu, 0, GFP_KERNEL).unwrap()).unwrap();
    let page = |dma: DmaAddr| dma.get() >> PAGE_SHIFT;
    assert_eq!(
        [below.dma_addr(), registers.dma_addr()].map(|dma| page(dma) + 1),
        [registers.dma_addr(), above.dma_addr()].map(page)
    );
    assert!(port.write_slice(&[9; 3 * 4096], at(below.dma_addr())).is_err());
    let byte = |mapped: crate::dma::Mapped<KBuf, FromDevice>| {
        let mut byte = [1];
        mapped.unmap(&cpu).read_at(0, &mut byte).unwrap();
        byte[0]
    };
    assert_eq!((byte(below), byte(above)), (9, 0), "nothing beyond the registers is written");
}

#[test]
fn a_domain_whose_tables_disagree_is_found() {
    let said = |corrupt: fn(&mut Domain)| {
        let mut domain = Domain::new(IommuMode::Lazy);
        let [gone, _kept] =
            [2, 3].map(|pages| domain.map(PhysAddr::new(0x5000), pages * 4096, Dir::ToDevice, u64::MAX, 0).unwrap());
        domain.unmap(gone, 8192, 0);
        domain.validate().unwrap();
        corrupt(&mut domain);
        domain.validate().unwrap_err().to_string()
    };
    let said = [
        said(|domain| assert!(domain.entries.pop_first().is_some())),
        said(|domain| {
            assert!(domain.entries.insert(7, Entry { page: 1, read: true, write: true, stale: false }).is_none())
        }),
        said(|domain| assert!(domain.iovas.free[0].pop_first().is_some())),
        said(|domain| assert!(domain.iovas.given.pop_first().is_some())),
        said(|domain| domain.queue.clear()),
    ];
    let words = [
        "from page 0xdfff8 on have 2 pages, not 3",
        "1 pages are entered at I/O virtual addresses that are free",
        "torn or covered twice at page 0x1",
        "torn or covered twice at page 0xdfff8",
        "2 pages wait for a flush, and 0 ranges are queued",
    ];
    assert_eq!(
        said.each_ref().map(|said| words.iter().position(|words| said.contains(words))),
        [0, 1, 2, 3, 4].map(Some),
        "{said:?}"
    );
}

/// vm-memory's IOTLB over a plain list of mappings.
#[derive(Debug, Default)]
struct Oracle(RwLock<Iotlb>);

struct Guard<'a>(RwLockReadGuard<'a, Iotlb>);

impl Deref for Guard<'_> {
    type Target = Iotlb;
    fn deref(&self) -> &Iotlb {
        &self.0
    }
}

impl Iommu for Oracle {
    type IotlbGuard<'a> = Guard<'a>;

    fn translate(
        &self,
        iova: GuestAddress,
        len: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Guard<'_>>, Error> {
        let range = IovaRange { base: iova, length: len };
        Iotlb::lookup(Guard(self.0.read().unwrap()), iova, len, access)
            .map_err(|_| Error::CannotResolve { iova_range: range, reason: String::new() })
    }
}

type Memory = IommuMemory<RamMap, Oracle>;

fn oracle_reads(memory: &Memory, dma: u64, bytes: &mut [u8]) -> bool {
    // The oracle's sum overflows; ours is asked first.
    dma.checked_add(bytes.len() as u64).is_some() && memory.read_slice(bytes, GuestAddress(dma)).is_ok()
}

/// Our domain beside vm-memory's IOTLB, both over RAM whose every word is its own number.
struct Twins {
    ram: Ram,
    memory: Memory,
    domain: Domain,
    dice: Dice,
    now: u64,
    live: Vec<(DmaAddr, u64)>,
    /// Ranges that were unmapped since the last flush, and how many flushes there were.
    stale: Vec<(DmaAddr, u64)>,
    flushes: u64,
}

/// The pages around a range.
fn around(at: u64, len: u64) -> (GuestAddress, usize) {
    let start = at - at % PAGE_SIZE;
    (GuestAddress(start), usize::try_from((at + len - start).next_multiple_of(PAGE_SIZE)).unwrap())
}

impl Twins {
    fn new(mode: IommuMode) -> Self {
        use vm_memory::bitmap::NewBitmap;
        let ram = Ram::new(1 << 20, 1 << 20).unwrap();
        (0..1 << 18).for_each(|word: u32| ram.store(PhysAddr::new(u64::from(word) * 4), word).unwrap());
        let memory: Memory = IommuMemory::new(ram.map().clone(), Oracle::default(), true, DirtyMap::with_len(1 << 20));
        let (domain, dice) = (Domain::new(mode), Dice::new(6));
        Self { ram, memory, domain, dice, now: 0, live: Vec::new(), stale: Vec::new(), flushes: 0 }
    }

    fn map(&mut self) {
        let (from, len) = (self.dice.index(1 << 19) as u64, 1 + self.dice.index(20_000) as u64);
        let (dir, allowed) = [
            (Dir::ToDevice, Permissions::Read),
            (Dir::FromDevice, Permissions::Write),
            (Dir::Bidirectional, Permissions::ReadWrite),
        ][self.dice.index(3)];
        let dma = self.domain.map(PhysAddr::new(from), len, dir, 0xff_ffff, self.now).unwrap();
        self.settle();
        let ((iova, bytes), (phys, _)) = (around(dma.get(), len), around(from, len));
        self.memory.iommu().0.write().unwrap().set_mapping(iova, phys, bytes, allowed).unwrap();
        self.live.push((dma, len));
    }

    fn unmap(&mut self) {
        let (dma, len) = self.live.swap_remove(self.dice.index(self.live.len()));
        // What time alone flushes does not have this one yet.
        self.domain.tick(self.now);
        self.settle();
        self.stale.push((dma, len));
        self.domain.unmap(dma, len, self.now);
        self.settle();
    }

    /// What our domain has forgotten, the other forgets: at once, or after a flush.
    fn settle(&mut self) {
        let lazy = self.domain.mode == IommuMode::Lazy;
        if lazy && std::mem::replace(&mut self.flushes, self.domain.flushes) == self.domain.flushes {
            return;
        }
        for (dma, len) in self.stale.drain(..) {
            let (iova, bytes) = around(dma.get(), len);
            self.memory.iommu().0.write().unwrap().invalidate_mapping(iova, bytes);
        }
    }

    /// An access near a mapping, live or not, or at the end of the address space: whether both let it pass.
    fn access(&mut self) -> bool {
        let known = if self.dice.once_in(3) { &self.stale } else { &self.live };
        let near = known.get(self.dice.index(known.len().max(1))).map_or(0, |&(dma, _)| dma.get());
        let wild = self.dice.once_in(20);
        let dma = if wild { u64::MAX - self.dice.roll(64) } else { near.wrapping_add(self.dice.roll(30_000)) };
        let (len, write) = (1 + self.dice.index(9000), self.dice.once_in(2));
        let ours = self.domain.translate(DmaAddr::new(dma), len, write, self.now);
        self.settle();
        let mut seen = vec![0; len];
        let theirs = if write {
            // The oracle's sum overflows; ours is asked first.
            dma.checked_add(len as u64).is_some() && self.memory.check_range(GuestAddress(dma), len, Permissions::Write)
        } else {
            oracle_reads(&self.memory, dma, &mut seen)
        };
        assert_eq!(ours.is_ok(), theirs, "an access of {len} at {dma:#x}, write: {write}");
        if let (Ok(pieces), false) = (&ours, write) {
            let mut bytes = Vec::new();
            for &(phys, len) in pieces {
                let from = bytes.len();
                bytes.resize(from + len, 0);
                self.ram.read(phys, &mut bytes[from..]).unwrap();
            }
            assert_eq!(bytes, seen);
        }
        theirs
    }
}

#[test]
fn ours_and_vm_memorys_translate_alike() {
    for mode in [IommuMode::Strict, IommuMode::Lazy] {
        let (mut twins, mut granted, mut refused, mut late) = (Twins::new(mode), 0, 0, 0);
        for step in 0..100_000 {
            twins.now += twins.dice.roll(100_000);
            match twins.dice.roll(8) {
                0..3 if twins.live.len() < 40 => twins.map(),
                3..6 if !twins.live.is_empty() => twins.unmap(),
                _ => {}
            }
            late = late.max(twins.stale.len());
            *(if twins.access() { &mut granted } else { &mut refused }) += 1;
            if step % 1000 == 0 {
                twins.domain.validate().unwrap();
            }
        }
        assert!(granted > 10_000 && refused > 10_000, "{granted} granted, {refused} refused");
        assert_eq!(late > 20, mode == IommuMode::Lazy, "{late} ranges were stale at once");
    }
}
