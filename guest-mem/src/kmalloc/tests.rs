//! The family by its C names, the lint, and what each sanitizer sees of a driver's mistakes.

use std::sync::Arc;

use super::*;
use crate::dma::misuse;
use crate::dma::{FromDevice, dma_bit_mask};
use crate::env::{Env, IrqHandler, Key, Point, Ticket, Verdict, Wake};
use crate::finding::{Finding, FindingKind, Resource};
use crate::gfp::{GFP_ATOMIC, GFP_DMA, GFP_KERNEL};
use crate::kernel::{Machine, MachineConfig, Sanitize};
use crate::testing::Lab;
use crate::zone::ZoneKind;

fn lab(sanitize: Sanitize) -> Lab {
    Lab::of(MachineConfig { sanitize, ..MachineConfig::default() })
}

fn bytes(buf: &KBuf) -> Vec<u8> {
    let mut bytes = vec![0; buf.len()];
    buf.read_at(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn krealloc_keeps_the_object_while_it_is_large_enough() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let mut buf = kzalloc(&cpu, 40, GFP_KERNEL).unwrap();
    buf.write_at(0, &[7; 40]).unwrap();
    let at = buf.phys();
    let buf = krealloc(&cpu, Some(buf), 64, GFP_KERNEL).unwrap();
    assert_eq!((buf.phys(), buf.len(), ksize(&buf)), (at, 64, 64));
    let buf = krealloc(&cpu, Some(buf), 65, GFP_KERNEL | __GFP_ZERO).unwrap();
    assert!(buf.phys() != at && ksize(&buf) == 96);
    assert_eq!((bytes(&buf)[..40].to_vec(), bytes(&buf)[64]), (vec![7; 40], 0));
    let moved = buf.phys();
    let buf = krealloc(&cpu, Some(buf), 10, GFP_KERNEL).unwrap();
    assert_eq!((buf.phys(), ksize(&buf), bytes(&buf)), (moved, 96, vec![7; 10]));
    let nothing = krealloc(&cpu, Some(buf), 0, GFP_KERNEL).unwrap();
    assert_eq!((nothing.virt(), ksize(&nothing)), (ZERO_SIZE_PTR, 0));
    assert!(lab.leaks().is_empty(), "to 0 it is freed");
    assert_eq!(ksize(&krealloc(&cpu, Some(nothing), 10, GFP_KERNEL).unwrap()), 16);
    assert_eq!(ksize(&krealloc(&cpu, None, 10, GFP_KERNEL).unwrap()), 16);
}

#[test]
fn a_krealloc_that_fails_leaves_the_old_buffer_as_it_was() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let buf = kmemdup(&cpu, &[1, 2, 3, 4, 5, 6, 7, 8], GFP_KERNEL).unwrap();
    let at = buf.phys();
    lab.solo.fail_nth(0);
    let failure = krealloc(&cpu, Some(buf), 4000, GFP_ATOMIC).unwrap_err();
    assert!(matches!(failure.error, AllocError::NoMemory { .. }));
    let buf = failure.buf.unwrap();
    assert_eq!((buf.phys(), bytes(&buf)), (at, vec![1, 2, 3, 4, 5, 6, 7, 8]));
    assert!(krealloc(&cpu, None, (4 << 20) + 1, GFP_KERNEL).unwrap_err().buf.is_none());
}

#[test]
fn arrays_that_are_no_number_of_bytes_are_refused_before_anything_is_asked() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    assert!(matches!(kcalloc(&cpu, usize::MAX / 2, 3, GFP_KERNEL), Err(AllocError::TooLarge { .. })));
    assert!(lab.solo.points().is_empty());
    let zeros = kcalloc(&cpu, 25, 4, GFP_KERNEL).unwrap();
    assert_eq!((bytes(&zeros), ksize(&zeros)), (vec![0; 100], 128));
    assert_eq!(kmalloc_array(&cpu, 0, 8, GFP_KERNEL).unwrap().virt(), ZERO_SIZE_PTR);
}

#[test]
fn a_sensitive_free_leaves_nothing_behind() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let mut secret = kmalloc(&cpu, 1000, GFP_KERNEL).unwrap();
    secret.write_at(0, &[0x55; 1000]).unwrap();
    let at = secret.phys();
    kfree_sensitive(secret);
    let again = kmalloc(&cpu, 1024, GFP_KERNEL).unwrap();
    assert_eq!((again.phys(), bytes(&again)), (at, vec![0; 1024]));
    kfree(again);
    assert!(lab.findings().is_empty() && lab.leaks().is_empty());
}

#[test]
fn what_was_once_portable_is_a_lint_that_is_off_by_default() {
    for (sanitize, found) in [(Sanitize::empty(), 0), (Sanitize::PORTABLE, 1)] {
        let lab = lab(sanitize);
        kfree(kmalloc(&lab.cpu(), PORTABLE_SIZE, GFP_KERNEL).unwrap());
        kfree(kmalloc(&lab.cpu(), PORTABLE_SIZE + 1, GFP_KERNEL).unwrap());
        assert_eq!(lab.findings(), vec!["beyond-portable"; found]);
    }
}

#[test]
fn an_overflow_is_found_when_the_object_is_freed_and_the_object_is_lost() {
    let lab = lab(Sanitize::RED_ZONE | Sanitize::POISON | Sanitize::TRACK);
    let cpu = lab.cpu();
    let buf = kmalloc(&cpu, 64, GFP_KERNEL).unwrap();
    let at = buf.phys();
    assert_eq!(bytes(&buf), [vec![0x6b; 63], vec![0xa5]].concat(), "a fresh object holds the poison");
    misuse::scribble(&cpu, at.wrapping_add(64), &[0x41]);
    assert!(lab.findings().is_empty(), "nothing looks before the free");
    kfree(buf);
    let finding = &lab.kernel().findings()[0];
    let FindingKind::SlabDamage(damage) = &finding.kind else { panic!("{finding}") };
    assert_eq!(
        (damage.cache, damage.object, damage.damage.found, damage.damage.expected),
        ("kmalloc-64", at, 0x41, 0xcc)
    );
    assert_eq!((finding.kind.name(), finding.sites.len()), ("red-zone", 1));
    let log = lab.log();
    assert_eq!(log[1], "BUG kmalloc-64 (Tainted: G           O      ): Right Redzone overwritten");
    assert!(log.iter().any(|line| line.ends_with("First byte 0x41 instead of 0xcc")), "{log:#?}");
    assert!(log.contains(&format!("FIX kmalloc-64: Object at {:#x} not freed", at.direct_map())), "{log:#?}");
    assert_ne!(kmalloc(&cpu, 64, GFP_KERNEL).unwrap().phys(), at, "it is never used again");
    assert!(lab.leaks().is_empty(), "its holder freed it");
    lab.kernel().validate().unwrap();
}

#[test]
fn the_poison_tells_of_a_write_after_the_free_at_the_next_allocation() {
    let lab = lab(Sanitize::POISON | Sanitize::TRACK);
    let cpu = lab.cpu();
    let buf = kmalloc(&cpu, 100, GFP_KERNEL).unwrap();
    let at = buf.phys();
    kfree(buf);
    misuse::scribble(&cpu, at.wrapping_add(5), &[0x11]);
    let other = kmalloc(&cpu, 100, GFP_KERNEL).unwrap();
    assert_eq!(lab.findings(), ["poison"]);
    let slab = |phys: crate::PhysAddr| phys.get() >> 12;
    assert_ne!(slab(other.phys()), slab(at), "nothing of that slab is handed out");
    assert!(lab.log().contains(&"FIX kmalloc-128: Marking all objects used".to_owned()), "{:#?}", lab.log());
    drop(other);
    lab.kernel().validate().unwrap();
    assert!(lab.leaks().is_empty());
}

#[test]
fn a_second_free_prints_what_slub_prints_where_it_looks() {
    for (sanitize, printed) in [(Sanitize::empty(), false), (Sanitize::POISON, true)] {
        let lab = lab(sanitize);
        let buf = kmalloc(&lab.cpu(), 64, GFP_KERNEL).unwrap();
        misuse::free_buffer(&lab.cpu(), &buf);
        misuse::kfree(&lab.cpu(), buf.phys().wrapping_add(8));
        drop(buf);
        assert_eq!(lab.findings(), ["bad-free"; 2], "the lab looks always");
        let bugs: Vec<_> = lab.log().into_iter().filter(|line| line.starts_with("BUG")).collect();
        assert_eq!(bugs.len(), if printed { 2 } else { 0 });
        assert!(!printed || bugs[1] == "BUG kmalloc-64 (Tainted: G           O      ): Object already free");
    }
}

#[test]
fn the_quarantine_sees_writes_of_the_cpu_and_of_a_device_to_freed_memory() {
    let lab = lab(Sanitize::QUARANTINE);
    let cpu = lab.cpu();
    let (one, two) = (kmalloc(&cpu, 64, GFP_KERNEL).unwrap(), kmalloc(&cpu, 256, GFP_KERNEL).unwrap());
    let (first, second) = (one.phys(), two.phys());
    kfree(one);
    kfree(two);
    assert_ne!(kmalloc(&cpu, 64, GFP_KERNEL).unwrap().phys(), first, "it is held back");
    misuse::scribble(&cpu, first, &[1]);
    lab.kernel().ram().write(second.wrapping_add(255), &[2]).unwrap();
    assert!(lab.findings().is_empty());
    lab.kernel().inspect_slabs(cpu.owner());
    assert_eq!(lab.findings(), ["use-after-free"; 2]);
    let config = lab.kernel().findings()[0].kind.config();
    assert_eq!(config, Some("CONFIG_KASAN"));
    lab.kernel().validate().unwrap();
    assert!(lab.leaks().is_empty());
    lab.kernel().inspect_slabs(cpu.owner());
    assert_eq!(lab.findings().len(), 2, "told once");
}

#[test]
fn the_quarantine_holds_a_mebibyte_and_what_leaves_it_is_used_again() {
    let lab = lab(Sanitize::QUARANTINE);
    let cpu = lab.cpu();
    let first = kmalloc(&cpu, 8192, GFP_KERNEL).unwrap().phys();
    let seen: Vec<_> = (0..200).map(|_| kmalloc(&cpu, 8192, GFP_KERNEL).unwrap().phys()).collect();
    let back = seen.iter().position(|&phys| phys == first);
    assert!(back.is_some_and(|at| (128..140).contains(&at)), "128 objects of 8 KiB fill it: {back:?}");
    lab.kernel().validate().unwrap();
    lab.kernel().inspect_slabs(cpu.owner());
    let kmalloc_8k = lab.kernel().slab_stats().into_iter().find(|stats| stats.cache == "kmalloc-8k").unwrap();
    assert_eq!(kmalloc_8k.active, 0);
}

#[test]
fn a_device_that_writes_past_its_buffer_meets_the_red_zone() {
    let lab = lab(Sanitize::RED_ZONE);
    let cpu = lab.cpu();
    let device = lab.device(64);
    assert_eq!(device.mask(), dma_bit_mask(64));
    let buf = kmalloc(&cpu, 512, GFP_KERNEL | GFP_DMA).unwrap();
    let at = buf.phys();
    let mapped = device.map_single::<FromDevice>(&cpu, buf).unwrap();
    lab.kernel().ram().write(at.wrapping_add(510), &[9; 4]).unwrap();
    drop(mapped.unmap(&cpu));
    assert_eq!(lab.findings(), ["red-zone"]);
}

#[test]
fn what_was_overwritten_is_seen_at_the_end_too() {
    let lab = lab(Sanitize::RED_ZONE | Sanitize::POISON);
    let cpu = lab.cpu();
    let (live, freed) = (kmalloc(&cpu, 32, GFP_KERNEL).unwrap(), kmalloc(&cpu, 32, GFP_KERNEL).unwrap());
    misuse::scribble(&cpu, crate::PhysAddr::new(live.phys().get() - 1), &[0]);
    let at = freed.phys();
    kfree(freed);
    misuse::scribble(&cpu, at.wrapping_add(31), &[0]);
    lab.kernel().inspect_slabs(cpu.owner());
    let texts: Vec<_> = lab.kernel().findings().iter().map(|finding| finding.kind.to_string()).collect();
    assert!(texts[0].starts_with("BUG kmalloc-32: Left Redzone overwritten, "), "{texts:?}");
    assert!(texts[1].starts_with("BUG kmalloc-32: End Poison overwritten, "), "{texts:?}");
    drop(live);
    assert_eq!(lab.findings().len(), 2, "it was mended");
}

#[test]
fn sanitized_objects_keep_their_promises() {
    let lab = lab(Sanitize::all() - Sanitize::PORTABLE);
    let cpu = lab.cpu();
    for size in [1, 8, 13, 64, 96, 100, 192, 1024, 4096, 8192] {
        let mut held: Vec<_> = (0..20).map(|_| kzalloc(&cpu, size, GFP_KERNEL).unwrap()).collect();
        for (number, buf) in (0_u8..).zip(&mut held) {
            assert_eq!(bytes(buf), vec![0; size]);
            assert!(buf.phys().get().is_multiple_of(if size.is_power_of_two() { size as u64 } else { 8 }));
            buf.write_at(0, &vec![number; size]).unwrap();
        }
        assert!((0_u8..).zip(&held).all(|(number, buf)| bytes(buf) == vec![number; size]));
    }
    lab.kernel().inspect_slabs(cpu.owner());
    lab.kernel().validate().unwrap();
    assert!(lab.findings().is_empty() && lab.leaks().is_empty(), "{:?}", lab.findings());
    std::mem::forget(kmalloc(&cpu, 77, GFP_KERNEL));
    assert_eq!(lab.leaks(), [Resource::Slab]);
}

#[test]
fn slabs_and_large_objects_come_from_the_cpu_s_lists_and_go_back_to_them() {
    let lab = Lab::of(MachineConfig { pcp: true, ..MachineConfig::default() });
    let cpu = lab.cpu();
    let listed = || lab.kernel().pcp_stats()[ZoneKind::Normal.index()].1;
    let free = || lab.kernel().zone_stats()[ZoneKind::Normal.index()].free;
    let all = free();
    let object = kmalloc(&cpu, 64, GFP_KERNEL).unwrap();
    assert_eq!((all - free(), listed()), (63, 62), "a batch of pages, one of them a slab");
    let large = kmalloc(&cpu, 9000, GFP_KERNEL).unwrap();
    assert_eq!((all - free(), listed()), (63 + 60, 62 + 56), "15 blocks of order 2, one of them it");
    let at = large.phys();
    kfree(large);
    assert_eq!((all - free(), listed()), (63 + 60, 62 + 60), "its block went on the list");
    assert_eq!(kmalloc(&cpu, 9000, GFP_KERNEL).unwrap().phys(), at, "and is the first to be used again");
    misuse::kfree(&cpu, at);
    assert_eq!(lab.findings(), ["bad-free"]);
    kfree(object);
    let objects: Vec<_> = (0..64 * 20).map(|_| kmalloc(&cpu, 64, GFP_KERNEL).unwrap()).collect();
    let before = listed();
    drop(objects);
    assert!(listed() > before, "more slabs were empty than are kept: {before} pages, then {}", listed());
    lab.kernel().validate().unwrap();
    lab.kernel().drain_all_pages();
    lab.kernel().validate().unwrap();
    assert!(lab.leaks().is_empty());
}

#[test]
fn the_quarantine_holds_large_objects_too() {
    let lab = lab(Sanitize::QUARANTINE);
    let cpu = lab.cpu();
    let [one, two, clean] = [9000, 100_000, 20_000].map(|len| kmalloc(&cpu, len, GFP_KERNEL).unwrap());
    let (first, second) = (one.phys(), two.phys());
    [one, two, clean].into_iter().for_each(kfree);
    assert_ne!(kmalloc(&cpu, 9000, GFP_KERNEL).unwrap().phys(), first, "it is held back");
    misuse::scribble(&cpu, first.wrapping_add(8999), &[1]);
    lab.kernel().ram().write(second.wrapping_add(4096), &[2; 8]).unwrap();
    assert!(lab.findings().is_empty() && lab.leaks().is_empty());
    misuse::kfree(&cpu, first);
    assert_eq!(lab.findings(), ["bad-free"]);
    let FindingKind::BadFree(error) = &lab.kernel().findings()[0].kind else { unreachable!() };
    assert!(error.to_string().contains("BUG large kmalloc: Object already free"), "{error}");
    lab.kernel().validate().unwrap();
    lab.kernel().inspect_slabs(cpu.owner());
    assert_eq!(lab.findings(), ["bad-free", "use-after-free", "use-after-free"]);
    let FindingKind::SlabDamage(damage) = &lab.kernel().findings()[2].kind else { unreachable!() };
    assert_eq!((damage.object, damage.offset, damage.damage.found), (second, 4096, 2));
    assert_eq!(damage.damage.last.get() - damage.damage.first.get(), 7);
    assert_eq!(lab.kernel().findings()[2].kind.config(), Some("CONFIG_KASAN"));
    lab.kernel().validate().unwrap();
    assert_eq!(kmalloc(&cpu, 9000, GFP_KERNEL).unwrap().phys(), first, "and is used again");
}

#[test]
fn an_object_larger_than_the_quarantine_is_not_held() {
    let lab = lab(Sanitize::QUARANTINE);
    let cpu = lab.cpu();
    let at = kmalloc(&cpu, 4 << 20, GFP_KERNEL).unwrap().phys();
    assert_eq!(kmalloc(&cpu, 4 << 20, GFP_KERNEL).unwrap().phys(), at);
    let held: Vec<_> = (0..5).map(|_| kmalloc(&cpu, 256 << 10, GFP_KERNEL).unwrap()).collect();
    let (first, fifth) = (held[0].phys(), held[4].phys());
    drop(held);
    let again = |len| kmalloc(&cpu, len, GFP_KERNEL).unwrap();
    let seen: Vec<_> = std::iter::repeat_with(|| again(256 << 10)).take(3).collect();
    assert!(seen.iter().any(|buf| buf.phys() == first), "four fill it, so the first left");
    assert!(seen.iter().all(|buf| buf.phys() != fifth));
    lab.kernel().validate().unwrap();
}

/// Nobody else runs, nothing fails: a world whose CPUs are threads.
struct Threads;

impl Env for Threads {
    fn now(&self) -> u64 {
        0
    }
    fn prepare(&self, _on: Key) -> Ticket {
        Ticket::new(0)
    }
    fn park(&self, _ticket: Ticket, _until: Option<u64>) -> Wake {
        Wake::TimedOut
    }
    fn wake(&self, _on: Key, _n: usize) {}
    fn take_irq(&self) -> Option<Arc<dyn IrqHandler>> {
        None
    }
    fn point(&self, _point: Point) -> Verdict {
        Verdict::Pass
    }
    fn emit(&self, finding: Finding) {
        panic!("{finding}");
    }
}

#[test]
fn threads_that_allocate_and_free_each_other_s_objects_at_once_lose_none() {
    let machine = Machine::acquire(MachineConfig { pcp: true, cpus: 3, ..MachineConfig::default() }).unwrap();
    machine.kernel().trace().share();
    let kernel = machine.kernel_ref();
    let (to, from): (Vec<_>, Vec<_>) = (0..4).map(|_| std::sync::mpsc::channel()).unzip();
    std::thread::scope(|scope| {
        for (at, from) in from.into_iter().enumerate() {
            let to = to[(at + 1) % 4].clone();
            scope.spawn(move || {
                // Two of the four say that they are CPU 0.
                let id = u32::try_from(at % 3).unwrap();
                crate::cpu::set_current(id);
                let cpu = Cpu::new(id, kernel, &Threads);
                let mut kept = Vec::new();
                for step in 0..20_000_usize {
                    let len = [8, 64, 64, 1000, 2000, 9000][step % 6];
                    let mut buf = kmalloc(&cpu, len, GFP_KERNEL).unwrap();
                    buf.write_at(0, &[u8::try_from(at).unwrap(); 8]).unwrap();
                    match step % 3 {
                        0 => kept.push((at, buf)),
                        // Who is done already gives it back at once.
                        1 => drop(to.send((at, buf))),
                        _ => drop(buf),
                    }
                    kept.extend(from.try_iter());
                    while kept.len() > 300 {
                        let (of, buf) = kept.swap_remove(step % kept.len());
                        assert_eq!(bytes(&buf)[..8], [u8::try_from(of).unwrap(); 8], "it is nobody else's");
                    }
                }
            });
        }
    });
    drop(to);
    assert!(machine.kernel().findings().is_empty());
    machine.kernel().validate().unwrap();
    let leaks = crate::stats::leaks(machine.kernel());
    assert!(leaks.is_empty(), "{}", leaks.len());
    assert!(machine.kernel().slab_stats().iter().all(|stats| stats.active == 0));
}

#[test]
fn each_size_gets_its_class_and_beyond_4_mib_nothing_but_a_warning() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let classes = [
        (1, 8),
        (9, 16),
        (65, 96),
        (97, 128),
        (129, 192),
        (193, 256),
        (4097, 8192),
        (8193, 16384),
        (12289, 16384),
        (4 << 20, 4 << 20),
    ];
    for (size, class) in classes {
        let buf = kmalloc(&cpu, size, GFP_KERNEL).unwrap();
        let order = lab.kernel().object_at(buf.phys()).unwrap().large_order;
        assert_eq!(
            (ksize(&buf), order),
            (class, (size > 8192).then(|| crate::slab::get_order(class as u64))),
            "{size}"
        );
    }
    assert_eq!(kmalloc(&cpu, 0, GFP_KERNEL).unwrap().virt(), crate::addr::VirtAddr::new(16));
    assert!(lab.findings().is_empty());
    assert!(kmalloc(&cpu, (4 << 20) + 1, GFP_KERNEL).is_err());
    assert_eq!(lab.findings(), ["order-too-large"]);
}
