use super::*;
use crate::kernel::MachineConfig;
use crate::lock::Locked;
use crate::testing::Lab;

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
