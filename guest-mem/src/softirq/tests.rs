use std::sync::atomic::AtomicU32 as Count;

use super::*;
use crate::env::Class;
use crate::irq::{irq_inject_interrupt, request_irq};
use crate::tasklet::Tasklet;
use crate::testing::{Lab, handler};
use crate::timer::{Timer, TimerCallback};

#[derive(Default)]
struct Order(Locked<Vec<&'static str>>);

impl Order {
    fn note(&self, what: &'static str) {
        self.0.lock().push(what);
    }
}

struct Noted(Arc<Order>);

impl TimerCallback for Noted {
    fn expired(&self, _: &Cpu<'_>) {
        self.0.note("timer");
    }
}

fn tasklet(cpu: &Cpu<'_>, order: &Arc<Order>, what: &'static str) -> Tasklet {
    let order = order.clone();
    Tasklet::new(cpu, move |_| order.note(what))
}

#[test]
fn what_a_handler_raises_runs_after_it_in_linuxs_order() {
    let lab = Lab::new();
    let (cpu, order) = (lab.cpu(), Arc::new(Order::default()));
    let timer = Timer::new(&cpu, Arc::new(Noted(order.clone())));
    let (low, high) = (Arc::new(tasklet(&cpu, &order, "tasklet")), Arc::new(tasklet(&cpu, &order, "hi")));
    let (low2, high2, noted) = (low.clone(), high.clone(), order.clone());
    let raise = handler(move |cpu| {
        low2.schedule(cpu);
        cpu.raise_softirq(Softirq::Timer);
        high2.hi_schedule(cpu);
        noted.note("handler");
    });
    let line = request_irq(&cpu, 7, raise).unwrap();
    timer.modify(&cpu, 0);
    let off = cpu.local_irq_save();
    assert!(irq_inject_interrupt(&cpu, 7) && !irq_inject_interrupt(&cpu, 8));
    let _ = cpu.point(Class::Release, 0);
    assert!(order.0.lock().is_empty(), "interrupts are off");
    drop(off);
    let _ = cpu.point(Class::Release, 0);
    assert_eq!(*order.0.lock(), ["timer", "handler", "hi", "tasklet"], "the timer's own came first");
    line.free(&cpu);
    low.kill(&cpu);
    high.kill(&cpu);
    assert!(lab.findings().is_empty() && lab.leaks().is_empty());
}

#[test]
fn softirqs_never_run_over_each_other_and_a_tasklet_without_end_lets_others_in() {
    let lab = Lab::new();
    let (cpu, depth, runs) = (lab.cpu(), Arc::new(Count::new(0)), Arc::new(Count::new(0)));
    let again: Arc<Locked<Option<Arc<Tasklet>>>> = Arc::default();
    let (depth2, runs2, again2) = (depth.clone(), runs.clone(), again.clone());
    let endless = Arc::new(Tasklet::new(&cpu, move |cpu| {
        assert_eq!(depth2.fetch_add(1, Ordering::Relaxed), 0);
        let own = again2.lock().clone();
        if let Some(own) = own {
            own.schedule(cpu);
        }
        let _ = cpu.point(Class::Release, 0);
        runs2.fetch_add(1, Ordering::Relaxed);
        depth2.fetch_sub(1, Ordering::Relaxed);
    }));
    *again.lock() = Some(endless.clone());
    endless.schedule(&cpu);
    let _ = cpu.point(Class::Release, 0);
    assert_eq!(runs.load(Ordering::Relaxed), MAX_RESTART);
    *again.lock() = None;
    endless.kill(&cpu);
    assert_eq!(runs.load(Ordering::Relaxed), MAX_RESTART + 1);
}

#[test]
fn what_is_pending_is_told_by_the_leak_check_and_forgotten_by_a_reset() {
    let lab = Lab::new();
    let cpu = lab.cpu_number(1);
    let tasklet = Tasklet::new(&cpu, |_| {});
    tasklet.schedule(&cpu);
    assert_eq!(lab.leaks(), [crate::finding::Resource::Tasklet]);
    drop(tasklet);
    assert_eq!(lab.findings(), ["freed-active"]);
    lab.kernel().softirqs().inject(1, 5);
    lab.kernel().softirqs().reset();
    assert!(!lab.kernel().softirqs().any(1) && lab.leaks().is_empty());
}
