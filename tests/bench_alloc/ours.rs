//! Our allocators, through the API that a driver calls, in a world that never interferes.

use std::sync::Arc;

use lowzone_guest_mem::env::{Env, IrqHandler, Key, Point, Ticket, Verdict, Wake};
use lowzone_guest_mem::finding::Finding;
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::kernel::{Machine, MachineConfig, Sanitize};
use lowzone_guest_mem::page::{self, alloc_pages};
use lowzone_guest_mem::{Cpu, KBuf};

use crate::job::{Ops, Side, Task};

/// Nobody else runs, nothing fails, no time passes.
struct Quiet;

impl Env for Quiet {
    fn now(&self) -> u64 {
        0
    }

    fn prepare(&self, _on: Key) -> Ticket {
        Ticket { number: 0, irqs_off: false, keeps_cpu: false }
    }

    fn park(&self, _ticket: Ticket, _until: Option<u64>) -> Wake {
        Wake::TimedOut
    }

    fn wake(&self, _on: Key, _n: usize) {}

    fn take_irq(&self) -> Option<Arc<dyn IrqHandler>> {
        None
    }

    fn point(&self, _point: Point) -> Verdict {
        Verdict::Pass
    }

    fn emit(&self, finding: Finding) {
        panic!("{finding}");
    }
}

fn on<R>(machine: &Machine, id: u32, run: impl FnOnce(&Cpu<'_>) -> R) -> R {
    lowzone_guest_mem::cpu::set_current(id);
    run(&Cpu::new(id, machine.kernel_ref(), &Quiet))
}

/// Pages.
pub struct Pages {
    name: &'static str,
    machine: Machine,
}

impl Pages {
    pub fn new(name: &'static str) -> Self {
        Self { name, machine: Machine::acquire(MachineConfig { pcp: true, ..MachineConfig::default() }).unwrap() }
    }
}

/// One CPU's pages.
pub struct PageOps<'a, 'w>(&'a Cpu<'w>);

impl Ops for PageOps<'_, '_> {
    type Piece = page::Pages;

    fn take(&self, order: usize) -> page::Pages {
        alloc_pages(self.0, u8::try_from(order).unwrap(), GFP_KERNEL).unwrap()
    }

    fn give(&self, pages: page::Pages) {
        drop(pages);
    }
}

impl Side for Pages {
    type Piece = page::Pages;

    fn name(&self) -> &'static str {
        self.name
    }

    fn on<T: Task<page::Pages>>(&self, cpu: u32, task: T) -> T::Out {
        on(&self.machine, cpu, |cpu| task.run(&PageOps(cpu)))
    }
}

/// Objects of `kmalloc`.
pub struct Objects {
    name: &'static str,
    machine: Machine,
}

impl Objects {
    pub fn new(name: &'static str) -> Self {
        Self { name, machine: Machine::acquire(MachineConfig { pcp: true, ..MachineConfig::default() }).unwrap() }
    }

    /// Runs something on its CPU 0.
    pub fn with_cpu(&self, run: impl FnOnce(&Cpu<'_>)) {
        on(&self.machine, 0, run);
    }

    /// With poison and red zones.
    pub fn sanitized(name: &'static str) -> Self {
        let sanitize = Sanitize::POISON | Sanitize::RED_ZONE;
        let config = MachineConfig { pcp: true, sanitize, ..MachineConfig::default() };
        Self { name, machine: Machine::acquire(config).unwrap() }
    }
}

/// One CPU's objects.
pub struct ObjectOps<'a, 'w>(&'a Cpu<'w>);

impl Ops for ObjectOps<'_, '_> {
    type Piece = KBuf;

    fn take(&self, size: usize) -> KBuf {
        KBuf::kmalloc(self.0, size, GFP_KERNEL).unwrap()
    }

    fn give(&self, buf: KBuf) {
        drop(buf);
    }
}

impl Side for Objects {
    type Piece = KBuf;

    fn name(&self) -> &'static str {
        self.name
    }

    fn on<T: Task<KBuf>>(&self, cpu: u32, task: T) -> T::Out {
        on(&self.machine, cpu, |cpu| task.run(&ObjectOps(cpu)))
    }
}
