use super::*;
use crate::dma::iommu::IommuMode;
use crate::dma::misuse;
use crate::dma::{Bidirectional, DmaPort, FromDevice, ToDevice};
use crate::gfp::{GFP_DMA32, GFP_KERNEL};
use crate::kernel::MachineConfig;
use crate::testing::Lab;
use crate::vmalloc::vmalloc;
use vm_memory::{Bytes, GuestAddress};

/// Buffers of these lengths, every second one within 32 bits.
fn mixed(cpu: &Cpu<'_>, lens: &[usize]) -> Vec<KBuf> {
    let lens = lens.iter().enumerate();
    lens.map(|(index, &len)| {
        let gfp = if index % 2 == 1 { GFP_KERNEL | GFP_DMA32 } else { GFP_KERNEL };
        let mut buf = KBuf::pages(cpu, 0, gfp).unwrap().truncated(len);
        buf.write_at(0, &vec![0x11; len]).unwrap();
        buf
    })
    .collect()
}

#[test]
fn entries_bounce_one_by_one_and_come_back() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let mut mapped = device.map_sg::<_, Bidirectional>(&cpu, mixed(&cpu, &[512, 612, 712])).unwrap();
    let seen: Vec<_> = mapped.entries().iter().map(|entry| (entry.dma_len(), entry.bounced())).collect();
    assert_eq!((seen, mapped.len()), (vec![(512, true), (612, false), (712, true)], 1836));
    assert_eq!((lab.kernel().swiotlb_usage().0, device.counters().maps), (2, 3));
    for (entry, byte) in mapped.entries().iter().zip(1..) {
        lab.kernel().ram().write(device.phys_address(entry.dma_addr()).unwrap(), &[byte]).unwrap();
    }
    {
        let mut window = mapped.sync_for_cpu(&cpu);
        let mut bytes = [0; 614];
        window.read_at(511, &mut bytes).unwrap();
        assert_eq!((bytes[0], bytes[1], bytes[2], bytes[613]), (0x11, 2, 0x11, 3));
        window.write_at(1835, &[9]).unwrap();
        assert!(window.write_at(1835, &[9, 9]).is_err() && window.read_at(1836, &mut [0]).is_err());
    }
    let bufs = mapped.unmap(&cpu);
    let mut byte = [0];
    bufs[2].read_at(711, &mut byte).unwrap();
    assert_eq!(byte, [9]);
    drop(bufs);
    assert!(lab.leaks().is_empty() && lab.findings().is_empty());
    assert_eq!(lab.kernel().swiotlb_usage().0, 0);
    lab.kernel().validate().unwrap();
}

#[test]
fn one_entry_that_fails_undoes_all() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let large = KBuf::pages(&cpu, 7, GFP_KERNEL).unwrap();
    let mut bufs = mixed(&cpu, &[64, 64, 64]);
    bufs.push(large);
    let error = device.map_sg::<_, FromDevice>(&cpu, bufs).unwrap_err();
    assert!(error.to_string().contains("swiotlb buffer is full (sz: 524288 bytes)"), "{error}");
    assert_eq!((error.buf.len(), device.counters().maps, lab.kernel().swiotlb_usage().0), (4, 0, 0));
    drop(error);
    // Three points of three entries, and one more for each of two slots.
    for nth in 0..5 {
        let bufs = mixed(&cpu, &[64, 64, 64]);
        lab.solo.fail_nth(nth);
        let error = device.map_sg::<_, FromDevice>(&cpu, bufs).unwrap_err();
        assert_eq!((error.why, lab.kernel().swiotlb_usage().0), (MapFailure::Refused { len: 64 }, 0));
    }
    assert!(lab.leaks().is_empty() && lab.findings().is_empty());
    let none = device.map_sg::<Vec<KBuf>, FromDevice>(&cpu, Vec::new()).unwrap_err();
    assert_eq!(none.why, MapFailure::NoEntries);
}

#[test]
fn vmalloc_memory_is_mapped_page_by_page() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(64));
    let mut area = vmalloc(&cpu, 3 * 4096 + 100).unwrap();
    area.write_at(4090, &[7; 12]).unwrap();
    let mapped = device.map_sg::<_, ToDevice>(&cpu, area).unwrap();
    let lens: Vec<_> = mapped.entries().iter().map(SgEntry::dma_len).collect();
    assert_eq!(lens, [4096, 4096, 4096, 100]);
    let mut bytes = [0; 7];
    lab.kernel().ram().read(mapped.entries()[1].phys(), &mut bytes).unwrap();
    assert_eq!(bytes, [7, 7, 7, 7, 7, 7, 0]);
    drop(mapped);
    assert!(lab.leaks().is_empty() && lab.findings().is_empty());
}

#[test]
fn counts_lengths_and_boundaries_are_judged_as_dma_debug_judges_them() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(64));
    let page = KBuf::pages(&cpu, 0, GFP_KERNEL | GFP_DMA32).unwrap();
    let part = |offset, len| SgEntry::new(page.phys().wrapping_add(offset), len, page.owner());
    let mut table = SgTable::default();
    [part(0, 256), part(512, 256), part(1024, 256)].into_iter().for_each(|entry| table.push(entry));
    let texts = |from: usize| lab.kernel().findings()[from..].iter().map(|f| f.kind.to_string()).collect::<Vec<_>>();
    assert_eq!(misuse::map_sg(&cpu, &device, &mut table, Dir::ToDevice), 3);
    misuse::sync_sg(&cpu, &device, &table, 2, false, Dir::ToDevice);
    misuse::unmap_sg(&cpu, &device, &table, 2, Dir::ToDevice);
    let [synced, freed] = [("syncs", "sync"), ("frees", "unmap")].map(|(verb, count)| {
        format!("DMA-API: device driver {verb} DMA sg list with different entry count [map count=3] [{count} count=2]")
    });
    assert_eq!(texts(0), [synced.clone(), synced, freed.clone(), freed]);
    misuse::unmap_sg(&cpu, &device, &table, 3, Dir::ToDevice);
    assert_eq!(lab.findings()[4..], ["unmap-not-mapped"; 2], "the third was still mapped");
    device.set_max_seg_size(128).unwrap();
    device.set_seg_boundary(0xff).unwrap();
    let mut table = SgTable::default();
    table.push(part(128, 256));
    assert_eq!(misuse::map_sg(&cpu, &device, &mut table, Dir::ToDevice), 1);
    let at = page.phys().get();
    let across = format!(
        "DMA-API: mapping sg segment across boundary [start={:#018x}] [end={:#018x}] [boundary=0x00000000000000ff]",
        at + 128,
        at + 383
    );
    let long = "DMA-API: mapping sg segment longer than device claims to support [len=256] [max=128]".to_owned();
    assert_eq!(texts(6), [long, across]);
    misuse::unmap_single(&cpu, &device, table.entries()[0].dma_addr(), 256, Dir::ToDevice);
    assert!(texts(8)[0].ends_with("[mapped as scather-gather] [unmapped as single]"), "{:?}", texts(8));
}

#[test]
fn a_list_kept_over_a_reset_touches_nothing() {
    let config = crate::kernel::MachineConfig { ram: (5 << 30) + 0x5000, ..Default::default() };
    let old = Lab::of(config);
    let mapped = old.device(32).map_sg::<_, FromDevice>(&old.cpu(), mixed(&old.cpu(), &[64, 64])).unwrap();
    let bufs = mixed(&old.cpu(), &[64]);
    drop(old);
    let lab = Lab::of(config);
    drop(mapped);
    let error = lab.device(32).map_sg::<_, FromDevice>(&lab.cpu(), bufs).unwrap_err();
    assert_eq!((error.why, lab.findings()), (MapFailure::Stale, vec!["stale-handle"]));
}

#[test]
fn every_machine_maps_a_list_and_keeps_nothing_of_it() {
    let plain = MachineConfig::default;
    for (config, reach) in [
        (MachineConfig { iommu: Some(IommuMode::Strict), ..plain() }, 32),
        (MachineConfig { swiotlb_force: true, ..plain() }, 64),
        (MachineConfig { coherent: false, ..plain() }, 64),
    ] {
        let lab = Lab::of(config);
        let (cpu, device) = (lab.cpu(), lab.device(reach));
        let port = DmaPort::new(&device);
        let mut mapped = device.map_sg::<_, Bidirectional>(&cpu, mixed(&cpu, &[512, 612])).unwrap();
        for entry in mapped.entries() {
            let (mut byte, at) = ([0], GuestAddress(entry.dma_addr().get()));
            port.read_slice(&mut byte, at).unwrap();
            assert_eq!((byte, entry.bounced()), ([0x11], config.swiotlb_force));
            port.write_slice(&[2], at).unwrap();
        }
        let mut bytes = [0; 2];
        {
            let mut window = mapped.sync_for_cpu(&cpu);
            window.read_at(512, &mut bytes).unwrap();
            window.write_at(1123, &[3]).unwrap();
        }
        let last = mapped.entries()[1].dma_addr().get() + 611;
        assert_eq!(bytes, [2, 0x11]);
        port.read_slice(&mut bytes[..1], GuestAddress(last)).unwrap();
        assert_eq!(bytes[0], 3, "the window handed it back");
        mapped.unmap(&cpu)[0].read_at(0, &mut bytes).unwrap();
        assert_eq!(bytes, [2, 0x11]);
        device.set_max_seg_size(4 << 20).unwrap();
        // 24 bits hold three buffers of 4 MiB, a bounce none.
        device.set_mask(&cpu, if config.iommu.is_some() { 0xff_ffff } else { u64::MAX }).unwrap();
        let large: Vec<_> = (0..4).map(|_| KBuf::pages(&cpu, 10, GFP_KERNEL).unwrap()).collect();
        let failed = device.map_sg::<_, FromDevice>(&cpu, large).is_err();
        assert_eq!(failed, config.iommu.is_some() || config.swiotlb_force);
        let domain = device.domain().map(|domain| domain.lock().stats().mapped);
        assert_eq!((domain.unwrap_or(0), lab.kernel().swiotlb_usage().0), (0, 0));
        assert_eq!((lab.leaks().len(), lab.findings()), (0, vec![]));
        lab.kernel().validate().unwrap();
    }
}

/// The lengths of the segments of an area of vmalloc's that a device of an IOMMU is told of.
fn segments(lab: &Lab, pages: usize, set: impl FnOnce(&crate::dma::DmaDevice)) -> Vec<u64> {
    let (cpu, device) = (lab.cpu(), lab.device(32));
    set(&device);
    let area = crate::vmalloc::vmalloc(&cpu, pages * 4096 - 96).unwrap();
    let mapped: MappedSg<_, Bidirectional> = device.map_sg(&cpu, area).unwrap();
    assert_eq!(mapped.entries().len(), pages);
    mapped.segments().iter().map(SgEntry::dma_len).collect()
}

#[test]
fn an_iommu_merges_what_lies_page_to_page_up_to_what_the_device_takes() {
    let lab = Lab::of(MachineConfig { iommu: Some(IommuMode::Strict), ..MachineConfig::default() });
    assert_eq!(segments(&lab, 4, |_| {}), [4 * 4096 - 96]);
    assert_eq!(segments(&lab, 17, |_| {}), [65536, 4000], "a segment has 64 KiB at most");
    assert_eq!(segments(&lab, 3, |device| device.set_max_seg_size(8192).unwrap()), [8192, 4000]);
    assert_eq!(segments(&lab, 3, |device| device.set_seg_boundary(0x1fff).unwrap()), [8192, 4000]);
    let cpu = lab.cpu();
    let odd = || vec![KBuf::kmalloc(&cpu, 4096, GFP_KERNEL).unwrap(), KBuf::kmalloc(&cpu, 512, GFP_KERNEL).unwrap()];
    let lens = |memory: Vec<KBuf>| {
        let mapped: MappedSg<_, ToDevice> = lab.device(32).map_sg(&cpu, memory).unwrap();
        mapped.segments().iter().map(SgEntry::dma_len).collect::<Vec<_>>()
    };
    assert_eq!(lens(odd()), [4608], "both begin with a page");
    assert_eq!(lens(odd().into_iter().rev().collect()), [512, 4096], "the first ends within one");
    assert!(lab.findings().is_empty() && lab.leaks().is_empty());
    lab.kernel().validate().unwrap();
}

#[test]
fn a_boundary_within_a_range_is_kept_clear_by_a_gap() {
    let lab = Lab::of(MachineConfig { iommu: Some(IommuMode::Strict), ..MachineConfig::default() });
    let (cpu, device) = (lab.cpu(), lab.device(32));
    device.set_seg_boundary(0x1fff).unwrap();
    let memory = vec![KBuf::pages(&cpu, 0, GFP_KERNEL).unwrap(), KBuf::pages(&cpu, 1, GFP_KERNEL).unwrap()];
    let mapped: MappedSg<_, ToDevice> = device.map_sg(&cpu, memory).unwrap();
    let [first, second] = mapped.segments() else { panic!("{:?}", mapped.segments()) };
    assert_eq!(second.dma_addr().offset_from(first.dma_addr()), Some(8192), "4 KiB of addresses stay free");
    let domain = || device.domain().unwrap().lock().stats().mapped;
    assert_eq!(domain(), 3);
    drop(mapped);
    assert_eq!((domain(), lab.findings()), (0, vec![]));
    lab.kernel().validate().unwrap();
}

#[test]
fn a_merged_segment_moves_every_byte_where_caches_lie_between_too() {
    for coherent in [true, false] {
        let config = MachineConfig { iommu: Some(IommuMode::Lazy), coherent, ..MachineConfig::default() };
        let lab = Lab::of(config);
        let (cpu, device) = (lab.cpu(), lab.device(32));
        let port = DmaPort::new(&device);
        let mut area = crate::vmalloc::vmalloc(&cpu, 3 * 4096).unwrap();
        area.write_at(0, &[5; 3 * 4096]).unwrap();
        let mut mapped: MappedSg<_, Bidirectional> = device.map_sg(&cpu, area).unwrap();
        let at = GuestAddress(mapped.segments()[0].dma_addr().get());
        let mut seen = [0; 3 * 4096];
        port.read_slice(&mut seen, at).unwrap();
        assert_eq!(seen, [5; 3 * 4096]);
        port.write_slice(&[6; 3 * 4096], at).unwrap();
        mapped.sync_for_cpu(&cpu).read_at(0, &mut seen).unwrap();
        assert_eq!(seen, [6; 3 * 4096]);
        port.write_slice(&[7; 3 * 4096], at).unwrap();
        mapped.unmap(&cpu).read_at(0, &mut seen).unwrap();
        assert_eq!(seen, [7; 3 * 4096]);
        assert!(lab.findings().is_empty() && !lab.kernel().watched.any(), "{:?}", lab.findings());
    }
}
