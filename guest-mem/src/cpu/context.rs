//! Contexts: what kind of code runs on this CPU, as Linux's `preempt_count` counts it.
//!
//! Bits 0-7 count spinlocks and `preempt_disable`, bits 8-15 softirqs (an odd multiple of 0x100 while one runs, 0x200
//! for each `local_bh_disable`), bits 16-19 hard-interrupt handlers; interrupts that are off are counted apart. A guard
//! gives its share back when it drops. Mirrors include/linux/preempt.h and kernel/sched/core.c.
//! Neighbours: `lock`, whose guards count here; `softirq`, which runs when the counts allow it. Left out: NMI.

use std::cell::Cell;
use std::fmt;

use super::Cpu;
use crate::finding::FindingKind;
use crate::site::Owner;

/// preempt_count's unit for one lock, or one `preempt_disable`.
const PREEMPT: u32 = 1;
/// preempt_count's unit for a softirq that runs (bits 8-15).
pub(super) const SOFTIRQ: u32 = 0x100;
/// What `local_bh_disable` adds: softirqs are off and none runs.
const BH_OFF: u32 = 2 * SOFTIRQ;
/// preempt_count's unit for one hardirq level (bits 16-19).
pub(super) const HARDIRQ: u32 = 0x1_0000;

/// What kind of code runs, by the strongest reason not to sleep.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Context {
    /// A task that may sleep.
    Process,
    /// A task that reads under RCU.
    RcuRead,
    /// A task that holds a spinlock or has preemption off.
    PreemptOff,
    /// A task that keeps softirqs off.
    BhOff,
    /// A task that keeps interrupts off.
    IrqsOff,
    /// A softirq: a tasklet or a timer's callback.
    Softirq,
    /// A hard-interrupt handler.
    Hardirq,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "in process context",
            Self::RcuRead => "under rcu_read_lock",
            Self::PreemptOff => "under a spinlock or with preemption off",
            Self::BhOff => "with softirqs off",
            Self::IrqsOff => "with interrupts off",
            Self::Softirq => "in a softirq",
            Self::Hardirq => "in a hard-interrupt handler",
        })
    }
}

impl<'w> Cpu<'w> {
    /// Linux's preempt_count: locks in bits 0-7, softirq in 8-15, hardirq in 16-19. Any context.
    pub fn preempt_count(&self) -> u32 {
        self.preempt_count.get()
    }

    /// Whether interrupts are off on this CPU (`irqs_disabled`). Any context.
    pub fn irqs_disabled(&self) -> bool {
        self.irq_off.get() > 0 || self.in_hardirq()
    }

    /// Whether a hard-interrupt handler runs (`in_hardirq`). Any context.
    pub fn in_hardirq(&self) -> bool {
        self.preempt_count.get() >= HARDIRQ
    }

    /// Whether a softirq runs or softirqs are off (`in_softirq`). Any context.
    pub fn in_softirq(&self) -> bool {
        self.preempt_count.get() & (HARDIRQ - SOFTIRQ) != 0
    }

    /// Whether a softirq runs (`in_serving_softirq`). Any context.
    pub fn in_serving_softirq(&self) -> bool {
        self.preempt_count.get() & SOFTIRQ != 0
    }

    /// Whether a handler or a softirq runs, or softirqs are off (`in_interrupt`). Any context.
    pub fn in_interrupt(&self) -> bool {
        self.preempt_count.get() >= SOFTIRQ
    }

    /// Whether neither a softirq nor a hard-interrupt handler runs (`in_task`). Any context.
    pub fn in_task(&self) -> bool {
        !self.in_hardirq() && !self.in_serving_softirq()
    }

    /// Whether sleeping is forbidden here: preempt_count is not 0, or interrupts are off. Any context.
    pub fn in_atomic(&self) -> bool {
        self.preempt_count.get() != 0 || self.irqs_disabled()
    }

    /// How deep the code is in `rcu_read_lock`. Any context.
    pub fn rcu_depth(&self) -> u32 {
        self.rcu_depth.get()
    }

    /// What kind of code runs here. Any context.
    pub fn context(&self) -> Context {
        if self.in_hardirq() {
            Context::Hardirq
        } else if self.in_serving_softirq() {
            Context::Softirq
        } else if self.irqs_disabled() {
            Context::IrqsOff
        } else if self.in_softirq() {
            Context::BhOff
        } else if self.preempt_count.get() != 0 {
            Context::PreemptOff
        } else if self.rcu_depth.get() != 0 {
            Context::RcuRead
        } else {
            Context::Process
        }
    }

    /// Complains if the caller may not sleep here; then goes on, as Linux does (`might_sleep`). Right in process context.
    #[track_caller]
    pub fn might_sleep(&self, what: &'static str) {
        if self.in_atomic() || self.rcu_depth.get() > 0 {
            self.sleeps_in_atomic(what, self.owner());
        }
    }

    /// Reports a sleep where sleeping is forbidden.
    pub(crate) fn sleeps_in_atomic(&self, what: &'static str, owner: Owner) {
        let kind = FindingKind::SleepInAtomic {
            what,
            preempt_count: self.preempt_count(),
            irqs_disabled: self.irqs_disabled(),
            rcu_depth: self.rcu_depth.get(),
        };
        self.emit(kind, None, vec![("called at", owner), ("atomic since", self.atomic_since.get())]);
    }

    /// Complains about a call that `here` doesn't allow; `linux` is the option under which Linux does too.
    #[track_caller]
    pub(crate) fn wrong_context(&self, here: bool, what: &'static str, linux: Option<&'static str>) {
        if here {
            let kind = FindingKind::WrongContext { what, context: self.context(), linux };
            self.emit(kind, None, vec![("called at", self.owner()), ("atomic since", self.atomic_since.get())]);
        }
    }

    /// Turns interrupts off until the guard drops (`local_irq_save`). Any context.
    #[track_caller]
    pub fn local_irq_save(&self) -> IrqsOff<'_> {
        self.irqs_off_for(self.owner())
    }

    pub(crate) fn irqs_off_for(&self, owner: Owner) -> IrqsOff<'_> {
        self.atomic_begins(owner);
        IrqsOff { _count: Count::raise(&self.irq_off, 1) }
    }

    /// Keeps this code on its CPU until the guard drops (`preempt_disable`). Any context.
    #[track_caller]
    pub fn preempt_disable(&self) -> PreemptOff<'_> {
        self.atomic_begins(self.owner());
        PreemptOff { _count: Count::raise(&self.preempt_count, PREEMPT) }
    }

    /// Keeps softirqs from running on this CPU until the guard is given back (`local_bh_disable`). Not in hardirq.
    #[track_caller]
    pub fn local_bh_disable(&self) -> BhOff<'_, 'w> {
        self.wrong_context(self.in_hardirq(), "local_bh_disable", Some("CONFIG_TRACE_IRQFLAGS"));
        self.bh_off_for(self.owner())
    }

    pub(crate) fn bh_off_for(&self, owner: Owner) -> BhOff<'_, 'w> {
        self.atomic_begins(owner);
        BhOff { cpu: self, _count: Count::raise(&self.preempt_count, BH_OFF) }
    }

    /// Begins to read under RCU until the guard drops (`rcu_read_lock`). Any context.
    #[track_caller]
    pub fn rcu_read_lock(&self) -> RcuRead<'_> {
        self.atomic_begins(self.owner());
        RcuRead { _count: Count::raise(&self.rcu_depth, 1) }
    }

    pub(super) fn level(&self, unit: u32) -> Level<'_> {
        let outer = self.atomic_since.replace(Owner::default());
        Level { atomic_since: &self.atomic_since, outer, _count: Count::raise(&self.preempt_count, unit) }
    }

    /// A softirq begins; it ends when this drops.
    pub(crate) fn softirq_level(&self) -> impl Drop {
        self.level(SOFTIRQ)
    }

    /// Names where the current handler was requested, for findings inside it.
    pub(crate) fn set_atomic_since(&self, owner: Owner) {
        self.atomic_since.set(owner);
    }

    /// The outermost reason is the one that a finding names.
    fn atomic_begins(&self, owner: Owner) {
        if !self.in_atomic() && self.rcu_depth.get() == 0 {
            self.atomic_since.set(owner);
        }
    }

    /// A spinlock was taken: preemption off, and what else its form keeps off.
    pub(crate) fn lock_taken(&self, owner: Owner, off: Off) {
        self.atomic_begins(owner);
        self.preempt_count.set(self.preempt_count.get() + PREEMPT + off.bh());
        self.irq_off.set(self.irq_off.get() + off.irqs());
    }

    /// A spinlock was given back.
    pub(crate) fn lock_dropped(&self, off: Off) {
        self.preempt_count.set(self.preempt_count.get().saturating_sub(PREEMPT + off.bh()));
        self.irq_off.set(self.irq_off.get().saturating_sub(off.irqs()));
    }
}

/// What a form of `spin_lock` keeps off besides preemption.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Off {
    /// `spin_lock`
    Nothing,
    /// `spin_lock_bh`
    Softirqs,
    /// `spin_lock_irqsave`
    Interrupts,
}

impl Off {
    fn bh(self) -> u32 {
        if self == Self::Softirqs { BH_OFF } else { 0 }
    }

    fn irqs(self) -> u32 {
        u32::from(self == Self::Interrupts)
    }
}

/// A share of one of the counts, given back when it drops.
struct Count<'a> {
    cell: &'a Cell<u32>,
    unit: u32,
}

impl<'a> Count<'a> {
    fn raise(cell: &'a Cell<u32>, unit: u32) -> Self {
        cell.set(cell.get() + unit);
        Self { cell, unit }
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.cell.set(self.cell.get().saturating_sub(self.unit));
    }
}

/// A handler's share of preempt_count; given back when the handler returns, and when it unwinds.
pub(super) struct Level<'a> {
    atomic_since: &'a Cell<Owner>,
    /// What the interrupted code was atomic since.
    outer: Owner,
    _count: Count<'a>,
}

impl Drop for Level<'_> {
    fn drop(&mut self) {
        self.atomic_since.set(self.outer);
    }
}

/// Interrupts are off while this lives.
#[must_use = "interrupts come back on when this is dropped"]
pub struct IrqsOff<'a> {
    _count: Count<'a>,
}

/// Preemption is off while this lives.
#[must_use = "preemption comes back on when this is dropped"]
pub struct PreemptOff<'a> {
    _count: Count<'a>,
}

/// Code reads under RCU while this lives.
#[must_use = "the reading ends when this is dropped"]
pub struct RcuRead<'a> {
    _count: Count<'a>,
}

/// Softirqs are off on this CPU while this lives.
///
/// Dropped, it leaves what was raised meanwhile to the CPU's next point; [`BhOff::enable`] runs it at once.
#[must_use = "softirqs come back on when this is dropped"]
pub struct BhOff<'a, 'w> {
    cpu: &'a Cpu<'w>,
    _count: Count<'a>,
}

impl BhOff<'_, '_> {
    /// Turns softirqs on and runs those that were raised meanwhile (`local_bh_enable`). Interrupts on.
    #[track_caller]
    pub fn enable(self) {
        let cpu = self.cpu;
        cpu.wrong_context(cpu.irqs_disabled(), "local_bh_enable", Some("CONFIG_TRACE_IRQFLAGS"));
        drop(self);
        cpu.run_softirqs();
    }
}

#[cfg(test)]
mod table;
#[cfg(test)]
mod tests;
