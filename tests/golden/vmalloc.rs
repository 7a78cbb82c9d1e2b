//! vmalloc, kvmalloc and ioremap: areas, addresses and registers.
//!
//! Each row is computed alone on a machine of its own kind, by one CPU in lockstep; the ioremap rows on a machine with
//! QEMU's edu, whose rules for odd accesses its registers follow.

use std::sync::{Arc, Mutex};

use lowzone::wire::{InProc, LabTap};
use lowzone::world::{Exit, Lockstep};
use lowzone_device::edu::{Hardware, edu};
use lowzone_driver::bus::PciBus;
use lowzone_driver::pci::{PciDevice, PciError, enumerate};
use lowzone_guest_mem::dma::{DmaDevice, DmaPort};
use lowzone_guest_mem::env::Class;
use lowzone_guest_mem::fault::{FaultAttr, FaultSpec};
use lowzone_guest_mem::gfp::{__GFP_NOWARN, GFP_ATOMIC, GFP_DMA, GFP_KERNEL};
use lowzone_guest_mem::iomem::{self, ioremap, ioremap_cache, ioremap_wc, iounmap, request_mem_region};
use lowzone_guest_mem::kernel::{Machine, MachineConfig};
use lowzone_guest_mem::kvmalloc::{KvBuf, kvmalloc};
use lowzone_guest_mem::page::alloc_pages;
use lowzone_guest_mem::vmalloc::{
    self, __vmalloc, VBuf, VmArea, find_vm_area, is_vmalloc_addr, is_vmalloc_or_module_addr, misuse, virt_addr_valid,
    vmalloc_32, vmalloc_to_page, vmap, vzalloc,
};
use lowzone_guest_mem::{Cpu, KBuf, PAGE_SIZE, PhysAddr, VirtAddr};

use crate::gfp::mask;
use crate::table::{Golden, Outputs};

const FOUR_GIB: u64 = 1 << 32;

const AREAS: Golden = Golden {
    name: "vmalloc",
    text: include_str!("vmalloc.tsv"),
    inputs: &["boot", "size"],
    compare: &[
        "ret",
        "page_aligned",
        "nr_pages",
        "area_size",
        "guard",
        "pages_above_4g",
        "is_vmalloc",
        "virt_addr_valid",
        "flags",
    ],
};

const MISC: Golden = Golden {
    name: "vmalloc_misc",
    text: include_str!("vmalloc_misc.tsv"),
    inputs: &["what"],
    compare: &[
        "ret",
        "gap_ab",
        "gap_bc",
        "addr_reused",
        "value",
        "zone",
        "is_vmalloc_or_module",
        "area_pages",
        "same_page",
    ],
};

const EITHER: Golden = Golden {
    name: "kvmalloc",
    text: include_str!("kvmalloc.tsv"),
    inputs: &["boot", "size", "gfp"],
    compare: &["ret"],
};

const REGISTERS: Golden = Golden {
    name: "ioremap",
    text: include_str!("ioremap.tsv"),
    inputs: &["boot", "what"],
    compare: &["len", "flags", "value", "area_size", "is_vmalloc", "ret", "distinct", "expect", "rc"],
};

/// A machine, its edu, and one CPU that is handed to a closure.
struct Rig {
    world: Lockstep,
    pci: Arc<PciDevice>,
    // Last: the machine is reset when it drops.
    machine: Machine,
}

impl Rig {
    fn new() -> Self {
        let config = MachineConfig::default();
        let machine = Machine::acquire(config).unwrap();
        let wire = Arc::new(InProc::new(machine.kernel_ref(), config.cpus));
        machine.kernel().set_io_space(wire.clone());
        let (at, irq) = wire.next_slot();
        let dma = DmaDevice::new(machine.kernel_ref(), &at.to_string());
        let tap = LabTap::new(machine.kernel_ref(), &dma);
        let made = edu(Hardware::default(), irq, DmaPort::new(&dma), tap).unwrap();
        wire.plug(made.function, Some(made.slot));
        let bus: Arc<dyn PciBus> = wire.clone();
        let pci = enumerate(&bus, |_| Some(dma.clone())).unwrap().remove(0);
        pci.enable();
        let world = Lockstep::new(machine.kernel_ref(), wire, made.workers, 1);
        Self { world, pci, machine }
    }

    fn run<R: Send + 'static>(&mut self, work: impl FnOnce(&Cpu<'_>, &PciDevice) -> R + Send + 'static) -> R {
        let (result, pci) = (Arc::new(Mutex::new(None)), self.pci.clone());
        let told = result.clone();
        let body = move |cpu: &Cpu<'_>| *told.lock().unwrap() = Some(work(cpu, &pci));
        assert_eq!(self.world.run(vec![Box::new(body)]), [Exit::Finished]);
        result.lock().unwrap().take().unwrap()
    }
}

/// What a closure makes of a machine of its own.
fn alone<R: Send + 'static>(work: impl FnOnce(&Cpu<'_>, &PciDevice) -> R + Send + 'static) -> R {
    Rig::new().run(work)
}

/// The same while every block of pages of at least this order fails.
fn without_pages<R: Send + 'static>(min_order: u8, work: impl FnOnce(&Cpu<'_>) -> R + Send + 'static) -> R {
    let mut attr = FaultAttr::new(Class::Page);
    (attr.probability, attr.times, attr.min_order) = (100, -1, min_order);
    (attr.ignore_gfp_wait, attr.ignore_gfp_highmem) = (false, false);
    let mut rig = Rig::new();
    rig.world.inject(FaultSpec::default().with(attr));
    rig.run(|cpu, _| work(cpu))
}

fn flag(set: bool) -> String {
    u8::from(set).to_string()
}

fn pointer<T, E>(result: &Result<T, E>) -> String {
    if result.is_ok() { "ptr" } else { "NULL" }.to_owned()
}

fn area_of(cpu: &Cpu<'_>, at: VirtAddr) -> VmArea {
    find_vm_area(cpu.kernel(), at).unwrap()
}

fn frames(cpu: &Cpu<'_>, buf: &VBuf) -> Vec<PhysAddr> {
    let pages = (buf.len() as u64).div_ceil(PAGE_SIZE);
    (0..pages).map(|page| vmalloc_to_page(cpu.kernel(), buf.virt().wrapping_add(page * PAGE_SIZE)).unwrap()).collect()
}

fn area(cpu: &Cpu<'_>, size: usize) -> Outputs {
    let made = vmalloc::vmalloc(cpu, size);
    let ret = pointer(&made);
    let buf = made.unwrap();
    let (area, frames) = (area_of(cpu, buf.virt()), frames(cpu, &buf));
    let pairs = frames.windows(2).filter(|pair| pair[1].get() == pair[0].get() + PAGE_SIZE).count();
    assert!(pairs < area.pages && buf.virt().get().is_multiple_of(PAGE_SIZE), "as properties");
    let above = frames.iter().filter(|page| page.get() >= FOUR_GIB).count();
    vec![
        ("ret", ret),
        ("page_aligned", flag(buf.virt().get().is_multiple_of(PAGE_SIZE))),
        ("nr_pages", frames.len().to_string()),
        ("area_size", area.size.to_string()),
        ("guard", (area.size - frames.len() as u64 * PAGE_SIZE).to_string()),
        ("pages_above_4g", above.to_string()),
        ("is_vmalloc", flag(is_vmalloc_addr(cpu.kernel(), buf.virt()))),
        ("virt_addr_valid", flag(virt_addr_valid(cpu.kernel(), buf.virt()))),
        ("flags", format!("{:#x}", area.flags)),
    ]
}

#[test]
fn golden_vmalloc() {
    let tally = AREAS.run(|row| {
        let size = row.number("size");
        alone(move |cpu, _| area(cpu, size))
    });
    assert_eq!((tally.rows, tally.explained), (7, 0));
}

/// The zone of the first page, as tables write it.
fn zone(cpu: &Cpu<'_>, buf: &VBuf) -> String {
    cpu.kernel().config().arch.zone_of(frames(cpu, buf)[0]).to_string()
}

/// The distances of three areas made one after the other.
fn gaps(cpu: &Cpu<'_>, sizes: [usize; 3]) -> Outputs {
    let held = sizes.map(|size| vmalloc::vmalloc(cpu, size).unwrap());
    let gap = |index: usize| held[index + 1].virt().get() - held[index].virt().get();
    for (index, size) in sizes.into_iter().enumerate().take(2) {
        assert!(gap(index) >= size as u64 + PAGE_SIZE && gap(index).is_multiple_of(PAGE_SIZE), "as a property");
    }
    vec![("gap_ab", gap(0).to_string()), ("gap_bc", gap(1).to_string())]
}

/// Whether an area made after another was freed lies where that was; `between` others stand behind it.
fn reused(cpu: &Cpu<'_>, between: bool) -> Outputs {
    let [first, middle] = [4096; 2].map(|size| vmalloc::vmalloc(cpu, size).unwrap());
    let last = between.then(|| vmalloc::vmalloc(cpu, 4096).unwrap());
    let at = middle.virt();
    drop(middle);
    let again = vmalloc::vmalloc(cpu, 4096).unwrap();
    let same = again.virt() == at;
    drop((first, last, again));
    vec![("addr_reused", flag(same))]
}

fn three_pages(cpu: &Cpu<'_>) -> Outputs {
    let pages = [0; 3].map(|order| alloc_pages(cpu, order, GFP_KERNEL).unwrap());
    let map = vmap(cpu, &pages.each_ref()).unwrap();
    let at = |page: u64| vmalloc_to_page(cpu.kernel(), map.virt().wrapping_add(page * PAGE_SIZE));
    let same = (0..3).zip(&pages).all(|(page, held)| at(page) == Some(held.phys()));
    let area = area_of(cpu, map.virt());
    vec![("area_pages", (area.size / PAGE_SIZE).to_string()), ("same_page", flag(same))]
}

/// `vzalloc` of pages that held something else before.
fn zeroed(cpu: &Cpu<'_>) -> Outputs {
    let mut dirty = vmalloc::vmalloc(cpu, 65536).unwrap();
    dirty.write_at(0, &[0xee; 65536]).unwrap();
    let before = frames(cpu, &dirty);
    drop(dirty);
    let clean = vzalloc(cpu, 65536).unwrap();
    assert!(frames(cpu, &clean).iter().any(|page| before.contains(page)), "pages that were dirty");
    let mut bytes = [1; 65536];
    clean.read_at(0, &mut bytes).unwrap();
    vec![("value", flag(bytes == [0; 65536]))]
}

fn misc(what: &str) -> Outputs {
    let null = |size: usize| alone(move |cpu, _| vec![("ret", pointer(&vmalloc::vmalloc(cpu, size)))]);
    let injected = |min_order: u8, size: usize| {
        without_pages(min_order, move |cpu| vec![("ret", pointer(&vmalloc::vmalloc(cpu, size)))])
    };
    match what {
        "vmalloc_0" => null(0),
        "vmalloc_1TiB" => null(1 << 40),
        "consecutive_4096_4096_8192" => alone(|cpu, _| gaps(cpu, [4096, 4096, 8192])),
        "consecutive_65536_65536_81920" => alone(|cpu, _| gaps(cpu, [65536, 65536, 81920])),
        "freed_middle_reused_at_once" => alone(|cpu, _| reused(cpu, true)),
        "realloc_after_free_same_hole" => alone(|cpu, _| reused(cpu, false)),
        "vzalloc_zero" => alone(|cpu, _| zeroed(cpu)),
        "vmalloc_32_zone" => alone(|cpu, _| vec![("value", zone(cpu, &vmalloc_32(cpu, 4096).unwrap()))]),
        "__vmalloc_GFP_ATOMIC" => alone(|cpu, _| vec![("ret", pointer(&__vmalloc(cpu, 4096, GFP_ATOMIC)))]),
        "__vmalloc_GFP_DMA" => alone(|cpu, _| {
            let buf = __vmalloc(cpu, 4096, GFP_KERNEL | GFP_DMA).unwrap();
            vec![("zone", zone(cpu, &buf))]
        }),
        "is_vmalloc_addr_of_kmalloc" => alone(|cpu, _| {
            let at = KBuf::kmalloc(cpu, 64, GFP_KERNEL).unwrap().virt();
            vec![("value", flag(is_vmalloc_addr(cpu.kernel(), at)))]
        }),
        // The lab's CPUs run on stacks of the host, which have no address here.
        "is_vmalloc_addr_of_stack" => vec![("value", "none".to_owned())],
        "is_vmalloc_addr_of_module_text" => alone(|cpu, _| {
            let at = VirtAddr::new(vmalloc::MODULES.start);
            let either = is_vmalloc_or_module_addr(cpu.kernel(), at);
            vec![("value", flag(is_vmalloc_addr(cpu.kernel(), at))), ("is_vmalloc_or_module", flag(either))]
        }),
        "vmalloc_1M_with_orders_ge1_failing" => injected(1, 1 << 20),
        "vmalloc_64K_with_all_pages_failing" => injected(0, 65536),
        "vmap_3" => alone(|cpu, _| three_pages(cpu)),
        _ => panic!("{what} is not computed"),
    }
}

#[test]
fn golden_vmalloc_misc() {
    let tally = MISC.run(|row| misc(row.get("what")));
    assert_eq!((tally.rows, tally.explained), (16, 2));
}

#[test]
fn golden_kvmalloc() {
    let tally = EITHER.run(|row| {
        let (size, mut gfp) = (row.number("size"), mask(row.get("gfp")));
        // The measuring module kept its atomic failures out of the log.
        gfp.set(__GFP_NOWARN, gfp == GFP_ATOMIC);
        let ret = alone(move |cpu, _| match kvmalloc(cpu, size, gfp) {
            Ok(KvBuf::Kmalloc(_)) => "kmalloc",
            Ok(KvBuf::Vmalloc(_)) => "vmalloc",
            Err(_) => "NULL",
        });
        vec![("ret", ret.to_owned())]
    });
    assert_eq!((tally.rows, tally.explained), (14, 0));
}

fn value(value: impl std::fmt::Display) -> Outputs {
    vec![("value", value.to_string())]
}

fn edu_row(cpu: &Cpu<'_>, pci: &PciDevice, what: &str) -> Outputs {
    let bar = pci.resource(0).unwrap();
    let regs = ioremap(cpu, bar.start, bar.len).unwrap();
    match what {
        "bar0" => vec![("len", format!("{:#x}", bar.len)), ("flags", format!("{:#x}", bar.flags))],
        "edu_id" => value(format_args!("{:#010x}", regs.readl(cpu, 0))),
        "edu_unmapped_reg_0x60" => value(format_args!("{:#010x}", regs.readl(cpu, 0x60))),
        "readb_of_32bit_only_reg" => value(format_args!("{:#04x}", regs.readb(cpu, 0))),
        "readq_of_32bit_only_reg" => value(format_args!("{:#018x}", regs.readq(cpu, 0))),
        "offset_in_page_kept" => {
            let inner = ioremap(cpu, bar.start.wrapping_add(4), 8).unwrap();
            let (kept, area) = (inner.virt().page_offset() == 4, area_of(cpu, inner.virt()));
            assert_eq!(inner.readl(cpu, 0), regs.readl(cpu, 4), "the same register");
            let lies = is_vmalloc_addr(cpu.kernel(), inner.virt());
            vec![("value", flag(kept)), ("area_size", area.size.to_string()), ("is_vmalloc", flag(lies))]
        }
        "same_range_twice" => {
            let second = ioremap(cpu, bar.start, 4096);
            let third = ioremap(cpu, bar.start, 4096).unwrap();
            let gap = third.virt().get() - second.as_ref().unwrap().virt().get();
            assert!(gap >= 8192 && gap.is_multiple_of(PAGE_SIZE), "as a property");
            vec![("ret", pointer(&second)), ("distinct", flag(gap != 0))]
        }
        "edu_liveness_via_other_mapping" => {
            let other = ioremap(cpu, bar.start, bar.len).unwrap();
            regs.writel(cpu, 4, 0x1234_5678);
            let [seen, expected] = [other.readl(cpu, 4), !0x1234_5678].map(|value| format!("{value:#010x}"));
            vec![("value", seen), ("expect", expected)]
        }
        "ioremap_wc_while_uc" => vec![("ret", pointer(&ioremap_wc(cpu, bar.start, bar.len)))],
        "ioremap_cache_while_uc" => vec![("ret", pointer(&ioremap_cache(cpu, bar.start, bar.len)))],
        _ => region_row(cpu, pci, what),
    }
}

fn region_row(cpu: &Cpu<'_>, pci: &PciDevice, what: &str) -> Outputs {
    let map = |at: u64, len: u64| vec![("ret", pointer(&ioremap(cpu, PhysAddr::new(at), len)))];
    let bar = pci.resource(0).unwrap();
    let _claims = pci.request_regions(cpu, "oracle_edu").unwrap();
    match what {
        "size_0" => map(bar.start.get(), 0),
        "wrapping_range" => map(u64::MAX - 4095, 8192),
        "phys_2^53" => map(1 << 53, 4096),
        "ram" => map(alloc_pages(cpu, 0, GFP_KERNEL).unwrap().phys().get(), 4096),
        "unassigned_phys" => map(0xd000_0000, 4096),
        "request_mem_region_already_owned" => {
            vec![("ret", pointer(&request_mem_region(cpu, bar.start, 4096, "other")))]
        }
        "request_mem_region_free" => {
            vec![("ret", pointer(&request_mem_region(cpu, PhysAddr::new(0xd000_0000), 4096, "other")))]
        }
        "pci_request_regions_twice" => {
            let rc = pci.request_regions(cpu, "oracle_edu").as_ref().map_or_else(PciError::errno, |_| 0);
            vec![("rc", rc.to_string())]
        }
        _ => panic!("{what} is not computed"),
    }
}

#[test]
fn golden_ioremap() {
    let tally = REGISTERS.run(|row| {
        let what = row.get("what").to_owned();
        alone(move |cpu, pci| edu_row(cpu, pci, &what))
    });
    assert_eq!((tally.rows, tally.explained), (18, 0));
}

const MESSAGES: &str = include_str!("messages.tsv");

/// What was measured of a probe: its lines without numbers that vary, without stacks and memory summaries.
fn measured(probe: &str) -> Vec<&'static str> {
    let rows = MESSAGES.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>());
    let of_probe = rows.filter(|row| row[0] == "main" || row[0] == "dma").filter(|row| row[1] == probe);
    let lines: Vec<_> = of_probe.map(|row| row[3]).collect();
    assert!(!lines.is_empty(), "{probe} was not measured");
    lines
        .into_iter()
        .filter(|line| !["WARNING", "Mem-Info", "(nothing"].iter().any(|no| line.starts_with(no)))
        .collect()
}

/// The log since `from`, written as the table is: addresses that vary are an @.
fn said(machine: &Machine, from: usize) -> Vec<String> {
    let lines = machine.kernel().log().lines().into_iter().skip(from);
    let words = |text: String| {
        let hidden = |word: &str| {
            let digits = word.trim_start_matches("0x");
            digits.len() >= 8 && digits.chars().all(|digit| digit.is_ascii_hexdigit()) && digits != "20000000000000"
        };
        let mut out = String::new();
        for piece in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
            let word = piece.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            let hide = hidden(word) && !word.chars().all(|digit| digit.is_ascii_digit() && !word.starts_with("0x"));
            let prefix = if word.starts_with("0x") { "0x" } else { "" };
            out += &if hide { format!("{prefix}@{}", &piece[word.len()..]) } else { piece.to_owned() };
        }
        // Tasks and devices have other names.
        out.replace("driver: ", "insmod: ")
            .replace("0000:00:01.0: rej", "oracle_edu 0000:00:04.0: rej")
            .replace("oracle_edu 0000:00:01.0", "oracle_edu 0000:00:04.0")
    };
    lines.map(|line| words(line.text)).collect()
}

fn probe(cpu: &Cpu<'_>, pci: &PciDevice, probe: &str) {
    let made = || vmalloc::vmalloc(cpu, 16384).unwrap().into_raw();
    let map = |at: u64, len: u64| drop(ioremap(cpu, PhysAddr::new(at), len));
    match probe {
        "vmalloc_huge" => drop(vmalloc::vmalloc(cpu, 1 << 40)),
        "vmalloc_huge_nowarn" => drop(__vmalloc(cpu, 1 << 40, GFP_KERNEL | __GFP_NOWARN)),
        "vfree_bad_address" => misuse::vfree(cpu, made().wrapping_add(16)),
        "vfree_unknown_page" => misuse::vfree(cpu, made().wrapping_add(4096)),
        "vfree_twice" => {
            let at = made();
            (0..2).for_each(|_| misuse::vfree(cpu, at));
        }
        "ioremap_wrap" => map(u64::MAX - 4095, 8192),
        "ioremap_above_phys_mask" => map(1 << 53, 4096),
        "ioremap_ram" => map(alloc_pages(cpu, 0, GFP_KERNEL).unwrap().phys().get(), 4096),
        "ioremap_hole" => map(0xd000_0000, 4096),
        "iounmap_twice" => {
            let window = ioremap(cpu, pci.resource(0).unwrap().start, 4096).unwrap();
            iomem::misuse::iounmap(cpu, &window);
            iounmap(cpu, window);
        }
        "pci_request_regions_busy" => {
            let _claims = pci.request_regions(cpu, "oracle_edu").unwrap();
            assert!(pci.request_regions(cpu, "oracle_edu").is_err());
        }
        "release_region_bad" => iomem::misuse::release_mem_region(cpu, PhysAddr::new(0xd000_0000), 4096),
        "map_vmalloc" => {
            let buf = vmalloc::vmalloc(cpu, 4096).unwrap();
            assert!(misuse::map_single(cpu, pci.dma(), buf.virt(), 64).is_err());
        }
        _ => panic!("{probe} is not computed"),
    }
}

/// What the kernel's log says, line by line.
#[test]
fn golden_messages_of_areas_and_registers() {
    let probes = [
        "vmalloc_huge",
        "vmalloc_huge_nowarn",
        "vfree_bad_address",
        "vfree_unknown_page",
        "vfree_twice",
        "ioremap_wrap",
        "ioremap_above_phys_mask",
        "ioremap_ram",
        "ioremap_hole",
        "iounmap_twice",
        "pci_request_regions_busy",
        "release_region_bad",
        "map_vmalloc",
    ];
    for name in probes {
        let mut rig = Rig::new();
        let before = rig.machine.kernel().log().lines().len();
        rig.run(move |cpu, pci| probe(cpu, pci, name));
        assert_eq!(said(&rig.machine, before), measured(name), "{name}");
    }
}
