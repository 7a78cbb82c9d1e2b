//! Per-CPU variables: one copy for each CPU, reached without a lock by the CPU that it belongs to.
//!
//! [`alloc_percpu`] makes one at run time, [`define_per_cpu`] one of a module's own (`DEFINE_PER_CPU`). The `this_cpu_*`
//! operations are safe against preemption and interrupts of the same CPU; [`PerCpu::get`] turns preemption off while
//! its guard lives; [`PerCpu::sum`] adds all copies up while others may run, so it is a snapshot of nothing. Which CPU
//! this is may only be asked where the task can't be moved: [`smp_processor_id`] tells otherwise.
//!
//! Mirrors linux/percpu-defs.h, mm/percpu.c, lib/smp_processor_id.c and lib/percpu_counter.c of 6.1. Neighbours: `area`,
//! which places the copies; `cpu`. Values are the lab's own and not guest RAM: no device may reach them; pages are
//! taken for what lies beyond the first chunk. Left out: percpu_ref, local_lock.

use thiserror::Error;

use crate::addr::VirtAddr;
use crate::cpu::{Cpu, PreemptOff};
use crate::env::{Class, Verdict};
use crate::fault::Request;
use crate::finding::{Finding, FindingKind};
use crate::gfp::{__GFP_NOWARN, GFP_KERNEL, Gfp};
use crate::kernel::{Kernel, KernelRef};
use crate::lock::{Locked, LockedGuard};
use crate::page::alloc_pages;
use crate::site::{Owner, Scope, Site};

mod area;
mod counter;
pub mod misuse;
#[cfg(test)]
mod property;
#[cfg(test)]
mod tests;

pub use area::{InvalidPerCpu, MAX_ALIGN, MAX_SIZE};
pub(crate) use area::{Part, PerCpuArea, Place};
pub use counter::{BATCH, PercpuCounter};

/// Why there is no per-CPU memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PerCpuError {
    /// More than 32 KiB, nothing, or no power of two up to a page.
    #[error("illegal size ({size}) or align ({align}) for percpu allocation")]
    Illegal {
        /// The size, rounded up to 4.
        size: usize,
        /// The alignment, at least 4.
        align: usize,
    },
    /// No room, or no memory for more.
    #[error("percpu: allocation failed, size={size} align={align} atomic={}, {why}", u8::from(*atomic))]
    NoMemory {
        /// The size, rounded.
        size: usize,
        /// The alignment, rounded.
        align: usize,
        /// Whether the mask may not sleep: only what is populated will do.
        atomic: bool,
        /// What was missing.
        why: &'static str,
    },
}

/// What an allocation of zeros may be taken for.
pub trait Zero: Copy {
    /// All bytes 0.
    const ZERO: Self;
}

impl<T: Zero, const N: usize> Zero for [T; N] {
    const ZERO: Self = [T::ZERO; N];
}

/// A number that `this_cpu_add` can add.
pub trait Number: Zero {
    /// One.
    const ONE: Self;
    /// The sum, wrapping as the instruction does.
    fn plus(self, n: Self) -> Self;
}

macro_rules! numbers {
    ($($number:ty)*) => {
        $(impl Zero for $number {
            const ZERO: Self = 0;
        }

        impl Number for $number {
            const ONE: Self = 1;
            fn plus(self, n: Self) -> Self {
                self.wrapping_add(n)
            }
        })*
    };
}
numbers! { i32 i64 u32 u64 usize }

/// A variable with one copy for each CPU; freed when dropped (`free_percpu`, any context).
///
/// ```
/// use lowzone_guest_mem::Cpu;
/// use lowzone_guest_mem::percpu::{PerCpuError, alloc_percpu};
///
/// fn packets(cpu: &Cpu<'_>) -> Result<(), PerCpuError> {
///     let packets = alloc_percpu::<u64>(cpu)?;
///     packets.this_cpu_inc(cpu);
///     assert_eq!((packets.this_cpu_read(cpu), packets.sum()), (1, 1));
///     let mut mine = packets.get(cpu);
///     assert_eq!(cpu.preempt_count(), 1, "no sleeping while it is held");
///     mine.set(7);
///     Ok(())
/// }
/// ```
#[must_use = "the variable is freed when this is dropped"]
pub struct PerCpu<T> {
    kernel: KernelRef,
    /// `None` for NULL, which only misuse has.
    place: Option<Place>,
    copies: Box<[Locked<T>]>,
}

/// Allocates a zeroed variable of every CPU (`alloc_percpu`). Process context only.
///
/// # Errors
/// As [`alloc_percpu_gfp`].
#[track_caller]
pub fn alloc_percpu<T: Zero>(cpu: &Cpu<'_>) -> Result<PerCpu<T>, PerCpuError> {
    alloc_percpu_gfp(cpu, GFP_KERNEL)
}

/// [`alloc_percpu`] with a mask: one that may not sleep gets only what is populated. Context as the mask says.
///
/// # Errors
/// As `__alloc_percpu_gfp`, for the type's size and alignment.
#[track_caller]
pub fn alloc_percpu_gfp<T: Zero>(cpu: &Cpu<'_>, gfp: Gfp) -> Result<PerCpu<T>, PerCpuError> {
    let place = __alloc_percpu_gfp(cpu, size_of::<T>(), align_of::<T>(), gfp)?;
    Ok(PerCpu::at(cpu, Some(place), T::ZERO))
}

/// A module's variable (`DEFINE_PER_CPU`): every copy begins as the template. Process context only.
///
/// # Errors
/// [`PerCpuError::NoMemory`] if the 8 KiB that modules share are used up.
#[track_caller]
pub fn define_per_cpu<T: Copy>(cpu: &Cpu<'_>, template: T) -> Result<PerCpu<T>, PerCpuError> {
    let (size, align) = area::rounded(size_of::<T>(), align_of::<T>());
    let owner = cpu.owner();
    cpu.might_sleep("__alloc_reserved_percpu");
    let found = cpu.kernel().percpu.lock().place(Part::Module, size, align, true, owner);
    match found {
        Some((place, _)) => Ok(PerCpu::at(cpu, Some(place), template)),
        None => Err(PerCpuError::NoMemory { size, align, atomic: true, why: "the reserve of modules is full" }),
    }
}

/// A place of `size` bytes in every CPU's copy (`__alloc_percpu_gfp`), owned by whoever makes a [`PerCpu`] of it.
///
/// # Errors
/// [`PerCpuError::Illegal`], which is a finding too, and [`PerCpuError::NoMemory`].
#[track_caller]
pub(crate) fn __alloc_percpu_gfp(cpu: &Cpu<'_>, size: usize, align: usize, gfp: Gfp) -> Result<Place, PerCpuError> {
    let owner = cpu.owner();
    let (size, align) = area::rounded(size, align);
    if size == 0 || size > MAX_SIZE || !align.is_power_of_two() || align > MAX_ALIGN {
        cpu.emit(FindingKind::PerCpuIllegal { size, align }, None, vec![("allocated at", owner)]);
        return Err(PerCpuError::Illegal { size, align });
    }
    let atomic = !gfp.may_sleep();
    if !atomic {
        cpu.might_sleep("alloc_percpu");
    }
    // Small allocations that may sleep only fail by injection, as pages do.
    let natural = gfp.can_fail(0, cpu.kernel().config().arch);
    let failed = cpu.pass(Request::new(Class::PerCpu, size as u64), owner, natural) == Verdict::Fail;
    let placed = if failed { Err("injected") } else { find_place(cpu, size, align, gfp, owner) };
    placed.map_err(|why| {
        let error = PerCpuError::NoMemory { size, align, atomic, why };
        warn(cpu, &error, gfp);
        error
    })
}

/// Room in a chunk that is there, else in a new one.
fn find_place(cpu: &Cpu<'_>, size: usize, align: usize, gfp: Gfp, owner: Owner) -> Result<Place, &'static str> {
    let (kernel, atomic) = (cpu.kernel(), !gfp.may_sleep());
    loop {
        let found = kernel.percpu.lock().place(Part::Dynamic, size, align, atomic, owner);
        if let Some((place, missing)) = found {
            return populate(cpu, place, &missing, gfp, owner);
        }
        if atomic {
            return Err("atomic alloc failed, no space left");
        }
        let Ok(header) = crate::kbuf::KBuf::kmalloc(cpu, area::CHUNK_STRUCT, gfp & GFP_KERNEL) else {
            return Err("failed to allocate new chunk");
        };
        kernel.percpu.lock().add_chunk(header);
    }
}

/// Takes the pages that a place still lacks, for each CPU.
fn populate(cpu: &Cpu<'_>, place: Place, missing: &[u32], gfp: Gfp, owner: Owner) -> Result<Place, &'static str> {
    let _ = owner;
    let kernel = cpu.kernel();
    for &page in missing {
        let mut pages = Vec::new();
        for _ in 0..kernel.config().cpus {
            let Ok(one) = alloc_pages(cpu, 0, (gfp & (GFP_KERNEL | __GFP_NOWARN)) | Gfp::HIGHMEM) else {
                drop(pages);
                release(kernel, place);
                return Err("failed to populate");
            };
            pages.push(one);
        }
        let surplus = kernel.percpu.lock().populate(place, page, pages);
        drop(surplus);
    }
    Ok(place)
}

/// What the kernel prints of a failure, ten times at most.
fn warn(cpu: &Cpu<'_>, error: &PerCpuError, gfp: Gfp) {
    let left = if gfp.contains(Gfp::NOWARN) { None } else { cpu.kernel().percpu.lock().next_warning() };
    let Some(left) = left else { return };
    let log = cpu.kernel().log();
    log.print(cpu.now(), &error.to_string());
    if left == 0 {
        log.print(cpu.now(), "percpu: limit reached, disable warning");
    }
}

/// Frees a place; pages and headers go outside the lock.
fn release(kernel: &Kernel, place: Place) {
    let chunk = kernel.percpu.lock().free(place);
    drop(chunk);
}

impl<T> PerCpu<T> {
    fn at(cpu: &Cpu<'_>, place: Option<Place>, template: T) -> Self
    where
        T: Copy,
    {
        let copies = (0..cpu.kernel().config().cpus).map(|_| Locked::new(template)).collect();
        Self { kernel: cpu.kernel_ref(), place, copies }
    }

    /// How far into the per-CPU space a CPU's copy lies; two CPUs' copies are one unit apart, for every variable.
    pub fn offset(&self, cpu: u32) -> u64 {
        let unit = self.kernel.get_unchecked().percpu.lock().unit();
        u64::from(cpu) * unit + self.place.map_or(0, |place| place.offset(unit))
    }

    #[track_caller]
    fn copy(&self, cpu: u32) -> LockedGuard<'_, T> {
        if self.place.is_none() {
            self.tell_null(cpu);
        }
        // A CPU of another machine is a stale handle; its number is kept within bounds.
        self.copies[cpu as usize % self.copies.len()].lock()
    }
}

impl<T> PerCpu<T> {
    /// NULL is used, offset for a CPU.
    #[cold]
    #[track_caller]
    fn tell_null(&self, cpu: u32) {
        let by = Owner { site: Site::caller(), scope: Scope::ROOT };
        let kind = FindingKind::NullDereference { what: "a per-CPU variable", at: VirtAddr::new(self.offset(cpu)) };
        let kernel = self.kernel.get_unchecked();
        kernel.report(Finding { kind, device: None, at: kernel.clock(), sites: vec![("at", by)] });
    }
}

impl<T: Copy> PerCpu<T> {
    /// A CPU's copy (`per_cpu_ptr`): no exclusion, whoever runs there may write at the same time. Any context.
    #[track_caller]
    pub fn per_cpu(&self, cpu: u32) -> T {
        *self.copy(cpu)
    }

    /// Writes a CPU's copy (`*per_cpu_ptr(…) = …`). Any context; right only where that CPU can't run meanwhile.
    #[track_caller]
    pub fn set_per_cpu(&self, cpu: u32, value: T) {
        *self.copy(cpu) = value;
    }

    /// This CPU's copy (`this_cpu_read`). Any context.
    #[track_caller]
    pub fn this_cpu_read(&self, cpu: &Cpu<'_>) -> T {
        *self.copy(cpu.id())
    }

    /// Writes this CPU's copy (`this_cpu_write`). Any context.
    #[track_caller]
    pub fn this_cpu_write(&self, cpu: &Cpu<'_>, value: T) {
        *self.copy(cpu.id()) = value;
    }

    /// Writes this CPU's copy and gives what was there (`this_cpu_xchg`). Any context.
    pub fn this_cpu_xchg(&self, cpu: &Cpu<'_>, value: T) -> T {
        std::mem::replace(&mut *self.copy(cpu.id()), value)
    }

    /// Writes this CPU's copy if it is `old`; gives what was there (`this_cpu_cmpxchg`). Any context.
    pub fn this_cpu_cmpxchg(&self, cpu: &Cpu<'_>, old: T, new: T) -> T
    where
        T: PartialEq,
    {
        let mut copy = self.copy(cpu.id());
        let was = *copy;
        if was == old {
            *copy = new;
        }
        was
    }

    /// This CPU's copy, with preemption off while the guard lives (`get_cpu_var`, `put_cpu_var`). Any context; no
    /// sleeping meanwhile.
    #[track_caller]
    pub fn get<'a>(&'a self, cpu: &'a Cpu<'_>) -> CpuVar<'a, T> {
        CpuVar { of: self, cpu: cpu.id(), _off: cpu.preempt_disable() }
    }
}

impl<T: Number> PerCpu<T> {
    /// Adds to this CPU's copy (`this_cpu_add`). Any context.
    #[track_caller]
    pub fn this_cpu_add(&self, cpu: &Cpu<'_>, n: T) {
        let mut copy = self.copy(cpu.id());
        *copy = copy.plus(n);
    }

    /// Adds one to this CPU's copy (`this_cpu_inc`). Any context.
    #[track_caller]
    pub fn this_cpu_inc(&self, cpu: &Cpu<'_>) {
        self.this_cpu_add(cpu, T::ONE);
    }

    /// Adds to this CPU's copy by a load and a store (`__this_cpu_add`). Not in preemptible code, where the
    /// task may be moved between the two: that is reported.
    #[track_caller]
    pub fn __this_cpu_add(&self, cpu: &Cpu<'_>, n: T) {
        check_preemptible(cpu, "__this_cpu_add()");
        let was = self.this_cpu_read(cpu);
        // Whoever is let in here writes a value that the store below loses.
        if !cpu.in_atomic() {
            let _ = cpu.point(Class::Release, 0);
        }
        self.this_cpu_write(cpu, was.plus(n));
    }

    /// All copies added up; others may run meanwhile, so it is exact only when they don't. Any context.
    #[track_caller]
    pub fn sum(&self) -> T {
        if self.place.is_none() {
            self.tell_null(0);
        }
        self.copies.iter().fold(T::ZERO, |sum, copy| sum.plus(*copy.lock()))
    }
}

impl<T> Drop for PerCpu<T> {
    fn drop(&mut self) {
        if let (Some(kernel), Some(place)) = (self.kernel.get(), self.place) {
            release(kernel, place);
        }
    }
}

/// This CPU's copy of a variable, while preemption is off.
#[must_use = "preemption comes back on when this is dropped"]
pub struct CpuVar<'a, T> {
    of: &'a PerCpu<T>,
    cpu: u32,
    _off: PreemptOff<'a>,
}

impl<T: Copy> CpuVar<'_, T> {
    /// The value.
    pub fn value(&self) -> T {
        self.of.per_cpu(self.cpu)
    }

    /// Sets it.
    pub fn set(&mut self, value: T) {
        self.of.set_per_cpu(self.cpu, value);
    }
}

/// The number of the CPU that this runs on (`smp_processor_id`). Not in preemptible code.
///
/// In preemptible code the answer may be wrong the moment it is given, which is reported.
#[track_caller]
pub fn smp_processor_id(cpu: &Cpu<'_>) -> u32 {
    check_preemptible(cpu, "smp_processor_id()");
    cpu.id()
}

#[track_caller]
fn check_preemptible(cpu: &Cpu<'_>, what: &'static str) {
    if !cpu.in_atomic() {
        let kind = FindingKind::Preemptible { what, preempt_count: cpu.preempt_count(), cpu: cpu.id() };
        cpu.emit(kind, None, vec![("caller is", cpu.owner())]);
    }
}
