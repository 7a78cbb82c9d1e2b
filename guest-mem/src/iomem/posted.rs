//! Posted writes: what a driver has written and no device has seen yet.
//!
//! A register write is handed to the bus and forgotten; bridges may hold it for a while. On a machine with
//! `posted_writes` it waits here until something pushes it on: a read from the same function, sixteen later writes to
//! it, its CPU taking an interrupt or waiting, so that time passes for it, or [`flush_posted`]. Writes to one function
//! stay in order. So a driver that must know its write arrived, such as one that stops a device before it frees the
//! device's memory, has to read something back, and here it is seen if it doesn't.
//!
//! Off by default, where a write arrives at once. On a machine with weak memory writes wait for their world instead of
//! their CPU, and bring along the stores before them. Neighbours: [`super::access`], which posts and pushes;
//! [`crate::weak`]. Left out: write gathering, reads that pass writes to other functions.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::addr::PhysAddr;
use crate::cpu::Cpu;
use crate::iospace::{IoSpace, Width};
use crate::kernel::Kernel;
use crate::lock::Locked;

/// Writes that a function's path holds before the oldest is pushed on.
pub const DEPTH: usize = 16;

/// One register write.
pub(super) struct Write {
    /// Who wrote.
    pub(super) cpu: u32,
    pub(super) io: Arc<dyn IoSpace>,
    pub(super) function: u64,
    pub(super) at: PhysAddr,
    pub(super) width: Width,
    pub(super) value: u64,
    /// Of weak memory: where it stands among its CPU's stores.
    pub(super) marker: u64,
}

impl Write {
    fn deliver(self, kernel: &Kernel) {
        if let Some(weak) = kernel.weak() {
            weak.lock().arrives(kernel.ram(), self.cpu, self.marker);
        }
        self.io.write(self.at, self.width, self.value);
    }
}

/// The writes under way on one machine, oldest first.
///
/// They are delivered under the lock: else a CPU could overtake another's write to the same function.
#[derive(Default)]
pub(crate) struct Posted(Locked<VecDeque<Write>>);

impl Posted {
    pub(super) fn post(&self, kernel: &Kernel, write: Write) {
        let mut queue = self.0.lock();
        let function = write.function;
        queue.push_back(write);
        if queue.iter().filter(|write| write.function == function).count() > DEPTH {
            let oldest = queue.iter().position(|write| write.function == function);
            oldest.and_then(|index| queue.remove(index)).into_iter().for_each(|write| write.deliver(kernel));
        }
    }

    /// Delivers what is under way to one function.
    pub(crate) fn push(&self, kernel: &Kernel, function: u64) {
        let mut queue = self.0.lock();
        if queue.is_empty() {
            return;
        }
        let (ready, rest): (Vec<_>, Vec<_>) = queue.drain(..).partition(|write| write.function == function);
        queue.extend(rest);
        ready.into_iter().for_each(|write| write.deliver(kernel));
    }

    /// The functions to which something is under way, in the order of their oldest writes.
    pub(crate) fn functions(&self) -> Vec<u64> {
        let mut functions = Vec::new();
        for write in self.0.lock().iter() {
            if !functions.contains(&write.function) {
                functions.push(write.function);
            }
        }
        functions
    }

    /// Delivers the oldest write to one function.
    pub(crate) fn push_one(&self, kernel: &Kernel, function: u64) {
        let mut queue = self.0.lock();
        let oldest = queue.iter().position(|write| write.function == function);
        oldest.and_then(|index| queue.remove(index)).into_iter().for_each(|write| write.deliver(kernel));
    }

    /// Time passes for a CPU: delivers what it wrote, and what is before that.
    pub(crate) fn settle(&self, kernel: &Kernel, cpu: u32) {
        loop {
            let function = self.0.lock().iter().find(|write| write.cpu == cpu).map(|write| write.function);
            match function {
                Some(function) => self.push(kernel, function),
                None => return,
            }
        }
    }

    /// Delivers all; whether there was any.
    pub(crate) fn flush(&self, kernel: &Kernel) -> bool {
        self.0.lock().drain(..).map(|write| write.deliver(kernel)).count() > 0
    }

    pub(crate) fn reset(&self) {
        self.0.lock().clear();
    }
}

/// Delivers every write that is under way on this machine, as time would: for worlds and tests. Any context.
pub fn flush_posted(cpu: &Cpu<'_>) {
    cpu.kernel().posted.flush(cpu.kernel());
}
