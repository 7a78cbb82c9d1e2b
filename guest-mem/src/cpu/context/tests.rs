use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::env::Class;
use crate::softirq::Softirq;
use crate::tasklet::Tasklet;
use crate::testing::{Lab, handler, rows};

type State = [u64; 4];

fn state(cpu: &Cpu<'_>) -> State {
    let flags = [cpu.in_atomic(), cpu.irqs_disabled(), cpu.in_interrupt()].map(u64::from);
    [u64::from(cpu.preempt_count()), flags[0], flags[1], flags[2]]
}

/// sleep_state.tsv, every row and column.
#[test]
fn contexts_count_as_measured() {
    let (lab, lock) = (Lab::new(), crate::lock::SpinLock::new(()));
    let cpu = lab.cpu();
    let mut compared = 0;
    for row in rows(include_str!("../../../../tests/golden/sleep_state.tsv")) {
        let seen = match row.get("where") {
            "process" => state(&cpu),
            "spin_lock" => Some(lock.lock(&cpu)).map(|_held| state(&cpu)).unwrap(),
            "spin_lock_irqsave" => Some(lock.lock_irqsave(&cpu)).map(|_held| state(&cpu)).unwrap(),
            "local_bh_disable" => Some(cpu.local_bh_disable()).map(|_off| state(&cpu)).unwrap(),
            "rcu_read_lock" => Some(cpu.rcu_read_lock()).map(|_read| state(&cpu)).unwrap(),
            "tasklet" => {
                let seen = Arc::new(crate::lock::Locked::new([0; 4]));
                let kept = seen.clone();
                let tasklet = Tasklet::new(&cpu, move |cpu| *kept.lock() = state(cpu));
                tasklet.schedule(&cpu);
                tasklet.kill(&cpu);
                drop(tasklet);
                Arc::into_inner(seen).map_or([0; 4], |seen| *seen.lock())
            }
            other => panic!("{other} is not compared"),
        };
        let want = ["preempt_count", "in_atomic", "irqs_disabled", "in_interrupt"].map(|n| row.number(n).unwrap());
        assert_eq!(seen, want, "{}", row.line);
        compared += 1;
    }
    assert_eq!((compared, state(&cpu)), (6, [0; 4]));
}

#[test]
fn each_context_has_its_name_and_forbids_sleep() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let check = |want: Context| {
        assert_eq!(cpu.context(), want);
        let before = lab.findings().len();
        cpu.might_sleep("here");
        assert_eq!(lab.findings().len() - before, usize::from(want != Context::Process), "{want}");
    };
    check(Context::Process);
    let rcu = cpu.rcu_read_lock();
    check(Context::RcuRead);
    let text = lab.kernel().findings()[0].kind.to_string();
    assert!(text.ends_with("preempt_count: 0, RCU nest depth: 1)"), "{text}");
    let preempt = cpu.preempt_disable();
    check(Context::PreemptOff);
    let bh = cpu.local_bh_disable();
    check(Context::BhOff);
    assert!(cpu.in_task() && cpu.in_softirq() && !cpu.in_serving_softirq());
    let irqs = cpu.local_irq_save();
    check(Context::IrqsOff);
    drop((irqs, bh, preempt, rcu));
    check(Context::Process);
}

#[test]
fn softirqs_wait_for_the_end_of_a_section_and_enable_runs_them_at_once() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let tasklet = Tasklet::new(&cpu, move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let ran = || runs.load(Ordering::Relaxed);
    let off = cpu.local_bh_disable();
    tasklet.schedule(&cpu);
    let _ = cpu.point(Class::Release, 0);
    assert_eq!((ran(), cpu.local_softirq_pending()), (0, 1 << Softirq::Tasklet as u32));
    off.enable();
    assert_eq!(ran(), 1);
    let off = cpu.local_bh_disable();
    tasklet.schedule(&cpu);
    drop(off);
    assert_eq!(ran(), 1, "dropping has no point");
    let _ = cpu.point(Class::Release, 0);
    assert_eq!((ran(), cpu.local_softirq_pending()), (2, 0));
    assert!(lab.findings().is_empty());
}

#[test]
fn softirqs_are_not_switched_where_interrupts_are_off() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let irqs = cpu.local_irq_save();
    cpu.local_bh_disable().enable();
    drop(irqs);
    lab.solo.raise(handler(|cpu| drop(cpu.local_bh_disable())));
    let _ = cpu.point(Class::Release, 0);
    assert_eq!(lab.findings(), ["wrong-context"; 2]);
    let text = lab.kernel().findings()[0].kind.to_string();
    assert_eq!(text, "local_bh_enable called with interrupts off");
}
