//! A million operations of four CPUs on per-CPU memory against a shadow of what each copy holds.

use super::*;
use crate::gfp::{__GFP_NOWARN, GFP_ATOMIC};
use crate::testing::Lab;
use crate::testing::shadow::{Dice, EVERY, OPERATIONS, small};

/// A variable of one of several sizes, and what its copies must hold.
enum Any {
    Small(PerCpu<u64>),
    Middle(PerCpu<[u64; 9]>),
    Large(PerCpu<[u64; 500]>),
}

struct Shadow {
    variable: Any,
    copies: [u64; 4],
}

impl Any {
    fn new(cpu: &Cpu<'_>, size: u64, gfp: Gfp) -> Option<Self> {
        match size {
            0..4 => alloc_percpu_gfp(cpu, gfp).ok().map(Self::Small),
            4..7 => alloc_percpu_gfp(cpu, gfp).ok().map(Self::Middle),
            _ => alloc_percpu_gfp(cpu, gfp).ok().map(Self::Large),
        }
    }

    fn span(&self) -> (u64, u64) {
        match self {
            Self::Small(it) => (it.offset(0), 8),
            Self::Middle(it) => (it.offset(0), 72),
            Self::Large(it) => (it.offset(0), 4000),
        }
    }

    fn add(&self, cpu: &Cpu<'_>, n: u64) {
        match self {
            Self::Small(it) => it.this_cpu_add(cpu, n),
            Self::Middle(it) => {
                let mut held = it.get(cpu);
                let mut value = held.value();
                value[8] += n;
                held.set(value);
            }
            Self::Large(it) => {
                let mut value = it.this_cpu_read(cpu);
                value[499] += n;
                it.this_cpu_write(cpu, value);
            }
        }
    }

    fn copy(&self, cpu: u32) -> u64 {
        match self {
            Self::Small(it) => it.per_cpu(cpu),
            Self::Middle(it) => it.per_cpu(cpu)[8],
            Self::Large(it) => it.per_cpu(cpu)[499],
        }
    }
}

/// No two variables share a byte of a unit, and every copy holds what was added there.
fn check(all: &[Shadow]) {
    let mut spans: Vec<_> = all.iter().map(|it| it.variable.span()).collect();
    spans.sort_unstable();
    assert!(spans.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "two variables overlap");
    for it in all {
        assert_eq!([0, 1, 2, 3].map(|cpu| it.variable.copy(cpu)), it.copies);
    }
}

fn step(lab: &Lab, cpu: &Cpu<'_>, all: &mut Vec<Shadow>, dice: &mut Dice) {
    match dice.roll(16) {
        0..=3 if all.len() < 96 => {
            let gfp = if dice.roll(2) == 0 { GFP_KERNEL } else { GFP_ATOMIC | __GFP_NOWARN };
            if dice.roll(16) == 0 {
                lab.solo.fail_nth(0);
            }
            let Some(variable) = Any::new(cpu, dice.roll(8), gfp) else { return };
            let shadow = Shadow { variable, copies: [0; 4] };
            assert_eq!([0, 1, 2, 3].map(|cpu| shadow.variable.copy(cpu)), [0; 4], "not zeroed");
            all.push(shadow);
        }
        4..=6 if !all.is_empty() => {
            let gone = all.swap_remove(dice.index(all.len()));
            assert_eq!([0, 1, 2, 3].map(|cpu| gone.variable.copy(cpu)), gone.copies);
        }
        _ if !all.is_empty() => {
            let (which, n) = (dice.index(all.len()), dice.roll(1000));
            all[which].variable.add(cpu, n);
            all[which].copies[cpu.id() as usize] += n;
        }
        _ => {}
    }
}

#[test]
fn a_million_operations_agree_with_a_shadow() {
    let lab = Lab::of(small());
    let cpus = [0, 1, 2, 3].map(|id| lab.cpu_number(id));
    let (mut all, mut dice) = (Vec::new(), Dice::new(0x2545_f491_4f6c_dd1d));
    for n in 0..OPERATIONS {
        let cpu = &cpus[dice.index(4)];
        step(&lab, cpu, &mut all, &mut dice);
        if n.is_multiple_of(EVERY) {
            check(&all);
            lab.kernel().validate().unwrap();
            lab.solo.points();
        }
    }
    assert!(all.iter().any(|it| matches!(it.variable, Any::Large(_))) && all.len() > 50);
}
