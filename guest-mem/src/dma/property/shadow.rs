//! The shadow: what each step must do to each byte, and which findings it must make, from the rules alone.
//!
//! Where the model chooses (a bounce slot, an I/O virtual address) the shadow checks the choice and follows it. Its
//! tables are plain lists that are searched from end to end. Neighbours: `memory`, `domain`; `run` compares.

use std::collections::VecDeque;

use super::domain::Domain;
use super::memory::Memory;
use super::slots::Slots;
use crate::dma::direction::Dir;
use crate::dma::iommu::IommuMode;
use crate::dma::swiotlb::MAX_MAPPING;
use crate::dma::{DmaDevice, MapFailure};
use crate::kernel::MachineConfig;

/// What is wrong, in words.
pub(super) type Check = Result<(), String>;

/// Fails the step unless that holds.
macro_rules! ensure {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err(format!($($why)+));
        }
    };
}
pub(super) use ensure;

/// Dead mappings that are remembered.
const DEAD: usize = 256;
/// The longest segment that a PCI device takes.
const SEGMENT: u64 = 65536;

/// What a map call asks for.
#[derive(Clone, Copy)]
pub(super) struct Ask {
    pub(super) orig: u64,
    pub(super) len: u64,
    pub(super) dir: Dir,
    /// `DMA_ATTR_SKIP_CPU_SYNC`.
    pub(super) skip: bool,
    /// Whether it is of a scatterlist.
    pub(super) list: bool,
    /// Whether the driver keeps the memory.
    pub(super) kept: bool,
    /// Whether it was allocated in the device's reach.
    pub(super) near: bool,
}

/// What it was told.
#[derive(Clone, Copy)]
pub(super) struct Told {
    pub(super) dma: u64,
    pub(super) id: u64,
    pub(super) bounced: bool,
}

/// A mapping; an entry of a scatterlist and a coherent region are each one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// The transaction; 0 if it isn't known.
    pub(super) id: u64,
    pub(super) dma: u64,
    /// Where the device's bytes are, and the driver's.
    phys: u64,
    pub(super) orig: u64,
    pub(super) len: u64,
    pub(super) dir: Dir,
    pub(super) coherent: bool,
    bounced: bool,
    skip: bool,
    /// Whether the CPU's accesses to it are judged.
    watched: bool,
    /// Whether the device has written since the CPU had any of it.
    unseen: bool,
    /// What the CPU was lent: first byte, and the one behind the last.
    lent: Option<(u64, u64)>,
}

impl Piece {
    fn end(&self) -> u128 {
        u128::from(self.dma) + u128::from(self.len)
    }

    fn covers(&self, dma: u64, len: u64) -> bool {
        self.dma <= dma && u128::from(dma) + u128::from(len) <= self.end()
    }

    fn touches(&self, dma: u64, len: u64) -> bool {
        u128::from(self.dma) < u128::from(dma) + u128::from(len) && u128::from(dma) < self.end()
    }

    fn is_lent(&self, dma: u64, len: u64) -> bool {
        let apart = |(from, to): (u64, u64)| self.dma + to <= dma || dma.saturating_add(len) <= self.dma + from;
        self.lent.is_some_and(|lent| !apart(lent))
    }

    const fn allows(&self, write: bool) -> bool {
        if write { self.dir.device_writes() } else { self.dir.device_reads() }
    }

    /// Bytes of an access that lie outside.
    fn outside(&self, dma: u64, len: u64) -> u128 {
        let end = u128::from(dma) + u128::from(len);
        u128::from(self.dma.saturating_sub(dma)) + end.saturating_sub(self.end())
    }
}

/// One device.
pub(super) struct Book {
    pub(super) mask: u64,
    align: u64,
    /// In the order of their map calls.
    pub(super) live: Vec<Piece>,
    /// The newest first.
    pub(super) dead: VecDeque<Piece>,
    pub(super) domain: Option<Domain>,
}

/// The shadow of a machine.
pub(super) struct Shadow {
    pub(super) memory: Memory,
    pub(super) books: Vec<Book>,
    pub(super) slots: Option<Slots>,
    /// Findings that this step must make, in order: name and transaction.
    pub(super) expected: Vec<(&'static str, u64)>,
    pub(super) now: u64,
    config: MachineConfig,
}

/// What an access must have done.
pub(super) struct Moved {
    /// Stretches of RAM, in order.
    pub(super) pieces: Vec<(u64, u64)>,
    /// Whether all bytes were moved.
    pub(super) whole: bool,
}

impl Shadow {
    pub(super) fn new(config: MachineConfig, devices: &[DmaDevice], pool: Option<(u64, u64)>) -> Self {
        let domain = || config.iommu.map(|mode| Domain::new(mode == IommuMode::Lazy));
        let book = |device: &DmaDevice| Book {
            mask: device.mask(),
            align: device.min_align_mask().into(),
            live: Vec::new(),
            dead: VecDeque::new(),
            domain: domain(),
        };
        Self {
            memory: Memory::new(config.ram, config.low, config.coherent),
            books: devices.iter().map(book).collect(),
            slots: pool.map(|(base, bytes)| Slots::new(base, bytes, config.cpus)),
            expected: Vec::new(),
            now: 0,
            config,
        }
    }

    /// Whether a piece must bounce.
    pub(super) fn bounces(&self, dev: usize, ask: &Ask) -> bool {
        let last = ask.orig + self.config.dma_offset + ask.len - 1;
        self.config.iommu.is_none() && !ask.near && (self.config.swiotlb_force || last > self.books[dev].mask)
    }

    /// A piece has got its place: checks it, and moves the bytes that a map call moves.
    pub(super) fn place(&mut self, dev: usize, ask: &Ask, told: Told) -> Result<Piece, String> {
        let (Ask { orig, len, dir, skip, .. }, now) = (*ask, self.now);
        let bounces = self.bounces(dev, ask);
        let book = &mut self.books[dev];
        ensure!(told.bounced == bounces, "{orig:#x}+{len}: bounced is {}", told.bounced);
        ensure!(told.dma.saturating_add(len - 1) <= book.mask, "{:#x}+{len} is beyond the mask", told.dma);
        let mut phys = orig;
        if let Some(domain) = &mut book.domain {
            domain.map(told.dma, orig, len, dir, now)?;
        } else {
            phys = told.dma.wrapping_sub(self.config.dma_offset);
            ensure!(bounces || phys == orig, "{orig:#x} was mapped at {phys:#x}");
        }
        if bounces {
            let slots = self.slots.as_mut().ok_or("bounced without a pool")?;
            slots.take(phys, orig, len, book.align)?;
            self.memory.copy(orig, phys, len);
        }
        if !skip {
            self.memory.clean(phys, len);
        }
        Ok(Piece {
            id: told.id,
            dma: told.dma,
            phys,
            orig,
            len,
            dir,
            coherent: false,
            bounced: bounces,
            skip,
            watched: ask.kept || !self.config.coherent,
            unseen: false,
            lent: None,
        })
    }

    /// The segments that an IOMMU makes of a list, given where the first one is: checks each, and books it.
    ///
    /// All entries lie in one range, page after page. One that begins with a page joins the segment before it if that
    /// ends with one and both are not too long together.
    pub(super) fn place_list(&mut self, dev: usize, asks: &[Ask], told: &[Told]) -> Check {
        let offset = |ask: &Ask| ask.orig % 4096;
        let mut at = told[0].dma - offset(&asks[0]);
        let (first, mut segments, mut ends) = (at, Vec::<Piece>::new(), false);
        for ask in asks {
            let dma = at + offset(ask);
            let joins = |last: &Piece| ends && offset(ask) == 0 && last.len + ask.len <= SEGMENT;
            let nth = segments.len() - usize::from(segments.last().is_some_and(joins));
            let id = told.get(nth).ok_or("too few segments")?.id;
            let piece = self.place(dev, ask, Told { dma, id, bounced: false })?;
            match segments.get_mut(nth) {
                Some(last) => last.len += ask.len,
                None => segments.push(piece),
            }
            at += (offset(ask) + ask.len).next_multiple_of(4096);
            ends = (offset(ask) + ask.len) % 4096 == 0;
        }
        if let Some(domain) = &mut self.books[dev].domain {
            domain.is_one(first / 4096..at / 4096);
        }
        let alike = |(told, piece): (&Told, &Piece)| told.dma == piece.dma && !told.bounced;
        let right = told.len() == segments.len() && told.iter().zip(&segments).all(alike);
        ensure!(right, "{} segments, not {segments:x?}", told.len());
        segments.into_iter().for_each(|piece| self.book(dev, piece, true));
        Ok(())
    }

    /// A piece goes on the books, of a scatterlist or by itself.
    pub(super) fn book(&mut self, dev: usize, piece: Piece, list: bool) {
        let book = &mut self.books[dev];
        let line = |piece: &Piece| piece.orig / 64;
        let alike = book.live.iter().filter(|other| other.dir.device_writes() && line(other) == line(&piece));
        if piece.dir.device_writes() && !piece.skip && alike.count() > 0 {
            self.expected.push(("mapping-overlap", 0));
        }
        if list && piece.len > SEGMENT {
            self.expected.push(("segment-long", 0));
        }
        book.live.push(piece);
    }

    /// Coherent memory was had.
    pub(super) fn coherent(&mut self, dev: usize, dma: u64, phys: u64, len: u64) -> Check {
        let (now, book) = (self.now, &mut self.books[dev]);
        ensure!(dma + (len - 1) <= book.mask, "coherent memory at {dma:#x} is beyond the mask");
        match &mut book.domain {
            Some(domain) => domain.map(dma, phys, len, Dir::Bidirectional, now)?,
            None => ensure!(dma == phys + self.config.dma_offset, "{phys:#x} was mapped at {dma:#x}"),
        }
        self.memory.clear(phys, len.next_multiple_of(4096).next_power_of_two());
        let (dir, bounced) = (Dir::Bidirectional, false);
        let (orig, coherent, skip, watched) = (phys, true, true, false);
        let (unseen, lent) = (false, None);
        let piece = Piece { id: 0, dma, phys, orig, len, dir, coherent, bounced, skip, watched, unseen, lent };
        self.book(dev, piece, false);
        Ok(())
    }

    /// Another device's registers were mapped, which nothing translates but an IOMMU.
    pub(super) fn registers(&mut self, dev: usize, ask: &Ask, told: Told) -> Check {
        let (Told { id, dma, .. }, Ask { orig, len, dir, .. }) = (told, *ask);
        let (now, book) = (self.now, &mut self.books[dev]);
        ensure!(dma + (len - 1) <= book.mask, "registers at {dma:#x} are beyond the mask");
        match &mut book.domain {
            Some(domain) => domain.map(dma, orig, len, dir, now)?,
            None => ensure!(dma == orig, "registers at {orig:#x} were mapped at {dma:#x}"),
        }
        let (coherent, bounced, skip, watched) = (false, false, true, false);
        let (phys, unseen, lent) = (orig, false, None);
        self.book(dev, Piece { id, dma, phys, orig, len, dir, coherent, bounced, skip, watched, unseen, lent }, false);
        Ok(())
    }

    /// Memory of which parts are mapped was freed.
    pub(super) fn freed(&mut self, at: u64, len: u64) {
        let live = self.books.iter().flat_map(|book| &book.live);
        let mapped = live.filter(|piece| piece.watched && piece.orig < at + len && at < piece.orig + piece.len);
        let first = mapped.min_by_key(|piece| (piece.orig, piece.id));
        self.expected.extend(first.map(|piece| ("freed-while-mapped", piece.id)));
    }

    /// The live mapping that a transaction is; 0 is none.
    pub(super) fn find(&self, dev: usize, id: u64) -> Piece {
        *self.books[dev].live.iter().find(|piece| piece.id == id && id != 0).unwrap()
    }

    /// A mapping ends, by its transaction or its address.
    pub(super) fn end(&mut self, dev: usize, is: impl Fn(&Piece) -> bool) {
        let (now, book) = (self.now, &mut self.books[dev]);
        let at = book.live.iter().position(is).unwrap();
        let piece = book.live.remove(at);
        book.dead.push_front(piece);
        book.dead.truncate(DEAD);
        if let Some(domain) = &mut book.domain {
            domain.unmap(piece.dma, piece.len, now);
        }
        if piece.dir.device_writes() && !piece.skip {
            self.bring_back(&piece, 0, piece.len);
        }
        if let Some(slots) = self.slots.as_mut().filter(|_| piece.bounced) {
            slots.give(piece.phys);
        }
    }

    /// What the CPU is to see of what the device wrote.
    fn bring_back(&mut self, piece: &Piece, from: u64, len: u64) {
        self.memory.invalidate(piece.phys + from, len);
        if piece.bounced {
            self.memory.copy(piece.phys + from, piece.orig + from, len);
        }
    }

    /// Part of a mapping passes to the CPU, or back to the device.
    pub(super) fn sync(&mut self, dev: usize, id: u64, (from, len): (u64, u64), for_cpu: bool) {
        let piece = self.find(dev, id);
        if for_cpu {
            if piece.dir.device_writes() {
                self.bring_back(&piece, from, len);
            }
        } else {
            if piece.bounced && piece.dir.device_reads() {
                self.memory.copy(piece.orig + from, piece.phys + from, len);
            }
            self.memory.clean(piece.phys + from, len);
        }
        let booked = self.books[dev].live.iter_mut().find(|piece| piece.id == id).unwrap();
        booked.lent = for_cpu.then_some((from, from + len));
        booked.unseen &= !for_cpu;
    }

    /// What the CPU was lent of a mapping.
    pub(super) fn lent(&self, dev: usize, id: u64) -> Option<(u64, u64)> {
        self.find(dev, id).lent
    }

    /// What must be found in an access; `None` if a mapping allows it.
    fn judge(&mut self, dev: usize, dma: u64, len: u64, write: bool) -> Option<(&'static str, u64)> {
        // Coherent memory first, then the nearest beginning, then the newest.
        let first = |(at, piece): &(usize, &Piece)| (piece.coherent, piece.dma, *at);
        let holding = self.books[dev].live.iter().enumerate().filter(|(_, piece)| piece.covers(dma, len));
        let granting = holding.clone().filter(|(_, piece)| piece.allows(write) && !piece.is_lent(dma, len));
        if let Some((at, _)) = granting.max_by_key(first) {
            self.books[dev].live[at].unseen |= write;
            return None;
        }
        let book = &self.books[dev];
        if let Some((_, piece)) = holding.max_by_key(first) {
            return Some((if piece.allows(write) { "while-cpu-owns" } else { "wrong-direction" }, piece.id));
        }
        let outside = |part| {
            let touched = book.live.iter().filter(|piece| piece.touches(dma, part));
            let best = touched.min_by_key(|piece| (piece.outside(dma, len), !piece.coherent, piece.dma));
            best.map(|piece| ("outside-mapping", piece.id))
        };
        let after =
            |part| book.dead.iter().find(|piece| piece.touches(dma, part)).map(|piece| ("after-unmap", piece.id));
        let found = outside(1).or_else(|| after(1)).or_else(|| outside(len)).or_else(|| after(len));
        Some(found.unwrap_or(("not-mapped", 0)))
    }

    /// An access of the CPU through a driver's own pointer: what must be found.
    pub(super) fn cpu(&mut self, at: u64, len: u64, write: bool) {
        let line = if write && !self.config.coherent { 64 } else { 1 };
        let (low, high) = (at - at % line, (at + len).next_multiple_of(line));
        let live = self.books.iter().flat_map(|book| &book.live);
        let near = live.filter(|piece| piece.watched && piece.orig < high && low < piece.orig + piece.len);
        let mut near: Vec<Piece> = near.copied().collect();
        near.sort_by_key(|piece| (piece.orig, piece.id));
        let found = near.iter().find_map(|piece| {
            let owned = |from: u64, to: u64| {
                let mut bytes = from.max(piece.orig)..to.min(piece.orig + piece.len);
                bytes.any(|byte| piece.lent.is_none_or(|(f, t)| !(f..t).contains(&(byte - piece.orig))))
            };
            let writes = piece.dir.device_writes();
            let name = match (owned(at, at + len), write, piece.unseen) {
                (true, true, _) => "cpu-writes-mapped",
                (true, false, true) => "missing-sync",
                (true, false, false) if writes => "cpu-reads-mapped",
                (false, true, _) if writes && !piece.bounced && owned(low, high) => "line-shared",
                _ => return None,
            };
            Some((name, piece.id))
        });
        self.expected.extend(found);
    }

    /// An access of a device: what must be found, and which RAM it reaches.
    pub(super) fn access(&mut self, dev: usize, dma: u64, len: u64, write: bool) -> Moved {
        let (found, now) = (self.judge(dev, dma, len, write), self.now);
        self.expected.extend(found);
        let nothing = Moved { pieces: Vec::new(), whole: false };
        if let Some(domain) = &mut self.books[dev].domain {
            let reached = domain.reach(dma, len, write, now);
            if reached.is_none() {
                self.expected.push(("iommu-fault", 0));
            }
            // Registers are reached, but no memory.
            return reached.map_or(nothing, |mut pieces| {
                let all = pieces.len();
                let ram = pieces.iter().position(|&(phys, len)| self.memory.there(phys, len) < len).unwrap_or(all);
                pieces.truncate(ram);
                Moved { pieces, whole: ram == all }
            });
        }
        let Some(phys) = dma.checked_sub(self.config.dma_offset) else { return nothing };
        let there = self.memory.there(phys, len);
        Moved { pieces: vec![(phys, there)], whole: there == len }
    }

    /// Whether a map call could fail for that reason.
    pub(super) fn may_fail(&self, dev: usize, asks: &[Ask], why: MapFailure, injected: bool) -> Check {
        use crate::dma::swiotlb::SwiotlbError;
        let book = &self.books[dev];
        let bouncing: Vec<_> = asks.iter().filter(|ask| self.bounces(dev, ask)).collect();
        let just = match why {
            MapFailure::Refused { .. } => injected,
            MapFailure::Overflow { .. } => {
                let last = self.slots.as_ref().map_or(u64::MAX, |slots| slots.end() - 1 + self.config.dma_offset);
                !bouncing.is_empty() && last > book.mask
            }
            MapFailure::Swiotlb(SwiotlbError::TooLarge { .. }) => {
                bouncing.iter().any(|ask| ask.len + (ask.orig & book.align & 2047) > MAX_MAPPING)
            }
            MapFailure::Swiotlb(SwiotlbError::Full { .. }) => {
                let slots = self.slots.as_ref().ok_or("a pool that isn't there is full")?;
                match bouncing[..] {
                    [ask] => !slots.has_room(ask.orig, ask.len, book.align),
                    _ => slots.is_tight(bouncing.iter().map(|ask| ask.len).sum()),
                }
            }
            MapFailure::Iova(_) => {
                let domain = book.domain.as_ref().ok_or("no domain")?;
                let long = asks.iter().max_by_key(|ask| ask.len + ask.orig % 4096).ok_or("no pieces")?;
                // Of several pieces the earlier ones have taken room.
                asks.len() > 1 || !domain.has_room(long.orig, long.len, book.mask)
            }
            _ => false,
        };
        ensure!(just, "a map call failed without a reason: {why}");
        Ok(())
    }
}
