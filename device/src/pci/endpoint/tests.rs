//! An endpoint as a bus sees it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::testing::{Irq, Sink};

/// One register of 32 bits; writing it interrupts, reading acknowledges.
#[derive(Debug)]
struct Bell {
    signals: Arc<Signals>,
    value: AtomicU64,
}

impl Registers for Bell {
    fn read(&self, offset: u64, width: Width) -> Option<u64> {
        self.signals.lower();
        (offset == 0 && width == Width::B4).then(|| self.value.load(Ordering::Relaxed))
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Option<()> {
        (offset == 0 && width == Width::B4).then(|| {
            self.value.store(value, Ordering::Relaxed);
            self.signals.raise(u16::try_from(value).unwrap_or(u16::MAX));
        })
    }

    fn reset(&self) {
        self.value.store(0, Ordering::Relaxed);
    }
}

fn spec(vectors: u16) -> EndpointSpec {
    let identity = Identity { vendor: 0x1234, device: 0x11e9, class: 0xff_0000, ..Identity::default() };
    EndpointSpec { identity, registers: 0x1000, wide: true, vectors, msi: false }
}

fn bell(vectors: u16) -> (Endpoint<Bell>, Arc<Sink>) {
    bell_of(spec(vectors))
}

fn bell_of(spec: EndpointSpec) -> (Endpoint<Bell>, Arc<Sink>) {
    let sink = Arc::new(Sink::default());
    let signals = Signals::new(&spec, sink.clone()).unwrap();
    let registers = Arc::new(Bell { signals: signals.clone(), value: AtomicU64::new(0) });
    let function = Endpoint::new(signals, registers);
    function.config_write(config::COMMAND, Width::B2, u32::from(config::COMMAND_MEMORY | config::COMMAND_MASTER));
    (function, sink)
}

/// Turns MSI-X on with vector 1 unmasked.
fn msix_on(function: &Endpoint<Bell>) {
    function.bar_write(2, ENTRY, Width::B8, 0xfee0_0000).unwrap();
    function.bar_write(2, ENTRY + 8, Width::B4, 0x41).unwrap();
    function.bar_write(2, ENTRY + 12, Width::B4, 0).unwrap();
    function.config_write(0x42, Width::B2, u32::from(MSIX_ENABLE));
}

#[test]
fn the_capability_tells_where_table_and_pending_bits_lie() {
    let (function, _) = bell(70);
    assert_eq!(function.config_read(0x34, Width::B1), 0x40);
    assert_eq!(function.config_read(0x40, Width::B4), 0x0045_0011);
    assert_eq!(function.config_read(0x44, Width::B4), 2);
    assert_eq!(function.config_read(0x48, Width::B4), 70 * 16 + 2);
    assert_eq!(function.bar_read(2, 69 * ENTRY + 12, Width::B4), Ok(1), "masked at power-on");
    assert_eq!(function.bar_read(2, 70 * ENTRY + 8, Width::B8), Ok(0));
    assert!(function.bar_read(2, 70 * ENTRY + 16, Width::B8).is_err());
    assert_eq!(function.bar_read(1, 0, Width::B4), Err(AccessError::NoBar { bar: 1 }));
    let (pin_only, _) = bell(0);
    assert_eq!(pin_only.config_read(0x34, Width::B1), 0);
    assert_eq!(pin_only.bar_read(2, 0, Width::B4), Err(AccessError::NoBar { bar: 2 }));
}

#[test]
fn the_pin_stays_up_until_it_is_acknowledged_and_obeys_the_command_register() {
    let (function, sink) = bell(1);
    function.bar_write(0, 0, Width::B4, 0).unwrap();
    function.bar_write(0, 0, Width::B4, 0).unwrap();
    assert_eq!(sink.take(), [Irq::Pin(true)]);
    assert_eq!(function.config_read(config::STATUS, Width::B2) & 8, 8);
    let off = config::COMMAND_MEMORY | config::COMMAND_INTX_OFF;
    function.config_write(config::COMMAND, Width::B2, u32::from(off));
    function.config_write(config::COMMAND, Width::B2, u32::from(config::COMMAND_MEMORY));
    function.bar_read(0, 0, Width::B4).unwrap();
    assert_eq!(sink.take(), [Irq::Pin(false), Irq::Pin(true), Irq::Pin(false)]);
}

#[test]
fn a_message_goes_out_once_it_is_unmasked_and_the_function_may_master_the_bus() {
    let (function, sink) = bell(2);
    msix_on(&function);
    function.bar_write(0, 0, Width::B4, 1).unwrap();
    assert_eq!(sink.take(), [Irq::Msi(1, 0xfee0_0000, 0x41)]);
    function.bar_write(0, 0, Width::B4, 0).unwrap();
    assert_eq!((sink.take(), function.bar_read(2, 2 * ENTRY, Width::B8)), (vec![], Ok(1)));
    function.bar_write(2, 12, Width::B4, 0).unwrap();
    assert_eq!(sink.take().len(), 1, "the pending message leaves with its mask");
    function.config_write(config::COMMAND, Width::B2, u32::from(config::COMMAND_MEMORY));
    function.bar_write(0, 0, Width::B4, 1).unwrap();
    assert_eq!(sink.take(), []);
    let totals = function.signals.counters().totals();
    assert_eq!((totals.interrupts, totals.interrupts_lost), (2, 1));
}

#[test]
fn msi_replaces_the_pin_and_is_sent_at_every_raise() {
    let (function, sink) = bell_of(EndpointSpec { msi: true, ..spec(0) });
    assert_eq!(function.config_read(0x40, Width::B4), 0x0080_0005, "64-bit, one vector");
    function.bar_write(0, 0, Width::B4, 0).unwrap();
    function.config_write(0x44, Width::B4, 0xfee0_1003);
    function.config_write(0x48, Width::B4, 1);
    function.config_write(0x4c, Width::B4, 0xffff_4041);
    function.config_write(0x42, Width::B2, 0xffff);
    assert_eq!(function.config_read(0x40, Width::B4), 0x0081_0005, "nothing but the enable bit can be written");
    assert_eq!(sink.take(), [Irq::Pin(true), Irq::Pin(false)]);
    function.bar_write(0, 0, Width::B4, 0).unwrap();
    function.bar_write(0, 0, Width::B4, 0).unwrap();
    assert_eq!(sink.take(), [Irq::Msi(0, 0x1_fee0_1000, 0x4041); 2]);
    function.config_write(config::COMMAND, Width::B2, u32::from(config::COMMAND_MEMORY));
    function.bar_write(0, 0, Width::B4, 0).unwrap();
    assert_eq!((sink.take(), function.signals.counters().totals().interrupts_lost), (vec![], 1));
    function.config_write(0x42, Width::B2, 0);
    function.bar_write(0, 0, Width::B4, 0).unwrap();
    assert_eq!(sink.take(), [Irq::Pin(true)]);
}

#[test]
fn a_function_that_left_its_slot_answers_all_ones_and_comes_back_new() {
    let (function, sink) = bell(1);
    function.bar_write(0, 0, Width::B4, 7).unwrap();
    function.unplug();
    assert_eq!(sink.take(), [Irq::Pin(true), Irq::Pin(false)]);
    assert!(!function.plugged());
    assert_eq!(function.config_read(0, Width::B4), u32::MAX);
    assert_eq!(function.bar_read(0, 0, Width::B4), Ok(0xffff_ffff));
    function.bar_write(0, 0, Width::B4, 9).unwrap();
    function.config_write(config::COMMAND, Width::B2, 7);
    function.signals.raise(0);
    assert_eq!((sink.take(), function.decode(0, Width::B4)), (vec![], None));
    function.replug();
    assert!(function.plugged());
    assert_eq!(function.config_read(config::COMMAND, Width::B2), 0);
    assert_eq!(function.bar_read(0, 0, Width::B4), Ok(0));
    assert!(!function.signals.gate().is_open());
}

#[test]
fn reset_lowers_the_pin_stops_dma_and_forgets() {
    let (function, sink) = bell(1);
    function.bar_write(0, 0, Width::B4, 7).unwrap();
    assert!(function.signals.gate().is_open());
    PciFunction::reset(&function);
    assert_eq!(sink.take(), [Irq::Pin(true), Irq::Pin(false)]);
    assert!(!function.signals.gate().is_open());
    assert_eq!(function.bar_read(0, 0, Width::B4), Ok(0));
}

#[test]
fn what_no_function_can_be_is_refused() {
    let make = |spec: EndpointSpec| Signals::new(&spec, Arc::new(Sink::default())).map(|_| ()).unwrap_err();
    assert_eq!(make(spec(2049)), EndpointError::Vectors { vectors: 2049 });
    let odd = EndpointSpec { registers: 24, ..spec(1) };
    assert_eq!(make(odd), EndpointError::Config(ConfigError::Size { index: 0, size: 24 }));
}
