//! Steps of the driver: memory taken, touched and freed; mapped, synced and unmapped, in every way there is.

use super::held::{Lent, Mem, Pile, Whole, peek, poke, stretch};
use super::run::{Buffer, How, Live, MAPPINGS, State, Turn};
use super::shadow::{Ask, Check, Told, ensure};
use super::slots::Slots;
use crate::addr::{DmaAddr, PhysAddr};
use crate::cpu::Cpu;
use crate::dma::direction::{Bidirectional, Dir, Direction, FromDevice, ToDevice};
use crate::dma::sg::SgWindow;
use crate::dma::streaming::Window;
use crate::dma::{Attrs, DmaDevice, MapError, MapFailure, misuse};
use crate::gfp::{__GFP_HIGHMEM, __GFP_NOWARN, __GFP_ZERO, GFP_DMA, GFP_DMA32, GFP_KERNEL, Gfp};
use crate::kbuf::KBuf;
use crate::page::{Pages, alloc_pages};
use crate::vmalloc::vmalloc;

/// Nanoseconds after which a lazy domain has forgotten all.
const FLUSHED: u64 = 10_000_000;

/// A mapping that was made, and what its entries were told; or the memory, and why not.
type Mapped = Result<(Box<dyn Whole>, Vec<Told>), (Vec<Mem>, MapFailure)>;

macro_rules! in_direction {
    ($dir:expr, $call:ident($($given:expr),*)) => {
        match $dir {
            Dir::ToDevice => $call::<ToDevice>($($given),*),
            Dir::FromDevice => $call::<FromDevice>($($given),*),
            Dir::Bidirectional => $call::<Bidirectional>($($given),*),
        }
    };
    ($dir:expr, $call:ident<$pile:ty>($($given:expr),*)) => {
        match $dir {
            Dir::ToDevice => $call::<$pile, ToDevice>($($given),*),
            Dir::FromDevice => $call::<$pile, FromDevice>($($given),*),
            Dir::Bidirectional => $call::<$pile, Bidirectional>($($given),*),
        }
    };
}
pub(super) use in_direction;

fn single<D: Direction>(device: &DmaDevice, cpu: &Cpu<'_>, buf: KBuf) -> Mapped
where
    for<'a, 'b> Window<'a, 'b, D>: Lent,
{
    match device.map_single::<D>(cpu, buf) {
        Ok(it) => {
            let told = Told { dma: it.dma_addr().get(), id: it.id(), bounced: it.bounced() };
            Ok((Box::new(it), vec![told]))
        }
        Err(MapError { buf, why }) => Err((vec![Mem::Buf(buf)], why)),
    }
}

fn page<D: Direction>(device: &DmaDevice, cpu: &Cpu<'_>, pages: Pages, part: (usize, usize)) -> Mapped {
    match device.map_page::<D>(cpu, pages, part.0 as u64, part.1 as u64) {
        Ok(it) => {
            let told = Told { dma: it.dma_addr().get(), id: it.id(), bounced: it.bounced() };
            Ok((Box::new(it), vec![told]))
        }
        Err(MapError { buf, why }) => Err((vec![Mem::Pages(buf)], why)),
    }
}

fn list<B: Pile + 'static, D: Direction>(device: &DmaDevice, cpu: &Cpu<'_>, pile: B) -> Mapped
where
    for<'a, 'b> SgWindow<'a, 'b, B, D>: Lent,
{
    match device.map_sg::<B, D>(cpu, pile) {
        Ok(it) => {
            let told = it.segments().iter();
            let told = told.map(|it| Told { dma: it.dma_addr().get(), id: it.id(), bounced: it.bounced() }).collect();
            Ok((Box::new(it), told))
        }
        Err(MapError { buf, why }) => Err((buf.apart(), why)),
    }
}

impl State {
    fn zones(turn: &mut Turn<'_>) -> Gfp {
        let zones = [GFP_KERNEL, GFP_KERNEL | GFP_DMA32, GFP_KERNEL | GFP_DMA, GFP_KERNEL | __GFP_HIGHMEM];
        zones[turn.dice.index(zones.len())] | __GFP_NOWARN
    }

    pub(super) fn alloc(&mut self, cpu: &Cpu<'_>, turn: &mut Turn<'_>) -> Check {
        let Some(place) = self.buffers.iter().position(Option::is_none) else { return self.free(cpu, turn) };
        let zero = if turn.dice.once_in(4) { __GFP_ZERO } else { Gfp::empty() };
        let mem = match turn.dice.roll(16) {
            kind @ 0..10 => {
                let low = if turn.dice.once_in(3) { GFP_DMA } else { Gfp::empty() };
                let len = turn.some(if kind < 7 { 600 } else { 9000 });
                KBuf::kmalloc(cpu, len, GFP_KERNEL | __GFP_NOWARN | low | zero).map(Mem::Buf).ok()
            }
            10..14 => {
                let order = if turn.dice.once_in(60) { 7 } else { turn.dice.roll(3) as u8 };
                alloc_pages(cpu, order, Self::zones(turn) | zero).map(Mem::Pages).ok()
            }
            _ => vmalloc(cpu, turn.some(14_000)).map(Mem::Area).ok(),
        };
        let Some(mem) = mem else { return Ok(()) };
        let spans = mem.spans(turn.kernel());
        if !zero.is_empty() && !matches!(mem, Mem::Area(_)) {
            spans.iter().for_each(|&(at, len)| self.shadow.memory.cpu_writes(at, &vec![0; len as usize]));
        }
        self.buffers[place] = Some(Buffer { mem, spans, parts: 0 });
        Ok(())
    }

    /// A buffer of which that holds.
    fn buffer(&self, turn: &mut Turn<'_>, is: impl Fn(&Buffer) -> bool) -> Option<usize> {
        let from = turn.dice.index(self.buffers.len());
        let all = (from..self.buffers.len()).chain(0..from);
        all.into_iter().find(|&at| self.buffers[at].as_ref().is_some_and(&is))
    }

    pub(super) fn free(&mut self, cpu: &Cpu<'_>, turn: &mut Turn<'_>) -> Check {
        if turn.dice.once_in(4)
            && let Some(at) = self.buffer(turn, |buffer| buffer.parts > 0)
        {
            return self.free_mapped(cpu, turn, at);
        }
        if let Some(at) = self.buffer(turn, |buffer| buffer.parts == 0) {
            self.buffers[at] = None;
        }
        Ok(())
    }

    /// The CPU reads or writes some bytes, of memory too that a device has.
    pub(super) fn touch(&mut self, turn: &mut Turn<'_>) -> Check {
        let parts = usize::from(turn.dice.once_in(3));
        let Some(at) = self.buffer(turn, |buffer| buffer.parts >= parts) else { return Ok(()) };
        let (kernel, Some(buffer)) = (turn.kernel(), &mut self.buffers[at]) else { return Ok(()) };
        let size: u64 = buffer.spans.iter().map(|span| span.1).sum();
        let (from, len) = turn.part(size as usize, 300);
        let pieces = stretch(&buffer.spans, from, len);
        // Pages are reached as by kmap, which judges nothing.
        let judged = !matches!(buffer.mem, Mem::Pages(_));
        let mut bytes = vec![turn.dice.roll(256) as u8; len];
        if turn.dice.once_in(2) {
            buffer.mem.write(kernel, from, &bytes);
            for &(at, len) in &pieces {
                self.shadow.memory.cpu_writes(at, &bytes[..len as usize]);
                if judged {
                    self.shadow.cpu(at, len, true);
                }
            }
            return Ok(());
        }
        buffer.mem.read(kernel, from, &mut bytes);
        let (mut should, mut done) = (vec![0; len], 0);
        for (at, len) in pieces {
            self.shadow.memory.cpu_reads(at, &mut should[done..done + len as usize]);
            done += len as usize;
            if judged {
                self.shadow.cpu(at, len, false);
            }
        }
        ensure!(bytes == should, "a buffer at {:#x} does not hold what it should", buffer.spans[0].0);
        Ok(())
    }

    pub(super) fn map(&mut self, cpu: &Cpu<'_>, turn: &mut Turn<'_>) -> Check {
        if self.lives.len() >= MAPPINGS {
            let at = turn.dice.index(self.lives.len());
            return self.unmap(cpu, turn, at);
        }
        let dev = turn.dice.index(self.devices.len());
        let dir = [Dir::ToDevice, Dir::FromDevice, Dir::Bidirectional][turn.dice.index(3)];
        match turn.dice.roll(24) {
            0..6 => return self.map_part(cpu, turn, dev, dir),
            6 => return self.map_near(cpu, turn, dev, dir),
            7 => return self.map_registers(cpu, turn, dev, dir),
            _ => {}
        }
        let Some(at) = self.buffer(turn, |buffer| buffer.parts == 0) else { return Ok(()) };
        let injected = self.inject(turn);
        let Some(Buffer { mem, spans, .. }) = self.buffers[at].take() else { return Ok(()) };
        let device = self.devices[dev].clone();
        let several = turn.dice.once_in(2);
        let mut spans = spans;
        let (mapped, list, ranged) = match mem {
            Mem::Buf(buf) if several => {
                let mut pile = vec![buf];
                self.more(turn, &mut spans, |mem| match mem {
                    Mem::Buf(buf) => {
                        pile.push(buf);
                        Ok(())
                    }
                    other => Err(other),
                });
                (in_direction!(dir, list<Vec<KBuf>>(&device, cpu, pile)), true, false)
            }
            Mem::Buf(buf) => (in_direction!(dir, single(&device, cpu, buf)), false, true),
            Mem::Pages(pages) if several => {
                (in_direction!(dir, list<Vec<Pages>>(&device, cpu, vec![pages])), true, false)
            }
            Mem::Pages(pages) => {
                let part = turn.part(4096 << pages.order(), 300_000);
                spans = stretch(&spans, part.0, part.1);
                (in_direction!(dir, page(&device, cpu, pages, part)), false, false)
            }
            Mem::Area(area) => (in_direction!(dir, list<crate::vmalloc::VBuf>(&device, cpu, area)), true, false),
        };
        turn.lab.solo.fail_nth(u64::MAX);
        let asks = spans.iter().map(|&(orig, len)| Ask { orig, len, dir, skip: false, list, kept: false, near: false });
        let asks: Vec<_> = asks.collect();
        match mapped {
            Ok((whole, told)) => {
                let ids = told.iter().map(|told| told.id).collect();
                self.lives.push(Live { how: How::Whole(whole, ranged), dev, dir, ids, spans });
                self.mapped(dev, &asks, &told, injected)
            }
            Err((mems, why)) => {
                mems.into_iter().for_each(|mem| self.put_back(turn, mem));
                self.refused(turn, dev, &asks, why, injected)
            }
        }
    }

    /// Up to three more buffers for a scatterlist.
    fn more(&mut self, turn: &mut Turn<'_>, spans: &mut Vec<(u64, u64)>, mut add: impl FnMut(Mem) -> Result<(), Mem>) {
        for _ in 0..turn.dice.roll(4) {
            let idle = |buffer: &Buffer| buffer.parts == 0 && matches!(buffer.mem, Mem::Buf(_));
            let Some(at) = self.buffer(turn, idle) else { return };
            let Some(buffer) = self.buffers[at].take() else { return };
            spans.extend(&buffer.spans);
            let _ = add(buffer.mem);
        }
    }

    /// Now and then one of the next points fails: its number.
    fn inject(&self, turn: &mut Turn<'_>) -> Option<u64> {
        let nth = turn.dice.once_in(25).then(|| turn.dice.roll(5))?;
        turn.lab.solo.fail_nth(nth);
        Some(nth)
    }

    /// Points that a map call passes.
    fn points(&self, dev: usize, asks: &[Ask]) -> u64 {
        match self.devices[dev].domain() {
            // A list is mapped as a whole.
            Some(_) => 1,
            None => asks.iter().map(|ask| 1 + u64::from(self.shadow.bounces(dev, ask))).sum(),
        }
    }

    pub(super) fn mapped(&mut self, dev: usize, asks: &[Ask], told: &[Told], injected: Option<u64>) -> Check {
        let points = self.points(dev, asks);
        ensure!(injected.is_none_or(|nth| nth >= points), "point {injected:?} of {points} failed to no effect");
        self.seen.maps += told.len() as u64;
        if asks[0].list && self.devices[dev].domain().is_some() {
            self.seen.merged += (asks.len() - told.len().min(asks.len())) as u64;
            return self.shadow.place_list(dev, asks, told);
        }
        ensure!(asks.len() == told.len(), "{} entries, of {}", told.len(), asks.len());
        let places = asks.iter().zip(told).map(|(ask, told)| self.shadow.place(dev, ask, *told));
        let places: Result<Vec<_>, _> = places.collect();
        let list = asks[0].list;
        places?.into_iter().for_each(|piece| self.shadow.book(dev, piece, list));
        self.seen.bounced += told.iter().filter(|told| told.bounced).count() as u64;
        Ok(())
    }

    fn refused(&mut self, turn: &Turn<'_>, dev: usize, asks: &[Ask], why: MapFailure, injected: Option<u64>) -> Check {
        let points = self.points(dev, asks);
        self.seen.failed += 1;
        self.shadow.may_fail(dev, asks, why, injected.is_some_and(|nth| nth < points))?;
        if asks.len() == 1 {
            return Ok(());
        }
        // Of a list earlier entries had places, which nobody was told: what was copied there and what was cleaned for
        // them is made to be known, and what a lazy domain still has of them is flushed.
        let ram = turn.kernel().ram();
        // Whoever finds the pool out of reach, or none, has copied nothing.
        let copied =
            !matches!(why, MapFailure::Overflow { .. }) && asks.iter().any(|ask| self.shadow.bounces(dev, ask));
        let slots = self.shadow.slots.as_ref().filter(|_| copied);
        for (at, len) in slots.map_or_else(Vec::new, Slots::free) {
            ram.zero_uncached(PhysAddr::new(at), len).unwrap();
            self.shadow.memory.clear(at, len);
        }
        for &Ask { orig, len, .. } in asks {
            ram.clean(PhysAddr::new(orig), len);
            ram.invalidate(PhysAddr::new(orig), len);
            self.shadow.memory.clean(orig, len);
            self.shadow.memory.invalidate(orig, len);
        }
        self.pass(turn, FLUSHED)?;
        self.check_domain(dev)
    }

    /// The pages of a device's domain are as many as they should be.
    fn check_domain(&mut self, dev: usize) -> Check {
        let (now, book) = (self.shadow.now, &mut self.shadow.books[dev]);
        let Some((domain, shadow)) = self.devices[dev].domain().zip(book.domain.as_mut()) else { return Ok(()) };
        let (stats, (mapped, stale)) = (domain.lock().stats_at(now), shadow.counts(now));
        ensure!((stats.mapped, stats.stale) == (mapped, stale), "{stats:?}, not {mapped} and {stale} pages");
        Ok(())
    }

    fn put_back(&mut self, turn: &Turn<'_>, mem: Mem) {
        let spans = mem.spans(turn.kernel());
        // Where others have taken its place, it is freed.
        if let Some(free) = self.buffers.iter_mut().find(|buffer| buffer.is_none()) {
            *free = Some(Buffer { mem, spans, parts: 0 });
        }
    }

    /// Part of a buffer is mapped by numbers, beside other parts.
    fn map_part(&mut self, cpu: &Cpu<'_>, turn: &mut Turn<'_>, dev: usize, dir: Dir) -> Check {
        let Some(at) = self.buffer(turn, |buffer| matches!(buffer.mem, Mem::Buf(_)) && buffer.parts < 5) else {
            return Ok(());
        };
        let Some(Buffer { mem: Mem::Buf(buf), spans, .. }) = &self.buffers[at] else { return Ok(()) };
        // Half of them near each other, so that some share a line.
        let (among, most) = if turn.dice.once_in(2) { (buf.len().min(200), 40) } else { (buf.len(), 3000) };
        let (from, len) = turn.part(among, most);
        let (orig, skip) = (spans[0].0 + from as u64, turn.dice.once_in(6));
        let ask = Ask { orig, len: len as u64, dir, skip, list: false, kept: true, near: false };
        let apart = |live: &Live| {
            live.dev != dev || live.spans.iter().all(|&(other, has)| other + has <= orig || orig + ask.len <= other)
        };
        if !self.lives.iter().all(apart) {
            return Ok(());
        }
        let attrs = if skip { Attrs::SKIP_CPU_SYNC } else { Attrs::empty() };
        let injected = self.inject(turn);
        let raw = misuse::map_part(cpu, &self.devices[dev], buf, (from as u64, ask.len), dir, attrs);
        turn.lab.solo.fail_nth(u64::MAX);
        let raw = match raw {
            Ok(raw) => raw,
            Err(why) => return self.refused(turn, dev, &[ask], why, injected),
        };
        let told = Told { dma: raw.dma.get(), id: raw.id, bounced: raw.bounced };
        let spans = vec![(orig, ask.len)];
        self.lives.push(Live { how: How::Part(at, skip), dev, dir, ids: vec![raw.id], spans });
        if let Some(buffer) = &mut self.buffers[at] {
            buffer.parts += 1;
        }
        self.mapped(dev, &[ask], &[told], injected)
    }

    pub(super) fn unmap(&mut self, cpu: &Cpu<'_>, turn: &mut Turn<'_>, at: usize) -> Check {
        let Live { how, dev, dir, ids, spans } = self.lives.swap_remove(at);
        match how {
            How::Whole(whole, _) if turn.dice.once_in(8) => drop(whole),
            How::Whole(whole, _) => whole.unmap(cpu).into_iter().for_each(|mem| self.put_back(turn, mem)),
            How::Part(buffer, skip) => {
                let piece = self.shadow.find(dev, ids[0]);
                let attrs = if skip { Attrs::SKIP_CPU_SYNC } else { Attrs::empty() };
                let range = (DmaAddr::new(piece.dma), piece.len);
                misuse::unmap_attrs(cpu, &self.devices[dev], range, dir, attrs);
                if let Some(buffer) = &mut self.buffers[buffer] {
                    buffer.parts -= 1;
                }
            }
        }
        ids.iter().for_each(|&id| self.shadow.end(dev, |piece| piece.id == id));
        spans.iter().try_for_each(|&(at, len)| {
            self.check_bytes(turn.kernel(), at, len.min(8192))?;
            if len > 8192 { self.check_bytes(turn.kernel(), at + len - 4096, 4096) } else { Ok(()) }
        })
    }

    pub(super) fn sync(&mut self, cpu: &Cpu<'_>, turn: &mut Turn<'_>) -> Check {
        if self.lives.is_empty() {
            return Ok(());
        }
        let at = turn.dice.index(self.lives.len());
        if self.lives[at].spans.is_empty() {
            // Registers.
            return Ok(());
        }
        let mut live = self.lives.swap_remove(at);
        let size = live.spans.iter().map(|span| span.1).sum::<u64>() as usize;
        let Live { how, dev, ids, spans, .. } = &mut live;
        let mut done = Ok(());
        let mut opened = false;
        if let How::Whole(whole, ranged) = how {
            let part = (*ranged && !turn.dice.once_in(3)).then(|| turn.part(size, size));
            let range = part.unwrap_or((0, size));
            opened = whole.window(cpu, part, &mut |lent| done = self.lend((*dev, ids, spans), range, turn, lent));
            if opened {
                self.shadow_syncs(*dev, ids, range, false);
            }
        }
        if !opened {
            done = self.sync_raw(cpu, turn, &live);
        }
        self.lives.push(live);
        done
    }

    /// Syncs each segment, or the part of the only one.
    fn shadow_syncs(&mut self, dev: usize, ids: &[u64], range: (usize, usize), for_cpu: bool) {
        let (from, len) = (range.0 as u64, range.1 as u64);
        match ids {
            [id] => self.shadow.sync(dev, *id, (from, len), for_cpu),
            _ => ids.iter().for_each(|&id| {
                let len = self.shadow.find(dev, id).len;
                self.shadow.sync(dev, id, (0, len), for_cpu);
            }),
        }
    }

    /// What happens in a window: the CPU reads and writes, and a device comes too early.
    fn lend(
        &mut self,
        (dev, ids, spans): (usize, &[u64], &[(u64, u64)]),
        range: (usize, usize),
        turn: &mut Turn<'_>,
        lent: &mut dyn Lent,
    ) -> Check {
        self.shadow_syncs(dev, ids, range, true);
        let (from, len) = turn.part(range.1, 400);
        let from = range.0 + from;
        let pieces = stretch(spans, from, len);
        let mut bytes = vec![0; len];
        if lent.read(from, &mut bytes) {
            let (mut should, mut done) = (vec![1; len], 0);
            for &(at, len) in &pieces {
                self.shadow.memory.cpu_reads(at, &mut should[done..done + len as usize]);
                done += len as usize;
                self.shadow.cpu(at, len, false);
            }
            ensure!(bytes == should, "a window on {:#x} does not show what it should", pieces[0].0);
        }
        bytes.fill(turn.dice.roll(256) as u8);
        if turn.dice.once_in(2) && lent.write(from, &bytes) {
            for &(at, len) in &pieces {
                self.shadow.memory.cpu_writes(at, &bytes[..len as usize]);
                self.shadow.cpu(at, len, true);
            }
        }
        let piece = self.shadow.find(dev, ids[turn.dice.index(ids.len())]);
        let (from, len) = turn.part(piece.len as usize, 64);
        let write = turn.dice.once_in(2);
        self.access(turn, dev, piece.dma + from as u64, len as u64, write)
    }

    /// Syncs by numbers: what was lent goes back, or a part is lent until another step.
    fn sync_raw(&mut self, cpu: &Cpu<'_>, turn: &mut Turn<'_>, live: &Live) -> Check {
        let (dev, id, kernel) = (live.dev, live.ids[0], turn.kernel());
        let piece = self.shadow.find(dev, id);
        let lent = self.shadow.lent(dev, id);
        let (from, to) = lent.unwrap_or_else(|| {
            let (from, len) = turn.part(piece.len as usize, piece.len as usize);
            (from as u64, (from + len) as u64)
        });
        let (dma, len) = (DmaAddr::new(piece.dma + from), to - from);
        misuse::sync_single(cpu, &self.devices[dev], dma, len, lent.is_none(), live.dir);
        self.shadow.sync(dev, id, (from, len), lent.is_none());
        if lent.is_none() {
            let (at, len) = (piece.orig + from, len.min(4096));
            if turn.dice.once_in(2) {
                let mut bytes = vec![0; len as usize];
                peek(kernel, at, &mut bytes);
                bytes.fill(turn.dice.roll(256) as u8);
                poke(kernel, at, &bytes);
                let mut read = vec![0; len as usize];
                self.shadow.memory.cpu_reads(at, &mut read);
                self.shadow.memory.cpu_writes(at, &bytes);
            }
            return self.check_bytes(kernel, at, len);
        }
        Ok(())
    }
}
