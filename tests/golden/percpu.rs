//! Per-CPU variables: what each CPU sees, what preempt_count says meanwhile, how far copies and neighbours are apart.

use std::sync::{Arc, mpsc};

use lowzone::world::Body;
use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::gfp::GFP_ATOMIC;
use lowzone_guest_mem::kernel::MachineConfig;
use lowzone_guest_mem::percpu::{PerCpu, PercpuCounter, alloc_percpu, alloc_percpu_gfp, define_per_cpu};
use lowzone_guest_mem::wait::sleep;

use crate::cpus;
use crate::table::{Golden, Outputs};

const PERCPU: Golden = Golden {
    name: "percpu_misc",
    text: include_str!("percpu_misc.tsv"),
    inputs: &["boot", "what"],
    compare: &[
        "cpu0",
        "cpu1",
        "distance",
        "before",
        "inside",
        "after",
        "nested_ok",
        "static0",
        "static1",
        "dyn0",
        "dyn1",
        "preempt_count_around",
        "ret",
        "value",
        "read",
        "sum",
        "batch",
    ],
};

const SECOND: u64 = 1_000_000_000;

/// Runs a row's code on CPU 0 of a fresh machine.
fn told(body: fn(&Cpu<'_>) -> Outputs) -> Outputs {
    let (to, from) = mpsc::channel();
    let body: Body = Box::new(move |cpu| to.send(body(cpu)).unwrap());
    cpus::run(MachineConfig::default(), vec![body], |kernel| {
        assert!(kernel.findings().is_empty());
        from.try_recv().unwrap()
    })
}

fn cells<const N: usize>(cells: [(&'static str, u64); N]) -> Outputs {
    cells.map(|(name, value)| (name, value.to_string())).into()
}

fn apart<T>(variable: &PerCpu<T>) -> u64 {
    variable.offset(1) - variable.offset(0)
}

fn preempt_counts(cpu: &Cpu<'_>) -> Outputs {
    let variable = alloc_percpu::<u64>(cpu).unwrap();
    let before = cpu.preempt_count();
    let held = variable.get(cpu);
    let inside = cpu.preempt_count();
    drop(held);
    cells([("before", before.into()), ("inside", inside.into()), ("after", cpu.preempt_count().into())])
}

fn nested(cpu: &Cpu<'_>) -> Outputs {
    let (one, other) = (alloc_percpu::<u64>(cpu).unwrap(), alloc_percpu::<u64>(cpu).unwrap());
    let outer = one.get(cpu);
    let once = cpu.preempt_count();
    let inner = other.get(cpu);
    let twice = cpu.preempt_count();
    drop(inner);
    let back = cpu.preempt_count() == once;
    drop(outer);
    cells([("inside", twice.into()), ("after", cpu.preempt_count().into()), ("nested_ok", back.into())])
}

fn one_held(cpu: &Cpu<'_>) -> Outputs {
    let variable = alloc_percpu::<u64>(cpu).unwrap();
    let held = variable.get(cpu);
    let inside = cpu.preempt_count();
    drop(held);
    cells([("inside", inside.into()), ("nested_ok", u64::from(cpu.preempt_count() == 0))])
}

/// Both CPUs count to 1000 twice, in a static and in an allocated variable.
fn counted() -> Outputs {
    let (to_other, from_first) = mpsc::channel();
    let (to_row, row) = mpsc::channel();
    let first = move |cpu: &Cpu<'_>| {
        let both = Arc::new((define_per_cpu(cpu, 0_u64).unwrap(), alloc_percpu::<u64>(cpu).unwrap()));
        to_other.send(both.clone()).unwrap();
        count(cpu, &both);
        sleep(cpu, SECOND).unwrap();
        let (fixed, made) = &*both;
        let (fixed, made) = ([0, 1].map(|cpu| fixed.per_cpu(cpu)), [0, 1].map(|cpu| made.per_cpu(cpu)));
        let seen = [("static0", fixed[0]), ("static1", fixed[1]), ("dyn0", made[0]), ("dyn1", made[1])];
        to_row.send(cells(seen)).unwrap();
    };
    let other = move |cpu: &Cpu<'_>| {
        let both = loop {
            match from_first.try_recv() {
                Ok(both) => break both,
                Err(_) => sleep(cpu, 1000).unwrap(),
            }
        };
        count(cpu, &both);
    };
    cpus::run(MachineConfig::default(), vec![Box::new(first), Box::new(other)], |_| row.try_recv().unwrap())
}

fn count(cpu: &Cpu<'_>, both: &(PerCpu<u64>, PerCpu<u64>)) {
    for _ in 0..2000 {
        both.0.this_cpu_inc(cpu);
        both.1.this_cpu_inc(cpu);
    }
}

fn initial(cpu: &Cpu<'_>) -> Outputs {
    let variable = define_per_cpu(cpu, 7_u64).unwrap();
    let other = alloc_percpu::<[u64; 8]>(cpu).unwrap();
    assert_eq!(apart(&other), apart(&variable), "all variables' copies are as far apart");
    cells([("cpu0", variable.per_cpu(0)), ("cpu1", variable.per_cpu(1)), ("distance", apart(&variable))])
}

fn neighbours(cpu: &Cpu<'_>) -> Outputs {
    let (one, other) = (alloc_percpu::<[u64; 8]>(cpu).unwrap(), alloc_percpu::<[u64; 8]>(cpu).unwrap());
    cells([("value", other.offset(0).abs_diff(one.offset(0)))])
}

fn reused(cpu: &Cpu<'_>) -> Outputs {
    let variable = alloc_percpu::<u64>(cpu).unwrap();
    let at = variable.offset(0);
    (0..2).for_each(|cpu| variable.set_per_cpu(cpu, u64::MAX));
    drop(variable);
    let again = alloc_percpu::<u64>(cpu).unwrap();
    assert_eq!(again.offset(0), at, "the same place");
    cells([("value", u64::from(again.sum() == 0))])
}

fn counter(cpu: &Cpu<'_>) -> Outputs {
    let counter = PercpuCounter::new(cpu, 5).unwrap();
    (0..40).for_each(|_| counter.add(cpu, 1));
    vec![
        ("read", counter.read().to_string()),
        ("sum", counter.sum().to_string()),
        ("batch", counter.batch().to_string()),
    ]
}

fn around(cpu: &Cpu<'_>) -> Outputs {
    let variable = alloc_percpu::<u64>(cpu).unwrap();
    let before = cpu.preempt_count();
    variable.this_cpu_add(cpu, 3);
    cells([("preempt_count_around", (before + cpu.preempt_count()).into())])
}

fn atomic(cpu: &Cpu<'_>) -> Outputs {
    let got = alloc_percpu_gfp::<u64>(cpu, GFP_ATOMIC);
    vec![("ret", if got.is_ok() { "ptr" } else { "NULL" }.to_owned())]
}

#[test]
fn golden_percpu_misc() {
    PERCPU.run(|row| match row.get("what") {
        "static_initial_value" => told(initial),
        "get_cpu_var_preempt_count" => told(preempt_counts),
        "get_cpu_ptr_preempt_count" => told(one_held),
        "nested_get_cpu" => told(nested),
        "this_cpu_inc_2x1000_each_cpu" => counted(),
        "this_cpu_ops_are_preempt_safe" => told(around),
        "alloc_percpu_gfp_ATOMIC" => told(atomic),
        "two_64B_allocations_distance" => told(neighbours),
        "reused_memory_zeroed" => told(reused),
        "percpu_counter_after_5+40" => told(counter),
        other => panic!("no such row: {other}"),
    });
}
