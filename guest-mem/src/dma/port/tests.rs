use vm_memory::Bytes;

use super::*;
use crate::dma::{Dir, FromDevice, ToDevice, misuse};
use crate::gfp::{GFP_DMA32, GFP_KERNEL};
use crate::kernel::MachineConfig;
use crate::testing::Lab;
use crate::{Cpu, KBuf};

fn low(cpu: &Cpu<'_>, byte: u8) -> KBuf {
    let mut buf = KBuf::pages(cpu, 0, GFP_KERNEL | GFP_DMA32).unwrap();
    buf.write_at(0, &[byte; 4096]).unwrap();
    buf
}

fn at(dma: DmaAddr) -> GuestAddress {
    GuestAddress(dma.get())
}

#[test]
fn a_mapping_is_a_grant_to_the_byte_and_each_access_a_record() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let (port, buf) = (DmaPort::new(&device), low(&cpu, 7));
    let phys = buf.phys();
    let mapped = device.map_single::<ToDevice>(&cpu, buf).unwrap();
    lab.kernel().trace().capture();
    let mut bytes = [0; 16];
    port.read_slice(&mut bytes, at(mapped.dma_addr())).unwrap();
    assert_eq!((bytes, mapped.dma_addr().get()), ([7; 16], phys.get()));
    let (who, record) = lab.kernel().trace().take_captured()[0];
    assert_eq!((record.kind, record.len, record.tag, record.dev), (Kind::PortRead, 16, mapped.id(), device.index()));
    assert_eq!(who, Producer(2 + device.index()), "after the CPUs' rings");
    assert!(lab.findings().is_empty() && port.physical_memory().is_none());
    assert_eq!(device.state.ledger.lock().live().next().unwrap().touched.read_bytes, 16);
}

#[test]
fn a_bounced_mapping_reaches_the_pool_and_the_buffer_only_after_the_unmap() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let mut buf = KBuf::kmalloc(&cpu, 512, GFP_KERNEL).unwrap();
    buf.write_at(0, &[1; 512]).unwrap();
    let phys = buf.phys();
    let mapped = device.map_single::<FromDevice>(&cpu, buf).unwrap();
    DmaPort::new(&device).write_slice(&[5; 256], at(mapped.dma_addr())).unwrap();
    assert_eq!(lab.kernel().ram().load::<u8>(phys).unwrap(), 1);
    let mut bytes = [0; 257];
    mapped.unmap(&cpu).read_at(0, &mut bytes).unwrap();
    assert_eq!((bytes[..256].to_vec(), bytes[256]), (vec![5; 256], 1));
    assert!(lab.findings().is_empty());
}

/// What each crime of the device is called, which sites it names, and that the memory is hit all the same.
#[test]
fn violations_are_reported_and_go_through() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(64));
    let port = DmaPort::new(&device);
    let buf = low(&cpu, 1);
    let hit = |offset| lab.kernel().ram().load::<u8>(buf.phys().wrapping_add(offset)).unwrap();
    let raw = misuse::map_single(&cpu, &device, &buf, Dir::ToDevice).unwrap();
    let last = |name: &str, sites: &[&str]| {
        let finding = lab.kernel().findings().pop().unwrap();
        let seen: Vec<_> = finding.sites.iter().map(|site| site.0).collect();
        assert_eq!((finding.kind.name(), &seen[..]), (name, sites));
        assert_eq!(finding.device.as_deref(), Some("0000:00:04.0"));
        assert!(finding.sites.iter().all(|site| site.1.site.place().is_some()));
    };
    port.write_slice(&[2], at(raw.dma)).unwrap();
    last("wrong-direction", &["mapped at", "allocated at"]);
    assert_eq!(hit(0), 2);
    port.read_slice(&mut [0; 8], at(raw.dma.wrapping_add(4090))).unwrap();
    last("outside-mapping", &["mapped at", "allocated at"]);
    misuse::unmap_single(&cpu, &device, raw.dma, 4096, Dir::ToDevice);
    port.write_slice(&[3], at(raw.dma)).unwrap();
    last("after-unmap", &["mapped at", "unmapped at", "allocated at"]);
    assert_eq!(hit(0), 3);
    port.write_slice(&[4], GuestAddress(0x1000)).unwrap();
    last("not-mapped", &[]);
    assert_eq!(lab.kernel().ram().load::<u8>(PhysAddr::new(0x1000)).unwrap(), 4);

    let raw = misuse::map_single(&cpu, &device, &buf, Dir::FromDevice).unwrap();
    misuse::sync_single(&cpu, &device, raw.dma, 64, true, Dir::FromDevice);
    port.write_slice(&[5], at(raw.dma)).unwrap();
    last("while-cpu-owns", &["mapped at", "allocated at"]);
    misuse::sync_single(&cpu, &device, raw.dma, 64, false, Dir::FromDevice);
    let before = lab.findings().len();
    port.write_slice(&[6], at(raw.dma)).unwrap();
    assert_eq!((hit(0), lab.findings().len()), (6, before));
    misuse::unmap_single(&cpu, &device, raw.dma, 4096, Dir::FromDevice);
}

#[test]
fn outside_ram_nothing_is_reached() {
    let lab = Lab::new();
    let port = DmaPort::new(&lab.device(64));
    for addr in [3 << 30, (7 << 30) - 2, u64::MAX - 1] {
        assert!(port.write_slice(&[1; 4], GuestAddress(addr)).is_err(), "{addr:#x}");
    }
    assert_eq!(lab.findings(), ["not-mapped"; 3]);
}

#[test]
fn a_question_is_no_access() {
    let lab = Lab::new();
    let port = DmaPort::new(&lab.device(32));
    let events = lab.kernel().trace().events();
    let asked = [0, 3 << 30, (7 << 30) - 1, u64::MAX].map(|a| port.check_range(GuestAddress(a), 1, Permissions::Write));
    assert_eq!(asked, [true, false, true, false]);
    assert_eq!((lab.findings().len(), lab.kernel().trace().events()), (0, events));
}

#[test]
fn a_bridge_offset_is_taken_off_for_ring_bounce_and_stray_access() {
    let offset = 1 << 40;
    let lab = Lab::of(MachineConfig { dma_offset: offset, ..MachineConfig::default() });
    let cpu = lab.cpu();
    let device = DmaDevice::new(lab.machine.kernel_ref(), "far");
    device.set_mask_and_coherent(&cpu, offset + 0xffff_ffff).unwrap();
    let port = DmaPort::new(&device);
    let ring = device.alloc_coherent(&cpu, 4096, GFP_KERNEL).unwrap();
    assert_eq!(ring.dma_addr().get(), ring.phys().get() + offset);
    port.write_slice(&[1, 2, 3, 4], at(ring.dma_addr())).unwrap();
    assert_eq!(ring.read_u32(&cpu, 0), 0x0403_0201);
    let mapped = device.map_single::<FromDevice>(&cpu, KBuf::kmalloc(&cpu, 64, GFP_KERNEL).unwrap()).unwrap();
    assert!(mapped.bounced());
    port.write_slice(&[9], at(mapped.dma_addr())).unwrap();
    let mut byte = [0];
    mapped.unmap(&cpu).read_at(0, &mut byte).unwrap();
    assert_eq!((byte, lab.findings().len()), ([9], 0));
    assert!(port.write_slice(&[9], GuestAddress(ring.phys().get())).is_err(), "below the bridge's window");
    port.write_slice(&[8], GuestAddress(offset + 0x2000)).unwrap();
    assert_eq!(lab.kernel().ram().load::<u8>(PhysAddr::new(0x2000)).unwrap(), 8);
    assert_eq!(lab.findings(), ["not-mapped"; 2]);
}

#[test]
fn two_devices_have_two_books() {
    let lab = Lab::new();
    let (cpu, one, other) = (lab.cpu(), lab.device(64), lab.device(64));
    let mapped = one.map_single::<ToDevice>(&cpu, low(&cpu, 1)).unwrap();
    DmaPort::new(&other).read_slice(&mut [0; 4], at(mapped.dma_addr())).unwrap();
    assert_eq!((lab.findings(), one.index(), other.index()), (vec!["not-mapped"], 1, 2));
}

#[test]
fn a_port_kept_over_a_reset_reaches_nothing() {
    let config = MachineConfig { ram: (64 << 20) + 0x5000, ..MachineConfig::default() };
    let old = Lab::of(config);
    let port = DmaPort::new(&old.device(64));
    drop(old);
    let lab = Lab::of(config);
    assert!(port.write_slice(&[1], GuestAddress(0x1000)).is_err());
    assert!(!port.check_range(GuestAddress(0x1000), 1, Permissions::Read));
    assert_eq!(lab.kernel().ram().load::<u8>(PhysAddr::new(0x1000)).unwrap(), 0);
}

#[test]
fn a_fault_of_the_iommu_names_the_calls_that_the_violation_names() {
    use crate::dma::iommu::IommuMode;
    let lab = Lab::of(MachineConfig { iommu: Some(IommuMode::Strict), ..MachineConfig::default() });
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let buf = KBuf::kmalloc(&cpu, 64, GFP_KERNEL).unwrap();
    let raw = misuse::map_single(&cpu, &device, &buf, Dir::ToDevice).unwrap();
    misuse::unmap_single(&cpu, &device, raw.dma, 64, Dir::ToDevice);
    assert!(DmaPort::new(&device).read_slice(&mut [0], GuestAddress(raw.dma.get())).is_err());
    let findings = lab.kernel().findings();
    assert_eq!(lab.findings(), ["after-unmap", "iommu-fault"]);
    let parts: Vec<_> = findings[1].sites.iter().map(|site| site.0).collect();
    assert_eq!(parts, ["mapped at", "unmapped at", "allocated at"]);
    assert_eq!(findings[0].sites, findings[1].sites);
}
