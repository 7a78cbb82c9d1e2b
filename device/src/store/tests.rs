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
