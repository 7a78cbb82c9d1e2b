//! A world in which nothing happens: one CPU, no time, no faults, nobody to wait for.

use std::sync::Arc;

use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::env::{Env, IrqHandler, Key, Point, Ticket, Verdict, Wake};
use lowzone_guest_mem::finding::Finding;
use lowzone_guest_mem::kernel::{Machine, MachineConfig};

/// The world.
pub struct Calm;

impl Env for Calm {
    fn now(&self) -> u64 {
        0
    }

    fn prepare(&self, _: Key) -> Ticket {
        Ticket { number: 0, irqs_off: false, keeps_cpu: false }
    }

    fn park(&self, _: Ticket, _: Option<u64>) -> Wake {
        Wake::Woken
    }

    fn wake(&self, _: Key, _: usize) {}

    fn take_irq(&self) -> Option<Arc<dyn IrqHandler>> {
        None
    }

    fn point(&self, _: Point) -> Verdict {
        Verdict::Pass
    }

    /// What is wrong is in the kernel's log and in what it returns; here nobody asks.
    fn emit(&self, _: Finding) {}
}

/// Does something on CPU 0 of a fresh machine.
pub fn on<T>(config: MachineConfig, does: impl FnOnce(&Cpu<'_>) -> T) -> T {
    let machine = Machine::acquire(config).unwrap();
    let calm = Calm;
    does(&Cpu::new(0, machine.kernel_ref(), &calm))
}
