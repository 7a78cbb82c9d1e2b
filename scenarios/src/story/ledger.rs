//! `ledger`: what a driver and its device may do with mapped memory, and each way to do it wrong, one mistake a class.
//!
//! First memory goes to a device and comes back by each family of calls, and the books stay silent. Then one mistake is
//! made, named as its finding: those that dma-debug tells, and those that only the lab sees, of the device's accesses and
//! of the CPU's. The device is played through its port. Neighbours: `files/dma`, a file for each mistake. Left out: what a
//! device does on its own: its width and its bus master are block scenarios.

use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::KBuf;
use lowzone_guest_mem::addr::{DmaAddr, VirtAddr};
use lowzone_guest_mem::dma::{
    Attrs, Dir, DmaDevice, DmaPort, FromDevice, MappedSg, SgTable, ToDevice, dma_bit_mask, misuse,
};
use lowzone_guest_mem::gfp::{__GFP_ZERO, GFP_KERNEL};
use lowzone_guest_mem::kbuf::OutOfBounds;
use vm_memory::{Bytes, GuestAddress};

use super::{StoryError, Telling};

const TO: Dir = Dir::ToDevice;
const FROM: Dir = Dir::FromDevice;
const BOTH: Dir = Dir::Bidirectional;
/// Bytes of each buffer: whole cache lines.
const BYTES: usize = 512;
const LEN: u64 = BYTES as u64;
/// Where a module's data may lie.
const MODULE: VirtAddr = VirtAddr::new(0xffff_ffff_c000_1000);

/// Who takes part.
struct Scene<'a, 'w> {
    telling: &'a Telling<'a, 'w>,
    cpu: &'a Cpu<'w>,
    device: DmaDevice,
    port: DmaPort,
}

type Told = Result<(), StoryError>;

/// A mistake: its finding's name, and how it is made.
struct Crime(&'static str, fn(&Scene<'_, '_>) -> Told);

const CRIMES: &[Crime] = &[
    Crime("unmap-error-value", |scene| scene.done(|s| s.unmap(DmaAddr::new(u64::MAX), LEN, TO))),
    Crime("unmap-not-mapped", |scene| scene.mapped(TO, |s, dma, _| (0..2).for_each(|_| s.unmap(dma, LEN, TO)))),
    Crime("unmap-size", |scene| scene.mapped(TO, |s, dma, _| s.unmap(dma, LEN / 2, TO))),
    Crime("unmap-direction", |scene| scene.mapped(TO, |s, dma, _| s.unmap(dma, LEN, FROM))),
    Crime("unmap-function", |scene| {
        let ring = scene.device.alloc_coherent(scene.cpu, BYTES, GFP_KERNEL)?;
        scene.unmap(ring.dma_addr(), LEN, BOTH);
        // Its pages stay with nobody, as in C.
        std::mem::forget(ring);
        Ok(())
    }),
    Crime("free-cpu-address", |scene| {
        let ring = scene.device.alloc_coherent(scene.cpu, BYTES, GFP_KERNEL)?;
        let wrong = ring.phys().wrapping_add(64);
        misuse::free_coherent(scene.cpu, &scene.device, wrong, ring.dma_addr(), LEN);
        std::mem::forget(ring);
        Ok(())
    }),
    Crime("map-error-unchecked", |scene| {
        let buf = scene.buffer()?;
        let raw = misuse::map_single_unchecked(scene.cpu, &scene.device, &buf, TO)?;
        scene.unmap(raw.dma, LEN, TO);
        Ok(())
    }),
    Crime("sync-not-mapped", |scene| {
        scene.mapped(FROM, |s, dma, _| {
            s.unmap(dma, LEN, FROM);
            s.sync(dma, true, FROM);
        })
    }),
    Crime("sync-direction", |scene| scene.kept(FROM, |s, dma, _| s.sync(dma, true, TO))),
    Crime("sync-read-only", |scene| scene.kept(TO, |s, dma, _| s.sync(dma, true, FROM))),
    Crime("sync-write-only", |scene| scene.kept(FROM, |s, dma, _| s.sync(dma, false, TO))),
    Crime("unmap-entries", |scene| scene.list(|s, table| misuse::unmap_sg(s.cpu, &s.device, table, 3, TO))),
    Crime("sync-entries", |scene| {
        scene.list(|s, table| {
            misuse::sync_sg(s.cpu, &s.device, table, 1, true, TO);
            misuse::unmap_sg(s.cpu, &s.device, table, 2, TO);
        })
    }),
    Crime("segment-long", |scene| {
        scene.device.set_max_seg_size(256)?;
        drop(scene.device.map_sg::<_, ToDevice>(scene.cpu, scene.buffer()?)?);
        Ok(())
    }),
    Crime("segment-boundary", |scene| {
        scene.device.set_seg_boundary(0xff)?;
        drop(scene.device.map_sg::<_, ToDevice>(scene.cpu, scene.buffer()?)?);
        Ok(())
    }),
    Crime("mapping-overlap", |scene| scene.overlapping(2)),
    Crime("mapping-overlaps", |scene| scene.overlapping(9)),
    Crime("map-invalid", |scene| {
        let raw = misuse::map_address(scene.cpu, &scene.device, MODULE, LEN, TO)?;
        scene.unmap(raw.dma, LEN, TO);
        Ok(())
    }),
    Crime("pending-dma", |scene| scene.kept(TO, |s, _, _| s.device.released(s.cpu))),
    Crime("not-mapped", |scene| scene.done(|s| s.device_reads(DmaAddr::new(0x10_0000)))),
    Crime("after-unmap", |scene| {
        scene.mapped(TO, |s, dma, _| {
            s.unmap(dma, LEN, TO);
            s.device_reads(dma);
        })
    }),
    Crime("wrong-direction", |scene| scene.kept(TO, |s, dma, _| s.device_writes(dma))),
    Crime("outside-mapping", |scene| scene.kept(TO, |s, dma, _| s.device_reads(dma.wrapping_add(LEN - 1)))),
    Crime("while-cpu-owns", |scene| {
        scene.kept(FROM, |s, dma, _| {
            s.sync(dma, true, FROM);
            s.device_writes(dma);
        })
    }),
    Crime("after-shutdown", |scene| {
        scene.kept(TO, |s, dma, _| {
            s.device.shut_down();
            s.device_reads(dma);
        })
    }),
    Crime("cpu-writes-mapped", |scene| {
        scene.touched(TO, |s, dma, buf| {
            buf.write_at(0, &[9])?;
            let mut seen = [0];
            let _ = s.port.read_slice(&mut seen, GuestAddress(dma.get()));
            s.telling.fact("the CPU wrote 9 too late, and the device reads", seen[0]);
            Ok(())
        })
    }),
    Crime("cpu-reads-mapped", |scene| scene.touched(FROM, |_, _, buf| buf.read_at(0, &mut [0]))),
    Crime("missing-sync", |scene| {
        scene.touched(FROM, |s, dma, buf| {
            s.device_writes(dma);
            let mut seen = [0];
            buf.read_at(0, &mut seen)?;
            s.telling.fact("the device wrote 7, and the CPU reads without a sync", seen[0]);
            Ok(())
        })
    }),
    Crime("line-shared", |scene| {
        let mut record = scene.buffer()?;
        let part = misuse::map_part(scene.cpu, &scene.device, &record, (0, 32), FROM, Attrs::empty())?;
        scene.device_writes(part.dma);
        record.write_at(40, &[9])?;
        scene.unmap(part.dma, part.len, FROM);
        let mut seen = [0; 41];
        record.read_at(0, &mut seen)?;
        scene.telling.fact("the device wrote 7, and the CPU reads after the unmap", seen[0]);
        scene.telling.fact("the CPU wrote 9 beside it, and reads", seen[40]);
        Ok(())
    }),
    Crime("freed-while-mapped", |scene| {
        let buf = scene.buffer()?;
        let raw = misuse::map_single(scene.cpu, &scene.device, &buf, TO)?;
        drop(buf);
        scene.unmap(raw.dma, LEN, TO);
        Ok(())
    }),
];

const fn names<const N: usize>(crimes: &[Crime]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut at = 0;
    while at < N {
        names[at] = crimes[at].0;
        at += 1;
    }
    names
}

/// What can be done wrong.
pub(super) const MISTAKES: &[&str] = &names::<{ CRIMES.len() }>(CRIMES);

impl Scene<'_, '_> {
    fn buffer(&self) -> Result<KBuf, StoryError> {
        Ok(KBuf::kmalloc(self.cpu, BYTES, GFP_KERNEL | __GFP_ZERO)?)
    }

    fn unmap(&self, dma: DmaAddr, len: u64, dir: Dir) {
        misuse::unmap_single(self.cpu, &self.device, dma, len, dir);
    }

    fn sync(&self, dma: DmaAddr, for_cpu: bool, dir: Dir) {
        misuse::sync_single(self.cpu, &self.device, dma, LEN, for_cpu, dir);
    }

    /// Two bytes; what an IOMMU refuses is its own finding.
    fn device_reads(&self, dma: DmaAddr) {
        let _ = self.port.read_slice(&mut [0; 2], GuestAddress(dma.get()));
    }

    fn device_writes(&self, dma: DmaAddr) {
        let _ = self.port.write_slice(&[7; 2], GuestAddress(dma.get()));
    }

    fn done(&self, act: impl FnOnce(&Self)) -> Told {
        act(self);
        Ok(())
    }

    /// A buffer is mapped; the act unmaps it, in its way.
    fn mapped(&self, dir: Dir, act: impl FnOnce(&Self, DmaAddr, &mut KBuf)) -> Told {
        let mut buf = self.buffer()?;
        buf.write_at(0, &[1; BYTES])?;
        let raw = misuse::map_single(self.cpu, &self.device, &buf, dir)?;
        act(self, raw.dma, &mut buf);
        Ok(())
    }

    /// A buffer is mapped, and unmapped as it should be after the act.
    fn kept(&self, dir: Dir, act: impl FnOnce(&Self, DmaAddr, &mut KBuf)) -> Told {
        self.mapped(dir, |scene, dma, buf| {
            act(scene, dma, buf);
            scene.unmap(dma, LEN, dir);
        })
    }

    /// A buffer is touched while it is mapped.
    fn touched(&self, dir: Dir, touch: impl FnOnce(&Self, DmaAddr, &mut KBuf) -> Result<(), OutOfBounds>) -> Told {
        let mut touched = Ok(());
        self.kept(dir, |scene, dma, buf| touched = touch(scene, dma, buf))?;
        Ok(touched?)
    }

    /// A scatterlist of two buffers is mapped.
    fn list(&self, act: impl FnOnce(&Self, &SgTable)) -> Told {
        let memory = vec![self.buffer()?, self.buffer()?];
        let mut table = SgTable::of(self.cpu, &memory);
        misuse::map_sgtable(self.cpu, &self.device, &mut table, TO)?;
        act(self, &table);
        Ok(())
    }

    /// So many mappings of one buffer that the device may write.
    fn overlapping(&self, count: usize) -> Told {
        let buf = self.buffer()?;
        let map = |_| misuse::map_single(self.cpu, &self.device, &buf, FROM);
        let all = (0..count).map(map).collect::<Result<Vec<_>, _>>()?;
        all.iter().for_each(|raw| self.unmap(raw.dma, LEN, FROM));
        Ok(())
    }

    /// Memory goes there and back by each family of calls.
    fn well_done(&self, telling: &Telling<'_, '_>) -> Told {
        let cpu = self.cpu;
        let mut buf = self.buffer()?;
        buf.write_at(0, b"to")?;
        let mapped = self.device.map_single::<ToDevice>(cpu, buf)?;
        let mut seen = [0; 2];
        self.port.read_slice(&mut seen, GuestAddress(mapped.dma_addr().get())).map_err(std::io::Error::other)?;
        telling.expect("the device reads what the CPU wrote", "to", String::from_utf8_lossy(&seen))?;
        let mut mapped = self.device.map_single::<FromDevice>(cpu, mapped.unmap(cpu))?;
        self.device_writes(mapped.dma_addr());
        mapped.sync_for_cpu(cpu).read_at(0, &mut seen)?;
        telling.expect("the CPU reads after a sync what the device wrote", "[7, 7]", format_args!("{seen:?}"))?;
        drop(mapped.unmap(cpu));
        let list: MappedSg<_, ToDevice> = self.device.map_sg(cpu, vec![self.buffer()?, self.buffer()?])?;
        telling.expect("bytes mapped of a list of two", 2 * BYTES, list.len())?;
        drop(list.unmap(cpu));
        let ring = self.device.alloc_coherent(cpu, BYTES, GFP_KERNEL)?;
        self.device_writes(ring.dma_addr());
        // Nobody said that it has.
        cpu.dma_rmb();
        telling.expect("the CPU reads coherent memory at once", 0x707, ring.read_u32(cpu, 0))
    }
}

/// Tells it.
pub(super) fn tell(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let device = DmaDevice::new(cpu.kernel_ref(), "card");
    device.set_mask_and_coherent(cpu, dma_bit_mask(64))?;
    let scene = Scene { telling, cpu, port: DmaPort::new(&device), device };
    scene.well_done(telling)?;
    CRIMES.iter().filter(|crime| telling.makes(crime.0)).try_for_each(|crime| crime.1(&scene))
}
