use super::*;
use crate::env::Class;
use crate::lock::SpinLock;
use crate::testing::{Lab, handler};
use crate::wait::sleep;

/// Runs a closure each time; keeps when it ran.
struct Each<F>(Locked<Vec<u64>>, F);

impl<F: Fn(&Cpu<'_>) + Send + Sync> TimerCallback for Each<F> {
    fn expired(&self, cpu: &Cpu<'_>) {
        assert_eq!((cpu.preempt_count() & !0xff, cpu.irqs_disabled()), (0x100, false), "softirq context");
        self.0.lock().push(cpu.now());
        (self.1)(cpu);
    }
}

fn each<F: Fn(&Cpu<'_>) + Send + Sync>(body: F) -> Arc<Each<F>> {
    Arc::new(Each(Locked::default(), body))
}

#[test]
fn a_timer_runs_once_for_each_arming_and_the_last_arming_counts() {
    let lab = Lab::new();
    let (cpu, body) = (lab.cpu(), each(|_| {}));
    let timer = Timer::new(&cpu, body.clone());
    timer.modify(&cpu, 10);
    timer.modify(&cpu, 30);
    assert_eq!((lab.kernel().timers().next(), lab.leaks()), (Some(30), vec![crate::finding::Resource::Timer]));
    sleep(&cpu, 100).unwrap();
    assert_eq!(*body.0.lock(), [30]);
    timer.modify(&cpu, 110);
    timer.delete_sync(&cpu);
    sleep(&cpu, 100).unwrap();
    assert_eq!((body.0.lock().len(), lab.leaks()), (1, vec![]));
    timer.modify(&cpu, 300);
    drop(timer);
    assert_eq!(lab.kernel().timers().next(), None, "dropping disarms");
}

#[test]
fn a_callback_may_arm_itself_and_timers_run_by_time() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let slot: Arc<Locked<Option<Timer>>> = Arc::default();
    let again = slot.clone();
    let body = each(move |cpu: &Cpu<'_>| {
        if let Some(timer) = again.lock().as_ref().filter(|_| cpu.now() < 30) {
            timer.modify(cpu, cpu.now() + 10);
        }
    });
    *slot.lock() = Some(Timer::new(&cpu, body.clone()));
    if let Some(timer) = slot.lock().as_ref() {
        timer.modify(&cpu, 10);
    }
    sleep(&cpu, 100).unwrap();
    assert_eq!(*body.0.lock(), [10, 20, 30]);
    slot.lock().take();
}

#[test]
fn a_timer_that_is_due_while_another_runs_comes_after_it_and_does_not_hang() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let second = each(|_| {});
    let late = Timer::new(&cpu, second.clone());
    let first = each(|cpu: &Cpu<'_>| {
        let _ = cpu.point(Class::Release, 0);
    });
    let early = Timer::new(&cpu, first.clone());
    early.modify(&cpu, 5);
    late.modify(&cpu, 5);
    sleep(&cpu, 10).unwrap();
    assert_eq!((first.0.lock().len(), second.0.lock().len()), (1, 1));
}

#[test]
fn the_softirq_runs_over_a_plain_spinlock_and_finds_it_held() {
    let lab = Lab::new();
    let (cpu, lock) = (lab.cpu(), SpinLock::new(()));
    let body = each(|_| {});
    let timer = Timer::new(&cpu, body.clone());
    timer.modify(&cpu, 5);
    let held = lock.lock_irqsave(&cpu);
    lab.solo.set_now(5);
    let _ = cpu.point(Class::Release, 0);
    assert!(body.0.lock().is_empty(), "interrupts are off");
    drop(held);
    timer.modify(&cpu, 9);
    let held = lock.lock(&cpu);
    lab.solo.set_now(9);
    let _ = cpu.point(Class::Release, 0);
    assert_eq!(*body.0.lock(), [9], "a plain lock keeps no softirq off, as in Linux");
    drop(held);
}

#[test]
fn a_callback_that_unwinds_does_not_stop_the_clock() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let bad = Timer::new(&cpu, each(|_| std::panic::resume_unwind(Box::new("oops"))));
    bad.modify(&cpu, 1);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sleep(&cpu, 5))).is_err());
    let body = each(|_| {});
    let timer = Timer::new(&cpu, body.clone());
    timer.modify(&cpu, 20);
    sleep(&cpu, 50).unwrap();
    bad.delete_sync(&cpu);
    assert_eq!(*body.0.lock(), [20]);
}

#[test]
fn delete_sync_spins_under_a_lock_and_complains_only_in_hardirq() {
    let lab = Lab::new();
    let (cpu, lock) = (lab.cpu(), SpinLock::new(()));
    let timer = Arc::new(Timer::new(&cpu, each(|_| {})));
    let held = lock.lock(&cpu);
    timer.delete_sync(&cpu);
    drop(held);
    assert!(lab.findings().is_empty());
    let deleted = timer.clone();
    lab.solo.raise(handler(move |cpu| deleted.delete_sync(cpu)));
    let _ = cpu.point(Class::Release, 0);
    assert_eq!(lab.findings(), ["sleep-in-atomic"]);
}
