//! `&Cpu`: the simulated CPU that runs this code, its context, and the way to its kernel and world.
//!
//! Linux reads `current` and `preempt_count` from nowhere; here every call that may sleep, fail, be interrupted or be
//! blamed takes a `&Cpu`. It counts what Linux's `preempt_count` counts, so that a sleeping call under a lock or in a
//! handler is seen at once ([`Cpu::might_sleep`]), and it delivers interrupts on its own stack whenever they are
//! enabled. Barriers are its methods, so that a weak-memory world can give them meaning; on threads they are the fences
//! of the same name, which cost lockstep nothing but `mb`.
//!
//! A `Cpu` is `!Sync`: it lives in its coroutine or thread. Neighbours: `env`, `lock`, `irq`. Left out: tasks (a CPU
//! runs one), NMI, RCU.

use std::cell::Cell;
use std::panic::{Location, resume_unwind};
use std::sync::atomic::{Ordering, fence};

use crate::env::{Class, Env, Key, Point, Ticket, Verdict, Wake};
use crate::fault::{Caller, Request};
use crate::finding::{Finding, FindingKind};
use crate::kernel::{Kernel, KernelRef};
use crate::lock;
use crate::site::{Owner, Scope, Site};
use crate::trace::{Kind, Producer, Record, owner_word};

/// preempt_count's unit for one softirq level (bits 8-15).
const SOFTIRQ: u32 = 0x100;
/// preempt_count's unit for one hardirq level (bits 16-19).
const HARDIRQ: u32 = 0x1_0000;

/// Carried by the unwinding of a CPU that can't go on; no message is printed for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Halt {
    /// The world tears the CPU down.
    Dying,
    /// The CPU waits for a lock that it holds itself: on hardware it would spin for ever.
    SelfDeadlock,
    /// The code on it was killed in the middle, as by an oops.
    Oops,
}

/// The CPU that runs this code.
///
/// ```
/// # use lowzone_guest_mem::Cpu;
/// use lowzone_guest_mem::lock::SpinLock;
///
/// fn count(cpu: &Cpu<'_>, counter: &SpinLock<u32>) -> u32 {
///     let _span = cpu.span("count");
///     let mut value = counter.lock_irqsave(cpu);
///     assert!(cpu.in_atomic() && cpu.irqs_disabled());
///     *value += 1;
///     *value
/// }
/// ```
pub struct Cpu<'w> {
    id: u32,
    preempt_count: Cell<u32>,
    irq_off: Cell<u32>,
    softirq_pending: Cell<bool>,
    scope: Cell<Scope>,
    /// Where the outermost atomic section began: the second call site of a sleep-in-atomic finding.
    atomic_since: Cell<Owner>,
    kernel: KernelRef,
    env: &'w dyn Env,
}

/// An open span; it closes when dropped.
#[must_use = "a span closes when it is dropped"]
pub struct Span<'a> {
    scope: &'a Cell<Scope>,
    outer: Scope,
}

impl Drop for Span<'_> {
    fn drop(&mut self) {
        self.scope.set(self.outer);
    }
}

impl<'w> Cpu<'w> {
    /// The handle for CPU `id` of `kernel`, run by `env`. Only a world makes one.
    pub fn new(id: u32, kernel: KernelRef, env: &'w dyn Env) -> Self {
        Self {
            id,
            preempt_count: Cell::new(0),
            irq_off: Cell::new(0),
            softirq_pending: Cell::new(false),
            scope: Cell::new(Scope::ROOT),
            atomic_since: Cell::new(Owner::default()),
            kernel,
            env,
        }
    }

    /// The CPU's number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The kernel it runs.
    pub fn kernel(&self) -> &'static Kernel {
        self.kernel.get_unchecked()
    }

    /// A handle to the kernel, to be kept in buffers and devices.
    pub fn kernel_ref(&self) -> KernelRef {
        self.kernel
    }

    /// Nanoseconds since the world began.
    pub fn now(&self) -> u64 {
        self.env.now()
    }

    /// Opens a named span: part of every owner, and of a point's identity, until the guard is dropped.
    pub fn span(&self, name: &'static str) -> Span<'_> {
        let outer = self.scope.get();
        self.scope.set(outer.enter(name));
        Span { scope: &self.scope, outer }
    }

    /// The caller's line and the open spans.
    #[track_caller]
    pub fn owner(&self) -> Owner {
        Owner { site: Site::of(Location::caller()), scope: self.scope.get() }
    }

    /// Linux's preempt_count: locks in bits 0-7, softirq in 8-15, hardirq in 16-19.
    pub fn preempt_count(&self) -> u32 {
        self.preempt_count.get()
    }

    /// Whether interrupts are off on this CPU (`irqs_disabled`).
    pub fn irqs_disabled(&self) -> bool {
        self.irq_off.get() > 0 || self.in_hardirq()
    }

    /// Whether a hard-interrupt handler runs (`in_hardirq`).
    pub fn in_hardirq(&self) -> bool {
        self.preempt_count.get() >= HARDIRQ
    }

    /// Whether neither a softirq nor a hard-interrupt handler runs (`in_task`).
    pub fn in_task(&self) -> bool {
        self.preempt_count.get() < SOFTIRQ
    }

    /// Whether sleeping is forbidden here.
    pub fn in_atomic(&self) -> bool {
        self.preempt_count.get() != 0 || self.irqs_disabled()
    }

    /// Complains if the caller may not sleep here; then goes on, as Linux does (`might_sleep`).
    #[track_caller]
    pub fn might_sleep(&self, what: &'static str) {
        if self.in_atomic() {
            let kind = FindingKind::SleepInAtomic {
                what,
                preempt_count: self.preempt_count(),
                irqs_disabled: self.irqs_disabled(),
            };
            let sites = vec![("called at", self.owner()), ("atomic since", self.atomic_since.get())];
            self.emit(kind, None, sites);
        }
    }

    /// Passes a point for `size` bytes, or what else its class counts: the world may run others, deliver interrupts
    /// here, or ask for a failure.
    #[track_caller]
    pub fn point(&self, class: Class, size: u64) -> Verdict {
        self.point_for(class, size, self.owner())
    }

    /// [`Cpu::point`] on behalf of `owner`.
    pub fn point_for(&self, class: Class, size: u64, owner: Owner) -> Verdict {
        self.pass(Request::new(class, size), owner, true)
    }

    /// Passes the point of a request; only injection can fail it where `natural` is unset.
    pub(crate) fn pass(&self, request: Request, owner: Owner, natural: bool) -> Verdict {
        let held = lock::held();
        if held > 0 {
            self.emit(FindingKind::LabLockHeld { held }, None, vec![("at", owner)]);
        }
        let caller = if self.in_task() { Caller::Task } else { Caller::Interrupt };
        let verdict = self.env.point(Point { request: request.by(caller), owner, natural });
        self.irq_window();
        verdict
    }

    /// Writes one event record.
    pub fn trace(&self, kind: Kind, addr: u64, len: usize, dev: u16, tag: u64) {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.kernel().trace().emit(self.producer(), Record { ts: self.env.now(), addr, len, kind, dev, tag });
    }

    /// [`Cpu::trace`], with `owner` as the one who made the call.
    pub(crate) fn trace_by(&self, event: (Kind, u64, usize), dev: u16, tag: u64, owner: Owner) {
        self.trace_with(event, dev, tag, &[(Kind::By, 0, 0, owner)]);
    }

    /// [`Cpu::trace`], with the rest of the event: kind, address, length and owner of each detail.
    pub(crate) fn trace_with(&self, event: (Kind, u64, usize), dev: u16, tag: u64, rest: &[(Kind, u64, u32, Owner)]) {
        let (kind, addr, len) = event;
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let event = Record { ts: self.env.now(), addr, len, kind, dev, tag };
        let details =
            rest.iter().map(|&(kind, addr, len, owner)| Record { addr, len, kind, tag: owner_word(owner), ..event });
        self.kernel().trace().emit_with(self.producer(), event, details);
    }

    /// The CPU's own ring of records.
    pub fn producer(&self) -> Producer {
        Producer(u16::try_from(self.id).unwrap_or(u16::MAX))
    }

    /// Reports a finding seen on this CPU.
    pub fn emit(&self, kind: FindingKind, device: Option<String>, sites: Vec<(&'static str, Owner)>) {
        self.env.emit(Finding { kind, device, at: self.env.now(), sites });
    }

    /// Reports a use of `what` whose machine was recycled.
    #[track_caller]
    pub fn stale(&self, what: &'static str) {
        self.emit(FindingKind::Stale { what }, None, vec![("used at", self.owner())]);
    }

    pub(crate) fn prepare(&self, on: Key) -> Ticket {
        self.env.prepare(on)
    }

    pub(crate) fn wake(&self, on: Key, n: usize) {
        self.env.wake(on, n);
    }

    /// Parks until woken, timed out or dying; interrupts are taken meanwhile.
    pub(crate) fn park(&self, ticket: Ticket, until: Option<u64>) -> Wake {
        let ticket = Ticket { irqs_off: self.irqs_disabled(), ..ticket };
        loop {
            match self.env.park(ticket, until) {
                Wake::Irq => self.irq_window(),
                wake => {
                    self.irq_window();
                    return wake;
                }
            }
        }
    }

    /// Does nothing but take interrupts, until the world tears the CPU down (the idle task).
    pub fn idle(&self) {
        let key = Key::fresh();
        // A new ticket each time: a handler that waited for a lock used the last one up.
        while self.park(self.prepare(key), None) != Wake::Dying {}
    }

    /// Takes every interrupt that is pending, if they are enabled: what the idle task of a world does between waits.
    pub fn take_interrupts(&self) {
        self.irq_window();
    }

    /// Takes a ticket back that will not be parked on.
    pub(crate) fn cancel(&self, ticket: Ticket) {
        self.env.park(ticket, Some(0));
    }

    /// Unwinds this CPU: it can never go on.
    pub(crate) fn halt(&self, why: Halt) -> ! {
        resume_unwind(Box::new(why))
    }

    /// Delivers every pending interrupt if they are enabled here; after each of them, what softirqs it raised.
    fn irq_window(&self) {
        if self.irqs_disabled() {
            return;
        }
        while let Some(handler) = self.env.take_irq() {
            {
                let _level = self.level(HARDIRQ);
                handler.hardirq(self);
            }
            self.run_softirqs();
        }
    }

    /// Softirqs run when the outermost handler returns (`irq_exit`): over a plain spinlock too, never over each other.
    fn run_softirqs(&self) {
        while self.preempt_count.get() < SOFTIRQ && self.softirq_pending.replace(false) {
            let _level = self.level(SOFTIRQ);
            self.kernel().timers().run_expired(self);
        }
    }

    fn level(&self, unit: u32) -> Level<'_, 'w> {
        let outer = self.atomic_since.replace(Owner::default());
        self.preempt_count.set(self.preempt_count.get() + unit);
        Level { cpu: self, unit, outer }
    }

    /// Asks for the timer softirq to run once the handler has returned.
    pub(crate) fn raise_timer_softirq(&self) {
        self.softirq_pending.set(true);
    }

    /// Names where the current handler was requested, for findings inside it.
    pub(crate) fn set_atomic_since(&self, owner: Owner) {
        self.atomic_since.set(owner);
    }

    /// The outermost reason is the one that a finding names.
    fn atomic_begins(&self, owner: Owner) {
        if !self.in_atomic() {
            self.atomic_since.set(owner);
        }
    }

    fn leave(&self, unit: u32) {
        self.preempt_count.set(self.preempt_count.get().saturating_sub(unit));
    }

    /// A spinlock was taken: preemption off, and interrupts too if `irqsave`.
    pub(crate) fn lock_taken(&self, owner: Owner, irqsave: bool) {
        self.atomic_begins(owner);
        self.preempt_count.set(self.preempt_count.get() + 1);
        if irqsave {
            self.irq_off.set(self.irq_off.get() + 1);
        }
    }

    /// A spinlock was given back.
    pub(crate) fn lock_dropped(&self, irqsave: bool) {
        self.leave(1);
        if irqsave {
            self.irq_off.set(self.irq_off.get().saturating_sub(1));
        }
    }

    /// Turns interrupts off until the guard drops (`local_irq_save`).
    #[track_caller]
    pub fn local_irq_save(&self) -> IrqsOff<'_> {
        self.irqs_off_for(self.owner())
    }

    pub(crate) fn irqs_off_for(&self, owner: Owner) -> IrqsOff<'_> {
        self.atomic_begins(owner);
        self.irq_off.set(self.irq_off.get() + 1);
        IrqsOff { irq_off: &self.irq_off }
    }

    /// Full barrier: every earlier access is visible before any later one.
    pub fn mb(&self) {
        fence(Ordering::SeqCst);
    }
    /// Write barrier for memory and registers.
    pub fn wmb(&self) {
        fence(Ordering::Release);
    }
    /// Read barrier for memory and registers.
    pub fn rmb(&self) {
        fence(Ordering::Acquire);
    }
    /// Earlier writes to coherent memory are visible to the device before later ones (`dma_wmb`).
    pub fn dma_wmb(&self) {
        fence(Ordering::Release);
    }
    /// Earlier reads of coherent memory complete before later ones (`dma_rmb`).
    pub fn dma_rmb(&self) {
        fence(Ordering::Acquire);
    }
}

/// A handler's share of preempt_count; given back when the handler returns, and when it unwinds.
struct Level<'a, 'w> {
    cpu: &'a Cpu<'w>,
    unit: u32,
    /// What the interrupted code was atomic since.
    outer: Owner,
}

impl Drop for Level<'_, '_> {
    fn drop(&mut self) {
        self.cpu.leave(self.unit);
        self.cpu.atomic_since.set(self.outer);
    }
}

/// Interrupts are off while this lives.
#[must_use = "interrupts come back on when this is dropped"]
pub struct IrqsOff<'a> {
    irq_off: &'a Cell<u32>,
}

impl Drop for IrqsOff<'_> {
    fn drop(&mut self) {
        self.irq_off.set(self.irq_off.get().saturating_sub(1));
    }
}

thread_local! {
    /// The CPU that runs on this thread right now, for `Drop`, which gets no `&Cpu`.
    static CURRENT: Cell<u16> = const { Cell::new(0) };
}

/// Names the CPU that is about to run on this thread; the world calls it at every resume.
pub fn set_current(id: u32) {
    CURRENT.with(|current| current.set(u16::try_from(id).unwrap_or(u16::MAX)));
}

/// The ring of the CPU that runs on this thread.
pub(crate) fn current() -> Producer {
    Producer(CURRENT.with(Cell::get))
}

#[cfg(test)]
mod tests;
