use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::*;
use crate::testing::{Lab, handler};

#[test]
fn irqsave_masks_delivery_until_the_lock_is_given_back() {
    let (lab, lock) = (Lab::new(), SpinLock::new(1));
    let cpu = lab.cpu();
    lab.solo.raise(handler(|_| {}));
    let guard = lock.lock_irqsave(&cpu);
    assert_eq!(lab.solo.pending(), 1, "interrupts go off before the lock's own point");
    let _ = cpu.point(Class::Release, 0);
    assert_eq!(lab.solo.pending(), 1, "interrupts are off");
    drop(guard);
    let _ = cpu.point(Class::Release, 0);
    assert_eq!(lab.solo.pending(), 0);
    let plain = lock.lock(&cpu);
    lab.solo.raise(handler(|_| {}));
    let _ = cpu.point(Class::Release, 0);
    assert_eq!(lab.solo.pending(), 0, "a plain lock masks nothing");
    drop(plain);
}

#[test]
fn a_handler_that_takes_the_lock_of_what_it_interrupted_is_reported_and_halted() {
    let lab = Lab::new();
    let lock = Arc::new(SpinLock::new(0));
    let cpu = lab.cpu();
    let taken = lock.clone();
    let line = line!() + 2;
    let halted = catch_unwind(AssertUnwindSafe(|| {
        let _guard = lock.lock(&cpu);
        lab.solo.raise(handler(move |cpu| *taken.lock(cpu) += 1));
        let _ = cpu.point(Class::Release, 0);
    }));
    assert_eq!(halted.unwrap_err().downcast_ref::<Halt>(), Some(&Halt::SelfDeadlock));
    let finding = &lab.kernel().findings()[0];
    assert_eq!(finding.kind.to_string(), "BUG: spinlock recursion on CPU#0");
    let sites: Vec<_> = finding.sites.iter().map(|site| (site.0, site.1.site.place().unwrap().line() - line)).collect();
    assert_eq!(sites, [("taken again at", 1), ("held since", 0)]);
    // The unwinding gave the lock back, and the CPU's counts too.
    assert_eq!((cpu.preempt_count(), *lock.lock(&cpu)), (0, 0));
}

#[test]
fn a_mutex_taken_twice_is_a_hang_and_no_spinlock_bug() {
    let (lab, mutex) = (Lab::new(), Mutex::new(()));
    let cpu = lab.cpu();
    let held = mutex.lock(&cpu);
    assert!(catch_unwind(AssertUnwindSafe(|| drop(mutex.lock(&cpu)))).is_err());
    drop(held);
    let finding = &lab.kernel().findings()[0].kind;
    assert_eq!(finding.to_string(), "BUG: mutex recursion on CPU#0");
    assert_eq!(finding.config(), Some("CONFIG_DETECT_HUNG_TASK"));
}

#[test]
fn a_contended_lock_waits_and_a_dying_cpu_does_not() {
    let lab = Lab::new();
    let lock = Arc::new(SpinLock::new(0));
    let (cpu, other) = (lab.cpu(), lab.cpu_number(1));
    // The other CPU's guard is given back while this one waits.
    let held = Box::leak(Box::new(lock.clone())).0.value.lock().unwrap();
    lock.0.holder.set(&other, other.owner());
    let slot = std::rc::Rc::new(Cell::new(Some(held)));
    let (given, lock2) = (slot.clone(), lock.clone());
    lab.solo.on_park(move |solo| {
        drop(given.take());
        crate::env::Env::wake(solo, lock2.0.key, 1);
    });
    *lock.lock(&cpu) += 1;
    assert_eq!((lab.solo.parks(), *lock.lock(&cpu)), (1, 1));

    let held = lock.lock(&other);
    lab.solo.die();
    let halted = catch_unwind(AssertUnwindSafe(|| drop(lock.lock(&cpu)))).unwrap_err();
    assert_eq!(halted.downcast_ref::<Halt>(), Some(&Halt::Dying));
    drop(held);
    assert_eq!(cpu.preempt_count(), 0);
    assert!(lab.findings().is_empty());
}

#[test]
fn a_lock_that_is_held_at_the_end_is_told_with_its_line() {
    let (lab, spin, mutex) = (Lab::new(), SpinLock::new(()), Mutex::new(()));
    let cpu = lab.cpu_number(1);
    drop(spin.lock(&cpu));
    drop(mutex.lock(&cpu));
    assert!(lab.leaks().is_empty());
    let line = line!() + 1;
    let held = (mutex.lock(&cpu), spin.lock_irqsave(&cpu));
    let leaks = crate::stats::leaks(lab.kernel());
    let seen: Vec<_> = leaks.iter().map(|leak| (leak.resource, leak.at.get())).collect();
    assert_eq!(seen, [(crate::finding::Resource::Lock, 1); 2]);
    assert_eq!(leaks[0].owner.site.place().unwrap().line(), line);
    drop(held);
    // Locks that are gone leave the list when it would grow.
    (0..100).for_each(|n| drop(SpinLock::new(n).lock(&cpu)));
    assert!(lab.leaks().is_empty() && lab.kernel().held_locks().is_empty());
}

#[test]
fn the_lock_is_a_point_before_it_is_held() {
    let (lab, lock) = (Lab::new(), SpinLock::new(()));
    drop(lock.lock(&lab.cpu()));
    assert_eq!(lab.solo.points(), [Class::Lock]);
    assert_eq!(held(), 0);
}

/// The handler comes between two sections, so nothing deadlocks; lockdep tells all the same.
#[test]
fn a_lock_shared_with_a_handler_and_taken_with_interrupts_on_is_told_once() {
    let lab = Lab::new();
    let (cpu, lock) = (lab.cpu(), Arc::new(SpinLock::new(0)));
    let visit = |lock: &Arc<SpinLock<i32>>| {
        let taken = lock.clone();
        lab.solo.raise(handler(move |cpu| *taken.lock(cpu) += 1));
        let _ = cpu.point(Class::Release, 0);
    };
    *lock.lock_irqsave(&cpu) += 1;
    visit(&lock);
    *lock.lock_irqsave(&cpu) += 1;
    assert!(lab.findings().is_empty(), "that is how it is done");
    let line = line!() + 1;
    *lock.lock(&cpu) += 1;
    visit(&lock);
    drop(lock.lock(&cpu));
    let finding = lab.kernel().findings().remove(0);
    let text = "inconsistent lock state: inconsistent {HARDIRQ-ON-W} -> {IN-HARDIRQ-W} usage";
    assert_eq!((lab.findings().len(), finding.kind.to_string().as_str()), (1, text));
    assert_eq!((finding.sites[1].0, finding.sites[1].1.site.place().unwrap().line()), ("taken with it on at", line));
}

#[test]
fn softirqs_have_a_form_of_their_own() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let told = |take: fn(&SpinLock<u32>, &Cpu<'_>)| {
        let (lock, before) = (Arc::new(SpinLock::new(0)), lab.findings().len());
        let taken = lock.clone();
        let tasklet = crate::tasklet::Tasklet::new(&cpu, move |cpu| *taken.lock(cpu) += 1);
        tasklet.schedule(&cpu);
        tasklet.kill(&cpu);
        take(&lock, &cpu);
        lab.kernel().findings()[before..].iter().map(|finding| finding.kind.to_string()).collect::<Vec<_>>()
    };
    assert!(told(|lock, cpu| *lock.lock_bh(cpu) += 1).is_empty());
    assert!(told(|lock, cpu| *lock.lock_irqsave(cpu) += 1).is_empty());
    let text = "inconsistent lock state: inconsistent {SOFTIRQ-ON-W} -> {IN-SOFTIRQ-W} usage";
    assert_eq!(told(|lock, cpu| *lock.lock(cpu) += 1), [text]);
    let lock = SpinLock::new(());
    let held = lock.lock_bh(&cpu);
    assert_eq!((cpu.preempt_count(), cpu.irqs_disabled()), (0x201, false));
    drop(held);
    assert_eq!(cpu.preempt_count(), 0);
}

#[test]
fn trying_takes_what_is_free_and_never_waits() {
    let lab = Lab::new();
    let (cpu, other) = (lab.cpu(), lab.cpu_number(1));
    let (spin, mutex) = (SpinLock::new(1), Mutex::new(2));
    let held = (spin.try_lock(&cpu).unwrap(), mutex.try_lock(&cpu).unwrap());
    assert_eq!((*held.0, *held.1, cpu.preempt_count()), (1, 2, 1));
    assert!(spin.try_lock(&other).is_none() && mutex.try_lock(&cpu).is_none());
    assert_eq!((lab.leaks().len(), lab.solo.parks()), (2, 0));
    drop(held);
    assert!(lab.findings().is_empty() && lab.leaks().is_empty());
    let off = cpu.local_bh_disable();
    drop(mutex.try_lock(&cpu));
    drop(off);
    assert_eq!(lab.findings(), ["wrong-context"]);
}

#[test]
fn who_gives_back_what_another_holds_is_told_and_the_lock_stays() {
    let lab = Lab::new();
    let (cpu, other) = (lab.cpu(), lab.cpu_number(1));
    let (spin, mutex) = (SpinLock::new(()), Mutex::new(()));
    let held = (mutex.lock(&cpu), spin.lock(&cpu));
    misuse::spin_unlock(&other, &spin);
    misuse::mutex_unlock(&other, &mutex);
    assert!(spin.try_lock(&other).is_none() && mutex.try_lock(&other).is_none());
    drop(held);
    misuse::spin_unlock(&cpu, &spin);
    let texts: Vec<_> = lab.kernel().findings().iter().map(|finding| finding.kind.to_string()).collect();
    let wrong = |lock: &str| format!("BUG: {lock} wrong owner on CPU#1, owner CPU#0");
    assert_eq!(texts, [wrong("spinlock"), wrong("mutex"), "BUG: spinlock already unlocked on CPU#0".into()]);
    let configs: Vec<_> = lab.kernel().findings().iter().map(|finding| finding.kind.config()).collect();
    assert_eq!(configs[..2], [Some("CONFIG_DEBUG_SPINLOCK"), Some("CONFIG_DEBUG_MUTEXES")]);
}

#[test]
fn two_tasks_of_one_cpu_exclude_each_other_by_a_mutex() {
    let lab = Lab::new();
    let (cpu, task) = (lab.cpu(), Cpu::of_task(0, 3, lab.machine.kernel_ref(), &lab.solo));
    let mutex = Mutex::new(());
    let held = mutex.lock(&cpu);
    lab.solo.die();
    let halted = catch_unwind(AssertUnwindSafe(|| drop(mutex.lock(&task)))).unwrap_err();
    assert_eq!(halted.downcast_ref::<Halt>(), Some(&Halt::Dying), "it waited, as another task does");
    drop(held);
    assert!(lab.findings().is_empty());
}
