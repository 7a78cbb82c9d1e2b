//! `percpu`: a statistic that each CPU counts for itself, and the sum of all.
//!
//! The mistake: to ask which CPU this is where the task may be moved to another.

use std::sync::{Arc, Mutex, PoisonError};

use lowzone_guest_mem::percpu::{PerCpu, alloc_percpu, smp_processor_id};
use lowzone_guest_mem::wait::Completion;

use super::{Part, StoryError, Telling};

const SECOND: u64 = 1_000_000_000;
const PACKETS: u64 = 1000;

#[derive(Default)]
struct Shared {
    packets: Mutex<Option<Arc<PerCpu<u64>>>>,
    made: Completion,
    counted: Completion,
}

impl Shared {
    fn packets(&self) -> std::sync::MutexGuard<'_, Option<Arc<PerCpu<u64>>>> {
        self.packets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Both CPUs count, the first one adds up.
pub(super) fn parts() -> Vec<Part> {
    let first = Arc::new(Shared::default());
    let second = first.clone();
    vec![Box::new(move |telling| sums(telling, &first)), Box::new(move |telling| counts(telling, &second))]
}

fn sums(telling: &Telling<'_, '_>, shared: &Shared) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let packets = Arc::new(alloc_percpu::<u64>(cpu)?);
    telling.expect("a fresh variable, all CPUs", 0, packets.sum())?;
    *shared.packets() = Some(packets.clone());
    shared.made.complete(cpu);
    (0..PACKETS).for_each(|_| packets.this_cpu_inc(cpu));
    shared.counted.wait_timeout(cpu, 60 * SECOND)?;
    shared.packets().take();
    telling.expect("this CPU's copy", PACKETS, packets.per_cpu(0))?;
    telling.expect("the sum", 3 * PACKETS, packets.sum())?;
    let held = packets.get(cpu);
    telling.expect("preempt_count under get_cpu_var", 1, cpu.preempt_count())?;
    telling.expect("smp_processor_id there", 0, smp_processor_id(cpu))?;
    drop(held);
    if telling.makes("preemptible") {
        telling.fact("smp_processor_id in preemptible code", smp_processor_id(cpu));
    }
    Ok(())
}

fn counts(telling: &Telling<'_, '_>, shared: &Shared) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    shared.made.wait_timeout(cpu, 60 * SECOND)?;
    if let Some(packets) = shared.packets().clone() {
        (0..PACKETS).for_each(|_| packets.this_cpu_add(cpu, 2));
        drop(packets);
    }
    shared.counted.complete(cpu);
    Ok(())
}
