use crate::blk::{BlkOptions, Hardware};
use crate::misbehave::Mishap;
use crate::pci::Width;
use crate::pci::{PciFunction, Removable};
use crate::testing::{BAR, DATA, Fake, Irq, RAM, Rig, Sink};
use crate::virtio::{QueueHost, VERSION_1, VirtioPci};

fn options() -> BlkOptions {
    BlkOptions { queues: 2, ..BlkOptions::default() }
}

/// A rig at work: a long read, a short one and a late one in flight after `calls` phases.
fn busy(calls: usize) -> Rig {
    let mut rig = Rig::running(&options());
    rig.disk(|bytes| bytes.fill(9));
    rig.device.script.plan(0, Mishap::CompletionLate, false);
    rig.request(DATA, 0, 0, 40 << 10, true);
    rig.request(DATA + 0x20000, 0, 0, 512, true);
    rig.request(DATA + 0x22000, 0, 0, 512, true);
    rig.kick(0);
    rig.run(calls);
    rig
}

#[test]
fn in_whatever_phase_it_is_pulled_out_nothing_touches_memory_any_more() {
    let phases = busy(0).run(1000);
    assert!(phases > 10);
    for calls in 0..=phases {
        let mut rig = busy(calls);
        let before = rig.bytes(0, RAM);
        rig.device.slot.unplug();
        rig.log.take();
        rig.sink.take();
        let counted = rig.device.counters.totals();
        assert!(rig.run(100) <= 2, "one call a queue");
        for worker in &mut rig.device.workers {
            assert!(!worker.ready());
            assert_eq!(worker.service(u64::MAX), crate::worker::Next::Idle);
        }
        assert_eq!((rig.log.take(), rig.sink.take()), (vec![], vec![]));
        assert_eq!((rig.device.counters.totals(), rig.device.counters.first_fault()), (counted, None));
        assert!(rig.bytes(0, RAM) == before);
    }
}

#[test]
fn nothing_answers_while_it_is_out() {
    let mut rig = Rig::running(&options());
    rig.device.slot.unplug();
    rig.device.slot.unplug();
    assert!(!rig.device.slot.plugged());
    let function = std::sync::Arc::clone(&rig.device.function);
    let ids = [Width::B1, Width::B2, Width::B4].map(|width| function.config_read(0, width));
    assert_eq!(ids, [0xff, 0xffff, u32::MAX]);
    assert_eq!(function.decode(BAR, Width::B4), None);
    function.config_write(0x10, Width::B4, 0xfe00_0000);
    function.config_write(4, Width::B2, 0b110);
    for offset in [20, 0x1000, 0x2000, 0x3000, 0x4000, 0x8000] {
        assert_eq!(function.bar_read(0, offset, Width::B1), Ok(0xff));
        assert_eq!(function.bar_write(0, offset, Width::B1, 0), Ok(()));
    }
    function.bar_write(0, 0x3000, Width::B2, 0).unwrap();
    function.reset();
    rig.run(10);
    assert!(rig.device.workers.iter().all(|worker| !worker.ready()));
    assert_eq!((function.config_read(4, Width::B2), function.decode(BAR, Width::B4)), (0xffff, None));
    assert_eq!((rig.log.take(), rig.sink.take()), (vec![], vec![]));
}

#[test]
fn a_pin_that_was_high_falls() {
    let mut rig = Rig::new(&options(), Hardware::default());
    rig.place();
    rig.start(VERSION_1, 1, 16);
    rig.request(DATA, 0, 0, 512, true);
    rig.kick(0);
    rig.run(20);
    assert_eq!(rig.sink.take(), [Irq::Pin(true)]);
    rig.device.slot.unplug();
    assert_eq!(rig.sink.take(), [Irq::Pin(false)]);
    rig.run(20);
    rig.device.slot.replug();
    assert_eq!((rig.function().config_read(6, Width::B2) & 8, rig.sink.take()), (0, vec![]));
}

#[test]
fn a_worker_that_has_not_noticed_interrupts_nobody() {
    let sink = std::sync::Arc::<Sink>::default();
    let function =
        VirtioPci::new(Box::new(Fake), false, std::sync::Arc::clone(&sink) as _, Default::default()).unwrap();
    function.unplug();
    function.used_buffers(0);
    function.needs_reset();
    function.replug();
    assert_eq!((function.bar_read(0, 0x1000, Width::B1), sink.take()), (Ok(0), vec![]));
}

#[test]
fn back_in_its_slot_it_is_as_after_power_on() {
    for acknowledged in [true, false] {
        let mut rig = busy(4);
        let fresh = Rig::new(&options(), Hardware::default());
        rig.device.slot.unplug();
        if acknowledged {
            rig.run(10);
        }
        rig.device.slot.replug();
        rig.device.script.clear();
        assert!(rig.device.slot.plugged());
        rig.run(10);
        for offset in (0..256).step_by(4) {
            let read = |rig: &Rig| rig.function().config_read(offset, Width::B4);
            assert_eq!(read(&rig), read(&fresh), "{offset:#x}");
        }
        assert_eq!(rig.function().decode(BAR, Width::B4), None);
        rig.place();
        fresh.place();
        for offset in (0..56).step_by(4).chain((0x4000..0x4030).step_by(4)) {
            let read = |rig: &Rig| rig.function().bar_read(0, offset, Width::B4);
            assert_eq!(read(&rig), read(&fresh), "{offset:#x}");
        }
        assert_eq!(rig.status(), 0);
        rig.msix(3);
        rig.start(u64::MAX, 2, 16);
        rig.sink.take();
        let head = rig.request(DATA, 0, 0, 512, true);
        rig.kick(0);
        rig.run(20);
        let ram = rig.ram.clone();
        assert_eq!(rig.queues[0].used(&ram), [(head.into(), 513)]);
        assert_eq!(rig.sink.take(), [Irq::Msi(1, 0xfee0_0000, 1)]);
    }
}

#[test]
fn putting_back_what_is_in_does_nothing() {
    let mut rig = busy(4);
    rig.device.slot.replug();
    assert_eq!(rig.function().decode(BAR, Width::B4), Some((0, 0)));
    assert!(rig.run(100) > 4);
    assert_eq!(rig.status_of(DATA + 0x22000), 0);
}
