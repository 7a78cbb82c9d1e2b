//! A million operations of four CPUs on caches of a driver's, against a shadow that knows who owns which byte.

use std::sync::Arc;

use super::*;
use crate::finding::Resource;
use crate::gfp::{__GFP_NORETRY, __GFP_NOWARN, GFP_ATOMIC, GFP_NOWAIT};
use crate::stats::leaks;
use crate::testing::Lab;
use crate::testing::shadow::{Bytes, Dice, EVERY, OPERATIONS, PHASE, Rest, Shadow, fill, holds, small};
use crate::zone::ZoneKind;

/// At most this many objects are held.
const MOST: usize = 3000;

/// A cache: what is asked for, and to what its objects are aligned at least.
struct Kind {
    name: &'static str,
    size: usize,
    align: u32,
    flags: SlabFlags,
    /// What a constructor writes into each byte, if it has one.
    ctor: Option<u8>,
    aligned: u64,
}

const fn kind(name: &'static str, size: usize, align: u32, flags: SlabFlags, ctor: Option<u8>, aligned: u64) -> Kind {
    Kind { name, size, align, flags, ctor, aligned }
}

const KINDS: [Kind; 7] = [
    kind("tiny", 12, 0, SlabFlags::empty(), None, 8),
    kind("line", 100, 0, SlabFlags::HWCACHE_ALIGN, None, 64),
    kind("made", 200, 256, SlabFlags::empty(), Some(0xc1), 256),
    kind("page", 4096, 4096, SlabFlags::RECLAIM_ACCOUNT, None, 4096),
    kind("odd", 2500, 0, SlabFlags::empty(), Some(0xc2), 8),
    kind("debug", 72, 0, SlabFlags::DEBUG, None, 8),
    kind("low", 500, 0, SlabFlags::CACHE_DMA, None, 8),
];

impl Kind {
    fn create(&self, cpu: &Cpu<'_>) -> KmemCache {
        let ctor = self.ctor.map(|byte| -> Ctor {
            Arc::new(move |object: &mut Construct<'_>| (0..object.len()).for_each(|at| object.write_at(at, &[byte])))
        });
        kmem_cache_create(cpu, self.name, self.size, self.align, self.flags, ctor).unwrap()
    }

    /// What an object holds that was not cleared: as it was constructed, or poison.
    fn fresh(&self) -> Option<[u8; 256]> {
        let byte = self.ctor.or(self.flags.contains(SlabFlags::POISON).then_some(0x6b));
        byte.map(|byte| [byte; 256])
    }
}

/// An object and the number of its kind.
struct Object(KBuf, usize);

impl Bytes for Object {
    fn start(&self) -> u64 {
        self.0.start()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn read(&self, at: usize, to: &mut [u8]) {
        self.0.read(at, to);
    }

    fn write(&mut self, at: usize, from: &[u8]) {
        self.0.write(at, from);
    }
}

struct Run {
    lab: Lab,
    dice: Dice,
    caches: Vec<KmemCache>,
    shadow: Shadow<Object>,
    rest: Rest,
    refused: u32,
    bulks: u32,
    created: u32,
}

impl Run {
    fn new(seed: u64) -> Self {
        let (lab, dice) = (Lab::of(small()), Dice::new(seed));
        let caches = KINDS.iter().map(|kind| kind.create(&lab.cpu())).collect();
        Self { lab, dice, caches, shadow: Shadow::new(), rest: Rest::default(), refused: 0, bulks: 0, created: 0 }
    }

    fn took(&mut self, buf: KBuf, kind: usize, zeroed: bool) {
        let Kind { name, size, aligned, flags, .. } = KINDS[kind];
        let at = buf.phys();
        assert!(buf.len() == size && at.get().is_multiple_of(aligned), "{name}: {at} is not aligned");
        assert!(buf.zone() == ZoneKind::Dma || !flags.contains(SlabFlags::CACHE_DMA), "{name}: not in zone DMA");
        match KINDS[kind].fresh() {
            _ if zeroed => holds(&buf, 0..size, &[0; 256], "zero"),
            Some(fresh) => holds(&buf, 0..size - 1, &fresh, "as an object begins"),
            None => {}
        }
        let found = self.lab.kernel().object_at(at.wrapping_add(self.dice.roll(size as u64)));
        let found = found.map(|object| (object.phys, object.requested as usize, object.cache, object.own));
        assert_eq!(found, Some((at, size, Some(name), true)));
        self.shadow.take(Object(buf, kind), size as u64);
    }

    fn alloc(&mut self, cpu: u32, kind: usize) {
        let masks = [GFP_KERNEL | __GFP_NORETRY, GFP_ATOMIC, GFP_NOWAIT];
        let gfp = masks[self.dice.index(masks.len())] | __GFP_NOWARN;
        let (cpu, cache) = (self.lab.cpu_number(cpu), &self.caches[kind]);
        let (zeroed, many) = (self.dice.once_in(4), self.dice.once_in(10));
        let taken = match (many, zeroed) {
            (true, false) => cache.alloc_bulk(&cpu, gfp, 1 + self.dice.index(20)),
            (true, true) => cache.alloc_bulk(&cpu, gfp | __GFP_ZERO, 1 + self.dice.index(20)),
            (false, true) => cache.zalloc(&cpu, gfp).map(|object| vec![object]),
            (false, false) => cache.alloc(&cpu, gfp).map(|object| vec![object]),
        };
        match taken {
            Ok(objects) => {
                self.bulks += u32::from(many);
                objects.into_iter().for_each(|object| self.took(object, kind, zeroed));
            }
            Err(error) => {
                assert!(matches!(error, AllocError::NoMemory { .. }), "{error}");
                self.refused += 1;
            }
        }
    }

    /// An object back from its owner, in the state in which its cache wants it.
    fn ready(&mut self, index: usize) -> (KBuf, usize) {
        let (Object(mut buf, kind), _) = self.shadow.give(index);
        if let Some(byte) = KINDS[kind].ctor {
            fill(&mut buf, &[byte; 256]);
        }
        (buf, kind)
    }

    fn free(&mut self, cpu: u32) {
        let index = self.dice.index(self.shadow.len());
        let (buf, kind) = self.ready(index);
        let at = buf.phys();
        match self.dice.once_in(3) {
            true => drop(buf),
            false => self.caches[kind].free(&self.lab.cpu_number(cpu), buf),
        }
        assert_eq!(self.lab.kernel().object_at(at), None, "{at} is freed, and held");
    }

    /// Frees up to so many objects of one kind at once.
    fn free_many(&mut self, cpu: u32, kind: usize, most: usize) {
        let mut objects = Vec::new();
        while objects.len() < most {
            let first = self.shadow.iter().position(|object| object.1 == kind);
            let Some(index) = first else { break };
            objects.push(self.ready(index).0);
        }
        self.caches[kind].free_bulk(&self.lab.cpu_number(cpu), objects);
    }

    /// A cache without objects keeps no slab when it is shrunk, and leaves nothing when it goes.
    fn create_again(&mut self, cpu: u32, kind: usize) {
        self.free_many(cpu, kind, usize::MAX);
        let cpu = self.lab.cpu_number(cpu);
        let cache = &self.caches[kind];
        assert!(!cache.shrink(&cpu), "{}: a slab without objects is left", cache.name());
        assert_eq!(cache.stats().map(|stats| (stats.active, stats.total, stats.slabs)), Some((0, 0, 0)));
        std::mem::replace(&mut self.caches[kind], KINDS[kind].create(&cpu)).destroy(&cpu);
        self.created += 1;
    }

    fn step(&mut self) {
        let cpu = u32::try_from(self.dice.index(4)).unwrap();
        crate::cpu::set_current(cpu);
        let (held, kind) = (self.shadow.len(), self.dice.index(KINDS.len()));
        match self.dice.roll(20_000) {
            0 => self.create_again(cpu, kind),
            1..40 => drop(self.caches[kind].shrink(&self.lab.cpu_number(cpu))),
            40..160 => self.free_many(cpu, kind, 16),
            160..200 if held > 0 => self.shadow.check(self.dice.index(held)),
            200..7600 if held < MOST => self.alloc(cpu, kind),
            _ if held > 0 => self.free(cpu),
            _ => {}
        }
    }

    /// All of it, against itself and the shadow.
    fn check(&self) {
        self.lab.kernel().validate().unwrap();
        self.shadow.check_all();
        for (kind, cache) in self.caches.iter().enumerate() {
            let held = self.shadow.iter().filter(|object| object.1 == kind).count();
            assert_eq!(cache.stats().unwrap().active, held as u64, "{}", cache.name());
        }
        let mut held: Vec<_> = self.shadow.iter().map(|object| object.0.phys()).collect();
        held.sort_unstable();
        let live = leaks(self.lab.kernel()).into_iter().filter(|leak| leak.resource == Resource::CacheObject);
        assert_eq!(live.map(|leak| leak.at).collect::<Vec<_>>(), held, "what is live is not what was handed out");
        self.lab.solo.points();
    }
}

#[test]
fn a_million_operations_agree_with_a_shadow() {
    let mut run = Run::new(0x6361);
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
    let Run { refused, bulks, created, .. } = run;
    assert!(refused > 1000 && bulks > 10_000 && created > 20, "{refused} refused, {bulks} bulks, {created} created");
    assert!(most > 1000, "at most {most} were held");
    (0..KINDS.len()).for_each(|kind| run.free_many(0, kind, usize::MAX));
    run.check();
    crate::cpu::set_current(0);
    let Run { lab, caches, .. } = run;
    drop(caches);
    assert!(lab.findings().is_empty() && lab.leaks().is_empty(), "{:?} {:?}", lab.findings(), lab.leaks());
}
