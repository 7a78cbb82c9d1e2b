//! The world as the kernel sees it: time, parking, waking, interrupts, points.
//!
//! The kernel's API is synchronous; whatever may sleep parks through [`Env`]. A world (lockstep or threads, both in
//! `scenarios`) implements it once, and the allocators, drivers and locks above never know which one runs them.
//!
//! `prepare`, `park` and `wake` never lose a wake-up: a ticket taken before the condition is looked at makes the
//! later park return at once if a wake came in between. Neighbours: `Cpu`, which is the only caller. Left out: who
//! runs next, which is the world's secret.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cpu::Cpu;
use crate::fault::Request;
use crate::finding::Finding;
use crate::site::Owner;

/// What a CPU waits for and another wakes: a wait queue, a lock, a sleep.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key(u64);

impl Key {
    /// A key that nothing else uses. Keys never appear in results.
    pub fn fresh() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Proof that a CPU announced its wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// The world's own number for it.
    pub number: u64,
    /// Whether the CPU can't take interrupts while it waits: it spins for a lock with them off.
    pub irqs_off: bool,
    /// Whether the waiter keeps its CPU: it is atomic, so no other task of that CPU may run meanwhile.
    pub keeps_cpu: bool,
}

impl Ticket {
    /// A ticket of this number; who parks says how.
    pub const fn new(number: u64) -> Self {
        Self { number, irqs_off: false, keeps_cpu: false }
    }
}

/// A task that a kernel starts beside a CPU's first one: a kernel thread, a worker.
pub struct Task {
    /// The CPU that it runs on, and never leaves.
    pub cpu: u32,
    /// Its number ([`Cpu::task`]), one of the kernel's own.
    pub number: u32,
    /// What it runs.
    pub body: Box<dyn FnOnce(&Cpu<'_>) + Send>,
}

/// Why a park returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wake {
    /// Somebody called `wake` on the ticket's key since `prepare`.
    Woken,
    /// The deadline passed.
    TimedOut,
    /// An interrupt is pending: take it, then park again with the same ticket.
    Irq,
    /// The CPU is being torn down: return as fast as possible, never park again.
    Dying,
}

/// What kind of place a point is; each class is counted and failed apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Class {
    /// A page allocation.
    Page,
    /// A slab object.
    Slab,
    /// A coherent DMA allocation.
    Coherent,
    /// A streaming DMA mapping.
    Map,
    /// A swiotlb slot.
    SwiotlbSlot,
    /// An `ioremap`.
    Ioremap,
    /// An interrupt vector.
    IrqVector,
    /// A DMA mask that the platform may refuse.
    Mask,
    /// A per-CPU variable.
    PerCpu,
    /// A register read; failed, it reads all-ones.
    Mmio,
    /// A register write.
    MmioWrite,
    /// A lock about to be taken.
    Lock,
    /// A wait about to begin.
    Wait,
    /// A free or an unmap: never fails, but others may run here.
    Release,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Page,
        Self::Slab,
        Self::Coherent,
        Self::Map,
        Self::SwiotlbSlot,
        Self::Ioremap,
        Self::IrqVector,
        Self::Mask,
        Self::PerCpu,
        Self::Mmio,
        Self::MmioWrite,
        Self::Lock,
        Self::Wait,
        Self::Release,
    ];

    /// The classes that a fault may be injected into: the others can't fail, only be reordered.
    pub const INJECTABLE: [Self; 10] = [
        Self::Page,
        Self::Slab,
        Self::Coherent,
        Self::Map,
        Self::SwiotlbSlot,
        Self::Ioremap,
        Self::IrqVector,
        Self::Mask,
        Self::PerCpu,
        Self::Mmio,
    ];

    /// The class's name in scenario files, on the command line and in reports.
    ///
    /// ```
    /// use lowzone_guest_mem::env::Class;
    /// assert_eq!(Class::SwiotlbSlot.name(), "swiotlb-slot");
    /// assert_eq!("swiotlb-slot".parse(), Ok(Class::SwiotlbSlot));
    /// ```
    pub const fn name(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Slab => "slab",
            Self::Coherent => "coherent",
            Self::Map => "map",
            Self::SwiotlbSlot => "swiotlb-slot",
            Self::Ioremap => "ioremap",
            Self::IrqVector => "irq-vector",
            Self::Mask => "mask",
            Self::PerCpu => "percpu",
            Self::Mmio => "mmio",
            Self::MmioWrite => "mmio-write",
            Self::Lock => "lock",
            Self::Wait => "wait",
            Self::Release => "release",
        }
    }

    /// Whether a failure here is one that a driver must cope with.
    pub const fn may_fail(self) -> bool {
        !matches!(self, Self::Mmio | Self::MmioWrite | Self::Lock | Self::Wait | Self::Release)
    }
}

impl fmt::Display for Class {
    /// [`Class::name`]; obeys a width.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text that is no [`Class::name`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no class `{0}`")]
pub struct UnknownClass(pub String);

impl FromStr for Class {
    type Err = UnknownClass;

    /// The class of this [`Class::name`], exactly.
    fn from_str(text: &str) -> Result<Self, UnknownClass> {
        Self::ALL.into_iter().find(|class| class.name() == text).ok_or_else(|| UnknownClass(text.to_owned()))
    }
}

/// A place that can fail or be reordered, as it is reached.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// What is asked for: tells the kind of place.
    pub request: Request,
    /// The source line and scope path.
    pub owner: Owner,
    /// Whether a real machine can fail here; else only injection does.
    pub natural: bool,
    /// Whether another task of the same CPU may run here.
    pub preemptible: bool,
}

/// What the world decided at a point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Verdict {
    /// Go on.
    Pass,
    /// Fail here as if the resource were exhausted.
    Fail,
}

/// An interrupt handler: runs in hard-interrupt context on the stack of the CPU it is given.
pub trait IrqHandler: Send + Sync {
    /// Handles one interrupt.
    fn hardirq(&self, cpu: &Cpu<'_>) -> IrqReturn;
}

/// Whether a handler found its device to be the source (Linux `irqreturn_t`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IrqReturn {
    /// Not from this device.
    None,
    /// Handled.
    Handled,
    /// From this device: its thread is to do the rest (`IRQ_WAKE_THREAD`).
    WakeThread,
}

/// The world that runs a CPU.
pub trait Env {
    /// Nanoseconds since the world began.
    fn now(&self) -> u64;

    /// Announces a wait on `on`, before the condition is looked at.
    fn prepare(&self, on: Key) -> Ticket;

    /// Gives way until woken, `until` (in [`Env::now`]'s nanoseconds) passes, or an interrupt is pending.
    ///
    /// A deadline that has passed already cancels the ticket and returns at once.
    fn park(&self, ticket: Ticket, until: Option<u64>) -> Wake;

    /// Wakes at most `n` waiters of `on`, the longest waiting first.
    fn wake(&self, on: Key, n: usize);

    /// Takes the next interrupt pending for this CPU.
    fn take_irq(&self) -> Option<Arc<dyn IrqHandler>>;

    /// Passes a point: others may run, and the world may ask for a failure.
    fn point(&self, point: Point) -> Verdict;

    /// A register was written, and whoever waits for that may run before the writer goes on; whether somebody could.
    fn register_written(&self, _preemptible: bool) -> bool {
        false
    }

    /// Reports a finding.
    fn emit(&self, finding: Finding);

    /// Starts a task; `false` if there is no room for another. Unless implemented, there never is.
    ///
    /// The tasks of one CPU take turns: at points that are preemptible, and while one waits and doesn't keep the CPU.
    fn spawn(&self, _task: Task) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_has_a_name_of_its_own() {
        for (at, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, at, "{class} is out of place in ALL");
            assert_eq!(class.name().parse(), Ok(class));
        }
        assert_eq!(Class::ALL.last(), Some(&Class::Release), "ALL must end with the last class");
        assert_eq!("Slab".parse::<Class>(), Err(UnknownClass("Slab".into())));
        assert_eq!(format!("[{:>6}]", Class::Map), "[   map]");
    }

    #[test]
    fn what_must_be_coped_with_can_be_injected() {
        let injectable = |class| Class::INJECTABLE.contains(&class);
        assert!(Class::ALL.into_iter().all(|class| !class.may_fail() || injectable(class)));
        assert!(!injectable(Class::Lock) && !injectable(Class::Wait) && !injectable(Class::Release));
        assert!(injectable(Class::Mmio));
    }
}
