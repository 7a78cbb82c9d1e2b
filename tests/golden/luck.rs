//! What Linux does by luck, or after a crime: whose name a cache gets, and what still works when its lists are broken.

use lowzone_guest_mem::dma::misuse;
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::kernel::MachineConfig;
use lowzone_guest_mem::kmalloc::kmalloc;
use lowzone_guest_mem::kmem_cache::{Construct, Ctor, SlabFlags, kmem_cache_create};
use lowzone_guest_mem::lock::Locked;
use lowzone_guest_mem::tasklet::Tasklet;
use lowzone_guest_mem::vmalloc::{vfree, vmalloc};
use lowzone_guest_mem::{Cpu, KBuf, stats};

use crate::calm::on;
use crate::contexts::on_cpu;
use crate::table::{Golden, Outputs};

const MERGE: Golden = Golden {
    name: "cache_merge",
    text: include_str!("cache_merge.tsv"),
    inputs: &["boot", "step"],
    compare: &["name", "refcount", "same_as_kmalloc128", "same_as_first", "object_size", "inuse", "size"],
};
const CRASH: Golden = Golden {
    name: "crash",
    text: include_str!("crash.tsv"),
    inputs: &["boot", "what"],
    compare: &["a_eq_b", "b_eq_c", "a_eq_p", "ok"],
};

fn flag(value: bool) -> String {
    u8::from(value).to_string()
}

/// Which cache holds an object.
fn holder(cpu: &Cpu<'_>, object: &KBuf) -> Option<&'static str> {
    cpu.kernel().object_at(object.phys()).unwrap().cache
}

/// A cache as the row's step asks for it; the measured program called them by number.
fn cache(cpu: &Cpu<'_>, step: &str, number: usize) -> Outputs {
    let names =
        ["oracle_m0", "oracle_m1", "oracle_m2", "oracle_m3", "oracle_m4", "oracle_m5", "oracle_m6", "oracle_m7"];
    let (size, kind) = step.split_once('_').unwrap();
    let ctor: Option<Ctor> = (kind == "ctor").then(|| -> Ctor { std::sync::Arc::new(|_: &mut Construct<'_>| {}) });
    let flags = match kind {
        "hwalign" => SlabFlags::HWCACHE_ALIGN,
        "dma" => SlabFlags::CACHE_DMA,
        _ => SlabFlags::empty(),
    };
    let create = |name, size, flags, ctor| kmem_cache_create(cpu, name, size, 0, flags, ctor).unwrap();
    let first = create(names[0], 128, SlabFlags::empty(), None);
    let cache = create(names[number], size.parse().unwrap(), flags, ctor);
    let (object, of_first) = (cache.alloc(cpu, GFP_KERNEL).unwrap(), first.alloc(cpu, GFP_KERNEL).unwrap());
    let plain = kmalloc(cpu, 128, GFP_KERNEL).unwrap();
    let users = cpu.kernel().slab_stats().iter().filter(|stats| stats.cache == cache.name()).count();
    vec![
        ("name", cache.name().to_owned()),
        ("refcount", users.to_string()),
        ("same_as_kmalloc128", flag(holder(cpu, &object) == holder(cpu, &plain))),
        ("same_as_first", flag(holder(cpu, &object) == holder(cpu, &of_first))),
        ("object_size", cache.geometry().object_size.to_string()),
        ("inuse", cache.geometry().inuse.to_string()),
        ("size", cache.geometry().size.to_string()),
    ]
}

#[test]
fn golden_cache_merge() {
    let mut number = 0;
    MERGE.run(|row| {
        number += 1;
        on(MachineConfig::default(), |cpu| cache(cpu, row.get("step"), number))
    });
}

#[test]
fn golden_crash() {
    CRASH.run(|row| match row.get("what") {
        "badpage_survived" => {
            on_cpu(|cpu| {
                let page = KBuf::pages(cpu, 0, GFP_KERNEL).unwrap();
                misuse::free_buffer(cpu, &page);
                drop(page);
                cpu.kernel().validate().unwrap();
                Vec::new()
            })
            .0
        }
        "double_kfree_then_three_allocs" => {
            let (row, findings) = on_cpu(|cpu| {
                let first = kmalloc(cpu, 64, GFP_KERNEL).unwrap();
                let p = first.phys();
                misuse::kfree(cpu, p);
                drop(first);
                let [a, b, c] = [0; 3].map(|_| kmalloc(cpu, 64, GFP_KERNEL).unwrap());
                let same = |one: &KBuf, other: &KBuf| flag(one.phys() == other.phys());
                vec![("a_eq_b", same(&a, &b)), ("b_eq_c", same(&b, &c)), ("a_eq_p", flag(a.phys() == p))]
            });
            assert_eq!(findings, ["bad-free"], "what corrupts Linux's list is told here");
            row
        }
        "vfree_in_softirq" => {
            let (left, findings) = on_cpu(|cpu| {
                let before = stats::leaks(cpu.kernel()).len();
                let buf = Locked::new(Some(vmalloc(cpu, 8192).unwrap()));
                let tasklet = Tasklet::new(cpu, move |cpu| {
                    let taken = buf.lock().take();
                    vfree(cpu, taken.unwrap());
                });
                tasklet.schedule(cpu);
                tasklet.kill(cpu);
                cpu.kernel().validate().unwrap();
                stats::leaks(cpu.kernel()).len() - before
            });
            assert_eq!((left, findings), (0, Vec::new()), "a worker frees it");
            vec![("ok", flag(left == 0))]
        }
        other => panic!("no such row: {other}"),
    });
}
