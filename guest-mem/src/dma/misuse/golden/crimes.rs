//! The crimes that were committed to be measured, by the names of their probes.
//!
//! Neighbours: the parent compares what is said of them. A probe's own clean-up is left out where nothing is told of it.

use super::*;
use crate::dma::{Coherent, DmaDevice};
use crate::gfp::{GFP_DMA32, GFP_KERNEL};
use crate::kthread::{self, kthread_run};
use crate::testing::Lab;
use crate::vmalloc::{self, VBuf, vmalloc, vmalloc_to_page};

const TO: Dir = Dir::ToDevice;
const FROM: Dir = Dir::FromDevice;
const BOTH: Dir = Dir::Bidirectional;

/// What must have been committed before a probe, on the same machine.
pub(super) fn before(probe: &str) -> Option<&'static str> {
    Some(match probe {
        "default_second_error" => "default_first_error",
        // Both are one warning of the kernel's.
        "map_vmalloc_second_time" => "map_stack",
        "map_vmalloc_via_page" => "map_vmalloc_second_time",
        "overlap_10_unmaps" => "overlap_10_times",
        "map_after_overlap_10" => "overlap_10_unmaps",
        "two_sizes_unmap_64_second" => "two_sizes_unmap_128_first",
        "sg_unmap_again" => "sg_unmap_wrong_nents",
        "sg_unmap_after_that" => "sg_element_0_by_unmap_single",
        "sg_element_0_by_unmap_single" => "sg_sync_wrong_nents",
        "rebind_after_leak" => "unbind_with_live_mappings",
        "remove_device_with_live_mappings" => "rebind_after_leak",
        _ => return None,
    })
}

/// The measured machine, a device that reaches all of it, and what lies about from probe to probe.
pub(super) struct Scene {
    /// Three entries of 256 bytes.
    list: SgTable,
    maps: Vec<RawMapping>,
    /// A page of zone DMA32.
    page: KBuf,
    vmalloc: Option<VBuf>,
    pub(super) device: DmaDevice,
    pub(super) lab: Lab,
}

impl Scene {
    pub(super) fn new() -> Self {
        let lab = Lab::boot("dmadebug");
        let device = lab.device(64);
        let page = KBuf::pages(&lab.cpu(), 1, GFP_KERNEL | GFP_DMA32).unwrap();
        let mut list = SgTable::default();
        for number in 0..3 {
            list.push(SgEntry::new(page.phys().wrapping_add(1024 * number), 256, page.owner()));
        }
        Self { list, maps: Vec::new(), page, vmalloc: None, device, lab }
    }

    /// The bus address of the page, whether or not it is mapped.
    fn at(&self) -> DmaAddr {
        DmaAddr::new(self.page.phys().get())
    }

    fn map_at(&self, offset: u64, len: u64, dir: Dir) -> RawMapping {
        map_part(&self.lab.cpu(), &self.device, &self.page, (offset, len), dir, Attrs::empty()).unwrap()
    }

    fn map(&self, len: u64, dir: Dir) -> DmaAddr {
        self.map_at(0, len, dir).dma
    }

    fn unmap(&self, dma: DmaAddr, len: u64, dir: Dir) {
        unmap_single(&self.lab.cpu(), &self.device, dma, len, dir);
    }

    fn sync(&self, mapped: (u64, Dir), len: u64, for_cpu: bool, dir: Dir) {
        let dma = self.map(mapped.0, mapped.1);
        sync_single(&self.lab.cpu(), &self.device, dma, len, for_cpu, dir);
    }

    /// Coherent memory, of which nobody but the crime tells anything.
    fn ring(&self, len: usize, crime: impl FnOnce(&Cpu<'_>, &Coherent)) {
        let cpu = self.lab.cpu();
        let ring = self.device.alloc_coherent(&cpu, len, GFP_KERNEL).unwrap();
        crime(&cpu, &ring);
        std::mem::forget(ring);
    }

    /// Commits a probe's crime; false if there is no such probe.
    pub(super) fn commit(&mut self, probe: &str) -> bool {
        self.unmaps(probe)
            || self.coherent(probe)
            || self.places(probe)
            || self.syncs(probe)
            || self.overlaps(probe)
            || self.lists(probe)
            || self.ends(probe)
    }

    fn unmaps(&self, probe: &str) -> bool {
        let cpu = self.lab.cpu();
        match probe {
            "default_first_error" | "default_second_error" | "unmap_never_mapped" => self.unmap(self.at(), 64, TO),
            "double_unmap" => {
                let dma = self.map(64, TO);
                (0..2).for_each(|_| self.unmap(dma, 64, TO));
            }
            "unmap_wrong_size_smaller" => self.unmap(self.map(64, TO), 32, TO),
            "unmap_wrong_size_larger" => self.unmap(self.map(64, TO), 128, TO),
            "unmap_wrong_direction" => self.unmap(self.map(64, TO), 64, FROM),
            "unmap_wrong_direction_bidi" => self.unmap(self.map(64, TO), 64, BOTH),
            "unmap_wrong_address_inside" => self.unmap(self.map(64, TO).wrapping_add(16), 32, TO),
            "unmap_three_faults_at_once" => self.unmap(self.map(64, TO), 32, FROM),
            "missing_mapping_error_check" | "missing_check_and_wrong_size" => {
                let buf = KBuf::pages(&cpu, 0, GFP_KERNEL | GFP_DMA32).unwrap().truncated(64);
                let raw = map_single_unchecked(&cpu, &self.device, &buf, TO).unwrap();
                self.unmap(raw.dma, if probe.ends_with("size") { 32 } else { 64 }, TO);
            }
            "unmap_DMA_MAPPING_ERROR" => self.unmap(DmaAddr::new(u64::MAX), 64, TO),
            "unmap_by_other_device" => {
                let other = DmaDevice::new(self.lab.machine.kernel_ref(), "0000:00:00.0");
                unmap_single(&cpu, &other, self.map(64, TO), 64, TO);
            }
            "map_size_0" => _ = self.map(0, TO),
            "unmap_size_0" => self.unmap(self.map(0, TO), 0, TO),
            "free_while_mapped" => {
                let buf = KBuf::kmalloc(&cpu, 64, GFP_KERNEL).unwrap();
                let _ = map_single(&cpu, &self.device, &buf, TO).unwrap();
                drop(buf);
            }
            _ => return false,
        }
        true
    }

    fn coherent(&self, probe: &str) -> bool {
        let (cpu, device) = (self.lab.cpu(), &self.device);
        match probe {
            "coherent_freed_by_unmap_single" => self.ring(4096, |_, ring| self.unmap(ring.dma_addr(), 4096, BOTH)),
            "single_freed_by_free_coherent" => {
                free_coherent(&cpu, device, self.page.phys(), self.map(4096, BOTH), 4096);
            }
            "coherent_wrong_size" => {
                self.ring(8192, |cpu, ring| free_coherent(cpu, device, ring.phys(), ring.dma_addr(), 4097));
            }
            "coherent_wrong_cpu_address" => self.ring(4096, |cpu, ring| {
                free_coherent(cpu, device, ring.phys().wrapping_add(4096), ring.dma_addr(), 4096);
            }),
            "coherent_free_never_allocated" => free_coherent(&cpu, device, self.page.phys(), self.at(), 4096),
            "sync_of_coherent" => {
                self.ring(4096, |cpu, ring| sync_single(cpu, device, ring.dma_addr(), 64, true, FROM));
            }
            "coherent_ok" => device.alloc_coherent(&cpu, 4096, GFP_KERNEL).unwrap().free(&cpu),
            _ => return false,
        }
        true
    }

    /// What was mapped lies where it shouldn't.
    fn places(&mut self, probe: &str) -> bool {
        let cpu = self.lab.cpu();
        match probe {
            "map_stack" | "map_stack_via_page" => {
                let (device, by_page) = (self.device.clone(), probe == "map_stack_via_page");
                let body = move |cpu: &Cpu<'_>, current: &kthread::Current| {
                    let variable = current.on_stack(64).unwrap();
                    let map = if by_page { kthread::misuse::map_page } else { kthread::misuse::map_single };
                    i32::from(map(cpu, &device, &variable, TO).is_ok())
                };
                assert_eq!(kthread_run(&cpu, 0, body).unwrap().stop(&cpu) == 1, by_page);
            }
            "map_vmalloc_second_time" => {
                let area = vmalloc(&cpu, 4096).unwrap();
                assert!(map_address(&cpu, &self.device, area.virt(), 64, TO).is_err());
                self.vmalloc = Some(area);
            }
            "map_vmalloc_via_page" => {
                let at = vmalloc_to_page(cpu.kernel(), self.vmalloc.as_ref().unwrap().virt()).unwrap();
                self.maps.push(self.map_at(at.get().wrapping_sub(self.page.phys().get()), 64, TO));
            }
            // The kernel's image: its addresses are not those of the direct map, which dma-debug compares.
            "map_rodata" | "map_text" => {
                self.maps.push(self.map_at((16_u64 << 20).wrapping_sub(self.page.phys().get()), 64, TO));
            }
            "map_module_data" => {
                let at = crate::VirtAddr::new(vmalloc::MODULES.start + 0x1_0000);
                self.maps.push(map_address(&cpu, &self.device, at, 4, TO).unwrap());
            }
            _ => return false,
        }
        true
    }

    fn syncs(&self, probe: &str) -> bool {
        let cpu = self.lab.cpu();
        let (on_cpu, on_device) = (true, false);
        match probe {
            "sync_never_mapped" => sync_single(&cpu, &self.device, self.at(), 64, on_cpu, FROM),
            "sync_out_of_range" => self.sync((64, FROM), 65, on_cpu, FROM),
            "sync_inner_ok" => {
                let dma = self.map(64, FROM).wrapping_add(16);
                sync_single(&cpu, &self.device, dma, 32, on_cpu, FROM);
            }
            "sync_wrong_direction_cpu" => self.sync((64, FROM), 64, on_cpu, TO),
            "sync_wrong_direction_cpu_bidi" => self.sync((64, FROM), 64, on_cpu, BOTH),
            "sync_FROM_for_device_ok" => self.sync((64, FROM), 64, on_device, FROM),
            "sync_FROM_mapped_for_device_as_TO" => self.sync((64, FROM), 64, on_device, TO),
            "sync_FROM_mapped_for_device_as_BIDI" => self.sync((64, FROM), 64, on_device, BOTH),
            "sync_TO_for_cpu_ok" => self.sync((64, TO), 64, on_cpu, TO),
            "sync_TO_mapped_for_cpu_as_FROM" => self.sync((64, TO), 64, on_cpu, FROM),
            "sync_TO_mapped_for_cpu_as_BIDI" => self.sync((64, TO), 64, on_cpu, BOTH),
            "sync_TO_mapped_for_device_as_FROM" => self.sync((64, TO), 64, on_device, FROM),
            "sync_BIDI_mapped_as_TO_device" => self.sync((64, BOTH), 64, on_device, TO),
            "sync_BIDI_mapped_as_FROM" => self.sync((64, BOTH), 64, on_cpu, FROM),
            "sync_after_unmap" => {
                let dma = self.map(64, FROM);
                self.unmap(dma, 64, FROM);
                sync_single(&cpu, &self.device, dma, 64, on_cpu, FROM);
            }
            _ => return false,
        }
        true
    }

    fn overlaps(&mut self, probe: &str) -> bool {
        let pair = |scene: &Self, dirs: [Dir; 2]| dirs.into_iter().for_each(|dir| _ = scene.map(64, dir));
        match probe {
            "overlap_TO_TO" => pair(self, [TO, TO]),
            "overlap_TO_then_FROM" => pair(self, [TO, FROM]),
            "overlap_FROM_FROM" => pair(self, [FROM, FROM]),
            "overlap_BIDI_BIDI" => pair(self, [BOTH, BOTH]),
            "overlap_second_line_not_noticed" => {
                let _ = (self.map_at(0, 128, FROM), self.map_at(64, 64, FROM));
            }
            "overlap_10_times" => self.maps = (0..10).map(|_| self.map_at(0, 64, FROM)).collect(),
            "overlap_10_unmaps" => self.maps.iter().for_each(|raw| self.unmap(raw.dma, 64, FROM)),
            "map_after_overlap_10" => _ = self.map(64, FROM),
            "overlap_two_with_SKIP_CPU_SYNC" => {
                let cpu = self.lab.cpu();
                for _ in 0..2 {
                    map_part(&cpu, &self.device, &self.page, (0, 64), FROM, Attrs::SKIP_CPU_SYNC).unwrap();
                }
            }
            "two_sizes_unmap_128_first" => {
                let _ = (self.map(64, TO), self.map(128, TO));
                self.unmap(self.at(), 128, TO);
            }
            "two_sizes_unmap_64_second" => self.unmap(self.at(), 64, TO),
            _ => return false,
        }
        true
    }

    fn lists(&mut self, probe: &str) -> bool {
        let (cpu, device) = (self.lab.cpu(), &self.device);
        match probe {
            "sg_unmap_wrong_nents" => {
                assert_eq!(map_sg(&cpu, device, &mut self.list, TO), 3);
                unmap_sg(&cpu, device, &self.list, 2, TO);
            }
            // The third entry was still mapped.
            "sg_unmap_again" => unmap_sg(&cpu, device, &self.list, 3, TO),
            "sg_sync_wrong_nents" => {
                assert_eq!(map_sg(&cpu, device, &mut self.list, TO), 3);
                sync_sg(&cpu, device, &self.list, 2, false, TO);
            }
            "sg_element_0_by_unmap_single" => unmap_single(&cpu, device, self.list.entries()[0].dma_addr(), 256, TO),
            "sg_unmap_after_that" => unmap_sg(&cpu, device, &self.list, 3, TO),
            "sg_longer_than_max_seg" => {
                device.set_max_seg_size(128).unwrap();
                assert_eq!(map_sg(&cpu, device, &mut self.list, TO), 3);
            }
            "sg_across_boundary" => {
                device.set_seg_boundary(0xff).unwrap();
                let mut list = SgTable::default();
                list.push(SgEntry::new(self.page.phys().wrapping_add(128), 256, self.page.owner()));
                assert_eq!(map_sg(&cpu, device, &mut list, TO), 1);
            }
            _ => return false,
        }
        true
    }

    fn ends(&mut self, probe: &str) -> bool {
        let cpu = self.lab.cpu();
        match probe {
            "unbind_with_live_mappings" | "remove_device_with_live_mappings" => {
                std::mem::forget(self.device.alloc_coherent(&cpu, 4096, GFP_KERNEL).unwrap());
                // No line twice.
                let at = if probe.starts_with("unbind") { 0 } else { 128 };
                let _ = (self.map_at(at, 64, TO), self.map_at(4096 + at, 128, FROM));
                self.device.released(&cpu);
            }
            "rebind_after_leak" => self.device.set_mask_and_coherent(&cpu, u64::MAX).unwrap(),
            _ => return false,
        }
        true
    }
}
