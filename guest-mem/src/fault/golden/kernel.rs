//! The world in which the rows' calls are made, and the rows of several allocators; the files of debugfs.

use std::cell::RefCell;
use std::sync::Arc;

use super::*;
use crate::addr::PhysAddr;
use crate::devres::Devres;
use crate::dma::swiotlb::{Pool, SLOT_SIZE};
use crate::dma::{DmaDevice, ToDevice, dma_bit_mask, dma_pool_create};
use crate::env::{Env, IrqHandler, Key, Point, Ticket, Verdict, Wake};
use crate::finding::Finding;
use crate::iomem::ioremap;
use crate::iospace::{IoSpace, Width};
use crate::kvmalloc::kvmalloc;
use crate::mempool::mempool_create_kmalloc_pool;
use crate::percpu::alloc_percpu;
use crate::vmalloc::vmalloc;

const FAIL_OTHERS: &str = include_str!("../../../../tests/golden/fail_others.tsv");
const DEBUGFS: &str = include_str!("../../../../tests/golden/debugfs_defaults.tsv");

/// A world of one CPU and one injector, asked with the draw least likely to fail: no row depends on chance.
pub(super) struct World {
    spec: RefCell<FaultSpec>,
    marked: bool,
    messages: RefCell<Vec<Message>>,
}

impl Env for World {
    fn now(&self) -> u64 {
        0
    }

    fn prepare(&self, _: Key) -> Ticket {
        Ticket::new(0)
    }

    fn park(&self, _: Ticket, _: Option<u64>) -> Wake {
        Wake::Woken
    }

    fn wake(&self, _: Key, _: usize) {}

    fn take_irq(&self) -> Option<Arc<dyn IrqHandler>> {
        None
    }

    fn point(&self, point: Point) -> Verdict {
        let caller = if self.marked { Caller::MarkedTask } else { point.request.caller };
        let forced = self.spec.borrow_mut().inject(&point.request.by(caller), &mut || u32::MAX);
        self.messages.borrow_mut().extend(forced.and_then(|forced| forced.message));
        if forced.is_some() { Verdict::Fail } else { Verdict::Pass }
    }

    fn emit(&self, finding: Finding) {
        // One row asks for more than there is, which Linux warns of too.
        assert_eq!(finding.kind.name(), "order-too-large", "{finding:?}");
    }
}

impl World {
    /// The world of this injector; its task has `make-it-fail` set if `marked`.
    pub(super) fn new(attr: FaultAttr, marked: bool) -> Self {
        Self { spec: FaultSpec::default().with(attr).into(), marked, messages: RefCell::default() }
    }

    /// A world in which nothing fails.
    pub(super) fn calm() -> Self {
        Self { spec: RefCell::default(), marked: false, messages: RefCell::default() }
    }

    /// What became of the injector.
    pub(super) fn attr(&self) -> FaultAttr {
        self.spec.borrow().attrs()[0].clone()
    }

    /// The messages so far.
    pub(super) fn messages(&self) -> Vec<Message> {
        self.messages.borrow().clone()
    }

    /// The lines of the log so far.
    pub(super) fn lines(&self) -> Vec<String> {
        self.messages()
            .iter()
            .flat_map(|message| message.to_string().lines().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }
}

/// A bus that nobody answers on.
struct Nothing;

impl IoSpace for Nothing {
    fn read(&self, _: PhysAddr, width: Width) -> u64 {
        width.ones()
    }

    fn write(&self, _: PhysAddr, _: Width, _: u64) {}
}

/// Makes the call that a row names on a 6 GiB machine; what it returned.
fn call(machine: &Machine, name: &str, world: &World) -> &'static str {
    let calm = World::calm();
    let (calm, cpu) = (Cpu::new(0, machine.kernel_ref(), &calm), Cpu::new(0, machine.kernel_ref(), world));
    let device = DmaDevice::new(machine.kernel_ref(), "edu");
    device.set_mask_and_coherent(&calm, dma_bit_mask(32)).unwrap();
    // The measured kernel has a slab of this cache long since.
    let _slab = KBuf::kmalloc(&calm, 100, GFP_KERNEL).unwrap();
    match name {
        "alloc_pages_o0" => alloc_pages(&cpu, 0, GFP_KERNEL).map_or("NULL", |_| "ptr"),
        "kmalloc_100" | "kstrdup" => KBuf::kmalloc(&cpu, 100, GFP_KERNEL).map_or("NULL", |_| "ptr"),
        "vmalloc_64K" => vmalloc(&cpu, 65536).map_or("NULL", |_| "ptr"),
        "kvmalloc_64K" => kvmalloc(&cpu, 65536, GFP_KERNEL).map_or("NULL", |_| "ptr"),
        "ioremap" => {
            machine.kernel().set_io_space(Arc::new(Nothing));
            ioremap(&cpu, PhysAddr::new(0xfea0_0000), 4096).map_or("NULL", |_| "ptr")
        }
        "devm_kmalloc_100" => Devres::default().kmalloc(&cpu, 100, GFP_KERNEL).map_or("NULL", |_| "ptr"),
        "dmam_alloc_coherent_4K" => {
            Devres::default().alloc_coherent(&cpu, &device, 4096, GFP_KERNEL).map_or("NULL", |_| "ptr")
        }
        "mempool_create" => {
            let _warm = mempool_create_kmalloc_pool(&calm, 4, 100).unwrap();
            mempool_create_kmalloc_pool(&cpu, 4, 100).map_or("NULL", |_| "ptr")
        }
        "mempool_alloc_KERNEL" => {
            let pool = mempool_create_kmalloc_pool(&calm, 4, 100).unwrap();
            let element = pool.alloc(&cpu, GFP_KERNEL).ok();
            let got = if element.is_some() { "ptr" } else { "NULL" };
            pool.free(&calm, element);
            got
        }
        "alloc_percpu_64" => alloc_percpu::<[u64; 8]>(&cpu).map_or("NULL", |_| "ptr"),
        "dma_alloc_coherent_4K" => device.alloc_coherent(&cpu, 4096, GFP_KERNEL).map_or("NULL", |_| "ptr"),
        "kmem_cache_create" => {
            let cache = kmem_cache_create(&cpu, "oracle_fo2", 123, 0, SlabFlags::empty(), None);
            cache.map_or("NULL", |_| "ptr")
        }
        "dma_pool_create" => dma_pool_create(&cpu, "oracle_fo", &device, 64, 8, 0).map_or("NULL", |_| "ptr"),
        "dma_pool_alloc" => {
            let pool = dma_pool_create(&calm, "oracle_fo", &device, 64, 8, 0).unwrap();
            pool.alloc(&cpu, GFP_KERNEL).map_or("NULL", |_| "ptr")
        }
        "dma_map_single_bounced" => {
            let high = KBuf::kmalloc(&calm, 2048, GFP_KERNEL).unwrap();
            device.map_single::<ToDevice>(&cpu, high).map_or("error", |mapped| {
                assert!(mapped.bounced(), "a buffer above 4 GiB must bounce");
                drop(mapped.unmap(&cpu));
                "ok"
            })
        }
        _ => panic!("no such row: {name}"),
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
        let (world, before) = (World::new(attr, false), log_of(&machine).len());
        assert_eq!(call(&machine, name, &world), row.get("ret"), "{key}");
        let probe = match name {
            "dma_map_single_bounced" => "inj_dma_map_single".to_owned(),
            _ => format!("inj_{injector}_{name}"),
        };
        let lines = [world.lines(), log_of(&machine)[before..].to_vec()].concat();
        messages.set(messages.get() + said(&probe, &lines));
    };
    let key = |row: &Row<'_>| format!("{} {}", row.get("injector"), row.get("call"));
    assert_eq!(compare("fail_others", FAIL_OTHERS, key, check), 23);
    assert_eq!(messages.get(), 18, "calls whose messages were compared");
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
            (None, name) if directory == "dma-api" => {
                let files = crate::dma::debugfs::files(machine.kernel());
                files.into_iter().find(|file| file.0 == name).unwrap().1
            }
            _ => panic!("{file} is not compared"),
        };
        assert_eq!(value, row.get("value"), "{file}");
    };
    assert_eq!(compare("debugfs_defaults", DEBUGFS, |row| row.get("file").into(), check), 31);
    // The other way round: nothing is offered that Linux doesn't have there; fail-nth lives in /proc.
    for class in [Class::Slab, Class::Page] {
        for attribute in Attribute::ALL {
            let there = seen.borrow().contains(&(class, attribute)) || attribute == Attribute::FailNth;
            assert_eq!(attribute.applies_to(class), there, "{class} {attribute}");
        }
    }
}
