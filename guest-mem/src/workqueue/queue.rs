//! A queue of works and the workers that serve it.
//!
//! Neighbours: the parent, whose works these are; `env`, which starts workers. Left out: pools shared by several queues.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use super::{BadWork, Inner};
use crate::PhysAddr;
use crate::cpu::Cpu;
use crate::env::{Class, Verdict};
use crate::finding::{FindingKind, Resource};
use crate::lock::Locked;
use crate::site::Owner;
use crate::wait::WaitQueue;

/// Works that run at once on a queue which says nothing else; Linux allows 256 a CPU.
const MOST: usize = 4;

struct Item {
    work: Arc<Inner>,
    cpu: u32,
    by: Owner,
}

#[derive(Default)]
struct Line {
    pending: VecDeque<Item>,
    /// The tasks that serve it.
    workers: Vec<u32>,
}

/// A queue.
pub(super) struct Queue {
    most: usize,
    line: Locked<Line>,
    draining: AtomicBool,
    changed: WaitQueue,
}

impl Queue {
    fn new(most: usize) -> Self {
        Self { most, line: Locked::default(), draining: AtomicBool::new(false), changed: WaitQueue::new() }
    }

    /// How many works run at once.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Whether a task is one of its workers.
    pub(super) fn has_worker(&self, task: u32) -> bool {
        task != 0 && self.line.lock().workers.contains(&task)
    }

    fn idle(&self) -> bool {
        let line = self.line.lock();
        line.pending.is_empty() && line.workers.is_empty()
    }
}

/// The kernel's queues.
pub(crate) struct Queues {
    system: Arc<Queue>,
    all: Locked<Vec<Weak<Queue>>>,
}

impl Default for Queues {
    fn default() -> Self {
        let system = Arc::new(Queue::new(MOST));
        let all = Locked::new(vec![Arc::downgrade(&system)]);
        Self { system, all }
    }
}

impl Queues {
    /// The system's queue (`system_wq`).
    pub(super) fn system(&self) -> &Arc<Queue> {
        &self.system
    }

    pub(crate) fn reset(&self) {
        *self.system.line.lock() = Line::default();
        *self.all.lock() = vec![Arc::downgrade(&self.system)];
    }

    /// Every work that waits to run, with who queued it.
    pub(crate) fn pending(&self) -> Vec<(u32, Owner)> {
        let queues: Vec<_> = self.all.lock().iter().filter_map(Weak::upgrade).collect();
        let items =
            |queue: &Arc<Queue>| queue.line.lock().pending.iter().map(|item| (item.cpu, item.by)).collect::<Vec<_>>();
        queues.iter().flat_map(items).collect()
    }
}

/// Why there is no queue (`-ENOMEM`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no memory for a workqueue")]
pub struct NoQueue;

/// A driver's own queue (`struct workqueue_struct`), to be destroyed.
#[must_use = "a queue that nobody destroys is a leak"]
pub struct Workqueue {
    pub(super) queue: Arc<Queue>,
    pub(super) booked: u64,
}

impl Workqueue {
    /// A queue that runs several works at once (`alloc_workqueue`). Process context.
    ///
    /// # Errors
    /// `NoQueue` when the world fails the point.
    #[track_caller]
    pub fn new(cpu: &Cpu<'_>) -> Result<Self, NoQueue> {
        Self::with_most(cpu, MOST)
    }

    /// A queue that runs its works one after the other (`alloc_ordered_workqueue`). Process context.
    ///
    /// # Errors
    /// As [`Workqueue::new`].
    #[track_caller]
    pub fn ordered(cpu: &Cpu<'_>) -> Result<Self, NoQueue> {
        Self::with_most(cpu, 1)
    }

    #[track_caller]
    fn with_most(cpu: &Cpu<'_>, most: usize) -> Result<Self, NoQueue> {
        cpu.might_sleep("alloc_workqueue");
        if cpu.point(Class::Slab, size_of::<Queue>() as u64) == Verdict::Fail {
            return Err(NoQueue);
        }
        let queue = Arc::new(Queue::new(most));
        cpu.kernel().workqueues().all.lock().push(Arc::downgrade(&queue));
        let booked = cpu.kernel().register(Resource::Workqueue, PhysAddr::new(0), 0, cpu.owner());
        Ok(Self { queue, booked })
    }

    /// Waits until everything queued so far and by that has run (`drain_workqueue`). Process context.
    #[track_caller]
    pub fn flush(&self, cpu: &Cpu<'_>) {
        cpu.might_sleep("flush_workqueue");
        self.wait(cpu, "flush_workqueue", cpu.owner());
    }

    fn wait(&self, cpu: &Cpu<'_>, call: &'static str, by: Owner) {
        if self.queue.has_worker(cpu.task()) {
            return cpu.emit(FindingKind::Work(BadWork::WaitsForItself { call }), None, vec![("called at", by)]);
        }
        // Teardown ends the wait early; the workers are told to go too.
        let _ = self.queue.changed.wait_until_done(cpu, || self.queue.idle());
    }

    /// Waits until everything has run and gives the queue back (`destroy_workqueue`). Process context.
    #[track_caller]
    pub fn destroy(self, cpu: &Cpu<'_>) {
        cpu.might_sleep("destroy_workqueue");
        self.queue.draining.store(true, Ordering::Release);
        self.wait(cpu, "destroy_workqueue", cpu.owner());
        cpu.kernel().unregister(self.booked);
    }
}

/// Queues a work, and starts a worker if the queue allows one more.
pub(super) fn put(cpu: &Cpu<'_>, queue: &Arc<Queue>, work: &Arc<Inner>, by: Owner) -> bool {
    if queue.draining.load(Ordering::Acquire) && !queue.has_worker(cpu.task()) {
        cpu.emit(FindingKind::Work(BadWork::Draining), None, vec![("queued at", by)]);
        return false;
    }
    let task = {
        // Both at once: who cancels finds it on the line, or keeps it off.
        let mut line = queue.line.lock();
        {
            let mut progress = work.progress.lock();
            if progress.pending() || progress.canceling > 0 {
                return false;
            }
            progress.queued += 1;
            progress.queue = Some(queue.clone());
        }
        line.pending.push_back(Item { work: work.clone(), cpu: cpu.id(), by });
        if line.workers.len() >= queue.most {
            return true;
        }
        let task = cpu.kernel().next_task();
        line.workers.push(task);
        task
    };
    let serves = queue.clone();
    if !cpu.spawn(cpu.id(), task, Box::new(move |cpu| serve(cpu, &serves))) {
        // The world has no room: a worker that is there already will come to it.
        queue.line.lock().workers.retain(|&other| other != task);
    }
    true
}

/// Takes a pending work off its queue; whether it was pending.
pub(super) fn take_back(cpu: &Cpu<'_>, work: &Arc<Inner>) -> bool {
    let Some(queue) = work.progress.lock().queue.clone() else { return false };
    let taken = {
        let mut line = queue.line.lock();
        let at = line.pending.iter().position(|item| Arc::ptr_eq(&item.work, work));
        at.and_then(|at| line.pending.remove(at)).is_some()
    };
    if taken {
        work.progress.lock().queued -= 1;
        work.changed.wake_up_all(cpu);
        queue.changed.wake_up_all(cpu);
    }
    taken
}

/// A worker's turn is over when this drops, by whichever way it ends.
struct Serves<'a, 'w> {
    cpu: &'a Cpu<'w>,
    queue: &'a Queue,
}

impl Drop for Serves<'_, '_> {
    fn drop(&mut self) {
        self.queue.line.lock().workers.retain(|&task| task != self.cpu.task());
        self.queue.changed.wake_up_all(self.cpu);
    }
}

/// A work runs; over when its function returns, and when it unwinds.
struct Runs<'a, 'w> {
    cpu: &'a Cpu<'w>,
    work: &'a Inner,
}

impl Drop for Runs<'_, '_> {
    fn drop(&mut self) {
        {
            let mut progress = self.work.progress.lock();
            progress.running = None;
            progress.done += 1;
        }
        self.work.changed.wake_up_all(self.cpu);
    }
}

/// What a worker does: one work after the other, until none is left that it may run.
fn serve(cpu: &Cpu<'_>, queue: &Queue) {
    let _serves = Serves { cpu, queue };
    loop {
        let _ = cpu.point(Class::Wait, 0);
        let next = {
            let mut line = queue.line.lock();
            // One that runs is not begun again: the worker that runs it comes back to it.
            let free = |item: &Item| item.work.progress.lock().running.is_none();
            let at = line.pending.iter().position(free);
            match at.and_then(|at| line.pending.remove(at)) {
                Some(item) => {
                    item.work.progress.lock().running = Some(cpu.task());
                    item
                }
                None => {
                    // Under the same lock as the look: who queues afterwards starts another.
                    line.workers.retain(|&task| task != cpu.task());
                    return;
                }
            }
        };
        let _span = cpu.span("work");
        let runs = Runs { cpu, work: &next.work };
        (next.work.function)(cpu);
        drop(runs);
    }
}
