//! A million operations of four CPUs on a pool, against a shadow of who has which byte.

use super::*;
use crate::gfp::{GFP_ATOMIC, GFP_KERNEL};
use crate::testing::Lab;
use crate::testing::shadow::{Dice, EVERY, OPERATIONS, Shadow, small};

/// The reserve holds no element that is out, none twice, and no more than it may.
fn check(pool: &Mempool<Kmalloc>, out: &Shadow<KBuf>) {
    let reserve = pool.reserve.lock();
    assert!(reserve.elements.len() <= reserve.min_nr);
    let mut idle: Vec<_> = reserve.elements.iter().map(|element| element.phys().get()).collect();
    idle.sort_unstable();
    assert!(idle.windows(2).all(|pair| pair[0] != pair[1]), "an element is in reserve twice");
    assert!(idle.iter().all(|&at| !out.owns(at)), "an element in reserve is out");
    out.check_all();
}

/// Does one operation on both.
fn step(lab: &Lab, cpu: &Cpu<'_>, pool: &Mempool<Kmalloc>, out: &mut Shadow<KBuf>, dice: &mut Dice) {
    match dice.roll(16) {
        0..=6 if out.len() < 64 => {
            if dice.once_in(3) {
                lab.solo.fail_nth(0);
            }
            let sleepy = dice.once_in(2) && pool.curr_nr() > 0;
            let Ok(element) = pool.alloc(cpu, if sleepy { GFP_KERNEL } else { GFP_ATOMIC }) else { return };
            out.take(element, 128);
        }
        15 if dice.once_in(64) => pool.resize(cpu, 1 + dice.index(32)).unwrap(),
        _ if out.len() > 0 => {
            let index = dice.index(out.len());
            pool.free(cpu, out.give(index).0);
        }
        _ => {}
    }
}

#[test]
fn a_million_operations_agree_with_a_shadow() {
    let lab = Lab::of(small());
    let cpus = [0, 1, 2, 3].map(|id| lab.cpu_number(id));
    let pool = mempool_create_kmalloc_pool(&cpus[0], 8, 128).unwrap();
    let (mut out, mut dice) = (Shadow::new(), Dice::new(0x9e37_79b9_7f4a_7c15));
    for n in 0..OPERATIONS {
        let cpu = &cpus[dice.index(4)];
        step(&lab, cpu, &pool, &mut out, &mut dice);
        if n.is_multiple_of(EVERY) {
            check(&pool, &out);
            lab.kernel().validate().unwrap();
            lab.solo.points();
        }
    }
    let PoolUse { dips, refused, allocs, .. } = pool.usage();
    assert!(dips > 1000 && refused > 0 && allocs > 100_000, "{:?}", pool.usage());
}
