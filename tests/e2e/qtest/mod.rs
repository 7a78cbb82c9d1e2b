//! Our drivers on the emulator's devices, by hand: one CPU in real time, the test's own code on it.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lowzone_driver::bus::{Bdf, PciBus};
use lowzone_driver::pci::{PciDevice, enumerate};
use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::dma::DmaDevice;
use lowzone_guest_mem::env::{Env, IrqHandler, Key, Point, Ticket, Verdict, Wake};
use lowzone_guest_mem::finding::Finding;
use lowzone_guest_mem::kernel::{KernelRef, Machine, MachineConfig};
use lowzone_guest_mem::timer::Timers;

use lowzone::wire::InProc;
use lowzone::wire::qtest::{Peer, Qemu};

mod blk;
mod edu;
mod end;
mod program;
mod sandwich;
mod scenarios;

/// The smallest world: one CPU in real time, whose only company is the emulator.
struct Alone {
    kernel: KernelRef,
    controller: Arc<InProc>,
    begun: Instant,
    tickets: Cell<u64>,
    woken: RefCell<Vec<(Key, u64, bool)>>,
}

impl Env for Alone {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap()
    }

    fn prepare(&self, on: Key) -> Ticket {
        let number = self.tickets.get();
        self.tickets.set(number + 1);
        self.woken.borrow_mut().push((on, number, false));
        Ticket::new(number)
    }

    fn park(&self, ticket: Ticket, until: Option<u64>) -> Wake {
        loop {
            let mut waiting = self.woken.borrow_mut();
            let at = waiting.iter().position(|w| w.1 == ticket.number).unwrap();
            let over = if waiting[at].2 {
                Wake::Woken
            } else if until.is_some_and(|at| at <= self.now()) {
                Wake::TimedOut
            } else if !ticket.irqs_off && (self.controller.pending(0) || self.timer_due()) {
                return Wake::Irq;
            } else {
                drop(waiting);
                std::thread::sleep(Duration::from_micros(20));
                continue;
            };
            waiting.remove(at);
            return over;
        }
    }

    fn wake(&self, on: Key, n: usize) {
        self.woken.borrow_mut().iter_mut().filter(|w| w.0 == on && !w.2).take(n).for_each(|w| w.2 = true);
    }

    fn take_irq(&self) -> Option<Arc<dyn IrqHandler>> {
        self.controller.take_handler(0).or_else(|| self.timer_due().then(Timers::interrupt))
    }

    fn point(&self, _point: Point) -> Verdict {
        Verdict::Pass
    }

    fn emit(&self, finding: Finding) {
        self.kernel.get().unwrap().report(finding);
    }
}

impl Alone {
    fn timer_due(&self) -> bool {
        self.kernel.get().and_then(|kernel| kernel.timers().next()).is_some_and(|at| at <= self.now())
    }
}

/// A machine, the emulator on its RAM, and its first device.
struct Rig {
    alone: Alone,
    bus: Arc<Qemu>,
    machine: Machine,
}

impl Rig {
    fn new(config: MachineConfig, peers: &[Peer]) -> Self {
        let machine = Machine::acquire(MachineConfig { cpus: 1, ..config }).unwrap();
        let kernel = machine.kernel_ref();
        let controller = Arc::new(InProc::new(kernel, 1));
        let bus = Qemu::start(kernel, controller.clone(), peers).unwrap_or_else(|error| panic!("{error}"));
        let bus = Arc::new(bus);
        machine.kernel().set_io_space(bus.clone());
        let (tickets, woken) = (Cell::new(0), RefCell::default());
        let alone = Alone { kernel, controller, begun: Instant::now(), tickets, woken };
        Self { alone, bus, machine }
    }

    fn cpu(&self) -> Cpu<'_> {
        Cpu::new(0, self.machine.kernel_ref(), &self.alone)
    }

    fn devices(&self) -> Vec<Arc<PciDevice>> {
        let bus: Arc<dyn PciBus> = self.bus.clone();
        let dma = |at: Bdf| {
            (at.device >= Qemu::place(0).device).then(|| DmaDevice::new(self.machine.kernel_ref(), &at.to_string()))
        };
        enumerate(&bus, dma).unwrap()
    }

    fn assert_clean(&self) {
        let kernel = self.machine.kernel();
        assert_eq!(self.bus.failure(), None);
        let findings: Vec<_> = kernel.findings().iter().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "{findings:#?}");
        let leaks = lowzone_guest_mem::stats::leaks(kernel);
        assert!(leaks.is_empty(), "{leaks:#?}");
        assert_eq!(self.alone.controller.vectors(), 0);
    }
}

fn small() -> MachineConfig {
    MachineConfig { ram: 512 << 20, low: 512 << 20, ..MachineConfig::default() }
}

/// Ends the emulator; what it printed.
fn end(rig: Rig) -> String {
    let Rig { bus, machine, .. } = rig;
    // The kernel holds the bus as well.
    drop(machine);
    Arc::into_inner(bus).unwrap().quit()
}
