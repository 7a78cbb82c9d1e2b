//! A driver's caches: objects, constructors, bulk, wrong frees, destruction, and what is printed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::dma::misuse;
use crate::env::Class;
use crate::finding::Resource;
use crate::gfp::{GFP_ATOMIC, GFP_DMA32};
use crate::kernel::MachineConfig;
use crate::testing::Lab;
use crate::zone::ZoneKind;

fn cache(cpu: &Cpu<'_>, size: usize, flags: SlabFlags) -> KmemCache {
    kmem_cache_create(cpu, "req", size, 0, flags, None).unwrap()
}

#[test]
fn objects_come_back_last_first_and_the_cache_goes_when_they_are_back() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let cache = cache(&cpu, 100, SlabFlags::HWCACHE_ALIGN);
    lab.kernel().trace().capture();
    let objects: Vec<_> = (0..40).map(|_| cache.alloc(&cpu, GFP_KERNEL).unwrap()).collect();
    assert!(objects.iter().all(|object| object.len() == 100 && object.phys().get().is_multiple_of(128)));
    let at = objects[7].phys();
    let events = lab.kernel().trace().take_captured();
    assert_eq!(events.iter().filter(|(_, record)| record.kind == Kind::KmemCacheAlloc).count(), 40);
    for (number, object) in objects.into_iter().enumerate() {
        if number == 7 {
            std::mem::forget(object);
        }
    }
    drop(cache.alloc(&cpu, GFP_KERNEL));
    let stats = cache.stats().unwrap();
    assert_eq!((stats.active, stats.slabs, cache.name()), (1, 2, "req"));
    assert_eq!(lab.leaks(), [Resource::CacheObject, Resource::Cache]);
    misuse::kfree(&cpu, at);
    assert!(!cache.shrink(&cpu), "all its slabs were empty");
    assert_eq!(cache.stats().unwrap().total, 0);
    cache.destroy(&cpu);
    assert!(lab.findings().is_empty() && lab.leaks().is_empty(), "{:?}", lab.findings());
    lab.kernel().validate().unwrap();
}

#[test]
fn the_constructor_runs_once_for_each_object_of_a_slab() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let runs = Arc::new(AtomicU32::new(0));
    let count = runs.clone();
    let ctor: Ctor = Arc::new(move |object: &mut Construct<'_>| {
        count.fetch_add(1, Ordering::Relaxed);
        object.write_at(0, &[0xc0]);
    });
    let cache = kmem_cache_create(&cpu, "ctor", 256, 0, SlabFlags::empty(), Some(ctor)).unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 0);
    let first = |object: &KBuf| {
        let mut byte = [0];
        object.read_at(0, &mut byte).unwrap();
        byte[0]
    };
    let (one, mut two) = (cache.alloc(&cpu, GFP_KERNEL).unwrap(), cache.alloc(&cpu, GFP_KERNEL).unwrap());
    assert_eq!((first(&one), runs.load(Ordering::Relaxed)), (0xc0, 15));
    two.write_at(0, &[1]).unwrap();
    let at = two.phys();
    cache.free(&cpu, two);
    let two = cache.alloc(&cpu, GFP_KERNEL).unwrap();
    assert_eq!((two.phys(), first(&two)), (at, 1), "it is as it was freed");
    let three = cache.zalloc(&cpu, GFP_KERNEL).unwrap();
    assert_eq!((first(&three), runs.load(Ordering::Relaxed)), (0, 15));
}

#[test]
fn create_refuses_what_linux_refuses_and_says_so() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let none = SlabFlags::empty();
    let wrong = [((4 << 20) + 1, none), (64, SlabFlags::from_bits_retain(0x80)), (64, SlabFlags::FAILSLAB), (0, none)];
    for (size, flags) in wrong {
        let error = kmem_cache_create(&cpu, "bad", size, 0, flags, None).map(drop).unwrap_err();
        assert_eq!((error.errno(), error), (-22, CreateError::Invalid { name: "bad", size, flags }));
    }
    assert_eq!(lab.findings(), ["cache-refused"; 4]);
    assert_eq!(lab.log(), ["kmem_cache_create_usercopy(bad) failed with error -22"; 4]);
    lab.solo.fail_nth(0);
    let error = kmem_cache_create(&cpu, "poor", 64, 0, none, None).map(drop).unwrap_err();
    assert_eq!((error.errno(), lab.findings().len()), (-12, 4), "no mistake of the driver's");
    let (one, other) = (cache(&cpu, 64, none), cache(&cpu, 64, none));
    assert_eq!((one.name(), other.name()), ("req", "req"), "a name may be there twice");
    let largest = kmem_cache_create(&cpu, "max", 4 << 20, 0, none, None).unwrap();
    assert_eq!(largest.geometry().shape.order, 10);
}

#[test]
fn a_bulk_is_all_or_nothing_with_one_point() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let cache = cache(&cpu, 64, SlabFlags::empty());
    lab.solo.points();
    let objects = cache.alloc_bulk(&cpu, GFP_KERNEL, 16).unwrap();
    assert_eq!((objects.len(), lab.solo.points()), (16, vec![Class::Slab, Class::Page]));
    cache.free_bulk(&cpu, objects);
    lab.solo.fail_nth(0);
    assert!(cache.alloc_bulk(&cpu, GFP_ATOMIC, 16).is_err());
    // The fourth slab of 64 objects can't be had: what was taken goes back.
    lab.solo.points();
    lab.solo.fail_nth(4);
    assert!(cache.alloc_bulk(&cpu, GFP_ATOMIC, 200).is_ok(), "the smaller slab was tried after the first failed");
    assert_eq!(cache.stats().unwrap().active, 0);
}

#[test]
fn an_object_of_another_cache_goes_to_its_own() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let (one, other) = (cache(&cpu, 64, SlabFlags::empty()), cache(&cpu, 64, SlabFlags::empty()));
    let object = KBuf::kmalloc(&cpu, 20, GFP_KERNEL).unwrap();
    one.free(&cpu, object);
    assert_eq!(lab.findings(), ["wrong-cache"]);
    let text = "cache_from_obj: Wrong slab cache. req but object is from kmalloc-32";
    assert_eq!(lab.kernel().findings()[0].kind.to_string(), text);
    let object = one.alloc(&cpu, GFP_KERNEL).unwrap();
    other.free(&cpu, object);
    assert_eq!((one.stats().unwrap().active, other.stats().unwrap().active), (0, 0));
    assert!(lab.log().is_empty(), "without checks Linux is silent");
    let checked = cache(&cpu, 64, SlabFlags::CONSISTENCY_CHECKS);
    misuse::kmem_cache_free(&cpu, &checked, KBuf::kmalloc(&cpu, 20, GFP_KERNEL).unwrap().leak());
    assert_eq!(lab.log(), [text]);
}

#[test]
fn destroyed_with_live_objects_it_stays_and_they_may_still_be_freed() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let cache = kmem_cache_create(&cpu, "live", 200, 0, SlabFlags::empty(), None).unwrap();
    let (one, two) = (cache.alloc(&cpu, GFP_KERNEL).unwrap(), cache.alloc(&cpu, GFP_KERNEL).unwrap());
    let base = one.phys().direct_map();
    cache.destroy(&cpu);
    assert_eq!(lab.findings(), ["cache-busy"]);
    let finding = &lab.kernel().findings()[0];
    assert_eq!((finding.sites.len(), finding.kind.config()), (3, Some("any")), "and where each object was allocated");
    let log = lab.log();
    assert_eq!(log[1], "BUG live (Tainted: G           O      ): Objects remaining in live on __kmem_cache_shutdown()");
    assert_eq!(log[4], format!("Slab {base:#x} objects=20 used=2"));
    assert!(log[6].ends_with("@offset=200"), "{log:#?}");
    assert!(log[7].starts_with("kmem_cache_destroy live: Slab cache still has objects when called from "), "{log:#?}");
    drop((one, two));
    let again = kmem_cache_create(&cpu, "live", 200, 0, SlabFlags::empty(), None).unwrap();
    again.destroy(&cpu);
    assert_eq!(lab.findings().len(), 1);
    assert!(lab.leaks().is_empty());
    lab.kernel().validate().unwrap();
}

#[test]
fn a_cache_that_nobody_destroys_is_told_and_gone_with_the_machine() {
    // A kind of machine that no other test has, so that the pool gives this one again.
    let config = MachineConfig { ram: (5 << 30) + 0x3000, ..MachineConfig::default() };
    let lab = Lab::of(config);
    std::mem::forget(cache(&lab.cpu(), 64, SlabFlags::empty()));
    assert_eq!(lab.leaks(), [Resource::Cache]);
    let kernel = lab.kernel();
    drop(lab);
    let again = Lab::of(config);
    assert!(std::ptr::eq(kernel, again.kernel()) && again.leaks().is_empty());
    assert_eq!(again.kernel().slab_stats().len(), crate::slab::CACHES);
}

#[test]
fn flags_choose_the_zone() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let zone = |flags, gfp| cache(&cpu, 500, flags).alloc(&cpu, gfp).map(|object| object.zone()).unwrap();
    assert_eq!(zone(SlabFlags::CACHE_DMA, GFP_KERNEL), ZoneKind::Dma);
    assert_eq!(zone(SlabFlags::CACHE_DMA32, GFP_KERNEL), ZoneKind::Dma32);
    assert_eq!(zone(SlabFlags::RECLAIM_ACCOUNT, GFP_KERNEL), ZoneKind::Normal);
    assert!(lab.findings().is_empty());
    assert_eq!(zone(SlabFlags::empty(), GFP_KERNEL | GFP_DMA32), ZoneKind::Normal);
    assert_eq!(lab.findings(), ["gfp-fixup"]);
}

#[test]
fn the_report_of_an_overflow_is_slubs() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let cache = kmem_cache_create(&cpu, "oracle_dbg", 64, 0, SlabFlags::DEBUG, None).unwrap();
    let held = cache.alloc(&cpu, GFP_KERNEL).unwrap();
    cache.free(&cpu, cache.alloc(&cpu, GFP_KERNEL).unwrap());
    let object = cache.alloc(&cpu, GFP_KERNEL).unwrap();
    misuse::scribble(&cpu, object.phys().wrapping_add(64), &[0x41]);
    cache.free(&cpu, object);
    let rows =
        include_str!("../../../tests/golden/messages.tsv").lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let facts: Vec<_> = rows
        .filter(|row| row[1] == "slubdbg_right_overflow" && row[3].starts_with(|first: char| "=-BRPOF".contains(first)))
        .map(|row| row[3].replace('@', "").split("  ").last().unwrap().to_owned())
        .collect();
    let log = lab.log();
    assert!(facts.len() >= 9, "{facts:?}");
    let dumped: Vec<_> = facts.iter().filter(|fact| fact.len() == 16 || fact.len() == 8).collect();
    assert!(dumped.iter().all(|ascii| log.iter().any(|line| line.ends_with(ascii.as_str()))), "{dumped:?} {log:#?}");
    assert_eq!(log[1], "BUG oracle_dbg (Tainted: G           O      ): Right Redzone overwritten");
    assert!(log[4].ends_with("@offset=232. First byte 0x41 instead of 0xcc"), "{log:#?}");
    assert!(log.iter().any(|line| line.starts_with("Slab ") && line.ends_with(" objects=25 used=2")), "{log:#?}");
    drop(held);
}

#[test]
fn what_lies_behind_the_last_object_of_a_slab_is_watched() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let cache = cache(&cpu, 1000, SlabFlags::POISON);
    let (size, objects) = (u64::from(cache.geometry().size), u64::from(cache.geometry().shape.objects));
    let object = cache.alloc(&cpu, GFP_KERNEL).unwrap();
    let slab = lab.kernel().page_at(object.phys()).unwrap().block;
    let bytes = 4096_u64 << slab.order;
    assert!(size * objects < bytes, "a slab without padding shows nothing");
    let ends = [slab.pfn.phys().wrapping_add(size * objects), slab.pfn.phys().wrapping_add(bytes - 1)];
    let scribble = |at| misuse::scribble(&cpu, at, &[0xff]);
    let mut seen = 0;
    let mut told = |what: &str| {
        seen += 1;
        assert_eq!(lab.findings(), vec!["poison"; seen], "{what}");
        let FindingKind::SlabDamage(found) = lab.kernel().findings().pop().unwrap().kind else { unreachable!() };
        assert_eq!((found.cache, found.damage.found, found.damage.expected), ("req", 0xff, 0x5a), "{what}");
    };
    scribble(ends[0]);
    let other = cache.alloc(&cpu, GFP_KERNEL).unwrap();
    told("at an allocation, which gets its object all the same");
    scribble(ends[1]);
    cache.free(&cpu, other);
    told("at a free, which is done all the same");
    scribble(ends[0]);
    lab.kernel().inspect_slabs(cpu.owner());
    told("at a look at all slabs");
    lab.kernel().inspect_slabs(cpu.owner());
    assert_eq!(lab.findings().len(), 3, "it was mended");
    cache.free(&cpu, object);
    scribble(ends[1]);
    cache.shrink(&cpu);
    told("when the slab goes");
    let log = lab.kernel().log().lines().iter().map(|line| format!("{}\n", line.text)).collect::<String>();
    let (first, slab) = (ends[0].direct_map(), slab.pfn.phys().direct_map());
    for line in [
        format!(
            "BUG req (Tainted: G           O      ): Padding overwritten. {first:#x}-{first:#x} @offset={}",
            size * objects
        ),
        format!("Slab {slab:#x} objects={objects} used=2"),
        format!("FIX req: Restoring slab padding {first:#x}-{first:#x}=0x5a"),
    ] {
        assert!(log.contains(&line), "{line}\n{log}");
    }
    cache.destroy(&cpu);
    assert_eq!(lab.findings().len(), 4);
    lab.kernel().validate().unwrap();
}
