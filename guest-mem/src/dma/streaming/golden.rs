//! Where bounced mappings lie, and which slots they take, on each machine that was measured.

use super::*;
use crate::dma::Dir;
use crate::dma::dma_bit_mask;
use crate::dma::misuse;
use crate::dma::swiotlb::SLOT_SIZE;
use crate::gfp::{GFP_DMA32, GFP_KERNEL};
use crate::testing::{Computed, Lab, Row, compare};
use crate::zone::ZoneKind;

const SIZES: &str = include_str!("../../../../tests/golden/map_size.tsv");
const OFFSETS: &str = include_str!("../../../../tests/golden/map_offset.tsv");
const TOGETHER: &str = include_str!("../../../../tests/golden/map_offset_misc.tsv");
const AREAS: &str = include_str!("../../../../tests/golden/swiotlb_area.tsv");

/// What C code holds of a map call: an address, the error's among them.
struct Seen {
    raw: Option<RawMapping>,
    dma: u64,
    err: &'static str,
}

fn map(lab: &Lab, cpu: u32, device: &DmaDevice, buf: &KBuf, (offset, len): (u64, u64)) -> Seen {
    let cpu = lab.cpu_number(cpu);
    match misuse::map_part(&cpu, device, buf, (offset, len), Dir::ToDevice, Attrs::empty()) {
        Ok(raw) => Seen { raw: Some(raw), dma: raw.dma.get(), err: "0" },
        Err(MapFailure::Overflow { .. } | MapFailure::Swiotlb(_)) => Seen { raw: None, dma: u64::MAX, err: "-12" },
        Err(other) => panic!("{other}"),
    }
}

fn undo(lab: &Lab, device: &DmaDevice, seen: &Seen) {
    if let Some(raw) = seen.raw {
        misuse::unmap_single(&lab.cpu(), device, raw.dma, raw.len, Dir::ToDevice);
        assert_eq!(lab.kernel().swiotlb_usage().0, 0, "all slots back");
    }
}

/// The boot's machine, kept from row to row.
fn lab_of<'l>(boot: &'static str, of: &'l mut Option<(&'static str, Lab)>) -> &'l Lab {
    if of.as_ref().is_none_or(|(is, _)| *is != boot) {
        // The new one may take the place of the old.
        *of = None;
        *of = Some((boot, Lab::boot(boot)));
    }
    &of.as_ref().unwrap().1
}

#[test]
fn golden_map_size() {
    let (mut labs, mut last) = (None, 0);
    let rows = compare(SIZES, &["err", "bounced", "slots", "max_mapping"], |row| {
        if labs.as_ref().is_none_or(|(boot, _)| *boot != row.get("boot")) {
            last = 0;
        }
        let lab = lab_of(row.get("boot"), &mut labs);
        let (cpu, low) = (lab.cpu(), row.get("mask") == "32low");
        let device = lab.device(if row.get("mask") == "64" { 64 } else { 32 });
        let size = row.number("size").unwrap();
        let order = (0..=10).find(|&order| size <= 4096 << order).unwrap();
        let pages = KBuf::pages(&cpu, order, if low { GFP_KERNEL | GFP_DMA32 } else { GFP_KERNEL }).unwrap();
        assert_eq!(pages.zone(), if low { ZoneKind::Dma32 } else { ZoneKind::Normal });
        let seen = map(lab, 0, &device, &pages, (0, size));
        let bounced = seen.raw.is_some_and(|raw| raw.bounced);
        if bounced {
            assert!(seen.dma > last && seen.dma.is_multiple_of(if size < 4096 { 2048 } else { 4096 }), "{}", row.line);
            last = seen.dma;
        } else {
            let none = if seen.raw.is_some() { pages.phys().get() } else { u64::MAX };
            assert_eq!((seen.dma, row.number("dma") == Some(u64::MAX)), (none, seen.raw.is_none()), "{}", row.line);
        }
        let slots = lab.kernel().swiotlb_usage().0;
        undo(lab, &device, &seen);
        vec![
            ("err", seen.err.to_owned()),
            ("bounced", u8::from(bounced).to_string()),
            ("slots", slots.to_string()),
            ("max_mapping", device.max_mapping_size().to_string()),
        ]
    });
    assert_eq!(rows, 27);
}

fn offset_row(lab: &Lab, row: &Row) -> Computed {
    let device = lab.device(32);
    let mask = row.number("min_align_mask").unwrap();
    device.set_min_align_mask(u32::try_from(mask).unwrap()).unwrap();
    let buf = KBuf::pages(&lab.cpu(), 4, GFP_KERNEL).unwrap();
    assert!(buf.phys().get().is_multiple_of(65536) && buf.zone() == ZoneKind::Normal);
    let seen = map(lab, 0, &device, &buf, (row.number("cpu_off_in_page").unwrap(), 100));
    let slots = lab.kernel().swiotlb_usage().0;
    undo(lab, &device, &seen);
    let (in_page, in_slot) = (seen.dma % PAGE_SIZE, seen.dma % SLOT_SIZE);
    // Which half of the page it is in is luck where no bit of the mask says.
    let luck = mask < 0xfff && seen.raw.is_some();
    let in_page = if luck && in_page % SLOT_SIZE == in_slot { row.number("dma_off_in_page").unwrap() } else { in_page };
    assert!(!luck || in_page % SLOT_SIZE == in_slot, "{}", row.line);
    vec![
        ("dma_off_in_page", format!("{in_page:#x}")),
        ("dma_off_in_slot", format!("{in_slot:#x}")),
        ("slots", slots.to_string()),
        ("err", seen.err.to_owned()),
        ("max_mapping", device.max_mapping_size().to_string()),
    ]
}

#[test]
fn golden_map_offset() {
    let mut labs = None;
    let columns = ["dma_off_in_page", "dma_off_in_slot", "slots", "err", "max_mapping"];
    let rows = compare(OFFSETS, &columns, |row| offset_row(lab_of(row.get("boot"), &mut labs), row));
    assert_eq!(rows, 78);
}

#[test]
fn golden_map_offset_misc() {
    let mut labs = None;
    let rows = compare(TOGETHER, &["value"], |row| {
        let lab = lab_of(row.get("boot"), &mut labs);
        let (cpu, device) = (lab.cpu(), lab.device(32));
        let buf = KBuf::pages(&cpu, 1, GFP_KERNEL).unwrap();
        let value = match row.get("what") {
            "second_map_4096_page_aligned" => {
                let [first, second] = [100, 4096].map(|len| map(lab, 0, &device, &buf, (0, len)));
                if let (Some(first), Some(second)) = (first.raw, second.raw) {
                    let slot = |raw: RawMapping| raw.dma.get() / SLOT_SIZE;
                    let next = slot(first) + 1;
                    assert_eq!(slot(second), next.next_multiple_of(2), "the first pair of slots that is a page");
                    misuse::unmap_single(&cpu, &device, first.dma, 100, Dir::ToDevice);
                }
                undo(lab, &device, &second);
                u64::from(second.dma.is_multiple_of(PAGE_SIZE))
            }
            "map_unmap_map_slot_advance" => {
                let places = [(); 2].map(|()| {
                    let seen = map(lab, 0, &device, &buf, (0, 100));
                    undo(lab, &device, &seen);
                    seen.dma
                });
                (places[1] - places[0]) / SLOT_SIZE
            }
            other => panic!("no such row: {other}"),
        };
        vec![("value", value.to_string())]
    });
    assert_eq!(rows, 6);
}

#[test]
fn golden_swiotlb_area() {
    let lab = Lab::boot("swfull");
    let device = lab.device(32);
    let buf = KBuf::pages(&lab.cpu(), 6, GFP_KERNEL).unwrap();
    let fill: Vec<_> = std::iter::from_fn(|| map(&lab, 1, &device, &buf, (0, 200_000)).raw).collect();
    for raw in fill {
        misuse::unmap_single(&lab.cpu(), &device, raw.dma, raw.len, Dir::ToDevice);
    }
    assert_eq!((device.mask(), lab.kernel().swiotlb_usage().0), (dma_bit_mask(32), 0));
    let rows = compare(AREAS, &["slot", "area", "area_nslabs"], |row| {
        let seen = map(&lab, u32::try_from(row.number("cpu").unwrap()).unwrap(), &device, &buf, (0, 64));
        let pool = lab.kernel().swiotlb.lock();
        let pool = pool.as_ref().unwrap();
        let slot = (seen.dma - pool.base().get()) / SLOT_SIZE;
        let size = u64::from(pool.areas().next().unwrap().total);
        vec![("slot", slot.to_string()), ("area", (slot / size).to_string()), ("area_nslabs", size.to_string())]
    });
    assert_eq!(rows, 2);
}
