//! Weak memory: what CPUs and devices see of each other's accesses, and in which order, when nobody says it.
//!
//! On a machine with `weak` a CPU's stores to coherent memory wait in its store buffer (`buffer`): devices see them
//! in any order but across a write barrier. A load of what a device wrote may give what was there before (`history`),
//! unless a read barrier, a lock taken, a wait or a message-signalled interrupt lies in between; a pin's interrupt tells
//! nothing, its handler's register read does. Register writes are posted (`iomem::posted`) and take the stores
//! before them along. Each access of such memory is a place where others may run. Which order comes out follows from
//! the world's seed, and nothing waits for ever: the world lets some of it go each turn, all of it when time jumps.
//!
//! The plain machine has none of it. It is lockstep's: on threads the host's own memory order is seen. Devices' writes
//! become visible in the order they were made, as PCI's without relaxed ordering. Neighbours: `Cpu`, whose barriers come
//! here; `dma::coherent` and `dma::pool`, whose accesses do; the port. Left out: order between CPUs, which see each
//! other's accesses at once, and streaming memory, which has one owner at a time: it is written and read at once.

use crate::addr::PhysAddr;
use crate::cpu::Cpu;
use crate::env::Class;
use crate::kernel::Kernel;
use crate::lock::{Locked, LockedGuard};
use crate::ram::Ram;
use crate::site::Owner;

mod buffer;
mod chance;
mod history;
#[cfg(test)]
mod tests;

use buffer::{LONG, Store, StoreBuffer};
use chance::Chance;
use history::History;

/// Loads in a row that give a CPU something older than there is: a loop that waits for a device must end.
const STALE_MOST: u32 = 4;
/// One turn of the world in so many lets a store of a CPU go, and a function's register writes arrive.
const TURNS: u64 = 4;

#[derive(Debug, Default)]
struct Side {
    buffer: StoreBuffer,
    /// The CPU sees every device's write up to this one.
    floor: u64,
    /// Loads in a row that were given something older.
    stale: u32,
}

/// The state of a weak machine.
#[derive(Debug)]
pub(crate) struct State {
    chance: Chance,
    cpus: Vec<Side>,
    history: History,
}

/// What a weak machine's kernel has, and a plain one's has not.
#[derive(Debug)]
pub(crate) struct Weak(Locked<State>);

impl Weak {
    pub(crate) fn new(cpus: u32) -> Self {
        let cpus = (0..cpus).map(|_| Side::default()).collect();
        Self(Locked::new(State { chance: Chance::new(0), cpus, history: History::default() }))
    }

    pub(crate) fn reset(&self) {
        let mut state = self.0.lock();
        let cpus = state.cpus.len();
        *state = State { chance: Chance::new(0), cpus: Vec::new(), history: History::default() };
        state.cpus.resize_with(cpus, Side::default);
    }

    pub(crate) fn lock(&self) -> LockedGuard<'_, State> {
        self.0.lock()
    }
}

fn index(cpu: u32) -> usize {
    usize::try_from(cpu).unwrap_or(usize::MAX)
}

impl State {
    fn commit(&mut self, ram: &Ram, store: &Store) {
        // It was in bounds when it was stored.
        let _ = ram.write_uncached(store.at, store.bytes());
        self.history.stored(store.at, store.bytes());
    }

    /// Lets go of what `take` takes out of a CPU's buffer, one after another; whether it took any.
    fn drain_with(&mut self, ram: &Ram, cpu: usize, mut take: impl FnMut(&mut StoreBuffer) -> Option<Store>) -> bool {
        let mut any = false;
        while let Some(store) = self.cpus.get_mut(cpu).and_then(|side| take(&mut side.buffer)) {
            self.commit(ram, &store);
            any = true;
        }
        any
    }

    fn drain(&mut self, ram: &Ram, cpu: usize) -> bool {
        self.drain_with(ram, cpu, StoreBuffer::take)
    }

    /// Every other CPU's stores that overlap are visible, and with them whatever that CPU stored.
    fn drain_others(&mut self, ram: &Ram, cpu: u32, at: PhysAddr, len: usize) {
        for other in (0..self.cpus.len()).filter(|&other| other != index(cpu)) {
            if self.cpus[other].buffer.holds(at, len) {
                self.drain(ram, other);
            }
        }
    }

    /// A CPU loads bytes that lie in RAM.
    pub(crate) fn load(&mut self, ram: &Ram, cpu: u32, at: PhysAddr, to: &mut [u8]) {
        self.drain_others(ram, cpu, at, to.len());
        if ram.read_uncached(at, to).is_err() {
            return;
        }
        let Some(side) = self.cpus.get_mut(index(cpu)) else { return };
        let unseen = self.history.unseen(cpu, side.floor, at, to.len());
        let mut undone = 0;
        if unseen > 0 {
            let stale = side.stale < STALE_MOST && self.chance.once_in(2);
            side.stale = if stale { side.stale + 1 } else { 0 };
            if stale {
                undone = 1 + usize::try_from(self.chance.below(unseen as u64)).unwrap_or(0);
            }
        }
        self.history.undo(cpu, undone, at, to);
        side.buffer.overlay(at, to);
    }

    /// A CPU stores bytes that lie in RAM.
    pub(crate) fn store(&mut self, ram: &Ram, cpu: u32, at: PhysAddr, bytes: &[u8]) {
        self.drain_others(ram, cpu, at, bytes.len());
        let Some(side) = self.cpus.get_mut(index(cpu)) else { return };
        if bytes.len() > LONG {
            self.drain(ram, index(cpu));
            let _ = ram.write_uncached(at, bytes);
            self.history.stored(at, bytes);
            return;
        }
        side.buffer.push(at, bytes);
        self.drain_with(ram, index(cpu), StoreBuffer::overflow);
    }

    /// `wmb`, `dma_wmb`.
    pub(crate) fn write_barrier(&mut self, cpu: u32) {
        if let Some(side) = self.cpus.get_mut(index(cpu)) {
            side.buffer.mark();
        }
    }

    /// `rmb`, `dma_rmb`, and whatever else has a CPU see all that was written so far.
    pub(crate) fn read_barrier(&mut self, cpu: u32) {
        let now = self.history.now();
        if let Some(side) = self.cpus.get_mut(index(cpu)) {
            side.floor = now;
        }
    }

    /// `mb`, and a wait.
    pub(crate) fn full_barrier(&mut self, ram: &Ram, cpu: u32) {
        self.drain(ram, index(cpu));
        self.read_barrier(cpu);
    }

    /// A lock was taken: what its last holder stored is before what this CPU does.
    pub(crate) fn lock_taken(&mut self, ram: &Ram, cpu: u32) {
        for other in (0..self.cpus.len()).filter(|&other| other != index(cpu)) {
            self.drain(ram, other);
        }
        self.read_barrier(cpu);
    }

    /// Where a CPU's register write stands among its stores.
    pub(crate) fn marker(&self, cpu: u32) -> u64 {
        self.cpus.get(index(cpu)).map_or(0, |side| side.buffer.marker())
    }

    /// A CPU's register write arrives: the stores before its markers are visible.
    pub(crate) fn arrives(&mut self, ram: &Ram, cpu: u32, marker: u64) {
        self.drain_with(ram, index(cpu), |buffer| buffer.take_before(marker));
    }

    /// A device is about to read: some stores reach memory before.
    pub(crate) fn device_reads(&mut self, ram: &Ram) {
        for cpu in 0..self.cpus.len() {
            if self.cpus[cpu].buffer.is_empty() || self.chance.once_in(2) {
                continue;
            }
            for _ in 0..self.cpus[cpu].buffer.len() {
                if self.chance.once_in(2) {
                    self.let_one_go(ram, cpu);
                }
            }
        }
    }

    fn let_one_go(&mut self, ram: &Ram, cpu: usize) {
        let Self { chance, cpus, .. } = self;
        if let Some(store) = cpus[cpu].buffer.take_any(chance) {
            self.commit(ram, &store);
        }
    }

    /// A device is about to write coherent memory.
    pub(crate) fn device_writes(&mut self, ram: &Ram, at: PhysAddr, len: usize) {
        if History::is_long(len) {
            return self.history.forget(at, len);
        }
        let mut old = vec![0; len];
        if ram.read_uncached(at, &mut old).is_ok() {
            self.history.write(at, old);
        }
    }

    /// Memory changes hands: what is under way to it arrives, and what it was is forgotten.
    pub(crate) fn forget(&mut self, ram: &Ram, at: PhysAddr, len: u64) {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.drain_others(ram, u32::MAX, at, len);
        self.history.forget(at, len);
    }

    /// A turn of the world: some stores reach memory.
    fn turn(&mut self, ram: &Ram) {
        for cpu in 0..self.cpus.len() {
            if !self.cpus[cpu].buffer.is_empty() && self.chance.once_in(TURNS) {
                self.let_one_go(ram, cpu);
            }
        }
    }
}

impl Kernel {
    /// Has a weak machine's order follow from a world's seed; nothing to do on others. Only a world calls this.
    pub fn seed_weak(&self, seed: u64) {
        if let Some(weak) = self.weak() {
            weak.lock().chance = Chance::new(seed);
        }
    }

    /// Lets some of what is under way on a weak machine arrive: a world calls this at every turn.
    pub fn weak_turn(&self) {
        let Some(weak) = self.weak() else { return };
        let pushed = {
            let mut state = weak.lock();
            state.turn(self.ram());
            self.posted.functions().into_iter().find(|_| state.chance.once_in(TURNS))
        };
        if let Some(function) = pushed {
            self.posted.push_one(self, function);
        }
    }

    /// Lets all that is under way on a weak machine arrive; whether there was any. A world calls this before time jumps.
    pub fn weak_settle(&self) -> bool {
        let Some(weak) = self.weak() else { return false };
        let arrived = self.posted.flush(self);
        let mut state = weak.lock();
        (0..state.cpus.len()).fold(arrived, |any, cpu| state.drain(self.ram(), cpu) | any)
    }

    /// A message-signalled interrupt has come to a CPU: so has what its device wrote before.
    pub fn message_arrived(&self, cpu: u32) {
        if let Some(weak) = self.weak() {
            weak.lock().read_barrier(cpu);
        }
    }
}

impl Cpu<'_> {
    /// A place where others may run, before or after an access of memory that a device shares.
    pub(crate) fn weak_point(&self, owner: Owner) {
        let _ = self.point_for(Class::Lock, 0, owner);
    }

    /// A load of memory that a device shares, on a weak machine.
    #[cold]
    pub(crate) fn weak_load(&self, weak: &Weak, at: PhysAddr, to: &mut [u8], owner: Owner) {
        self.weak_point(owner);
        weak.lock().load(self.kernel().ram(), self.id(), at, to);
        // What was decided by it is decided before whatever comes now.
        self.weak_point(owner);
    }

    /// A store to memory that a device shares, on a weak machine.
    #[cold]
    pub(crate) fn weak_store(&self, weak: &Weak, at: PhysAddr, bytes: &[u8], owner: Owner) {
        self.weak_point(owner);
        weak.lock().store(self.kernel().ram(), self.id(), at, bytes);
    }
}
