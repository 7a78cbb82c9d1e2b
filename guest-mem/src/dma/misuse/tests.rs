use super::*;
use crate::dma::{DmaPort, FromDevice, ToDevice};
use crate::gfp::{GFP_DMA32, GFP_KERNEL};
use crate::kernel::MachineConfig;
use crate::testing::Lab;
use vm_memory::{Bytes, GuestAddress};

const TO: Dir = Dir::ToDevice;
const FROM: Dir = Dir::FromDevice;
const BOTH: Dir = Dir::Bidirectional;

/// One crime on a fresh machine: a buffer in DMA32 and a 64-bit mask, as measured (dmadebug.tsv).
fn crime(body: impl Fn(&Cpu<'_>, &DmaDevice, &KBuf)) -> Vec<&'static str> {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(64));
    let buf = KBuf::pages(&cpu, 0, GFP_KERNEL | GFP_DMA32).unwrap();
    body(&cpu, &device, &buf);
    assert!(
        lab.kernel().findings().iter().all(|f| f.device.as_deref() == Some("0000:00:04.0") && f.sites[0].0 == "at")
    );
    lab.findings()
}

/// The same between a map and nothing else.
fn mapped(dir: Dir, body: impl Fn(&Cpu<'_>, &DmaDevice, DmaAddr)) -> Vec<&'static str> {
    crime(|cpu, device, buf| body(cpu, device, map_single(cpu, device, buf, dir).unwrap().dma))
}

#[test]
fn unmaps_are_judged_as_dma_debug_judges_them() {
    assert_eq!(
        crime(|cpu, device, buf| unmap_single(cpu, device, DmaAddr::new(buf.phys().get()), 64, TO)),
        ["unmap-not-mapped"]
    );
    assert_eq!(
        crime(|cpu, device, _| unmap_single(cpu, device, DmaAddr::new(u64::MAX), 64, TO)),
        ["unmap-error-value"]
    );
    assert!(mapped(TO, |cpu, device, dma| unmap_single(cpu, device, dma, 4096, TO)).is_empty());
    assert_eq!(mapped(TO, |cpu, device, dma| unmap_single(cpu, device, dma, 8192, TO)), ["unmap-size"]);
    assert_eq!(mapped(TO, |cpu, device, dma| unmap_single(cpu, device, dma, 4096, FROM)), ["unmap-direction"]);
    assert_eq!(
        mapped(TO, |cpu, device, dma| unmap_single(cpu, device, dma, 64, FROM)),
        ["unmap-size", "unmap-direction"]
    );
    let inner =
        |cpu: &Cpu<'_>, device: &DmaDevice, dma: DmaAddr| unmap_single(cpu, device, dma.wrapping_add(64), 64, TO);
    assert_eq!(mapped(TO, inner), ["unmap-not-mapped"]);
    let twice = |cpu: &Cpu<'_>, device: &DmaDevice, dma| (0..2).for_each(|_| unmap_single(cpu, device, dma, 4096, TO));
    assert_eq!(mapped(TO, twice), ["unmap-not-mapped"]);
}

#[test]
fn a_map_that_nobody_checked_is_told_at_its_unmap() {
    let unchecked = |check: bool| {
        crime(|cpu, device, buf| {
            let raw = map_single_unchecked(cpu, device, buf, TO).unwrap();
            assert!(!check || !mapping_error(device, raw.dma));
            unmap_single(cpu, device, raw.dma, raw.len, TO);
        })
    };
    assert_eq!((unchecked(false), unchecked(true)), (vec!["map-error-unchecked"], vec![]));
    crime(|_, device, _| assert!(mapping_error(device, DmaAddr::new(u64::MAX))));
}

#[test]
fn coherent_memory_is_judged_too() {
    let free = |body: &dyn Fn(&Cpu<'_>, &DmaDevice, &crate::dma::Coherent)| {
        crime(|cpu, device, _| {
            let ring = device.alloc_coherent(cpu, 4096, GFP_KERNEL).unwrap();
            body(cpu, device, &ring);
            // The books have forgotten it; only its pages are still to be freed, and `Drop` would tell on itself.
            std::mem::forget(ring);
        })
    };
    assert!(free(&|cpu, device, ring| free_coherent(cpu, device, ring.phys(), ring.dma_addr(), 4096)).is_empty());
    assert_eq!(free(&|cpu, device, ring| free_coherent(cpu, device, ring.phys(), ring.dma_addr(), 64)), ["unmap-size"]);
    let moved = |cpu: &Cpu<'_>, device: &DmaDevice, ring: &crate::dma::Coherent| {
        free_coherent(cpu, device, ring.phys().wrapping_add(64), ring.dma_addr(), 4096);
    };
    assert_eq!(free(&moved), ["free-cpu-address"]);
    assert_eq!(free(&|cpu, device, ring| unmap_single(cpu, device, ring.dma_addr(), 4096, BOTH)), ["unmap-function"]);
    assert!(free(&|cpu, device, ring| sync_single(cpu, device, ring.dma_addr(), 64, true, BOTH)).is_empty());
    let never = |cpu: &Cpu<'_>, device: &DmaDevice, buf: &KBuf| {
        free_coherent(cpu, device, buf.phys(), DmaAddr::new(buf.phys().get()), 4096);
    };
    assert_eq!(crime(never), ["unmap-not-mapped"]);
}

#[test]
fn syncs_are_judged_as_dma_debug_judges_them() {
    let sync = |map, for_cpu, dir| {
        mapped(map, |cpu, device, dma| sync_single(cpu, device, dma.wrapping_add(64), 64, for_cpu, dir))
    };
    assert_eq!(
        crime(|cpu, device, _| sync_single(cpu, device, DmaAddr::new(0x1000), 64, true, TO)),
        ["sync-not-mapped"]
    );
    assert!(sync(FROM, true, FROM).is_empty() && sync(TO, true, TO).is_empty() && sync(BOTH, false, TO).is_empty());
    assert_eq!(sync(FROM, true, TO), ["sync-direction"]);
    assert_eq!(sync(FROM, false, TO), ["sync-direction", "sync-write-only"]);
    assert_eq!(sync(FROM, false, BOTH), ["sync-direction", "sync-write-only"]);
    assert_eq!(sync(TO, true, FROM), ["sync-direction", "sync-read-only"]);
    assert_eq!(sync(TO, true, BOTH), ["sync-direction", "sync-read-only"]);
}

#[test]
fn texts_have_sixteen_digits_and_both_call_sites() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(64));
    let buf = KBuf::pages(&cpu, 0, GFP_KERNEL | GFP_DMA32).unwrap();
    let line = line!() + 1;
    let raw = map_single(&cpu, &device, &buf, TO).unwrap();
    unmap_single(&cpu, &device, raw.dma, 32, TO);
    let finding = lab.kernel().findings().remove(0);
    let text = format!(
        "DMA-API: device driver frees DMA memory with different size \
         [device address={:#018x}] [map size=4096 bytes] [unmap size=32 bytes]",
        raw.dma.get()
    );
    assert_eq!((finding.kind.to_string(), finding.kind.config()), (text, Some("CONFIG_DMA_API_DEBUG")));
    let lines: Vec<_> = finding.sites.iter().map(|site| site.1.site.place().unwrap().line() - line).collect();
    assert_eq!(lines, [1, 0]);
}

#[test]
fn wrong_frees_are_told_and_change_nothing() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let buf = KBuf::kmalloc(&cpu, 64, GFP_KERNEL).unwrap();
    kfree(&cpu, buf.phys().wrapping_add(8));
    kfree(&cpu, PhysAddr::new(3 << 30));
    assert_eq!((lab.findings(), lab.leaks().len()), (vec!["bad-free"; 2], 1));
    kfree(&cpu, buf.phys());
    drop(buf);
    assert_eq!((lab.findings().len(), lab.leaks().len()), (3, 0), "the second free is the buffer's own");
    lab.kernel().validate().unwrap();
}

#[test]
fn a_mapping_that_nobody_checks_is_told_whether_it_failed_or_not() {
    let blindly = |fail: bool| {
        let lab = Lab::new();
        let (cpu, device) = (lab.cpu(), lab.device(64));
        let buf = KBuf::kmalloc(&cpu, 512, GFP_KERNEL).unwrap();
        if fail {
            lab.solo.fail_nth(0);
        }
        let mapped = map_blindly::<ToDevice>(&cpu, &device, buf);
        assert_eq!(mapped.dma_addr().get() == u64::MAX, fail);
        assert_eq!(mapped.unmap(&cpu).len(), 512);
        assert_eq!(lab.leaks().len(), 0);
        lab.findings()
    };
    assert_eq!((blindly(false), blindly(true)), (vec!["map-error-unchecked"], vec!["unmap-error-value"]));
}

#[test]
fn coherent_memory_freed_with_another_length_is_told_and_gone() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(64));
    free_coherent_as(&cpu, device.alloc_coherent(&cpu, 8192, GFP_KERNEL).unwrap(), 4096);
    assert_eq!((lab.findings(), lab.leaks().len()), (vec!["unmap-size"], 0));
    free_coherent_as(&cpu, device.alloc_coherent(&cpu, 8192, GFP_KERNEL).unwrap(), 8192);
    assert_eq!(lab.findings().len(), 1, "the right length is no crime");
}

#[test]
fn a_buffer_freed_under_its_holder_is_freed_twice() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let ways: [fn(&Cpu<'_>) -> KBuf; 2] =
        [|cpu| KBuf::kmalloc(cpu, 64, GFP_KERNEL).unwrap(), |cpu| KBuf::pages(cpu, 1, GFP_KERNEL).unwrap()];
    for allocate in ways {
        let buf = allocate(&cpu);
        let before = lab.findings().len();
        free_buffer(&cpu, &buf);
        assert_eq!((lab.findings().len(), lab.leaks().len()), (before, 0), "the first free is an honest one");
        drop(buf);
        assert_eq!(lab.findings()[before..], ["bad-free"]);
    }
    lab.kernel().validate().unwrap();
}

#[test]
fn null_stops_the_cpu_as_an_oops_does() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| null_dereference(&cpu, "a ring")));
    assert_eq!(stopped.unwrap_err().downcast_ref::<Halt>(), Some(&Halt::Oops));
    let finding = lab.kernel().findings().remove(0);
    assert_eq!((finding.kind.name(), finding.kind.config()), ("null-dereference", Some("any (an oops)")));
    let text = finding.to_string();
    assert!(text.contains("NULL pointer dereference") && text.contains("misuse/tests.rs:"), "{text}");
}

#[test]
fn a_length_that_was_padded_at_the_map_alone_is_told_at_the_unmap() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    for (padded, findings) in [(42, vec![]), (60, vec!["unmap-size"])] {
        let buf = KBuf::kmalloc(&cpu, 42, GFP_KERNEL).unwrap();
        let mapped = map_padded::<ToDevice>(&cpu, &device, buf, padded).unwrap();
        assert_eq!((mapped.len(), mapped.unmap(&cpu).len()), (42, 42));
        assert_eq!((lab.findings(), lab.leaks().len()), (findings, 0), "{padded}");
    }
}

#[test]
fn a_mapping_that_is_never_undone_outlives_its_memory() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let buf = KBuf::kmalloc(&cpu, 512, GFP_KERNEL).unwrap();
    let mapped = device.map_single::<ToDevice>(&cpu, buf).unwrap();
    assert!(mapped.bounced());
    assert_eq!(never_unmap(&cpu, mapped).len(), 512);
    assert_eq!(lab.leaks(), [crate::finding::Resource::Mapping], "its memory is free");
    device.released(&cpu);
    assert_eq!(lab.findings(), ["pending-dma"]);
}

#[test]
fn what_is_read_while_the_device_has_it_is_told_once_with_caches_or_without() {
    for coherent in [true, false] {
        let lab = Lab::of(MachineConfig { coherent, ..MachineConfig::default() });
        let (cpu, device) = (lab.cpu(), lab.device(64));
        let map = || KBuf::kmalloc(&cpu, 256, GFP_KERNEL).unwrap();
        let mapped = device.map_single::<FromDevice>(&cpu, map()).unwrap();
        read_mapped(&cpu, &mapped, 252, &mut [0; 4]).unwrap();
        assert_eq!(lab.findings(), ["cpu-reads-mapped"]);
        DmaPort::new(&device).write_slice(&[7], GuestAddress(mapped.dma_addr().get())).unwrap();
        read_mapped(&cpu, &mapped, 0, &mut [0]).unwrap();
        assert_eq!(lab.findings(), ["cpu-reads-mapped", "missing-sync"]);
        assert!(read_mapped(&cpu, &mapped, 253, &mut [0; 4]).is_err());
        drop(mapped);
        let mapped = device.map_single::<ToDevice>(&cpu, map()).unwrap();
        read_mapped(&cpu, &mapped, 0, &mut [0; 4]).unwrap();
        assert_eq!(lab.findings().len(), 2, "both may read what the device merely reads");
    }
}

#[test]
fn a_pointer_into_free_memory_is_told_whatever_the_memory_was() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let sizes: [fn(&Cpu<'_>) -> KBuf; 3] = [
        |cpu| KBuf::kmalloc(cpu, 64, GFP_KERNEL).unwrap(),
        |cpu| KBuf::kmalloc(cpu, 100_000, GFP_KERNEL).unwrap(),
        |cpu| KBuf::pages(cpu, 1, GFP_KERNEL).unwrap(),
    ];
    for (told, allocate) in sizes.into_iter().enumerate() {
        let mut buf = allocate(&cpu);
        buf.write_at(8, &[5]).unwrap();
        let (at, mut byte) = (buf.phys().wrapping_add(8), [0]);
        load(&cpu, at, &mut byte);
        assert_eq!((byte, lab.findings().len()), ([5], told), "it is somebody's");
        drop(buf);
        load(&cpu, at, &mut byte);
        assert_eq!(lab.findings(), vec!["use-after-free"; told + 1]);
    }
    let text = lab.kernel().findings()[0].to_string();
    assert!(text.contains("KASAN") && text.contains("misuse/tests.rs:"), "{text}");
}

#[test]
fn what_is_written_past_its_buffer_is_told_with_both_places_and_hits_the_neighbour() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let [first, second] = [(); 2].map(|()| KBuf::kmalloc(&cpu, 8, GFP_KERNEL).unwrap());
    assert_eq!(second.phys().get(), first.phys().get() + 8);
    let longer = overrun(&cpu, first, &[7; 16]);
    let mut behind = [0; 8];
    second.read_at(0, &mut behind).unwrap();
    assert_eq!((longer.len(), behind, lab.findings()), (16, [7; 8], vec!["out-of-bounds"]));
    let finding = &lab.kernel().findings()[0];
    assert_eq!(finding.sites.iter().map(|site| site.0).collect::<Vec<_>>(), ["written at", "allocated at"]);
    assert_eq!(finding.kind.config(), Some("CONFIG_KASAN"));
    drop(overrun(&cpu, second, &[8; 8]));
    assert_eq!(lab.findings().len(), 1, "all of it and no more");
}

#[test]
fn kfree_by_pointer_frees_what_kmalloc_gave_and_nothing_of_vmallocs() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    kfree_virt(&cpu, std::mem::ManuallyDrop::new(KBuf::kmalloc(&cpu, 64, GFP_KERNEL).unwrap()).virt());
    assert!(lab.findings().is_empty() && lab.leaks().is_empty());
    let area = crate::vmalloc::vmalloc(&cpu, 64).unwrap();
    kfree_virt(&cpu, area.virt());
    assert_eq!((lab.findings(), lab.leaks().len()), (vec!["bad-free"], 1));
}
