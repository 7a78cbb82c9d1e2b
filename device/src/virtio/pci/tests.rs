use super::*;
use crate::blk::{BlkOptions, DeviceError, Hardware, blk};
use crate::store::{MemoryStore, Store};
use crate::testing::{BAR as BASE, DATA, Fake, Irq, Rig, Sink, ram};
use crate::virtio::common::{DRIVER_OK, NEEDS_RESET};
use crate::virtio::{EVENT_IDX, VERSION_1};

fn options() -> BlkOptions {
    BlkOptions { queues: 2, ..BlkOptions::default() }
}

#[test]
fn a_driver_finds_every_structure_through_the_capabilities() {
    let rig = Rig::new(&options(), Hardware::default());
    let read = |at: u16, width| rig.function().config_read(at, width);
    assert_eq!((read(0, Width::B4), read(8, Width::B4)), (0x1042_1af4, 0x0100_0001));
    let mut found = Vec::new();
    let mut at = u16::try_from(read(0x34, Width::B1)).unwrap();
    while at != 0 {
        let kind = if read(at, Width::B1) == 9 { read(at + 3, Width::B1) } else { 0x100 + read(at, Width::B1) };
        found.push((kind, read(at + 8, Width::B4), read(at + 12, Width::B4)));
        at = u16::try_from(read(at + 1, Width::B1)).unwrap();
    }
    let vendor = [(1, 0, 56), (3, 0x1000, 1), (4, 0x2000, 96), (2, 0x3000, 8)];
    assert_eq!(found[..4], vendor);
    let msix = rig.msix_cap();
    assert_eq!(read(msix + 2, Width::B2), 2, "three vectors");
    assert_eq!((read(msix + 4, Width::B4), read(msix + 8, Width::B4)), (0x4000, 0x6000));
}

#[test]
fn registers_answer_only_at_the_current_bar() {
    let rig = Rig::new(&options(), Hardware::default());
    assert_eq!(rig.function().decode(BASE, Width::B4), None);
    rig.place();
    assert_eq!(rig.read(18, Width::B2), 2);
    assert_eq!(rig.read(0x2000, Width::B8), 256);
    assert_eq!(rig.read(0x2000 + 34, Width::B2), 2);
    let function = rig.function();
    let width = |offset, width: u8| Err(AccessError::Width { bar: 0, offset, width });
    assert_eq!(function.bar_read(1, 0, Width::B4), Err(AccessError::NoBar { bar: 1 }));
    assert_eq!(function.bar_read(0, 0x8000, Width::B4), Err(AccessError::Hole { bar: 0, offset: 0x8000 }));
    assert_eq!(function.bar_read(0, u64::MAX, Width::B1), Err(AccessError::Hole { bar: 0, offset: u64::MAX }));
    assert_eq!(function.bar_read(0, 0x2000 + 92, Width::B8), width(0x205c, 8));
    assert_eq!(function.bar_read(0, 0x2001, Width::B2), width(0x2001, 2));
    assert_eq!(function.bar_read(0, 0x1000, Width::B2), width(0x1000, 2));
}

#[test]
fn a_doorbell_is_checked() {
    let rig = Rig::running(&options());
    let function = rig.function();
    let ring = |offset: u64, width, value| function.bar_write(0, 0x3000 + offset, width, value);
    assert_eq!(ring(4, Width::B2, 0), Err(AccessError::Doorbell { queue: 1, value: 0 }));
    assert_eq!(ring(4, Width::B4, 1), Err(AccessError::Width { bar: 0, offset: 0x3004, width: 4 }));
    assert_eq!(ring(2, Width::B2, 0), Err(AccessError::Width { bar: 0, offset: 0x3002, width: 2 }));
    assert_eq!(ring(8, Width::B2, 2), Err(AccessError::Hole { bar: 0, offset: 0x3008 }));
    assert!(rig.device.workers.iter().all(|worker| !worker.ready()));
    assert_eq!(ring(4, Width::B2, 1), Ok(()));
    assert_eq!(rig.device.workers.iter().map(|worker| worker.ready()).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn a_doorbell_before_driver_ok_wakes_nobody() {
    let mut rig = Rig::new(&options(), Hardware::default());
    rig.place();
    rig.set_up_queue(0, 16);
    rig.kick(0);
    assert_eq!(rig.run(10), 0);
}

#[test]
fn reset_is_immediate_while_no_queue_is_active() {
    let rig = Rig::new(&options(), Hardware::default());
    rig.place();
    rig.set_status(3);
    rig.write(20, Width::B1, 0);
    assert_eq!(rig.status(), 0);
}

#[test]
fn reset_waits_for_every_worker_and_takes_nothing_in_meanwhile() {
    let mut rig = Rig::running(&options());
    rig.write(20, Width::B1, 0);
    assert_eq!(rig.status(), 0xf);
    rig.write(22, Width::B2, 1);
    assert_eq!(rig.read(22, Width::B2), 1, "as set_up_queue left it");
    rig.write(22, Width::B2, 0);
    assert_eq!(rig.read(22, Width::B2), 1);
    assert!(rig.device.workers.iter().all(|worker| worker.ready()));
    rig.device.workers[1].service(0);
    assert_ne!(rig.status(), 0, "one of two");
    rig.device.workers[0].service(0);
    assert_eq!((rig.status(), rig.read(22, Width::B2)), (0, 0));
    assert_eq!(rig.run(10), 0);
    rig.start(u64::MAX, 2, 16);
    assert_eq!(rig.status() & DRIVER_OK, DRIVER_OK);
}

#[test]
fn a_device_under_reset_keeps_silent() {
    let sink = Arc::<Sink>::default();
    let function = VirtioPci::new(Box::new(Fake), false, Arc::clone(&sink) as _, Arc::default()).unwrap();
    let write = |offset, width, value| function.bar_write(0, offset, width, value).unwrap();
    write(8, Width::B4, 1);
    write(12, Width::B4, 1);
    write(40, Width::B4, 0x2000);
    write(28, Width::B2, 1);
    write(20, Width::B1, 0xf);
    function.used_buffers(0);
    assert_eq!(sink.take(), [Irq::Pin(true)]);
    function.bar_read(0, 0x1000, Width::B1).unwrap();
    write(20, Width::B1, 0);
    sink.take();
    function.used_buffers(0);
    function.needs_reset();
    assert_eq!((sink.take(), function.bar_read(0, 20, Width::B1)), (vec![], Ok(0xf)));
    function.reset_done(1);
    assert_eq!(function.bar_read(0, 20, Width::B1), Ok(0xf), "not the one awaited");
    function.reset_done(0);
    assert_eq!(function.bar_read(0, 20, Width::B1), Ok(0));
}

#[test]
fn a_function_reset_stops_dma_at_once_and_forgets_everything() {
    let mut rig = Rig::running(&options());
    rig.request(DATA, 0, 0, 512, true);
    rig.kick(0);
    rig.device.workers[0].service(0);
    rig.log.take();
    rig.function().reset();
    assert_eq!(rig.function().config_read(4, Width::B2), 0);
    assert_eq!(rig.function().decode(BASE, Width::B1), None);
    rig.run(10);
    assert_eq!(rig.log.take(), []);
    rig.place();
    assert_eq!(rig.status(), 0);
    assert_eq!(rig.read(0x4000 + 12, Width::B4), 1, "vectors masked again");
    rig.sink.take();
    rig.msix(3);
    rig.start(u64::MAX, 2, 16);
    rig.request(DATA, 0, 0, 512, true);
    rig.kick(0);
    rig.run(10);
    assert_eq!((rig.status_of(DATA), rig.sink.take()), (0, vec![Irq::Msi(1, 0xfee0_0000, 1)]));
}

#[test]
fn a_masked_vector_pends_and_is_sent_when_unmasked() {
    let mut rig = Rig::running(&options());
    rig.write(0x4000 + 16 + 12, Width::B4, 1);
    rig.request(DATA, 0, 0, 512, true);
    rig.kick(0);
    rig.run(10);
    assert_eq!((rig.sink.take(), rig.read(0x6000, Width::B8)), (vec![], 2));
    rig.write(0x4000 + 16 + 12, Width::B4, 0);
    assert_eq!(rig.sink.take(), [Irq::Msi(1, 0xfee0_0000, 1)]);
    assert_eq!(rig.read(0x6000, Width::B8), 0);
    let at = rig.msix_cap() + 2;
    rig.function().config_write(at, Width::B2, 0xc000);
    rig.request(DATA, 0, 0, 512, true);
    rig.write_used_event(0, 1);
    rig.kick(0);
    rig.run(10);
    assert_eq!(rig.sink.take(), []);
    rig.function().config_write(at, Width::B2, 0x8000);
    assert_eq!(rig.sink.take(), [Irq::Msi(1, 0xfee0_0000, 1)]);
}

#[test]
fn without_msix_the_pin_rises_once_and_reading_the_isr_lowers_it() {
    let mut rig = Rig::new(&options(), Hardware::default());
    rig.place();
    rig.start(VERSION_1, 1, 16);
    for _ in 0..2 {
        rig.request(DATA, 0, 0, 512, true);
        rig.kick(0);
        rig.run(20);
    }
    assert_eq!(rig.sink.take(), [Irq::Pin(true)]);
    assert_eq!(rig.function().config_read(6, Width::B2) & 8, 8);
    assert_eq!((rig.read(0x1000, Width::B1), rig.read(0x1000, Width::B1)), (1, 0));
    assert_eq!(rig.sink.take(), [Irq::Pin(false)]);
    assert_eq!(rig.function().config_read(6, Width::B2) & 8, 0);
    assert_eq!(rig.device.counters.totals().interrupts, 1);
}

#[test]
fn a_disabled_pin_stays_low_and_the_status_bit_shows_why() {
    let mut rig = Rig::new(&options(), Hardware::default());
    rig.place();
    rig.function().config_write(4, Width::B2, 0x406);
    rig.start(VERSION_1, 1, 16);
    rig.request(DATA, 0, 0, 512, true);
    rig.kick(0);
    rig.run(20);
    assert_eq!((rig.sink.take(), rig.function().config_read(6, Width::B2) & 8), (vec![], 8));
    rig.function().config_write(4, Width::B2, 6);
    assert_eq!(rig.sink.take(), [Irq::Pin(true)]);
    let at = rig.msix_cap() + 2;
    rig.function().config_write(at, Width::B2, 0x8000);
    assert_eq!(rig.sink.take(), [Irq::Pin(false)], "MSI-X replaces the pin");
}

#[test]
fn a_ring_the_device_cannot_reach_ends_in_needs_reset_with_a_config_interrupt() {
    let mut rig = Rig::running(&options());
    rig.queues[0].offer(&rig.ram, 99);
    rig.kick(0);
    rig.run(10);
    assert_eq!(rig.status() & NEEDS_RESET, NEEDS_RESET);
    assert_eq!(rig.sink.take(), [Irq::Msi(0, 0xfee0_0000, 0)]);
    assert!(rig.device.counters.take_ring_error().is_some());
    rig.kick(0);
    assert_eq!(rig.run(10), 0, "stopped");
    rig.write(20, Width::B1, 0);
    rig.run(10);
    assert_eq!(rig.status(), 0);
}

#[test]
fn bus_mastering_off_refuses_dma_and_loses_messages() {
    let mut rig = Rig::running(&options());
    rig.request(DATA, 0, 0, 512, true);
    rig.function().config_write(4, Width::B2, 2);
    rig.log.take();
    rig.kick(0);
    rig.run(10);
    let totals = rig.device.counters.totals();
    assert_eq!((totals.faults, totals.interrupts, totals.interrupts_lost, totals.requests), (1, 0, 1, 0));
    assert_eq!(rig.status() & NEEDS_RESET, NEEDS_RESET);
    let why = rig.device.counters.first_fault().map(|fault| fault.why);
    assert_eq!(why, Some(crate::pci::Refusal::BusMasterOff));
    assert!(rig.log.take().iter().all(|seen| matches!(seen, crate::testing::Seen::Refused(..))));
}

#[test]
fn event_idx_holds_interrupts_back_until_the_driver_asks() {
    let mut rig = Rig::running(&options());
    assert_eq!(rig.offered() & EVENT_IDX, EVENT_IDX);
    rig.write_used_event(0, 1);
    rig.request(DATA, 0, 0, 512, true);
    rig.kick(0);
    rig.run(10);
    assert_eq!(rig.sink.take(), []);
    rig.request(DATA, 0, 0, 512, true);
    rig.kick(0);
    rig.run(10);
    assert_eq!(rig.sink.take(), [Irq::Msi(1, 0xfee0_0000, 1)]);
    assert_eq!(rig.avail_event(0), 2);
}

#[test]
fn impossible_devices_are_errors() {
    let build = |queues, queue_size| {
        let options = BlkOptions { queues, queue_size, ..options() };
        let store = Arc::new(Store::Memory(MemoryStore::zeroed(512).unwrap()));
        let irq = Arc::<Sink>::default();
        blk(&options, Hardware::default(), store, irq, |_| (ram(), ())).err()
    };
    for queues in [0, 512] {
        assert_eq!(build(queues, 16), Some(DeviceError::Transport(VirtioPciError::Queues { queues })));
    }
    for size in [0, 3, 40000] {
        assert_eq!(build(1, size), Some(DeviceError::Transport(VirtioPciError::QueueSize { size })));
    }
    assert_eq!(build(511, 32768), None);
}
