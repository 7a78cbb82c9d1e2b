//! Interrupt lines of the kernel: `request_irq`, `request_threaded_irq`, `free_irq`, shared handlers.
//!
//! The bus decides which number an interrupt has; this table knows what runs for it. `free_irq` waits until no CPU
//! runs the handler any more and its thread has ended, so that what they use may be freed after it. Handlers run in
//! hard-interrupt context on the CPU that takes the interrupt, threads as tasks. Mirrors kernel/irq/manage.c.
//! Neighbours: `cpu` (delivery), the driver's `PciBus` (numbers). Left out: affinity, depth counts (`disable_irq`).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cpu::Cpu;
use crate::env::{Class, IrqHandler, Verdict};
use crate::kernel::KernelRef;
use crate::lock::Locked;
use crate::site::Owner;

mod desc;
mod error;
mod thread;

use desc::Action;
pub use desc::IrqDesc;
pub use error::{IrqError, IrqFlags, IrqMisuse};
pub use thread::IrqThread;
use thread::Threaded;

/// How long `free_irq` waits for a running handler.
const SYNC_TIMEOUT: u64 = 10_000_000_000;
/// What `request_irq` gives as its name.
const UNNAMED: &str = "driver";

/// The kernel's table of lines.
#[derive(Default)]
pub struct IrqTable {
    lines: Locked<BTreeMap<u32, Arc<IrqDesc>>>,
    /// Vectors, their CPUs and whose they are: messages, which need no mask while a thread runs
    /// (`IRQCHIP_ONESHOT_SAFE`).
    vectors: Locked<BTreeMap<u32, (u32, u16)>>,
    next_action: Locked<u64>,
}

impl IrqTable {
    /// What runs for `irq`, or `None` if nobody asked for it, the line was shut off or is masked until a thread ran.
    pub fn handler(&self, irq: u32) -> Option<Arc<dyn IrqHandler>> {
        let desc = self.line(irq)?;
        desc.open().then_some(desc as Arc<dyn IrqHandler>)
    }

    /// Whether `irq` is masked until a thread has run. Any context.
    pub fn masked(&self, irq: u32) -> bool {
        self.line(irq).is_some_and(|desc| desc.masked())
    }

    fn line(&self, irq: u32) -> Option<Arc<IrqDesc>> {
        self.lines.lock().get(&irq).cloned()
    }

    /// Every requested handler, by line: `(irq, owner)`.
    pub fn live(&self) -> Vec<(u32, Owner)> {
        let lines: Vec<_> = self.lines.lock().values().cloned().collect();
        lines.iter().flat_map(|desc| desc.owners().into_iter().map(|owner| (desc.irq, owner))).collect()
    }

    /// From now on `irq` is a message to CPU `cpu`, as PCI MSI is; only an interrupt controller says so.
    pub fn add_vector(&self, irq: u32, cpu: u32) {
        self.vectors.lock().insert(irq, (cpu, 0));
    }

    /// The vector `irq` was given to the device of this number in records, before anybody requests it.
    pub fn set_device(&self, irq: u32, dev: u16) {
        if let Some((_, of)) = self.vectors.lock().get_mut(&irq) {
            *of = dev;
        }
    }

    /// `irq` is a message no more.
    pub fn remove_vector(&self, irq: u32) {
        self.vectors.lock().remove(&irq);
    }

    fn vector(&self, irq: u32) -> Option<u32> {
        self.vectors.lock().get(&irq).map(|&(cpu, _)| cpu)
    }

    fn device(&self, irq: u32) -> u16 {
        self.vectors.lock().get(&irq).map_or(0, |&(_, dev)| dev)
    }

    pub(crate) fn reset(&self) {
        self.lines.lock().clear();
        self.vectors.lock().clear();
        *self.next_action.lock() = 0;
    }

    fn next_action(&self) -> u64 {
        let mut next = self.next_action.lock();
        *next += 1;
        *next
    }

    fn add(&self, irq: u32, action: Action, alone: bool) -> Result<Arc<IrqDesc>, IrqError> {
        let mut lines = self.lines.lock();
        let desc = lines.get(&irq).cloned().unwrap_or_else(|| Arc::new(IrqDesc::new(irq, self.device(irq))));
        desc.add(action, alone)?;
        lines.entry(irq).or_insert_with(|| desc.clone());
        Ok(desc)
    }

    fn remove(&self, desc: &IrqDesc, id: u64) {
        let mut lines = self.lines.lock();
        if desc.remove(id) {
            lines.remove(&desc.irq);
        }
    }
}

/// A requested interrupt; dropping it detaches the handler without waiting for it, and leaves its thread behind.
#[must_use = "the handler is detached when this is dropped"]
pub struct IrqLine {
    kernel: KernelRef,
    desc: Arc<IrqDesc>,
    id: u64,
    thread: Option<Threaded>,
    armed: bool,
}

/// Attaches `handler` to `irq`; several handlers may share a line (`request_irq` with IRQF_SHARED). Process context.
///
/// # Errors
/// [`IrqError::NoMemory`] when the world fails the point, [`IrqError::Mismatch`] on a line that isn't shared so.
#[track_caller]
pub fn request_irq(cpu: &Cpu<'_>, irq: u32, handler: Arc<dyn IrqHandler>) -> Result<IrqLine, IrqError> {
    request_threaded_irq(cpu, irq, Some(handler), None, IrqFlags::SHARED, UNNAMED)
}

/// Attaches a handler and a thread to `irq` (`request_threaded_irq`). Process context.
///
/// The handler runs first, in hard-interrupt context, and wakes the thread by [`IrqReturn::WakeThread`]; without a
/// handler every interrupt does. A line that is no PCI message needs [`IrqFlags::ONESHOT`] then: it stays masked until
/// the thread has run.
///
/// # Errors
/// [`IrqError`]: no memory for the note or the thread's stack, neither handler nor thread, a thread alone without
/// ONESHOT, or a line whose others asked for something else.
///
/// [`IrqReturn::WakeThread`]: crate::env::IrqReturn::WakeThread
///
/// ```
/// # use std::sync::Arc;
/// # use lowzone_guest_mem::Cpu;
/// # use lowzone_guest_mem::irq::{IrqError, IrqFlags, IrqLine, IrqThread, request_threaded_irq};
/// fn attach(cpu: &Cpu<'_>, irq: u32, thread: Arc<dyn IrqThread>) -> Result<IrqLine, IrqError> {
///     let bare = request_threaded_irq(cpu, irq, None, Some(thread.clone()), IrqFlags::empty(), "card");
///     assert_eq!(bare.err().map(|error| error.errno()), Some(-22));
///     request_threaded_irq(cpu, irq, None, Some(thread), IrqFlags::ONESHOT, "card")
/// }
/// ```
#[track_caller]
pub fn request_threaded_irq(
    cpu: &Cpu<'_>,
    irq: u32,
    handler: Option<Arc<dyn IrqHandler>>,
    thread: Option<Arc<dyn IrqThread>>,
    flags: IrqFlags,
    name: &'static str,
) -> Result<IrqLine, IrqError> {
    cpu.might_sleep("request_irq");
    let (owner, table) = (cpu.owner(), cpu.kernel().irqs());
    let alone = handler.is_none();
    if alone && thread.is_none() {
        return Err(IrqError::NoHandler { irq });
    }
    if cpu.point_for(Class::IrqVector, u64::from(irq), owner) == Verdict::Fail {
        return Err(IrqError::NoMemory { irq });
    }
    let vector = table.vector(irq);
    let flags = if vector.is_some() { flags - IrqFlags::ONESHOT } else { flags };
    let start = |function| Threaded::start(cpu, vector.unwrap_or(0), function);
    let thread = thread.map(start).transpose().map_err(|_| IrqError::NoMemory { irq })?;
    let handler = handler.unwrap_or_else(|| Arc::new(thread::Default));
    let id = table.next_action();
    let action = Action { id, handler, thread: thread.clone(), flags, name, owner };
    match table.add(irq, action, alone && vector.is_none()) {
        Ok(desc) => Ok(IrqLine { kernel: cpu.kernel_ref(), desc, id, thread, armed: true }),
        Err(error) => {
            if matches!(error, IrqError::NotOneshot { .. } | IrqError::Mismatch { .. }) {
                cpu.kernel().log().print(cpu.now(), &format!("genirq: {error}"));
            }
            thread.iter().for_each(|thread| thread.stop(cpu));
            Err(error)
        }
    }
}

/// Waits until no handler of `irq` runs and its threads have nothing left to do (`synchronize_irq`). Process context.
#[track_caller]
pub fn synchronize_irq(cpu: &Cpu<'_>, irq: u32) {
    cpu.might_sleep("synchronize_irq");
    if let Some(desc) = cpu.kernel().irqs().line(irq) {
        // Teardown ends the wait early; then nothing runs handlers any more either.
        let _ = desc.idle.wait_until_done(cpu, || desc.quiet());
    }
}

/// Raises an interrupt on this CPU as if its device had (`irq_inject_interrupt`); `false` if nobody asked for it.
///
/// It comes at the CPU's next point with interrupts on; while its line is masked it waits. Any context.
pub fn irq_inject_interrupt(cpu: &Cpu<'_>, irq: u32) -> bool {
    let irqs = cpu.kernel().irqs();
    let wanted = irqs.handler(irq).is_some() || irqs.masked(irq);
    if wanted {
        cpu.kernel().softirqs().inject(cpu.id(), irq);
    }
    wanted
}

/// Puts the level of a line as its device would: while it is high CPU 0 is interrupted again and again, at its points
/// with interrupts on. Any context.
pub fn irq_set_level(cpu: &Cpu<'_>, irq: u32, high: bool) {
    cpu.kernel().softirqs().set_level(irq, high);
}

impl IrqLine {
    /// The interrupt's number.
    pub fn irq(&self) -> u32 {
        self.desc.irq
    }

    /// Detaches the handler, waits until no CPU runs it, and ends its thread after the last turn (`free_irq`). Process
    /// context.
    #[track_caller]
    pub fn free(mut self, cpu: &Cpu<'_>) {
        if cpu.in_interrupt() {
            cpu.wrong_context(true, "free_irq", Some("any"));
        } else {
            cpu.might_sleep("free_irq");
        }
        self.detach();
        // Teardown ends the wait early; then nothing runs handlers any more either.
        let _ = self.desc.idle.wait_event_timeout(cpu, SYNC_TIMEOUT, || self.desc.no_handler_runs());
        if let Some(thread) = self.thread.take() {
            thread.stop(cpu);
        }
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
