//! Stopped under way: Ctrl-C, and an image that changes in size while it is in use.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lowzone::expect::check;
use lowzone::kit::Kit;
use lowzone::lab::{Control, Lab, Verify};
use lowzone::world::WorldKind;
use lowzone_tests::image::{self, Folder};
use lowzone_tests::program::{Outcome, command, lowzone};
use lowzone_tests::scenario;
use rustix::process::{Pid, Signal, kill_process};

const BLOCK: usize = 64 << 10;
/// Blocks that the writer has to do: more than it can before it is stopped.
const BLOCKS: usize = 16_384;

fn writer(image: &Path) -> String {
    format!(
        "story = 'writes an image'\n[machine]\nram = '2G'\n[[device]]\nname = 'vda'\nkind = 'virtio-blk'\nimage = '{}'\n\
         [[step]]\nprobe = {{}}\n[[step]]\nio = {{ device = 'vda', requests = {}, bytes = '64K', depth = 32 }}\n\
         [[step]]\nremove = {{}}\n",
        image.display(),
        BLOCKS * 2,
    )
}

/// Waits until the first block of the image is written.
fn wait_for_progress(image: &Path) {
    let begun = Instant::now();
    let file = fs::File::open(image).unwrap();
    let mut first = [0; 512];
    while first == [0; 512] {
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing was written");
        std::thread::sleep(Duration::from_millis(5));
        file.read_exact_at(&mut first, 0).unwrap();
    }
}

#[test]
fn stopped_by_ctrl_c_what_is_reported_done_is_in_the_image() {
    ["lockstep", "threads"].into_iter().for_each(stopped_in);
}

fn stopped_in(world: &str) {
    let folder = Folder::new();
    let size = (BLOCKS * BLOCK) as u64;
    let sparse = |name: &str| {
        let path = folder.path().join(name);
        fs::File::create(&path).unwrap().set_len(size).unwrap();
        path
    };
    let image = sparse("stopped.img");
    let file = folder.file("writer.toml", writer(&image).as_bytes());
    let child = command(["run", &file.display().to_string(), "--json", "--world", world]).spawn().unwrap();
    wait_for_progress(&image);
    kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), Signal::INT).unwrap();
    let outcome = Outcome::of(&child.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(130), "{outcome:?}");
    let result = outcome.json();
    assert_eq!(result["interrupted"], true);
    for key in ["findings", "leaks"] {
        assert!(result[key].as_array().unwrap().is_empty(), "{key}: {}", result[key]);
    }
    let row = &result["io"][0];
    let done = usize::try_from(row["requests"].as_u64().unwrap()).unwrap();
    assert!(done > 0 && done < BLOCKS, "{done} requests done: stopped in the middle of the writes");
    // The content of a block follows from its place: an undisturbed run says what it is.
    let whole = sparse("whole.img");
    let small = writer(&whole).replace(&format!("requests = {}", BLOCKS * 2), &format!("requests = {}", done * 2));
    let file = folder.file("whole.toml", small.as_bytes());
    assert_eq!(lowzone([Path::new("run"), &file]).code, Some(0));
    let (stopped, whole) = (fs::File::open(&image).unwrap(), fs::File::open(&whole).unwrap());
    for block in 0..done {
        let read = |file: &fs::File| {
            let mut bytes = vec![0; BLOCK];
            file.read_exact_at(&mut bytes, (block * BLOCK) as u64).unwrap();
            bytes
        };
        let bytes = read(&stopped);
        assert!(bytes == read(&whole) && bytes != vec![0; BLOCK], "block {block} of {done} reported done");
    }
    println!("{world}: stopped after {done} of {BLOCKS} writes: all of them in the image");
}

#[test]
fn stopped_by_an_image_that_shrinks_requests_fail_and_it_is_said() {
    [WorldKind::Lockstep, WorldKind::Threads].into_iter().for_each(shrunk_in);
}

fn shrunk_in(world: WorldKind) {
    let folder = Folder::new();
    let image = folder.file("shrinks.img", &image::bytes(1, 64 << 20));
    let set = format!("image={}", image.display());
    let copy = scenario::embedded("block/copy-image", &[&set]);
    let control = Arc::new(Control::default());
    let truncate = std::thread::spawn({
        let control = control.clone();
        move || {
            let begun = Instant::now();
            while control.progress().0 == 0 && begun.elapsed() < Duration::from_secs(20) {
                std::thread::yield_now();
            }
            OpenOptions::new().write(true).open(&image).unwrap().set_len(1 << 20).unwrap();
        }
    });
    let lab = Lab::in_world(world, &Kit::STOCK, "copy", copy.clone(), 1, Verify::Sha256, control);
    let result = lab.unwrap().run();
    truncate.join().unwrap();
    assert!(result.failed_requests > 0 && result.copies.is_empty(), "no copy is claimed: {result:?}");
    assert!(!check(&copy.expect, &result).is_empty(), "exit code 1");
    assert!(result.errors.iter().any(|text| text.contains("vda") && text.contains("I/O error")), "{:?}", result.errors);
    let told = format!("shrinks.img changed from {} to {} bytes while in use", 64 << 20, 1 << 20);
    assert!(result.errors.iter().any(|text| text.contains(&told)), "{:?}", result.errors);
    assert!(result.leaks.is_empty() && result.findings.is_empty(), "{:?} {:?}", result.leaks, result.findings);
    assert!(result.devices[0].failed > 0);
}
