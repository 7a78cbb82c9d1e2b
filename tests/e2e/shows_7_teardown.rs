//! A CPU that is torn down while it holds one of everything: nothing aborts, everything is told, nothing stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lowzone::world::Exit;
use lowzone_device::blk::BlkOptions as DeviceOptions;
use lowzone_driver::pci::Msix;
use lowzone_driver::pci::PciDevice;
use lowzone_guest_mem::dma::{Coherent, DmaDevice, FromDevice, Mapped, ToDevice};
use lowzone_guest_mem::env::{IrqHandler, IrqReturn};
use lowzone_guest_mem::finding::Resource;
use lowzone_guest_mem::gfp::{GFP_ATOMIC, GFP_KERNEL};
use lowzone_guest_mem::iomem::IoMem;
use lowzone_guest_mem::irq::{IrqLine, request_irq};
use lowzone_guest_mem::kernel::MachineConfig;
use lowzone_guest_mem::page::{Pages, alloc_pages};
use lowzone_guest_mem::stats::leaks;
use lowzone_guest_mem::timer::{Timer, TimerCallback};
use lowzone_guest_mem::{Cpu, KBuf};
use lowzone_tests::rig::{Rig, Serve};

/// One of every kind; a field that is dropped gives its resource back.
#[expect(dead_code, reason = "held, never looked at")]
struct Everything {
    pages: Pages,
    object: KBuf,
    coherent: Coherent,
    mapped: Mapped<KBuf, ToDevice>,
    bounced: Mapped<KBuf, FromDevice>,
    window: IoMem,
    line: IrqLine,
    msix: Msix,
    timer: Timer,
}

struct Silent;

impl IrqHandler for Silent {
    fn hardirq(&self, _cpu: &Cpu<'_>) -> IrqReturn {
        IrqReturn::Handled
    }
}

impl TimerCallback for Silent {
    fn expired(&self, _cpu: &Cpu<'_>) {}
}

fn take_everything(cpu: &Cpu<'_>, pci: &Arc<PciDevice>, dma: &DmaDevice) -> Everything {
    pci.enable();
    let msix = pci.enable_msix(cpu, 1).unwrap();
    let line = request_irq(cpu, msix.irq(0).unwrap(), Arc::new(Silent)).unwrap();
    let low = dma.alloc_pages(cpu, 4096, GFP_KERNEL).unwrap();
    let high = KBuf::kmalloc(cpu, 8192, GFP_KERNEL).unwrap();
    let timer = Timer::new(cpu, Arc::new(Silent));
    timer.modify(cpu, cpu.now() + 1_000_000);
    let everything = Everything {
        pages: alloc_pages(cpu, 2, GFP_KERNEL).unwrap(),
        object: KBuf::kmalloc(cpu, 100, GFP_KERNEL).unwrap(),
        coherent: dma.alloc_coherent(cpu, 4096, GFP_KERNEL).unwrap(),
        mapped: dma.map_single(cpu, low).unwrap(),
        bounced: dma.map_single(cpu, high).unwrap(),
        window: pci.map_bar(cpu, pci_bar(pci), 0, 64).unwrap(),
        line,
        msix,
        timer,
    };
    assert!(everything.bounced.bounced() && !everything.mapped.bounced());
    everything
}

fn pci_bar(pci: &PciDevice) -> u8 {
    (0..6).find(|&index| pci.bar(index).is_ok()).expect("a BAR")
}

fn one_cpu() -> MachineConfig {
    MachineConfig { cpus: 1, ..MachineConfig::default() }
}

fn rig(config: MachineConfig) -> Rig {
    Rig::new(config, DeviceOptions::default(), vec![0; 4096], Serve::Device, 1)
}

#[test]
fn shows_7_a_cpu_torn_down_while_parked_reports_one_of_every_resource_and_keeps_none() {
    let mut rig = rig(one_cpu());
    let (pci, dma, kernel) = (rig.disk(), rig.dma.clone(), rig.kernel());
    let unwound = Arc::new(AtomicBool::new(false));
    let body: lowzone::world::Body = Box::new({
        let unwound = unwound.clone();
        move |cpu| {
            let everything = take_everything(cpu, &pci, &dma);
            // With interrupts off the timer stays armed, and nothing can wake this CPU any more.
            let _off = cpu.local_irq_save();
            cpu.idle();
            drop(everything);
            unwound.store(true, Ordering::Relaxed);
        }
    });
    let mut seen = Vec::new();
    let exits = rig.world.run_until(vec![body], |parked| {
        assert_eq!(parked, 1);
        seen = leaks(kernel);
    });
    assert_eq!(exits, [Exit::TornDown]);
    assert_eq!(rig.findings(), ["deadlock"], "nobody could run");
    assert!(unwound.load(Ordering::Relaxed), "a polite teardown returns from the wait");
    let of = |kind| seen.iter().filter(|leak| leak.resource == kind).count();
    let wanted = [
        (Resource::Pages, 1),
        (Resource::Slab, 1),
        (Resource::Coherent, 1),
        (Resource::Mapping, 2),
        (Resource::IoMem, 1),
        (Resource::Irq, 1),
        (Resource::Vector, 1),
        (Resource::Timer, 1),
    ];
    for (kind, count) in wanted {
        assert_eq!(of(kind), count, "{kind}: {seen:#?}");
    }
    for leak in &seen {
        assert!(leak.owner.to_string().contains(".rs:"), "who made it: {leak:?}");
        println!("{} of {} bytes, made at {}", leak.resource, leak.bytes, leak.owner);
    }
    assert_eq!(rig.leaks(), [], "after the teardown nothing is left");
    assert_eq!((rig.bus.vectors(), rig.kernel().swiotlb_usage().0), (0, 0));
    rig.kernel().validate().unwrap();
}

#[test]
fn shows_7_a_cpu_that_holds_on_is_unwound_by_force() {
    let mut rig = rig(one_cpu());
    let (pci, dma) = (rig.disk(), rig.dma.clone());
    let body: lowzone::world::Body = Box::new(move |cpu| {
        let _everything = take_everything(cpu, &pci, &dma);
        let _off = cpu.local_irq_save();
        loop {
            cpu.idle();
        }
    });
    assert_eq!(rig.world.run(vec![body]), [Exit::TornDown]);
    assert_eq!(rig.leaks(), []);
    rig.kernel().validate().unwrap();
}

#[test]
fn shows_7_a_driver_that_panics_is_a_finding_with_its_place_and_its_memory_is_checked() {
    let mut rig = rig(MachineConfig::default());
    let body = |forget: bool| -> lowzone::world::Body {
        Box::new(move |cpu| {
            let buffer = KBuf::kmalloc(cpu, 512, GFP_ATOMIC).unwrap();
            if forget {
                std::mem::forget(buffer);
            }
            let sectors: Vec<u8> = Vec::new();
            assert!(!sectors.is_empty(), "no sector at all");
        })
    };
    assert_eq!(rig.run(body(false)), Exit::Panicked);
    assert_eq!(rig.leaks(), [], "unwinding frees");
    let finding = rig.kernel().findings().remove(0);
    let text = finding.to_string();
    assert_eq!(finding.kind.name(), "driver-panic");
    assert!(text.contains("no sector at all at ") && text.contains("shows_7_teardown.rs:"), "{text}");
    assert_eq!(rig.run(body(true)), Exit::Panicked);
    let left = rig.leaks();
    assert_eq!((left.len(), left[0].resource, left[0].bytes), (1, Resource::Slab, 512), "{left:?}");
    assert!(left[0].owner.to_string().contains("shows_7_teardown.rs:"), "{left:?}");
    // The world goes on after a panic.
    assert_eq!(rig.run(Box::new(|_| ())), Exit::Finished);
}
