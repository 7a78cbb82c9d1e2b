use crate::dma::{Attrs, Dir, DmaPort, FromDevice, ToDevice, misuse};
use crate::gfp::GFP_KERNEL;
use crate::kbuf::KBuf;
use crate::kernel::MachineConfig;
use crate::testing::Lab;
use vm_memory::{Bytes, GuestAddress};

fn lab() -> Lab {
    Lab::of(MachineConfig { coherent: false, ..MachineConfig::default() })
}

fn at(dma: crate::addr::DmaAddr) -> GuestAddress {
    GuestAddress(dma.get())
}

#[test]
fn mapping_cleans_and_unmapping_invalidates() {
    let lab = lab();
    let (cpu, device) = (lab.cpu(), lab.device(64));
    let port = DmaPort::new(&device);
    let mut buf = KBuf::kmalloc(&cpu, 200, GFP_KERNEL).unwrap();
    buf.write_at(0, &[7; 200]).unwrap();
    let mut seen = [1; 200];
    lab.kernel().ram().read_uncached(buf.phys(), &mut seen).unwrap();
    assert_eq!(seen, [0; 200], "what a CPU wrote is in its cache");
    let mapped = device.map_single::<ToDevice>(&cpu, buf).unwrap();
    port.read_slice(&mut seen, at(mapped.dma_addr())).unwrap();
    assert_eq!(seen, [7; 200]);
    let buf = mapped.unmap(&cpu);
    let mapped = device.map_single::<FromDevice>(&cpu, buf).unwrap();
    port.write_slice(&[9; 200], at(mapped.dma_addr())).unwrap();
    mapped.unmap(&cpu).read_at(0, &mut seen).unwrap();
    assert_eq!(seen, [9; 200]);
    assert!(lab.findings().is_empty());
}

/// The twin of each shows what a coherent machine hides.
#[test]
fn a_forgotten_sync_shows_stale_bytes_here_and_nowhere_else() {
    for (coherent, cpu_sees, device_sees) in [(true, 9, 3), (false, 1, 1)] {
        let lab = Lab::of(MachineConfig { coherent, ..MachineConfig::default() });
        let (cpu, device) = (lab.cpu(), lab.device(64));
        let port = DmaPort::new(&device);
        let mut buf = KBuf::kmalloc(&cpu, 128, GFP_KERNEL).unwrap();
        buf.write_at(0, &[1; 128]).unwrap();
        let raw = misuse::map_single(&cpu, &device, &buf, Dir::Bidirectional).unwrap();
        port.write_slice(&[9; 64], at(raw.dma)).unwrap();
        let mut byte = [0];
        buf.read_at(0, &mut byte).unwrap();
        assert_eq!(byte, [cpu_sees], "no dma_sync_single_for_cpu");
        buf.write_at(64, &[3]).unwrap();
        port.read_slice(&mut byte, GuestAddress(raw.dma.get() + 64)).unwrap();
        assert_eq!(byte, [device_sees], "no dma_sync_single_for_device");
        misuse::sync_single(&cpu, &device, raw.dma, 64, true, Dir::Bidirectional);
        buf.read_at(0, &mut byte).unwrap();
        assert_eq!(byte, [9], "synced");
        misuse::sync_single(&cpu, &device, raw.dma, 64, false, Dir::Bidirectional);
        misuse::unmap_single(&cpu, &device, raw.dma, 128, Dir::Bidirectional);
        assert_eq!(lab.findings(), ["missing-sync", "cpu-writes-mapped"], "whatever the machine");
    }
}

#[test]
fn a_field_in_the_line_of_a_mapped_buffer_corrupts_it_and_two_kmallocs_never_share_one() {
    let lab = lab();
    let (cpu, device) = (lab.cpu(), lab.device(64));
    let port = DmaPort::new(&device);
    let mut whole = KBuf::kmalloc(&cpu, 128, GFP_KERNEL).unwrap();
    whole.write_at(0, &[0; 128]).unwrap();
    let part = misuse::map_part(&cpu, &device, &whole, (0, 32), Dir::FromDevice, Attrs::empty()).unwrap();
    port.write_slice(&[9; 32], at(part.dma)).unwrap();
    whole.write_at(40, &[5]).unwrap();
    misuse::unmap_single(&cpu, &device, part.dma, 32, Dir::FromDevice);
    let mut bytes = [1; 41];
    whole.read_at(0, &mut bytes).unwrap();
    assert_eq!(lab.findings(), ["line-shared"]);
    assert_eq!((bytes[0], bytes[40]), (0, 5), "the line that the CPU dirtied was written over the device's bytes");
    let objects: Vec<_> = (0..64).map(|_| KBuf::kmalloc(&cpu, 8, GFP_KERNEL).unwrap()).collect();
    assert!(objects.iter().all(|object| object.phys().get() % 128 == 0));
    let objects: Vec<_> = (0..64).map(|_| KBuf::kmalloc(&cpu, 190, GFP_KERNEL).unwrap()).collect();
    assert!(objects.iter().all(|object| object.phys().get() % 128 == 0));
}

#[test]
fn coherent_memory_is_seen_at_once_and_a_bounce_is_cleaned_and_invalidated() {
    let lab = lab();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let port = DmaPort::new(&device);
    let mut used: Vec<_> = (0..32).map(|_| KBuf::pages(&cpu, 0, GFP_KERNEL).unwrap()).collect();
    used.iter_mut().for_each(|buf| buf.write_at(0, &[8; 4096]).unwrap());
    drop(used);
    let ring = device.alloc_coherent(&cpu, 4096, GFP_KERNEL).unwrap();
    assert_eq!(ring.read_u32(&cpu, 0), 0);
    ring.write_u32(&cpu, 0, 0x0505_0505);
    let mut seen = [0; 4];
    port.read_slice(&mut seen, at(ring.dma_addr())).unwrap();
    port.write_slice(&[6; 4], at(ring.dma_addr())).unwrap();
    assert_eq!((seen, ring.read_u32(&cpu, 0)), ([5; 4], 0x0606_0606));
    let mut buf = KBuf::pages(&cpu, 0, GFP_KERNEL).unwrap();
    buf.write_at(0, &[4; 4096]).unwrap();
    let mapped = device.map_single::<crate::dma::Bidirectional>(&cpu, buf).unwrap();
    assert!(mapped.bounced());
    port.read_slice(&mut seen, at(mapped.dma_addr())).unwrap();
    port.write_slice(&[2; 4], at(mapped.dma_addr())).unwrap();
    let mut back = [0; 5];
    mapped.unmap(&cpu).read_at(0, &mut back).unwrap();
    assert_eq!((seen, back), ([4; 4], [2, 2, 2, 2, 4]));
    assert!(lab.findings().is_empty());
}
