use super::*;
use crate::Cpu;
use crate::dma::{Dir, DmaPort, misuse};
use crate::gfp::GFP_KERNEL;
use crate::kbuf::KBuf;
use crate::kernel::MachineConfig;
use crate::testing::Lab;
use vm_memory::{Bytes, GuestAddress};

fn lay(cpu: &Cpu<'_>, table: &Coherent, at: u64, (addr, len, flags, next): (u64, u32, u16, u16)) {
    let mut bytes = addr.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    table.write(cpu, usize::try_from(at * DESC).unwrap(), &bytes);
}

#[test]
fn the_chain_that_covers_an_address_is_named_and_a_free_or_looped_one_is_not() {
    for config in [
        MachineConfig::default(),
        MachineConfig { iommu: Some(crate::dma::iommu::IommuMode::Strict), ..MachineConfig::default() },
    ] {
        let lab = Lab::of(config);
        let (cpu, device) = (lab.cpu(), lab.device(32));
        assert_eq!(device.posted(DmaAddr::new(64)), Posted::Unknown);
        let table = device.alloc_coherent(&cpu, 4096, GFP_KERNEL).unwrap();
        let posting = Posting::new(&device, 3, &table, 8);
        lay(&cpu, &table, 0, (0x1000, 16, NEXT, 1));
        lay(&cpu, &table, 1, (0x2000, 16, 0, 0));
        lay(&cpu, &table, 2, (0x3000, 16, NEXT, 2));
        // An indirect table behind the ring.
        lay(&cpu, &table, 3, (table.dma_addr().get() + 2048, 32, INDIRECT, 0));
        lay(&cpu, &table, 129, (0x4000, 16, 0, 0));
        let seen = |at| device.posted(DmaAddr::new(at));
        assert_eq!(seen(0x2008), Posted::Nowhere, "nothing is posted");
        let by = cpu.owner();
        [0, 2, 3].into_iter().for_each(|head| posting.post(head, by));
        let chain = |head| Posted::In(Descriptor { queue: 3, head, owner: by });
        assert_eq!([seen(0x1000), seen(0x200f), seen(0x3000), seen(0x4000)], [chain(0), chain(0), chain(2), chain(3)]);
        assert_eq!([seen(0x2010), seen(0xfff)], [Posted::Nowhere; 2], "to the byte");
        posting.done(0);
        assert_eq!(seen(0x2008), Posted::Nowhere);
        drop(posting);
        assert_eq!(seen(0x3000), Posted::Unknown);
    }
}

#[test]
fn a_violation_says_whose_descriptor_the_address_was_in_or_that_it_was_in_none() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(64));
    let table = device.alloc_coherent(&cpu, 4096, GFP_KERNEL).unwrap();
    let posting = Posting::new(&device, 0, &table, 4);
    let buf = KBuf::kmalloc(&cpu, 64, GFP_KERNEL).unwrap();
    let raw = misuse::map_single(&cpu, &device, &buf, Dir::ToDevice).unwrap();
    misuse::unmap_single(&cpu, &device, raw.dma, 64, Dir::ToDevice);
    lay(&cpu, &table, 1, (raw.dma.get(), 64, 0, 0));
    posting.post(1, cpu.owner());
    let port = DmaPort::new(&device);
    port.read_slice(&mut [0], GuestAddress(raw.dma.get())).unwrap();
    posting.done(1);
    port.read_slice(&mut [0], GuestAddress(raw.dma.get())).unwrap();
    let findings = lab.kernel().findings();
    let (first, second) = (findings[0].to_string(), findings[1].to_string());
    assert!(first.contains("[posted in chain 1 of queue 0]") && first.contains("\n  posted at "), "{first}");
    assert!(second.contains("[posted in no descriptor]") && !second.contains("posted at"), "{second}");
}
