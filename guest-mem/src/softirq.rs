//! Softirqs: what an interrupt handler leaves to be done once it has returned.
//!
//! [`Cpu::raise_softirq`] marks one on this CPU; they run when the outermost handler returns (`irq_exit`), when
//! softirqs are turned on again (`local_bh_enable`), and, where neither is near, at the CPU's next point or wait, which
//! is what ksoftirqd is for. They never run over each other on one CPU. Mirrors kernel/softirq.c.
//! Neighbours: `cpu`, `timer`, `tasklet`. Left out: softirqs of the network and block layers, ksoftirqd as a task.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cpu::Cpu;
use crate::env::IrqHandler;
use crate::lock::Locked;
use crate::tasklet::Queued;

/// How often softirqs that raise each other are run in one go (`MAX_SOFTIRQ_RESTART`); then others get a turn.
const MAX_RESTART: u32 = 10;
/// An interrupt was injected: kept in the same word, so that a point looks at one.
const INJECTED: u32 = 1 << 31;

/// A kind of softirq, with Linux's numbers; the lower runs first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Softirq {
    /// Tasklets of high priority (`HI_SOFTIRQ`).
    Hi = 0,
    /// Timers (`TIMER_SOFTIRQ`).
    Timer = 1,
    /// Tasklets (`TASKLET_SOFTIRQ`).
    Tasklet = 6,
}

impl Softirq {
    const ALL: [Self; 3] = [Self::Hi, Self::Timer, Self::Tasklet];

    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// Interrupts that were raised by a call.
#[derive(Default)]
struct Injected {
    edges: VecDeque<u32>,
    /// Lines that are high.
    levels: BTreeSet<u32>,
}

impl Injected {
    fn clear(&mut self) {
        self.edges.clear();
        self.levels.clear();
    }

    fn is_empty(&self) -> bool {
        self.edges.is_empty() && self.levels.is_empty()
    }
}

/// What waits on one CPU.
#[derive(Default)]
struct Local {
    pending: AtomicU32,
    injected: Locked<Injected>,
    hi: Locked<VecDeque<Queued>>,
    tasklets: Locked<VecDeque<Queued>>,
}

/// What waits on each CPU of a kernel.
pub(crate) struct Softirqs {
    cpus: Vec<Local>,
}

impl Softirqs {
    /// Nothing waits, on so many CPUs.
    pub(crate) fn new(cpus: u32) -> Self {
        Self { cpus: (0..cpus).map(|_| Local::default()).collect() }
    }

    pub(crate) fn reset(&self) {
        for local in &self.cpus {
            local.pending.store(0, Ordering::Relaxed);
            local.injected.lock().clear();
            local.hi.lock().clear();
            local.tasklets.lock().clear();
        }
    }

    fn local(&self, cpu: u32) -> Option<&Local> {
        self.cpus.get(usize::try_from(cpu).ok()?)
    }

    /// Whether anything waits on a CPU: one load.
    pub(crate) fn any(&self, cpu: u32) -> bool {
        self.pending(cpu) != 0
    }

    fn pending(&self, cpu: u32) -> u32 {
        self.local(cpu).map_or(0, |local| local.pending.load(Ordering::Relaxed))
    }

    fn mark(&self, cpu: u32, bits: u32) {
        if let Some(local) = self.local(cpu) {
            local.pending.fetch_or(bits, Ordering::Relaxed);
        }
    }

    /// Queues a tasklet on a CPU and raises its softirq there.
    pub(crate) fn queue(&self, cpu: u32, kind: Softirq, tasklet: Queued) {
        if let Some(queue) = self.tasklets(cpu, kind) {
            queue.lock().push_back(tasklet);
            self.mark(cpu, kind.bit());
        }
    }

    fn tasklets(&self, cpu: u32, kind: Softirq) -> Option<&Locked<VecDeque<Queued>>> {
        let local = self.local(cpu)?;
        Some(if kind == Softirq::Hi { &local.hi } else { &local.tasklets })
    }

    /// Every tasklet that waits to run: CPU and owner.
    pub(crate) fn live(&self) -> Vec<(u32, crate::site::Owner)> {
        let queues = (0_u32..).zip(&self.cpus).flat_map(|(cpu, local)| [(cpu, &local.hi), (cpu, &local.tasklets)]);
        queues.flat_map(|(cpu, queue)| queue.lock().iter().map(|t| (cpu, t.owner())).collect::<Vec<_>>()).collect()
    }

    /// Makes an interrupt pending on a CPU as if its device had raised it.
    pub(crate) fn inject(&self, cpu: u32, irq: u32) {
        if let Some(local) = self.local(cpu) {
            local.injected.lock().edges.push_back(irq);
            self.mark(cpu, INJECTED);
        }
    }

    /// Puts a line high or low; lines go to CPU 0.
    pub(crate) fn set_level(&self, irq: u32, high: bool) {
        let Some(local) = self.local(0) else { return };
        let levels = &mut local.injected.lock().levels;
        if high {
            levels.insert(irq);
            self.mark(0, INJECTED);
        } else {
            levels.remove(&irq);
        }
    }

    /// What waited elsewhere for a line that was masked comes to the CPU that opened it.
    pub(crate) fn bring(&self, cpu: u32, irq: u32) {
        let mut waited = false;
        for local in &self.cpus {
            if local.pending.load(Ordering::Relaxed) & INJECTED != 0 {
                let edges = &mut local.injected.lock().edges;
                let before = edges.len();
                edges.retain(|&edge| edge != irq);
                waited |= edges.len() < before;
            }
        }
        if waited {
            self.inject(cpu, irq);
        }
    }

    /// The handler of the next injected interrupt; those of masked lines wait, those that nobody wants are lost.
    pub(crate) fn take_injected(&self, cpu: &Cpu<'_>) -> Option<Arc<dyn IrqHandler>> {
        if self.pending(cpu.id()) & INJECTED == 0 {
            return None;
        }
        let local = self.local(cpu.id())?;
        let irqs = cpu.kernel().irqs();
        let mut injected = local.injected.lock();
        let mut next = None;
        while next.is_none()
            && let Some(at) = injected.edges.iter().position(|&irq| !irqs.masked(irq))
        {
            next = injected.edges.remove(at).and_then(|irq| irqs.handler(irq));
        }
        let next = next.or_else(|| injected.levels.iter().find_map(|&irq| irqs.handler(irq)));
        if injected.is_empty() {
            local.pending.fetch_and(!INJECTED, Ordering::Relaxed);
        }
        next
    }
}

impl Cpu<'_> {
    /// Has a softirq run on this CPU as soon as it may (`raise_softirq`). Any context.
    pub fn raise_softirq(&self, kind: Softirq) {
        self.kernel().softirqs().mark(self.id(), kind.bit());
    }

    /// The softirqs that wait on this CPU, a bit each (`local_softirq_pending`). Any context.
    pub fn local_softirq_pending(&self) -> u32 {
        self.kernel().softirqs().pending(self.id()) & !INJECTED
    }

    /// Runs what waits, unless a softirq is what runs here or softirqs are off.
    pub(crate) fn run_softirqs(&self) {
        let softirqs = self.kernel().softirqs();
        for _ in 0..MAX_RESTART {
            if self.local_softirq_pending() == 0 || self.in_interrupt() || self.irqs_disabled() {
                return;
            }
            let Some(local) = softirqs.local(self.id()) else { return };
            let pending = local.pending.fetch_and(INJECTED, Ordering::Relaxed);
            let _level = self.softirq_level();
            for kind in Softirq::ALL.into_iter().filter(|kind| pending & kind.bit() != 0) {
                match kind {
                    Softirq::Timer => self.kernel().timers().run_expired(self),
                    Softirq::Hi | Softirq::Tasklet => self.run_tasklets(softirqs, kind),
                }
            }
        }
    }

    fn run_tasklets(&self, softirqs: &Softirqs, kind: Softirq) {
        let Some(queue) = softirqs.tasklets(self.id(), kind) else { return };
        // Those that are queued meanwhile are for the next round.
        let round = std::mem::take(&mut *queue.lock());
        for tasklet in round {
            tasklet.action(self, kind);
        }
    }
}

#[cfg(test)]
mod tests;
