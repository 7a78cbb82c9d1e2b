//! DMA pools as they were measured: where twelve blocks lie, and what a block holds.

use super::*;
use crate::testing::{Lab, compare};

const BLOCKS: &str = include_str!("../../../../tests/golden/dma_pool.tsv");
const MISC: &str = include_str!("../../../../tests/golden/dma_pool_misc.tsv");

/// The measured offsets, as far as they are no luck: those in the first page.
fn in_first(offsets: &str, allocation: u64) -> Vec<u64> {
    let offsets = offsets.split(',').filter(|cell| !cell.is_empty()).map(|cell| cell.parse().unwrap());
    offsets.take_while(|&offset| offset < allocation).collect()
}

#[test]
fn golden_dma_pool() {
    let lab = Lab::boot("dma");
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let rows = compare(BLOCKS, &["ret", "first_dma_in_page", "zone"], |row| {
        let [size, align, boundary] = ["size", "align", "boundary"].map(|column| row.number(column).unwrap());
        let [len, to, across] = [size, align, boundary].map(|number| usize::try_from(number).unwrap());
        let Ok(pool) = dma_pool_create(&cpu, "or_pool", &device, len, to, across) else {
            return vec![("ret", "NULL".to_owned())];
        };
        let blocks: Vec<_> = (0..12).map(|_| pool.alloc(&cpu, GFP_KERNEL).unwrap()).collect();
        let at: Vec<_> = blocks.iter().map(|block| block.dma_addr().get()).collect();
        let allocation = PAGE_SIZE.max(size.max(4).next_multiple_of(align.max(1)));
        let first = in_first(row.get("offsets"), allocation);
        // Each page is cut as the first one was, begins on a page and is no other's.
        let mut starts = Vec::new();
        for blocks in at.chunks(first.len()) {
            let start = blocks[0];
            assert!(start.is_multiple_of(PAGE_SIZE.max(align)) && !starts.contains(&start), "{}", row.line);
            let offsets: Vec<_> = blocks.iter().map(|at| at - start).collect();
            assert_eq!(offsets, first[..blocks.len()], "{}", row.line);
            starts.push(start);
        }
        vec![
            ("ret", "ptr".to_owned()),
            ("first_dma_in_page", format!("{:#x}", at[0] % PAGE_SIZE)),
            ("zone", blocks[0].zone().to_string()),
        ]
    });
    assert_eq!((rows, lab.leaks().len(), lab.findings()), (18, 0, vec![]));
}

#[test]
fn golden_dma_pool_misc() {
    let lab = Lab::boot("dma");
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let pool = dma_pool_create(&cpu, "or_pool", &device, 64, 0, 0).unwrap();
    let mut before = None;
    let rows = compare(MISC, &["value", "kept_bytes_at_8", "first4"], |row| {
        let mut bytes = [0xee; 64];
        match row.get("what") {
            "first_alloc_byte" => {
                let block = pool.alloc(&cpu, GFP_KERNEL).unwrap();
                block.read(&cpu, 0, &mut bytes);
                block.write(&cpu, 0, &[0x5a; 64]);
                before = Some(block.dma_addr());
                block.free(&cpu);
                vec![("value", format!("{:02x}", bytes[63]))]
            }
            "lifo_same_block" => {
                let block = pool.alloc(&cpu, GFP_KERNEL).unwrap();
                block.read(&cpu, 0, &mut bytes);
                let first: String = bytes[..4].iter().map(|byte| format!("{byte:02x}")).collect();
                vec![
                    ("value", u8::from(before == Some(block.dma_addr())).to_string()),
                    ("kept_bytes_at_8", format!("{:02x}", bytes[8])),
                    ("first4", first),
                ]
            }
            "zalloc_zero" => {
                let block = pool.zalloc(&cpu, GFP_KERNEL).unwrap();
                block.read(&cpu, 0, &mut bytes);
                let zero = before == Some(block.dma_addr()) && bytes == [0; 64];
                vec![("value", u8::from(zero).to_string())]
            }
            other => panic!("no such row: {other}"),
        }
    });
    assert_eq!((rows, lab.findings()), (3, vec![]));
}
