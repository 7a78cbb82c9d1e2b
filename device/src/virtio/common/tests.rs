use super::*;
use crate::testing::Fake;

fn common() -> CommonConfig {
    CommonConfig::new(&Fake, 3)
}

fn accept(common: &mut CommonConfig, select: u64, bits: u64) {
    common.write(8, Width::B4, select).unwrap();
    common.write(12, Width::B4, bits).unwrap();
}

fn agreed() -> CommonConfig {
    let mut common = common();
    accept(&mut common, 1, 1);
    common.write(20, Width::B1, (ACKNOWLEDGE | DRIVER | FEATURES_OK).into()).unwrap();
    assert_eq!(common.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    common
}

fn queue(common: &mut CommonConfig, size: u64, desc: u64, avail: u64, used: u64) -> bool {
    for (at, width, value) in [
        (24, Width::B2, size),
        (32, Width::B4, desc),
        (40, Width::B4, avail),
        (48, Width::B4, used),
        (52, Width::B4, 1),
        (28, Width::B2, 1),
    ] {
        assert_eq!(common.write(at, width, value), Some(Effect::None));
    }
    common.read(28, Width::B2) == Some(1)
}

#[test]
fn features_show_through_a_window_of_32_bits() {
    let mut common = common();
    let seen = [0, 1, 2, u32::MAX].map(|select| {
        common.write(0, Width::B4, select.into()).unwrap();
        common.read(4, Width::B4).unwrap()
    });
    assert_eq!(seen, [0x30, 1, 0, 0]);
}

#[test]
fn features_ok_is_refused_without_version_1_or_with_a_bit_not_offered() {
    let refused = |pairs: &[(u64, u64)]| {
        let mut common = common();
        pairs.iter().for_each(|(select, bits)| accept(&mut common, *select, *bits));
        common.write(20, Width::B1, FEATURES_OK.into()).unwrap();
        common.status() & FEATURES_OK == 0
    };
    assert!(refused(&[]));
    assert!(refused(&[(0, 0x30)]));
    assert!(refused(&[(0, 0x70), (1, 1)]));
    assert!(refused(&[(1, 1), (2, 1)]));
    assert!(!refused(&[(0, 0x10), (1, 1)]));
}

#[test]
fn features_freeze_at_features_ok() {
    let mut common = agreed();
    accept(&mut common, 0, 0x30);
    assert_eq!(common.read(12, Width::B4), Some(0));
}

#[test]
fn status_bits_only_get_set_and_driver_ok_needs_features_ok() {
    let mut common = common();
    assert_eq!(common.write(20, Width::B1, (DRIVER | DRIVER_OK).into()), Some(Effect::None));
    assert_eq!(common.status(), DRIVER);
    common.write(20, Width::B1, (ACKNOWLEDGE | NEEDS_RESET).into()).unwrap();
    assert_eq!(common.status(), DRIVER | ACKNOWLEDGE, "NEEDS_RESET is the device's");
    let mut common = agreed();
    assert_eq!(common.write(20, Width::B1, DRIVER_OK.into()), Some(Effect::Activate));
    assert_eq!(common.write(20, Width::B1, DRIVER_OK.into()), Some(Effect::None), "once");
    assert!(common.set_needs_reset() && !common.set_needs_reset());
    assert_eq!(common.write(20, Width::B1, 0), Some(Effect::Reset));
    common.reset();
    assert_eq!((common.status(), common.read(24, Width::B2)), (0, Some(64)));
}

#[test]
fn a_queue_is_enabled_only_if_a_worker_could_run_on_it() {
    for (size, desc, avail, used, good) in [
        (64, 0x1000, 0x2000, 0x3000, true),
        (1, 0x1010, 0x2002, 0x3004, true),
        (0, 0x1000, 0x2000, 0x3000, false),
        (48, 0x1000, 0x2000, 0x3000, false),
        (128, 0x1000, 0x2000, 0x3000, false),
        (64, 0x1008, 0x2000, 0x3000, false),
        (64, 0x1000, 0x2001, 0x3000, false),
        (64, 0x1000, 0x2000, 0x3002, false),
        (64, 0x1000, 0, 0x3000, false),
    ] {
        let mut common = agreed();
        assert_eq!(queue(&mut common, size, desc, avail, used), good, "{size} {desc:#x} {avail:#x} {used:#x}");
        assert_eq!(common.queue_config(0).is_some(), good);
    }
}

#[test]
fn an_enabled_queue_keeps_its_layout_and_a_running_one_everything() {
    let mut common = agreed();
    assert!(queue(&mut common, 32, 0x1000, 0x2000, 0x3000));
    common.write(24, Width::B2, 16).unwrap();
    common.write(36, Width::B4, 7).unwrap();
    common.write(26, Width::B2, 2).unwrap();
    let config = QueueConfig {
        index: 0,
        size: 32,
        desc: 0x1000,
        avail: 0x2000,
        used: 0x1_0000_3000,
        features: VERSION_1,
        start: 0,
    };
    assert_eq!((common.queue_config(0), common.queue_vector(0)), (Some(config), 2));
    common.write(20, Width::B1, DRIVER_OK.into()).unwrap();
    common.write(26, Width::B2, 1).unwrap();
    assert_eq!(common.queue_vector(0), 2);
    common.write(22, Width::B2, 1).unwrap();
    assert!(!queue(&mut common, 32, 0x1000, 0x2000, 0x3000), "too late");
}

#[test]
fn a_queue_that_does_not_exist_has_size_zero_and_takes_nothing() {
    let mut common = agreed();
    common.write(22, Width::B2, 2).unwrap();
    assert_eq!(common.read(24, Width::B2), Some(0));
    assert!(!queue(&mut common, 32, 0x1000, 0x2000, 0x3000));
    assert_eq!((common.queue_config(2), common.queue_vector(2)), (None, NO_VECTOR));
}

#[test]
fn a_vector_that_does_not_exist_reads_back_as_none() {
    let mut common = common();
    for (written, read) in [(2, 2), (3, 0xffff), (0xffff, 0xffff)] {
        common.write(16, Width::B2, written).unwrap();
        common.write(26, Width::B2, written).unwrap();
        assert_eq!((common.read(16, Width::B2), common.read(26, Width::B2)), (Some(read), Some(read)));
    }
}

#[test]
fn only_accesses_as_wide_as_the_field_are_answered() {
    let mut common = common();
    for offset in 0..80 {
        let widths = [Width::B1, Width::B2, Width::B4, Width::B8];
        let answered = widths.iter().filter(|width| common.read(offset, **width).is_some()).count();
        assert!(answered <= 1, "{offset}");
        for width in widths {
            assert_eq!(common.read(offset, width).is_some(), common.write(offset, width, 0).is_some(), "{offset}");
        }
    }
    assert_eq!(common.read(32, Width::B8), None);
}
