//! Locks, waits, interrupts, tasks and managed resources: from where each call may come.

use super::*;

pub(super) const CALLS: &[Row] = &[
    ("devres.rs", "kfree", From::Anywhere, |set, cpu| {
        let buf = set.devres.kmalloc(&set.calm, 8, GFP_KERNEL).unwrap();
        assert!(set.devres.kfree(cpu, buf));
    }),
    ("devres.rs", "kmalloc", From::ByMask, |set, cpu| ignore(set.devres.kmalloc(cpu, 8, set.gfp))),
    ("devres.rs", "kzalloc", From::ByMask, |set, cpu| ignore(set.devres.kzalloc(cpu, 8, set.gfp))),
    ("devres.rs", "alloc_coherent", From::Process, |set, cpu| {
        ignore(set.devres.alloc_coherent(cpu, &set.device, 8, GFP_KERNEL));
    }),
    ("devres.rs", "ioremap", From::Process, |set, cpu| {
        ignore(set.devres.ioremap(cpu, PhysAddr::new(0xf000_0000), 8));
    }),
    ("devres.rs", "request_irq", From::Process, |set, cpu| ignore(set.devres.request_irq(cpu, 1, handler(|_| {})))),
    ("devres.rs", "request_threaded_irq", From::Process, |set, cpu| {
        let thread: Arc<dyn IrqThread> = Arc::new(Nothing);
        ignore(set.devres.request_threaded_irq(cpu, 1, None, Some(thread), IrqFlags::ONESHOT, "table"));
    }),
    ("devres.rs", "add_action", From::Process, |set, cpu| ignore(set.devres.add_action(cpu, "nothing", |_| {}))),
    ("devres.rs", "add_action_or_reset", From::Process, |set, cpu| {
        ignore(set.devres.add_action_or_reset(cpu, "nothing", |_| {}));
    }),
    ("devres.rs", "release_group", From::Process, |set, cpu| {
        set.devres.release_group(cpu, set.devres.open_group());
    }),
    ("devres.rs", "release_all", From::Process, |_, cpu| {
        Devres::default().release_all(cpu);
    }),
    ("irq.rs", "request_irq", From::Process, |_, cpu| ignore(irq::request_irq(cpu, 1, handler(|_| {})))),
    ("irq.rs", "request_threaded_irq", From::Process, |_, cpu| {
        ignore(irq::request_threaded_irq(cpu, 1, None, Some(Arc::new(Nothing)), IrqFlags::ONESHOT, "table"));
    }),
    ("irq.rs", "synchronize_irq", From::Process, |_, cpu| irq::synchronize_irq(cpu, 1)),
    ("irq.rs", "irq_set_level", From::Anywhere, |_, cpu| irq::irq_set_level(cpu, 1, true)),
    ("irq.rs", "irq_inject_interrupt", From::Anywhere, |_, cpu| assert!(!irq::irq_inject_interrupt(cpu, 99))),
    ("irq.rs", "free", From::Process, |set, cpu| {
        irq::request_irq(&set.calm, 1, handler(|_| {})).unwrap().free(cpu);
    }),
    ("kthread.rs", "wait", From::Process, |_, cpu| in_thread(cpu, |cpu, current| ignore(current.wait(cpu, || true)))),
    ("kthread.rs", "sleep", From::Process, |_, cpu| in_thread(cpu, |cpu, current| ignore(current.sleep(cpu, 1)))),
    ("kthread.rs", "kthread_run", From::Process, |_, cpu| ignore(kthread::kthread_run(cpu, 0, |_, _| 0))),
    ("kthread.rs", "wake_up", From::Anywhere, |set, cpu| {
        let thread = kthread::kthread_run(&set.calm, 0, |_, _| 0).unwrap();
        thread.wake_up(cpu);
        thread.stop(&set.calm);
    }),
    ("kthread.rs", "stop", From::Process, |set, cpu| {
        kthread::kthread_run(&set.calm, 0, |_, _| 0).unwrap().stop(cpu);
    }),
    ("kthread/stack.rs", "virt", From::Anywhere, |set, cpu| set.stack(|on| ignore(on.virt(cpu)))),
    ("kthread/stack.rs", "phys", From::Anywhere, |set, cpu| set.stack(|on| ignore(on.phys(cpu)))),
    ("kthread/stack.rs", "read", From::Anywhere, |set, cpu| {
        set.stack(|variable| assert_eq!(variable.read(cpu, &mut [0; 8]), 8));
    }),
    ("kthread/stack.rs", "write", From::Anywhere, |set, cpu| {
        set.stack(|variable| assert_eq!(variable.write(cpu, &[0; 8]), 8));
    }),
    ("kthread/misuse.rs", "map_single", From::Anywhere, |set, cpu| {
        set.stack(|on| ignore(kthread::misuse::map_single(cpu, &set.device, on, Dir::ToDevice)));
    }),
    ("kthread/misuse.rs", "with_variable", From::Process, |_, cpu| {
        ignore(kthread::misuse::with_variable(cpu, 8, |_| ()))
    }),
    ("kthread/misuse.rs", "map_page", From::Anywhere, |set, cpu| {
        set.stack(|on| ignore(kthread::misuse::map_page(cpu, &set.device, on, Dir::ToDevice)));
    }),
    ("lock.rs", "lock", From::Anywhere, |set, cpu| ignore(set.spin.lock(cpu))),
    ("lock.rs", "lock", From::Process, |set, cpu| ignore(set.mutex.lock(cpu))),
    ("lock.rs", "lock_bh", From::IrqsOn, |set, cpu| ignore(set.spin.lock_bh(cpu))),
    ("lock.rs", "lock_irqsave", From::Anywhere, |set, cpu| ignore(set.spin.lock_irqsave(cpu))),
    ("lock.rs", "try_lock", From::Anywhere, |set, cpu| ignore(set.spin.try_lock(cpu))),
    ("lock.rs", "try_lock", From::NotInterrupt, |set, cpu| ignore(set.mutex.try_lock(cpu))),
    ("lock/misuse.rs", "spin_unlock", From::Anywhere, |set, cpu| lock::misuse::spin_unlock(cpu, &set.spin)),
    ("lock/misuse.rs", "mutex_unlock", From::Anywhere, |set, cpu| lock::misuse::mutex_unlock(cpu, &set.mutex)),
    ("tasklet.rs", "new", From::Anywhere, |_, cpu| ignore(Tasklet::new(cpu, |_| {}))),
    ("tasklet.rs", "schedule", From::Anywhere, |_, cpu| std::mem::forget(scheduled(cpu))),
    ("tasklet.rs", "hi_schedule", From::Anywhere, |_, cpu| {
        let tasklet = Tasklet::new(cpu, |_| {});
        tasklet.hi_schedule(cpu);
        std::mem::forget(tasklet);
    }),
    ("tasklet.rs", "disable", From::Process, |set, cpu| Tasklet::new(&set.calm, |_| {}).disable(cpu)),
    ("tasklet.rs", "enable", From::Anywhere, |set, cpu| Tasklet::new(&set.calm, |_| {}).enable(cpu)),
    ("tasklet.rs", "kill", From::Process, |set, cpu| Tasklet::new(&set.calm, |_| {}).kill(cpu)),
    ("timer.rs", "new", From::Anywhere, |_, cpu| ignore(timer(cpu))),
    ("timer.rs", "modify", From::Anywhere, |_, cpu| timer(cpu).modify(cpu, u64::MAX - 1)),
    ("timer.rs", "delete_sync", From::NotHardirq, |_, cpu| timer(cpu).delete_sync(cpu)),
    ("timer.rs", "cancel", From::Anywhere, |_, cpu| assert!(!timer(cpu).cancel(cpu))),
    ("wait.rs", "wait_event_timeout", From::Process, |_, cpu| {
        WaitQueue::new().wait_event_timeout(cpu, 1, || true).unwrap();
    }),
    ("wait.rs", "wait_event", From::Process, |_, cpu| WaitQueue::new().wait_event(cpu, || true).unwrap()),
    ("wait.rs", "wake_up_all", From::Anywhere, |_, cpu| WaitQueue::new().wake_up_all(cpu)),
    ("wait.rs", "wake_up", From::Anywhere, |_, cpu| WaitQueue::new().wake_up(cpu)),
    ("wait.rs", "complete", From::Anywhere, |_, cpu| Completion::new().complete(cpu)),
    ("wait.rs", "wait_timeout", From::Process, |_, cpu| ignore(Completion::new().wait_timeout(cpu, 1))),
    ("wait.rs", "sleep", From::Process, |_, cpu| wait::sleep(cpu, 1).unwrap()),
    ("workqueue.rs", "new", From::Anywhere, |_, cpu| ignore(Work::new(cpu, |_| {}))),
    ("workqueue.rs", "schedule", From::Anywhere, |_, cpu| {
        let work = Work::new(cpu, |_| {});
        work.schedule(cpu);
        std::mem::forget(work);
    }),
    ("workqueue.rs", "queue_on", From::Anywhere, |set, cpu| {
        let queue = Workqueue::new(&set.calm).unwrap();
        let work = Work::new(&set.calm, |_| {});
        work.queue_on(cpu, &queue);
        queue.destroy(&set.calm);
    }),
    ("workqueue.rs", "flush", From::Process, |set, cpu| ignore(Work::new(&set.calm, |_| {}).flush(cpu))),
    ("workqueue.rs", "cancel_sync", From::Process, |set, cpu| ignore(Work::new(&set.calm, |_| {}).cancel_sync(cpu))),
    ("workqueue/delayed.rs", "new", From::Anywhere, |_, cpu| ignore(DelayedWork::new(cpu, |_| {}))),
    ("workqueue/delayed.rs", "modify", From::Anywhere, |_, cpu| DelayedWork::new(cpu, |_| {}).modify(cpu, 1 << 40)),
    ("workqueue/delayed.rs", "cancel_sync", From::Process, |_, cpu| DelayedWork::new(cpu, |_| {}).cancel_sync(cpu)),
    ("workqueue/delayed.rs", "flush", From::Process, |_, cpu| ignore(DelayedWork::new(cpu, |_| {}).flush(cpu))),
    ("workqueue/queue.rs", "new", From::Process, |_, cpu| ignore(Workqueue::new(cpu))),
    ("workqueue/queue.rs", "ordered", From::Process, |_, cpu| ignore(Workqueue::ordered(cpu))),
    ("workqueue/queue.rs", "flush", From::Process, |set, cpu| {
        let queue = Workqueue::new(&set.calm).unwrap();
        queue.flush(cpu);
    }),
    ("workqueue/queue.rs", "destroy", From::Process, |set, cpu| Workqueue::new(&set.calm).unwrap().destroy(cpu)),
];

fn scheduled(cpu: &Cpu<'_>) -> Tasklet {
    let tasklet = Tasklet::new(cpu, |_| {});
    tasklet.schedule(cpu);
    tasklet
}

/// A thread's own calls, made where the CPU is: its function runs as soon as somebody waits.
fn in_thread(cpu: &Cpu<'_>, call: fn(&Cpu<'_>, &kthread::Current)) {
    call(cpu, &kthread::Current::default());
}

fn timer(cpu: &Cpu<'_>) -> Timer {
    Timer::new(cpu, Arc::new(Nothing))
}
