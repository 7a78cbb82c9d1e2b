use proptest::prelude::*;

use super::*;
use crate::pci::caps;

const IDENTITY: Identity =
    Identity { vendor: 0x1af4, device: 0x1042, revision: 1, class: 0x01_0000, subsystem_vendor: 0x1af4, subsystem: 2 };

fn space() -> ConfigSpace {
    let bars = [BarSpec { index: 0, size: 0x8000, wide: true }, BarSpec { index: 2, size: 0x1000, wide: false }];
    let mut list = CapabilityList::default();
    list.push(caps::VENDOR, &[1, 2], &[0, 0xf0]).unwrap();
    ConfigSpace::new(&IDENTITY, &bars, &list).unwrap()
}

#[test]
fn the_header_says_who_it_is() {
    let space = space();
    assert_eq!(space.read(0x00, Width::B4), 0x1042_1af4);
    assert_eq!(space.read(0x08, Width::B4), 0x0100_0001);
    assert_eq!(space.read(0x2c, Width::B4), 0x0002_1af4);
    assert_eq!(space.read(0x0e, Width::B1), 0);
    assert_eq!(space.read(0x3d, Width::B1), 1);
    assert_eq!((space.read(0x06, Width::B2), space.read(0x34, Width::B1)), (0x10, 0x40));
}

#[test]
fn bars_are_sized_by_writing_ones() {
    let mut space = space();
    for at in [0x10, 0x14, 0x18, 0x1c] {
        space.write(at, Width::B4, u32::MAX);
    }
    assert_eq!(space.read(0x10, Width::B4), 0xffff_8004);
    assert_eq!(space.read(0x14, Width::B4), 0xffff_ffff);
    assert_eq!(space.read(0x18, Width::B4), 0xffff_f000);
    assert_eq!(space.read(0x1c, Width::B4), 0, "not implemented");
}

#[test]
fn decoding_follows_the_bar_and_the_memory_bit() {
    let mut space = space();
    space.write(COMMAND, Width::B2, COMMAND_MEMORY.into());
    assert_eq!(space.decode(0, Width::B4), None, "no address yet");
    space.write(0x10, Width::B4, 0xe000_0000);
    space.write(0x14, Width::B4, 1);
    space.write(0x18, Width::B4, 0xfffff000);
    assert_eq!(space.decode(0x1_e000_7ffc, Width::B4), Some((0, 0x7ffc)));
    assert_eq!(space.decode(0x1_e000_7ffc, Width::B8), None, "straddles the end");
    assert_eq!(space.decode(0xffff_ffff, Width::B1), Some((2, 0xfff)));
    assert_eq!(space.decode(0xe000_0000, Width::B4), None);
    assert_eq!(space.decode(u64::MAX, Width::B8), None);
    space.write(0x14, Width::B4, 2);
    assert_eq!(space.decode(0x1_e000_0000, Width::B4), None, "stale");
    space.write(COMMAND, Width::B2, 0);
    assert_eq!(space.decode(0x2_e000_0000, Width::B4), None);
}

#[test]
fn accesses_nobody_answers_read_ones_and_write_nothing() {
    let mut space = space();
    assert_eq!(space.read(0x01, Width::B2), 0xffff);
    assert_eq!(space.read(0x00, Width::B8), u32::MAX);
    assert_eq!(space.read(0x100, Width::B1), 0xff);
    assert_eq!(space.read(u16::MAX, Width::B1), 0xff);
    space.write(0x05, Width::B2, 0xffff);
    space.write(0x100, Width::B4, 0);
    assert_eq!(space.command(), 0);
}

#[test]
fn reset_takes_everything_back() {
    let mut space = space();
    space.write(COMMAND, Width::B2, 0xffff);
    space.write(0x10, Width::B4, 0xe000_0000);
    space.set_interrupt_status(true);
    assert_eq!((space.command(), space.read(STATUS, Width::B2)), (0x406, 0x18));
    space.reset();
    assert_eq!((space.command(), space.bar(0), space.read(STATUS, Width::B2)), (0, None, 0x10));
}

#[test]
fn impossible_bars_are_errors() {
    let build = |index, size, wide| {
        ConfigSpace::new(&IDENTITY, &[BarSpec { index, size, wide }], &CapabilityList::default()).err()
    };
    assert_eq!(build(0, 0x3000, false), Some(ConfigError::Size { index: 0, size: 0x3000 }));
    assert_eq!(build(0, 8, false), Some(ConfigError::Size { index: 0, size: 8 }));
    assert_eq!(build(0, 1 << 32, false), Some(ConfigError::Size { index: 0, size: 1 << 32 }));
    assert_eq!(build(6, 0x1000, false), Some(ConfigError::Index { index: 6 }));
    assert_eq!(build(5, 0x1000, true), Some(ConfigError::Index { index: 5 }));
    let both = [BarSpec { index: 0, size: 0x1000, wide: true }, BarSpec { index: 1, size: 0x1000, wide: false }];
    let made = ConfigSpace::new(&IDENTITY, &both, &CapabilityList::default());
    assert_eq!(made.err(), Some(ConfigError::Index { index: 1 }));
}

proptest! {
    #[test]
    fn no_write_changes_a_bit_that_is_not_writable(
        writes in prop::collection::vec((any::<u16>(), 0u8..4, any::<u32>()), 0..60)
    ) {
        let mut space = space();
        for (offset, width, value) in writes {
            let width = Width::from_bytes(1 << width).unwrap();
            space.write(offset % 300, width, value);
        }
        for at in 0..END {
            prop_assert_eq!((space.bytes[at] ^ space.initial[at]) & !space.mask[at], 0);
        }
        prop_assert_eq!(space.read(0x43, Width::B1) & 0x0f, 2, "the writable nibble of the capability alone");
    }
}
