//! Every public call of this crate that takes a `&Cpu`, made from each context: a finding or none, as the table says.
//!
//! Memory is plentiful throughout, so nothing really sleeps: who may not call is told all the same. The sources are read
//! for `pub fn`s, so a new call without a row is red.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::devres::Devres;
use crate::dma::{Dir, DmaDevice, ToDevice, misuse};
use crate::env::IrqReturn;
use crate::gfp::{GFP_ATOMIC, GFP_KERNEL};
use crate::irq::{IrqFlags, IrqThread};
use crate::lock::{Mutex, SpinLock};
use crate::tasklet::Tasklet;
use crate::testing::{Lab, handler};
use crate::timer::{Timer, TimerCallback};
use crate::wait::{Completion, WaitQueue};
use crate::workqueue::{DelayedWork, Work, Workqueue};
use crate::{KBuf, PhysAddr, irq, kthread, lock, page, wait};

/// From where a call may come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum From {
    Anywhere,
    /// It may sleep.
    Process,
    /// Not where interrupts are off.
    IrqsOn,
    /// Not in a handler.
    NotHardirq,
    /// Not in a handler or softirq, nor with softirqs off.
    NotInterrupt,
}

impl From {
    fn allows(self, context: Context) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Process => context == Context::Process,
            Self::IrqsOn => !matches!(context, Context::IrqsOff | Context::Hardirq),
            Self::NotHardirq => context != Context::Hardirq,
            Self::NotInterrupt => !matches!(context, Context::BhOff | Context::Softirq | Context::Hardirq),
        }
    }
}

/// What the calls are made on.
struct Set {
    device: DmaDevice,
    spin: SpinLock<()>,
    mutex: Mutex<()>,
    devres: Devres,
}

impl Set {
    fn buf(cpu: &Cpu<'_>) -> KBuf {
        KBuf::kmalloc(cpu, 64, GFP_ATOMIC).unwrap()
    }

    fn coherent(&self, cpu: &Cpu<'_>) -> crate::dma::Coherent {
        self.device.alloc_coherent(cpu, 64, GFP_ATOMIC).unwrap()
    }

    fn raw(&self, cpu: &Cpu<'_>) -> crate::dma::RawMapping {
        misuse::map_single(cpu, &self.device, &Self::buf(cpu), Dir::ToDevice).unwrap()
    }
}

struct Nothing;

impl TimerCallback for Nothing {
    fn expired(&self, _: &Cpu<'_>) {}
}

impl IrqThread for Nothing {
    fn thread(&self, _: &Cpu<'_>) -> IrqReturn {
        IrqReturn::None
    }
}

fn timer(cpu: &Cpu<'_>) -> Timer {
    Timer::new(cpu, Arc::new(Nothing))
}

type Call = fn(&Set, &Cpu<'_>);

/// File, function, from where it may come, and the call; a function of the same name in the same file follows its own.
const CALLS: &[(&str, &str, From, Call)] = &[
    ("cpu/context.rs", "local_bh_disable", From::NotHardirq, |_, cpu| ignore(cpu.local_bh_disable())),
    ("devres.rs", "kfree", From::Anywhere, |set, cpu| {
        let buf = set.devres.kmalloc(cpu, 8, GFP_ATOMIC).unwrap();
        assert!(set.devres.kfree(cpu, buf));
    }),
    ("devres.rs", "kmalloc", From::Process, |set, cpu| ignore(set.devres.kmalloc(cpu, 8, GFP_KERNEL))),
    ("devres.rs", "kzalloc", From::Process, |set, cpu| ignore(set.devres.kzalloc(cpu, 8, GFP_KERNEL))),
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
    ("devres.rs", "add_action", From::Process, |set, cpu| ignore(set.devres.add_action(cpu, |_| {}))),
    ("devres.rs", "add_action_or_reset", From::Process, |set, cpu| {
        ignore(set.devres.add_action_or_reset(cpu, |_| {}));
    }),
    ("devres.rs", "release_group", From::Process, |set, cpu| {
        set.devres.release_group(cpu, set.devres.open_group());
    }),
    ("devres.rs", "release_all", From::Process, |_, cpu| {
        Devres::default().release_all(cpu);
    }),
    ("dma/coherent.rs", "alloc_coherent", From::Process, |set, cpu| {
        ignore(set.device.alloc_coherent(cpu, 64, GFP_KERNEL));
    }),
    ("dma/coherent.rs", "alloc_coherent", From::Anywhere, |set, cpu| ignore(set.coherent(cpu))),
    ("dma/coherent.rs", "alloc_pages", From::Process, |set, cpu| ignore(set.device.alloc_pages(cpu, 64, GFP_KERNEL))),
    ("dma/coherent.rs", "free", From::IrqsOn, |set, cpu| set.coherent(cpu).free(cpu)),
    ("dma/coherent.rs", "$read", From::Anywhere, |set, cpu| assert_eq!(set.coherent(cpu).read_u32(cpu, 0), 0)),
    ("dma/coherent.rs", "$write", From::Anywhere, |set, cpu| set.coherent(cpu).write_u32(cpu, 0, 1)),
    ("dma/coherent.rs", "read", From::Anywhere, |set, cpu| set.coherent(cpu).read(cpu, 0, &mut [0; 4])),
    ("dma/coherent.rs", "write", From::Anywhere, |set, cpu| set.coherent(cpu).write(cpu, 0, &[0; 4])),
    ("dma/device.rs", "set_mask", From::NotHardirq, |set, cpu| set.device.set_mask(cpu, u64::MAX).unwrap()),
    ("dma/device.rs", "set_coherent_mask", From::NotHardirq, |set, cpu| {
        set.device.set_coherent_mask(cpu, u64::MAX).unwrap();
    }),
    ("dma/device.rs", "set_mask_and_coherent", From::NotHardirq, |set, cpu| {
        set.device.set_mask_and_coherent(cpu, u64::MAX).unwrap();
    }),
    ("dma/device.rs", "released", From::Anywhere, |set, cpu| set.device.released(cpu)),
    ("dma/misuse.rs", "map_single", From::Anywhere, |set, cpu| ignore(set.raw(cpu).dma)),
    ("dma/misuse.rs", "map_single_unchecked", From::Anywhere, |set, cpu| {
        assert!(misuse::map_single_unchecked(cpu, &set.device, &Set::buf(cpu), Dir::ToDevice).is_ok());
    }),
    ("dma/misuse.rs", "map_blindly", From::Anywhere, |set, cpu| {
        ignore(misuse::map_blindly::<ToDevice>(cpu, &set.device, Set::buf(cpu)));
    }),
    ("dma/misuse.rs", "free_coherent", From::IrqsOn, |set, cpu| {
        misuse::free_coherent(cpu, &set.device, PhysAddr::new(0), crate::DmaAddr::new(0), 8);
    }),
    ("dma/misuse.rs", "free_coherent_as", From::IrqsOn, |set, cpu| misuse::free_coherent_as(cpu, set.coherent(cpu), 8)),
    ("dma/misuse.rs", "unmap_single", From::Anywhere, |set, cpu| {
        misuse::unmap_single(cpu, &set.device, set.raw(cpu).dma, 64, Dir::ToDevice);
    }),
    ("dma/misuse.rs", "sync_single", From::Anywhere, |set, cpu| {
        misuse::sync_single(cpu, &set.device, set.raw(cpu).dma, 64, true, Dir::ToDevice);
    }),
    ("dma/misuse.rs", "kfree", From::Anywhere, |_, cpu| misuse::kfree(cpu, PhysAddr::new(0x1000))),
    ("dma/misuse.rs", "free_buffer", From::Anywhere, |_, cpu| misuse::free_buffer(cpu, &Set::buf(cpu))),
    ("dma/streaming.rs", "map_single", From::Anywhere, |set, cpu| {
        ignore(set.device.map_single::<ToDevice>(cpu, Set::buf(cpu)));
    }),
    ("dma/streaming.rs", "unmap", From::Anywhere, |set, cpu| {
        ignore(set.device.map_single::<ToDevice>(cpu, Set::buf(cpu)).unwrap().unmap(cpu));
    }),
    ("dma/streaming.rs", "sync_for_cpu", From::Anywhere, |set, cpu| {
        ignore(set.device.map_single::<ToDevice>(cpu, Set::buf(cpu)).unwrap().sync_for_cpu(cpu));
    }),
    ("iomem.rs", "ioremap", From::Process, |_, cpu| {
        ignore(crate::iomem::ioremap(cpu, PhysAddr::new(0xf000_0000), 8));
    }),
    ("irq.rs", "request_irq", From::Process, |_, cpu| ignore(irq::request_irq(cpu, 1, handler(|_| {})))),
    ("irq.rs", "request_threaded_irq", From::Process, |_, cpu| {
        ignore(irq::request_threaded_irq(cpu, 1, None, Some(Arc::new(Nothing)), IrqFlags::ONESHOT, "table"));
    }),
    ("irq.rs", "synchronize_irq", From::Process, |_, cpu| irq::synchronize_irq(cpu, 1)),
    ("irq.rs", "irq_set_level", From::Anywhere, |_, cpu| irq::irq_set_level(cpu, 1, true)),
    ("irq.rs", "irq_inject_interrupt", From::Anywhere, |_, cpu| assert!(!irq::irq_inject_interrupt(cpu, 99))),
    ("irq.rs", "free", From::Process, |_, cpu| irq::request_irq(cpu, 1, handler(|_| {})).unwrap().free(cpu)),
    ("kbuf.rs", "kmalloc", From::Process, |_, cpu| ignore(KBuf::kmalloc(cpu, 64, GFP_KERNEL))),
    ("kbuf.rs", "kmalloc", From::Anywhere, |_, cpu| ignore(KBuf::kmalloc(cpu, 64, GFP_ATOMIC))),
    ("kbuf.rs", "pages", From::Process, |_, cpu| ignore(KBuf::pages(cpu, 0, GFP_KERNEL))),
    ("kthread.rs", "wait", From::Process, |_, cpu| in_thread(cpu, |cpu, current| ignore(current.wait(cpu, || true)))),
    ("kthread.rs", "sleep", From::Process, |_, cpu| in_thread(cpu, |cpu, current| ignore(current.sleep(cpu, 1)))),
    ("kthread.rs", "kthread_run", From::Process, |_, cpu| ignore(kthread::kthread_run(cpu, 0, |_, _| 0))),
    ("kthread.rs", "wake_up", From::Anywhere, |_, cpu| WaitQueue::new().wake_up_all(cpu)),
    ("kthread.rs", "stop", From::Process, |_, cpu| {
        kthread::kthread_run(cpu, 0, |_, _| 0).unwrap().stop(cpu);
    }),
    ("lock.rs", "lock", From::Anywhere, |set, cpu| ignore(set.spin.lock(cpu))),
    ("lock.rs", "lock", From::Process, |set, cpu| ignore(set.mutex.lock(cpu))),
    ("lock.rs", "lock_bh", From::IrqsOn, |set, cpu| ignore(set.spin.lock_bh(cpu))),
    ("lock.rs", "lock_irqsave", From::Anywhere, |set, cpu| ignore(set.spin.lock_irqsave(cpu))),
    ("lock.rs", "try_lock", From::Anywhere, |set, cpu| ignore(set.spin.try_lock(cpu))),
    ("lock.rs", "try_lock", From::NotInterrupt, |set, cpu| ignore(set.mutex.try_lock(cpu))),
    ("lock/misuse.rs", "spin_unlock", From::Anywhere, |set, cpu| lock::misuse::spin_unlock(cpu, &set.spin)),
    ("lock/misuse.rs", "mutex_unlock", From::Anywhere, |set, cpu| lock::misuse::mutex_unlock(cpu, &set.mutex)),
    ("page.rs", "alloc_pages", From::Process, |_, cpu| ignore(page::alloc_pages(cpu, 0, GFP_KERNEL))),
    ("page.rs", "alloc_pages", From::Anywhere, |_, cpu| ignore(page::alloc_pages(cpu, 0, GFP_ATOMIC))),
    ("tasklet.rs", "new", From::Anywhere, |_, cpu| ignore(Tasklet::new(cpu, |_| {}))),
    ("tasklet.rs", "schedule", From::Anywhere, |_, cpu| std::mem::forget(scheduled(cpu))),
    ("tasklet.rs", "hi_schedule", From::Anywhere, |_, cpu| {
        let tasklet = Tasklet::new(cpu, |_| {});
        tasklet.hi_schedule(cpu);
        std::mem::forget(tasklet);
    }),
    ("tasklet.rs", "disable", From::Process, |_, cpu| Tasklet::new(cpu, |_| {}).disable(cpu)),
    ("tasklet.rs", "enable", From::Anywhere, |_, cpu| Tasklet::new(cpu, |_| {}).enable(cpu)),
    ("tasklet.rs", "kill", From::Process, |_, cpu| Tasklet::new(cpu, |_| {}).kill(cpu)),
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
    ("workqueue.rs", "queue_on", From::Process, |_, cpu| {
        let queue = Workqueue::new(cpu).unwrap();
        let work = Work::new(cpu, |_| {});
        work.queue_on(cpu, &queue);
        queue.destroy(cpu);
    }),
    ("workqueue.rs", "flush", From::Process, |_, cpu| ignore(Work::new(cpu, |_| {}).flush(cpu))),
    ("workqueue.rs", "cancel_sync", From::Process, |_, cpu| ignore(Work::new(cpu, |_| {}).cancel_sync(cpu))),
    ("workqueue/delayed.rs", "new", From::Anywhere, |_, cpu| ignore(DelayedWork::new(cpu, |_| {}))),
    ("workqueue/delayed.rs", "modify", From::Anywhere, |_, cpu| DelayedWork::new(cpu, |_| {}).modify(cpu, 1 << 40)),
    ("workqueue/delayed.rs", "cancel_sync", From::Process, |_, cpu| DelayedWork::new(cpu, |_| {}).cancel_sync(cpu)),
    ("workqueue/delayed.rs", "flush", From::Process, |_, cpu| ignore(DelayedWork::new(cpu, |_| {}).flush(cpu))),
    ("workqueue/queue.rs", "new", From::Process, |_, cpu| ignore(Workqueue::new(cpu))),
    ("workqueue/queue.rs", "ordered", From::Process, |_, cpu| ignore(Workqueue::ordered(cpu))),
    ("workqueue/queue.rs", "flush", From::Process, |_, cpu| {
        let queue = Workqueue::new(cpu).unwrap();
        queue.flush(cpu);
    }),
    ("workqueue/queue.rs", "destroy", From::Process, |_, cpu| Workqueue::new(cpu).unwrap().destroy(cpu)),
];

/// Calls without a row, each with the reason.
const NONE: &[(&str, &str, &str)] = &[("dma/misuse.rs", "null_dereference", "it stops the CPU, from anywhere")];

/// Files with calls whose rows are still to be written: those are told in their own tests.
const LATER: &[&str] = &[
    "arch",
    "cpu",
    "dma/misuse",
    "dma/streaming",
    "iomem",
    "kbuf",
    "kmalloc",
    "kmap",
    "kmem_cache",
    "kvmalloc",
    "mempool",
    "page",
    "percpu",
    "reclaim",
    "slab",
    "vmalloc",
];

/// Whatever a call gave.
fn ignore<T>(_given: T) {}

fn scheduled(cpu: &Cpu<'_>) -> Tasklet {
    let tasklet = Tasklet::new(cpu, |_| {});
    tasklet.schedule(cpu);
    tasklet
}

/// A thread's own calls, made where the CPU is: its function runs as soon as somebody waits.
fn in_thread(cpu: &Cpu<'_>, call: fn(&Cpu<'_>, &kthread::Current)) {
    call(cpu, &kthread::Current::default());
}

const PLACES: [Context; 7] = [
    Context::Process,
    Context::RcuRead,
    Context::PreemptOff,
    Context::BhOff,
    Context::IrqsOff,
    Context::Softirq,
    Context::Hardirq,
];

/// Goes where `context` is, makes the call, and comes back.
fn from(context: Context, set: &Set, cpu: &Cpu<'_>, call: Call) {
    let (_rcu, _preempt, _bh, _irqs, _level);
    match context {
        Context::Process => {}
        Context::RcuRead => _rcu = cpu.rcu_read_lock(),
        Context::PreemptOff => _preempt = cpu.preempt_disable(),
        Context::BhOff => _bh = cpu.local_bh_disable(),
        Context::IrqsOff => _irqs = cpu.local_irq_save(),
        Context::Softirq => _level = cpu.level(SOFTIRQ),
        Context::Hardirq => _level = cpu.level(HARDIRQ),
    }
    assert_eq!(cpu.context(), context);
    call(set, cpu);
}

#[test]
fn a_call_from_the_wrong_place_is_told_and_no_other() {
    let mut wrong = Vec::new();
    for &(file, name, allowed, call) in CALLS {
        for context in PLACES {
            let lab = Lab::new();
            let cpu = lab.cpu();
            let set = Set {
                device: lab.device(64),
                spin: SpinLock::new(()),
                mutex: Mutex::new(()),
                devres: Devres::default(),
            };
            from(context, &set, &cpu, call);
            let told = lab
                .findings()
                .iter()
                .any(|name| ["sleep-in-atomic", "wrong-context", "vmalloc-in-interrupt"].contains(name));
            if told == allowed.allows(context) {
                wrong.push(format!("{file} {name} {context}: told {told}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The `pub fn`s of a source that take a CPU.
fn calls_of(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("pub fn ") {
        let rest = &text[at + 7..];
        let (name, head) = (rest.split(['(', '<']).next().unwrap(), rest.split('{').next().unwrap());
        if head.split("->").next().unwrap().contains("cpu: &") {
            found.push(name.to_owned());
        }
    }
    found
}

#[test]
fn every_public_call_with_a_cpu_has_a_row() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let known: BTreeSet<_> = CALLS.iter().map(|row| (row.0, row.1)).chain(NONE.iter().map(|n| (n.0, n.1))).collect();
    let (mut folders, mut seen, mut missing) = (vec![root.clone()], BTreeSet::new(), Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let file = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            let test =
                ["tests.rs", "testing.rs", "golden", "table.rs", "property.rs"].iter().any(|end| file.contains(end));
            if path.is_dir() {
                folders.push(path);
            } else if !test {
                for name in calls_of(&fs::read_to_string(&path).unwrap()) {
                    if !known.contains(&(file.as_str(), name.as_str())) && !LATER.iter().any(|l| file.starts_with(l)) {
                        missing.push(format!("{file} {name}"));
                    }
                    seen.insert((file.clone(), name));
                }
            }
        }
    }
    let gone: Vec<_> = known.iter().filter(|(file, name)| !seen.contains(&((*file).into(), (*name).into()))).collect();
    // Methods of Cpu itself take no argument of that name.
    let gone: Vec<_> = gone.into_iter().filter(|(file, _)| *file != "cpu/context.rs").collect();
    assert!(missing.is_empty() && gone.is_empty(), "rows are missing for {missing:#?}, and name nothing: {gone:#?}");
    assert!(seen.len() > 70, "{} calls were found", seen.len());
}
