//! Going on with the NULL of a per-CPU allocation that failed: what a `Result` forbids and C can do.
//!
//! NULL is offset for a CPU like any other base, so what comes out is not NULL and no later test sees it. Each use is
//! told, and finds zeros. Only tests and drivers with a bug seeded into them call this. Neighbours: the parent.

use super::{PerCpu, PerCpuError, Zero};
use crate::cpu::Cpu;

/// Takes whatever an allocation returned for a variable. Any context.
pub fn unchecked<T: Zero>(cpu: &Cpu<'_>, allocated: Result<PerCpu<T>, PerCpuError>) -> PerCpu<T> {
    allocated.unwrap_or_else(|_| PerCpu::at(cpu, None, T::ZERO))
}
