//! Rows that need a whole kernel: real calls under one of Linux's injectors, and the files of debugfs.

use std::cell::RefCell;
use std::sync::Arc;

use super::*;
use crate::cpu::Cpu;
use crate::dma::swiotlb::{Pool, SLOT_SIZE};
use crate::dma::{DmaDevice, ToDevice, dma_bit_mask};
use crate::env::{Env, IrqHandler, Key, Point, Ticket, Verdict, Wake};
use crate::finding::Finding;
use crate::kbuf::KBuf;
use crate::kernel::{Machine, MachineConfig};
use crate::page::alloc_pages;

const FAIL_OTHERS: &str = include_str!("../../../../tests/golden/fail_others.tsv");
const DEBUGFS: &str = include_str!("../../../../tests/golden/debugfs_defaults.tsv");

/// A world of one CPU with one of Linux's injectors, which knows the mask that the next call brings.
struct World {
    attr: RefCell<FaultAttr>,
    gfp: Gfp,
    messages: RefCell<Vec<String>>,
}

impl Env for World {
    fn now(&self) -> u64 {
        0
    }

    fn prepare(&self, _: Key) -> Ticket {
        Ticket { number: 0, irqs_off: false }
    }

    fn park(&self, _: Ticket, _: Option<u64>) -> Wake {
        Wake::Woken
    }

    fn wake(&self, _: Key, _: usize) {}

    fn take_irq(&self) -> Option<Arc<dyn IrqHandler>> {
        None
    }

    fn point(&self, point: Point) -> Verdict {
        let request = match point.class {
            // In Linux coherent memory is pages and has no injector of its own.
            Class::Page | Class::Coherent => Request::pages(u8::try_from(point.detail).unwrap(), self.gfp),
            Class::Slab => Request::kmalloc(usize::try_from(point.detail).unwrap(), self.gfp, None).unwrap(),
            _ => return Verdict::Pass,
        };
        let (failed, message) = ask(&mut self.attr.borrow_mut(), Some(request));
        self.messages.borrow_mut().extend(message.iter().flat_map(lines_of));
        if failed { Verdict::Fail } else { Verdict::Pass }
    }

    fn emit(&self, finding: Finding) {
        panic!("{finding:?}");
    }
}

impl World {
    fn new(attr: FaultAttr) -> Self {
        Self { attr: attr.into(), gfp: GFP_KERNEL, messages: RefCell::default() }
    }
}

/// Makes the call that a row names on a 6 GiB machine; what it returned.
fn call(machine: &Machine, name: &str, world: &World) -> &'static str {
    let calm = World::new(FaultAttr::new(Class::Slab));
    let (calm, cpu) = (Cpu::new(0, machine.kernel_ref(), &calm), Cpu::new(0, machine.kernel_ref(), world));
    let device = DmaDevice::new(machine.kernel_ref(), "edu");
    device.set_mask_and_coherent(&calm, dma_bit_mask(32)).unwrap();
    match name {
        "alloc_pages_o0" => alloc_pages(&cpu, 0, GFP_KERNEL).map_or("NULL", |_| "ptr"),
        "kmalloc_100" | "kstrdup" => KBuf::kmalloc(&cpu, 100, GFP_KERNEL).map_or("NULL", |_| "ptr"),
        "dma_alloc_coherent_4K" => device.alloc_coherent(&cpu, 4096, GFP_KERNEL).map_or("NULL", |_| "ptr"),
        "dma_map_single_bounced" => {
            let high = KBuf::kmalloc(&calm, 2048, GFP_KERNEL).unwrap();
            device.map_single::<ToDevice>(&cpu, high).map_or("error", |mapped| {
                assert!(mapped.bounced(), "a buffer above 4 GiB must bounce");
                drop(mapped.unmap(&cpu));
                "ok"
            })
        }
        _ => panic!("{name} neither runs nor waits"),
    }
}

#[test]
fn fail_others() {
    let machine = Machine::acquire(MachineConfig::default()).unwrap();
    let messages = Cell::new(0);
    let check = |row: &Row<'_>, key: &str| {
        let (injector, name) = (row.get("injector"), row.get("call"));
        let class = if injector == "failslab" { Class::Slab } else { Class::Page };
        let mut attr = FaultAttr { probability: 100, times: -1, min_order: 0, ..FaultAttr::new(class) };
        (attr.ignore_gfp_wait, attr.ignore_gfp_highmem) = (false, false);
        let world = World::new(attr);
        assert_eq!(call(&machine, name, &world), row.get("ret"), "{key}");
        let probe = match name {
            "dma_map_single_bounced" => "inj_dma_map_single".to_owned(),
            _ => format!("inj_{injector}_{name}"),
        };
        messages.set(messages.get() + said(&probe, &world.messages.borrow()));
    };
    let key = |row: &Row<'_>| format!("{} {}", row.get("injector"), row.get("call"));
    assert_eq!(compare("fail_others", FAIL_OTHERS, key, check), 7);
    assert_eq!(messages.get(), 7, "calls whose messages were compared");
}

#[test]
fn debugfs_defaults() {
    let machine = Machine::acquire(MachineConfig::default()).unwrap();
    let pool = |what: fn(&Pool) -> u64| machine.kernel().swiotlb.lock().as_ref().map(what).unwrap();
    let seen = RefCell::new(Vec::new());
    let check = |row: &Row<'_>, file: &str| {
        let (directory, name) = file.split_once('/').unwrap();
        let value = match (Class::ALL.into_iter().find(|class| injector(*class) == directory), name) {
            (Some(_), "verbose_ratelimit_burst") => VERBOSE_RATELIMIT_BURST.to_string(),
            (Some(_), "verbose_ratelimit_interval_ms") => VERBOSE_RATELIMIT_INTERVAL_MS.to_string(),
            (Some(class), name) => {
                let attribute = Attribute::named(name).unwrap();
                assert!(attribute.applies_to(class), "{file}");
                seen.borrow_mut().push((class, attribute));
                FaultAttr::new(class).show(attribute)
            }
            (None, "io_tlb_nslabs") => (pool(|pool| pool.bytes()) / SLOT_SIZE).to_string(),
            (None, "io_tlb_used") => pool(|pool| pool.stats().used.into()).to_string(),
            _ => panic!("{file} is neither compared nor waits"),
        };
        assert_eq!(value, row.get("value"), "{file}");
    };
    assert_eq!(compare("debugfs_defaults", DEBUGFS, |row| row.get("file").into(), check), 23);
    // The other way round: nothing is offered that Linux doesn't have there; fail-nth lives in /proc.
    for class in [Class::Slab, Class::Page] {
        for attribute in Attribute::ALL {
            let there = seen.borrow().contains(&(class, attribute)) || attribute == Attribute::FailNth;
            assert_eq!(attribute.applies_to(class), there, "{class} {attribute}");
        }
    }
}
