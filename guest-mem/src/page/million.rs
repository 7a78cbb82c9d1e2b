//! A million operations on a small kernel with four CPUs and their lists, against a shadow of who owns which frame.
//!
//! Each step is checked on its own; every thousand the whole allocator is validated and compared with the shadow.

use std::collections::BTreeMap;

use super::*;
use crate::gfp::{__GFP_MEMALLOC, __GFP_NORETRY, __GFP_NOWARN, GFP_ATOMIC, GFP_DMA, GFP_KERNEL, GFP_NOWAIT};
use crate::stats::Broken;
use crate::testing::Lab;
use crate::testing::shadow::{Dice, EVERY, OPERATIONS, small};

const FRAMES: usize = (64 << 20) / 4096;

struct Run {
    lab: Lab,
    dice: Dice,
    /// Who owns each frame: the number of a block, 0 = nobody.
    owners: Vec<u32>,
    blocks: BTreeMap<u32, Pages>,
    next: u32,
    refused: u32,
}

impl Run {
    fn new(seed: u64) -> Self {
        let (lab, dice) = (Lab::of(small()), Dice::new(seed));
        Self { lab, dice, owners: vec![0; FRAMES], blocks: BTreeMap::new(), next: 1, refused: 0 }
    }

    fn few(&mut self, end: u64) -> u8 {
        u8::try_from(self.dice.roll(end)).unwrap()
    }

    fn mask(&mut self) -> Gfp {
        let masks =
            [GFP_ATOMIC, GFP_NOWAIT, GFP_KERNEL | __GFP_NORETRY, GFP_ATOMIC | GFP_DMA, GFP_NOWAIT | __GFP_MEMALLOC];
        masks[usize::from(self.few(5))] | __GFP_NOWARN
    }

    fn order(&mut self) -> u8 {
        match self.dice.roll(20) {
            0 => self.few(11),
            1..4 => self.few(4),
            _ => 0,
        }
    }

    fn frames_of(pages: &Pages) -> std::ops::Range<usize> {
        let first = usize::try_from(pages.phys().pfn().get()).unwrap();
        first..first + (1 << pages.order())
    }

    fn took(&mut self, pages: Pages, gfp: Gfp) {
        let frames = Self::frames_of(&pages);
        assert!(frames.start.is_multiple_of(frames.len()), "{frames:?} is not aligned");
        assert!(pages.zone() <= gfp.highest_zone(crate::arch::Arch::X86_64), "a zone above the mask's");
        assert_eq!(self.lab.kernel().pcp.shared().frames.refs(u32::try_from(frames.start).unwrap()), 1);
        for frame in frames {
            assert_eq!(std::mem::replace(&mut self.owners[frame], self.next), 0, "frame {frame:#x} has two owners");
        }
        self.blocks.insert(self.next, pages);
        self.next += 1;
    }

    fn give(&mut self) {
        let count = self.blocks.len() as u64;
        let Some(count) = std::num::NonZeroU64::new(count) else { return };
        let wanted = u32::try_from(self.dice.roll(u64::from(self.next))).unwrap();
        let key = *self.blocks.range(wanted..).next().or(self.blocks.iter().next()).unwrap().0;
        let pages = self.blocks.remove(&key).unwrap();
        for frame in Self::frames_of(&pages) {
            assert_eq!(std::mem::take(&mut self.owners[frame]), key, "of {count} blocks");
        }
        drop(pages);
    }

    fn alloc(&mut self, cpu: u32) {
        let (order, gfp) = (self.order(), self.mask());
        match alloc_pages(&self.lab.cpu_number(cpu), order, gfp) {
            Ok(pages) => self.took(pages, gfp),
            Err(error) => {
                assert!(matches!(error, AllocError::NoMemory { .. }));
                self.refused += 1;
            }
        }
    }

    fn alloc_many(&mut self, cpu: u32) {
        let gfp = self.mask();
        let count = usize::from(self.few(40));
        let bulk = alloc_pages_bulk(&self.lab.cpu_number(cpu), count, gfp);
        assert!(bulk.len() <= count);
        bulk.into_iter().for_each(|page| self.took(page, gfp));
    }

    fn split_one(&mut self, cpu: u32) {
        let Some(key) = self.blocks.iter().find(|(_, pages)| pages.order() > 0).map(|(key, _)| *key) else { return };
        let pages = self.blocks.remove(&key).unwrap();
        Self::frames_of(&pages).for_each(|frame| self.owners[frame] = 0);
        split_page(&self.lab.cpu_number(cpu), pages).into_iter().for_each(|page| self.took(page, GFP_KERNEL));
    }

    fn step(&mut self) {
        let cpu = u32::from(self.few(4));
        crate::cpu::set_current(cpu);
        // It fills up, then empties: full and empty lists are both reached.
        let filling = (self.next / 50_000).is_multiple_of(2);
        match self.dice.roll(1000) {
            0 => self.alloc_many(cpu),
            1..4 => self.split_one(cpu),
            4 => self.lab.kernel().drain_all_pages(),
            draw if draw < if filling { 530 } else { 480 } => self.alloc(cpu),
            _ => self.give(),
        }
    }

    /// The whole of it, against itself and the shadow.
    fn check(&self) -> Result<(), Broken> {
        self.lab.kernel().validate()?;
        let memory = self.lab.kernel().memory.lock();
        let live: Vec<_> = memory.zones.live().map(|found| (found.block.pfn.get(), found.block.order)).collect();
        let mut owned: Vec<_> = self.blocks.values().map(|pages| (pages.phys().pfn().get(), pages.order())).collect();
        owned.sort_unstable();
        assert_eq!(live, owned, "what is allocated is not what was handed out");
        Ok(())
    }

    fn finish(self) {
        crate::cpu::set_current(0);
        let Self { lab, blocks, .. } = self;
        drop(blocks);
        lab.kernel().drain_all_pages();
        lab.kernel().validate().unwrap();
        let stats = lab.kernel().zone_stats();
        assert!(stats.iter().all(|zone| zone.free == zone.managed) && lab.leaks().is_empty());
    }
}

#[test]
fn a_million_operations_agree_with_a_shadow() {
    let mut run = Run::new(1);
    for step in 0..OPERATIONS {
        run.step();
        if step.is_multiple_of(EVERY) {
            run.check().unwrap();
        }
    }
    assert!(run.refused > 1000, "memory was never short: {} refused", run.refused);
    run.finish();
}
