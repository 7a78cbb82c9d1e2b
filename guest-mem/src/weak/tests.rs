//! Litmus tests: what may come out without a barrier does, under some seed, and with one it never does.

use std::collections::BTreeSet;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use crate::addr::PhysAddr;
use crate::cpu::Cpu;
use crate::dma::{Coherent, DmaPort};
use crate::gfp::GFP_KERNEL;
use crate::iomem::ioremap;
use crate::iospace::{IoSpace, Width};
use crate::kernel::MachineConfig;
use crate::lock::Locked;
use crate::testing::Lab;

const SEEDS: u64 = 300;
type Barrier = fn(&Cpu<'_>);
const NONE: Barrier = |_| ();
const MB: Barrier = |cpu| cpu.mb();
const WMB: Barrier = |cpu| cpu.wmb();
const RMB: Barrier = |cpu| cpu.rmb();
const DMA_WMB: Barrier = |cpu| cpu.dma_wmb();
const DMA_RMB: Barrier = |cpu| cpu.dma_rmb();
const BAR: PhysAddr = PhysAddr::new(0xf000_0000);

/// A device that sees memory, and registers that keep what is written to them.
struct Litmus {
    memory: Coherent,
    port: DmaPort,
    lab: Lab,
}

#[derive(Default)]
struct Registers(Locked<Vec<u64>>);

impl IoSpace for Registers {
    fn read(&self, _: PhysAddr, _: Width) -> u64 {
        self.0.lock().len() as u64
    }

    fn write(&self, _: PhysAddr, _: Width, value: u64) {
        self.0.lock().push(value);
    }
}

impl Litmus {
    fn new(seed: u64) -> Self {
        let lab = Lab::of(MachineConfig { ram: 64 << 20, weak: true, ..MachineConfig::default() });
        lab.kernel().seed_weak(seed);
        let device = lab.device(64);
        let memory = device.alloc_coherent(&lab.cpu(), 4096, GFP_KERNEL).unwrap();
        Self { memory, port: DmaPort::new(&device), lab }
    }

    fn at(&self, offset: u64) -> GuestAddress {
        GuestAddress(self.memory.dma_addr().get() + offset)
    }

    fn device_reads(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.port.read_obj(self.at(offset)).unwrap())
    }

    fn device_writes(&self, offset: u64, value: u32) {
        self.port.write_obj(value.to_le_bytes(), self.at(offset)).unwrap();
    }
}

/// Everything that comes out under any of the seeds.
fn outcomes<R: Ord>(test: impl Fn(&Litmus, &Cpu<'_>) -> R) -> BTreeSet<R> {
    (0..SEEDS)
        .map(|seed| {
            let litmus = Litmus::new(seed);
            let cpu = litmus.lab.cpu();
            let outcome = test(&litmus, &cpu);
            assert_eq!(litmus.lab.findings(), Vec::<&str>::new());
            outcome
        })
        .collect()
}

/// The driver writes data, then a flag; the device reads the flag, then the data.
fn message(barrier: Barrier) -> BTreeSet<(u32, u32)> {
    outcomes(|litmus, cpu| {
        litmus.memory.write_u32(cpu, 0, 1);
        barrier(cpu);
        litmus.memory.write_u32(cpu, 64, 1);
        (litmus.device_reads(64), litmus.device_reads(0))
    })
}

#[test]
fn a_flag_may_be_seen_before_the_data_unless_a_write_barrier_lies_between() {
    let all = BTreeSet::from([(0, 0), (0, 1), (1, 0), (1, 1)]);
    assert_eq!(message(NONE), all);
    assert_eq!(message(DMA_RMB), all, "a read barrier does nothing for stores");
    let ordered = BTreeSet::from([(0, 0), (0, 1), (1, 1)]);
    for barrier in [DMA_WMB, WMB] {
        assert_eq!(message(barrier), ordered);
    }
    assert_eq!(message(MB), BTreeSet::from([(0, 1), (1, 1)]), "what is before a full barrier is visible");
}

/// The device writes data, then a flag; the driver reads the flag, then the data.
fn answer(barrier: Barrier) -> BTreeSet<(u32, u32)> {
    outcomes(|litmus, cpu| {
        litmus.device_writes(0, 1);
        litmus.device_writes(64, 1);
        let flag = litmus.memory.read_u32(cpu, 64);
        barrier(cpu);
        (flag, litmus.memory.read_u32(cpu, 0))
    })
}

#[test]
fn data_may_be_older_than_its_flag_unless_a_read_barrier_lies_between() {
    let all = BTreeSet::from([(0, 0), (0, 1), (1, 0), (1, 1)]);
    assert_eq!(answer(NONE), all);
    assert_eq!(answer(DMA_WMB), all, "a write barrier does nothing for loads");
    for barrier in [DMA_RMB, RMB, MB] {
        assert_eq!(answer(barrier), BTreeSet::from([(0, 1), (1, 1)]));
    }
}

#[test]
fn what_a_cpu_has_seen_it_does_not_unsee() {
    let seen = outcomes(|litmus, cpu| {
        (1..=3).for_each(|value| litmus.device_writes(0, value));
        let loads: Vec<_> = (0..8).map(|_| litmus.memory.read_u32(cpu, 0)).collect();
        assert!(loads.is_sorted(), "{loads:?}");
        assert_eq!(loads.last(), Some(&3), "a loop that waits must end");
        loads[0]
    });
    assert_eq!(seen, BTreeSet::from([0, 1, 2, 3]));
}

/// Each side writes its own flag and reads the other's (as `kick_prepare` and a device going to rest).
fn store_buffering(barrier: Barrier) -> BTreeSet<(u32, u32)> {
    outcomes(|litmus, cpu| {
        litmus.memory.write_u32(cpu, 0, 1);
        barrier(cpu);
        let other = litmus.memory.read_u32(cpu, 64);
        litmus.device_writes(64, 1);
        (other, litmus.device_reads(0))
    })
}

#[test]
fn both_may_miss_each_other_unless_a_full_barrier_lies_between() {
    for weaker in [NONE, WMB, RMB, DMA_WMB, DMA_RMB] {
        assert!(store_buffering(weaker).contains(&(0, 0)));
    }
    assert!(!store_buffering(MB).contains(&(0, 0)));
}

#[test]
fn its_own_stores_a_cpu_sees_and_another_cpu_sees_them_too() {
    let _ = outcomes(|litmus, cpu| {
        litmus.memory.write_u64(cpu, 4, 0x1122_3344_5566_7788);
        litmus.memory.write_u8(cpu, 5, 0xee);
        assert_eq!(litmus.memory.read_u64(cpu, 4), 0x1122_3344_5566_ee88);
        let other = litmus.lab.cpu_number(1);
        assert_eq!(litmus.memory.read_u32(&other, 4), 0x5566_ee88);
        litmus.memory.write_u32(&other, 4, 7);
        assert_eq!(litmus.memory.read_u32(cpu, 4), 7);
        other.mb();
        assert_eq!((litmus.device_reads(4), litmus.device_reads(8)), (7, 0x1122_3344));
    });
}

#[test]
fn a_register_write_comes_later_and_brings_the_stores_before_it() {
    let seen = outcomes(|litmus, cpu| {
        let registers = Arc::new(Registers::default());
        litmus.lab.kernel().set_io_space(registers.clone());
        let bar = ioremap(cpu, BAR, 4096).unwrap();
        litmus.memory.write_u32(cpu, 0, 1);
        bar.writel(cpu, 0, 1);
        bar.writel(cpu, 0, 2);
        litmus.memory.write_u32(cpu, 64, 1);
        litmus.lab.kernel().weak_turn();
        let arrived = registers.0.lock().clone();
        if !arrived.is_empty() {
            assert_eq!(litmus.device_reads(0), 1, "the doorbell was rung");
        }
        assert_eq!(bar.readl(cpu, 4), 2, "a read comes after all writes");
        assert_eq!(*registers.0.lock(), [1, 2], "in order");
        arrived
    });
    assert_eq!(seen, BTreeSet::from([vec![], vec![1]]));
    let without = outcomes(|litmus, cpu| {
        let registers = Arc::new(Registers::default());
        litmus.lab.kernel().set_io_space(registers.clone());
        let bar = ioremap(cpu, BAR, 4096).unwrap();
        litmus.memory.write_u32(cpu, 0, 1);
        bar.writel_relaxed(cpu, 0, 1);
        bar.readl_relaxed(cpu, 4);
        litmus.device_reads(0)
    });
    assert_eq!(without, BTreeSet::from([0, 1]), "a relaxed write brings nothing along");
}

#[test]
fn time_lets_everything_arrive() {
    let _ = outcomes(|litmus, cpu| {
        let registers = Arc::new(Registers::default());
        litmus.lab.kernel().set_io_space(registers.clone());
        let bar = ioremap(cpu, BAR, 4096).unwrap();
        litmus.memory.write_u32(cpu, 0, 1);
        bar.writel_relaxed(cpu, 0, 5);
        assert!(litmus.lab.kernel().weak_settle());
        assert!(!litmus.lab.kernel().weak_settle());
        assert_eq!((litmus.device_reads(0), registers.0.lock().len()), (1, 1));
    });
}

#[test]
fn interrupts_waits_and_locks_have_a_cpu_see_what_was_written() {
    let message = |litmus: &Litmus, cpu: &Cpu<'_>| {
        litmus.lab.kernel().message_arrived(cpu.id());
    };
    let wait = |_: &Litmus, cpu: &Cpu<'_>| cpu.cancel(cpu.prepare(crate::env::Key::fresh()));
    let lock = |_: &Litmus, cpu: &Cpu<'_>| drop(crate::lock::SpinLock::new(()).lock(cpu));
    let nothing = |_: &Litmus, _: &Cpu<'_>| ();
    let first = |event: &dyn Fn(&Litmus, &Cpu<'_>)| {
        outcomes(|litmus, cpu| {
            litmus.device_writes(0, 1);
            event(litmus, cpu);
            litmus.memory.read_u32(cpu, 0)
        })
    };
    assert_eq!(first(&nothing), BTreeSet::from([0, 1]));
    for event in [&message as &dyn Fn(&Litmus, &Cpu<'_>), &wait, &lock] {
        assert_eq!(first(event), BTreeSet::from([1]));
    }
}

#[test]
fn memory_that_changes_hands_takes_nothing_along() {
    let _ = outcomes(|litmus, cpu| {
        let device = litmus.port.device().clone();
        let old = device.alloc_coherent(cpu, 64, GFP_KERNEL).unwrap();
        old.write_u32(cpu, 0, 9);
        let at = old.phys();
        drop(old);
        let new = device.alloc_coherent(cpu, 64, GFP_KERNEL).unwrap();
        assert_eq!(new.phys(), at, "the test is about memory that is used again");
        assert_eq!(new.read_u32(cpu, 0), 0);
        litmus.lab.kernel().weak_settle();
        assert_eq!(new.read_u32(cpu, 0), 0);
    });
}

#[test]
fn the_same_seed_gives_the_same_order() {
    let run = |seed| {
        let litmus = Litmus::new(seed);
        let cpu = litmus.lab.cpu();
        let mut seen = Vec::new();
        for value in 1..50 {
            litmus.memory.write_u32(&cpu, 0, value);
            litmus.memory.write_u32(&cpu, 64, value);
            litmus.device_writes(128, value);
            seen.push((litmus.device_reads(0), litmus.device_reads(64), litmus.memory.read_u32(&cpu, 128)));
            litmus.lab.kernel().weak_turn();
        }
        seen
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
