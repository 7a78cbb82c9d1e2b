use super::*;
use crate::addr::PAGE_OFFSET;
use crate::arch::Arch;
use crate::finding::Resource;
use crate::gfp::{__GFP_NOWARN, GFP_ATOMIC};
use crate::kernel::MachineConfig;
use crate::lock::SpinLock;
use crate::page::alloc_pages;
use crate::testing::{Lab, handler};

fn start(index: u64) -> VirtAddr {
    VirtAddr::new(Arch::X86_64.vmalloc().start + index * PAGE_SIZE)
}

#[test]
fn single_pages_in_a_row_with_a_guard_behind() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let (small, large) = (vmalloc(&cpu, 1).unwrap(), vmalloc(&cpu, 65536).unwrap());
    assert_eq!((small.virt(), large.virt()), (start(0), start(2)), "first fit, guard included");
    let area = find_vm_area(lab.kernel(), large.virt().wrapping_add(70000 - 4096)).unwrap();
    assert_eq!((area.start, area.size, area.pages, area.flags), (large.virt(), 69632, 16, 2));
    assert_eq!(find_vm_area(lab.kernel(), start(19)), None);
    assert!(is_vmalloc_addr(lab.kernel(), large.virt()) && !virt_addr_valid(lab.kernel(), large.virt()));
    let low = VirtAddr::new(PAGE_OFFSET + 4096);
    assert!(!is_vmalloc_addr(lab.kernel(), low) && virt_addr_valid(lab.kernel(), low));
    assert_eq!(vmalloc_to_pfn(lab.kernel(), start(18)), None, "the guard has no page");
    let page = vmalloc_to_page(lab.kernel(), start(17)).unwrap();
    assert!(lab.kernel().memory.lock().zones.lookup(page.pfn()).is_some());
    lab.kernel().validate().unwrap();
    let text = vmallocinfo(lab.kernel());
    assert!(text.lines().count() == 2 && text.contains("0xffffc90000002000-0xffffc90000013000   69632 "), "{text}");
    assert!(text.contains(" pages=16 vmalloc N0=16"), "{text}");
    drop((small, large));
    assert!(lab.findings().is_empty() && lab.leaks().is_empty());
}

#[test]
fn bytes_cross_pages_and_bounds_hold() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let mut buf = vzalloc(&cpu, 3 * 4096 - 7).unwrap();
    let pattern: Vec<u8> = (0..=255).cycle().take(9000).collect();
    buf.write_at(100, &pattern).unwrap();
    let mut back = vec![0; 9000];
    buf.read_at(100, &mut back).unwrap();
    assert_eq!(back, pattern);
    let mut one = [0xff];
    buf.read_at(99, &mut one).unwrap();
    assert_eq!(one, [0], "zeroed");
    let second = vmalloc_to_page(lab.kernel(), buf.virt().wrapping_add(4096)).unwrap();
    lab.kernel().ram().read(second, &mut one).unwrap();
    assert_eq!(one, [pattern[4096 - 100]], "the second page holds its part");
    assert!(buf.read_at(3 * 4096 - 7, &mut one).is_err() && buf.write_at(usize::MAX, &one).is_err());
    assert!(lab.findings().is_empty());
}

#[test]
fn a_touch_of_guard_freed_or_unknown_address_faults_and_names_the_sites() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let buf = vmalloc(&cpu, 4096).unwrap();
    let at = buf.virt();
    assert_eq!(write(&cpu, at.wrapping_add(4090), &[1; 10]), 6, "up to the guard page");
    vfree(&cpu, buf);
    assert_eq!(read(&cpu, at, &mut [0; 4]), 0);
    assert_eq!(read(&cpu, start(99), &mut [0; 4]), 0);
    assert_eq!(lab.findings(), ["page-fault"; 3]);
    let found = lab.kernel().findings();
    let text = |index: usize| found[index].kind.to_string();
    assert_eq!(
        text(0),
        "BUG: unable to handle page fault for address: ffffc90000001000 (write of the guard page of the area at \
         0xffffc90000000000)"
    );
    assert!(text(1).ends_with("ffffc90000000000 (read of an area that was freed)"), "{}", text(1));
    assert!(text(2).ends_with("(read of no area)"), "{}", text(2));
    let parts: Vec<_> = found[1].sites.iter().map(|site| site.0).collect();
    assert_eq!(parts, ["accessed at", "allocated at", "freed at"]);
    assert_eq!(found[1].kind.config(), Some("any (an oops)"));
}

/// The lazy purge: 32 MiB for each binary digit of the number of CPUs.
#[test]
fn a_freed_address_is_not_reused_until_enough_is_freed() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let keep = vmalloc(&cpu, 4096).unwrap();
    drop(vmalloc(&cpu, 4096));
    assert_eq!(vmalloc(&cpu, 4096).unwrap().virt(), start(4), "not where the last one was");
    // 4 pages wait; 2 CPUs have two digits: purged with page 16385.
    drop(vmalloc(&cpu, (16384 - 5) * 4096).unwrap());
    let probe = vmalloc(&cpu, 4096).unwrap();
    assert_ne!(probe.virt(), start(2), "16384 pages wait");
    drop(probe);
    assert_eq!(vmalloc(&cpu, 4096).unwrap().virt(), start(2), "16386 pages were too many");
    drop(keep);
    lab.kernel().validate().unwrap();
}

#[test]
fn failures_say_what_linux_says_and_leave_nothing() {
    let lab = Lab::of(MachineConfig { ram: 64 << 20, cpus: 4, ..MachineConfig::default() });
    let cpu = lab.cpu();
    assert_eq!(vmalloc(&cpu, 0).map(drop), Err(VmallocError::Zero));
    assert_eq!(vmalloc(&cpu, 1 << 40).map(drop), Err(VmallocError::TooLarge { size: 1 << 40 }));
    let text =
        "driver: vmalloc error: size 1099511627776, exceeds total pages, mode:0xcc0(GFP_KERNEL), nodemask=(null)";
    assert_eq!(lab.log(), [text]);
    assert!(__vmalloc(&cpu, 1 << 40, GFP_KERNEL | __GFP_NOWARN).is_err());
    assert_eq!(lab.log().len(), 1, "NOWARN");
    for (nth, text) in [
        (0, "driver: vmalloc error: size 8192, vm_struct allocation failed, mode:"),
        (1, "driver: vmalloc error: size 8192, failed to allocated page array size 16, mode:"),
        (2, "driver: vmalloc error: size 8192, page order 0, failed to allocate pages, mode:"),
        (3, "driver: vmalloc error: size 8192, page order 0, failed to allocate pages, mode:"),
    ] {
        lab.solo.set_now((nth + 1) * 10_000_000_000);
        lab.solo.fail_nth(nth);
        assert!(vmalloc(&cpu, 5000).is_err());
        let last = lab.log().pop().unwrap();
        assert!(last.starts_with(text), "{last}");
        lab.kernel().validate().unwrap();
        assert!(lab.leaks().is_empty(), "{nth}");
    }
    let all = lab.kernel().total_pages();
    assert!(lab.findings().is_empty());
    assert!(vmalloc(&cpu, usize::try_from(all * 4096).unwrap()).is_err(), "the marks keep some");
    assert_eq!(lab.findings(), ["out-of-memory"], "single pages are worth a process");
    assert!(lab.leaks().is_empty());
}

#[test]
fn each_page_passes_a_point_and_high_memory_may_serve() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    lab.solo.points();
    drop(vmalloc(&cpu, 3 * 4096).unwrap());
    assert_eq!(lab.solo.requests().iter().filter(|request| request.gfp.contains(Gfp::HIGHMEM)).count(), 3);
    drop(vmalloc_32(&cpu, 4096).unwrap());
    assert_eq!(lab.solo.points(), [Class::Slab, Class::Slab, Class::Page]);
}

#[test]
fn only_process_context_may_allocate_and_a_softirq_frees_later() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let lock = SpinLock::new(());
    let guard = lock.lock(&cpu);
    let atomic = __vmalloc(&cpu, 4096, GFP_ATOMIC).unwrap();
    vfree(&cpu, atomic);
    drop(guard);
    assert_eq!(lab.findings(), ["sleep-in-atomic"; 2], "whatever the mask; and vfree");
    let at = vmalloc(&cpu, 4096).unwrap().into_raw();
    lab.solo.raise(handler(move |cpu| {
        assert_eq!(vmalloc(cpu, 4096).map(drop), Err(VmallocError::InInterrupt));
        misuse::vfree(cpu, at);
        assert_eq!(write(cpu, at, &[1]), 1, "not freed yet");
    }));
    cpu.take_interrupts();
    assert_eq!(lab.findings()[2..], ["vmalloc-in-interrupt"]);
    assert!(find_vm_area(lab.kernel(), at).is_some(), "the worker has not run");
    cpu.park(cpu.prepare(crate::env::Key::fresh()), Some(1));
    assert_eq!(find_vm_area(lab.kernel(), at), None, "it ran while the CPU waited");
    assert!(lab.leaks().is_empty());
}

#[test]
fn wrong_frees_do_what_linux_does_and_are_found() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let at = vmalloc(&cpu, 3 * 4096).unwrap().into_raw();
    misuse::vfree(&cpu, VirtAddr::new(0));
    misuse::vfree(&cpu, at.wrapping_add(16));
    assert!(find_vm_area(lab.kernel(), at).is_some(), "nothing freed");
    misuse::vfree(&cpu, at.wrapping_add(4096));
    assert_eq!(find_vm_area(lab.kernel(), at), None, "the whole area");
    misuse::vfree(&cpu, at);
    assert_eq!(lab.findings(), ["vfree-bad-address", "vfree-inside", "vfree-nonexistent"]);
    let log = [
        "Trying to vfree() bad address (ffffc90000000010)",
        "Trying to vfree() nonexistent vm area (ffffc90000000000)",
    ];
    assert_eq!(lab.log(), log, "an inner address is silent");
    let silent = lab.kernel().findings()[1].kind.config();
    assert_eq!(silent, None);
    let at = vmalloc(&cpu, 4096).unwrap().into_raw();
    misuse::vunmap(&cpu, at);
    assert_eq!(lab.findings()[3..], ["vfree-wrong-kind"]);
    assert_eq!(lab.leaks(), [Resource::Pages], "vunmap keeps the page");
}

#[test]
fn what_was_not_freed_leaks_once_with_its_bytes() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let page = alloc_pages(&cpu, 0, GFP_KERNEL).unwrap();
    let (_buf, _map) = (vmalloc(&cpu, 5000).unwrap(), vmap(&cpu, &[&page]).unwrap());
    let leaks = crate::stats::leaks(lab.kernel());
    let seen: Vec<_> = leaks.iter().map(|leak| (leak.resource, leak.bytes)).collect();
    assert_eq!(seen, [(Resource::Vmalloc, 8192), (Resource::Vmap, 4096), (Resource::Pages, 4096)]);
}

#[test]
fn vmap_shows_the_same_bytes_and_leaves_the_pages() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let (one, two) = (alloc_pages(&cpu, 1, GFP_KERNEL).unwrap(), alloc_pages(&cpu, 0, GFP_KERNEL).unwrap());
    let mut map = vmap(&cpu, &[&two, &one]).unwrap();
    assert_eq!(find_vm_area(lab.kernel(), map.virt()).map(|area| (area.size, area.flags)), Some((16384, 4)));
    assert_eq!(vmalloc_to_page(lab.kernel(), map.virt().wrapping_add(4096)), Some(one.phys()));
    map.write_at(4095, &[1, 2]).unwrap();
    let mut byte = [0];
    lab.kernel().ram().read(one.phys(), &mut byte).unwrap();
    assert_eq!(byte, [2]);
    lab.kernel().validate().unwrap();
    vunmap(&cpu, map);
    assert!(vmap(&cpu, &[]).is_err());
    assert_eq!(lab.leaks(), [Resource::Pages; 2]);
    drop((one, two));
    assert!(lab.findings().is_empty() && lab.leaks().is_empty());
}

#[test]
fn the_dma_api_refuses_it_and_warns_once() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let device = lab.device(64);
    let buf = vmalloc(&cpu, 4096).unwrap();
    for _ in 0..2 {
        assert!(misuse::map_single(&cpu, &device, buf.virt(), 64).is_err());
    }
    assert_eq!(lab.findings(), ["map-vmalloc"; 2]);
    assert_eq!(lab.log(), ["0000:00:04.0: rejecting DMA map of vmalloc memory"]);
}

#[test]
fn a_reset_machine_has_an_empty_address_space() {
    let config = MachineConfig { ram: (64 << 20) + 0xb000, ..MachineConfig::default() };
    let old = Lab::of(config);
    let mut buf = vmalloc(&old.cpu(), 4096).unwrap();
    let other = vmalloc(&old.cpu(), 4096).unwrap();
    drop(other);
    drop(old);
    let lab = Lab::of(config);
    assert_eq!(*lab.kernel().vmalloc.lock(), Areas::new(config.arch.vmalloc(), config.cpus));
    buf.write_at(0, &[1]).unwrap();
    drop(buf);
    assert_eq!(lab.findings(), ["stale-handle"]);
    assert_eq!(vmalloc(&lab.cpu(), 1).unwrap().virt(), start(0));
}

/// LDD3's scarce resource: 111 MiB of addresses, however much RAM there is; the pages come from high memory.
#[test]
fn a_32_bit_machine_runs_out_of_addresses_before_it_runs_out_of_memory() {
    let lab = Lab::of(MachineConfig { arch: Arch::X86_32, ram: 2 << 30, ..MachineConfig::default() });
    let cpu = lab.cpu();
    let buf = vmalloc(&cpu, 64 << 20).unwrap();
    let page = vmalloc_to_page(lab.kernel(), buf.virt()).unwrap();
    assert_eq!(Arch::X86_32.zone_of(page), crate::zone::ZoneKind::HighMem);
    assert_eq!(Arch::X86_32.direct_map(page), None);
    let error = vmalloc(&cpu, 48 << 20).map(drop).unwrap_err();
    assert_eq!(error, VmallocError::NoSpace { size: (48 << 20) + 4096 });
    let text = "vmap allocation for size 50335744 failed: use vmalloc=<size> to increase size";
    assert!(lab.log()[0].contains(text), "{:?}", lab.log());
    drop(buf);
    drop(vmalloc(&cpu, 48 << 20).unwrap());
    lab.kernel().validate().unwrap();
    assert!(lab.findings().is_empty() && lab.leaks().is_empty());
}
