use super::*;
use crate::dma::ledger::Violation;
use crate::dma::port::DmaPort;
use crate::dma::{FromDevice, dma_bit_mask};
use crate::finding::Resource;
use crate::gfp::{GFP_ATOMIC, GFP_KERNEL};
use crate::kernel::MachineConfig;
use crate::testing::{Lab, compare, rows};

const TABLE: &str = include_str!("../../../../tests/golden/coherent.tsv");
const MISC: &str = include_str!("../../../../tests/golden/coherent_misc.tsv");

/// The machine of a boot; DMA32 is taken up to 44 MiB, as it was when measured.
fn lab_of(boot: &'static str) -> Lab {
    let lab = Lab::boot(boot);
    let mut memory = lab.kernel().memory.lock();
    let low = Gfp::NORETRY | GFP_DMA32;
    while memory.zones.alloc(0, low, Owner::default()).unwrap().pfn.phys().get() < (44 << 20) - PAGE_SIZE {}
    drop(memory);
    lab
}

#[test]
fn zones_alignments_and_limits_are_as_measured() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for boot in ["dma", "force", "noforce", "small"] {
        let lab = lab_of(boot);
        let cpu = lab.cpu();
        for row in rows(TABLE).filter(|row| row.get("boot") == boot) {
            let device = lab.device(u8::try_from(row.number("mask").unwrap()).unwrap());
            let size = usize::try_from(row.number("size").unwrap()).unwrap();
            let right = match device.alloc_coherent(&cpu, size, GFP_KERNEL) {
                Err(_) => row.get("ret") == "NULL",
                Ok(memory) => {
                    let mut bytes = vec![1; size];
                    memory.read(&cpu, 0, &mut bytes);
                    let dirty = vec![0xa5; size];
                    memory.write(&cpu, 0, &dirty);
                    let at = memory.dma_addr().get();
                    row.get("ret") == "ptr"
                        && row.get("zone") == memory.zone().to_string()
                        && memory.phys().get() == at
                        && at % (memory.pages() * PAGE_SIZE) == 0
                        && DmaDevice::capable(memory.dma_addr(), size as u64, device.coherent_mask())
                        && bytes.iter().all(|&byte| byte == 0)
                }
            };
            if !right {
                wrong.push(row.line);
            }
            count += 1;
        }
    }
    assert_eq!(wrong, Vec::<&str>::new());
    assert_eq!(count, 231);
}

#[test]
fn other_masks_and_sizes_are_as_measured() {
    let rows = compare(MISC, &["zone", "ret"], |row| {
        let lab = lab_of(row.get("boot"));
        let cpu = lab.cpu();
        let (device, size, gfp) = match row.get("what") {
            "mask64_with_GFP_DMA" => (lab.device(64), 4096, GFP_KERNEL | GFP_DMA),
            "mask32_GFP_ATOMIC" => (lab.device(32), 4096, GFP_ATOMIC),
            "size0" => (lab.device(64), 0, GFP_KERNEL),
            "size8M" => (lab.device(64), 8 << 20, GFP_KERNEL),
            // No call sets such a mask: it is that of a device that no bus has prepared.
            "coherent_mask_0" => (DmaDevice::bare(lab.machine.kernel_ref(), "bare"), 4096, GFP_KERNEL),
            "alloc_noncoherent_mask24" => {
                let memory = lab.device(24).alloc_noncoherent::<FromDevice>(&cpu, 4096, GFP_KERNEL).unwrap();
                return vec![("zone", memory.unmap(&cpu).zone().to_string())];
            }
            other => panic!("no such row: {other}"),
        };
        match device.alloc_coherent(&cpu, size, gfp) {
            Ok(memory) => vec![("zone", memory.zone().to_string()), ("ret", "ptr".to_owned())],
            Err(_) => vec![("ret", "NULL".to_owned())],
        }
    });
    assert_eq!(rows, 18);
}

#[test]
fn only_the_pages_asked_for_must_be_in_reach() {
    let lab = Lab::of(MachineConfig { ram: 16 << 20, ..MachineConfig::default() });
    let (cpu, device) = (lab.cpu(), lab.device(24));
    let mut last = None;
    // The last order-2 block of zone DMA ends on the mask's last byte; three pages of it are enough.
    while let Ok(block) = device.alloc_coherent(&cpu, 3 * 4096, GFP_ATOMIC) {
        last = last.max(Some(block.dma_addr().get()));
        std::mem::forget(block);
    }
    assert!(last.unwrap() + 4 * PAGE_SIZE <= 1 << 24);
}

#[test]
fn one_call_complains_once_and_zeroes_once() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(25));
    // Zone DMA32 has nothing below 32 MiB left, so the block comes on the second try.
    let mut memory = lab.kernel().memory.lock();
    while memory.zones.alloc(0, GFP_DMA32, Owner::default()).unwrap().pfn.phys().get() < (32 << 20) {}
    drop(memory);
    let off = cpu.local_irq_save();
    lab.solo.points();
    let ring = device.alloc_coherent(&cpu, 100, GFP_KERNEL | Gfp::ZERO).unwrap();
    assert_eq!((ring.zone(), lab.solo.points()), (ZoneKind::Dma, vec![Class::Coherent; 2]));
    assert_eq!(lab.findings(), ["sleep-in-atomic"]);
    drop(off);
}

#[test]
fn accessors_are_little_endian_and_in_bounds_only() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let ring = device.alloc_coherent(&cpu, 10, GFP_KERNEL).unwrap();
    ring.write_u32(&cpu, 0, 0x0403_0201);
    ring.write_u16(&cpu, 5, 0x0807);
    let mut bytes = [0; 10];
    ring.read(&cpu, 0, &mut bytes);
    assert_eq!(bytes, [1, 2, 3, 4, 0, 7, 8, 0, 0, 0]);
    assert_eq!(
        (ring.read_u16(&cpu, 1), ring.read_u8(&cpu, 6), ring.read_u64(&cpu, 0)),
        (0x0302, 8, 0x0008_0700_0403_0201)
    );
    assert!(lab.findings().is_empty());
    ring.write_u32(&cpu, 8, 1);
    assert_eq!(ring.read_u32(&cpu, 8), u32::MAX);
    ring.write(&cpu, usize::MAX, &[1]);
    let finding = lab.kernel().findings().remove(0);
    assert_eq!(finding.kind.to_string(), "access of 4 bytes at offset 0x8 of a coherent buffer of 10 bytes");
    assert_eq!((lab.findings(), finding.sites[1].0), (vec!["out-of-bounds"; 3], "allocated at"));
}

#[test]
fn it_is_one_transaction_until_it_is_freed_with_a_name() {
    use vm_memory::{Bytes, GuestAddress};
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let ring = device.alloc_coherent(&cpu, 4096, GFP_KERNEL).unwrap();
    assert_eq!(lab.leaks(), [Resource::Coherent], "its pages are told with it");
    let at = GuestAddress(ring.dma_addr().get());
    let line = line!() + 1;
    ring.free(&cpu);
    assert!(lab.leaks().is_empty() && lab.findings().is_empty());
    DmaPort::new(&device).write_slice(&[1], at).unwrap();
    let finding = lab.kernel().findings().remove(0);
    assert!(matches!(finding.kind, FindingKind::Port { violation: Violation::AfterUnmap { .. }, .. }));
    assert_eq!(finding.sites[1].1.site.place().unwrap().line(), line);
    lab.kernel().validate().unwrap();
}

#[test]
fn a_refused_block_leaves_nothing() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    lab.solo.fail_nth(0);
    let error = device.alloc_coherent(&cpu, 5000, GFP_KERNEL).unwrap_err();
    assert!(matches!(error, CoherentError::NoMemory { len: 5000, mask, .. } if mask == dma_bit_mask(32)));
    assert_eq!((device.counters().coherent, lab.leaks().len()), (0, 0));
}
