//! Interrupt lines of the kernel: `request_irq`, `free_irq`, shared handlers.
//!
//! The bus decides which number an interrupt has; this table knows what runs for it. `free_irq` waits until no CPU
//! runs the handler any more, so that what the handler uses may be freed after it. Handlers run in hard-interrupt
//! context on the CPU that takes the interrupt. Mirrors kernel/irq/manage.c and handle.c.
//! Neighbours: `cpu` (delivery), the driver's `PciBus` (numbers). Left out: threaded handlers, affinity, depth counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use thiserror::Error;

use crate::cpu::Cpu;
use crate::env::{Class, IrqHandler, IrqReturn, Verdict};
use crate::finding::FindingKind;
use crate::kernel::KernelRef;
use crate::lock::Locked;
use crate::site::Owner;
use crate::trace::Kind;
use crate::wait::WaitQueue;

/// After this many unclaimed interrupts in a row a line is shut off (kernel/irq/spurious.c counts 100,000 a second).
const NOBODY_CARED: u32 = 1000;
/// How long `free_irq` waits for a running handler.
const SYNC_TIMEOUT: u64 = 10_000_000_000;

/// Why an interrupt could not be requested.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum IrqError {
    /// No descriptor could be allocated (`-ENOMEM`).
    #[error("no memory for the handler of irq {irq}")]
    NoMemory {
        /// The interrupt.
        irq: u32,
    },
}

struct Action {
    id: u64,
    handler: Arc<dyn IrqHandler>,
    owner: Owner,
}

/// One line: everything that runs when it fires.
pub struct IrqDesc {
    irq: u32,
    actions: Locked<Vec<Action>>,
    running: AtomicU32,
    unclaimed: AtomicU32,
    idle: WaitQueue,
}

impl IrqHandler for IrqDesc {
    fn hardirq(&self, cpu: &Cpu<'_>) -> IrqReturn {
        self.running.fetch_add(1, Ordering::Acquire);
        let running = Running { desc: self, cpu };
        cpu.trace(Kind::IrqEntry, u64::from(self.irq), 0, 0, 0);
        let mut claimed = IrqReturn::None;
        let mut last = 0;
        // By number, not by place: another CPU may detach a handler in between.
        while let Some((id, handler, owner)) = self.after(last) {
            cpu.set_atomic_since(owner);
            if handler.hardirq(cpu) == IrqReturn::Handled {
                claimed = IrqReturn::Handled;
            }
            last = id;
        }
        cpu.trace(Kind::IrqExit, u64::from(self.irq), 0, 0, 0);
        drop(running);
        self.count_unclaimed(cpu, claimed);
        claimed
    }
}

/// A line's handlers run on this CPU; over when they return, and when they unwind.
struct Running<'a, 'w> {
    desc: &'a IrqDesc,
    cpu: &'a Cpu<'w>,
}

impl Drop for Running<'_, '_> {
    fn drop(&mut self) {
        if self.desc.running.fetch_sub(1, Ordering::Release) == 1 {
            self.desc.idle.wake_up_all(self.cpu);
        }
    }
}

impl IrqDesc {
    /// The next handler by number; numbers ascend.
    fn after(&self, last: u64) -> Option<(u64, Arc<dyn IrqHandler>, Owner)> {
        let actions = self.actions.lock();
        actions.iter().find(|a| a.id > last).map(|a| (a.id, a.handler.clone(), a.owner))
    }

    fn count_unclaimed(&self, cpu: &Cpu<'_>, claimed: IrqReturn) {
        if claimed == IrqReturn::Handled {
            self.unclaimed.store(0, Ordering::Relaxed);
        } else if self.unclaimed.fetch_add(1, Ordering::Relaxed) + 1 == NOBODY_CARED {
            let owners = self.actions.lock().iter().map(|a| ("requested at", a.owner)).collect();
            cpu.emit(FindingKind::NobodyCared { irq: self.irq }, None, owners);
        }
    }
}

/// The kernel's table of lines.
#[derive(Default)]
pub struct IrqTable {
    lines: Locked<BTreeMap<u32, Arc<IrqDesc>>>,
    next_action: Locked<u64>,
}

impl IrqTable {
    /// What runs for `irq`, or `None` if nobody asked for it or the line was shut off.
    pub fn handler(&self, irq: u32) -> Option<Arc<dyn IrqHandler>> {
        let desc = self.lines.lock().get(&irq).cloned()?;
        (desc.unclaimed.load(Ordering::Relaxed) < NOBODY_CARED).then_some(desc as Arc<dyn IrqHandler>)
    }

    /// Every requested handler, by line: `(irq, owner)`.
    pub fn live(&self) -> Vec<(u32, Owner)> {
        let lines: Vec<_> = self.lines.lock().values().cloned().collect();
        lines.iter().flat_map(|d| d.actions.lock().iter().map(|a| (d.irq, a.owner)).collect::<Vec<_>>()).collect()
    }

    pub(crate) fn reset(&self) {
        self.lines.lock().clear();
        *self.next_action.lock() = 0;
    }

    fn add(&self, irq: u32, handler: Arc<dyn IrqHandler>, owner: Owner) -> (Arc<IrqDesc>, u64) {
        let id = {
            let mut next = self.next_action.lock();
            *next += 1;
            *next
        };
        let fresh = || {
            Arc::new(IrqDesc {
                irq,
                actions: Locked::default(),
                running: AtomicU32::new(0),
                unclaimed: AtomicU32::new(0),
                idle: WaitQueue::new(),
            })
        };
        let desc = self.lines.lock().entry(irq).or_insert_with(fresh).clone();
        desc.actions.lock().push(Action { id, handler, owner });
        (desc, id)
    }

    fn remove(&self, desc: &IrqDesc, id: u64) {
        let mut lines = self.lines.lock();
        let mut actions = desc.actions.lock();
        actions.retain(|a| a.id != id);
        if actions.is_empty() {
            lines.remove(&desc.irq);
        }
    }
}

/// A requested interrupt; dropping it detaches the handler without waiting for it.
#[must_use = "the handler is detached when this is dropped"]
pub struct IrqLine {
    kernel: KernelRef,
    desc: Arc<IrqDesc>,
    id: u64,
    armed: bool,
}

/// Attaches `handler` to `irq`; several handlers may share a line (`request_irq` with IRQF_SHARED). Process context.
///
/// # Errors
/// [`IrqError::NoMemory`] when the world fails the point.
#[track_caller]
pub fn request_irq(cpu: &Cpu<'_>, irq: u32, handler: Arc<dyn IrqHandler>) -> Result<IrqLine, IrqError> {
    cpu.might_sleep("request_irq");
    let owner = cpu.owner();
    if cpu.point_for(Class::IrqVector, u64::from(irq), owner) == Verdict::Fail {
        return Err(IrqError::NoMemory { irq });
    }
    let (desc, id) = cpu.kernel().irqs().add(irq, handler, owner);
    Ok(IrqLine { kernel: cpu.kernel_ref(), desc, id, armed: true })
}

/// Raises an interrupt on this CPU as if its device had (`irq_inject_interrupt`); `false` if nobody asked for it.
///
/// It comes at the CPU's next point with interrupts on. Any context.
pub fn irq_inject_interrupt(cpu: &Cpu<'_>, irq: u32) -> bool {
    let wanted = cpu.kernel().irqs().handler(irq).is_some();
    if wanted {
        cpu.kernel().softirqs().inject(cpu.id(), irq);
    }
    wanted
}

impl IrqLine {
    /// The interrupt's number.
    pub fn irq(&self) -> u32 {
        self.desc.irq
    }

    /// Detaches the handler and waits until no CPU runs it (`free_irq`). Process context.
    #[track_caller]
    pub fn free(mut self, cpu: &Cpu<'_>) {
        if cpu.in_interrupt() {
            cpu.wrong_context(true, "free_irq", Some("any"));
        } else {
            cpu.might_sleep("free_irq");
        }
        self.detach();
        // Teardown ends the wait early; then nothing runs handlers any more either.
        let _ = self.desc.idle.wait_event_timeout(cpu, SYNC_TIMEOUT, || self.desc.running.load(Ordering::Acquire) == 0);
    }

    fn detach(&mut self) {
        if std::mem::take(&mut self.armed)
            && let Some(kernel) = self.kernel.get()
        {
            kernel.irqs().remove(&self.desc, self.id);
        }
    }
}

impl Drop for IrqLine {
    fn drop(&mut self) {
        self.detach();
    }
}

#[cfg(test)]
mod tests;
