use std::sync::atomic::AtomicU32;

use super::*;
use crate::env::Class;
use crate::finding::Resource as Kind;
use crate::testing::{Lab, handler};
use crate::wait::sleep;

fn counting(cpu: &Cpu<'_>) -> (Arc<AtomicU32>, Work) {
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    let work = Work::new(cpu, move |cpu| {
        assert!(cpu.in_task() && !cpu.in_atomic() && cpu.task() != 0);
        sleep(cpu, 10).unwrap();
        counted.fetch_add(1, Ordering::Relaxed);
    });
    (count, work)
}

#[test]
fn it_runs_once_for_each_time_it_was_queued_and_may_sleep() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let (count, work) = counting(&cpu);
    assert!(!work.flush(&cpu), "idle");
    assert!(work.schedule(&cpu) && !work.schedule(&cpu) && work.is_busy());
    assert_eq!(lab.leaks(), [Kind::Work]);
    assert!(work.flush(&cpu) && !work.is_busy());
    assert!(work.schedule(&cpu) && work.flush(&cpu));
    assert_eq!(count.load(Ordering::Relaxed), 2);
    assert!(lab.findings().is_empty() && lab.leaks().is_empty());
}

#[test]
fn a_handler_queues_it_and_cancelling_takes_it_back() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let (count, work) = counting(&cpu);
    let work = Arc::new(work);
    let queued = work.clone();
    lab.solo.raise(handler(move |cpu| assert!(queued.schedule(cpu))));
    let _ = cpu.point(Class::Release, 0);
    assert!(work.cancel_sync(&cpu) && !work.cancel_sync(&cpu));
    sleep(&cpu, 100).unwrap();
    assert_eq!((count.load(Ordering::Relaxed), lab.leaks()), (0, vec![]));
    assert!(work.schedule(&cpu), "it can be queued again");
    work.flush(&cpu);
    assert!(lab.findings().is_empty());
}

#[test]
fn one_that_queues_itself_is_stopped_by_cancel() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let own: Arc<Locked<Option<Arc<Work>>>> = Arc::default();
    let (again, runs) = (own.clone(), Arc::new(AtomicU32::new(0)));
    let counted = runs.clone();
    let work = Arc::new(Work::new(&cpu, move |cpu| {
        let own = again.lock().clone();
        if counted.fetch_add(1, Ordering::Relaxed) < 5 {
            assert!(own.unwrap().schedule(cpu), "it runs, so it can be queued");
        }
    }));
    *own.lock() = Some(work.clone());
    work.schedule(&cpu);
    sleep(&cpu, 1).unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 6, "never twice at once, and each time");
    work.inner.progress.lock().canceling = 1;
    assert!(!work.schedule(&cpu));
    work.inner.progress.lock().canceling = 0;
    own.lock().take();
}

#[test]
fn who_waits_for_himself_is_told_and_goes_on() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let own: Arc<Locked<Option<Arc<Work>>>> = Arc::default();
    let itself = own.clone();
    let work = Arc::new(Work::new(&cpu, move |cpu| {
        let own = itself.lock().clone().unwrap();
        own.flush(cpu);
        own.cancel_sync(cpu);
    }));
    *own.lock() = Some(work.clone());
    work.schedule(&cpu);
    assert!(work.flush(&cpu));
    own.lock().take();
    assert_eq!(lab.findings(), ["waits-for-itself"; 2]);
    let text = lab.kernel().findings()[0].kind.to_string();
    assert_eq!(text, "possible recursive locking detected: flush_work waits for the work that calls it");
}

#[test]
fn on_an_ordered_queue_one_waits_for_another_in_vain() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let queue = Arc::new(Workqueue::ordered(&cpu).unwrap());
    let (_, second) = counting(&cpu);
    let second = Arc::new(second);
    let (waited, queues) = (second.clone(), queue.clone());
    let first = Work::new(&cpu, move |cpu| {
        waited.queue_on(cpu, &queues);
        waited.flush(cpu);
        queues.flush(cpu);
    });
    first.queue_on(&cpu, &queue);
    first.flush(&cpu);
    assert_eq!(lab.findings(), ["waits-for-itself"; 2]);
    drop(first);
    second.flush(&cpu);
    Arc::into_inner(queue).unwrap().destroy(&cpu);
    assert!(lab.leaks().is_empty());
}

#[test]
fn a_queue_is_drained_before_it_goes_and_takes_nothing_more() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let queue = Workqueue::new(&cpu).unwrap();
    let (count, work) = counting(&cpu);
    work.queue_on(&cpu, &queue);
    let late = Workqueue { queue: queue.queue.clone(), booked: 0 };
    queue.destroy(&cpu);
    assert_eq!(count.load(Ordering::Relaxed), 1);
    assert!(!work.queue_on(&cpu, &late));
    assert_eq!((lab.findings(), lab.leaks()), (vec!["queue-draining"], vec![]));
    std::mem::forget(Workqueue::new(&cpu).unwrap());
    assert_eq!(lab.leaks(), [Kind::Workqueue]);
    lab.solo.fail_nth(0);
    assert_eq!(Workqueue::new(&cpu).err(), Some(queue::NoQueue));
}

#[test]
fn a_delayed_one_waits_for_its_time_and_is_cancelled_before_and_after() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    let work = DelayedWork::new(&cpu, move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    work.modify(&cpu, 1000);
    assert_eq!(lab.leaks(), [Kind::Timer]);
    work.cancel_sync(&cpu);
    sleep(&cpu, 2000).unwrap();
    assert_eq!((count.load(Ordering::Relaxed), lab.leaks()), (0, vec![]));
    work.modify(&cpu, 1000);
    sleep(&cpu, 1500).unwrap();
    sleep(&cpu, 1500).unwrap();
    assert_eq!(count.load(Ordering::Relaxed), 1);
    work.modify(&cpu, 1_000_000);
    let before = cpu.now();
    assert!(work.flush(&cpu) && cpu.now() < before + 1_000_000);
    assert_eq!((count.load(Ordering::Relaxed), work.is_busy()), (2, false));
    assert!(lab.findings().is_empty() && lab.leaks().is_empty());
}

#[test]
fn waiting_sleeps_and_dropping_one_that_is_pending_is_told() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let (_, work) = counting(&cpu);
    let off = cpu.preempt_disable();
    work.flush(&cpu);
    work.cancel_sync(&cpu);
    drop(off);
    work.schedule(&cpu);
    drop(work);
    assert_eq!(lab.findings(), ["sleep-in-atomic", "sleep-in-atomic", "freed-active"]);
}

#[test]
fn one_that_unwinds_is_done_and_its_worker_gone() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let work = Work::new(&cpu, |_| std::panic::resume_unwind(Box::new("oops")));
    work.schedule(&cpu);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sleep(&cpu, 1))).is_err());
    assert!(!work.is_busy() && !work.flush(&cpu));
    let (_, next) = counting(&cpu);
    assert!(next.schedule(&cpu) && next.flush(&cpu));
}
