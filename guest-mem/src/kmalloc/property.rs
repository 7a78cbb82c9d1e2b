//! A million operations of four CPUs on `kmalloc`, against a shadow that knows who owns which byte.

use super::*;
use crate::addr::PhysAddr;
use crate::finding::Resource;
use crate::gfp::{__GFP_NORETRY, __GFP_NOWARN, __GFP_RECLAIMABLE, GFP_ATOMIC, GFP_DMA, GFP_KERNEL, GFP_NOWAIT};
use crate::slab::CacheId;
use crate::stats::leaks;
use crate::testing::Lab;
use crate::testing::shadow::{Dice, EVERY, OPERATIONS, PHASE, Rest, Shadow, holds, small};

/// At most this many buffers are held.
const MOST: usize = 3000;

struct Run {
    lab: Lab,
    dice: Dice,
    shadow: Shadow<KBuf>,
    rest: Rest,
    refused: u32,
    moved: u32,
    stayed: u32,
}

impl Run {
    fn new(seed: u64) -> Self {
        let (lab, dice) = (Lab::of(small()), Dice::new(seed));
        Self { lab, dice, shadow: Shadow::new(), rest: Rest::default(), refused: 0, moved: 0, stayed: 0 }
    }

    fn mask(&mut self) -> Gfp {
        let kernel = GFP_KERNEL | __GFP_NORETRY;
        let masks = [kernel, GFP_ATOMIC, GFP_NOWAIT, kernel | __GFP_RECLAIMABLE, GFP_ATOMIC | GFP_DMA];
        masks[self.dice.index(masks.len())] | __GFP_NOWARN
    }

    /// Mostly small, sometimes pages, rarely up to a MiB.
    fn size(&mut self) -> usize {
        let most = match self.dice.roll(1000) {
            0..2 => 1 << 20,
            2..30 => 64 << 10,
            30..250 => KMALLOC_MAX_CACHE_SIZE,
            _ => 600,
        };
        1 + self.dice.index(most)
    }

    /// What any buffer must be, whatever came before.
    fn took(&mut self, buf: KBuf, gfp: Gfp) {
        let (at, usable) = (buf.phys(), ksize(&buf));
        assert_eq!(usable, kmalloc_size_roundup(buf.len()), "the size of its class");
        let align = 1 << usable.trailing_zeros();
        assert!(at.get().is_multiple_of(align), "{at} of {usable} bytes is not aligned");
        assert!(buf.zone() <= gfp.highest_zone(crate::arch::Arch::X86_64), "a zone above the mask's");
        let within = self.dice.roll(usable as u64);
        let found = self
            .object_at(at.wrapping_add(within))
            .map(|object| (object.phys, object.requested as usize, object.cache));
        assert_eq!(found, Some((at, buf.len(), CacheId::serving(buf.len(), gfp).map(CacheId::name))));
        self.shadow.take(buf, usable as u64);
    }

    fn object_at(&self, at: PhysAddr) -> Option<crate::slab::Object> {
        self.lab.kernel().object_at(at)
    }

    fn alloc(&mut self, cpu: u32) {
        let (len, gfp, zeroed) = (self.size(), self.mask(), self.dice.once_in(4));
        let cpu = self.lab.cpu_number(cpu);
        let buf = match zeroed {
            true => kzalloc(&cpu, len, gfp),
            false => kmalloc_array(&cpu, 1, len, gfp),
        };
        match buf {
            Ok(buf) => {
                assert_eq!(buf.len(), len);
                if zeroed {
                    holds(&buf, 0..len, &[0; 256], "zero");
                }
                self.took(buf, gfp);
            }
            Err(error) => {
                assert!(matches!(error, AllocError::NoMemory { .. }), "{error}");
                self.refused += 1;
            }
        }
    }

    /// To a size that fits, or does not; what was in it stays.
    fn resize(&mut self, cpu: u32) {
        let index = self.dice.index(self.shadow.len());
        let (buf, mark) = self.shadow.give(index);
        let (old, at, usable) = (buf.len(), buf.phys(), ksize(&buf));
        let (len, gfp) = (self.size(), self.mask());
        match krealloc(&self.lab.cpu_number(cpu), Some(buf), len, gfp) {
            Ok(buf) => {
                assert_eq!((buf.len(), buf.phys() == at), (len, len <= usable), "it moves if it must");
                holds(&buf, 0..len.min(old), &mark, "as before");
                *(if len <= usable { &mut self.stayed } else { &mut self.moved }) += 1;
                if len <= usable {
                    // The object is of the class that it was asked for first, and stays it.
                    self.shadow.take(buf, usable as u64);
                } else {
                    self.took(buf, gfp);
                }
            }
            Err(KreallocFailure { buf, .. }) => {
                let buf = buf.unwrap();
                holds(&buf, 0..old, &mark, "as before");
                self.shadow.take(buf, usable as u64);
                self.refused += 1;
            }
        }
    }

    fn free(&mut self) {
        let index = self.dice.index(self.shadow.len());
        let at = self.shadow.iter().nth(index).unwrap().phys();
        let (buf, _) = self.shadow.give(index);
        match self.dice.roll(3) {
            0 => kfree_sensitive(buf),
            _ => kfree(buf),
        }
        assert_eq!(self.object_at(at), None, "{at} is freed, and held");
    }

    fn step(&mut self) {
        let cpu = u32::try_from(self.dice.index(4)).unwrap();
        crate::cpu::set_current(cpu);
        let held = self.shadow.len();
        match self.dice.roll(100) {
            0..52 if held < MOST => self.alloc(cpu),
            52..57 if held > 0 => self.resize(cpu),
            57 if held > 0 => self.shadow.check(self.dice.index(held)),
            _ if held > 0 => self.free(),
            _ => {}
        }
    }

    /// All of it, against itself and the shadow.
    fn check(&self) {
        self.lab.kernel().validate().unwrap();
        self.shadow.check_all();
        let mut held: Vec<_> = self.shadow.iter().map(KBuf::phys).collect();
        held.sort_unstable();
        let live = leaks(self.lab.kernel()).into_iter().filter(|leak| leak.resource == Resource::Slab);
        let live: Vec<_> = live.map(|leak| leak.at).collect();
        assert_eq!(live, held, "what is live is not what was handed out");
        self.lab.solo.points();
    }
}

#[test]
fn a_million_operations_agree_with_a_shadow() {
    let mut run = Run::new(0x6b6d);
    let mut most = 0;
    for step in 1..=OPERATIONS {
        run.step();
        most = most.max(run.shadow.len());
        if step.is_multiple_of(EVERY) {
            run.check();
        }
        if step.is_multiple_of(PHASE) {
            run.rest.turn(&run.lab.cpu());
        }
    }
    let Run { refused, moved, stayed, .. } = run;
    assert!(refused > 300 && moved > 10_000 && stayed > 10_000, "{refused} refused, {moved} moved, {stayed} stayed");
    assert!(most > 1000, "at most {most} were held");
    assert!(run.rest.is_there(), "an even number of phases");
    while run.shadow.len() > 0 {
        run.free();
    }
    run.check();
    crate::cpu::set_current(0);
    assert!(run.lab.findings().is_empty(), "{:?}", run.lab.findings());
}
