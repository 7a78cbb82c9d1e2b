//! Corruptions planted into a machine in use, one at a time, over all allocators: each is found.
//!
//! What breaks a table is found by [`crate::kernel::Kernel::validate`]; what a driver or a device could do by a finding. Neighbours:
//! each `validate` has a test of its own for every kind of damage it knows.

use crate::dma::misuse;
use crate::frame::{Frame, Frames, Kind};
use crate::gfp::{__GFP_NOWARN, GFP_ATOMIC};
use crate::kbuf::KBuf;
use crate::kmem_cache::{KmemCache, SlabFlags, kmem_cache_create};
use crate::mempool::{Kmalloc, Mempool, mempool_create_kmalloc_pool};
use crate::page::{Pages, alloc_pages};
use crate::percpu::{PerCpu, alloc_percpu};
use crate::site::Owner;
use crate::testing::Lab;
use crate::testing::shadow::{Dice, small};
use crate::vmalloc::{VBuf, vmalloc};

/// A machine all of whose allocators have given and taken back.
struct Used {
    lab: Lab,
    pages: Vec<Pages>,
    bufs: Vec<KBuf>,
    cache: KmemCache,
    objects: Vec<KBuf>,
    areas: Vec<VBuf>,
    pool: Mempool<Kmalloc>,
    variables: Vec<PerCpu<[u64; 4]>>,
}

impl Used {
    fn new() -> Self {
        let lab = Lab::of(small());
        let cpu = lab.cpu();
        let cache = kmem_cache_create(&cpu, "watched", 72, 0, SlabFlags::DEBUG, None).unwrap();
        let pool = mempool_create_kmalloc_pool(&cpu, 4, 300).unwrap();
        let (pages, bufs, objects) = (Vec::new(), Vec::new(), Vec::new());
        let mut used = Self { lab, pages, bufs, cache, objects, areas: Vec::new(), pool, variables: Vec::new() };
        let mut dice = Dice::new(0x64);
        for _ in 0..20_000 {
            used.step(&mut dice);
        }
        used.lab.kernel().validate().unwrap();
        assert!(used.lab.findings().is_empty());
        used
    }

    fn step(&mut self, dice: &mut Dice) {
        let number = u32::try_from(dice.index(4)).unwrap();
        crate::cpu::set_current(number);
        let (cpu, gfp) = (self.lab.cpu_number(number), GFP_ATOMIC | __GFP_NOWARN);
        match dice.roll(10) {
            0 => self.pages.extend(alloc_pages(&cpu, u8::try_from(dice.index(4)).unwrap(), gfp)),
            1 => self.bufs.extend(KBuf::kmalloc(&cpu, 1 + dice.index(10_000), gfp)),
            2 => self.objects.extend(self.cache.alloc(&cpu, gfp)),
            3 => self.areas.extend(vmalloc(&cpu, 1 + dice.index(20_000))),
            4 => self.variables.extend(alloc_percpu(&cpu)),
            _ => {
                let keep = |len: usize| (len > 50).then_some(len);
                let mut gone = |len: usize| keep(len).map(|len| dice.index(len));
                drop(gone(self.pages.len()).map(|at| self.pages.swap_remove(at)));
                drop(gone(self.bufs.len()).map(|at| self.bufs.swap_remove(at)));
                drop(gone(self.objects.len()).map(|at| self.objects.swap_remove(at)));
                drop(gone(self.areas.len()).map(|at| self.areas.swap_remove(at)));
                drop(gone(self.variables.len()).map(|at| self.variables.swap_remove(at)));
            }
        }
    }

    fn frames(&self) -> &Frames {
        &self.lab.kernel().pcp.shared().frames
    }

    /// The first frame of which that holds.
    fn frame(&self, holds: impl Fn(Frame) -> bool) -> u32 {
        let end = u32::try_from(small().ram >> 12).unwrap();
        (0x100..end).find(|&pfn| holds(self.frames().get(pfn))).unwrap()
    }

    /// What validation and findings say, in words; nothing if nobody saw it.
    fn told(&self) -> String {
        let kernel = self.lab.kernel();
        kernel.inspect_slabs(Owner::default());
        let found = kernel.findings().iter().map(|finding| finding.kind.to_string()).collect::<Vec<_>>();
        kernel.validate().err().map_or(found.join("\n"), |broken| broken.to_string())
    }

    /// A damaged machine is never lent again, and nothing is given back to it.
    fn abandon(self) {
        crate::cpu::set_current(0);
        self.lab.kernel().condemn();
        let Self { pages, bufs, cache, objects, areas, pool, variables, .. } = self;
        pages.into_iter().for_each(std::mem::forget);
        bufs.into_iter().chain(objects).for_each(std::mem::forget);
        areas.into_iter().for_each(std::mem::forget);
        variables.into_iter().for_each(std::mem::forget);
        std::mem::forget((cache, pool));
    }
}

fn pfn(pages: &Pages) -> u32 {
    u32::try_from(pages.phys().pfn().get()).unwrap()
}

/// What is done, in words and in deed, and what must be told.
type Damage = (&'static str, fn(&mut Used), &'static str);

const DAMAGES: [Damage; 11] = [
    (
        "pages: an allocated block is marked as on a CPU's list",
        |used| used.frames().set_cached(pfn(&used.pages[0]), used.pages[0].order()),
        "per-CPU lists",
    ),
    ("pages: an allocated block is forgotten", |used| used.frames().clear(pfn(&used.pages[0])), "belongs to no block"),
    (
        "pages: a free block is marked as allocated",
        |used| {
            let free = used.frame(|frame| matches!(frame, Frame::Free { .. }));
            let Frame::Free { order, .. } = used.frames().get(free) else { return };
            used.frames().set_used(free, order, Kind::Pages, Owner::default());
        },
        "page allocator",
    ),
    (
        "pages: a link of a free list points elsewhere",
        |used| {
            let linked = used.frame(|frame| matches!(frame, Frame::Free { next, .. } if next != u32::MAX));
            used.frames().set_next(linked, 0x123);
        },
        "is broken at",
    ),
    (
        "kmalloc: the pages of a slab go back under its objects",
        |used| {
            let memory = &mut *used.lab.kernel().memory.lock();
            let small = used.bufs.iter().find(|buf| buf.len() < 2000).unwrap();
            let block = memory.zones.lookup(small.phys().pfn()).unwrap().block;
            memory.zones.release(block);
        },
        "slab: ",
    ),
    (
        "kmalloc: a live object is on its slab's free list",
        |used| {
            let memory = &mut *used.lab.kernel().memory.lock();
            let small = used.bufs.iter().find(|buf| buf.len() < 2000).unwrap();
            let (_, spot) = memory.slabs.find_live(&memory.zones, small.phys()).unwrap();
            memory.slabs.corrupt(spot.unwrap());
        },
        "slab: ",
    ),
    (
        "kmem_cache: a write reaches a byte beyond an object",
        |used| misuse::scribble(&used.lab.cpu(), used.objects[0].phys().wrapping_add(72), &[0x41]),
        "Right Redzone overwritten",
    ),
    (
        "kmem_cache: a freed object is written to",
        |used| {
            let object = used.objects.pop().unwrap();
            let at = object.phys();
            drop(object);
            misuse::scribble(&used.lab.cpu(), at.wrapping_add(7), &[0x41]);
        },
        "Poison overwritten",
    ),
    (
        "vmalloc: a page of an area goes back under it",
        |used| {
            let at = used.areas[0].virt();
            let pfn = crate::vmalloc::vmalloc_to_pfn(used.lab.kernel(), at).unwrap();
            used.lab.kernel().memory.lock().zones.free(pfn, 0).unwrap();
        },
        "is not an allocated single page",
    ),
    (
        "mempool: an element of the reserve is freed behind the pool's back",
        |used| {
            let cpu = used.lab.cpu();
            let all: Vec<_> = (0..4)
                .map(|_| {
                    used.lab.solo.fail_nth(0);
                    used.pool.alloc(&cpu, GFP_ATOMIC | __GFP_NOWARN).unwrap()
                })
                .collect();
            let at = all[3].phys();
            all.into_iter().for_each(|element| used.pool.free(&cpu, element));
            misuse::kfree(&cpu, at);
            used.pool.resize(&cpu, 1).unwrap();
        },
        "was freed before",
    ),
    ("per-CPU: a variable reaches into the next", |used| used.lab.kernel().percpu.lock().corrupt(), "per-CPU areas"),
];

#[test]
fn planted_corruptions_are_all_found() {
    for (what, damage, words) in DAMAGES {
        let mut used = Used::new();
        damage(&mut used);
        let told = used.told();
        used.abandon();
        assert!(told.contains(words), "{what}: told is '{told}', not '{words}'");
    }
}
