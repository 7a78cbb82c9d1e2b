use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::testing::{Lab, handler};

fn counting(cpu: &Cpu<'_>) -> (Arc<AtomicU32>, Tasklet) {
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    let tasklet = Tasklet::new(cpu, move |cpu| {
        assert_eq!(cpu.preempt_count() & 0xff00, 0x100);
        counted.fetch_add(1 << (8 * cpu.id()), Ordering::Relaxed);
    });
    (count, tasklet)
}

#[test]
fn it_runs_once_and_where_it_was_scheduled() {
    let lab = Lab::new();
    let (zero, one) = (lab.cpu(), lab.cpu_number(1));
    let (count, tasklet) = counting(&zero);
    assert!(tasklet.schedule(&one) && !tasklet.schedule(&zero));
    let _ = zero.point(Class::Release, 0);
    assert_eq!(count.load(Ordering::Relaxed), 0, "it is not CPU 0's");
    let _ = one.point(Class::Release, 0);
    assert_eq!(count.load(Ordering::Relaxed), 0x100);
    assert!(tasklet.schedule(&zero));
    tasklet.kill(&zero);
    assert_eq!((count.load(Ordering::Relaxed), tasklet.is_active()), (0x101, false));
    assert!(lab.findings().is_empty() && lab.leaks().is_empty());
}

#[test]
fn one_that_runs_elsewhere_is_put_off() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let (count, tasklet) = counting(&cpu);
    tasklet.inner.state.fetch_or(RUN, Ordering::Relaxed);
    tasklet.schedule(&cpu);
    let _ = cpu.point(Class::Release, 0);
    assert_eq!((count.load(Ordering::Relaxed), lab.kernel().softirqs().any(0)), (0, true));
    tasklet.inner.state.fetch_and(!RUN, Ordering::Relaxed);
    tasklet.kill(&cpu);
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

#[test]
fn a_disabled_one_rests_until_it_is_enabled_as_often() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let (count, tasklet) = counting(&cpu);
    tasklet.disable(&cpu);
    tasklet.disable_nosync();
    tasklet.schedule(&cpu);
    let _ = cpu.point(Class::Release, 0);
    tasklet.enable(&cpu);
    let _ = cpu.point(Class::Release, 0);
    assert_eq!(count.load(Ordering::Relaxed), 0);
    tasklet.enable(&cpu);
    let _ = cpu.point(Class::Release, 0);
    assert_eq!(count.load(Ordering::Relaxed), 1);
    tasklet.enable(&cpu);
    tasklet.schedule(&cpu);
    tasklet.kill(&cpu);
    assert_eq!(count.load(Ordering::Relaxed), 2, "one enable too many is none");
}

#[test]
fn kill_and_disable_sleep() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let tasklet = Arc::new(Tasklet::new(&cpu, |_| {}));
    let off = cpu.preempt_disable();
    tasklet.disable(&cpu);
    tasklet.enable(&cpu);
    tasklet.kill(&cpu);
    drop(off);
    let killed = tasklet.clone();
    lab.solo.raise(handler(move |cpu| killed.kill(cpu)));
    let _ = cpu.point(Class::Release, 0);
    assert_eq!(lab.findings(), ["sleep-in-atomic"; 3]);
}

#[test]
fn one_that_unwinds_runs_no_more() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let tasklet = Tasklet::new(&cpu, |_| std::panic::resume_unwind(Box::new("oops")));
    tasklet.schedule(&cpu);
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _ = cpu.point(Class::Release, 0);
    }));
    assert!(unwound.is_err() && !tasklet.is_active());
    assert_eq!(cpu.preempt_count(), 0);
}

#[test]
fn a_dying_cpu_waits_for_nothing_and_blames_nobody() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let (_, tasklet) = counting(&cpu);
    tasklet.disable_nosync();
    tasklet.schedule(&cpu);
    lab.solo.die();
    tasklet.kill(&cpu);
    drop(tasklet);
    assert!(lab.findings().is_empty());
}
