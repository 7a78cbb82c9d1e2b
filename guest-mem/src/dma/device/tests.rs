use super::*;
use crate::dma::ToDevice;
use crate::gfp::GFP_KERNEL;
use crate::kernel::MachineConfig;
use crate::testing::Lab;

#[test]
fn the_required_mask_covers_all_ram() {
    let required = |ram: u64| Lab::of(MachineConfig { ram, ..MachineConfig::default() }).device(32).required_mask();
    assert_eq!(required(6 << 30), 0x1_ffff_ffff);
    assert_eq!(required(1 << 30), 0x3fff_ffff);
    assert_eq!(required(512 << 20), 0x1fff_ffff);
}

#[test]
fn a_small_machine_serves_small_masks() {
    let lab = Lab::of(MachineConfig { ram: 8 << 20, ..MachineConfig::default() });
    assert_eq!(lab.device(23).mask(), 0x7f_ffff, "8 MiB of RAM need no more than 23 bits");
    assert!(lab.device(32).set_mask(&lab.cpu(), dma_bit_mask(22)).is_err());
}

#[test]
fn a_bridge_offset_counts_against_the_mask() {
    let config = MachineConfig { dma_offset: 1 << 31, ..MachineConfig::default() };
    let lab = Lab::of(config);
    let device = lab.device(32);
    assert_eq!(device.bus_address(PhysAddr::new(0x1000)).get(), 0x8000_1000);
    assert_eq!(device.phys_address(DmaAddr::new(0x8000_1000)), Some(PhysAddr::new(0x1000)));
    assert_eq!(device.phys_address(DmaAddr::new(0x1000)), None, "below the bridge's window");
    assert_eq!(device.required_mask(), 0x3_ffff_ffff);
    assert!(device.set_mask(&lab.cpu(), dma_bit_mask(31)).is_err(), "even zone DMA lies above it on the bus");
    let far = Lab::of(MachineConfig { dma_offset: u64::MAX, ..MachineConfig::default() });
    let wrapped = DmaDevice::new(far.machine.kernel_ref(), "far");
    assert_eq!(wrapped.required_mask(), 0x1_ffff_ffff, "an offset that wraps is no panic");
}

#[test]
fn a_range_reaches_to_its_last_byte() {
    let capable = |addr, len, bits| DmaDevice::capable(DmaAddr::new(addr), len, dma_bit_mask(bits));
    assert!(capable(0xffff_ffe0, 0x20, 32) && !capable(0xffff_fff0, 0x20, 32));
    assert!(capable(0x0fff_f000, 4096, 28) && !capable(0x0fff_f001, 4096, 28));
    assert!(!capable(u64::MAX, 2, 64));
}

#[test]
fn masks_survive_the_driver_and_a_failed_point_keeps_the_old() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(40));
    lab.solo.fail_nth(0);
    assert!(device.set_mask(&cpu, u64::MAX).is_err());
    device.released(&cpu);
    assert_eq!((device.mask(), lab.findings().len()), (dma_bit_mask(40), 0));
}

#[test]
fn what_is_mapped_at_release_is_reported_with_both_sites() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(64));
    let buf = KBuf::kmalloc(&cpu, 128, GFP_KERNEL).unwrap();
    let mapped = device.map_single::<ToDevice>(&cpu, buf).unwrap();
    device.released(&cpu);
    device.released(&cpu);
    let finding = lab.kernel().findings().remove(0);
    let text = finding.kind.to_string();
    let address = format!("[device address={:#018x}] [size=128 bytes]", mapped.dma_addr().get());
    assert!(text.contains("has pending DMA allocations while released from device [count=1]\n"), "{text}");
    assert!(text.ends_with(&format!("{address} [mapped with DMA_TO_DEVICE] [mapped as single]")), "{text}");
    assert_eq!(
        finding.sites.iter().map(|site| site.0).collect::<Vec<_>>(),
        ["mapped at", "allocated at", "released at"]
    );
    assert_eq!(lab.findings(), ["pending-dma"; 2], "an earlier binding's leaks count again");
    let (mapped_at, allocated_at) = device.mapped_by(mapped.dma_addr()).unwrap();
    assert!(mapped_at.site.place().unwrap().line() > allocated_at.site.place().unwrap().line());
}

#[test]
fn a_device_of_a_recycled_machine_can_do_nothing() {
    let config = MachineConfig { ram: (64 << 20) + 0x3000, ..MachineConfig::default() };
    let old = Lab::of(config);
    let device = old.device(64);
    let stale = old.machine.kernel_ref();
    drop(old);
    let lab = Lab::of(config);
    let cpu = lab.cpu();
    let buf = KBuf::kmalloc(&cpu, 64, GFP_KERNEL).unwrap();
    assert!(device.map_single::<ToDevice>(&cpu, buf).is_err());
    assert!(device.alloc_coherent(&cpu, 64, GFP_KERNEL).is_err());
    let late = DmaDevice::new(stale, "late");
    assert!(late.alloc_pages(&cpu, 64, GFP_KERNEL).is_err());
    assert_eq!(lab.findings(), ["stale-handle"; 4]);
    assert!(lab.leaks().is_empty() && lab.kernel().devices.lock().is_empty());
}
