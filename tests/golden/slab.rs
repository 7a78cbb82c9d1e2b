//! Slab caches: layouts, addresses, constructors, what is refused, and the bytes of a watched one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lowzone_guest_mem::gfp::{__GFP_ZERO, GFP_KERNEL};
use lowzone_guest_mem::kernel::{MachineConfig, Sanitize};
use lowzone_guest_mem::kmalloc::{kfree, kmalloc, ksize};
use lowzone_guest_mem::kmem_cache::{Construct, Ctor, KmemCache, SlabFlags, kmem_cache_create};
use lowzone_guest_mem::{Cpu, KBuf, PhysAddr, stats};

use crate::calm::on;
use crate::kmalloc::alignment;
use crate::table::{Golden, Inputs};

const CACHE: Golden = Golden {
    name: "cache",
    text: include_str!("cache.tsv"),
    inputs: &["boot", "what", "asked"],
    compare: &[
        "object_size",
        "size",
        "inuse",
        "align",
        "offset",
        "objs_per_slab",
        "order",
        "min_objs",
        "min_partial",
        "cpu_partial",
        "cpu_partial_slabs",
        "refcount",
        "kmem_cache_size",
        "name",
    ],
};
const CACHE_ADDR: Golden = Golden {
    name: "cache_addr",
    text: include_str!("cache_addr.tsv"),
    inputs: &["boot", "what", "asked"],
    compare: &["first_two_distance", "worst_align", "ksize"],
};
const CACHE_CTOR: Golden = Golden {
    name: "cache_ctor",
    text: include_str!("cache_ctor.tsv"),
    inputs: &["boot", "step"],
    compare: &["runs", "same_ptr", "first_word"],
};
const CACHE_MISC: Golden =
    Golden { name: "cache_misc", text: include_str!("cache_misc.tsv"), inputs: &["boot", "what"], compare: &["ret"] };
const SLUBDBG: Golden = Golden {
    name: "slubdbg",
    text: include_str!("slubdbg.tsv"),
    inputs: &["boot", "what"],
    compare: &["first", "mid", "last", "before", "after", "dist", "fresh", "dead"],
};
const SLUBDBG_KSIZE: Golden = Golden {
    name: "slubdbg_ksize",
    text: include_str!("slubdbg_ksize.tsv"),
    inputs: &["boot", "size"],
    compare: &["ksize", "cache", "byte0", "bytelast"],
};
const KMEMLEAK: Golden = Golden {
    name: "kmemleak",
    text: include_str!("kmemleak.tsv"),
    inputs: &["boot", "what", "kmalloc", "vmalloc", "percpu", "page", "coherent"],
    compare: &[],
};

fn fzpu() -> MachineConfig {
    let sanitize = Sanitize::POISON | Sanitize::RED_ZONE | Sanitize::TRACK;
    MachineConfig { sanitize, ..MachineConfig::default() }
}

/// The cache that a row of `cache` or `cache_addr` names.
fn cache(cpu: &Cpu<'_>, row: &Inputs<'_>) -> KmemCache {
    let (what, none) = (row.get("what"), SlabFlags::empty());
    let ctor: Ctor = Arc::new(|_: &mut Construct<'_>| {});
    let (name, align, flags, ctor) = match what {
        "plain" | "max" => ("oracle_c", 0, none, None),
        "hwalign" => ("oracle_c", 0, SlabFlags::HWCACHE_ALIGN, None),
        "rcu" => ("oracle_c", 0, SlabFlags::TYPESAFE_BY_RCU, None),
        "dma" => ("oracle_c", 0, SlabFlags::CACHE_DMA, None),
        "reclaim" => ("oracle_c", 0, SlabFlags::RECLAIM_ACCOUNT, None),
        "ctor" => ("oracle_ctor", 0, none, Some(ctor)),
        "slub_debug_64" => ("oracle_dbg", 0, none, None),
        _ => ("oracle_c", what.strip_prefix("align").unwrap().parse().unwrap(), none, None),
    };
    kmem_cache_create(cpu, name, row.number("asked"), align, flags, ctor).unwrap()
}

#[test]
fn golden_cache() {
    CACHE.run(|row| {
        let config = if row.get("boot") == "slubdbg" { fzpu() } else { MachineConfig::default() };
        on(config, |cpu| {
            let cache = cache(cpu, row);
            let geometry = cache.geometry();
            // Never merged with another: its creator is the only user.
            let users = cpu.kernel().slab_stats().iter().filter(|stats| stats.cache == cache.name()).count();
            vec![
                ("object_size", geometry.object_size.to_string()),
                ("size", geometry.size.to_string()),
                ("inuse", geometry.inuse.to_string()),
                ("align", geometry.align.to_string()),
                ("offset", geometry.offset.to_string()),
                ("objs_per_slab", geometry.shape.objects.to_string()),
                ("order", geometry.shape.order.to_string()),
                ("min_objs", geometry.smallest.objects.to_string()),
                ("min_partial", geometry.min_partial.to_string()),
                ("cpu_partial", geometry.cpu_partial.to_string()),
                ("cpu_partial_slabs", geometry.cpu_partial_slabs.to_string()),
                ("refcount", users.to_string()),
                ("kmem_cache_size", cache.object_size().to_string()),
                ("name", cache.name().to_owned()),
            ]
        })
    });
}

#[test]
fn golden_cache_addr() {
    CACHE_ADDR.run(|row| {
        on(MachineConfig::default(), |cpu| {
            let cache = cache(cpu, row);
            let held: Vec<_> = (0..32).map(|_| cache.alloc(cpu, GFP_KERNEL).unwrap()).collect();
            let distance = held[1].phys().get() - held[0].phys().get();
            vec![
                ("first_two_distance", distance.to_string()),
                ("worst_align", alignment(&held).to_string()),
                ("ksize", ksize(&held[0]).to_string()),
            ]
        })
    });
}

fn word(buf: &KBuf) -> String {
    let mut bytes = [0; 4];
    buf.read_at(0, &mut bytes).unwrap();
    u32::from_le_bytes(bytes).to_string()
}

#[test]
fn golden_cache_ctor() {
    on(MachineConfig::default(), |cpu| {
        let runs = Arc::new(AtomicU32::new(0));
        let count = runs.clone();
        let ctor: Ctor = Arc::new(move |_: &mut Construct<'_>| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let cache = kmem_cache_create(cpu, "oracle_ctor", 256, 0, SlabFlags::empty(), Some(ctor)).unwrap();
        let mut held = Vec::new();
        CACHE_CTOR.run(|row| {
            let mut outputs = Vec::new();
            match row.get("step") {
                "created" => {}
                "first_alloc" | "second_alloc" => held.push(cache.alloc(cpu, GFP_KERNEL).unwrap()),
                "free_and_realloc" => {
                    let mut second = held.pop().unwrap();
                    second.write_at(0, &1_u32.to_le_bytes()).unwrap();
                    let at = second.phys();
                    cache.free(cpu, second);
                    let again = cache.alloc(cpu, GFP_KERNEL).unwrap();
                    outputs =
                        vec![("same_ptr", u8::from(again.phys() == at).to_string()), ("first_word", word(&again))];
                    held.push(again);
                }
                "zalloc_with_ctor" => {
                    held.push(cache.alloc(cpu, GFP_KERNEL | __GFP_ZERO).unwrap());
                    outputs = vec![("first_word", word(&held[2]))];
                }
                other => panic!("{other}"),
            }
            outputs.push(("runs", runs.load(Ordering::Relaxed).to_string()));
            outputs
        });
    });
}

#[test]
fn golden_cache_misc() {
    let pointer = |made: bool| if made { "ptr" } else { "NULL" }.to_owned();
    CACHE_MISC.run(|row| {
        on(MachineConfig::default(), |cpu| {
            let create = |name, size, flags| kmem_cache_create(cpu, name, size, 0, flags, None);
            let none = SlabFlags::empty();
            let silent = || {
                let quiet = cpu.kernel().findings().is_empty() && cpu.kernel().log().lines().is_empty();
                if quiet { "ok".to_owned() } else { format!("{:?}", cpu.kernel().log().lines()) }
            };
            let ret = match row.get("what") {
                "create_over_KMALLOC_MAX_SIZE" => pointer(create("oracle_big", (4 << 20) + 1, none).is_ok()),
                "create_unknown_flag_0x80" => pointer(create("f", 64, SlabFlags::from_bits_retain(0x80)).is_ok()),
                "create_SLAB_FAILSLAB" => pointer(create("oracle_fs", 64, SlabFlags::FAILSLAB).is_ok()),
                "kmem_cache_shrink" => {
                    let cache = create("oracle_s", 64, none).unwrap();
                    drop(cache.alloc(cpu, GFP_KERNEL).unwrap());
                    u8::from(cache.shrink(cpu)).to_string()
                }
                "free_object_after_failed_destroy" | "create_same_name_after_failed_destroy" => {
                    let cache = create("oracle_live", 200, none).unwrap();
                    let object = cache.alloc(cpu, GFP_KERNEL).unwrap();
                    cache.destroy(cpu);
                    let said = cpu.kernel().findings().len();
                    drop(object);
                    match row.get("what").starts_with("free") && cpu.kernel().findings().len() == said {
                        true => "ok".to_owned(),
                        false => pointer(create("oracle_live", 200, none).is_ok()),
                    }
                }
                "create_duplicate_name" => {
                    let _first = create("oracle_d", 64, none).unwrap();
                    pointer(create("oracle_d", 64, none).is_ok())
                }
                "kfree_of_kmem_cache_object" => {
                    let cache = create("oracle_k", 64, none).unwrap();
                    kfree(cache.alloc(cpu, GFP_KERNEL).unwrap());
                    silent()
                }
                other => panic!("{other}"),
            };
            vec![("ret", ret)]
        })
    });
}

fn byte(cpu: &Cpu<'_>, at: PhysAddr) -> String {
    let mut byte = [0];
    cpu.kernel().ram().read(at, &mut byte).unwrap();
    format!("{:02x}", byte[0])
}

#[test]
fn golden_slubdbg() {
    on(fzpu(), |cpu| {
        let cache = kmem_cache_create(cpu, "oracle_dbg", 64, 0, SlabFlags::empty(), None).unwrap();
        let mut held = vec![cache.alloc(cpu, GFP_KERNEL).unwrap()];
        let at = held[0].phys();
        let bytes =
            || [("first", 0), ("mid", 32), ("last", 63)].map(|(name, off)| (name, byte(cpu, at.wrapping_add(off))));
        SLUBDBG.run(|row| match row.get("what") {
            "fresh_object_bytes" => bytes().to_vec(),
            "freed_object_bytes" => {
                held.drain(..).for_each(|object| cache.free(cpu, object));
                bytes().to_vec()
            }
            "redzone_bytes" => {
                held = (0..2).map(|_| cache.alloc(cpu, GFP_KERNEL).unwrap()).collect();
                assert_eq!(held[0].phys(), at, "taken again");
                let distance = held[1].phys().get() - at.get();
                vec![
                    ("before", byte(cpu, PhysAddr::new(at.get() - 1))),
                    ("after", byte(cpu, at.wrapping_add(64))),
                    ("dist", distance.to_string()),
                ]
            }
            "done" => {
                let fresh = byte(cpu, held[1].phys());
                let dead = held[1].phys();
                held.drain(..).for_each(|object| cache.free(cpu, object));
                vec![("fresh", fresh), ("dead", byte(cpu, dead))]
            }
            other => panic!("{other}"),
        });
    });
}

#[test]
fn golden_slubdbg_ksize() {
    SLUBDBG_KSIZE.run(|row| {
        on(fzpu(), |cpu| {
            let size: usize = row.number("size");
            let buf = kmalloc(cpu, size, GFP_KERNEL).unwrap();
            let class = ksize(&buf) as u64;
            assert!(buf.phys().get().is_multiple_of(class), "{size}: aligned to its class");
            let cache = cpu.kernel().object_at(buf.phys()).unwrap().cache.unwrap();
            vec![
                ("ksize", class.to_string()),
                ("cache", cache.to_owned()),
                ("byte0", byte(cpu, buf.phys())),
                ("bytelast", byte(cpu, buf.phys().wrapping_add(size as u64 - 1))),
            ]
        })
    });
}

/// All columns are inputs: kmemleak told of the kmalloc as its class, 96 bytes.
#[test]
fn golden_kmemleak() {
    KMEMLEAK.run(|row| {
        on(MachineConfig::default(), |cpu| {
            std::mem::forget(kmalloc(cpu, row.number("kmalloc"), GFP_KERNEL).unwrap());
            let leaks = stats::leaks(cpu.kernel());
            assert_eq!(leaks.iter().map(|leak| leak.bytes).collect::<Vec<_>>(), [row.number::<u64>("kmalloc")]);
            assert_eq!(cpu.kernel().object_at(leaks[0].at).unwrap().class_size, 96);
            Vec::new()
        })
    });
}
