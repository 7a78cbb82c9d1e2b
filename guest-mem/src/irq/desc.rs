//! One line: the handlers that run when it fires, whether it is masked, and who claims its interrupts.
//!
//! Mirrors kernel/irq/handle.c, chip.c (`handle_fasteoi_irq`) and spurious.c. Neighbours: the table above; `thread`,
//! whose halves are woken here. Left out: affinity, depth counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::error::{IrqError, IrqFlags, IrqMisuse};
use super::thread::Threaded;
use crate::cpu::Cpu;
use crate::env::{IrqHandler, IrqReturn};
use crate::finding::FindingKind;
use crate::lock::Locked;
use crate::site::Owner;
use crate::trace::Kind;
use crate::wait::WaitQueue;

/// After this many unclaimed interrupts in a row a line is shut off (kernel/irq/spurious.c counts 100,000 a second).
pub(super) const NOBODY_CARED: u32 = 1000;
/// Whether the last interrupt was left to threads (`SPURIOUS_DEFERRED`).
const DEFERRED: u32 = 1 << 31;

/// What one request attached.
#[derive(Clone)]
pub(super) struct Action {
    pub(super) id: u64,
    pub(super) handler: Arc<dyn IrqHandler>,
    pub(super) thread: Option<Threaded>,
    pub(super) flags: IrqFlags,
    pub(super) name: &'static str,
    pub(super) owner: Owner,
}

/// The threads that a masked line waits for.
#[derive(Default)]
struct Oneshot {
    /// Bits that are given out.
    given: u64,
    /// Those whose thread has yet to run (`threads_oneshot`).
    waits: u64,
}

/// One line: everything that runs when it fires.
pub struct IrqDesc {
    pub(super) irq: u32,
    /// Whose message it is, by the number in records; 0 if it is a line, or nobody's.
    device: u16,
    actions: Locked<Vec<Action>>,
    running: AtomicU32,
    unclaimed: AtomicU32,
    /// It is masked while its handlers and threads run.
    oneshot: AtomicBool,
    masked: AtomicBool,
    mask: Locked<Oneshot>,
    /// Threads that are woken and not done (`threads_active`).
    active: AtomicU32,
    /// How often a thread handled something, and what that was when a handler last left it to them.
    handled: AtomicU32,
    handled_last: AtomicU32,
    /// Who waits for handlers and threads to end.
    pub(super) idle: WaitQueue,
}

impl IrqHandler for IrqDesc {
    fn hardirq(&self, cpu: &Cpu<'_>) -> IrqReturn {
        let oneshot = self.oneshot.load(Ordering::Relaxed);
        if oneshot {
            self.masked.store(true, Ordering::Release);
        }
        self.running.fetch_add(1, Ordering::Acquire);
        let running = Running { desc: self, cpu };
        cpu.trace(Kind::IrqEntry, u64::from(self.irq), 0, self.device, 0);
        let (mut handled, mut woken) = (false, false);
        let mut last = 0;
        // By number, not by place: another CPU may detach a handler in between.
        while let Some(action) = self.after(last) {
            cpu.set_atomic_since(action.owner);
            match action.handler.hardirq(cpu) {
                IrqReturn::None => {}
                IrqReturn::Handled => handled = true,
                IrqReturn::WakeThread => {
                    woken = true;
                    self.wake_thread(cpu, &action);
                }
            }
            last = action.id;
        }
        cpu.trace(Kind::IrqExit, u64::from(self.irq), 0, self.device, 0);
        drop(running);
        if oneshot {
            self.unmask(cpu, 0);
        }
        self.note(cpu, handled, woken);
        if handled || woken { IrqReturn::Handled } else { IrqReturn::None }
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
    pub(super) fn new(irq: u32, device: u16) -> Self {
        Self {
            irq,
            device,
            actions: Locked::default(),
            running: AtomicU32::new(0),
            unclaimed: AtomicU32::new(0),
            oneshot: AtomicBool::new(false),
            masked: AtomicBool::new(false),
            mask: Locked::default(),
            active: AtomicU32::new(0),
            handled: AtomicU32::new(0),
            handled_last: AtomicU32::new(0),
            idle: WaitQueue::new(),
        }
    }

    /// Attaches what a request brings, if it gets on with what is there (`__setup_irq`).
    pub(super) fn add(self: &Arc<Self>, mut action: Action, alone: bool) -> Result<(), IrqError> {
        let (irq, flags, name) = (self.irq, action.flags, action.name);
        let mut actions = self.actions.lock();
        if let Some(has) = actions.first() {
            let shared = (flags & has.flags).contains(IrqFlags::SHARED);
            if !shared || (flags ^ has.flags).contains(IrqFlags::ONESHOT) {
                return Err(IrqError::Mismatch { irq, flags, name, has: has.flags, with: has.name });
            }
        }
        if flags.contains(IrqFlags::ONESHOT) {
            let bit = {
                let mut mask = self.mask.lock();
                let bit = 1_u64.checked_shl(mask.given.trailing_ones()).ok_or(IrqError::Full { irq })?;
                mask.given |= bit;
                bit
            };
            action.thread.iter_mut().for_each(|thread| thread.bit = bit);
            self.oneshot.store(true, Ordering::Relaxed);
        } else if alone {
            return Err(IrqError::NotOneshot { irq, name });
        }
        action.thread.iter().for_each(|thread| thread.serves(self));
        actions.push(action);
        Ok(())
    }

    /// Detaches a request; whether it was the last.
    pub(super) fn remove(&self, id: u64) -> bool {
        let mut actions = self.actions.lock();
        let at = actions.iter().position(|action| action.id == id);
        if let Some(thread) = at.and_then(|at| actions.remove(at).thread) {
            self.mask.lock().given &= !thread.bit;
        }
        actions.is_empty()
    }

    /// The requests with their owners.
    pub(super) fn owners(&self) -> Vec<Owner> {
        self.actions.lock().iter().map(|action| action.owner).collect()
    }

    /// The next request by number; numbers ascend.
    fn after(&self, last: u64) -> Option<Action> {
        self.actions.lock().iter().find(|action| action.id > last).cloned()
    }

    /// Whether its interrupts are let through.
    pub(super) fn open(&self) -> bool {
        !self.masked() && self.unclaimed.load(Ordering::Relaxed) < NOBODY_CARED
    }

    /// Whether it is masked until a thread has run. Any context.
    pub(super) fn masked(&self) -> bool {
        self.masked.load(Ordering::Acquire)
    }

    /// Whether no handler runs.
    pub(super) fn no_handler_runs(&self) -> bool {
        self.running.load(Ordering::Acquire) == 0
    }

    /// As if so many CPUs ran its handlers.
    #[cfg(test)]
    pub(super) fn pretend_running(&self, cpus: u32) {
        self.running.store(cpus, Ordering::Relaxed);
    }

    /// Whether no handler runs and no thread has anything to do.
    pub(super) fn quiet(&self) -> bool {
        self.no_handler_runs() && self.active.load(Ordering::Acquire) == 0
    }

    /// `__irq_wake_thread`
    fn wake_thread(&self, cpu: &Cpu<'_>, action: &Action) {
        let Some(thread) = &action.thread else {
            let kind = FindingKind::Irq(IrqMisuse::NoThread { irq: self.irq, name: action.name });
            return cpu.emit(kind, None, vec![("requested at", action.owner)]);
        };
        if thread.begin() {
            self.mask.lock().waits |= thread.bit;
            self.active.fetch_add(1, Ordering::AcqRel);
            thread.wake(cpu);
        }
    }

    /// A thread's turn is over: what it told, and the line open again if it was the last one (`irq_finalize_oneshot`).
    pub(super) fn thread_done(&self, cpu: &Cpu<'_>, thread: &Threaded, handled: bool) {
        if handled {
            self.handled.fetch_add(1, Ordering::AcqRel);
        }
        // One that was woken again meanwhile has another turn, and the line waits for that.
        if !thread.has_begun() {
            self.unmask(cpu, thread.bit);
        }
        if self.active.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.idle.wake_up_all(cpu);
        }
    }

    /// Opens the line if no thread but that of `bit` has yet to run.
    fn unmask(&self, cpu: &Cpu<'_>, bit: u64) {
        let opened = {
            let mut mask = self.mask.lock();
            mask.waits &= !bit;
            mask.waits == 0 && self.masked.swap(false, Ordering::AcqRel)
        };
        if opened {
            cpu.kernel().softirqs().bring(cpu.id(), self.irq);
        }
    }

    /// Counts what nobody claims (`note_interrupt`). What is left to threads is judged by the next interrupt: by then
    /// one of them must have handled something.
    fn note(&self, cpu: &Cpu<'_>, handled: bool, woken: bool) {
        let last = self.handled_last.load(Ordering::Relaxed);
        let claimed = if woken && !handled {
            let now = self.handled.load(Ordering::Acquire) | DEFERRED;
            self.handled_last.store(now, Ordering::Relaxed);
            if last & DEFERRED == 0 {
                return;
            }
            now != last
        } else {
            if woken {
                self.handled_last.store(last & !DEFERRED, Ordering::Relaxed);
            }
            handled
        };
        if claimed {
            self.unclaimed.store(0, Ordering::Relaxed);
        } else if self.unclaimed.fetch_add(1, Ordering::Relaxed) + 1 == NOBODY_CARED {
            let owners = self.owners().into_iter().map(|owner| ("requested at", owner)).collect();
            cpu.emit(FindingKind::NobodyCared { irq: self.irq }, None, owners);
        }
    }
}
