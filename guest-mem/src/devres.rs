//! Managed resources: what a driver takes is given back for it when the driver lets go of the device.
//!
//! Each `devm_` call notes how to undo itself; [`Devres::release_all`] undoes them in the reverse order, at unbind and
//! when a probe fails, so no `goto` chain is needed. Each note is a slab object, so each call can fail for want of it,
//! and then what it guards is not taken or is given back at once. A group marks a stretch that may go early. Mirrors
//! drivers/base/devres.c. Neighbours: the driver crate's binding, which releases; `kbuf`, `dma`, `irq`, `iomem`, whose
//! resources these are. Left out: finding a note by its data, moving notes between devices.

use std::sync::Arc;

use crate::addr::PhysAddr;
use crate::cpu::Cpu;
use crate::dma::{Coherent, CoherentError, DmaDevice};
use crate::env::IrqHandler;
use crate::gfp::{GFP_KERNEL, Gfp};
use crate::iomem::{IoMem, IoremapError, ioremap};
use crate::irq::{IrqError, IrqFlags, IrqThread, request_irq, request_threaded_irq};
use crate::kbuf::{KBuf, OutOfBounds};
use crate::lock::Locked;
use crate::zone::AllocError;

/// Bytes of a note before its data (`struct devres`): list, release function, name, size.
pub const NOTE: usize = 40;
/// Bytes of the data of a note that holds a pointer or two and a length.
const DATA: usize = 24;

type Undo = Box<dyn FnOnce(&Cpu<'_>) + Send>;

struct Note {
    id: u64,
    name: &'static str,
    undo: Undo,
    /// The note's own memory; `None` where the memory is what is managed.
    _memory: Option<KBuf>,
}

#[derive(Default)]
struct Notes {
    list: Vec<Note>,
    next: u64,
}

/// What a device's driver has taken, in that order (`dev->devres_head`).
#[derive(Default)]
pub struct Devres {
    notes: Locked<Notes>,
}

/// Managed memory (`devm_kmalloc`): it lies behind its note, and goes with it.
#[derive(Clone)]
pub struct DevmBuf {
    buf: Arc<Locked<KBuf>>,
    at: PhysAddr,
    len: usize,
    id: u64,
}

impl DevmBuf {
    /// How many bytes were asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where its first byte lies: never where an object begins, so `kfree` of it is wrong.
    pub fn phys(&self) -> PhysAddr {
        self.at
    }

    /// Copies bytes out of it. Any context.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<(), OutOfBounds> {
        self.buf.lock().read_at(self.place(offset, to.len())?, to)
    }

    /// Copies bytes into it. Any context.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    pub fn write_at(&self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        self.buf.lock().write_at(self.place(offset, from.len())?, from)
    }

    fn place(&self, offset: usize, len: usize) -> Result<usize, OutOfBounds> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if inside { Ok(NOTE + offset) } else { Err(OutOfBounds { offset, len, size: self.len }) }
    }
}

/// The beginning of a stretch of notes (`devres_open_group`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a group that nobody releases is released with the rest"]
pub struct Group(u64);

impl Devres {
    fn add(&self, name: &'static str, memory: Option<KBuf>, undo: Undo) -> u64 {
        let mut notes = self.notes.lock();
        notes.next += 1;
        let id = notes.next;
        notes.list.push(Note { id, name, undo, _memory: memory });
        id
    }

    /// The memory of a note (`devres_alloc`).
    #[track_caller]
    fn note(cpu: &Cpu<'_>) -> Result<KBuf, AllocError> {
        KBuf::kmalloc(cpu, NOTE + DATA, GFP_KERNEL)
    }

    /// Allocates `len` bytes that go with the driver (`devm_kmalloc`). With a mask that may sleep: process context only.
    ///
    /// # Errors
    /// [`AllocError`], as of `kmalloc`; the note in front takes 40 bytes.
    #[track_caller]
    pub fn kmalloc(&self, cpu: &Cpu<'_>, len: usize, gfp: Gfp) -> Result<DevmBuf, AllocError> {
        let buf = KBuf::kmalloc(cpu, NOTE.saturating_add(len), gfp)?;
        let at = buf.phys().wrapping_add(NOTE as u64);
        let buf = Arc::new(Locked::new(buf));
        let its = buf.clone();
        let id = self.add("devm_kmalloc", None, Box::new(move |_| drop(its)));
        Ok(DevmBuf { buf, at, len, id })
    }

    /// [`Devres::kmalloc`] of zeroed memory (`devm_kzalloc`). Context as there.
    ///
    /// # Errors
    /// As [`Devres::kmalloc`].
    #[track_caller]
    pub fn kzalloc(&self, cpu: &Cpu<'_>, len: usize, gfp: Gfp) -> Result<DevmBuf, AllocError> {
        self.kmalloc(cpu, len, gfp | Gfp::ZERO)
    }

    /// Gives managed memory back early (`devm_kfree`); `false` if it went before. Any context.
    pub fn kfree(&self, cpu: &Cpu<'_>, buf: DevmBuf) -> bool {
        let note = {
            let mut notes = self.notes.lock();
            let at = notes.list.iter().position(|note| note.id == buf.id);
            at.map(|at| notes.list.remove(at))
        };
        let found = note.is_some();
        note.into_iter().for_each(|note| (note.undo)(cpu));
        found
    }

    /// Allocates coherent memory that goes with the driver (`dmam_alloc_coherent`). Process context.
    ///
    /// # Errors
    /// [`CoherentError`], as of `dma_alloc_coherent`, or for want of the note.
    #[track_caller]
    pub fn alloc_coherent(
        &self,
        cpu: &Cpu<'_>,
        device: &DmaDevice,
        len: usize,
        gfp: Gfp,
    ) -> Result<Arc<Coherent>, CoherentError> {
        let mask = device.coherent_mask();
        let note = Self::note(cpu).map_err(|source| CoherentError::NoMemory { len, mask, source })?;
        let memory = Arc::new(device.alloc_coherent(cpu, len, gfp)?);
        let its = memory.clone();
        let undo = move |cpu: &Cpu<'_>| Arc::into_inner(its).into_iter().for_each(|memory| memory.free(cpu));
        self.add("dmam_alloc_coherent", Some(note), Box::new(undo));
        Ok(memory)
    }

    /// Maps registers until the driver goes (`devm_ioremap`). Process context.
    ///
    /// # Errors
    /// [`IoremapError`], as of `ioremap`, or for want of the note.
    #[track_caller]
    pub fn ioremap(&self, cpu: &Cpu<'_>, at: PhysAddr, len: u64) -> Result<Arc<IoMem>, IoremapError> {
        let note = Self::note(cpu).map_err(|_| IoremapError::NoMemory { len })?;
        let window = Arc::new(ioremap(cpu, at, len)?);
        let its = window.clone();
        self.add("devm_ioremap", Some(note), Box::new(move |_| drop(its)));
        Ok(window)
    }

    /// Attaches a handler until the driver goes (`devm_request_irq`). Process context.
    ///
    /// # Errors
    /// [`IrqError`], as of `request_irq`, or for want of the note.
    #[track_caller]
    pub fn request_irq(&self, cpu: &Cpu<'_>, irq: u32, handler: Arc<dyn IrqHandler>) -> Result<(), IrqError> {
        let note = Self::note(cpu).map_err(|_| IrqError::NoMemory { irq })?;
        let line = request_irq(cpu, irq, handler)?;
        self.add("devm_request_irq", Some(note), Box::new(move |cpu| line.free(cpu)));
        Ok(())
    }

    /// Attaches a handler and its thread until the driver goes (`devm_request_threaded_irq`). Process context.
    ///
    /// # Errors
    /// [`IrqError`], as of `request_threaded_irq`, or for want of the note.
    #[track_caller]
    pub fn request_threaded_irq(
        &self,
        cpu: &Cpu<'_>,
        irq: u32,
        handler: Option<Arc<dyn IrqHandler>>,
        thread: Option<Arc<dyn IrqThread>>,
        flags: IrqFlags,
        name: &'static str,
    ) -> Result<(), IrqError> {
        let note = Self::note(cpu).map_err(|_| IrqError::NoMemory { irq })?;
        let line = request_threaded_irq(cpu, irq, handler, thread, flags, name)?;
        self.add("devm_request_threaded_irq", Some(note), Box::new(move |cpu| line.free(cpu)));
        Ok(())
    }

    /// Has `action`, which its note goes by the `name` of, run when the driver goes (`devm_add_action`). Process context.
    ///
    /// # Errors
    /// [`AllocError`] for want of the note; `action` will not run then.
    #[track_caller]
    pub fn add_action(
        &self,
        cpu: &Cpu<'_>,
        name: &'static str,
        action: impl FnOnce(&Cpu<'_>) + Send + 'static,
    ) -> Result<(), AllocError> {
        let note = Self::note(cpu)?;
        self.add(name, Some(note), Box::new(action));
        Ok(())
    }

    /// [`Devres::add_action`], but without the note `action` runs at once (`devm_add_action_or_reset`). Process context.
    ///
    /// # Errors
    /// [`AllocError`]; `action` has run then.
    #[track_caller]
    pub fn add_action_or_reset(
        &self,
        cpu: &Cpu<'_>,
        name: &'static str,
        action: impl FnOnce(&Cpu<'_>) + Send + 'static,
    ) -> Result<(), AllocError> {
        match Self::note(cpu) {
            Ok(note) => {
                self.add(name, Some(note), Box::new(action));
                Ok(())
            }
            Err(error) => {
                action(cpu);
                Err(error)
            }
        }
    }

    /// Begins a group: what is taken from here on may go early (`devres_open_group`). Any context.
    pub fn open_group(&self) -> Group {
        Group(self.notes.lock().next)
    }

    /// Undoes what was taken since the group began, the last first, and tells what, in that order
    /// (`devres_release_group`). Process context.
    #[track_caller]
    pub fn release_group(&self, cpu: &Cpu<'_>, group: Group) -> Vec<&'static str> {
        cpu.might_sleep("devres_release_group");
        self.release_after(cpu, group.0)
    }

    /// Undoes everything, the last first, and tells what, in that order (`devres_release_all`). Process context.
    #[track_caller]
    pub fn release_all(&self, cpu: &Cpu<'_>) -> Vec<&'static str> {
        cpu.might_sleep("devres_release_all");
        self.release_after(cpu, 0)
    }

    fn release_after(&self, cpu: &Cpu<'_>, first: u64) -> Vec<&'static str> {
        let mut released = Vec::new();
        loop {
            // An action may take or give back more.
            let last = {
                let mut notes = self.notes.lock();
                if notes.list.last().is_some_and(|note| note.id > first) { notes.list.pop() } else { None }
            };
            let Some(note) = last else { return released };
            let _span = cpu.span("devres");
            (note.undo)(cpu);
            released.push(note.name);
        }
    }

    /// The calls that will be undone, the first taken first.
    pub fn held(&self) -> Vec<&'static str> {
        self.notes.lock().list.iter().map(|note| note.name).collect()
    }
}

#[cfg(test)]
mod tests;
