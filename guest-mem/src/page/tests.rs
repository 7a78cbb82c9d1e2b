use super::*;
use crate::finding::Resource;
use crate::gfp::{__GFP_ZERO, GFP_DMA, GFP_KERNEL};
use crate::testing::Lab;

#[test]
fn a_block_is_aligned_zeroed_if_asked_and_freed_when_dropped() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let dirty = alloc_pages(&cpu, 3, GFP_KERNEL).unwrap();
    let at = dirty.phys();
    lab.kernel().ram().write(at, &[7; 8 * 4096]).unwrap();
    assert_eq!((dirty.order(), dirty.zone(), at.get() % (8 * 4096)), (3, ZoneKind::Normal, 0));
    drop(dirty);
    let clean = alloc_pages(&cpu, 3, GFP_KERNEL | __GFP_ZERO).unwrap();
    let mut bytes = vec![1; 8 * 4096];
    lab.kernel().ram().read(at, &mut bytes).unwrap();
    assert_eq!((clean.phys(), bytes.iter().max()), (at, Some(&0)));
    let leak = crate::stats::leaks(lab.kernel()).remove(0);
    assert_eq!((leak.resource, leak.bytes, leak.owner), (Resource::Pages, 8 * 4096, clean.owner()));
    drop(clean);
    assert!(lab.leaks().is_empty());
}

#[test]
fn orders_end_at_ten_and_a_freed_vector_is_restored() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let before = lab.kernel().buddyinfo();
    assert!(matches!(alloc_pages(&cpu, 11, GFP_KERNEL), Err(AllocError::TooLarge { order: 11 })));
    let blocks = [10, 0, 5].map(|order| alloc_pages(&cpu, order, GFP_KERNEL | GFP_DMA).unwrap());
    assert!(blocks.iter().all(|block| block.zone() == ZoneKind::Dma));
    assert_ne!(lab.kernel().buddyinfo(), before);
    drop(blocks);
    assert_eq!(lab.kernel().buddyinfo(), before);
}

#[test]
fn a_second_free_is_told_and_changes_nothing() {
    let lab = Lab::new();
    let pages = alloc_pages(&lab.cpu(), 1, GFP_KERNEL).unwrap();
    give_block(lab.kernel(), pages.phys(), 0);
    give_block(lab.kernel(), pages.phys(), 1);
    drop(pages);
    assert_eq!(lab.findings(), ["bad-free"; 2]);
    lab.kernel().validate().unwrap();
}

#[test]
fn each_event_has_its_size_in_bytes() {
    let lab = Lab::new();
    lab.kernel().trace().capture();
    drop(alloc_pages(&lab.cpu(), 2, GFP_KERNEL).unwrap());
    let kinds: Vec<_> = lab.kernel().trace().take_captured().iter().map(|(_, r)| (r.kind, r.len)).collect();
    assert_eq!(kinds, [(Kind::MmPageAlloc, 16384), (Kind::MmPageFree, 16384)]);
}
