//! Real data through the device to a second store and back, with hashes from three sources.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use lowzone_tests::image::{self, Folder};
use lowzone_tests::program::{Outcome, lowzone};

/// The image's size in MiB: small by default, as the story says with `LOWZONE_LONG` set.
fn mib() -> u64 {
    if std::env::var_os("LOWZONE_LONG").is_some() { 256 } else { 64 }
}

fn copy_and_compare(file: &Path) {
    let before = (fs::metadata(file).unwrap().modified().unwrap(), image::sha256(file), image::sha256sum(file));
    assert_eq!(before.1, before.2, "our hash is sha256sum's");
    let set = format!("image={}", file.display());
    for world in ["lockstep", "threads"] {
        compare(file, &before, &lowzone(["run", "block/copy-image", "--json", "--set", &set, "--world", world]));
    }
}

fn compare(file: &Path, before: &(SystemTime, String, String), outcome: &Outcome) {
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(outcome.stderr, "", "no progress bar and no complaint in a pipe");
    let result = outcome.json();
    let row = &result["copies"][0];
    assert_eq!(row["bytes"].as_u64(), Some(fs::metadata(file).unwrap().len()));
    for place in ["source", "read", "copy"] {
        assert_eq!(row[place].as_str(), Some(before.1.as_str()), "SHA-256 of {place}");
    }
    let findings = result["findings"].as_array().unwrap();
    assert!(findings.is_empty() && result["leaks"].as_array().unwrap().is_empty(), "{findings:?}");
    let after = (fs::metadata(file).unwrap().modified().unwrap(), image::sha256(file));
    assert_eq!(after, (before.0, before.1.clone()), "the source is untouched");
}

#[test]
fn shows_2_an_ext4_image_comes_back_as_it_was() {
    let folder = Folder::new();
    match image::ext4(&folder, mib()) {
        Ok(image) => copy_and_compare(&image),
        Err(why) if std::env::var_os("LOWZONE_SKIP").is_some() => println!("SKIPPED: {why}"),
        Err(why) => panic!("{why}: install e2fsprogs, or set LOWZONE_SKIP to go without"),
    }
}

#[test]
fn shows_2_any_file_padded_to_sectors_comes_back_as_it_was() {
    let folder = Folder::new();
    for len in [512, 512 * 129, (3 << 20) + 512] {
        copy_and_compare(&folder.file("padded.img", &image::bytes(len as u64, len)));
    }
    assert_eq!(folder.names(), ["padded.img"], "nothing else was written");
}
