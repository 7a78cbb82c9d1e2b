use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};

use super::desc::NOBODY_CARED;
use super::*;
use crate::env::IrqReturn;
use crate::testing::{Handler, Lab, handler};

fn fire(lab: &Lab, irq: u32) -> bool {
    let found = lab.kernel().irqs().handler(irq);
    let fired = found.is_some();
    found.into_iter().for_each(|handler| lab.solo.raise(handler));
    let _ = lab.cpu().point(Class::Release, 0);
    fired
}

fn counting(claim: bool) -> (Arc<AtomicU32>, Arc<dyn IrqHandler>) {
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    let handler = Handler(move |cpu: &Cpu<'_>| {
        assert!(cpu.in_hardirq());
        counted.fetch_add(1, Ordering::Relaxed);
        if claim { IrqReturn::Handled } else { IrqReturn::None }
    });
    (count, Arc::new(handler))
}

#[test]
fn handlers_share_a_line_until_each_is_freed() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    assert!(!fire(&lab, 5), "nobody asked for it yet");
    let ((a, handler_a), (b, handler_b)) = (counting(false), counting(true));
    let line_a = request_irq(&cpu, 5, handler_a).unwrap();
    let line_b = request_irq(&cpu, 5, handler_b).unwrap();
    let counts = || (a.load(Ordering::Relaxed), b.load(Ordering::Relaxed));
    assert!(fire(&lab, 5) && line_a.irq() == 5);
    assert_eq!(counts(), (1, 1));
    line_a.free(&cpu);
    assert!(fire(&lab, 5));
    assert_eq!((counts(), lab.leaks()), ((1, 2), vec![crate::finding::Resource::Irq]));
    drop(line_b);
    assert!(!fire(&lab, 5) && lab.leaks().is_empty() && lab.findings().is_empty());
}

#[test]
fn a_handler_detached_while_another_runs_hides_none() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let slot: Arc<Locked<Option<IrqLine>>> = Arc::default();
    let taken = slot.clone();
    *slot.lock() = Some(request_irq(&cpu, 5, handler(move |_| drop(taken.lock().take()))).unwrap());
    let (second, handler) = counting(true);
    let _line = request_irq(&cpu, 5, handler).unwrap();
    fire(&lab, 5);
    assert_eq!(second.load(Ordering::Relaxed), 1, "it moved up to the place of the one that detached itself");
}

#[test]
fn a_line_that_nobody_claims_is_shut_off_and_a_new_request_opens_it() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let (count, handler) = counting(false);
    let line = request_irq(&cpu, 9, handler.clone()).unwrap();
    let fired = (0..2 * NOBODY_CARED).filter(|_| fire(&lab, 9)).count();
    assert_eq!((fired, count.load(Ordering::Relaxed)), (1000, 1000));
    let finding = &lab.kernel().findings()[0].kind;
    assert_eq!(finding.to_string(), "irq 9: nobody cared (try booting with the \"irqpoll\" option)");
    assert_eq!(lab.findings().len(), 1);
    line.free(&cpu);
    let _line = request_irq(&cpu, 9, handler).unwrap();
    assert!(fire(&lab, 9));
}

#[test]
fn a_failed_request_leaves_nothing() {
    let lab = Lab::new();
    lab.solo.fail_nth(0);
    let failed = request_irq(&lab.cpu(), 3, handler(|_| {})).err();
    assert_eq!(failed, Some(IrqError::NoMemory { irq: 3 }));
    assert!(!fire(&lab, 3) && lab.leaks().is_empty());
}

#[test]
fn free_waits_for_a_running_handler_and_not_for_one_that_unwound() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let line = request_irq(&cpu, 4, handler(|_| std::panic::resume_unwind(Box::new("oops")))).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| fire(&lab, 4))).is_err());
    line.free(&cpu);
    assert_eq!((cpu.now(), lab.solo.parks()), (0, 0));

    let line = request_irq(&cpu, 4, handler(|_| {})).unwrap();
    let desc = line.desc.clone();
    desc.pretend_running(1);
    lab.solo.on_park(move |solo| {
        solo.set_now(55);
        desc.pretend_running(0);
        solo.raise(handler(|_| {}));
    });
    let desc = line.desc.clone();
    lab.solo.on_park(move |solo| solo.raise(desc));
    line.free(&cpu);
    assert!(cpu.now() >= 55 && cpu.now() < SYNC_TIMEOUT, "woken, not timed out: {}", cpu.now());
}

#[test]
fn request_and_free_may_sleep() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    lab.solo.raise(handler(|cpu| drop(request_irq(cpu, 1, handler(|_| {})))));
    let _ = cpu.point(Class::Release, 0);
    assert_eq!(lab.findings(), ["sleep-in-atomic"]);
}
