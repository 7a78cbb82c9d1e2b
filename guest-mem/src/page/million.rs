//! A million operations on a small kernel with four CPUs and their lists, against a shadow of who owns which frame.
//!
//! Each step is checked on its own; every thousand the whole allocator is validated and compared with the shadow. The
//! same run with damage done to the allocator's own tables must be found out by that.

use std::collections::BTreeMap;

use super::*;
use crate::frame::Kind as FrameKind;
use crate::gfp::{__GFP_MEMALLOC, __GFP_NORETRY, __GFP_NOWARN, GFP_ATOMIC, GFP_DMA, GFP_KERNEL, GFP_NOWAIT};
use crate::kernel::MachineConfig;
use crate::stats::Broken;
use crate::testing::Lab;

const CPUS: u32 = 4;
const FRAMES: usize = (64 << 20) / 4096;
const STEPS: u32 = 1_000_000;
const EVERY: u32 = 1000;

/// What is done to the allocator's tables, in words and in deed.
type Damage = (&'static str, fn(&Run));

struct Run {
    lab: Lab,
    random: u64,
    /// Who owns each frame: the number of a block, 0 = nobody.
    owners: Vec<u32>,
    blocks: BTreeMap<u32, Pages>,
    next: u32,
    refused: u32,
}

impl Run {
    fn new(seed: u64) -> Self {
        let config = MachineConfig { ram: 64 << 20, low: 64 << 20, cpus: CPUS, pcp: true, ..MachineConfig::default() };
        let lab = Lab::of(config);
        Self { lab, random: seed, owners: vec![0; FRAMES], blocks: BTreeMap::new(), next: 1, refused: 0 }
    }

    /// The next of a fixed sequence (SplitMix64), below `end`.
    fn draw(&mut self, end: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % end
    }

    fn small(&mut self, end: u64) -> u8 {
        u8::try_from(self.draw(end)).unwrap()
    }

    fn mask(&mut self) -> Gfp {
        let masks =
            [GFP_ATOMIC, GFP_NOWAIT, GFP_KERNEL | __GFP_NORETRY, GFP_ATOMIC | GFP_DMA, GFP_NOWAIT | __GFP_MEMALLOC];
        masks[usize::from(self.small(5))] | __GFP_NOWARN
    }

    fn order(&mut self) -> u8 {
        match self.draw(20) {
            0 => self.small(11),
            1..4 => self.small(4),
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
        let wanted = u32::try_from(self.draw(u64::from(self.next))).unwrap();
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
        let count = usize::from(self.small(40));
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
        let cpu = u32::from(self.small(u64::from(CPUS)));
        crate::cpu::set_current(cpu);
        // It fills up, then empties: full and empty lists are both reached.
        let filling = (self.next / 50_000).is_multiple_of(2);
        match self.draw(1000) {
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
    for step in 0..STEPS {
        run.step();
        if step.is_multiple_of(EVERY) {
            run.check().unwrap();
        }
    }
    assert!(run.refused > 1000, "memory was never short: {} refused", run.refused);
    run.finish();
}

#[test]
fn damage_done_in_the_middle_is_found() {
    let damages: [Damage; 4] = [
        ("an allocated block is marked as listed", |run| {
            let pages = run.blocks.values().next().unwrap();
            run.lab
                .kernel()
                .pcp
                .shared()
                .frames
                .set_cached(u32::try_from(pages.phys().pfn().get()).unwrap(), pages.order());
        }),
        ("an allocated block is forgotten", |run| {
            let pages = run.blocks.values().last().unwrap();
            run.lab.kernel().pcp.shared().frames.clear(u32::try_from(pages.phys().pfn().get()).unwrap());
        }),
        ("a free block is marked as allocated", |run| {
            let frames = &run.lab.kernel().pcp.shared().frames;
            let free = (0x100..u32::try_from(FRAMES).unwrap()).find_map(|pfn| match frames.get(pfn) {
                crate::frame::Frame::Free { order, .. } => Some((pfn, order)),
                _ => None,
            });
            let (pfn, order) = free.unwrap();
            frames.set_used(pfn, order, FrameKind::Pages, Owner::default());
        }),
        ("a link of a free list points elsewhere", |run| {
            let frames = &run.lab.kernel().pcp.shared().frames;
            let linked =
                |pfn: &u32| matches!(frames.get(*pfn), crate::frame::Frame::Free { next, .. } if next != u32::MAX);
            frames.set_next((0x100..u32::try_from(FRAMES).unwrap()).find(linked).unwrap(), 0x123);
        }),
    ];
    for (what, damage) in damages {
        let mut run = Run::new(2);
        (0..20_000).for_each(|_| run.step());
        run.check().unwrap();
        damage(&run);
        assert!(run.lab.kernel().validate().is_err(), "{what}, and nobody saw it");
        crate::cpu::set_current(0);
        // A damaged machine is never lent again.
        run.lab.kernel().condemn();
        run.blocks.into_values().for_each(std::mem::forget);
    }
}
