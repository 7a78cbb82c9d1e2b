use super::*;
use crate::Cpu;
use crate::dma::{Attrs, Bidirectional, DmaDevice, DmaPort, FromDevice, SgTable, ToDevice, misuse};
use crate::gfp::GFP_KERNEL;
use crate::kbuf::KBuf;
use crate::kernel::MachineConfig;
use crate::testing::Lab;
use crate::vmalloc::vmalloc;
use vm_memory::{Bytes, GuestAddress};

const NONE: [&str; 0] = [];

/// What is found when bytes 64 to 163 of 256 are mapped and a driver does something to the buffer.
fn done(coherent: bool, dir: Dir, act: impl FnOnce(&Cpu<'_>, &DmaDevice, &mut KBuf)) -> Vec<&'static str> {
    let lab = Lab::of(MachineConfig { coherent, ..MachineConfig::default() });
    let (cpu, device) = (lab.cpu(), lab.device(64));
    let mut buf = KBuf::kmalloc(&cpu, 256, GFP_KERNEL).unwrap();
    let raw = misuse::map_part(&cpu, &device, &buf, (64, 100), dir, Attrs::empty()).unwrap();
    act(&cpu, &device, &mut buf);
    misuse::unmap_single(&cpu, &device, raw.dma, 100, dir);
    buf.write_at(0, &[1; 256]).unwrap();
    drop(buf);
    assert!(!lab.kernel().watched.any(), "nothing is watched any more");
    lab.findings()
}

fn device_writes(device: &DmaDevice, buf: &KBuf) {
    DmaPort::new(device).write_slice(&[7], GuestAddress(buf.phys().get() + 70)).unwrap();
}

#[test]
fn what_the_device_owns_is_neither_written_nor_read_to_the_byte() {
    let mut four = [0; 4];
    for coherent in [true, false] {
        let last = done(coherent, Dir::ToDevice, |_, _, buf| buf.write_at(61, &[0; 4]).unwrap());
        assert_eq!(last, ["cpu-writes-mapped"], "its last byte is the mapping's first");
        assert_eq!(done(coherent, Dir::ToDevice, |_, _, buf| buf.read_at(64, &mut four).unwrap()), NONE, "both may");
        for dir in [Dir::FromDevice, Dir::Bidirectional] {
            assert_eq!(done(coherent, dir, |_, _, buf| buf.read_at(163, &mut four).unwrap()), ["cpu-reads-mapped"]);
            assert_eq!(done(coherent, dir, |_, _, buf| buf.read_at(164, &mut four).unwrap()), NONE);
            assert_eq!(done(coherent, dir, |_, _, buf| buf.read_at(60, &mut four).unwrap()), NONE);
        }
        let seen = done(coherent, Dir::FromDevice, |_, device, buf| {
            device_writes(device, buf);
            buf.read_at(100, &mut four).unwrap();
        });
        assert_eq!(seen, ["missing-sync"]);
    }
}

#[test]
fn a_sync_lends_what_it_names_and_no_more_until_it_is_given_back() {
    let dir = Dir::Bidirectional;
    let seen = done(true, dir, |cpu, device, buf| {
        let dma = crate::addr::DmaAddr::new(buf.phys().get() + 64);
        device_writes(device, buf);
        misuse::sync_single(cpu, device, dma, 50, true, dir);
        let mut byte = [0];
        buf.read_at(70, &mut byte).unwrap();
        assert_eq!(byte, [7]);
        buf.write_at(64, &[1; 50]).unwrap();
        buf.write_at(64, &[1; 51]).unwrap();
        misuse::sync_single(cpu, device, dma, 50, false, dir);
        buf.read_at(64, &mut byte).unwrap();
    });
    assert_eq!(seen, ["cpu-writes-mapped", "cpu-reads-mapped"]);
}

#[test]
fn a_neighbour_in_the_line_counts_where_there_are_caches_and_the_device_writes() {
    let beside = |_: &Cpu<'_>, _: &DmaDevice, buf: &mut KBuf| buf.write_at(170, &[0; 4]).unwrap();
    assert_eq!(done(false, Dir::FromDevice, beside), ["line-shared"]);
    assert_eq!(done(false, Dir::ToDevice, beside), NONE);
    assert_eq!(done(true, Dir::FromDevice, beside), NONE);
    let other_lines = |_: &Cpu<'_>, _: &DmaDevice, buf: &mut KBuf| {
        buf.write_at(0, &[0; 64]).unwrap();
        buf.write_at(192, &[0; 64]).unwrap();
    };
    assert_eq!(done(false, Dir::FromDevice, other_lines), NONE);
}

#[test]
fn memory_is_not_given_back_while_it_is_mapped_whoever_had_it() {
    let freed = |act: fn(&Cpu<'_>, &DmaDevice)| {
        let lab = Lab::new();
        act(&lab.cpu(), &lab.device(64));
        lab.findings()
    };
    let kmalloc = |cpu: &Cpu<'_>, device: &DmaDevice| {
        for len in [100, 20_000] {
            let buf = KBuf::kmalloc(cpu, len, GFP_KERNEL).unwrap();
            let raw = misuse::map_single(cpu, device, &buf, Dir::ToDevice).unwrap();
            drop(buf);
            misuse::unmap_single(cpu, device, raw.dma, len as u64, Dir::ToDevice);
        }
    };
    assert_eq!(freed(kmalloc), ["freed-while-mapped"; 2]);
    let pages = |cpu: &Cpu<'_>, device: &DmaDevice| {
        let buf = KBuf::pages(cpu, 1, GFP_KERNEL).unwrap();
        let raw = misuse::map_part(cpu, device, &buf, (4096, 8), Dir::ToDevice, Attrs::empty()).unwrap();
        drop(buf);
        misuse::unmap_single(cpu, device, raw.dma, 8, Dir::ToDevice);
    };
    assert_eq!(freed(pages), ["freed-while-mapped"]);
    let area = |cpu: &Cpu<'_>, device: &DmaDevice| {
        let area = vmalloc(cpu, 4096).unwrap();
        let mut table = SgTable::of(cpu, &area);
        misuse::map_sgtable(cpu, device, &mut table, Dir::ToDevice).unwrap();
        drop(area);
        misuse::unmap_sg(cpu, device, &table, 1, Dir::ToDevice);
    };
    assert_eq!(freed(area), ["freed-while-mapped"]);
    let typed = |cpu: &Cpu<'_>, device: &DmaDevice| {
        let buf = KBuf::kmalloc(cpu, 100, GFP_KERNEL).unwrap();
        let at = buf.phys();
        let mapped = device.map_single::<ToDevice>(cpu, buf).unwrap();
        misuse::kfree(cpu, at);
        std::mem::forget(mapped.unmap(cpu));
    };
    assert_eq!(freed(typed), ["freed-while-mapped"], "by its address, under a mapping that owns it");
}

#[test]
fn a_window_of_the_types_is_the_cpus_and_its_line_may_be_shared_within_one_mapping() {
    let lab = Lab::of(MachineConfig { coherent: false, ..MachineConfig::default() });
    let (cpu, device) = (lab.cpu(), lab.device(64));
    let buf = KBuf::kmalloc(&cpu, 256, GFP_KERNEL).unwrap();
    let mut mapped = device.map_single::<Bidirectional>(&cpu, buf).unwrap();
    mapped.sync_for_cpu(&cpu).write_at(0, &[1; 256]).unwrap();
    mapped.sync_range_for_cpu(&cpu, 64, 64).unwrap().write_at(64, &[2; 64]).unwrap();
    assert_eq!(lab.findings(), NONE);
    mapped.sync_range_for_cpu(&cpu, 64, 32).unwrap().write_at(64, &[3; 32]).unwrap();
    assert_eq!(lab.findings(), ["line-shared"], "the other half of the line is the device's");
    drop(mapped.unmap(&cpu));
    let buf = KBuf::kmalloc(&cpu, 64, GFP_KERNEL).unwrap();
    drop(device.map_single::<FromDevice>(&cpu, buf).unwrap().unmap(&cpu));
    assert_eq!(lab.findings(), ["line-shared"]);
}
