use std::fs;
use std::io::Write;

use super::*;

/// A file of its own for each test, removed at the end.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("lowzone-store-{}-{name}", std::process::id()));
        fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

fn read(store: &Store, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![0; len];
    store.read_at(offset, &VolatileSlice::from(&mut bytes[..]))?;
    Ok(bytes)
}

fn write(store: &Store, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
    let mut bytes = bytes.to_vec();
    store.write_at(offset, &VolatileSlice::from(&mut bytes[..]))
}

#[test]
fn both_stores_give_back_what_was_written() {
    let file = Temp::new("both", &[0; 1024]);
    let image = Store::Image(ImageStore::open(&file.0, false).unwrap());
    for store in [image, Store::Memory(MemoryStore::zeroed(1024).unwrap())] {
        assert_eq!(store.capacity(), 1024);
        write(&store, 510, &[1, 2, 3, 4]).unwrap();
        store.flush().unwrap();
        assert_eq!(read(&store, 509, 6).unwrap(), [0, 1, 2, 3, 4, 0]);
        for (offset, len) in [(1023, 2), (1024, 1), (u64::MAX, 1)] {
            assert!(matches!(read(&store, offset, len), Err(StoreError::Beyond { size: 1024, .. })));
            assert!(matches!(write(&store, offset, &vec![9; len]), Err(StoreError::Beyond { size: 1024, .. })));
        }
    }
    assert_eq!(fs::read(&file.0).unwrap()[510..514], [1, 2, 3, 4]);
}

#[test]
fn a_read_only_image_refuses_writes_and_stays_as_it_is() {
    let file = Temp::new("ro", &[5; 512]);
    let store = Store::Image(ImageStore::open(&file.0, true).unwrap());
    assert!(store.read_only());
    assert!(matches!(write(&store, 0, &[1]), Err(StoreError::ReadOnly { offset: 0 })));
    assert_eq!(read(&store, 0, 2).unwrap(), [5, 5]);
}

#[test]
fn what_is_no_image_is_said_so() {
    let missing = ImageStore::open("/nonexistent/image", true).unwrap_err();
    assert!(matches!(missing, StoreError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound));
    assert!(matches!(ImageStore::open(std::env::temp_dir(), true), Err(StoreError::NotAFile { .. })));
    assert!(matches!(ImageStore::open("/dev/null", true), Err(StoreError::NotAFile { .. })));
    for size in [0, 511, 513] {
        let file = Temp::new(&format!("size-{size}"), &vec![0; size]);
        let wrong = ImageStore::open(&file.0, true).unwrap_err();
        assert!(matches!(wrong, StoreError::ImageSize { size: seen, .. } if seen == size as u64));
        assert!(matches!(MemoryStore::zeroed(size as u64), Err(StoreError::Size { .. })));
    }
}

#[test]
fn a_size_that_changes_under_way_fails_every_access() {
    let file = Temp::new("resized", &[0; 1024]);
    let store = Store::Image(ImageStore::open(&file.0, false).unwrap());
    fs::OpenOptions::new().append(true).open(&file.0).unwrap().write_all(&[1]).unwrap();
    for result in [read(&store, 0, 1).map(|_| ()), write(&store, 0, &[1]), store.flush()] {
        assert!(matches!(result, Err(StoreError::Resized { was: 1024, now: 1025 })));
    }
    fs::OpenOptions::new().write(true).open(&file.0).unwrap().set_len(512).unwrap();
    assert!(matches!(read(&store, 0, 1), Err(StoreError::Resized { was: 1024, now: 512 })));
}

#[test]
fn what_is_cleared_reads_as_zeros_and_its_neighbours_stay() {
    let (file, logged, log) =
        (Temp::new("clear", &[7; 1 << 18]), Temp::new("logged", &[7; 1 << 18]), Temp::new("log", &[]));
    let open = |temp: &Temp| ImageStore::open(&temp.0, false).unwrap();
    let journal = fs::OpenOptions::new().append(true).open(&log.0).unwrap();
    let memory = Store::Memory(MemoryStore::zeroed(1 << 18).unwrap());
    write(&memory, 0, &[7; 1 << 18]).unwrap();
    for store in [memory, Store::Image(open(&file)), Store::Logged(LoggedStore::new(open(&logged), journal, true))] {
        // Across whole pieces of every kind of store, and not in line with any.
        for (at, len, unmap) in [(100, 0x2_0000, true), (0x3_0001, 3, false), (0x3_1000, 0x1000, true)] {
            store.clear(at, len, unmap).unwrap();
        }
        store.clear(0, 0, true).unwrap();
        let cleared = |at: usize| {
            (100..100 + 0x2_0000).contains(&at)
                || (0x3_0001..0x3_0004).contains(&at)
                || (0x3_1000..0x3_2000).contains(&at)
        };
        for (at, byte) in read(&store, 0, 1 << 18).unwrap().into_iter().enumerate() {
            assert_eq!(byte, if cleared(at) { 0 } else { 7 }, "{at:#x} of {store:?}");
        }
        for (at, len) in [(1 << 18, 1), ((1 << 18) - 1, 2), (u64::MAX, 1), (0, u64::MAX)] {
            assert!(matches!(store.clear(at, len, true), Err(StoreError::Beyond { size: 0x4_0000, .. })));
        }
        write(&store, 0x3_1000, &[9]).unwrap();
        assert_eq!(read(&store, 0x3_0fff, 3).unwrap(), [7, 9, 0]);
    }
    assert_eq!(fs::metadata(&file.0).unwrap().len(), 1 << 18, "its size stays");
    let entries = entries(&fs::read(&log.0).unwrap());
    let zeros = entries.iter().map(|entry| match entry {
        Entry::Write(at, data) => (*at, data.len(), data.iter().all(|byte| *byte == 0)),
        Entry::Flush => panic!("nobody flushed"),
    });
    assert_eq!(
        zeros.collect::<Vec<_>>(),
        [(100, 0x2_0000, true), (0x3_0001, 3, true), (0x3_1000, 0x1000, true), (0, 0, true), (0x3_1000, 1, false)]
    );
    let read_only = Store::Image(ImageStore::open(&file.0, true).unwrap());
    assert!(matches!(read_only.clear(0, 1, true), Err(StoreError::ReadOnly { offset: 0 })));
}

#[test]
fn a_hole_gives_space_back_where_the_file_system_can() {
    use std::os::unix::fs::MetadataExt;
    let file = Temp::new("hole", &[7; 1 << 20]);
    let store = Store::Image(ImageStore::open(&file.0, false).unwrap());
    let blocks = || fs::metadata(&file.0).unwrap().blocks();
    let before = blocks();
    store.clear(0, 1 << 19, false).unwrap();
    assert_eq!(blocks(), before, "zeros that keep their space");
    store.clear(0, 1 << 20, true).unwrap();
    let probe = fs::File::options().write(true).open(&file.0).unwrap();
    // What the file system says of holes by itself is the oracle.
    let can = fallocate(&probe, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096).is_ok();
    assert_eq!(blocks() == 0, can);
}
