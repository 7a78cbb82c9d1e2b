use super::*;
use crate::iospace::Width;
use crate::kernel::MachineConfig;
use crate::lock::Locked;
use crate::testing::Lab;
use crate::trace::Kind;
use crate::vmalloc::{self, find_vm_area, vmalloc_to_page, vmallocinfo};

/// Registers that keep what is written and count accesses.
#[derive(Default)]
struct Registers(Locked<Vec<(u64, u8, Option<u64>)>>);

impl IoSpace for Registers {
    fn read(&self, at: PhysAddr, width: Width) -> u64 {
        self.0.lock().push((at.get(), width.bytes(), None));
        at.get() & width.ones()
    }

    fn write(&self, at: PhysAddr, width: Width, value: u64) {
        self.0.lock().push((at.get(), width.bytes(), Some(value)));
    }
}

const BAR: PhysAddr = PhysAddr::new(0xfea0_0000);

fn with_registers(lab: &Lab) -> Arc<Registers> {
    let registers = Arc::new(Registers::default());
    lab.kernel().set_io_space(registers.clone());
    registers
}

#[test]
fn accesses_reach_the_bus_with_their_width_and_leave_a_record() {
    let lab = Lab::new();
    let (cpu, registers) = (lab.cpu(), with_registers(&lab));
    let bar = ioremap(&cpu, BAR, 0x1000).unwrap();
    lab.kernel().trace().capture();
    assert_eq!((bar.readb(&cpu, 3), bar.readw(&cpu, 4), bar.readl(&cpu, 8)), (3, 4, 0xfea0_0008));
    assert_eq!(bar.readq(&cpu, 16), 0xfea0_0010);
    bar.writel(&cpu, 0xffc, 0x1234);
    let seen: Vec<_> = registers.0.lock().iter().map(|&(at, width, value)| (at & 0xfff, width, value)).collect();
    assert_eq!(seen, [(3, 1, None), (4, 2, None), (8, 4, None), (16, 8, None), (0xffc, 4, Some(0x1234))]);
    let last = lab.kernel().trace().take_captured()[4].1;
    assert_eq!((last.kind, last.addr, last.len, last.tag), (Kind::MmioWrite, 0xfea0_0ffc, 4, 0x1234));
    assert!(lab.findings().is_empty() && !bar.is_empty());
}

#[test]
fn an_access_outside_the_window_is_a_finding_and_never_reaches_the_bus() {
    let lab = Lab::new();
    let (cpu, registers) = (lab.cpu(), with_registers(&lab));
    let bar = ioremap(&cpu, BAR, 0x1000).unwrap();
    assert_eq!((bar.readl(&cpu, 0xffd), bar.readb(&cpu, u64::MAX)), (u32::MAX, 0xff));
    bar.writeq(&cpu, 0x1000, 0);
    assert_eq!((lab.findings(), registers.0.lock().len()), (vec!["out-of-bounds"; 3], 0));
    let text = lab.kernel().findings()[0].kind.to_string();
    assert_eq!(text, "access of 4 bytes at offset 0xffd of a register window of 4096 bytes");
}

/// Linux's NULL in each case (ioremap.tsv), with its text where it has one.
#[test]
fn ranges_that_are_no_registers_are_refused_as_measured() {
    let lab = Lab::new();
    let _registers = with_registers(&lab);
    let cpu = lab.cpu();
    let map = |at, len| ioremap(&cpu, PhysAddr::new(at), len).map(drop);
    assert!(matches!(map(BAR.get(), 0), Err(IoremapError::BadRange { len: 0, .. })), "size_0");
    assert!(matches!(map(u64::MAX - 4095, 8192), Err(IoremapError::BadRange { .. })), "wrapping_range");
    assert!(lab.log().is_empty());
    assert!(matches!(map(1 << 53, 4096), Err(IoremapError::Invalid { .. })), "phys_2^53");
    assert_eq!(lab.log(), ["ioremap: invalid physical address 20000000000000"]);
    for _ in 0..2 {
        assert!(matches!(map(0x1_0190_0000, 4096), Err(IoremapError::Ram { .. })), "ram");
    }
    assert_eq!(lab.findings(), ["ioremap-ram"; 2]);
    assert_eq!(lab.log()[1..], ["ioremap on RAM at 0x0000000101900000 - 0x0000000101900fff"], "once");
    assert!(map((3 << 30) - 4096, 8192).is_err(), "its first page is RAM");
    assert!(map(0xffff_f000, 8192).is_err(), "its last page is RAM");
    assert!(map(0xe000_0000, 8 << 30).is_err(), "RAM lies in its middle");
    assert_eq!(map(0xd000_0000, 4096), Ok(()), "unassigned_phys");
    assert!(lab.leaks().is_empty());
}

#[test]
fn a_window_is_a_resource_until_it_is_dropped() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    assert_eq!(ioremap(&cpu, BAR, 4096).map(drop), Err(IoremapError::NoBus));
    let _registers = with_registers(&lab);
    lab.solo.fail_nth(0);
    assert_eq!(ioremap(&cpu, BAR, 4096).map(drop), Err(IoremapError::NoMemory { len: 4096 }));
    let (one, two) = (ioremap(&cpu, BAR, 4096).unwrap(), ioremap(&cpu, BAR, 4096).unwrap());
    assert_eq!((lab.leaks(), one.phys(), two.len()), (vec![Resource::IoMem; 2], BAR, 4096));
    drop(one);
    drop(two);
    assert!(lab.leaks().is_empty());
}

#[test]
fn a_window_kept_over_a_reset_reaches_no_device() {
    let config = MachineConfig { ram: (64 << 20) + 0x9000, ..MachineConfig::default() };
    let old = Lab::of(config);
    let registers = with_registers(&old);
    let bar = ioremap(&old.cpu(), BAR, 4096).unwrap();
    drop(old);
    let lab = Lab::of(config);
    assert_eq!((bar.readl(&lab.cpu(), 0), registers.0.lock().len()), (u32::MAX, 0));
    drop(bar);
    assert_eq!(lab.findings(), ["stale-handle"]);
}

#[test]
fn a_window_lies_in_the_vmalloc_space_with_its_offset_kept() {
    let lab = Lab::new();
    let (cpu, _registers) = (lab.cpu(), with_registers(&lab));
    let first = ioremap(&cpu, BAR.wrapping_add(0x234), 0x1000).unwrap();
    assert_eq!((first.virt().page_offset(), first.phys()), (0x234, BAR.wrapping_add(0x234)));
    let area = find_vm_area(lab.kernel(), first.virt()).unwrap();
    assert_eq!((area.size, area.pages, area.flags), (3 * 4096, 0, 1), "two pages and a guard");
    let large = ioremap_wc(&cpu, BAR, 0x10_0000).unwrap();
    assert_eq!((large.virt().get() % 0x10_0000, large.mem_type()), (0, MemType::WriteCombining));
    assert_eq!(vmalloc_to_page(lab.kernel(), large.virt()), None, "no RAM behind it");
    assert!(vmallocinfo(lab.kernel()).contains(" phys=0x00000000fea00000 ioremap"));
    assert_eq!(vmalloc::read(&cpu, large.virt(), &mut [0; 4]), 0);
    assert_eq!(lab.findings(), ["plain-io-access"]);
    lab.kernel().validate().unwrap();
    assert!(matches!(ioremap_np(&cpu, BAR, 4096), Err(IoremapError::NonPosted)));
    for other in [ioremap_uc, ioremap_wt, ioremap_cache] {
        iounmap(&cpu, other(&cpu, BAR, 4096).unwrap());
    }
    iounmap(&cpu, large);
    iounmap(&cpu, first);
    assert_eq!(vmallocinfo(lab.kernel()), "");
    assert!(lab.leaks().is_empty());
}

#[test]
fn a_window_unmapped_under_its_holder_faults_and_a_second_iounmap_is_told() {
    let lab = Lab::new();
    let (cpu, registers) = (lab.cpu(), with_registers(&lab));
    let bar = ioremap(&cpu, BAR, 0x1000).unwrap();
    misuse::iounmap(&cpu, &bar);
    assert_eq!((bar.readl(&cpu, 8), registers.0.lock().len()), (u32::MAX, 0));
    bar.writel(&cpu, 8, 1);
    misuse::iounmap(&cpu, &bar);
    drop(bar);
    assert_eq!(lab.findings(), ["io-after-unmap", "io-after-unmap", "iounmap-bad-address"]);
    assert_eq!(lab.log(), ["iounmap: bad address ffffc90000000000"]);
    let text = lab.kernel().findings()[0].kind.to_string();
    assert!(text.starts_with("BUG: unable to handle page fault for address: ffffc90000000008"), "{text}");
    assert!(registers.0.lock().is_empty() && lab.leaks().is_empty());
}

#[test]
fn mapping_and_unmapping_sleep_and_a_handler_must_not() {
    let lab = Lab::new();
    let (cpu, _registers) = (lab.cpu(), with_registers(&lab));
    let bar = ioremap(&cpu, BAR, 0x1000).unwrap();
    let lock = crate::lock::SpinLock::new(());
    let guard = lock.lock(&cpu);
    iounmap(&cpu, ioremap(&cpu, BAR, 0x1000).unwrap());
    drop(guard);
    assert_eq!(lab.findings(), ["sleep-in-atomic"; 2]);
    lab.solo.raise(crate::testing::handler(move |cpu| {
        assert_eq!(bar.readb(cpu, 0), 0);
        assert!(matches!(ioremap(cpu, BAR, 4096), Err(IoremapError::InInterrupt)));
    }));
    cpu.take_interrupts();
    assert_eq!(lab.findings()[2..], ["vmalloc-in-interrupt"]);
}

#[test]
fn rep_forms_hit_one_register_and_copies_walk() {
    let lab = Lab::new();
    let (cpu, registers) = (lab.cpu(), with_registers(&lab));
    let bar = ioremap(&cpu, BAR, 0x1000).unwrap();
    let (mut words, mut bytes) = ([0; 2], [0; 2]);
    bar.ioread16_rep(&cpu, 6, &mut words);
    bar.memcpy_fromio(&cpu, 9, &mut bytes);
    assert_eq!((words, bytes), ([6, 6], [9, 10]));
    bar.iowrite32_rep(&cpu, 4, &[1, 2]);
    bar.memcpy_toio(&cpu, 0, &[3, 4]);
    bar.memset_io(&cpu, 2, 5, 2);
    bar.iowrite64(&cpu, 8, 6);
    let seen: Vec<_> = registers.0.lock()[4..].iter().map(|&(at, width, value)| (at & 0xfff, width, value)).collect();
    let wrote = |at, width, value| (at, width, Some(value));
    let first = [wrote(4, 4, 1), wrote(4, 4, 2), wrote(0, 1, 3), wrote(1, 1, 4)];
    assert_eq!(seen[..4], first);
    assert_eq!(seen[4..], [wrote(2, 1, 5), wrote(3, 1, 5), wrote(8, 8, 6)]);
}

#[test]
fn a_range_is_claimed_once_and_given_back_once() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let claim = |at, len| request_mem_region(&cpu, PhysAddr::new(at), len, "second");
    let bar = request_mem_region(&cpu, BAR, 0x10_0000, "0000:00:04.0").unwrap();
    assert_eq!((bar.phys(), bar.len(), bar.is_empty()), (BAR, 0x10_0000, false));
    let busy = claim(BAR.get() + 0xf_ffff, 2).unwrap_err();
    assert_eq!(busy.to_string(), "0x2 bytes at 0xfeafffff belong to 0000:00:04.0 in part");
    assert!(matches!(claim(0x1_0000_0000, 4096), Err(RegionError::Busy { by, .. }) if by == "System RAM"));
    assert!(claim(BAR.get() + 0x10_0000, 4096).is_ok() && claim(0, 0).is_err() && claim(u64::MAX, 2).is_err());
    assert_eq!((lab.leaks(), lab.log().len()), (vec![Resource::MemRegion], 0), "a busy region is silent");
    drop(bar);
    assert!(claim(BAR.get(), 1).is_ok());
    misuse::release_mem_region(&cpu, PhysAddr::new(0xd000_0000), 4096);
    assert_eq!(lab.findings(), ["release-nonexistent-region"]);
    let text = "resource: Trying to free nonexistent resource <0x00000000d0000000-0x00000000d0000fff>";
    assert_eq!(lab.log(), [text]);
    std::mem::forget(claim(BAR.get(), 16));
    misuse::release_mem_region(&cpu, BAR, 16);
    assert!(lab.leaks().is_empty());
}

/// Two functions: the second begins at 64 KiB.
struct TwoFunctions(Registers);

impl IoSpace for TwoFunctions {
    fn read(&self, at: PhysAddr, width: Width) -> u64 {
        self.0.read(at, width)
    }

    fn write(&self, at: PhysAddr, width: Width, value: u64) {
        self.0.write(at, width, value);
    }

    fn function(&self, at: PhysAddr) -> u64 {
        (at.get() - BAR.get()) >> 16
    }
}

fn posting() -> (Lab, Arc<TwoFunctions>) {
    let lab = Lab::of(MachineConfig { ram: 64 << 20, posted_writes: true, ..MachineConfig::default() });
    let registers = Arc::new(TwoFunctions(Registers::default()));
    lab.kernel().set_io_space(registers.clone());
    (lab, registers)
}

/// What arrived since the last look: the writes' values, 0 for a read.
fn arrived(registers: &TwoFunctions) -> Vec<u64> {
    registers.0.0.lock().drain(..).map(|(_, _, value)| value.unwrap_or(0)).collect()
}

#[test]
fn a_posted_write_arrives_at_the_read_back_and_not_before() {
    let (lab, registers) = posting();
    let cpu = lab.cpu();
    let (one, other) = (ioremap(&cpu, BAR, 8192).unwrap(), ioremap(&cpu, BAR.wrapping_add(0x1_0000), 4096).unwrap());
    let same = ioremap(&cpu, BAR.wrapping_add(0x2000), 4096).unwrap();
    one.writel(&cpu, 0, 1);
    other.writel(&cpu, 0, 2);
    same.writel(&cpu, 0, 3);
    assert!(arrived(&registers).is_empty());
    other.readl(&cpu, 4);
    assert_eq!(arrived(&registers), [2, 0], "another function's writes stay where they are");
    same.readl(&cpu, 4);
    assert_eq!(arrived(&registers), [1, 3, 0], "in order, before the read, through any window of the function");
}

#[test]
fn time_interrupts_and_a_full_path_push_posted_writes() {
    let (lab, registers) = posting();
    let cpu = lab.cpu();
    let bar = ioremap(&cpu, BAR, 4096).unwrap();
    for value in 1..=posted::DEPTH as u64 + 2 {
        bar.writeq(&cpu, 0, value);
    }
    assert_eq!(arrived(&registers), [1, 2], "the oldest make room");
    posted::flush_posted(&cpu);
    assert_eq!(arrived(&registers).len(), posted::DEPTH);
    bar.writel(&cpu, 0, 7);
    let other = lab.cpu_number(1);
    other.park(other.prepare(crate::env::Key::fresh()), Some(1));
    assert!(arrived(&registers).is_empty(), "another CPU's time");
    cpu.park(cpu.prepare(crate::env::Key::fresh()), Some(2));
    assert_eq!(arrived(&registers), [7], "the CPU waited");
    bar.writel(&cpu, 0, 8);
    let seen = registers.clone();
    lab.solo.raise(crate::testing::handler(move |_| assert_eq!(arrived(&seen), [8])));
    cpu.take_interrupts();
    assert_eq!(lab.solo.pending(), 0);
    bar.writel(&cpu, 0, 9);
    drop(bar);
    drop(lab);
    assert!(arrived(&registers).is_empty(), "what is under way dies with its machine");
}
