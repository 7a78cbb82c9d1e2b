use super::*;
use crate::dma::FromDevice;
use crate::gfp::{GFP_DMA32, GFP_KERNEL};
use crate::site::Site;
use crate::testing::{Lab, handler};
use crate::timer::{Timer, TimerCallback};
use crate::{Cpu, KBuf};

struct Nothing;

impl TimerCallback for Nothing {
    fn expired(&self, _: &Cpu<'_>) {}
}

/// Uses one of everything and forgets it.
fn leak_everything(lab: &Lab) {
    let cpu = lab.cpu();
    let device = lab.device(32);
    std::mem::forget(KBuf::kmalloc(&cpu, 100, GFP_KERNEL));
    std::mem::forget(KBuf::pages(&cpu, 1, GFP_KERNEL | GFP_DMA32));
    std::mem::forget(device.alloc_coherent(&cpu, 4096, GFP_KERNEL));
    let mut buf = KBuf::kmalloc(&cpu, 5000, GFP_KERNEL).unwrap();
    buf.write_at(0, &[7; 5000]).unwrap();
    std::mem::forget(device.map_single::<FromDevice>(&cpu, buf));
    std::mem::forget(crate::irq::request_irq(&cpu, 7, handler(|_| {})));
    let timer = Timer::new(&cpu, Arc::new(Nothing));
    timer.modify(&cpu, 1000);
    std::mem::forget(timer);
    lab.kernel().register(Resource::Vector, PhysAddr::new(3), 0, cpu.owner());
    lab.kernel().log().once(1, Site::caller(), "once".into());
    cpu.stale("test");
    lab.solo.set_now(77);
}

/// Everything of a kernel that a run can see.
fn state(kernel: &Kernel) -> String {
    let (memory, pool) = (kernel.memory.lock(), kernel.swiotlb.lock());
    let fields = (kernel.clock(), kernel.findings().len(), kernel.log().lines(), kernel.registered());
    let tables =
        (kernel.irqs().live(), kernel.timers().next(), kernel.devices.lock().len(), kernel.io_space().is_none());
    let trace = (kernel.trace().digest(), kernel.trace().events(), kernel.next_transaction.load(Ordering::Relaxed));
    let slabs: Vec<_> = memory.slabs.stats().map(|stats| stats.to_string()).collect();
    format!("{fields:?} {tables:?} {trace:?} {:?} {slabs:?} {:?}", memory.zones.stats(), *pool)
}

#[test]
fn a_reset_machine_equals_a_fresh_one() {
    let config = MachineConfig { ram: (5 << 30) + 0x1000, ..MachineConfig::default() };
    let lab = Lab::of(config);
    let (kernel, fresh) = (lab.kernel(), state(lab.kernel()));
    leak_everything(&lab);
    assert_ne!(state(kernel), fresh);
    kernel.validate().unwrap();
    let handle = lab.machine.kernel_ref();
    drop(lab);
    assert!(handle.get().is_none());
    let again = Lab::of(config);
    assert!(std::ptr::eq(again.kernel(), kernel), "the same machine, from the pool");
    assert_eq!(state(kernel), fresh);
    kernel.validate().unwrap();
    assert_eq!(kernel.ram().reset().unwrap(), 0, "no page is dirty");
    // What runs on it does what it would do on a fresh one, to the digest.
    let digest = |lab: &Lab| {
        leak_everything(lab);
        lab.kernel().trace().digest()
    };
    let second = Machine::acquire(config).unwrap();
    assert!(!std::ptr::eq(second.kernel(), kernel), "lent ones are not lent twice");
    drop(second);
    let first = digest(&again);
    drop(again);
    assert_eq!(digest(&Lab::of(config)), first);
}

#[test]
fn every_kind_of_resource_is_told_once() {
    let lab = Lab::new();
    leak_everything(&lab);
    let mut leaks = lab.leaks();
    leaks.sort_unstable();
    use Resource::{Coherent, Irq, Mapping, Pages, Slab, Timer, Vector};
    assert_eq!(leaks, [Pages, Slab, Coherent, Mapping, Irq, Vector, Timer]);
    let leaks = crate::stats::leaks(lab.kernel());
    assert!(leaks.iter().all(|leak| leak.owner.site.place().is_some()));
    let texts: Vec<_> = leaks.iter().map(|leak| leak.finding(77, Owner::default()).kind.to_string()).collect();
    assert!(texts.iter().any(|text| text.starts_with("leak: DMA mapping, 5000 bytes at 0x1")), "{texts:?}");
    assert!(texts.contains(&"leak: interrupt vector, 0 bytes at 0x3".to_owned()), "{texts:?}");
}

#[test]
fn numbers_of_booked_resources_are_never_shared_by_two_live_ones() {
    let lab = Lab::new();
    let book = || lab.kernel().register(Resource::Vector, PhysAddr::new(0), 0, Owner::default());
    let (a, b) = (book(), book());
    lab.kernel().unregister(a);
    let c = book();
    assert!(c != b);
    lab.kernel().unregister(999);
    assert_eq!(lab.kernel().registered().len(), 2);
}

#[test]
fn configurations_that_make_no_machine_name_the_number() {
    let error = |config| Machine::acquire(config).map(|_| ()).unwrap_err().to_string();
    let config = MachineConfig::default();
    assert_eq!(error(MachineConfig { cpus: 0, ..config }), "0 CPUs: a machine has 1 to 64");
    assert_eq!(error(MachineConfig { cpus: 65, ..config }), "65 CPUs: a machine has 1 to 64");
    assert_eq!(error(MachineConfig { ram: 0, ..config }), "RAM of 0 bytes");
    let text = "a bounce pool of 67108864 bytes in 33554432 bytes of low RAM";
    assert_eq!(error(MachineConfig { low: 32 << 20, ..config }), text);
    let narrow = MachineConfig { arch: Arch::X86_32, ..config };
    let text = "RAM up to 0x1000001000 on a 32-bit machine: its page tables end at 0x1000000000";
    assert_eq!(error(MachineConfig { ram: (63 << 30) + 0x1000, ..narrow }), text);
}

#[test]
fn the_pool_exists_only_where_a_32_bit_device_cannot_reach_all() {
    let pool = |config| Lab::of(config).kernel().swiotlb.lock().as_ref().map(|pool| (pool.base().get(), pool.bytes()));
    let config = MachineConfig::default();
    assert_eq!(pool(config), Some(((3 << 30) - (64 << 20), 64 << 20)), "at the top of low RAM");
    assert_eq!(pool(MachineConfig { ram: 1 << 30, ..config }), None);
    assert_eq!(pool(MachineConfig { swiotlb: 0, ..config }), None);
    let narrow = MachineConfig { arch: Arch::X86_32, ..config };
    assert_eq!(pool(narrow), Some(((896 - 64) << 20, 64 << 20)), "it needs an address");
}

#[test]
fn the_digest_is_the_same_for_the_same_calls_and_no_other() {
    let run = |len| {
        let lab = Lab::new();
        drop(KBuf::kmalloc(&lab.cpu(), len, GFP_KERNEL));
        lab.kernel().trace().digest()
    };
    assert_eq!(run(64), run(64));
    assert_ne!(run(64), run(65));
}

#[test]
fn a_booted_machine_has_the_measured_zones() {
    let numbers = |ram, boot| {
        let lab = crate::testing::Lab::of(MachineConfig { ram, boot, ..MachineConfig::default() });
        let stats = lab.kernel().zone_stats();
        [0, 1, 2]
            .map(|zone| (stats[zone].managed, stats[zone].marks.min, stats[zone].marks.low, stats[zone].marks.high))
    };
    let six = [(3840, 6, 9, 12), (760_594, 1231, 1990, 2749), (758_473, 1229, 1987, 2745)];
    assert_eq!(numbers(6 << 30, Boot::MEASURED), six);
    assert_eq!(numbers(1 << 30, Boot::MEASURED_1G), [(3840, 15, 18, 21), (248_094, 985, 1231, 1477), (0, 0, 0, 0)]);
}
