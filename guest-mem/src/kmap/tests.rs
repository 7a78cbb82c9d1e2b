//! Unit tests of high memory.

use super::*;
use crate::arch::Arch;
use crate::finding::Resource;
use crate::gfp::{GFP_HIGHUSER, GFP_KERNEL};
use crate::kernel::MachineConfig;
use crate::page::alloc_pages;
use crate::testing::Lab;
use crate::zone::ZoneKind;

fn narrow(ram: u64) -> Lab {
    Lab::of(MachineConfig { arch: Arch::X86_32, ram, ..MachineConfig::default() })
}

fn high(cpu: &Cpu<'_>) -> Pages {
    let pages = alloc_pages(cpu, 0, GFP_HIGHUSER).unwrap();
    assert_eq!(pages.zone(), ZoneKind::HighMem);
    pages
}

#[test]
fn a_high_page_has_an_address_only_while_it_is_mapped() {
    let lab = narrow(2 << 30);
    let cpu = lab.cpu();
    let page = high(&cpu);
    assert_eq!(page_address(&cpu, &page, 0), Ok(None));
    let map = kmap(&cpu, &page, 0).unwrap();
    assert_eq!(page_address(&cpu, &page, 0), Ok(Some(map.virt())));
    map.write_at(4090, b"beyond").unwrap();
    let mut bytes = [0; 6];
    read_page(&cpu, &page, 0, 4090, &mut bytes).unwrap();
    assert_eq!((&bytes, lab.leaks()), (b"beyond", vec![Resource::Pages, Resource::Kmap]));
    let again = kmap(&cpu, &page, 0).unwrap();
    assert_eq!(again.virt(), map.virt(), "one slot for a page, however often it is mapped");
    again.kunmap(&cpu);
    assert!(page_address(&cpu, &page, 0).unwrap().is_some());
    map.kunmap(&cpu);
    assert_eq!((page_address(&cpu, &page, 0), lab.findings()), (Ok(None), vec![]));
    assert_eq!(kmap(&cpu, &page, 1).err(), Some(KmapError::NoPage { index: 1, pages: 1 }));
}

#[test]
fn a_page_with_a_permanent_address_needs_no_slot() {
    let lab = narrow(2 << 30);
    let cpu = lab.cpu();
    let low = alloc_pages(&cpu, 1, GFP_KERNEL).unwrap();
    let map = kmap(&cpu, &low, 1).unwrap();
    assert_eq!(map.virt().get(), 0xc000_0000 + low.phys().get() + 4096);
    let locals: Vec<_> = (0..40).map(|_| kmap_local_page(&cpu, &low, 0).unwrap()).collect();
    assert_eq!(lab.leaks(), [Resource::Pages], "nothing is mapped");
    drop((map, locals));
    misuse::kunmap(&cpu, &low, 0).unwrap();
    assert_eq!(lab.findings(), [""; 0]);
}

#[test]
fn touching_a_page_without_an_address_and_unmapping_twice_are_found() {
    let lab = narrow(2 << 30);
    let cpu = lab.cpu();
    let page = high(&cpu);
    let pfn = page.phys().pfn().get();
    assert_eq!(write_page(&cpu, &page, 0, 0, b"x"), Err(KmapError::NoAddress { pfn }));
    let map = kmap(&cpu, &page, 0).unwrap();
    misuse::kunmap(&cpu, &page, 0).unwrap();
    drop(map);
    assert_eq!(read_page(&cpu, &page, 0, 0, &mut [0]), Err(KmapError::NoAddress { pfn }));
    let off = cpu.preempt_disable();
    drop(kmap(&cpu, &page, 0));
    drop(off);
    let found = lab.findings();
    assert_eq!(found, ["high-unmapped", "kunmap-unbalanced", "high-unmapped", "sleep-in-atomic"]);
}

#[test]
fn the_last_mapped_is_unmapped_first_and_sixteen_is_all() {
    let lab = narrow(2 << 30);
    let cpu = lab.cpu();
    let pages: Vec<_> = (0..17).map(|_| high(&cpu)).collect();
    let mut held: Vec<_> = pages[..16].iter().map(|page| kmap_local_page(&cpu, page, 0).unwrap()).collect();
    assert_eq!(kmap_local_page(&cpu, &pages[16], 0).err(), Some(KmapError::Depth));
    let other = kmap_local_page(&lab.cpu_number(1), &pages[16], 0).unwrap();
    assert_ne!(other.virt(), held[0].virt(), "each CPU has slots of its own");
    assert_eq!(page_address(&cpu, &pages[0], 0), Ok(None), "a temporary address is the task's own");
    drop(held.remove(3));
    let found = &lab.kernel().findings()[1];
    assert_eq!(found.kind, FindingKind::KunmapOrder { slot: 3, top: 15 });
    while held.pop().is_some() {}
    drop(other);
    assert_eq!(lab.findings(), ["kmap-depth", "kunmap-order"]);
    let atomic = kmap_atomic(&cpu, &pages[0], 0).unwrap();
    assert_eq!((cpu.preempt_count(), atomic.write_at(0, b"a")), (1, Ok(())));
    drop(atomic);
    assert_eq!((cpu.preempt_count(), lab.leaks().len()), (0, 17));
}

#[test]
fn who_finds_all_slots_in_use_sleeps_until_one_is_given_back() {
    let lab = narrow(6 << 30);
    let cpu = lab.cpu();
    let pages: Vec<_> = (0..=SLOTS_PAE).map(|_| high(&cpu)).collect();
    let held: Vec<_> = pages[1..].iter().map(|page| kmap(&cpu, page, 0).unwrap()).collect();
    assert_eq!(lab.solo.parks(), 0, "512 slots where RAM reaches above 4 GiB");
    let (kernel, pfn) = (lab.machine.kernel_ref(), pages[7].phys());
    lab.solo.on_park(move |solo| {
        let cpu = Cpu::new(1, kernel, solo);
        unmap(cpu.kernel(), pfn, Owner::default());
        cpu.wake(cpu.kernel().kmap_waiters, 1);
    });
    let last = kmap(&cpu, &pages[0], 0).unwrap();
    assert_eq!((lab.solo.parks(), last.read_at(0, &mut [0; 8]), cpu.now()), (1, Ok(()), 0));
    lab.kernel().validate().unwrap();
    lab.solo.die();
    assert_eq!(kmap(&cpu, &pages[7], 0).err(), Some(KmapError::Dying));
    drop(last);
    drop(held);
    assert_eq!(lab.findings(), ["kunmap-unbalanced"], "the one that was taken from its holder");
}

#[test]
fn copies_cross_pages_and_stop_at_the_block() {
    let lab = narrow(2 << 30);
    let cpu = lab.cpu();
    let block = alloc_pages(&cpu, 1, GFP_HIGHUSER).unwrap();
    let data: Vec<u8> = (0..=255).cycle().take(5000).collect();
    memcpy_to_page(&cpu, &block, 3000, &data).unwrap();
    let mut back = vec![0; 5000];
    memcpy_from_page(&cpu, &mut back, &block, 3000).unwrap();
    assert!(back == data);
    assert_eq!(memcpy_to_page(&cpu, &block, 8000, &data), Err(KmapError::NoPage { index: 2, pages: 2 }));
    assert_eq!(lab.leaks(), [Resource::Pages]);
}

#[test]
fn planted_corruption_is_found() {
    let lab = narrow(2 << 30);
    let cpu = lab.cpu();
    let page = high(&cpu);
    let map = kmap(&cpu, &page, 0).unwrap();
    lab.kernel().validate().unwrap();
    lab.kernel().kmaps.lock().corrupt(page.phys().pfn().get());
    assert!(lab.kernel().validate().is_err());
    drop(map);
}
