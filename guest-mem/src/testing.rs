//! A world for unit tests: one machine, one CPU at a time, nobody else, virtual time.
//!
//! [`Solo`] is the smallest `Env` that keeps its rules: a park returns when its key was woken, when an interrupt or a
//! timer comes, or when virtual time has jumped to its deadline. Other actors are played by scripts: what is queued
//! with [`Solo::on_park`] runs when the CPU next has nothing to do, and so does a task, to its end. Left out: other CPUs' turns, yields.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;

use crate::cpu::Cpu;
use crate::dma::DmaDevice;
use crate::env::{Class, Env, IrqHandler, IrqReturn, Key, Point, Task, Ticket, Verdict, Wake};
use crate::fault::Request;
use crate::finding::Finding;
use crate::kernel::{Kernel, KernelRef, Machine, MachineConfig};
use crate::timer::Timers;

mod damage;
pub(crate) mod shadow;

type Script = Box<dyn FnOnce(&Solo)>;

/// The world.
pub(crate) struct Solo {
    kernel: KernelRef,
    now: Cell<u64>,
    tickets: Cell<u64>,
    waiting: RefCell<Vec<(Key, u64, bool)>>,
    irqs: RefCell<VecDeque<Arc<dyn IrqHandler>>>,
    scripts: RefCell<VecDeque<Script>>,
    tasks: RefCell<VecDeque<Task>>,
    dying: Cell<bool>,
    /// Fails the point that may fail with this number, from 0.
    fail: Cell<Option<u64>>,
    passed: RefCell<Vec<Request>>,
    parks: Cell<u32>,
}

impl Solo {
    fn new(kernel: KernelRef) -> Self {
        Self {
            kernel,
            now: Cell::new(0),
            tickets: Cell::new(0),
            waiting: RefCell::default(),
            irqs: RefCell::default(),
            scripts: RefCell::default(),
            tasks: RefCell::default(),
            dying: Cell::new(false),
            fail: Cell::new(None),
            passed: RefCell::default(),
            parks: Cell::new(0),
        }
    }

    /// Jumps to a time.
    pub(crate) fn set_now(&self, now: u64) {
        self.now.set(now);
        if let Some(kernel) = self.kernel.get() {
            kernel.set_clock(now);
        }
    }

    /// Makes an interrupt pending; it is taken at the next point where interrupts are on.
    pub(crate) fn raise(&self, handler: Arc<dyn IrqHandler>) {
        self.irqs.borrow_mut().push_back(handler);
    }

    /// Interrupts not yet taken.
    pub(crate) fn pending(&self) -> usize {
        self.irqs.borrow().len()
    }

    /// Runs `script` when the CPU next parks and has to wait.
    pub(crate) fn on_park(&self, script: impl FnOnce(&Self) + 'static) {
        self.scripts.borrow_mut().push_back(Box::new(script));
    }

    /// From now on every park that has to wait ends with `Dying`.
    pub(crate) fn die(&self) {
        self.dying.set(true);
    }

    /// Fails the `nth` point that may fail, counted from 0 and from now.
    pub(crate) fn fail_nth(&self, nth: u64) {
        self.fail.set(Some(nth));
    }

    /// The classes of the points passed since the last call.
    pub(crate) fn points(&self) -> Vec<Class> {
        self.requests().iter().map(|request| request.class).collect()
    }

    /// What was asked at the points passed since the last call.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.passed.take()
    }

    /// How often the CPU really had to wait.
    pub(crate) fn parks(&self) -> u32 {
        self.parks.get()
    }

    fn take_ticket(&self, number: u64, unless_woken: bool) -> Option<bool> {
        let mut waiting = self.waiting.borrow_mut();
        let index = waiting.iter().position(|w| w.1 == number)?;
        let woken = waiting[index].2;
        if woken || !unless_woken {
            waiting.remove(index);
        }
        Some(woken)
    }

    fn timer_due(&self) -> bool {
        let next = self.kernel.get().and_then(|kernel| kernel.timers().next());
        next.is_some_and(|at| at <= self.now.get())
    }
}

impl Env for Solo {
    fn now(&self) -> u64 {
        self.now.get()
    }

    fn prepare(&self, on: Key) -> Ticket {
        let number = self.tickets.get();
        self.tickets.set(number + 1);
        self.waiting.borrow_mut().push((on, number, false));
        Ticket::new(number)
    }

    fn park(&self, ticket: Ticket, until: Option<u64>) -> Wake {
        loop {
            if self.take_ticket(ticket.number, true) != Some(false) {
                return Wake::Woken;
            }
            if until.is_some_and(|at| at <= self.now.get()) {
                self.take_ticket(ticket.number, false);
                return Wake::TimedOut;
            }
            if self.dying.get() {
                self.take_ticket(ticket.number, false);
                return Wake::Dying;
            }
            if !ticket.irqs_off && (self.pending() > 0 || self.timer_due()) {
                return Wake::Irq;
            }
            self.parks.set(self.parks.get() + 1);
            let script = self.scripts.borrow_mut().pop_front();
            if let Some(script) = script {
                script(self);
                continue;
            }
            let task = self.tasks.borrow_mut().pop_front();
            if let Some(Task { cpu, number, body }) = task {
                body(&Cpu::of_task(cpu, number, self.kernel, self));
                continue;
            }
            let timer = self.kernel.get().and_then(|kernel| kernel.timers().next()).filter(|_| !ticket.irqs_off);
            match [timer, until].into_iter().flatten().min() {
                Some(at) => self.set_now(at),
                None => panic!("parked for ever"),
            }
        }
    }

    fn wake(&self, on: Key, n: usize) {
        self.waiting.borrow_mut().iter_mut().filter(|w| w.0 == on && !w.2).take(n).for_each(|w| w.2 = true);
    }

    fn take_irq(&self) -> Option<Arc<dyn IrqHandler>> {
        let queued = self.irqs.borrow_mut().pop_front();
        queued.or_else(|| self.timer_due().then(Timers::interrupt))
    }

    fn point(&self, point: Point) -> Verdict {
        self.passed.borrow_mut().push(point.request);
        match self.fail.get() {
            Some(left) if point.request.class.may_fail() => {
                self.fail.set(left.checked_sub(1));
                if left == 0 { Verdict::Fail } else { Verdict::Pass }
            }
            _ => Verdict::Pass,
        }
    }

    fn emit(&self, finding: Finding) {
        if let Some(kernel) = self.kernel.get() {
            kernel.report(finding);
        }
    }

    fn spawn(&self, task: Task) -> bool {
        self.tasks.borrow_mut().push_back(task);
        true
    }
}

/// A machine and its world.
pub(crate) struct Lab {
    // Before the machine: scripts and handlers may hold what lives on it.
    pub(crate) solo: Solo,
    pub(crate) machine: Machine,
}

impl Lab {
    /// The default machine: 6 GiB, 3 of them low.
    pub(crate) fn new() -> Self {
        Self::of(MachineConfig::default())
    }

    /// A machine of a kind.
    pub(crate) fn of(config: MachineConfig) -> Self {
        let machine = Machine::acquire(config).unwrap();
        Self { solo: Solo::new(machine.kernel_ref()), machine }
    }

    /// The machine of a boot that was measured, as the DMA tables name them.
    pub(crate) fn boot(name: &str) -> Self {
        let plain = MachineConfig::default();
        Self::of(match name {
            "main" | "dma" | "dmadebug" | "swfull" => plain,
            "force" => MachineConfig { swiotlb_force: true, ..plain },
            "noforce" => MachineConfig { swiotlb: 0, ..plain },
            "small" => MachineConfig { ram: 1 << 30, ..plain },
            "sw1area" => MachineConfig { cpus: 1, ..plain },
            "sw2048" => MachineConfig { swiotlb: 2048 * crate::dma::swiotlb::SLOT_SIZE, ..plain },
            other => panic!("no boot {other}"),
        })
    }

    /// CPU 0.
    pub(crate) fn cpu(&self) -> Cpu<'_> {
        self.cpu_number(0)
    }

    /// Another CPU of the same world; only one may park at a time.
    pub(crate) fn cpu_number(&self, id: u32) -> Cpu<'_> {
        Cpu::new(id, self.machine.kernel_ref(), &self.solo)
    }

    /// Its kernel.
    pub(crate) fn kernel(&self) -> &'static Kernel {
        self.machine.kernel()
    }

    /// A device with a promise of so many bits, in both masks.
    pub(crate) fn device(&self, bits: u8) -> DmaDevice {
        let device = DmaDevice::new(self.machine.kernel_ref(), "0000:00:04.0");
        device.set_mask_and_coherent(&self.cpu(), crate::dma::dma_bit_mask(bits)).unwrap();
        device
    }

    /// The names of all findings so far, in order.
    pub(crate) fn findings(&self) -> Vec<&'static str> {
        self.kernel().findings().iter().map(|finding| finding.kind.name()).collect()
    }

    /// The texts of the kernel's log.
    pub(crate) fn log(&self) -> Vec<String> {
        self.kernel().log().lines().into_iter().map(|line| line.text).collect()
    }

    /// What is still live, by kind.
    pub(crate) fn leaks(&self) -> Vec<crate::finding::Resource> {
        crate::stats::leaks(self.kernel()).iter().map(|leak| leak.resource).collect()
    }
}

/// A handler made of a closure.
pub(crate) struct Handler<F>(pub(crate) F);

impl<F: Fn(&Cpu<'_>) -> IrqReturn + Send + Sync> IrqHandler for Handler<F> {
    fn hardirq(&self, cpu: &Cpu<'_>) -> IrqReturn {
        (self.0)(cpu)
    }
}

/// A handler that runs `body` and claims the interrupt.
pub(crate) fn handler(body: impl Fn(&Cpu<'_>) + Send + Sync + 'static) -> Arc<dyn IrqHandler> {
    Arc::new(Handler(move |cpu: &Cpu<'_>| {
        body(cpu);
        IrqReturn::Handled
    }))
}

/// The rows of a golden table: its cells by column name.
pub(crate) fn rows(table: &'static str) -> impl Iterator<Item = Row> {
    let mut lines = table.lines();
    let names: Vec<_> = lines.next().unwrap().split('\t').collect();
    lines.map(move |line| Row { names: names.clone(), cells: line.split('\t').collect(), line })
}

/// One row of a golden table.
pub(crate) struct Row {
    names: Vec<&'static str>,
    cells: Vec<&'static str>,
    pub(crate) line: &'static str,
}

impl Row {
    /// A cell; empty where the table has none.
    pub(crate) fn get(&self, name: &str) -> &'static str {
        let index = self.names.iter().position(|n| *n == name).unwrap_or_else(|| panic!("no column {name}"));
        self.cells.get(index).copied().unwrap_or("")
    }

    /// A cell as a number, decimal or `0x`; `None` if it is empty.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        let cell = self.get(name);
        let parsed = match cell.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => cell.parse(),
        };
        (!cell.is_empty()).then(|| parsed.unwrap())
    }
}

/// What was computed for a row, by column.
pub(crate) type Computed = Vec<(&'static str, String)>;

/// Compares every row's `columns` that are not empty with what is computed for it; how many rows there were.
///
/// A column that has a cell and is not computed differs.
pub(crate) fn compare(table: &'static str, columns: &[&str], mut compute: impl FnMut(&Row) -> Computed) -> usize {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for row in rows(table) {
        let computed = compute(&row);
        count += 1;
        for &column in columns.iter().filter(|&&column| !row.get(column).is_empty()) {
            let seen = computed.iter().find(|(name, _)| *name == column).map(|(_, value)| value.as_str());
            if seen != Some(row.get(column)) {
                wrong.push(format!("{}\n    {column}: {seen:?}", row.line));
            }
        }
    }
    assert!(wrong.is_empty(), "{} cells differ:\n{}", wrong.len(), wrong.join("\n"));
    count
}
