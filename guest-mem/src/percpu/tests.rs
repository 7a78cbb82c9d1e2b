//! Unit tests of per-CPU variables; what was measured is the golden table's.

use super::*;
use crate::finding::Resource;
use crate::gfp::{__GFP_NOWARN, GFP_ATOMIC};
use crate::lock::SpinLock;
use crate::testing::Lab;

#[test]
fn each_cpu_has_its_own_copy_and_only_the_sum_sees_all() {
    let lab = Lab::new();
    let cpus = [lab.cpu_number(0), lab.cpu_number(1)];
    let hits = alloc_percpu::<u64>(&cpus[0]).unwrap();
    cpus.iter().for_each(|cpu| hits.this_cpu_add(cpu, 10 + u64::from(cpu.id())));
    hits.this_cpu_inc(&cpus[1]);
    assert_eq!((hits.per_cpu(0), hits.per_cpu(1), hits.sum()), (10, 12, 22));
    assert_eq!((hits.this_cpu_xchg(&cpus[0], 1), hits.this_cpu_cmpxchg(&cpus[0], 9, 5)), (10, 1));
    assert_eq!((hits.this_cpu_cmpxchg(&cpus[0], 1, 5), hits.this_cpu_read(&cpus[0])), (1, 5));
    assert_eq!(lab.leaks(), [Resource::PerCpu]);
    drop(hits);
    assert_eq!((lab.leaks(), lab.findings()), (vec![], vec![]));
}

#[test]
fn sleeping_with_a_variable_held_and_asking_who_i_am_are_found() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let stats = define_per_cpu(&cpu, 3_i32).unwrap();
    {
        let mut mine = stats.get(&cpu);
        mine.set(mine.value() + 1);
        assert_eq!(smp_processor_id(&cpu), 0);
        stats.__this_cpu_add(&cpu, 1);
        cpu.might_sleep("msleep");
    }
    assert_eq!((stats.per_cpu(0), stats.per_cpu(1), lab.findings()), (5, 3, vec!["sleep-in-atomic"]));
    let lock = SpinLock::new(());
    let held = lock.lock(&cpu);
    smp_processor_id(&cpu);
    drop(held);
    smp_processor_id(&cpu);
    stats.__this_cpu_add(&cpu, 1);
    let texts: Vec<_> = lab.kernel().findings()[1..].iter().map(|finding| finding.kind.to_string()).collect();
    assert_eq!(
        texts,
        [
            "BUG: using smp_processor_id() in preemptible [00000000] code: lowzone/0",
            "BUG: using __this_cpu_add() in preemptible [00000000] code: lowzone/0",
        ]
    );
}

#[test]
fn sizes_and_alignments_that_cannot_be_are_refused() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let ask = |size, align| __alloc_percpu_gfp(&cpu, size, align, GFP_KERNEL).map(|place| release(lab.kernel(), place));
    for (size, align) in [(1, 1), (1, 3), (MAX_SIZE, MAX_ALIGN)] {
        assert_eq!(ask(size, align), Ok(()), "an alignment below 4 becomes 4");
    }
    for (size, align, illegal) in
        [(0, 8, (0, 8)), (MAX_SIZE + 1, 8, (MAX_SIZE + 4, 8)), (8, 24, (8, 24)), (8, 8192, (8, 8192))]
    {
        assert_eq!(ask(size, align), Err(PerCpuError::Illegal { size: illegal.0, align: illegal.1 }));
    }
    assert_eq!(lab.findings(), ["percpu-illegal"; 4]);
}

#[test]
fn an_atomic_mask_gets_only_what_is_populated_and_ten_failures_are_printed() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let mut held = Vec::new();
    while let Ok(block) = alloc_percpu_gfp::<[u64; 128]>(&cpu, GFP_ATOMIC | __GFP_NOWARN) {
        held.push(block);
    }
    assert_eq!((held.len(), lab.log()), (28, vec![]), "28 KiB from boot, silently");
    for _ in 0..12 {
        assert!(alloc_percpu_gfp::<[u64; 128]>(&cpu, GFP_ATOMIC).is_err());
    }
    let log = lab.log();
    let text = "percpu: allocation failed, size=1024 align=8 atomic=1, atomic alloc failed, no space left";
    assert_eq!((log.len(), log[0].as_str(), log[10].as_str()), (11, text, "percpu: limit reached, disable warning"));
    let free = |lab: &Lab| lab.kernel().memory.lock().zones.stats().iter().map(|zone| zone.free).sum::<u64>();
    let before = free(&lab);
    let grown = alloc_percpu::<[u64; 128]>(&cpu).unwrap();
    assert!(alloc_percpu_gfp::<[u64; 128]>(&cpu, GFP_ATOMIC).is_ok(), "its page is populated now");
    assert!(free(&lab) <= before - 2, "a page for each CPU");
    drop((held, grown));
    assert_eq!(lab.leaks(), [], "an empty chunk goes with its pages");
}

#[test]
fn a_failure_to_grow_leaves_nothing() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let held: Vec<_> = (0..28).map(|_| alloc_percpu::<[u64; 128]>(&cpu).unwrap()).collect();
    let why = |nth| {
        lab.solo.fail_nth(nth);
        match alloc_percpu::<u64>(&cpu) {
            Err(PerCpuError::NoMemory { why, .. }) => why,
            _ => "it went well",
        }
    };
    // Keeps a slab for the chunk's description.
    let anchor = crate::kbuf::KBuf::kmalloc(&cpu, area::CHUNK_STRUCT, GFP_KERNEL).unwrap();
    assert_eq!((why(0), why(1)), ("injected", "failed to allocate new chunk"));
    lab.solo.points();
    // Its own point, the chunk's description, then a page for each CPU.
    let _ = alloc_percpu::<u64>(&cpu);
    let points = lab.solo.points();
    let last = u64::try_from(points.len()).unwrap() - 1;
    assert_eq!((last, why(last)), (3, "failed to populate"));
    drop((held, anchor));
    assert_eq!(lab.leaks(), []);
}

#[test]
fn modules_share_8_kib() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let held: Vec<_> = (0..8).map(|n| define_per_cpu(&cpu, [n; 256]).unwrap()).collect();
    assert!(define_per_cpu(&cpu, 0_u32).is_err());
    drop(held);
    assert!(define_per_cpu(&cpu, 0_u32).is_ok());
}

#[test]
fn null_that_is_offset_for_a_cpu_is_told_where_it_is_used_and_frees_nothing() {
    let lab = Lab::new();
    let cpu = lab.cpu_number(1);
    lab.solo.fail_nth(0);
    let failed = alloc_percpu::<u64>(&cpu);
    assert!(matches!(failed, Err(PerCpuError::NoMemory { .. })), "its point fails though there is room");
    let null = misuse::unchecked(&cpu, failed);
    null.this_cpu_inc(&cpu);
    let finding = lab.kernel().findings().remove(0);
    let address = format!("address: {:016x}", null.offset(1));
    assert!(null.offset(1) > 0 && finding.to_string().contains(&address), "{finding}");
    assert!(finding.to_string().contains("percpu/tests.rs:"), "{finding}");
    assert_eq!(null.sum(), 1);
    drop(null);
    assert_eq!(lab.findings(), ["null-dereference"; 2]);
    let whole = misuse::unchecked(&cpu, alloc_percpu::<u64>(&cpu));
    whole.this_cpu_inc(&cpu);
    assert_eq!((whole.sum(), lab.findings().len()), (1, 2));
}
