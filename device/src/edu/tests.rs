//! The register map of QEMU's edu, and what its DMA does with addresses that it can't reach.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::registers::*;
use super::worker::{DMA_DELAY, LATE};
use super::*;
use crate::misbehave::Mishap;
use crate::pci::{Beyond, Refusal, Width, config};
use crate::testing::{HIGH, Irq, Log, Seen, Sink, ram};
use crate::worker::Next;
use std::sync::Arc;

struct Rig {
    ram: GuestMemoryMmap<()>,
    sink: Arc<Sink>,
    log: Arc<Log>,
    edu: Edu,
    now: u64,
}

impl Rig {
    fn new(hardware: Hardware) -> Self {
        let (ram, sink, log) = (ram(), Arc::new(Sink::default()), Arc::new(Log::default()));
        let edu = edu(hardware, sink.clone(), ram.clone(), log.clone()).unwrap();
        let command = u32::from(config::COMMAND_MEMORY | config::COMMAND_MASTER);
        edu.function.config_write(config::COMMAND, Width::B2, command);
        Self { ram, sink, log, edu, now: 0 }
    }

    fn read(&self, offset: u64) -> u64 {
        self.edu.function.bar_read(0, offset, Width::B4).unwrap()
    }

    fn write(&self, offset: u64, value: u32) {
        self.edu.function.bar_write(0, offset, Width::B4, value.into()).unwrap();
    }

    fn wide(&self, offset: u64, value: u64) {
        self.edu.function.bar_write(0, offset, Width::B8, value).unwrap();
    }

    fn command(&self, source: u64, destination: u64, count: u64, command: u64) {
        self.wide(DMA_SOURCE, source);
        self.wide(DMA_DESTINATION, destination);
        self.wide(DMA_COUNT, count);
        self.wide(DMA_COMMAND, command);
    }

    /// Lets the workers run until there is nothing to do, time included.
    fn settle(&mut self) {
        for index in [0, 1] {
            loop {
                match self.edu.workers[index].service(self.now) {
                    Next::Idle => break,
                    Next::Again => {}
                    Next::At(at) => self.now = self.now.max(at),
                }
            }
        }
    }

    fn byte(&self, at: u64) -> u8 {
        self.ram.read_obj(GuestAddress(at)).unwrap()
    }
}

fn rig() -> Rig {
    Rig::new(Hardware::default())
}

#[test]
fn it_says_who_it_is_and_has_a_megabyte_of_registers() {
    let rig = rig();
    let function = &rig.edu.function;
    assert_eq!(function.config_read(0, Width::B4), 0x11e8_1234);
    assert_eq!(function.config_read(8, Width::B4), 0x00ff_0010);
    assert_eq!(function.config_read(0x3d, Width::B1), 1, "INTA");
    function.config_write(0x10, Width::B4, u32::MAX);
    assert_eq!(function.config_read(0x10, Width::B4), 0xfff0_0000);
    assert_eq!(function.config_read(0x40, Width::B4), 0x0080_0005, "MSI, 64-bit, one vector, the last capability");
}

#[test]
fn registers_answer_as_qemus_do() {
    let mut rig = rig();
    assert_eq!((rig.read(ID), rig.read(LIVENESS)), (0x0100_00ed, 0));
    rig.write(LIVENESS, 0x1234_5678);
    assert_eq!(rig.read(LIVENESS), 0xedcb_a987);
    let read = |offset, width| rig.edu.function.bar_read(0, offset, width);
    assert_eq!((read(ID, Width::B1), read(ID, Width::B2)), (Ok(0), Ok(0)), "measured");
    assert!(read(ID, Width::B8).is_err() && read(RAISE, Width::B4).is_err() && read(0x84, Width::B4).is_err());
    rig.wide(DMA_SOURCE, 0x1_2345_6789);
    assert_eq!(rig.edu.function.bar_read(0, DMA_SOURCE, Width::B8), Ok(0x1_2345_6789));
    assert_eq!(rig.read(DMA_SOURCE), 0x2345_6789);
    rig.write(DMA_SOURCE, 7);
    assert_eq!(rig.edu.function.bar_read(0, DMA_SOURCE, Width::B8), Ok(7), "a narrow write is a whole one");
    assert!(rig.edu.function.bar_write(0, LIVENESS, Width::B8, 0).is_err());
    rig.write(STATUS, u32::MAX);
    assert_eq!(rig.read(STATUS), u64::from(INTERRUPT), "nothing else can be written");
    rig.settle();
    assert_eq!(rig.sink.take(), []);
}

#[test]
fn a_factorial_is_computed_once_at_a_time_and_interrupts_if_asked_to() {
    let mut rig = rig();
    for (n, wanted) in [(0, 1), (1, 1), (10, 3_628_800), (13, 1_932_053_504), (33, 0x8000_0000), (34, 0), (u32::MAX, 0)]
    {
        rig.write(FACTORIAL, n);
        assert_eq!((rig.read(STATUS), rig.read(FACTORIAL)), (1, n.into()), "the operand, while it computes");
        rig.write(FACTORIAL, 3);
        rig.settle();
        assert_eq!((rig.read(STATUS), rig.read(FACTORIAL)), (0, wanted), "{n}! modulo 2^32");
    }
    assert_eq!((rig.sink.take(), rig.read(CAUSES)), (vec![], 0));
    rig.write(STATUS, INTERRUPT);
    rig.write(FACTORIAL, 4);
    rig.settle();
    assert_eq!((rig.sink.take(), rig.read(CAUSES)), (vec![Irq::Pin(true)], 1));
}

#[test]
fn the_pin_falls_when_the_last_cause_is_acknowledged() {
    let rig = rig();
    rig.write(RAISE, 0);
    assert_eq!(rig.sink.take(), []);
    rig.write(RAISE, 0xbeef);
    rig.write(ACKNOWLEDGE, 0xbee0);
    assert_eq!((rig.sink.take(), rig.read(CAUSES)), (vec![Irq::Pin(true)], 0xf));
    rig.write(ACKNOWLEDGE, 0xf);
    assert_eq!((rig.sink.take(), rig.read(CAUSES)), (vec![Irq::Pin(false)], 0));
}

#[test]
fn a_transfer_comes_after_its_100_ms_and_its_registers_hold_still_until_then() {
    let mut rig = rig();
    rig.ram.write_slice(&[0xab; 16], GuestAddress(0x1000)).unwrap();
    rig.command(0x1000, BUFFER, 16, RUN | DONE_INTERRUPT);
    assert_eq!(rig.edu.workers[1].service(7), Next::At(7 + DMA_DELAY));
    assert!(!rig.edu.workers[1].ready());
    rig.command(0x2000, 0, 1, RUN | TO_MEMORY);
    assert_eq!(rig.edu.workers[1].service(8), Next::At(7 + DMA_DELAY));
    assert_eq!((rig.read(DMA_COMMAND), rig.read(DMA_SOURCE), rig.log.take().len()), (5, 0x1000, 0));
    assert_eq!(rig.edu.workers[1].service(7 + DMA_DELAY), Next::Again);
    assert_eq!(rig.read(DMA_COMMAND), 5, "the bytes have moved; it is not over");
    assert_eq!(rig.sink.take(), []);
    rig.settle();
    assert_eq!((rig.read(DMA_COMMAND), rig.read(CAUSES), rig.sink.take()), (4, 0x100, vec![Irq::Pin(true)]));
    rig.command(BUFFER + 1, 0x2000, 15, RUN | TO_MEMORY);
    rig.settle();
    assert_eq!((rig.byte(0x2000), rig.byte(0x200e), rig.byte(0x200f)), (0xab, 0xab, 0));
    assert_eq!(rig.sink.take(), [], "not asked to");
    let seen = rig.log.take();
    assert_eq!(seen[..2], [Seen::Granted(0x1000, 16, false), Seen::Moved(0x1000, 16, false)]);
    let totals = rig.edu.counters.totals();
    assert_eq!((totals.requests, totals.failed, totals.bytes_read, totals.bytes_written), (2, 0, 15, 16));
    rig.wide(DMA_COMMAND, TO_MEMORY | DONE_INTERRUPT);
    rig.settle();
    assert_eq!((rig.read(DMA_COMMAND), rig.edu.counters.totals().requests), (2, 2), "nothing without the start bit");
}

#[test]
fn what_leaves_the_internal_buffer_moves_nothing_and_is_counted() {
    let mut rig = rig();
    let cases = [
        (BUFFER - 1, 16),
        (BUFFER, 4097),
        (BUFFER + 4095, 2),
        (BUFFER + 4096, 1),
        (BUFFER, 0),
        (BUFFER, u64::MAX),
        (u64::MAX, 2),
        (0, 1),
    ];
    for (device, count) in cases {
        rig.command(device, 0x1000, count, RUN | TO_MEMORY | DONE_INTERRUPT);
        rig.settle();
        rig.command(0x1000, device, count, RUN);
        rig.settle();
    }
    assert_eq!((rig.log.take(), rig.byte(0x1000)), (vec![], 0));
    assert_eq!((rig.edu.counters.totals().requests, rig.edu.counters.totals().failed), (16, 16));
    assert_eq!(rig.read(CAUSES), 0x100, "it ends all the same: no register could tell");
    rig.command(BUFFER, 0x1000, 4096, RUN | TO_MEMORY);
    rig.settle();
    assert_eq!(rig.log.take(), [Seen::Granted(0x1000, 4096, true), Seen::Moved(0x1000, 4096, true)]);
}

#[test]
fn upper_address_bits_are_dropped_and_the_tap_is_told() {
    let mut rig = rig();
    rig.ram.write_obj(0x55u8, GuestAddress(HIGH + 0x300)).unwrap();
    rig.ram.write_obj(0x11u8, GuestAddress(0x300)).unwrap();
    rig.command(BUFFER, HIGH + 0x300, 1, RUN | TO_MEMORY);
    rig.settle();
    assert_eq!((rig.byte(0x300), rig.byte(HIGH + 0x300)), (0, 0x55), "the wrong memory was hit");
    assert_eq!(rig.log.take()[0], Seen::Wrapped(HIGH + 0x300, 0x300, 1, true, 28));
    assert_eq!(rig.edu.counters.totals().faults, 0);

    let mut strict = Rig::new(Hardware { width: 28, beyond: Beyond::Refuse });
    strict.command(BUFFER, 0x1000_0000, 1, RUN | TO_MEMORY | DONE_INTERRUPT);
    strict.settle();
    let refused = Refusal::BeyondWidth { width: 28 };
    assert_eq!(strict.log.take(), [Seen::Refused(0x1000_0000, 1, true, refused)]);
    assert_eq!((strict.edu.counters.totals().faults, strict.edu.counters.totals().failed), (1, 1));
    assert_eq!((strict.read(CAUSES), strict.read(DMA_COMMAND)), (0x100, 6));
}

#[test]
fn without_bus_mastering_nothing_moves_and_no_message_leaves() {
    let mut rig = rig();
    rig.edu.function.config_write(0x42, Width::B2, 1);
    rig.edu.function.config_write(config::COMMAND, Width::B2, u32::from(config::COMMAND_MEMORY));
    rig.command(BUFFER, 0x1000, 8, RUN | TO_MEMORY | DONE_INTERRUPT);
    rig.settle();
    assert_eq!(rig.log.take(), [Seen::Refused(0x1000, 8, true, Refusal::BusMasterOff)]);
    assert_eq!((rig.sink.take(), rig.edu.counters.totals().interrupts_lost, rig.read(CAUSES)), (vec![], 1, 0x100));
}

#[test]
fn a_reset_or_a_removal_stops_what_goes_on() {
    let mut rig = rig();
    for removed in [false, true] {
        rig.command(BUFFER, 0x1000, 8, RUN | TO_MEMORY);
        rig.write(FACTORIAL, 5);
        rig.edu.workers[1].service(rig.now);
        if removed {
            rig.edu.slot.unplug();
            assert_eq!(rig.read(STATUS), 0xffff_ffff);
            rig.edu.slot.replug();
        } else {
            rig.edu.function.reset();
        }
        assert!(!rig.edu.workers.iter().any(|worker| worker.ready()));
        rig.settle();
        assert_eq!((rig.read(STATUS), rig.read(DMA_COMMAND), rig.log.take()), (0, 0, vec![]));
    }
}

#[test]
fn on_demand_it_is_late_or_never_done() {
    let mut rig = rig();
    rig.edu.script.plan(0, Mishap::CompletionLate, false);
    rig.edu.script.plan(1, Mishap::CompletionLate, false);
    rig.edu.script.plan(2, Mishap::CompletionNever, true);
    rig.write(FACTORIAL, 5);
    assert_eq!(rig.edu.workers[0].service(10), Next::At(10 + LATE));
    assert!(!rig.edu.workers[0].ready());
    assert_eq!(rig.edu.workers[0].service(10 + LATE), Next::Idle);
    assert_eq!(rig.read(FACTORIAL), 120);
    rig.command(BUFFER, 0x1000, 8, RUN | TO_MEMORY);
    rig.settle();
    assert_eq!((rig.now, rig.read(DMA_COMMAND)), (DMA_DELAY + LATE, 2));
    rig.write(FACTORIAL, 5);
    rig.command(BUFFER, 0x2000, 8, RUN | TO_MEMORY);
    rig.settle();
    assert_eq!((rig.read(STATUS), rig.read(DMA_COMMAND)), (1, 3), "for ever");
}
