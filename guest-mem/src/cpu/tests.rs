use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::dma::{Dir, misuse};
use crate::gfp::{GFP_ATOMIC, GFP_KERNEL};
use crate::iomem::ioremap;
use crate::lock::{Locked, Mutex, SpinLock};
use crate::testing::{Lab, handler};
use crate::wait::Completion;
use crate::{KBuf, PhysAddr};

/// Linux reports these under a spinlock (linux-measured, section 9), and not the others.
#[test]
fn what_may_sleep_is_reported_under_a_spinlock_and_nothing_else() {
    let (lab, lock, mutex) = (Lab::new(), SpinLock::new(()), Mutex::new(()));
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let buf = KBuf::kmalloc(&cpu, 64, GFP_KERNEL).unwrap();
    let raw = misuse::map_single(&cpu, &device, &buf, Dir::ToDevice).unwrap();
    let calls: [(&str, &dyn Fn(), usize); 14] = [
        ("kmalloc GFP_KERNEL", &|| drop(KBuf::kmalloc(&cpu, 64, GFP_KERNEL)), 1),
        ("kmalloc large GFP_KERNEL", &|| drop(KBuf::kmalloc(&cpu, 20000, GFP_KERNEL)), 1),
        ("kmalloc GFP_ATOMIC", &|| drop(KBuf::kmalloc(&cpu, 64, GFP_ATOMIC)), 0),
        ("kmalloc 0", &|| drop(KBuf::kmalloc(&cpu, 0, GFP_KERNEL)), 0),
        ("alloc_pages GFP_KERNEL", &|| drop(KBuf::pages(&cpu, 0, GFP_KERNEL)), 1),
        ("alloc_pages GFP_ATOMIC", &|| drop(KBuf::pages(&cpu, 0, GFP_ATOMIC)), 0),
        ("dma_alloc_coherent GFP_KERNEL", &|| drop(device.alloc_coherent(&cpu, 64, GFP_KERNEL)), 1),
        ("dma_alloc_coherent GFP_ATOMIC", &|| drop(device.alloc_coherent(&cpu, 64, GFP_ATOMIC)), 0),
        ("dma_map_single", &|| assert!(misuse::map_single(&cpu, &device, &buf, Dir::ToDevice).is_ok()), 0),
        ("dma_unmap_single", &|| misuse::unmap_single(&cpu, &device, raw.dma, 64, Dir::ToDevice), 0),
        ("dma_set_mask", &|| device.set_mask(&cpu, u64::MAX).unwrap(), 0),
        ("ioremap", &|| drop(ioremap(&cpu, PhysAddr::new(0xf000_0000), 4096)), 1),
        ("mutex_lock", &|| drop(mutex.lock(&cpu)), 1),
        ("complete", &|| Completion::new().complete(&cpu), 0),
    ];
    for (name, call, reports) in calls {
        let before = lab.findings().len();
        call();
        assert_eq!(lab.findings().len() - before, 0, "{name} in process context");
        let guard = lock.lock(&cpu);
        call();
        drop(guard);
        let seen = lab.findings()[before..].to_vec();
        let seen = seen.iter().filter(|name| **name == "sleep-in-atomic").count();
        assert_eq!(seen, reports, "{name} under a spinlock");
    }
}

#[test]
fn a_sleep_in_atomic_names_the_call_and_the_outermost_lock() {
    let (lab, outer, inner) = (Lab::new(), SpinLock::new(()), SpinLock::new(()));
    let cpu = lab.cpu();
    let line = line!() + 1;
    let held = outer.lock_irqsave(&cpu);
    let nested = inner.lock(&cpu);
    cpu.might_sleep("here");
    let finding = lab.kernel().findings().remove(0);
    assert_eq!(
        finding.kind.to_string(),
        "BUG: sleeping function called from invalid context: here (in_atomic(): 1, irqs_disabled(): 1, preempt_count: 2)"
    );
    assert_eq!(finding.sites[1].0, "atomic since");
    assert_eq!(finding.sites[1].1.site.place().unwrap().line(), line);
    assert!(finding.to_string().contains("CONFIG_DEBUG_ATOMIC_SLEEP"));
    drop((nested, held));
}

#[test]
fn a_handler_names_its_request_and_gives_the_interrupted_lock_back() {
    let (lab, lock) = (Lab::new(), SpinLock::new(()));
    let cpu = lab.cpu();
    let line = line!() + 1;
    let held = lock.lock(&cpu);
    lab.solo.raise(handler(|cpu| {
        assert!(cpu.in_hardirq() && cpu.irqs_disabled() && cpu.preempt_count() == 0x1_0001);
        cpu.set_atomic_since(Owner::default());
    }));
    let _ = cpu.point(Class::Release, 0);
    cpu.might_sleep("after the handler");
    assert_eq!(lab.kernel().findings()[0].sites[1].1.site.place().unwrap().line(), line);
    drop(held);
}

#[test]
fn a_handler_that_unwinds_leaves_the_contexts_right() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    lab.solo.raise(handler(|_| resume_unwind(Box::new("oops"))));
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = cpu.point(Class::Release, 0);
    }));
    assert!(unwound.is_err());
    assert_eq!((cpu.preempt_count(), cpu.irqs_disabled()), (0, false));
}

#[test]
fn one_of_the_labs_own_locks_held_at_a_point_is_reported() {
    let lab = Lab::new();
    let own = Locked::new(0);
    let guard = own.lock();
    let _ = lab.cpu().point(Class::Release, 0);
    drop(guard);
    let _ = lab.cpu().point(Class::Release, 0);
    assert_eq!(lab.findings(), ["lab-lock-held"]);
}

#[test]
fn spans_are_part_of_every_owner_until_they_close() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    {
        let _probe = cpu.span("probe");
        let _ring = cpu.span("ring");
        assert_eq!(cpu.owner().scope.to_string(), "probe/ring");
    }
    assert_eq!(cpu.owner().scope, Scope::ROOT);
}

#[test]
fn an_idle_cpu_takes_interrupts_until_it_dies_even_if_a_handler_waited() {
    let lab = Lab::new();
    let (count, lock) = (Arc::new(AtomicU32::new(0)), Arc::new(SpinLock::new(())));
    let counted = count.clone();
    for _ in 0..3 {
        let (counted, lock) = (counted.clone(), lock.clone());
        lab.solo.on_park(move |solo| {
            solo.raise(handler(move |cpu| {
                counted.fetch_add(1, Ordering::Relaxed);
                // Waits inside the handler: the idle CPU's own ticket must not be the one used up.
                crate::wait::WaitQueue::new().wait_until(cpu, 5, || false).unwrap_err();
                drop(lock.lock(cpu));
            }));
        });
    }
    lab.solo.on_park(|_| {});
    lab.solo.on_park(|_| {});
    lab.solo.on_park(|_| {});
    lab.solo.on_park(crate::testing::Solo::die);
    lab.cpu().idle();
    assert_eq!(count.load(Ordering::Relaxed), 3);
}
