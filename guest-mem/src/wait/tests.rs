use std::sync::Arc;

use super::*;
use crate::testing::{Lab, handler};

#[test]
fn a_wait_without_a_wake_ends_at_its_deadline() {
    let lab = Lab::new();
    let queue = WaitQueue::new();
    lab.solo.set_now(100);
    let ended = queue.wait_event_timeout(&lab.cpu(), 50, || false);
    assert_eq!(ended, Err(WaitError::TimedOut { waited: 50 }));
    assert_eq!(queue.wait_event_timeout(&lab.cpu(), 0, || true), Ok(()), "a condition that holds needs no time");
}

#[test]
fn a_wake_between_the_look_and_the_park_is_not_lost() {
    let lab = Lab::new();
    let (cpu, queue, mut looks) = (lab.cpu(), WaitQueue::new(), 0);
    let ended = queue.wait_event_timeout(&cpu, u64::MAX, || {
        looks += 1;
        queue.wake_up(&cpu);
        looks == 2
    });
    assert_eq!((ended, looks, lab.solo.parks()), (Ok(()), 2, 0));
}

#[test]
fn a_handler_completes_the_waiter_and_each_complete_serves_one() {
    let lab = Lab::new();
    let (cpu, done) = (lab.cpu(), Arc::new(Completion::new()));
    let completes = done.clone();
    lab.solo.on_park(move |solo| {
        solo.set_now(7);
        solo.raise(handler(move |cpu| completes.complete(cpu)));
    });
    done.wait_timeout(&cpu, 1000).unwrap();
    assert_eq!(cpu.now(), 7);
    assert_eq!(done.wait_timeout(&cpu, 1000), Err(WaitError::TimedOut { waited: 1000 }));
    done.complete(&cpu);
    done.complete(&cpu);
    assert_eq!([done.try_wait(), done.try_wait(), done.try_wait()], [true, true, false]);
}

#[test]
fn a_condition_that_comes_with_the_deadline_counts() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    assert_eq!(WaitQueue::new().wait_event_timeout(&cpu, 10, || cpu.now() == 10), Ok(()));
}

#[test]
fn teardown_ends_every_wait() {
    let lab = Lab::new();
    lab.solo.on_park(crate::testing::Solo::die);
    let ended = WaitQueue::new().wait_event_timeout(&lab.cpu(), 10, || false);
    assert_eq!(ended, Err(WaitError::Dying));
    assert_eq!(sleep(&lab.cpu(), 10), Err(WaitError::Dying));
}

#[test]
fn waiting_with_interrupts_off_is_reported_and_takes_none() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let off = cpu.local_irq_save();
    lab.solo.raise(handler(|_| {}));
    sleep(&cpu, 5).unwrap();
    assert_eq!((lab.solo.pending(), lab.findings()), (1, vec!["sleep-in-atomic"]));
    drop(off);
    sleep(&cpu, 5).unwrap();
    assert_eq!((lab.solo.pending(), cpu.now()), (0, 10));
}
