//! What the kernels of other boots printed of DMA, in their order: their warnings come once a boot.

use super::*;
use crate::dma::pool::{dma_pool_create, dma_pool_free};
use crate::dma::{Resource, ToDevice, dma_bit_mask};
use crate::gfp::GFP_KERNEL;
use crate::testing::Lab;
use crate::vmalloc::vmalloc;

/// A booted machine and what its device was given.
struct Boot {
    maps: Vec<RawMapping>,
    device: DmaDevice,
    lab: Lab,
}

impl Boot {
    fn new(name: &'static str) -> Self {
        let lab = Lab::boot(name);
        let device = lab.device(32);
        Self { maps: Vec::new(), device, lab }
    }

    /// Memory out of the reach of 32 bits, of 512 KiB.
    fn high(&self) -> KBuf {
        KBuf::pages(&self.lab.cpu(), 7, GFP_KERNEL).unwrap()
    }

    fn map(&self, device: &DmaDevice, len: u64, dir: Dir, attrs: Attrs) -> Result<RawMapping, MapFailure> {
        map_part(&self.lab.cpu(), device, &self.high(), (0, len), dir, attrs)
    }

    fn unmap(&self, raw: RawMapping, len: u64, dir: Dir) {
        unmap_single(&self.lab.cpu(), &self.device, raw.dma, len, dir);
    }

    fn fill(&mut self, len: u64) {
        self.empty();
        let (cpu, buf) = (self.lab.cpu(), self.high());
        let map = || map_part(&cpu, &self.device, &buf, (0, len), Dir::ToDevice, Attrs::empty()).ok();
        self.maps = std::iter::from_fn(map).collect();
    }

    fn empty(&mut self) {
        for raw in std::mem::take(&mut self.maps) {
            self.unmap(raw, raw.len, Dir::ToDevice);
        }
    }

    /// Does what a probe did.
    fn probe(&mut self, probe: &str) {
        // Long enough for the rate limit of the one before.
        self.lab.solo.set_now(self.lab.kernel().clock() + 60_000_000_000);
        let done = self.coherent(probe) || self.streaming(probe) || self.pool(probe) || self.wrong_ends(probe);
        assert!(done, "no such probe: {probe}");
    }

    fn coherent(&self, probe: &str) -> bool {
        let cpu = self.lab.cpu();
        let bare = DmaDevice::bare(self.lab.machine.kernel_ref(), "0000:00:04.0");
        let failed = match probe {
            "coherent_zero_size" => self.device.alloc_coherent(&cpu, 0, GFP_KERNEL).is_err(),
            "coherent_8M" => self.device.alloc_coherent(&cpu, 8 << 20, GFP_KERNEL).is_err(),
            "coherent_mask_zero" => bare.alloc_coherent(&cpu, 4096, GFP_KERNEL).is_err(),
            _ => return false,
        };
        assert!(failed, "{probe}");
        true
    }

    fn streaming(&self, probe: &str) -> bool {
        let (cpu, kernel) = (self.lab.cpu(), self.lab.machine.kernel_ref());
        let narrow = |bits| {
            let device = DmaDevice::new(kernel, "0000:00:04.0");
            device.set_mask(&cpu, dma_bit_mask(bits)).unwrap();
            device
        };
        let fails = |device: &DmaDevice, len| self.map(device, len, Dir::ToDevice, Attrs::empty()).is_err();
        match probe {
            "map_mask28_high_buffer" => assert!(fails(&narrow(28), 4096)),
            "dma24_map" => assert!(fails(&narrow(24), 64)),
            "map_no_dma_mask" => assert!(fails(&DmaDevice::bare(kernel, "0000:00:04.0"), 64)),
            "map_vmalloc" => {
                let area = vmalloc(&cpu, 4096).unwrap();
                assert!(map_address(&cpu, &self.device, area.virt(), 64, Dir::ToDevice).is_err());
            }
            "map_resource_bar" | "map_resource_ram" => {
                let bar = probe == "map_resource_bar";
                let phys = if bar { PhysAddr::new(0xfeb0_0000) } else { self.high().phys() };
                let mapped = self.device.map_resource::<ToDevice>(&cpu, Resource { phys, len: 4096 });
                assert_eq!(mapped.is_ok(), bar);
            }
            _ => {
                let Some(len) = probe.strip_prefix("map_single_32_") else { return false };
                if let Ok(raw) = self.map(&self.device, len.parse().unwrap(), Dir::ToDevice, Attrs::empty()) {
                    self.unmap(raw, raw.len, Dir::ToDevice);
                }
            }
        }
        true
    }

    fn pool(&mut self, probe: &str) -> bool {
        let cpu = self.lab.cpu();
        match probe {
            "dma_pool_free_bad_dma" | "dma_pool_destroy_busy" => {
                let pool = dma_pool_create(&cpu, "or_pool", &self.device, 64, 0, 0).unwrap();
                let block = pool.alloc(&cpu, GFP_KERNEL).unwrap();
                if probe == "dma_pool_free_bad_dma" {
                    dma_pool_free(&cpu, &pool, block.phys(), DmaAddr::new(0x1234_5000));
                    block.free(&cpu);
                } else {
                    pool.destroy(&cpu);
                    std::mem::forget(block);
                }
            }
            "swiotlb_nowarn" => {
                assert!(self.map(&self.device, 262_145, Dir::ToDevice, Attrs::NO_WARN).is_err());
            }
            "swiotlb_fragmented" => {
                // What was filled before, every second mapping undone.
                let maps = std::mem::take(&mut self.maps);
                let (even, odd): (Vec<_>, Vec<_>) =
                    maps.into_iter().enumerate().partition(|(number, _)| number % 2 == 0);
                even.into_iter().for_each(|(_, raw)| self.unmap(raw, 2048, Dir::ToDevice));
                self.maps = odd.into_iter().map(|(_, raw)| raw).collect();
                assert!(self.map(&self.device, 2049, Dir::ToDevice, Attrs::empty()).is_err());
            }
            _ => {
                let Some(len) = probe.strip_prefix("swiotlb_full_") else { return false };
                self.fill(len.parse().unwrap());
            }
        }
        true
    }

    /// Bounced mappings that end otherwise than they began.
    fn wrong_ends(&mut self, probe: &str) -> bool {
        self.empty();
        let map = |len, dir| self.map(&self.device, len, dir, Attrs::empty()).unwrap();
        match probe {
            "swiotlb_sync_overflow" => {
                let raw = map(64, Dir::FromDevice);
                sync_single(&self.lab.cpu(), &self.device, raw.dma, 128, true, Dir::FromDevice);
                self.unmap(raw, 64, Dir::FromDevice);
            }
            "default_second_error" => {
                unmap_single(&self.lab.cpu(), &self.device, DmaAddr::new(4096), 64, Dir::ToDevice)
            }
            "swiotlb_unmap_twice" => {
                let raw = map(5000, Dir::ToDevice);
                (0..2).for_each(|_| self.unmap(raw, 5000, Dir::ToDevice));
            }
            "swiotlb_unmap_wrong_dir" => self.unmap(map(4096, Dir::FromDevice), 4096, Dir::ToDevice),
            "swiotlb_unmap_inside" => {
                let raw = map(8192, Dir::FromDevice);
                let inside = RawMapping { dma: raw.dma.wrapping_add(2048), ..raw };
                self.unmap(inside, 100, Dir::FromDevice);
            }
            _ => return false,
        }
        true
    }

    /// What was printed since, dma-debug's reports last: only the first of boot `dma`, which is not among the probes.
    fn said(&self, boot: &str, from: (usize, usize)) -> Vec<String> {
        let log = self.lab.log().split_off(from.0);
        let log = log.iter().map(|line| normal(line).replace("0000:00:04.0: ", "oracle_edu 0000:00:04.0: "));
        let mut reports = self.lab.kernel().findings().split_off(from.1);
        if boot == "dma" {
            reports.clear();
        }
        log.chain(reports.iter().flat_map(printed)).collect()
    }
}

/// A warning without a text is one of file and function: of `WARNING: CPU: # PID: # at FILE:# FUNCTION` those two.
fn is_said(measured: &str, said: &str) -> bool {
    let Some(place) = measured.strip_prefix("WARNING: CPU: # PID: # at ") else { return measured == said };
    let (file, function) = place.split_once(":# ").unwrap();
    said.trim_start_matches("oracle_edu 0000:00:04.0: ").starts_with(&format!("WARNING: {file} {function}: "))
}

#[test]
fn golden_messages_of_other_boots() {
    let (mut booted, mut last, mut wrong, mut probes) = (None::<(&str, Boot)>, "", Vec::new(), 0);
    let boots = ["dma", "force", "noforce", "small", "swfull", "sw1area", "sw2048"];
    for row in rows(MESSAGES).filter(|row| boots.contains(&row.get("boot"))) {
        let (boot, probe) = (row.get("boot"), row.get("probe"));
        if booted.as_ref().is_none_or(|(name, _)| *name != boot) {
            booted = Some((boot, Boot::new(boot)));
        } else if probe == last {
            continue;
        }
        last = probe;
        let on = &mut booted.as_mut().unwrap().1;
        let from = (on.lab.log().len(), on.lab.kernel().findings().len());
        on.probe(probe);
        let (want, said) = (measured(boot, probe), on.said(boot, from));
        if want.len() != said.len() || !want.iter().zip(&said).all(|(want, said)| is_said(want, said)) {
            wrong.push(format!("{boot} {probe}:\n  measured {want:#?}\n  said {said:#?}"));
        }
        probes += 1;
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(probes, 67);
}
