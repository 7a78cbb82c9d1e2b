//! What a device's masks are worth, on each machine that was measured.

use super::*;
use crate::dma::streaming::MapFailure;
use crate::dma::{ToDevice, swiotlb};
use crate::gfp::GFP_KERNEL;
use crate::testing::{Computed, Lab, Row, compare};
use crate::zone::ZoneKind;

const MASKS: &str = include_str!("../../../../tests/golden/dma_mask.tsv");
const POOL: &str = include_str!("../../../../tests/golden/dma_tlb.tsv");
const SMALL: &str = include_str!("../../../../tests/golden/dma24.tsv");

/// The machine of a boot and the device on it.
struct Booted {
    boot: &'static str,
    device: DmaDevice,
    lab: Lab,
}

impl Booted {
    fn new(boot: &'static str) -> Self {
        let lab = Lab::boot(boot);
        let device = DmaDevice::new(lab.machine.kernel_ref(), "0000:00:04.0");
        Self { boot, device, lab }
    }

    fn masks(&self, row: &Row) -> Computed {
        let (cpu, device) = (self.lab.cpu(), &self.device);
        let bits = |bits| dma_bit_mask(u8::try_from(bits).unwrap());
        let rc = |result: Result<(), MaskError>| if result.is_ok() { "0" } else { "-5" }.to_owned();
        let mut computed = Computed::new();
        match row.get("what") {
            "default" => {
                if self.boot == "dma" {
                    // Left by the binding before.
                    device.set_mask_and_coherent(&cpu, u64::MAX).unwrap();
                }
                computed.push(("required", format!("{:#x}", device.required_mask())));
            }
            "set_both" => {
                computed.push(("rc", rc(device.set_mask_and_coherent(&cpu, bits(row.number("bits").unwrap())))));
                let pool = self.lab.kernel().swiotlb.lock().as_ref().map_or(0, |pool| pool.base().get());
                let needs = |addr| u8::from(device.need_sync(DmaAddr::new(addr))).to_string();
                computed.push(("addressing_limited", u8::from(device.addressing_limited()).to_string()));
                computed.push(("max_mapping", device.max_mapping_size().to_string()));
                computed.push(("opt_mapping", device.opt_mapping_size().to_string()));
                computed.push(("need_sync_high", needs(0x1_1000_0000)));
                computed.push(("need_sync_tlb", needs(pool)));
            }
            "streaming32_coherent23" => {
                computed.push(("rc_streaming", rc(device.set_mask(&cpu, bits(32)))));
                computed.push(("rc_coherent", rc(device.set_coherent_mask(&cpu, bits(23)))));
            }
            "max_seg_size" => {
                computed.push(("value", device.max_seg_size().to_string()));
                computed.push(("seg_boundary", format!("{:#x}", device.seg_boundary())));
                computed.push(("min_align_mask", format!("{:#x}", device.min_align_mask())));
            }
            other => panic!("no such row: {other}"),
        }
        computed.push(("mask", format!("{:#x}", device.mask())));
        computed.push(("coherent", format!("{:#x}", device.coherent_mask())));
        computed
    }
}

#[test]
fn golden_dma_mask() {
    let columns = [
        "mask",
        "coherent",
        "required",
        "rc",
        "addressing_limited",
        "max_mapping",
        "opt_mapping",
        "need_sync_high",
        "need_sync_tlb",
        "rc_streaming",
        "rc_coherent",
        "value",
        "seg_boundary",
        "min_align_mask",
    ];
    let mut booted: Option<Booted> = None;
    let rows = compare(MASKS, &columns, |row| {
        if booted.as_ref().is_none_or(|booted| booted.boot != row.get("boot")) {
            booted = Some(Booted::new(row.get("boot")));
        }
        booted.as_ref().unwrap().masks(row)
    });
    assert_eq!(rows, 51);
}

#[test]
fn golden_dma_tlb() {
    let rows = compare(POOL, &["nslabs", "nareas", "area_nslabs", "used", "force_bounce"], |row| {
        let Booted { device, lab, .. } = Booted::new(row.get("boot"));
        let pool = lab.kernel().swiotlb.lock();
        let mut seen = [0; 4];
        if let Some(pool) = pool.as_ref() {
            let areas: Vec<_> = pool.areas().map(|area| area.total).collect();
            assert!(areas.iter().all(|&slots| slots == areas[0]));
            let stats = pool.stats();
            seen = [stats.total, u32::try_from(areas.len()).unwrap(), areas[0], stats.used];
            let end = pool.base().checked_add(pool.bytes()).unwrap();
            assert_eq!(pool.bytes(), u64::from(stats.total) * swiotlb::SLOT_SIZE);
            assert!(pool.base().page_offset() == 0 && end.get() <= lab.kernel().ram().low());
        }
        assert_eq!(pool.is_none(), row.number("start") == Some(0));
        let [slots, areas, area, used] = seen.map(|count| count.to_string());
        let force = u8::from(device.bounces_all()).to_string();
        vec![("nslabs", slots), ("nareas", areas), ("area_nslabs", area), ("used", used), ("force_bounce", force)]
    });
    assert_eq!(rows, 3);
}

#[test]
fn golden_dma24() {
    let booted = Booted::new("small");
    let (cpu, device) = (booted.lab.cpu(), &booted.device);
    let rows = compare(SMALL, &["nslabs", "start", "rc", "required", "max_mapping", "zone", "err"], |row| {
        match row.get("what") {
            "tlb" => {
                let pool = booted.lab.kernel().swiotlb.lock();
                let (slots, start) = pool.as_ref().map_or((0, 0), |pool| (pool.stats().total, pool.base().get()));
                vec![("nslabs", slots.to_string()), ("start", format!("{start:#x}"))]
            }
            "set_mask_24" => vec![
                ("rc", if device.set_mask(&cpu, dma_bit_mask(24)).is_ok() { "0" } else { "-5" }.to_owned()),
                ("required", format!("{:#x}", device.required_mask())),
                ("max_mapping", device.max_mapping_size().to_string()),
            ],
            "map_buffer_beyond_mask" => {
                let buf = KBuf::kmalloc(&cpu, 64, GFP_KERNEL).unwrap();
                let (zone, phys) = (buf.zone(), buf.phys().get());
                assert!(zone == ZoneKind::Dma32 && phys >= 16 << 20);
                let error = device.map_single::<ToDevice>(&cpu, buf).err().map(|error| error.why);
                let err = if matches!(error, Some(MapFailure::Overflow { .. })) { "-12" } else { "0" };
                vec![("zone", zone.to_string()), ("err", err.to_owned())]
            }
            other => panic!("no such row: {other}"),
        }
    });
    assert_eq!(rows, 3);
}
