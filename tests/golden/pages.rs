//! Zones, their marks and lists, and what each mask gets of them.

use std::collections::HashSet;

use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::addr::{PAGE_SIZE, PhysAddr};
use lowzone_guest_mem::gfp::{
    __GFP_COMP, __GFP_HIGHMEM, __GFP_MEMALLOC, __GFP_NOWARN, __GFP_ZERO, GFP_DMA, GFP_KERNEL, Gfp,
};
use lowzone_guest_mem::kernel::{Boot, Kernel, Machine, MachineConfig};
use lowzone_guest_mem::page::{
    __get_free_pages, Pages, alloc_pages, alloc_pages_exact, get_page, page_count, split_page,
};
use lowzone_guest_mem::slab::get_order;
use lowzone_guest_mem::zone::ZoneStats;

use crate::calm::Calm;
use crate::gfp::mask;
use crate::table::{Golden, Inputs, Outputs};

/// A machine on which nothing else happens.
pub struct Measured(Machine);

impl Measured {
    pub fn cpu(&self) -> Cpu<'_> {
        Cpu::new(0, self.0.kernel_ref(), &Calm)
    }

    pub fn kernel(&self) -> &'static Kernel {
        self.0.kernel()
    }
}

/// The measured machine of a boot, its lists empty.
pub fn measured(boot: &str) -> Measured {
    let config = MachineConfig { pcp: true, ..MachineConfig::default() };
    let config = match boot {
        "small" => MachineConfig { ram: 1 << 30, boot: Boot::MEASURED_1G, ..config },
        _ => MachineConfig { boot: Boot::MEASURED, ..config },
    };
    Measured(Machine::acquire(config).unwrap())
}

fn join(values: impl IntoIterator<Item = impl ToString>) -> String {
    values.into_iter().map(|value| value.to_string()).collect::<Vec<_>>().join(",")
}

fn zone(kernel: &Kernel, name: &str) -> (ZoneStats, u64) {
    // The fourth zone of x86-64 is Movable, which is as empty as HighMem is there.
    let index = ["DMA", "DMA32", "Normal", "Movable"].iter().position(|known| *known == name).unwrap();
    (kernel.zone_stats()[index], kernel.pcp_stats()[index].1)
}

fn flag(value: bool) -> String {
    u8::from(value).to_string()
}

const ZONE: Golden = Golden {
    name: "zone",
    text: include_str!("zone.tsv"),
    inputs: &["boot", "name", "spanned", "present", "managed"],
    compare: &[
        "idx",
        "start_pfn",
        "wmark_min",
        "wmark_low",
        "wmark_high",
        "reserve0",
        "reserve1",
        "reserve2",
        "reserve3",
        "pcp_high_batch",
        "populated",
    ],
};

#[test]
fn golden_zone() {
    let boots = [("main", measured("main")), ("small", measured("small"))];
    let tally = ZONE.run(|row| {
        let kernel = boots.iter().find(|(name, _)| *name == row.get("boot")).unwrap().1.kernel();
        let (stats, _) = zone(kernel, row.get("name"));
        assert_eq!(stats.managed, row.number::<u64>("managed"), "the machine is not the measured one");
        let (settings, _) = kernel.pcp_stats()[stats.zone.index()];
        let reserve = |index: usize| stats.protection[index].to_string();
        vec![
            ("idx", stats.zone.index().to_string()),
            ("start_pfn", format!("{:#x}", stats.start_pfn)),
            ("wmark_min", stats.marks.min.to_string()),
            ("wmark_low", stats.marks.low.to_string()),
            ("wmark_high", stats.marks.high.to_string()),
            ("reserve0", reserve(0)),
            ("reserve1", reserve(1)),
            ("reserve2", reserve(2)),
            ("reserve3", reserve(3)),
            ("pcp_high_batch", format!("{},{}", settings.high, settings.batch)),
            ("populated", flag(stats.managed > 0)),
        ]
    });
    assert_eq!(tally.rows, 8);
}

const ZONELIST: Golden = Golden {
    name: "zonelist",
    text: include_str!("zonelist.tsv"),
    inputs: &["boot", "pos"],
    compare: &["zone", "zone_idx"],
};

#[test]
fn golden_zonelist() {
    ZONELIST.run(|row| {
        let zone = measured(row.get("boot")).kernel().zonelist()[row.number::<usize>("pos")];
        vec![("zone", zone.to_string()), ("zone_idx", zone.index().to_string())]
    });
}

const SYSCTL: Golden =
    Golden { name: "sysctl_vm", text: include_str!("sysctl_vm.tsv"), inputs: &["name"], compare: &["value"] };

#[test]
fn golden_sysctl_vm() {
    let lab = measured("main");
    SYSCTL.run(|row| vec![("value", lab.kernel().sysctl_vm(row.get("name")).unwrap())]);
}

const GFP_ZONE: Golden = Golden {
    name: "gfp_zone",
    text: include_str!("gfp_zone.tsv"),
    inputs: &["boot", "bits", "DMA", "HIGHMEM", "DMA32", "MOVABLE"],
    compare: &["gfp_zone", "got"],
};

#[test]
fn golden_gfp_zone() {
    GFP_ZONE.run(|row| {
        let lab = measured(row.get("boot"));
        let bits = u32::from_str_radix(row.get("bits").trim_start_matches("0x"), 16).unwrap();
        let gfp = Gfp::from_bits_retain(bits);
        let page = alloc_pages(&lab.cpu(), 0, gfp | __GFP_NOWARN).unwrap();
        vec![("gfp_zone", gfp.zone_number().to_string()), ("got", page.zone().to_string())]
    });
}

const PAGES: Golden = Golden {
    name: "pages",
    text: include_str!("pages.tsv"),
    inputs: &["boot", "gfp", "order"],
    compare: &["ret", "zone", "aligned_to_order", "below16M", "below4G", "refcount", "compound"],
};

#[test]
fn golden_pages() {
    PAGES.run(|row| {
        let lab = measured(row.get("boot"));
        let (cpu, order) = (lab.cpu(), row.number::<u8>("order"));
        let gfp = mask(row.get("gfp")) | __GFP_NOWARN;
        let Ok(pages) = alloc_pages(&cpu, order, gfp) else { return vec![("ret", "NULL".into())] };
        let at = pages.phys().get();
        vec![
            ("ret", "page".into()),
            ("zone", pages.zone().to_string()),
            ("aligned_to_order", flag(at.is_multiple_of(PAGE_SIZE << order))),
            ("below16M", flag(at + (PAGE_SIZE << order) <= 16 << 20)),
            ("below4G", flag(at + (PAGE_SIZE << order) <= 4 << 30)),
            ("refcount", page_count(&cpu, pages.phys()).to_string()),
            ("compound", flag(gfp.contains(__GFP_COMP))),
        ]
    });
}

const PAGES_MISC: Golden = Golden {
    name: "pages_misc",
    text: include_str!("pages_misc.tsv"),
    inputs: &["boot", "what"],
    compare: &["value", "order", "head_of_tail_ok", "refcounts"],
};

#[test]
fn golden_pages_misc() {
    PAGES_MISC.run(|row| page_misc(&measured(row.get("boot")), row.get("what")));
}

fn counts(lab: &Measured, at: PhysAddr, pages: u64) -> String {
    join((0..pages).map(|page| page_count(&lab.cpu(), at.wrapping_add(page * PAGE_SIZE))))
}

fn page_misc(lab: &Measured, what: &str) -> Outputs {
    let cpu = lab.cpu();
    match what {
        "noncomp_order2_refcounts" => {
            let pages = alloc_pages(&cpu, 2, GFP_KERNEL).unwrap();
            vec![("value", counts(lab, pages.phys(), 4))]
        }
        "comp_order2_raw_refcounts" => {
            let pages = alloc_pages(&cpu, 2, GFP_KERNEL | __GFP_COMP).unwrap();
            let tail = lab.kernel().page_at(pages.phys().wrapping_add(3 * PAGE_SIZE)).unwrap();
            let head = flag(tail.block.pfn.phys() == pages.phys());
            vec![
                ("value", counts(lab, pages.phys(), 4)),
                ("order", tail.block.order.to_string()),
                ("head_of_tail_ok", head),
            ]
        }
        "split_page_order2_refcounts" => {
            let pages = alloc_pages(&cpu, 2, GFP_KERNEL).unwrap();
            let at = pages.phys();
            let singles = split_page(&cpu, pages);
            assert_eq!(singles.len(), 4);
            vec![("value", counts(lab, at, 4))]
        }
        "alloc_pages_exact_5" => {
            let exact = alloc_pages_exact(&cpu, 5 * 4096, GFP_KERNEL).unwrap();
            assert!(exact.phys().get().is_multiple_of(8 * PAGE_SIZE), "aligned to a block of eight at least");
            vec![("refcounts", counts(lab, exact.phys(), 5))]
        }
        "free_with_extra_ref_refcount" => {
            let page = alloc_pages(&cpu, 0, GFP_KERNEL).unwrap();
            let (at, _more) = (page.phys(), get_page(&page).unwrap());
            drop(page);
            vec![("value", counts(lab, at, 1))]
        }
        "order0_lifo_same_page" => {
            let page = alloc_pages(&cpu, 0, GFP_KERNEL).unwrap();
            let at = page.phys();
            drop(page);
            vec![("value", flag(alloc_pages(&cpu, 0, GFP_KERNEL).unwrap().phys() == at))]
        }
        "reused_pages_keep_old_bytes" => {
            vec![("value", reused(lab, GFP_KERNEL, |bytes| bytes.iter().all(|b| *b == 0x5a)))]
        }
        "__GFP_ZERO_nonzero_pages" => {
            vec![("value", reused(lab, GFP_KERNEL | __GFP_ZERO, |bytes| bytes.iter().any(|b| *b != 0)))]
        }
        "get_order" => {
            let sizes = [1, 4096, 4097, 8192, 8193, 4 << 20];
            vec![("value", join(sizes.map(|size| format!("{size}:{}", get_order(size)))))]
        }
        "__get_free_pages_highmem" => {
            let got = __get_free_pages(&cpu, 0, GFP_KERNEL | __GFP_HIGHMEM);
            vec![("value", if got.is_ok() { "ptr" } else { "NULL" }.into())]
        }
        other => panic!("no such row: {other}"),
    }
}

/// Of 64 pages that were filled and freed and are allocated again, how many look like that.
fn reused(lab: &Measured, gfp: Gfp, like: fn(&[u8]) -> bool) -> String {
    let (cpu, ram) = (lab.cpu(), lab.kernel().ram());
    let take = |gfp| (0..64).map(|_| alloc_pages(&cpu, 0, gfp).unwrap()).collect::<Vec<Pages>>();
    let first = take(GFP_KERNEL);
    first.iter().for_each(|page| ram.write(page.phys(), &[0x5a; 4096]).unwrap());
    drop(first);
    let again = take(gfp);
    let seen = again.iter().filter(|page| {
        let mut bytes = [0; 4096];
        ram.read(page.phys(), &mut bytes).unwrap();
        like(&bytes)
    });
    format!("{}/64", seen.count())
}

const BUDDY: Golden = Golden {
    name: "buddy",
    text: include_str!("buddy.tsv"),
    inputs: &["boot", "step", "zone"],
    compare: &["free_by_order", "free_pages", "pcp", "pfns", "first"],
};

/// Zone DMA with exactly those pages in use that were when it was measured.
struct Blocks {
    lab: Measured,
    _used: Vec<Pages>,
    held: Vec<Pages>,
}

impl Blocks {
    fn new() -> Self {
        let lab = measured("main");
        let gfp = GFP_DMA | __GFP_MEMALLOC | __GFP_NOWARN;
        let cpu = lab.cpu();
        let all: Vec<_> = std::iter::from_fn(|| alloc_pages(&cpu, 0, gfp).ok()).collect();
        assert_eq!(all.len(), 3840);
        let in_use = |page: &Pages| matches!(page.phys().pfn().get(), 0x100..0x106 | 0x108..0x13c | 0x140..0x148);
        let (used, free): (Vec<_>, Vec<_>) = all.into_iter().partition(in_use);
        drop(free);
        lab.kernel().drain_all_pages();
        Self { lab, _used: used, held: Vec::new() }
    }

    fn take(&mut self, count: usize, order: u8, gfp: Gfp) -> Vec<u64> {
        let cpu = self.lab.cpu();
        let from = self.held.len();
        self.held.extend((0..count).map(|_| alloc_pages(&cpu, order, gfp).unwrap()));
        self.held[from..].iter().map(|pages| pages.phys().pfn().get()).collect()
    }

    fn free_every_second(&mut self) {
        let held = std::mem::take(&mut self.held);
        let (freed, kept): (Vec<_>, Vec<_>) = held.into_iter().enumerate().partition(|(index, _)| index % 2 == 0);
        drop(freed);
        self.held = kept.into_iter().map(|(_, pages)| pages).collect();
    }

    fn state(&self) -> Outputs {
        let (stats, listed) = zone(self.lab.kernel(), "DMA");
        let free = ("free_by_order", join(stats.free_by_order));
        vec![free, ("free_pages", stats.free.to_string()), ("pcp", listed.to_string())]
    }

    /// One step of the measured sequence.
    fn step(&mut self, step: &str) -> Outputs {
        let order = |step: &str| step.split("_o").nth(1).unwrap().split('_').next().unwrap().parse::<u8>().unwrap();
        match step {
            "start_drained" | "16x_o4_held" | "17_order0_held" => {}
            "16x_order4_pfns" => {
                let pfns = self.take(16, 4, GFP_DMA);
                return vec![("pfns", join(pfns.iter().map(|pfn| format!("{pfn:x}"))))];
            }
            "even_o4_freed_no_merge" => self.free_every_second(),
            "before_order0" | "pcp_drained" => self.lab.kernel().drain_all_pages(),
            "after_one_order0" => drop(self.take(1, 0, GFP_DMA)),
            "1+16x_order0_pfns" => {
                let pfns = self.take(16, 0, GFP_DMA);
                let first = format!("{:x}", self.held[0].phys().pfn().get());
                return vec![("pfns", join(pfns.iter().map(|pfn| format!("{pfn:x}")))), ("first", first)];
            }
            "odd_o4_freed_merged" | "17_order0_freed_to_pcp" => self.held.clear(),
            _ if step.starts_with("alloc_") => drop(self.take(1, order(step), GFP_DMA)),
            _ if step.starts_with("drained_") => self.lab.kernel().drain_all_pages(),
            _ if step.starts_with("free") => self.held.clear(),
            other => panic!("no such step: {other}"),
        }
        self.state()
    }

    /// What can be said of zone Normal without knowing what was taken there before.
    fn normal(&mut self, step: &str) -> Outputs {
        let (count, order) = if step == "24x_order0_pfns" { (24, 0) } else { (12, 5) };
        let pfns = self.take(count, order, GFP_KERNEL);
        assert_eq!(pfns.iter().collect::<HashSet<_>>().len(), count, "distinct");
        assert!(pfns.iter().all(|pfn| pfn.is_multiple_of(1 << order)), "aligned");
        self.held.clear();
        vec![("pfns", join(pfns.iter().map(|pfn| format!("{pfn:x}"))))]
    }
}

#[test]
fn golden_buddy() {
    let mut blocks = Blocks::new();
    BUDDY.run(|row: &Inputs<'_>| match row.get("zone") {
        "DMA" => blocks.step(row.get("step")),
        _ => blocks.normal(row.get("step")),
    });
}
