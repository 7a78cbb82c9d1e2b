//! Every public call of this crate that takes a `&Cpu`, made from each context: a finding or none, as the table says.
//!
//! Memory is plentiful throughout, so nothing really sleeps: who may not call is told all the same. The sources are read
//! for `pub fn`s, so a new call without a row is red, and so is one whose documentation doesn't say where it may come
//! from. What a call is made on is made beforehand by another CPU, in process context: only the call itself is told.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::devres::Devres;
use crate::dma::pool::{Block, DmaPool, dma_pool_create, dma_pool_free};
use crate::dma::posted::Posting;
use crate::dma::{Attrs, Dir, DmaDevice, Resource, SgTable, ToDevice, misuse};
use crate::env::{Class, IrqReturn};
use crate::gfp::{GFP_ATOMIC, GFP_KERNEL, Gfp};
use crate::iomem::IoMem;
use crate::iospace::{IoSpace, Width};
use crate::irq::{IrqFlags, IrqThread};
use crate::kmem_cache::{KmemCache, SlabFlags};
use crate::lock::{Mutex, SpinLock};
use crate::mempool::{Kmalloc, Mempool};
use crate::page::Pages;
use crate::percpu::PerCpu;
use crate::reclaim::{ShrinkControl, Shrinker};
use crate::softirq::Softirq;
use crate::tasklet::Tasklet;
use crate::testing::{Lab, handler};
use crate::timer::{Timer, TimerCallback};
use crate::trace::Kind;
use crate::vmalloc::VBuf;
use crate::wait::{Completion, WaitQueue};
use crate::workqueue::{DelayedWork, Work, Workqueue};
use crate::{
    KBuf, PhysAddr, VirtAddr, iomem, irq, kmalloc, kmap, kmem_cache, kthread, kvmalloc, lock, mempool, page, percpu,
    reclaim, vmalloc, wait,
};

mod dma;
mod memory;
mod own;
mod services;

/// From where a call may come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum From {
    Anywhere,
    /// It may sleep.
    Process,
    /// It may sleep with a mask that lets it.
    ByMask,
    /// The same, and not where interrupts are off.
    ByMaskIrqsOn,
    /// Not where interrupts are off.
    IrqsOn,
    /// Not in a handler.
    NotHardirq,
    /// Not in a handler or softirq.
    Task,
    /// Not in a handler or softirq, nor with softirqs off.
    NotInterrupt,
    /// A task that may sleep, or where Linux leaves it to a worker.
    Vfree,
    /// Where the task can't be moved to another CPU.
    Pinned,
}

impl From {
    fn allows(self, context: Context, gfp: Gfp) -> bool {
        use Context::{BhOff, Hardirq, IrqsOff, Process, RcuRead, Softirq};
        let irqs_on = !matches!(context, IrqsOff | Hardirq);
        match self {
            Self::Anywhere => true,
            Self::Process => context == Process,
            Self::ByMask => context == Process || !gfp.may_sleep(),
            Self::ByMaskIrqsOn => context == Process || (irqs_on && !gfp.may_sleep()),
            Self::IrqsOn => irqs_on,
            Self::NotHardirq => context != Hardirq,
            Self::Task => !matches!(context, Softirq | Hardirq),
            Self::NotInterrupt => !matches!(context, BhOff | Softirq | Hardirq),
            Self::Vfree => matches!(context, Process | BhOff | Softirq | Hardirq),
            Self::Pinned => !matches!(context, Process | RcuRead),
        }
    }
}

/// Where registers might be.
const REGISTERS: PhysAddr = PhysAddr::new(0xf000_0000);

/// What the calls are made on, and who made it.
struct Set<'w> {
    calm: Cpu<'w>,
    gfp: Gfp,
    device: DmaDevice,
    spin: SpinLock<()>,
    mutex: Mutex<()>,
    devres: Devres,
    pages: Pages,
    cache: KmemCache,
    pool: Mempool<Kmalloc>,
    each: PerCpu<u64>,
    area: VBuf,
    window: IoMem,
    blocks: DmaPool,
}

impl<'w> Set<'w> {
    fn new(lab: &'w Lab, gfp: Gfp) -> Self {
        let calm = lab.cpu_number(1);
        lab.kernel().set_io_space(Arc::new(Nothing));
        let device = lab.device(64);
        Self {
            gfp,
            spin: SpinLock::new(()),
            mutex: Mutex::new(()),
            devres: Devres::default(),
            pages: page::alloc_pages(&calm, 0, GFP_KERNEL).unwrap(),
            cache: new_cache(&calm),
            pool: new_pool(&calm),
            each: percpu::alloc_percpu(&calm).unwrap(),
            area: vmalloc::vmalloc(&calm, 64).unwrap(),
            window: iomem::ioremap(&calm, REGISTERS, 64).unwrap(),
            blocks: dma_pool_create(&calm, "table", &device, 64, 0, 0).unwrap(),
            device,
            calm,
        }
    }

    fn buf(&self) -> KBuf {
        KBuf::kmalloc(&self.calm, 64, GFP_KERNEL).unwrap()
    }

    fn coherent(&self) -> crate::dma::Coherent {
        self.device.alloc_coherent(&self.calm, 64, GFP_KERNEL).unwrap()
    }

    fn raw(&self) -> crate::dma::RawMapping {
        misuse::map_single(&self.calm, &self.device, &self.buf(), Dir::ToDevice).unwrap()
    }

    fn dma_pool(&self) -> DmaPool {
        dma_pool_create(&self.calm, "table", &self.device, 64, 0, 0).unwrap()
    }

    fn block(&self) -> Block {
        self.blocks.alloc(&self.calm, GFP_KERNEL).unwrap()
    }

    fn list(&self) -> SgTable {
        SgTable::of(&self.calm, &self.buf())
    }

    fn window(&self) -> IoMem {
        iomem::ioremap(&self.calm, REGISTERS, 64).unwrap()
    }

    /// A variable on a thread's stack.
    fn stack(&self, call: impl FnOnce(&kthread::OnStack<'_>)) {
        kthread::Current::with_stack(&self.calm, |current| call(&current.on_stack(8).unwrap()));
    }
}

fn new_cache(cpu: &Cpu<'_>) -> KmemCache {
    kmem_cache::kmem_cache_create(cpu, "table", 64, 0, SlabFlags::empty(), None).unwrap()
}

fn new_pool(cpu: &Cpu<'_>) -> Mempool<Kmalloc> {
    mempool::mempool_create_kmalloc_pool(cpu, 2, 64).unwrap()
}

/// What is called and has nothing to do.
struct Nothing;

impl IoSpace for Nothing {
    fn read(&self, _: PhysAddr, _: Width) -> u64 {
        0
    }

    fn write(&self, _: PhysAddr, _: Width, _: u64) {}
}

impl TimerCallback for Nothing {
    fn expired(&self, _: &Cpu<'_>) {}
}

impl IrqThread for Nothing {
    fn thread(&self, _: &Cpu<'_>) -> IrqReturn {
        IrqReturn::None
    }
}

impl Shrinker for Nothing {
    fn name(&self) -> &'static str {
        "nothing"
    }

    fn count_objects(&self, _: &Cpu<'_>, _: ShrinkControl) -> u64 {
        0
    }

    fn scan_objects(&self, _: &Cpu<'_>, _: ShrinkControl) -> Option<u64> {
        None
    }
}

/// File, function, from where it may come, and the call; a function of the same name in the same file follows its own.
type Row = (&'static str, &'static str, From, fn(&Set<'_>, &Cpu<'_>));

/// Calls without a row, each with the reason.
const NONE: &[(&str, &str, &str)] = &[
    ("cpu.rs", "idle", "it ends with its world"),
    ("dma/misuse.rs", "map_none", "it stops the CPU, from anywhere"),
    ("dma/misuse.rs", "null_dereference", "it stops the CPU, from anywhere"),
];

fn calls() -> impl Iterator<Item = &'static Row> {
    [dma::CALLS, memory::CALLS, own::CALLS, services::CALLS].into_iter().flatten()
}

/// Whatever a call gave.
fn ignore<T>(_given: T) {}

const PLACES: [Context; 7] = [
    Context::Process,
    Context::RcuRead,
    Context::PreemptOff,
    Context::BhOff,
    Context::IrqsOff,
    Context::Softirq,
    Context::Hardirq,
];

/// Goes where `context` is, makes the call, and comes back.
fn from(context: Context, set: &Set<'_>, cpu: &Cpu<'_>, call: fn(&Set<'_>, &Cpu<'_>)) {
    let (_rcu, _preempt, _bh, _irqs, _level);
    match context {
        Context::Process => {}
        Context::RcuRead => _rcu = cpu.rcu_read_lock(),
        Context::PreemptOff => _preempt = cpu.preempt_disable(),
        Context::BhOff => _bh = cpu.local_bh_disable(),
        Context::IrqsOff => _irqs = cpu.local_irq_save(),
        Context::Softirq => _level = cpu.level(SOFTIRQ),
        Context::Hardirq => _level = cpu.level(HARDIRQ),
    }
    assert_eq!(cpu.context(), context);
    call(set, cpu);
}

const TOLD: [&str; 4] = ["sleep-in-atomic", "wrong-context", "vmalloc-in-interrupt", "preemptible"];

#[test]
fn a_call_from_the_wrong_place_is_told_and_no_other() {
    let mut wrong = Vec::new();
    for &(file, name, allowed, call) in calls() {
        let masks =
            if format!("{allowed:?}").starts_with("ByMask") { &[GFP_KERNEL, GFP_ATOMIC][..] } else { &[GFP_KERNEL] };
        for (&gfp, context) in masks.iter().flat_map(|gfp| PLACES.map(|context| (gfp, context))) {
            let lab = Lab::new();
            let cpu = lab.cpu();
            let set = Set::new(&lab, gfp);
            from(context, &set, &cpu, call);
            let told = lab.findings().iter().any(|name| TOLD.contains(name));
            if told == allowed.allows(context, gfp) {
                wrong.push(format!("{file} {name} {context}, {gfp}: told {told}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The `pub fn`s of a source that take a CPU or, in the CPU's own files, are its methods; and whether their documentation
/// says from where they may come.
fn calls_of(file: &str, text: &str) -> Vec<(String, bool)> {
    let own = ["cpu.rs", "cpu/context.rs", "cpu/memalloc.rs", "softirq.rs"].contains(&file);
    let mut found = Vec::new();
    for (at, _) in text.match_indices("pub fn ") {
        let rest = &text[at + 7..];
        let (name, head) = (rest.split(['(', '<']).next().unwrap(), rest.split('{').next().unwrap());
        let arguments = head.split("->").next().unwrap();
        if arguments.contains("cpu: &") || (own && (arguments.contains("(&self") || arguments.contains("(self"))) {
            let before = text[..at].trim_end().lines().rev().map(str::trim);
            let docs = before.take_while(|line| line.starts_with("///") || line.starts_with("#["));
            let mut docs: Vec<_> = docs.collect();
            docs.reverse();
            let says = ["ontext", "nterrupts on", "Not in ", "Not from "];
            let docs = docs.join(" ");
            let told = says.iter().any(|word| docs.contains(word));
            // The methods of Cpu may come from anywhere unless they say otherwise, as it says.
            found.push((name.to_owned(), told || file == "cpu.rs"));
        }
    }
    found
}

#[test]
fn every_public_call_with_a_cpu_has_a_row_and_says_where_it_may_come_from() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let known: BTreeSet<_> = calls().map(|row| (row.0, row.1)).chain(NONE.iter().map(|n| (n.0, n.1))).collect();
    let (mut folders, mut seen, mut missing) = (vec![root.clone()], BTreeSet::new(), Vec::new());
    let mut silent = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let file = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            let of_tests = ["tests.rs", "testing.rs", "golden", "context/table", "property.rs", "million.rs"];
            if path.is_dir() {
                folders.push(path);
            } else if !of_tests.iter().any(|part| file.contains(part)) {
                for (name, told) in calls_of(&file, &fs::read_to_string(&path).unwrap()) {
                    if !known.contains(&(file.as_str(), name.as_str())) {
                        missing.push(format!("{file} {name}"));
                    }
                    if !told {
                        silent.push(format!("{file} {name}"));
                    }
                    seen.insert((file.clone(), name));
                }
            }
        }
    }
    let gone: Vec<_> = known.iter().filter(|(file, name)| !seen.contains(&((*file).into(), (*name).into()))).collect();
    assert!(missing.is_empty() && gone.is_empty(), "rows are missing for {missing:#?}, and name nothing: {gone:#?}");
    assert!(silent.is_empty(), "their documentation doesn't say from where they may come: {silent:#?}");
    assert!(seen.len() > 200, "{} calls were found", seen.len());
}
