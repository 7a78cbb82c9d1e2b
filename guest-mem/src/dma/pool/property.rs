//! Random steps on a DMA pool against a shadow: who holds which bytes, and what is in them.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::testing::Lab;
use crate::testing::shadow::small;

#[derive(Clone, Copy, Debug)]
enum Step {
    Alloc { zero: bool },
    Free { which: usize },
    FreeAgain { which: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<bool>().prop_map(|zero| Step::Alloc { zero }),
        3 => any::<usize>().prop_map(|which| Step::Free { which }),
        1 => any::<usize>().prop_map(|which| Step::FreeAgain { which }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn blocks_are_apart_keep_their_bytes_and_are_given_last_first(
        (size, align, boundary) in (1..3000_usize, 0..9_u32, 0..3_u32),
        steps in vec(step(), 1..200),
    ) {
        let lab = Lab::of(small());
        let (cpu, device) = (lab.cpu(), lab.device(32));
        let align = if align == 0 { 0 } else { 1 << align };
        let boundary = if boundary == 0 { 0 } else { 4096 << boundary };
        let pool = dma_pool_create(&cpu, "test", &device, size, align, boundary).unwrap();
        let mut held: Vec<(Block, u8)> = Vec::new();
        let mut freed: Vec<(PhysAddr, DmaAddr)> = Vec::new();
        let mut told = 0;
        for (number, step) in (0_u8..).cycle().zip(steps) {
            match step {
                Step::Alloc { zero } => {
                    let block = pool.alloc(&cpu, if zero { GFP_KERNEL | Gfp::ZERO } else { GFP_KERNEL }).unwrap();
                    let (at, len) = (block.dma_addr().get(), block.len() as u64);
                    prop_assert_eq!(at % (align.max(1) as u64), 0);
                    if boundary != 0 && len <= 4096 {
                        prop_assert_eq!(at / boundary as u64, (at + len - 1) / boundary as u64);
                    }
                    prop_assert!(held.iter().all(|(other, _)| other.dma_addr().get().abs_diff(at) >= len));
                    if let Some(&(last, _)) = freed.last() {
                        let page = |phys: PhysAddr| phys.get() >> 12;
                        prop_assert!(page(last) != page(block.phys()) || last == block.phys(), "last in, first out");
                    }
                    let mut bytes = vec![1; block.len()];
                    block.read(&cpu, 0, &mut bytes);
                    prop_assert!(!zero || bytes.iter().all(|&byte| byte == 0));
                    block.write(&cpu, 0, &vec![number; block.len()]);
                    freed.retain(|(phys, _)| *phys != block.phys());
                    held.push((block, number));
                }
                Step::Free { which } if !held.is_empty() => {
                    let (block, byte) = held.swap_remove(which % held.len());
                    let mut bytes = vec![0; block.len()];
                    block.read(&cpu, 0, &mut bytes);
                    prop_assert!(bytes.iter().all(|&held| held == byte), "nobody else wrote there");
                    freed.push((block.phys(), block.dma_addr()));
                    block.free(&cpu);
                }
                Step::FreeAgain { which } if !freed.is_empty() => {
                    let (phys, dma) = freed[which % freed.len()];
                    dma_pool_free(&cpu, &pool, phys, dma);
                    told += 1;
                }
                _ => {}
            }
            prop_assert_eq!(pool.usage().0, held.len());
            prop_assert_eq!(pool.validate(), Ok(()));
        }
        prop_assert_eq!(lab.findings(), vec!["pool-double-free"; told]);
        drop((held, pool));
        prop_assert!(lab.leaks().is_empty());
        lab.kernel().validate().unwrap();
    }
}
