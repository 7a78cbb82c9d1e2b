use super::*;
use crate::addr::PhysAddr;
use crate::dma::misuse;
use crate::dma::{Bidirectional, Dir, FromDevice, dma_bit_mask};
use crate::gfp::{GFP_DMA32, GFP_KERNEL};
use crate::kernel::MachineConfig;
use crate::testing::{Lab, Row, compare};
use crate::zone::ZoneKind;

const TIMING: &str = include_str!("../../../../tests/golden/timing.tsv");

/// A buffer above 4 GiB, filled with a byte.
fn high(cpu: &Cpu<'_>, len: usize, byte: u8) -> KBuf {
    let mut buf = KBuf::kmalloc(cpu, len, GFP_KERNEL).unwrap();
    assert_eq!(buf.zone(), ZoneKind::Normal);
    buf.write_at(0, &vec![byte; len]).unwrap();
    buf
}

fn without_pool() -> MachineConfig {
    MachineConfig { swiotlb: 0, ..MachineConfig::default() }
}

/// Who sees what, when: one page of 0x11, the device and the CPU write in turn (timing.tsv).
fn timing(row: &Row) -> [u8; 9] {
    let lab = Lab::boot(row.get("boot"));
    let cpu = lab.cpu();
    // The column says how wide the mask was; where bouncing is forced, all bounce.
    let narrow = row.get("bounced") == "1";
    let device = lab.device(if narrow { 32 } else { 64 });
    let attrs = if row.get("skip_cpu_sync") == "1" { Attrs::SKIP_CPU_SYNC } else { Attrs::empty() };
    let dir = match row.get("dir") {
        "TO_DEVICE" => Dir::ToDevice,
        "FROM_DEVICE" => Dir::FromDevice,
        _ => Dir::Bidirectional,
    };
    let mut buf = high(&cpu, 4096, 0x11);
    let raw = misuse::map_part(&cpu, &device, &buf, (0, 4096), dir, attrs).unwrap();
    assert_eq!(raw.bounced, narrow || row.get("boot") == "force");
    let ram = lab.kernel().ram();
    let seen_at = device.phys_address(raw.dma).unwrap();
    let look = || ram.load::<u8>(seen_at).unwrap();
    let cpu_sees = |buf: &KBuf, at| {
        let mut byte = [0];
        buf.read_at(at, &mut byte).unwrap();
        byte[0]
    };
    let mut seen = [0; 9];
    seen[0] = look();
    buf.write_at(0, &[0x22]).unwrap();
    seen[1] = look();
    misuse::sync_single(&cpu, &device, raw.dma, 4096, false, dir);
    seen[2] = look();
    ram.write(seen_at, &[0x33, 0x34]).unwrap();
    seen[3] = cpu_sees(&buf, 0);
    misuse::sync_single(&cpu, &device, raw.dma, 4096, true, dir);
    seen[4] = cpu_sees(&buf, 0);
    seen[5] = cpu_sees(&buf, 1);
    ram.write(seen_at, &[0x44]).unwrap();
    misuse::unmap_attrs(&cpu, &device, (raw.dma, 4096), dir, attrs);
    seen[6] = cpu_sees(&buf, 0);
    seen[7] = cpu_sees(&buf, 2);
    seen[8] = cpu_sees(&buf, 4095);
    // The measured driver does what it must not, to see what comes of it.
    let reads = if dir == Dir::ToDevice { "cpu-writes-mapped" } else { "cpu-reads-mapped" };
    assert!(lab.findings().iter().all(|name| *name == "cpu-writes-mapped" || *name == reads), "{:?}", lab.findings());
    seen
}

#[test]
fn copies_are_made_when_they_are_measured_to_be() {
    let names = [
        "device_sees_at_map",
        "device_sees_cpu_write_before_sync",
        "device_sees_after_sync_for_device",
        "cpu_sees_device_write_before_sync",
        "cpu_sees_after_sync_for_cpu",
        "cpu_sees_second_byte",
        "cpu_sees_after_unmap",
        "untouched_byte",
        "last_byte",
    ];
    let rows =
        compare(TIMING, &names, |row| names.into_iter().zip(timing(row).map(|byte| format!("{byte:02x}"))).collect());
    assert_eq!(rows, 18);
}

#[test]
fn texts_are_those_of_the_kernel_and_each_warning_has_its_own_once() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let buf = high(&cpu, 4096, 0);
    let narrow = lab.device(28);
    for _ in 0..2 {
        assert!(misuse::map_single(&cpu, &narrow, &buf, Dir::ToDevice).is_err());
    }
    let base = lab.kernel().swiotlb.lock().as_ref().unwrap().base().get();
    let at = format!("0000:00:04.0: swiotlb addr 0x{base:016x}+4096 overflow (mask fffffff, bus limit 0).");
    assert_eq!(lab.log(), [at]);
    assert_eq!(lab.kernel().swiotlb_usage().0, 0, "the slots went back");
    let large = KBuf::pages(&cpu, 7, GFP_KERNEL).unwrap();
    let error = lab.device(32).map_single::<ToDevice>(&cpu, large).unwrap_err();
    let full = "swiotlb buffer is full (sz: 524288 bytes), total 32768 (slots), used 0 (slots)";
    assert_eq!((error.to_string(), error.buf.len()), (full.to_owned(), 524_288));
    assert_eq!(lab.log()[1], format!("0000:00:04.0: {full}"));

    let lab = Lab::of(without_pool());
    let cpu = lab.cpu();
    let buf = high(&cpu, 64, 0);
    assert!(misuse::map_single(&cpu, &lab.device(24), &buf, Dir::ToDevice).is_err());
    let at = format!("0000:00:04.0: DMA addr 0x{:016x}+64 overflow (mask ffffff, bus limit 0).", buf.phys().get());
    assert_eq!(lab.log(), [at]);
    assert_eq!(lab.device(24).max_mapping_size(), u64::MAX);
}

#[test]
fn ownership_goes_to_the_device_and_comes_back() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let mut mapped = device.map_single::<Bidirectional>(&cpu, high(&cpu, 100, 7)).unwrap();
    assert!(mapped.bounced() && mapped.len() == 100 && !mapped.is_empty() && mapped.id() > 0);
    let place = device.phys_address(mapped.dma_addr()).unwrap();
    lab.kernel().ram().write(place, &[9]).unwrap();
    {
        let mut window = mapped.sync_for_cpu(&cpu);
        let mut byte = [0];
        window.read_at(0, &mut byte).unwrap();
        assert_eq!(byte, [9]);
        window.write_at(1, &[8]).unwrap();
        assert!(window.write_at(100, &[0]).is_err() && window.read_at(99, &mut [0; 2]).is_err());
    }
    assert_eq!(lab.kernel().ram().load::<u8>(place.wrapping_add(1)).unwrap(), 8, "the window gave it back");
    let mut bytes = [0; 3];
    mapped.unmap(&cpu).read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, [9, 8, 7]);
    let counters = device.counters();
    assert_eq!((counters.maps, counters.bounces, counters.bounced_slots, counters.bounced_bytes), (1, 1, 1, 400));
    assert!(lab.leaks().is_empty() && lab.findings().is_empty());
}

#[test]
fn dropping_a_mapping_unmaps_it_and_frees_the_buffer() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let mapped = device.map_single::<FromDevice>(&cpu, high(&cpu, 5000, 1)).unwrap();
    assert_eq!((lab.leaks(), lab.kernel().swiotlb_usage().0), (vec![crate::finding::Resource::Mapping], 3));
    drop(mapped);
    assert_eq!((lab.leaks(), lab.kernel().swiotlb_usage().0, lab.findings().len()), (vec![], 0, 0));
    lab.kernel().validate().unwrap();
}

#[test]
fn each_point_of_a_bounced_map_may_fail_and_gives_the_buffer_back() {
    for nth in 0..2 {
        let lab = Lab::new();
        let (cpu, device) = (lab.cpu(), lab.device(32));
        let buf = high(&cpu, 64, 1);
        lab.solo.fail_nth(nth);
        let error = device.map_single::<ToDevice>(&cpu, buf).unwrap_err();
        assert_eq!((error.why, error.buf.len()), (MapFailure::Refused { len: 64 }, 64));
        assert_eq!((device.counters().map_failures, lab.kernel().swiotlb_usage().0), (1, 0));
        drop(error);
        assert!(lab.leaks().is_empty());
    }
}

#[test]
fn a_sync_past_the_mapping_copies_what_there_is_and_warns_as_linux_does() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let buf = high(&cpu, 64, 0x11);
    let raw = misuse::map_single(&cpu, &device, &buf, Dir::FromDevice).unwrap();
    lab.kernel().ram().write(device.phys_address(raw.dma).unwrap(), &[0x33]).unwrap();
    misuse::sync_single(&cpu, &device, raw.dma, 128, true, Dir::FromDevice);
    let mut byte = [0];
    buf.read_at(0, &mut byte).unwrap();
    assert_eq!((byte, lab.findings()), ([0x33], vec!["sync-not-mapped", "cpu-reads-mapped"]));
    assert_eq!(lab.log(), ["0000:00:04.0: Buffer overflow detected. Allocation size: 64. Mapping size: 128."]);
    misuse::unmap_single(&cpu, &device, raw.dma, 64, Dir::FromDevice);
}

#[test]
fn a_bridge_offset_moves_bounced_and_plain_mappings() {
    let offset = 1 << 33;
    let lab = Lab::of(MachineConfig { dma_offset: offset, ..MachineConfig::default() });
    let cpu = lab.cpu();
    let device = lab.device(36);
    let low = KBuf::pages(&cpu, 0, GFP_KERNEL | GFP_DMA32).unwrap();
    let at = low.phys().get();
    let mapped = device.map_single::<ToDevice>(&cpu, low).unwrap();
    assert_eq!((mapped.dma_addr().get(), mapped.bounced()), (at + offset, false));
    // 33 bits and the bridge: only the first 4 GiB are in reach through 0x2_0000_0000 + 32 bits.
    device.set_mask(&cpu, offset + dma_bit_mask(32)).unwrap();
    let mapped = device.map_single::<FromDevice>(&cpu, high(&cpu, 4096, 5)).unwrap();
    let bounce = device.phys_address(mapped.dma_addr()).unwrap();
    assert!(mapped.bounced() && bounce.get() < 3 << 30 && mapped.dma_addr().get() == bounce.get() + offset);
    lab.kernel().ram().write(bounce, &[0x77]).unwrap();
    let mut bytes = [0; 2];
    mapped.unmap(&cpu).read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0x77, 5]);
}

#[test]
fn a_mapping_kept_over_a_reset_touches_nothing() {
    let config = MachineConfig { ram: (5 << 30) + 0x3000, ..MachineConfig::default() };
    let old = Lab::of(config);
    let buf = high(&old.cpu(), 64, 1);
    let mut mapped = old.device(32).map_single::<Bidirectional>(&old.cpu(), buf).unwrap();
    drop(old);
    let lab = Lab::of(config);
    let cpu = lab.cpu();
    // The new machine's mapping has the same slot and the same buffer address as the old one.
    let fresh = lab.device(32).map_single::<Bidirectional>(&cpu, high(&cpu, 64, 2)).unwrap();
    assert_eq!(fresh.dma_addr(), mapped.dma_addr());
    lab.kernel().ram().write(PhysAddr::new(fresh.dma_addr().get()), &[3]).unwrap();
    drop(mapped.sync_for_cpu(&cpu));
    drop(mapped);
    let mut byte = [0];
    fresh.unmap(&cpu).read_at(0, &mut byte).unwrap();
    assert_eq!((byte, lab.findings()), ([3], vec!["stale-handle"; 2]));
    lab.kernel().validate().unwrap();
}
