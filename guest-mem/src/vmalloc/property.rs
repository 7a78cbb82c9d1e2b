//! A million operations of four CPUs against a shadow that knows who owns which byte.
//!
//! The shadow holds, for each buffer, where it lies and which byte fills it; for each page, whose it is. Every step
//! looks at the one buffer it touched, every thousandth at all there is. Then each kind of corruption that
//! [`Areas::validate`] claims to see is planted and seen.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::cpu::Cpu;
use crate::testing::Lab;
use crate::testing::shadow::{self, Dice, EVERY, OPERATIONS, small};

const RUNS: u32 = 4;
const MOST: usize = 400;

struct Shadow {
    bytes: shadow::Shadow<VBuf>,
    /// Page to the buffer's first address.
    pages: BTreeMap<Pfn, VirtAddr>,
}

impl Shadow {
    fn pages_of(kernel: &Kernel, buf: &VBuf) -> Vec<Pfn> {
        let pages = buf.len().div_ceil(4096) as u64;
        let at = |page: u64| buf.virt().wrapping_add(page * PAGE_SIZE);
        let found: Vec<_> = (0..pages).filter_map(|page| vmalloc_to_pfn(kernel, at(page))).collect();
        assert_eq!((found.len() as u64, vmalloc_to_pfn(kernel, at(pages))), (pages, None), "a guard behind all pages");
        found
    }

    fn take(&mut self, cpu: &Cpu<'_>, len: usize) {
        let Ok(buf) = vmalloc(cpu, len) else { return };
        for pfn in Self::pages_of(cpu.kernel(), &buf) {
            assert_eq!(self.pages.insert(pfn, buf.virt()), None, "{pfn:?} had an owner");
        }
        self.bytes.take(buf, (len as u64).next_multiple_of(PAGE_SIZE) + PAGE_SIZE);
    }

    fn give(&mut self, cpu: &Cpu<'_>, index: usize) {
        let (buf, _) = self.bytes.give(index);
        for pfn in Self::pages_of(cpu.kernel(), &buf) {
            assert_eq!(self.pages.remove(&pfn), Some(buf.virt()));
        }
        vfree(cpu, buf);
    }

    fn check_all(&self, kernel: &Kernel) {
        kernel.validate().unwrap();
        self.bytes.check_all();
        let owned: usize = kernel.vmalloc.lock().live().map(|(_, area)| area.backing.pages().len()).sum();
        assert_eq!(owned, self.pages.len());
    }
}

fn run(lab: &Lab, seed: u64, ops: u32) -> (usize, usize) {
    let cpus = [0, 1, 2, 3].map(|id| lab.cpu_number(id));
    let (mut dice, mut shadow, mut failed) =
        (Dice::new(seed), Shadow { bytes: shadow::Shadow::new(), pages: BTreeMap::new() }, 0);
    let mut most = 0;
    for step in 0..ops {
        let cpu = &cpus[dice.index(cpus.len())];
        match dice.roll(8) {
            0..4 if shadow.bytes.len() < MOST => {
                // Now and then more than there is.
                let pages = if dice.roll(5000) == 0 { 20_000 } else { 1 + dice.roll(4) };
                let before = shadow.bytes.len();
                shadow.take(cpu, usize::try_from(pages * PAGE_SIZE - dice.roll(PAGE_SIZE)).unwrap());
                failed += usize::from(shadow.bytes.len() == before);
            }
            4..7 if shadow.bytes.len() > 0 => {
                let index = dice.index(shadow.bytes.len());
                shadow.give(cpu, index);
            }
            _ if shadow.bytes.len() > 0 => shadow.bytes.check(dice.index(shadow.bytes.len())),
            _ => {}
        }
        most = most.max(shadow.bytes.len());
        if step % EVERY == EVERY - 1 {
            shadow.check_all(lab.kernel());
        }
    }
    while shadow.bytes.len() > 0 {
        shadow.give(&cpus[0], 0);
    }
    assert!(lab.findings().is_empty() && lab.leaks().is_empty());
    (most, failed)
}

#[test]
fn a_million_operations_agree_with_the_shadow() {
    let mut runner = TestRunner::new(Config { cases: RUNS, failure_persistence: None, ..Config::default() });
    let seen = runner.run(&any::<u64>(), |seed| {
        let (most, failed) = run(&Lab::of(small()), seed, OPERATIONS / RUNS);
        prop_assert!(most > 100 && failed > 0, "a mixed load: {most} held at once, {failed} refused");
        Ok(())
    });
    seen.unwrap();
}

/// What one planted corruption makes the check say.
fn planted(corrupt: impl FnOnce(&mut Areas, &mut crate::kernel::Memory)) -> String {
    let lab = Lab::of(small());
    let cpu = lab.cpu();
    let [one, two, freed, late] = [8192, 4096, 4096, 4096].map(|len| vmalloc(&cpu, len).unwrap());
    drop(freed);
    lab.kernel().validate().unwrap();
    let memory = &mut *lab.kernel().memory.lock();
    corrupt(&mut lab.kernel().vmalloc.lock(), memory);
    let said = lab.kernel().vmalloc.lock().validate(&memory.zones).map_err(|error| error.to_string());
    let _ = [one, two, late].map(VBuf::into_raw);
    said.unwrap_err()
}

fn first(areas: &mut Areas) -> (&u64, &mut Area) {
    areas.live.iter_mut().next().unwrap()
}

#[test]
fn ten_planted_corruptions_are_found() {
    let steal = |areas: &mut Areas| {
        let page = areas.live.values().next_back().unwrap().backing.pages()[0];
        Box::from([page, page])
    };
    let said = [
        planted(|areas, _| areas.lazy_pages += 1),
        planted(|areas, _| areas.lazy.clear()),
        planted(|areas, _| first(areas).1.bytes += PAGE_SIZE),
        planted(|areas, _| drop(areas.live.pop_first())),
        planted(|areas, _| {
            let (hole, end) = areas.holes.pop_last().unwrap();
            areas.holes.extend([(hole, end - PAGE_SIZE), (end - PAGE_SIZE, end)]);
        }),
        planted(|areas, _| areas.holes.clear()),
        planted(|areas, _| first(areas).1.backing = Backing::Map(Box::new([Pfn::new(1)]))),
        planted(|areas, _| first(areas).1.backing = Backing::Alloc(steal(areas))),
        planted(|areas, memory| memory.zones.free(first(areas).1.backing.pages()[0], 0).map(drop).unwrap()),
        planted(|areas, _| {
            let (start, area) = areas.live.pop_last().unwrap();
            areas.live.insert(start + 0x800, area);
        }),
    ];
    let words = [
        "2 freed pages of address space are counted as 3",
        "torn or covered twice at 0xffffc90000005000",
        "torn or covered twice at 0xffffc90000004000",
        "torn or covered twice at 0xffffc90000000000",
        "two holes meet at 0xffffe8fffffff000",
        "torn or covered twice at 0xffffc90000009000",
        "has 1 pages for 8192 bytes",
        "belongs to the areas at 0xffffc90000000000",
        "is not an allocated single page",
        "torn or covered twice at 0xffffc90000007000",
    ];
    for (said, words) in said.iter().zip(words) {
        assert!(said.contains(words), "{said} instead of {words}");
    }
}
