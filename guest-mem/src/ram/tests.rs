use super::*;

const GIB: u64 = 1 << 30;

#[test]
fn the_hole_below_4_gib_is_not_ram() {
    let ram = Ram::new(6 * GIB, 3 * GIB).unwrap();
    assert!(ram.contains(PhysAddr::new(3 * GIB - 8), 8));
    assert!(!ram.contains(PhysAddr::new(3 * GIB - 8), 9));
    assert!(ram.contains(PhysAddr::new(HIGH_START), 3 * GIB));
    assert!(!ram.contains(PhysAddr::new(u64::MAX), 2));
    assert!(ram.write(PhysAddr::new(3 * GIB), &[1]).is_err());
    assert_eq!(ram.end(), 7 * GIB);
}

#[test]
fn a_range_overlaps_ram_if_any_byte_is_ram() {
    let ram = Ram::new(6 * GIB, 3 * GIB).unwrap();
    let overlaps = |at, len| ram.overlaps(PhysAddr::new(at), len);
    assert!(overlaps(0, 1) && overlaps(3 * GIB - 1, 2) && overlaps(HIGH_START - 1, 2) && overlaps(3 * GIB, u64::MAX));
    assert!(!overlaps(3 * GIB, GIB) && !overlaps(7 * GIB, 1) && !overlaps(0, 0) && !overlaps(u64::MAX, 1));
    assert!(!Ram::new(GIB, GIB).unwrap().overlaps(PhysAddr::new(GIB), u64::MAX), "nothing above 4 GiB");
}

#[test]
fn a_reset_clears_what_was_written_and_only_that() {
    let ram = Ram::new(6 * GIB, 3 * GIB).unwrap();
    let places = [0_u64, 4096 * 5 + 17, 3 * GIB - 1, HIGH_START + 12345];
    for at in places {
        ram.write(PhysAddr::new(at), &[0xa5]).unwrap();
    }
    ram.store(PhysAddr::new(HIGH_START + (1 << 20)), 7_u32).unwrap();
    ram.copy(PhysAddr::new(0), PhysAddr::new(8 << 20), 4096).unwrap();
    assert_eq!(ram.reset().unwrap(), 6);
    for at in places {
        let mut byte = [1];
        ram.read(PhysAddr::new(at), &mut byte).unwrap();
        assert_eq!(byte, [0], "at {at:#x}");
    }
    assert_eq!(ram.load::<u32>(PhysAddr::new(HIGH_START + (1 << 20))).unwrap(), 0);
    assert_eq!(ram.reset().unwrap(), 0, "a reset leaves nothing dirty");
}

#[test]
fn long_runs_are_punched_out_and_read_as_zero() {
    let ram = Ram::new(64 << 20, 64 << 20).unwrap();
    let page = [7_u8; 4096];
    for i in 0..1000 {
        ram.write(PhysAddr::new((1 << 20) + i * 4096), &page).unwrap();
    }
    assert_eq!(ram.reset().unwrap(), 1000);
    assert_eq!(ram.load::<u8>(PhysAddr::new((1 << 20) + 999 * 4096)).unwrap(), 0);
}

#[test]
fn bad_sizes_name_themselves() {
    assert_eq!(Ram::new(0, GIB).unwrap_err().to_string(), "RAM of 0 bytes");
    assert_eq!(Ram::new(4097, 4096).unwrap_err().to_string(), "RAM of 4097 bytes is not a multiple of 4096");
    assert!(matches!(Ram::new(RAM_LIMIT + 4096, GIB), Err(RamError::TooLarge { .. })));
    assert!(matches!(Ram::new(8 * GIB, 4 * GIB), Err(RamError::LowTooLarge { .. })));
}

#[test]
fn what_another_process_wrote_is_cleared_too() {
    use std::os::unix::fs::FileExt;

    let ram = Ram::new(6 * GIB, 3 * GIB).unwrap();
    ram.file().write_all_at(&[7], 3 * GIB + 5).unwrap();
    assert_eq!(ram.load::<u8>(PhysAddr::new(HIGH_START + 5)).unwrap(), 7, "RAM above 4 GiB follows low RAM");
    assert_eq!(ram.reset().unwrap(), 6 * GIB / 4096);
    assert_eq!(ram.load::<u8>(PhysAddr::new(HIGH_START + 5)).unwrap(), 0);
    assert_eq!(ram.reset().unwrap(), 0, "nobody has had it since");
}
