//! `Scull`: one memory device, from its first byte to its trim.
//!
//! The pointers to quanta stand in guest memory, in tables from `kmalloc`, as the original's do; the lab keeps the
//! quanta themselves beside them. A mutex guards the whole, held while a quantum is allocated: a `GFP_KERNEL` allocation
//! may sleep, and a mutex, unlike a spinlock, allows that.

use lowzone_guest_mem::gfp::{__GFP_ZERO, GFP_KERNEL};
use lowzone_guest_mem::lock::Mutex;
use lowzone_guest_mem::{Cpu, KBuf};

use super::backing::{Backing, Quantum};
use super::{QSET, ScullError};
#[cfg(lowzone_mutants)]
use crate::mutant::{self, Mutant};

/// Bytes of a list item (`sizeof(struct scullc_dev)` on x86-64).
const ITEM: usize = 104;
const POINTER: usize = 8;

/// An item of the list: a table of quanta.
struct Item {
    /// The item itself; the first is the device's own memory.
    _node: Option<KBuf>,
    table: KBuf,
    quanta: Vec<Option<Quantum>>,
}

#[derive(Default)]
struct Data {
    size: u64,
    items: Vec<Option<Item>>,
}

/// One device.
pub struct Scull {
    backing: Backing,
    data: Mutex<Data>,
}

/// Where a position lies: item, quantum of it, byte of that.
#[derive(Clone, Copy)]
struct Place {
    item: usize,
    slot: usize,
    offset: usize,
}

impl Scull {
    /// An empty device over a backing.
    pub fn new(backing: Backing) -> Self {
        Self { backing, data: Mutex::new(Data::default()) }
    }

    /// Bytes of a quantum.
    pub fn quantum(&self) -> usize {
        self.backing.quantum()
    }

    /// Bytes up to the highest that was written. Process context.
    pub fn size(&self, cpu: &Cpu<'_>) -> u64 {
        self.data.lock(cpu).size
    }

    fn place(&self, position: u64) -> Option<Place> {
        let position = usize::try_from(position).ok()?;
        let (quantum, per_item) = (self.quantum(), self.quantum() * QSET);
        let rest = position % per_item;
        Some(Place { item: position / per_item, slot: rest / quantum, offset: rest % quantum })
    }

    /// Writes at a position, up to the end of its quantum; tells how many bytes. Process context.
    ///
    /// # Errors
    /// [`ScullError::NoMemory`] or [`ScullError::Vmalloc`]: nothing was written, and what is there stays.
    pub fn write(&self, cpu: &Cpu<'_>, position: u64, from: &[u8]) -> Result<usize, ScullError> {
        let Some(Place { item, slot, offset }) = self.place(position) else { return Ok(0) };
        let mut data = self.data.lock(cpu);
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::CheckThenSleep) && item_at(cpu, &mut data, item)?.quanta[slot].is_none() {
            drop(data);
            let quantum = self.backing.take(cpu)?;
            data = self.data.lock(cpu);
            std::mem::forget(item_at(cpu, &mut data, item)?.quanta[slot].replace(quantum));
        }
        let quantum = self.quantum_at(cpu, &mut data, item, slot)?;
        let len = from.len().min(self.quantum() - offset);
        quantum.write_at(offset, &from[..len])?;
        data.size = data.size.max(position + len as u64);
        Ok(len)
    }

    /// The quantum of a place, allocated if it is not there.
    fn quantum_at<'a>(
        &self,
        cpu: &Cpu<'_>,
        data: &'a mut Data,
        item: usize,
        slot: usize,
    ) -> Result<&'a mut Quantum, ScullError> {
        // An item that is not there yet, then a quantum: what was allocated first is kept if the second fails, as there.
        let found = item_at(cpu, data, item)?;
        match &mut found.quanta[slot] {
            Some(quantum) => Ok(quantum),
            none => {
                let quantum = self.backing.take(cpu)?;
                found.table.write_at(slot * POINTER, &quantum.virt().get().to_le_bytes())?;
                Ok(none.insert(quantum))
            }
        }
    }

    /// Reads from a position, up to the end of its quantum; a hole and the end read as nothing. Process context.
    ///
    /// # Errors
    /// [`ScullError::Bounds`] if the driver miscounts.
    pub fn read(&self, cpu: &Cpu<'_>, position: u64, to: &mut [u8]) -> Result<usize, ScullError> {
        let Some(Place { item, slot, offset }) = self.place(position) else { return Ok(0) };
        let data = self.data.lock(cpu);
        let left = usize::try_from(data.size.saturating_sub(position)).unwrap_or(usize::MAX);
        let found = data.items.get(item).and_then(Option::as_ref).and_then(|found| found.quanta[slot].as_ref());
        let Some(quantum) = found else { return Ok(0) };
        let len = to.len().min(left).min(self.quantum() - offset);
        quantum.read_at(offset, &mut to[..len])?;
        Ok(len)
    }

    /// Frees everything (`scull*_trim`); the device is empty afterwards. Process context.
    pub fn trim(&self, cpu: &Cpu<'_>) {
        let mut data = self.data.lock(cpu);
        for item in std::mem::take(&mut *data).items.into_iter().flatten() {
            item.quanta.into_iter().flatten().for_each(|quantum| self.backing.give(cpu, quantum));
        }
    }

    /// Ends the device: trims it, and destroys the cache of its quanta. Process context.
    pub fn remove(self, cpu: &Cpu<'_>) {
        self.trim(cpu);
        self.backing.end(cpu);
    }

    /// Destroys the cache of its quanta before they are freed: the mistake of a driver that forgets to trim. Process
    /// context.
    pub fn remove_untrimmed(self, cpu: &Cpu<'_>) {
        self.backing.end(cpu);
    }

    /// How many items and quanta there are. Process context.
    pub fn counts(&self, cpu: &Cpu<'_>) -> (usize, usize) {
        let data = self.data.lock(cpu);
        let items = data.items.iter().flatten();
        (items.clone().count(), items.map(|item| item.quanta.iter().flatten().count()).sum())
    }
}

/// An item of the list, allocated if it is not there.
fn item_at<'a>(cpu: &Cpu<'_>, data: &'a mut Data, item: usize) -> Result<&'a mut Item, ScullError> {
    if data.items.len() <= item {
        data.items.resize_with(item + 1, || None);
    }
    match &mut data.items[item] {
        Some(found) => Ok(found),
        none => Ok(none.insert(Item::new(cpu, item > 0)?)),
    }
}

impl Item {
    fn new(cpu: &Cpu<'_>, listed: bool) -> Result<Self, ScullError> {
        let zeroed = GFP_KERNEL | __GFP_ZERO;
        let node = listed.then(|| KBuf::kmalloc(cpu, ITEM, zeroed)).transpose()?;
        let table = KBuf::kmalloc(cpu, QSET * POINTER, zeroed)?;
        Ok(Self { _node: node, table, quanta: std::iter::repeat_with(|| None).take(QSET).collect() })
    }
}
