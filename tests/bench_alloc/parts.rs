//! Where the time of a pair goes: what each allocation does beside allocating, measured by itself.
//!
//! The parts are public calls of the kernel model, in the same world and process as the pairs; what is left of a pair is
//! finding the object, its books and the handle.

use std::hint::black_box;
use std::time::Instant;

use lowzone_guest_mem::env::Class;
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::lock::Locked;
use lowzone_guest_mem::page::alloc_pages;
use lowzone_guest_mem::trace::Kind;
use lowzone_guest_mem::{Cpu, KBuf};

use crate::ours::Objects;

const ROUNDS: usize = 15;
const TIMES: u32 = 20_000;

/// A name, and what is done.
type Part<'a> = (&'static str, &'a dyn Fn(&Cpu<'_>));

/// Prints the median of each part over some rounds, in turns.
pub fn print(objects: &Objects) {
    let lock = Locked::new(0_u32);
    let parts: [Part<'_>; 6] = [
        ("kmalloc of 64 bytes and kfree", &|cpu| drop(black_box(KBuf::kmalloc(cpu, 64, GFP_KERNEL)))),
        ("a page and its free", &|cpu| drop(black_box(alloc_pages(cpu, 0, GFP_KERNEL)))),
        ("  of it: one point, where a world may interfere", &|cpu| {
            let _ = black_box(cpu.point(Class::Slab, 64));
        }),
        ("  of it: two event records and their digest", &|cpu| {
            (0..2).for_each(|_| cpu.trace(black_box(Kind::Kmalloc), 4096, 64, 0, 0));
        }),
        ("  of it: two locks that nobody holds", &|_| (0..2).for_each(|_| *black_box(&lock).lock() += 1)),
        ("  of it: one call site", &|cpu| {
            black_box(cpu.owner());
        }),
    ];
    let mut all = parts.map(|_| Vec::new());
    objects.with_cpu(|cpu| {
        for _ in 0..ROUNDS {
            for ((_, part), nanos) in parts.iter().zip(&mut all) {
                let begun = Instant::now();
                (0..TIMES).for_each(|_| part(cpu));
                nanos.push(begun.elapsed().as_nanos() as f64 / f64::from(TIMES));
            }
        }
    });
    println!("where the time goes (ns; medians of {ROUNDS} rounds)");
    for ((name, _), nanos) in parts.iter().zip(&mut all) {
        nanos.sort_by(f64::total_cmp);
        println!("  {name:<52}{:>8.1}", nanos[ROUNDS / 2]);
    }
}
