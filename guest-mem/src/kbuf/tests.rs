use super::*;
use crate::env::Class;
use crate::finding::Resource;
use crate::gfp::{__GFP_COMP, __GFP_HIGHMEM, __GFP_NOFAIL, __GFP_NORETRY, __GFP_NOWARN, __GFP_ZERO};
use crate::gfp::{GFP_ATOMIC, GFP_DMA, GFP_DMA32, GFP_KERNEL};
use crate::kernel::MachineConfig;
use crate::testing::Lab;

#[test]
fn bytes_go_in_and_out_within_the_length_asked_for() {
    let lab = Lab::new();
    let mut buf = KBuf::kmalloc(&lab.cpu(), 10, GFP_KERNEL).unwrap();
    buf.write_at(7, &[1, 2, 3]).unwrap();
    let mut bytes = [0; 3];
    buf.read_at(7, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3]);
    let error = buf.write_at(8, &[0; 3]).unwrap_err();
    assert_eq!(error.to_string(), "3 bytes at offset 8 of a buffer of 10", "the class has 16, the caller has 10");
    assert!(buf.read_at(usize::MAX, &mut bytes).is_err());
    assert_eq!((buf.virt(), format!("{buf:?}")), (buf.phys().direct_map(), format!("KBuf({} + 0xa)", buf.phys())));
}

#[test]
fn the_mask_decides_the_zone_for_pages_and_kmalloc_drops_dma32() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let zone = |gfp| KBuf::kmalloc(&cpu, 3000, gfp).unwrap().zone();
    assert_eq!((zone(GFP_KERNEL), zone(GFP_KERNEL | GFP_DMA)), (ZoneKind::Normal, ZoneKind::Dma));
    assert!(lab.findings().is_empty());
    assert_eq!(KBuf::kmalloc(&cpu, 200, GFP_KERNEL | GFP_DMA32).unwrap().zone(), ZoneKind::Normal);
    let finding = &lab.kernel().findings()[0].kind;
    let text = "Unexpected gfp: 0x4 (GFP_DMA32). Fixing up to gfp: 0xcc0 (GFP_KERNEL). Fix your code!";
    assert_eq!((finding.to_string().as_str(), finding.name()), (text, "gfp-fixup"));
    assert_eq!(KBuf::pages(&cpu, 1, GFP_KERNEL | GFP_DMA32).unwrap().zone(), ZoneKind::Dma32);
}

#[test]
fn zeroing_clears_what_was_asked_for_and_old_bytes_stay_otherwise() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let bytes_of = |buf: &KBuf| {
        let mut bytes = [0; 64];
        buf.read_at(0, &mut bytes).unwrap();
        bytes
    };
    let mut buf = KBuf::kmalloc(&cpu, 64, GFP_KERNEL).unwrap();
    buf.write_at(0, &[0xa5; 64]).unwrap();
    let at = buf.phys();
    drop(buf);
    let again = KBuf::kmalloc(&cpu, 64, GFP_KERNEL).unwrap();
    assert_eq!((again.phys(), bytes_of(&again)[63]), (at, 0xa5), "last in, first out, and not cleared");
    drop(again);
    let zeroed = KBuf::kmalloc(&cpu, 64, GFP_KERNEL | __GFP_ZERO).unwrap();
    assert_eq!((zeroed.phys(), bytes_of(&zeroed)), (at, [0; 64]));
}

#[test]
fn a_buffer_of_no_bytes_is_the_zero_size_pointer() {
    let lab = Lab::new();
    let mut buf = KBuf::kmalloc(&lab.cpu(), 0, GFP_KERNEL).unwrap();
    assert_eq!((buf.virt(), buf.len(), buf.is_empty()), (ZERO_SIZE_PTR, 0, true));
    assert!(buf.write_at(0, &[]).is_ok() && buf.write_at(0, &[1]).is_err());
    drop(buf);
    assert!(lab.findings().is_empty() && lab.solo.points().is_empty(), "no point: kmalloc(0) can't fail");
}

#[test]
fn a_point_fails_the_call_but_never_one_that_must_not_fail() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    lab.solo.fail_nth(0);
    assert!(matches!(KBuf::kmalloc(&cpu, 64, GFP_ATOMIC), Err(AllocError::NoMemory { .. })));
    lab.solo.fail_nth(0);
    assert!(KBuf::pages(&cpu, 2, GFP_KERNEL).is_err());
    for pages in [false, true] {
        lab.solo.fail_nth(0);
        let gfp = GFP_KERNEL | __GFP_NOFAIL;
        assert!(if pages { KBuf::pages(&cpu, 0, gfp) } else { KBuf::kmalloc(&cpu, 64, gfp) }.is_ok());
    }
    assert!(matches!(KBuf::kmalloc(&cpu, (4 << 20) + 1, GFP_KERNEL), Err(AllocError::TooLarge { .. })));
    assert!(lab.leaks().is_empty());
}

#[test]
fn each_point_has_its_event_and_asks_what_linux_asks() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    lab.kernel().trace().capture();
    let asked = || lab.solo.requests().iter().map(|r| (r.class, r.size, r.order, r.gfp, r.cache)).collect::<Vec<_>>();
    let events = || {
        let kinds = lab.kernel().trace().take_captured().into_iter().map(|(_, record)| (record.kind, record.len));
        kinds.collect::<Vec<_>>()
    };
    let small = KBuf::kmalloc(&cpu, 50, GFP_ATOMIC).unwrap();
    let slab = |size, name| (Class::Slab, size, 0, GFP_ATOMIC, Some(name));
    let first = GFP_ATOMIC | __GFP_NOWARN | __GFP_NORETRY;
    assert_eq!(asked(), [slab(64, "kmalloc-64"), (Class::Page, 1, 0, first, None)], "a new slab is a page");
    assert_eq!(events(), [(Kind::MmPageAlloc, 4096), (Kind::Kmalloc, 50)]);
    let second = KBuf::kmalloc(&cpu, 64, GFP_ATOMIC).unwrap();
    assert_eq!((asked(), events()), (vec![slab(64, "kmalloc-64")], vec![(Kind::Kmalloc, 64)]), "it has room");
    let large = KBuf::kmalloc(&cpu, 8193, GFP_ATOMIC | __GFP_HIGHMEM).unwrap();
    assert_eq!(asked(), [(Class::Page, 4, 2, GFP_ATOMIC | __GFP_COMP, None)]);
    assert_eq!(events()[..2], [(Kind::MmPageAlloc, 16384), (Kind::Kmalloc, 8193)]);
    assert!(KBuf::kmalloc(&cpu, (4 << 20) + 1, GFP_ATOMIC).is_err() && KBuf::pages(&cpu, 11, GFP_ATOMIC).is_err());
    assert_eq!(
        (asked(), events()),
        (vec![], vec![(Kind::Finding, 2), (Kind::Kmalloc, (4 << 20) + 1), (Kind::Finding, 3)]),
        "no block is so large"
    );
    drop((small, second, large));
    let freed = [(Kind::Kfree, 50), (Kind::Kfree, 64), (Kind::Kfree, 8193), (Kind::MmPageFree, 16384)];
    assert_eq!(events(), freed, "the slab is kept");
}

#[test]
fn a_cache_that_gets_no_slab_as_it_likes_takes_a_smaller_one() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    lab.solo.fail_nth(1);
    let absorbed = KBuf::kmalloc(&cpu, 8000, GFP_KERNEL).unwrap();
    assert_eq!(lab.solo.points(), [Class::Slab, Class::Page, Class::Page], "the second try is a smaller slab");
    drop(absorbed);
    assert!(lab.leaks().is_empty() && lab.findings().is_empty());
}

#[test]
fn large_ones_are_whole_pages_and_leak_as_what_was_asked_for() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let large = KBuf::kmalloc(&cpu, 12_289, GFP_KERNEL).unwrap();
    let leak = crate::stats::leaks(lab.kernel()).remove(0);
    assert_eq!((leak.resource, leak.bytes, leak.at), (Resource::Slab, 12_289, large.phys()));
    assert_eq!(leak.owner, large.owner());
    assert_eq!(large.phys().get() % 16384, 0);
    drop(large);
    assert!(lab.leaks().is_empty());
}

#[test]
fn a_buffer_kept_over_a_reset_frees_and_touches_nothing() {
    let config = MachineConfig { ram: (64 << 20) + 0x7000, ..MachineConfig::default() };
    let old = Lab::of(config);
    let mut kept = [64, 3 * 4096].map(|len| KBuf::kmalloc(&old.cpu(), len, GFP_KERNEL).unwrap());
    let pages = KBuf::pages(&old.cpu(), 0, GFP_KERNEL).unwrap();
    drop(old);
    let lab = Lab::of(config);
    let cpu = lab.cpu();
    let fresh = [64, 3 * 4096].map(|len| KBuf::kmalloc(&cpu, len, GFP_KERNEL | __GFP_ZERO).unwrap());
    assert_eq!(fresh[0].phys(), kept[0].phys(), "the same place on the new machine");
    let mut byte = [9];
    kept[0].write_at(0, &[1]).unwrap();
    kept[1].read_at(0, &mut byte).unwrap();
    assert_eq!(byte, [9], "nothing was read");
    fresh[0].read_at(0, &mut byte).unwrap();
    assert_eq!((byte, lab.findings()), ([0], vec!["stale-handle"; 2]));
    let line = lab.kernel().findings()[0].sites[0].1.site.place().unwrap().file();
    assert!(line.ends_with("kbuf/tests.rs"), "{line}");
    drop((kept, pages));
    assert_eq!((lab.leaks().len(), lab.findings().len()), (2, 2), "teardown in any order is no crime");
    lab.kernel().validate().unwrap();
}
