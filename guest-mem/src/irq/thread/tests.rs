use std::sync::atomic::{AtomicU32, Ordering};

use super::super::*;
use super::*;
use crate::env::Class;
use crate::finding::Resource;
use crate::lock::Mutex;
use crate::testing::{Handler, Lab, handler};

const IRQ: u32 = 5;

/// A thread that counts what it does, and says that it handled it as often as it may.
struct Counts {
    ran: AtomicU32,
    claims: bool,
    mutex: Mutex<u32>,
    low: bool,
}

impl Counts {
    fn new(claims: bool) -> Arc<Self> {
        Arc::new(Self { ran: AtomicU32::new(0), claims, mutex: Mutex::new(0), low: false })
    }

    /// One that quietens its device, whose line is high until then.
    fn lowering() -> Arc<Self> {
        Arc::new(Self { ran: AtomicU32::new(0), claims: true, mutex: Mutex::new(0), low: true })
    }

    fn ran(&self) -> u32 {
        self.ran.load(Ordering::Relaxed)
    }
}

impl IrqThread for Counts {
    fn thread(&self, cpu: &Cpu<'_>) -> IrqReturn {
        assert!(cpu.in_task() && !cpu.in_atomic());
        *self.mutex.lock(cpu) += 1;
        self.ran.fetch_add(1, Ordering::Relaxed);
        if self.low {
            irq_set_level(cpu, IRQ, false);
        }
        if self.claims { IrqReturn::Handled } else { IrqReturn::None }
    }
}

fn oneshot(lab: &Lab, thread: &Arc<Counts>) -> IrqLine {
    request_threaded_irq(&lab.cpu(), IRQ, None, Some(thread.clone()), IrqFlags::ONESHOT, "card").unwrap()
}

/// A handler that wakes its thread, and how often it ran.
fn waking() -> (Arc<AtomicU32>, Arc<dyn IrqHandler>) {
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    let wakes = Handler(move |_: &Cpu<'_>| {
        counted.fetch_add(1, Ordering::Relaxed);
        IrqReturn::WakeThread
    });
    (count, Arc::new(wakes))
}

/// One interrupt, if the line lets it through.
fn fire(lab: &Lab) {
    irq_inject_interrupt(&lab.cpu(), IRQ);
    let _ = lab.cpu().point(Class::Release, 0);
}

/// Gives the thread the turn that it waits for, if it waits for one.
fn turn(lab: &Lab, line: &IrqLine) -> bool {
    let turn = line.thread.as_ref().unwrap().turn.upgrade().unwrap();
    let begun = turn.begun.swap(false, Ordering::AcqRel);
    if begun {
        turn.take(&Cpu::of_task(0, 1, lab.machine.kernel_ref(), &lab.solo));
    }
    begun
}

#[test]
fn a_oneshot_line_is_masked_until_its_thread_has_run() {
    let lab = Lab::new();
    let thread = Counts::new(true);
    let line = oneshot(&lab, &thread);
    fire(&lab);
    let irqs = lab.kernel().irqs();
    assert!(irqs.masked(IRQ) && irqs.handler(IRQ).is_none() && thread.ran() == 0);
    fire(&lab);
    assert!(turn(&lab, &line) && !irqs.masked(IRQ));
    assert_eq!((thread.ran(), turn(&lab, &line)), (1, false), "the second waits for the line");
    let _ = lab.cpu().point(Class::Release, 0);
    assert!(turn(&lab, &line) && !turn(&lab, &line));
    assert_eq!(thread.ran(), 2, "what came while it was masked is not lost");
    line.free(&lab.cpu());
    assert!(lab.leaks().is_empty() && lab.findings().is_empty(), "{:?}", lab.findings());
}

#[test]
fn an_interrupt_that_waits_for_its_line_comes_to_the_cpu_that_opens_it() {
    let lab = Lab::new();
    let thread = Counts::new(true);
    let line = oneshot(&lab, &thread);
    fire(&lab);
    let other = lab.cpu_number(1);
    assert!(irq_inject_interrupt(&other, IRQ));
    let _ = other.point(Class::Release, 0);
    assert!(turn(&lab, &line));
    let _ = lab.cpu().point(Class::Release, 0);
    assert!(turn(&lab, &line));
    assert_eq!(thread.ran(), 2);
    line.free(&lab.cpu());
}

#[test]
fn a_shared_oneshot_line_opens_when_the_last_thread_has_run() {
    let lab = Lab::new();
    let both = IrqFlags::SHARED | IrqFlags::ONESHOT;
    let ask =
        |thread: &Arc<Counts>| request_threaded_irq(&lab.cpu(), IRQ, None, Some(thread.clone()), both, "card").unwrap();
    let (a, b) = (Counts::new(true), Counts::new(false));
    let (line_a, line_b) = (ask(&a), ask(&b));
    fire(&lab);
    assert!(turn(&lab, &line_b) && lab.kernel().irqs().masked(IRQ));
    assert!(turn(&lab, &line_a) && !lab.kernel().irqs().masked(IRQ));
    line_a.free(&lab.cpu());
    fire(&lab);
    assert!(lab.kernel().irqs().masked(IRQ) && turn(&lab, &line_b) && !lab.kernel().irqs().masked(IRQ));
    line_b.free(&lab.cpu());
    assert_eq!((a.ran(), b.ran()), (1, 2));
}

#[test]
fn a_thread_alone_needs_oneshot_but_not_behind_a_message() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let ask = |irq| request_threaded_irq(&cpu, irq, None, Some(Counts::new(true)), IrqFlags::SHARED, "card");
    let refused = ask(IRQ).err().unwrap();
    assert_eq!((refused.errno(), lab.leaks()), (-22, vec![]), "its thread is stopped again");
    let text = "genirq: Threaded irq requested with handler=NULL and !ONESHOT for card (irq 5)";
    assert_eq!(lab.log(), [text]);
    assert!(lab.kernel().irqs().handler(IRQ).is_none());

    lab.kernel().irqs().add_vector(64, 1);
    let line = ask(64).unwrap();
    irq_inject_interrupt(&cpu, 64);
    let _ = cpu.point(Class::Release, 0);
    assert!(!lab.kernel().irqs().masked(64), "a message needs no mask");
    assert!(turn(&lab, &line));
    line.free(&cpu);
    lab.kernel().irqs().remove_vector(64);
    assert_eq!(ask(64).err().unwrap().errno(), -22);

    let nothing = request_threaded_irq(&cpu, IRQ, None, None, IrqFlags::ONESHOT, "card").err();
    assert_eq!(nothing, Some(IrqError::NoHandler { irq: IRQ }));
}

#[test]
fn a_line_is_shared_by_those_who_both_say_so_and_mask_alike() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let ask = |flags| request_threaded_irq(&cpu, IRQ, Some(handler(|_| {})), None, flags, "other");
    for (first, second, errno) in [
        (IrqFlags::empty(), IrqFlags::SHARED, Some(-16)),
        (IrqFlags::SHARED, IrqFlags::empty(), Some(-16)),
        (IrqFlags::SHARED, IrqFlags::SHARED | IrqFlags::ONESHOT, Some(-16)),
        (IrqFlags::SHARED | IrqFlags::ONESHOT, IrqFlags::SHARED, Some(-16)),
        (IrqFlags::SHARED, IrqFlags::SHARED, None),
    ] {
        let line = ask(first).unwrap();
        let other = ask(second);
        assert_eq!(other.as_ref().err().map(IrqError::errno), errno, "{first:?} and {second:?}");
        other.into_iter().for_each(|other| other.free(&cpu));
        line.free(&cpu);
    }
    assert_eq!(lab.log()[0], "genirq: Flags mismatch irq 5. 00000080 (other) vs. 00000000 (other)");
    assert!(lab.leaks().is_empty());
}

#[test]
fn free_waits_for_the_last_turn_and_synchronize_for_the_present_one() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let thread = Counts::new(true);
    let line = oneshot(&lab, &thread);
    assert_eq!(lab.leaks().iter().filter(|leak| **leak == Resource::Thread).count(), 1);
    fire(&lab);
    let (desc, begun) = (line.desc.clone(), line.thread.as_ref().unwrap().turn.upgrade().unwrap());
    let kernel = lab.machine.kernel_ref();
    lab.solo.on_park(move |solo| {
        assert!(!desc.quiet(), "it was woken and has yet to run");
        begun.begun.store(false, Ordering::Relaxed);
        begun.take(&Cpu::of_task(0, 1, kernel, solo));
    });
    synchronize_irq(&cpu, IRQ);
    assert_eq!((thread.ran(), lab.solo.parks()), (1, 1));
    synchronize_irq(&cpu, IRQ);
    assert_eq!(lab.solo.parks(), 1, "nothing to wait for");
    fire(&lab);
    line.free(&cpu);
    assert_eq!(thread.ran(), 2, "woken before it was stopped, it runs once more");
    assert!(lab.leaks().is_empty() && lab.findings().is_empty());
}

#[test]
fn a_thread_that_handles_nothing_is_nobody_who_cares() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    for claims in [true, false] {
        let (count, wakes) = waking();
        let thread = Counts::new(claims);
        let line = request_threaded_irq(&cpu, IRQ, Some(wakes), Some(thread.clone()), IrqFlags::empty(), "card");
        let line = line.unwrap();
        for _ in 0..1100 {
            fire(&lab);
            turn(&lab, &line);
        }
        // The first is judged by the second.
        assert_eq!(count.load(Ordering::Relaxed), if claims { 1100 } else { 1001 });
        assert_eq!(lab.findings(), if claims { &[][..] } else { &["nobody-cared"] });
        line.free(&cpu);
    }
}

#[test]
fn a_level_that_only_the_thread_lowers_storms_unless_the_line_is_masked() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let storm = |flags| {
        let ((count, wakes), thread) = (waking(), Counts::lowering());
        let line = request_threaded_irq(&cpu, IRQ, Some(wakes), Some(thread.clone()), flags, "card").unwrap();
        irq_set_level(&cpu, IRQ, true);
        let _ = cpu.point(Class::Release, 0);
        turn(&lab, &line);
        let _ = cpu.point(Class::Release, 0);
        line.free(&cpu);
        (count.load(Ordering::Relaxed), thread.ran())
    };
    assert_eq!((storm(IrqFlags::ONESHOT), lab.findings().len()), ((1, 1), 0));
    assert_eq!((storm(IrqFlags::empty()), lab.findings()), ((1001, 1), vec!["nobody-cared"]));
}

#[test]
fn a_handler_without_a_thread_may_not_ask_for_one() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let line = request_irq(&cpu, IRQ, waking().1).unwrap();
    fire(&lab);
    let text = lab.kernel().findings()[0].kind.to_string();
    assert_eq!(text, "IRQ 5 device driver returned IRQ_WAKE_THREAD but no thread function available.");
    assert_eq!(lab.findings(), ["no-irq-thread"]);
    line.free(&cpu);
}

#[test]
fn each_allocation_for_the_thread_can_fail_and_a_failure_leaves_nothing() {
    let lab = Lab::new();
    for nth in 0..7 {
        lab.solo.fail_nth(nth);
        let asked = request_threaded_irq(&lab.cpu(), IRQ, None, Some(Counts::new(true)), IrqFlags::ONESHOT, "card");
        assert_eq!(asked.err(), Some(IrqError::NoMemory { irq: IRQ }), "point {nth}");
        assert!(lab.leaks().is_empty() && lab.kernel().irqs().handler(IRQ).is_none());
    }
}

#[test]
fn a_thread_that_unwinds_opens_its_line_and_runs_no_more() {
    struct Oops;
    impl IrqThread for Oops {
        fn thread(&self, _cpu: &Cpu<'_>) -> IrqReturn {
            std::panic::resume_unwind(Box::new("oops"))
        }
    }
    let lab = Lab::new();
    let cpu = lab.cpu();
    let line = request_threaded_irq(&cpu, IRQ, None, Some(Arc::new(Oops)), IrqFlags::ONESHOT, "card").unwrap();
    fire(&lab);
    let parks = || crate::wait::sleep(&cpu, 1);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(parks)).is_err());
    assert!(!lab.kernel().irqs().masked(IRQ));
    fire(&lab);
    synchronize_irq(&cpu, IRQ);
    line.free(&cpu);
    assert!(lab.leaks().is_empty());
}
