//! `percpu_counter`: a count that is cheap to change and approximate to read.
//!
//! Each CPU gathers up to a batch before it adds to the common count; [`PercpuCounter::read`] sees that count only,
//! [`PercpuCounter::sum`] what the CPUs still hold too. Mirrors lib/percpu_counter.c. Neighbours: [`super::PerCpu`].
//! Left out: CPUs that go away.

use crate::cpu::Cpu;
use crate::lock::Locked;
use crate::percpu::{PerCpu, PerCpuError, alloc_percpu};

/// The least a CPU gathers (`percpu_counter_batch` = max(32, CPUs * 2)).
pub const BATCH: i64 = 32;

/// An approximate counter (`struct percpu_counter`).
pub struct PercpuCounter {
    count: Locked<i64>,
    gathered: PerCpu<i64>,
    batch: i64,
}

impl PercpuCounter {
    /// A counter that begins at `count` (`percpu_counter_init`). Process context only.
    ///
    /// # Errors
    /// As [`alloc_percpu`].
    #[track_caller]
    pub fn new(cpu: &Cpu<'_>, count: i64) -> Result<Self, PerCpuError> {
        let gathered = alloc_percpu(cpu)?;
        let batch = BATCH.max(i64::from(cpu.kernel().config().cpus) * 2);
        Ok(Self { count: Locked::new(count), gathered, batch })
    }

    /// Adds (`percpu_counter_add`). Any context.
    pub fn add(&self, cpu: &Cpu<'_>, n: i64) {
        let sum = self.gathered.this_cpu_read(cpu).wrapping_add(n);
        if sum.unsigned_abs() < self.batch.unsigned_abs() {
            self.gathered.this_cpu_write(cpu, sum);
            return;
        }
        let mut count = self.count.lock();
        *count = count.wrapping_add(sum);
        drop(count);
        self.gathered.this_cpu_write(cpu, 0);
    }

    /// The common count (`percpu_counter_read`): off by less than a batch a CPU. Any context.
    pub fn read(&self) -> i64 {
        *self.count.lock()
    }

    /// The count with what the CPUs hold (`percpu_counter_sum`): exact while nobody adds. Any context.
    pub fn sum(&self) -> i64 {
        self.read().wrapping_add(self.gathered.sum())
    }

    /// What a CPU gathers before it adds to the common count.
    pub fn batch(&self) -> i64 {
        self.batch
    }
}
