//! Random use of a pool by four CPUs against a shadow of who has which element.

use std::collections::BTreeMap;

use super::*;
use crate::gfp::{GFP_ATOMIC, GFP_KERNEL};
use crate::kernel::MachineConfig;
use crate::testing::Lab;

const OPERATIONS: u32 = 1_000_000;

/// A generator of our own: the same operations each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % below
    }
}

/// The reserve holds no element that is out, none twice, and no more than it may.
fn check(pool: &Mempool<Kmalloc>, out: &BTreeMap<u64, (KBuf, u32)>) {
    let reserve = pool.reserve.lock();
    assert!(reserve.elements.len() <= reserve.min_nr);
    let mut idle: Vec<_> = reserve.elements.iter().map(|element| element.phys().get()).collect();
    idle.sort_unstable();
    assert!(idle.windows(2).all(|pair| pair[0] != pair[1]), "an element is in reserve twice");
    assert!(idle.iter().all(|at| !out.contains_key(at)), "an element in reserve is out");
}

/// Does one operation on both; what is handed out must not be out, and still hold its owner's mark when it comes back.
fn step(lab: &Lab, cpu: &Cpu<'_>, pool: &Mempool<Kmalloc>, out: &mut BTreeMap<u64, (KBuf, u32)>, dice: &mut Dice) {
    match dice.roll(16) {
        0..=6 if out.len() < 64 => {
            if dice.roll(3) == 0 {
                lab.solo.fail_nth(0);
            }
            let sleepy = dice.roll(2) == 0 && pool.curr_nr() > 0;
            let Ok(mut element) = pool.alloc(cpu, if sleepy { GFP_KERNEL } else { GFP_ATOMIC }) else { return };
            let mark = u32::try_from(dice.roll(1 << 32)).unwrap();
            element.write_at(0, &mark.to_le_bytes()).unwrap();
            let before = out.insert(element.phys().get(), (element, mark));
            assert!(before.is_none(), "an element that is out was handed out");
        }
        15 if dice.roll(64) == 0 => pool.resize(cpu, 1 + usize::try_from(dice.roll(32)).unwrap()).unwrap(),
        _ => {
            let at = out.keys().nth(usize::try_from(dice.roll(64)).unwrap() % out.len().max(1)).copied();
            let Some((element, mark)) = at.and_then(|at| out.remove(&at)) else { return };
            let mut bytes = [0; 4];
            element.read_at(0, &mut bytes).unwrap();
            assert_eq!(u32::from_le_bytes(bytes), mark, "somebody wrote into an element that is out");
            pool.free(cpu, element);
        }
    }
}

#[test]
fn random_use_agrees_with_a_shadow_and_planted_corruption_is_found() {
    let lab = Lab::of(MachineConfig { ram: 64 << 20, cpus: 4, ..MachineConfig::default() });
    let cpus = [0, 1, 2, 3].map(|id| lab.cpu_number(id));
    let pool = mempool_create_kmalloc_pool(&cpus[0], 8, 128).unwrap();
    let (mut out, mut dice) = (BTreeMap::new(), Dice(0x9e37_79b9_7f4a_7c15));
    for n in 0..OPERATIONS {
        let cpu = &cpus[usize::try_from(dice.roll(4)).unwrap()];
        step(&lab, cpu, &pool, &mut out, &mut dice);
        if n % 1000 == 0 {
            check(&pool, &out);
            lab.kernel().validate().unwrap();
            lab.solo.points();
        }
    }
    let PoolUse { dips, refused, allocs, .. } = pool.usage();
    assert!(dips > 1000 && refused > 0 && allocs > 100_000, "{:?}", pool.usage());
    // An element that is out is put into the reserve as well: the check must see it.
    pool.resize(&cpus[0], 33).unwrap();
    let twice = pool.reserve.lock().elements.first().map(|element| element.phys().get()).unwrap();
    let stand_in = KBuf::kmalloc(&cpus[0], 128, GFP_KERNEL).unwrap();
    out.insert(twice, (stand_in, 0));
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&pool, &out)));
    assert!(found.is_err(), "an element in reserve and out at once went unseen");
}
