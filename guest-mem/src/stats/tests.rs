use super::*;
use crate::KBuf;
use crate::dma::{Dir, misuse};
use crate::gfp::{GFP_DMA32, GFP_KERNEL};
use crate::testing::Lab;

#[test]
fn memory_under_a_leaked_mapping_is_told_with_it() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let buf = KBuf::pages(&cpu, 0, GFP_KERNEL | GFP_DMA32).unwrap();
    let other = KBuf::pages(&cpu, 0, GFP_KERNEL | GFP_DMA32).unwrap();
    let raw = misuse::map_single(&cpu, &device, &buf, Dir::ToDevice).unwrap();
    let found = leaks(lab.kernel());
    assert_eq!(found.iter().map(|leak| leak.resource).collect::<Vec<_>>(), [Resource::Mapping, Resource::Pages]);
    assert_eq!((found[0].at, found[0].device.as_deref()), (buf.phys(), Some("0000:00:04.0")));
    assert_eq!(found[1].at, other.phys());
    misuse::unmap_single(&cpu, &device, raw.dma, raw.len, Dir::ToDevice);
    assert_eq!(leaks(lab.kernel()).len(), 2, "now both are plain pages");
}

#[test]
fn a_leak_is_a_finding_with_both_sites() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let buf = KBuf::kmalloc(&cpu, 77, GFP_KERNEL).unwrap();
    let finding = leaks(lab.kernel()).remove(0).finding(5, cpu.owner());
    assert_eq!(finding.kind.to_string(), format!("leak: kmalloc object, 77 bytes at {}", buf.phys()));
    assert_eq!((finding.kind.config(), finding.at), (Some("CONFIG_DEBUG_KMEMLEAK"), 5));
    assert_eq!(finding.sites[0], ("allocated at", buf.owner()));
    assert!(finding.to_string().contains("not freed when "));
}

#[test]
fn leaks_of_one_line_are_added_up_and_the_largest_come_first() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let small: Vec<_> = (0..3).map(|_| KBuf::kmalloc(&cpu, 10, GFP_KERNEL).unwrap()).collect();
    let large = KBuf::kmalloc(&cpu, 77, GFP_KERNEL).unwrap();
    let device = lab.device(32);
    let raw = misuse::map_single(&cpu, &device, &large, Dir::ToDevice).unwrap();
    let found = leaks(lab.kernel());
    let sites = by_site(&found);
    let rows: Vec<_> = sites.iter().map(|site| (site.resource, site.count, site.bytes)).collect();
    assert_eq!(rows, [(Resource::Mapping, 1, 77), (Resource::Slab, 3, 30)], "what is mapped is no slab object here");
    assert_eq!((sites[1].owner, found[sites[1].first].at), (small[0].owner(), small[0].phys()));
    misuse::unmap_single(&cpu, &device, raw.dma, raw.len, Dir::ToDevice);
    let again = by_site(&leaks(lab.kernel()));
    assert_eq!(again.iter().map(|site| site.bytes).collect::<Vec<_>>(), [77, 30]);
    assert_eq!(again.iter().map(|site| site.count).sum::<u64>(), 4);
}
