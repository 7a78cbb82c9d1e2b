//! `&Cpu`: the simulated CPU that runs this code, its context, and the way to its kernel and world.
//!
//! Linux reads `current` and `preempt_count` from nowhere; here every call that may sleep, fail, be interrupted or be
//! blamed takes a `&Cpu`. It counts what Linux's `preempt_count` counts, so that a sleeping call under a lock or in a
//! handler is seen at once ([`Cpu::might_sleep`]), and it delivers interrupts and softirqs on its own stack whenever
//! they are enabled; `context` is that half of it. Barriers are its methods, so that a weak-memory world can give them meaning; on threads they are the fences
//! of the same name, which cost lockstep nothing but `mb`.
//!
//! A `Cpu` is `!Sync`: it lives in its coroutine or thread. Neighbours: `env`, `lock`, `irq`, `softirq`. Left out: tasks
//! that move between CPUs, NMI, grace periods of RCU.

use std::cell::Cell;
use std::panic::{Location, resume_unwind};
use std::sync::atomic::{Ordering, fence};

use crate::env::{Class, Env, Key, Point, Task, Ticket, Verdict, Wake};
use crate::fault::{Caller, Request};
use crate::finding::{Finding, FindingKind};
use crate::kernel::{Kernel, KernelRef};
use crate::lock;
use crate::removed;
use crate::site::{Owner, Scope, Site};
use crate::trace::{Kind, Producer, Record, owner_word};

mod context;
mod memalloc;

use context::HARDIRQ;
pub(crate) use context::Off;
pub use context::{BhOff, Context, IrqsOff, PreemptOff, RcuRead};
use memalloc::Memalloc;
pub use memalloc::MemallocScope;

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

/// The CPU that runs this code; its methods may come from any context unless they say otherwise.
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
    task: u32,
    preempt_count: Cell<u32>,
    irq_off: Cell<u32>,
    rcu_depth: Cell<u32>,
    scope: Cell<Scope>,
    memalloc: Cell<Memalloc>,
    /// Where the outermost atomic section began: the second call site of a sleep-in-atomic finding.
    atomic_since: Cell<Owner>,
    /// The class of a point that was made to fail and of which the trace is yet to be told.
    injected: Cell<Option<Class>>,
    /// The kinds of records that were wanted when it was made: a plain word, so that a test of it is all that a kind
    /// costs which is masked out.
    kinds: u64,
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
        Self::of_task(id, 0, kernel, env)
    }

    /// The handle for a task of its own that runs on CPU `id`; 0 is the CPU's first one. Only a world makes one.
    pub fn of_task(id: u32, task: u32, kernel: KernelRef, env: &'w dyn Env) -> Self {
        Self {
            id,
            task,
            preempt_count: Cell::new(0),
            irq_off: Cell::new(0),
            rcu_depth: Cell::new(0),
            scope: Cell::new(Scope::ROOT),
            memalloc: Cell::new(Memalloc::default()),
            atomic_since: Cell::new(Owner::default()),
            injected: Cell::new(None),
            kinds: kernel.get().map_or(u64::MAX, |kernel| kernel.trace().kinds()),
            kernel,
            env,
        }
    }

    /// The CPU's number.
    #[inline]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The number of the task that it runs: 0, or that of a kernel thread.
    #[inline]
    pub fn task(&self) -> u32 {
        self.task
    }

    /// The kernel it runs.
    #[inline]
    pub fn kernel(&self) -> &'static Kernel {
        self.kernel.get_unchecked()
    }

    /// A handle to the kernel, to be kept in buffers and devices.
    pub fn kernel_ref(&self) -> KernelRef {
        self.kernel
    }

    /// Nanoseconds since the world began.
    #[inline]
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
    #[inline]
    pub fn owner(&self) -> Owner {
        Owner { site: Site::of(Location::caller()), scope: self.scope.get() }
    }

    /// Passes a point for `size` bytes, or what else its class counts: the world may run others, deliver interrupts
    /// here, or ask for a failure.
    #[track_caller]
    pub fn point(&self, class: Class, size: u64) -> Verdict {
        self.point_for(class, size, self.owner())
    }

    /// [`Cpu::point`] on behalf of `owner`.
    #[inline]
    pub fn point_for(&self, class: Class, size: u64, owner: Owner) -> Verdict {
        self.pass(Request::new(class, size), owner, true)
    }

    /// Passes the point of a request; only injection can fail it where `natural` is unset.
    pub(crate) fn pass(&self, request: Request, owner: Owner, natural: bool) -> Verdict {
        let held = lock::held();
        if held > 0 {
            self.lab_lock_held(held, owner);
        }
        let caller = if self.in_task() { Caller::Task } else { Caller::Interrupt };
        let verdict =
            self.env.point(Point { request: request.by(caller), owner, natural, preemptible: !self.in_atomic() });
        self.irq_window();
        verdict
    }

    /// Tells the world that a register was written: what that brings about may come before the writer goes on.
    pub(crate) fn register_written(&self) {
        if self.env.register_written(!self.in_atomic()) {
            self.irq_window();
        }
    }

    #[cold]
    fn lab_lock_held(&self, held: u32, owner: Owner) {
        self.emit(FindingKind::LabLockHeld { held }, None, vec![("at", owner)]);
    }

    /// Writes one event record.
    #[inline]
    pub fn trace(&self, kind: Kind, addr: u64, len: usize, dev: u16, tag: u64) {
        if self.kinds & kind.bit() != 0 {
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            let record = Record { ts: self.env.now(), addr, len, kind, dev, tag };
            self.kernel().trace().put(self.producer(), record);
        }
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

    /// [`Cpu::trace`], with what ties it to other events, made only while somebody watches.
    pub(crate) fn trace_linked<L: IntoIterator<Item = Record>>(
        &self,
        event: (Kind, u64, u32),
        dev: u16,
        tag: u64,
        links: impl FnOnce(Record) -> L,
    ) {
        let (kind, addr, len) = event;
        let event = Record { ts: self.env.now(), addr, len, kind, dev, tag };
        self.kernel().trace().emit_linked(self.producer(), event, || links(event));
    }

    /// Tells those who watch why the request of the event before was refused. An injected failure, of which
    /// [`Cpu::injected`] was told, has no other reason.
    #[cold]
    pub(crate) fn trace_refused(&self, dev: u16, why: impl FnOnce() -> String) {
        let (kernel, injected) = (self.kernel(), self.injected.take());
        if kernel.trace().watched() {
            let text = injected.map_or_else(why, |class| format!("injected: the point {class} was made to fail"));
            let len = kernel.refusals.tell(text);
            let link = Record { ts: self.env.now(), addr: 0, len, kind: Kind::Refused, dev, tag: 0 };
            kernel.trace().link(self.producer(), link);
        }
    }

    /// The world made a point of this class fail; the next [`Cpu::trace_refused`] says so.
    pub(crate) fn injected(&self, class: Class) {
        self.injected.set(Some(class));
    }

    /// The CPU's own ring of records.
    #[inline]
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
        // As set_current_state has one.
        self.full_barrier();
        self.env.prepare(on)
    }

    pub(crate) fn wake(&self, on: Key, n: usize) {
        self.env.wake(on, n);
    }

    /// Parks until woken, timed out or dying; interrupts are taken meanwhile.
    pub(crate) fn park(&self, ticket: Ticket, until: Option<u64>) -> Wake {
        let ticket = Ticket { irqs_off: self.irqs_disabled(), keeps_cpu: self.in_atomic(), ..ticket };
        if self.kernel().softirqs().any(self.id) {
            self.irq_window();
        }
        self.kernel().run_chores(self.id);
        loop {
            match self.env.park(ticket, until) {
                Wake::Irq => self.irq_window(),
                wake => {
                    self.full_barrier();
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
        self.irq_window();
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

    /// Starts a task on CPU `on`; `false` if the world has no room for it.
    pub(crate) fn spawn(&self, on: u32, number: u32, body: Box<dyn FnOnce(&Cpu<'_>) + Send>) -> bool {
        on < self.kernel().config().cpus && self.env.spawn(Task { cpu: on, number, body })
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
        let softirqs = self.kernel().softirqs();
        let next = || {
            let own = self.env.take_irq().map(|handler| (handler, false));
            own.or_else(|| Some((softirqs.take_injected(self)?, true)))
        };
        while let Some((handler, injected)) = next() {
            self.kernel().run_chores(self.id);
            {
                let _level = self.level(HARDIRQ);
                if injected {
                    // A line that nobody lowers would else never let go of the world.
                    let _ = self.point(Class::Lock, 0);
                }
                handler.hardirq(self);
            }
            self.run_softirqs();
        }
        // Raised outside of a handler: in Linux ksoftirqd wakes up, or the next interrupt brings them along.
        self.run_softirqs();
    }

    /// Full barrier: every earlier access is visible before any later one.
    #[track_caller]
    pub fn mb(&self) {
        if !removed::here() {
            fence(Ordering::SeqCst);
            self.full_barrier();
        }
    }
    /// Write barrier for memory and registers.
    #[track_caller]
    pub fn wmb(&self) {
        if !removed::here() {
            self.write_barrier();
        }
    }
    /// Read barrier for memory and registers.
    #[track_caller]
    pub fn rmb(&self) {
        if !removed::here() {
            self.read_barrier();
        }
    }
    /// Earlier writes to coherent memory are visible to the device before later ones (`dma_wmb`).
    #[track_caller]
    pub fn dma_wmb(&self) {
        if !removed::here() {
            self.write_barrier();
        }
    }
    /// Earlier reads of coherent memory complete before later ones (`dma_rmb`).
    #[track_caller]
    pub fn dma_rmb(&self) {
        if !removed::here() {
            self.read_barrier();
        }
    }

    /// What [`Cpu::mb`] and a context switch do on a weak machine.
    #[inline]
    fn full_barrier(&self) {
        if let Some(weak) = self.kernel().weak() {
            weak.lock().full_barrier(self.kernel().ram(), self.id);
        }
    }

    #[inline]
    fn write_barrier(&self) {
        fence(Ordering::Release);
        if let Some(weak) = self.kernel().weak() {
            weak.lock().write_barrier(self.id);
        }
    }

    #[inline]
    fn read_barrier(&self) {
        fence(Ordering::Acquire);
        if let Some(weak) = self.kernel().weak() {
            weak.lock().read_barrier(self.id);
        }
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
