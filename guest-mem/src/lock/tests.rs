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
