//! Scatterlists as they were measured: a list of four of which one is in reach, and what came after it.

use super::*;
use crate::dma::misuse;
use crate::dma::swiotlb::SLOT_SIZE;
use crate::gfp::{GFP_DMA32, GFP_KERNEL};
use crate::testing::{Lab, compare};
use crate::zone::ZoneKind;

const LIST: &str = include_str!("../../../../tests/golden/dma_sg.tsv");
const MISC: &str = include_str!("../../../../tests/golden/dma_sg_misc.tsv");
const FROM: Dir = Dir::FromDevice;

/// A page of 0x11 for each entry of the measured list, the third from zone DMA32.
fn pages(cpu: &Cpu<'_>) -> Vec<KBuf> {
    let page = |number| {
        let mut page = KBuf::pages(cpu, 0, if number == 2 { GFP_KERNEL | GFP_DMA32 } else { GFP_KERNEL }).unwrap();
        assert_eq!(page.zone(), if number == 2 { ZoneKind::Dma32 } else { ZoneKind::Normal });
        page.write_at(0, &[0x11; 4096]).unwrap();
        page
    };
    (0..4).map(page).collect()
}

/// The measured list: entry `i` has 512 + 100 i bytes from 16 i on of its page.
fn listed(pages: &[KBuf]) -> SgTable {
    let mut table = SgTable::default();
    for (number, page) in (0..).zip(pages) {
        table.push(SgEntry::new(page.phys().wrapping_add(16 * number), 512 + 100 * number, page.owner()));
    }
    table
}

#[test]
fn golden_dma_sg() {
    let lab = Lab::boot("dma");
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let pages = pages(&cpu);
    let mut table = listed(&pages);
    let ret = misuse::map_sg(&cpu, &device, &mut table, FROM);
    let mut last = None;
    let rows = compare(LIST, &["nents", "ret", "cpu_off", "len", "dma_len", "bounced"], |row| {
        let entry = table.entries()[usize::try_from(row.number("i").unwrap()).unwrap()];
        let (dma, offset) = (entry.dma_addr().get(), entry.phys().page_offset());
        if entry.bounced() {
            assert!(dma.is_multiple_of(SLOT_SIZE) && last.is_none_or(|last| dma == last + SLOT_SIZE), "{}", row.line);
            last = Some(dma);
        } else {
            assert_eq!((dma, dma % PAGE_SIZE), (entry.phys().get(), offset), "{}", row.line);
        }
        vec![
            ("nents", table.entries().len().to_string()),
            ("ret", ret.to_string()),
            ("cpu_off", format!("{offset:#x}")),
            ("len", entry.len().to_string()),
            ("dma_len", entry.dma_len().to_string()),
            ("bounced", u8::from(entry.bounced()).to_string()),
        ]
    });
    assert_eq!(rows, 4);
    misuse::unmap_sg(&cpu, &device, &table, 4, FROM);
    assert_eq!((lab.kernel().swiotlb_usage().0, lab.findings()), (0, vec![]));
}

#[test]
fn golden_dma_sg_misc() {
    let lab = Lab::boot("dma");
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let ram = lab.kernel().ram();
    let rows = compare(MISC, &["first", "last", "outside", "ret", "slots_leaked"], |row| {
        let large = KBuf::pages(&cpu, 8, GFP_KERNEL).unwrap();
        let entry = |offset, len| SgEntry::new(large.phys().wrapping_add(offset), len, large.owner());
        let mut table = SgTable::default();
        match row.get("what") {
            "sync_sg_for_cpu" => {
                let pages = pages(&cpu);
                table = listed(&pages);
                assert_eq!(misuse::map_sg(&cpu, &device, &mut table, FROM), 4);
                for entry in table.entries() {
                    let at = device.behind(entry.dma_addr()).unwrap();
                    ram.write(at, &vec![0x77; usize::try_from(entry.len()).unwrap()]).unwrap();
                }
                misuse::sync_sg(&cpu, &device, &table, 4, true, FROM);
                let byte = |at| format!("{:02x}", ram.load::<u8>(at).unwrap());
                let seen = |entry: &SgEntry| {
                    let end = entry.phys().wrapping_add(entry.len());
                    let last = entry.phys().wrapping_add(entry.len() - 1);
                    vec![("first", byte(entry.phys())), ("last", byte(last)), ("outside", byte(end))]
                };
                let all: Vec<_> = table.entries().iter().map(seen).collect();
                assert!(all.iter().all(|seen| *seen == all[0]), "{all:?}");
                misuse::unmap_sg(&cpu, &device, &table, 4, FROM);
                all[0].clone()
            }
            "contiguous_2_not_merged" => {
                (0..2).for_each(|number| table.push(entry(number * PAGE_SIZE, PAGE_SIZE)));
                let ret = misuse::map_sg(&cpu, &device, &mut table, FROM);
                misuse::unmap_sg(&cpu, &device, &table, 2, FROM);
                vec![("ret", ret.to_string())]
            }
            "second_too_big" => {
                [4096, 512 << 10].into_iter().for_each(|len| table.push(entry(0, len)));
                let ret = misuse::map_sg(&cpu, &device, &mut table, FROM);
                vec![("ret", ret.to_string()), ("slots_leaked", lab.kernel().swiotlb_usage().0.to_string())]
            }
            "second_too_big_dma_map_sgtable" => {
                [4096, 512 << 10].into_iter().for_each(|len| table.push(entry(0, len)));
                let error = misuse::map_sgtable(&cpu, &device, &mut table, FROM).unwrap_err();
                vec![("ret", error.sgtable_errno().to_string())]
            }
            other => panic!("no such row: {other}"),
        }
    });
    assert_eq!((rows, lab.kernel().swiotlb_usage().0, lab.findings()), (4, 0, vec![]));
}
