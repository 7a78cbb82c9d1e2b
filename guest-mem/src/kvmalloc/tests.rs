use super::*;
use crate::env::Class;
use crate::gfp::{__GFP_NOFAIL, __GFP_RETRY_MAYFAIL, GFP_ATOMIC, GFP_KERNEL};
use crate::lock::SpinLock;
use crate::testing::Lab;
use crate::vmalloc::is_vmalloc_addr;

#[test]
fn kmalloc_first_and_vmalloc_beyond_it_for_who_may_sleep() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let mut large = kvzalloc(&cpu, (4 << 20) + 1, GFP_KERNEL).unwrap();
    assert!(is_vmalloc_addr(lab.kernel(), large.virt()) && large.len() == (4 << 20) + 1 && !large.is_empty());
    large.write_at(4 << 20, &[7]).unwrap();
    let mut byte = [0];
    large.read_at(4 << 20, &mut byte).unwrap();
    assert_eq!(byte, [7]);
    kvfree(&cpu, large);
    let small = kvmalloc(&cpu, 4 << 20, GFP_KERNEL).unwrap();
    assert!(!is_vmalloc_addr(lab.kernel(), small.virt()));
    kvfree(&cpu, small);
    assert!(matches!(kvmalloc(&cpu, (4 << 20) + 1, GFP_ATOMIC), Err(KvmallocError::Kmalloc(_))));
    assert!(matches!(kvmalloc(&cpu, 1 << 31, GFP_KERNEL), Err(KvmallocError::Crazy { .. })));
    assert!(matches!(kvmalloc_array(&cpu, usize::MAX, 2, GFP_KERNEL), Err(KvmallocError::Overflow { .. })));
    assert!(lab.findings().is_empty() && lab.leaks().is_empty() && lab.log().is_empty());
}

#[test]
fn a_failed_kmalloc_falls_back_beyond_one_page_only() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    lab.solo.fail_nth(0);
    assert!(matches!(kvmalloc(&cpu, 65536, GFP_KERNEL), Ok(KvBuf::Vmalloc(_))));
    lab.solo.fail_nth(0);
    assert!(matches!(kvmalloc(&cpu, 4096, GFP_KERNEL), Err(KvmallocError::Kmalloc(_))));
    lab.solo.fail_nth(0);
    assert!(matches!(kvmalloc(&cpu, 65536, GFP_ATOMIC), Err(KvmallocError::Kmalloc(_))));
}

#[test]
fn the_first_attempt_makes_no_effort() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let first = |gfp| {
        lab.solo.points();
        drop(kvmalloc(&cpu, 65536, gfp).unwrap());
        let request = lab.solo.requests()[0];
        assert_eq!(request.class, Class::Page);
        [Gfp::NOWARN, Gfp::NORETRY, Gfp::NOFAIL].map(|bit| request.gfp.contains(bit))
    };
    assert_eq!(first(GFP_KERNEL | __GFP_NOFAIL), [true, true, false]);
    assert_eq!(first(GFP_KERNEL | __GFP_RETRY_MAYFAIL), [true, false, false]);
}

/// kvfree of kmalloc memory is fine under a lock; of vmalloc memory it sleeps.
#[test]
fn freeing_sleeps_for_one_kind_only() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let (small, large) = (kvmalloc(&cpu, 100, GFP_KERNEL).unwrap(), kvmalloc(&cpu, 5 << 20, GFP_KERNEL).unwrap());
    let lock = SpinLock::new(());
    let _guard = lock.lock(&cpu);
    kvfree(&cpu, small);
    assert!(lab.findings().is_empty());
    kvfree(&cpu, large);
    assert_eq!(lab.findings(), ["sleep-in-atomic"]);
}
