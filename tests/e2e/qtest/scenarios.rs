//! The scenarios on QEMU's devices: the same data and verdicts as in process, and every one that can't be told named.

use std::sync::Arc;

use lowzone::expect::check;
use lowzone::kit::Kit;
use lowzone::lab::{Control, Lab, LabError, Verify};
use lowzone::result::RunResult;
use lowzone::spec::Scenario;
use lowzone::wire::WireKind;
use lowzone_tests::image::{Folder, bytes};
use lowzone_tests::peer;
use lowzone_tests::scenario::{embedded, findings, run, text};

/// Stories about accesses that only an in-process device shows, or about one that decodes fewer bits than QEMU's; and
/// those of a network device, which loops back.
const SKIPPED: [&str; 11] = [
    "block/too-wide",
    "block/too-wide-wrap",
    "block/use-after-unmap",
    "block/wrong-direction",
    "net/loop-back",
    "net/mixed",
    "net/pressure",
    "net/source",
    "net/tx-never-unmapped",
    "net/tx-use-after-unmap",
    "net/tx-wrong-direction",
];
/// Scenarios that must pass.
const LEAST: usize = 15;

fn lab(scenario: &Scenario) -> Result<Lab, LabError> {
    let (kit, control) = (Kit::STOCK, Arc::new(Control::default()));
    Lab::in_world(WireKind::Qemu, &kit, "test", scenario.clone(), 3, Verify::Sha256, control)
}

/// What must not depend on whose the device is.
fn assert_same(name: &str, ours: &RunResult, theirs: &RunResult) {
    assert_eq!((ours.wire.as_str(), theirs.wire.as_str(), theirs.world.as_str()), ("", "qemu", "threads"));
    let verdict =
        |r: &RunResult| (r.canary, r.failed_requests, r.leaks.len(), r.probe_errors.clone(), r.errors.clone());
    assert_eq!(verdict(ours), verdict(theirs), "{name}");
    assert_eq!((&ours.copies, &ours.exercises, &ours.dma), (&theirs.copies, &theirs.exercises, &theirs.dma), "{name}");
    assert_eq!(ours.clears, theirs.clears, "{name}");
    assert_eq!(ours.io.len(), theirs.io.len());
    for (a, b) in ours.io.iter().zip(&theirs.io) {
        let same = |row: &lowzone::result::IoRow| (row.label.clone(), row.requests, row.failed, row.verified);
        assert_eq!(same(a), same(b), "{name}");
        // A submission that was tried again collected an earlier request first: random steps then draw otherwise.
        if a.retries == 0 && b.retries == 0 {
            assert_eq!((&a.sha256, a.bytes, a.compared), (&b.sha256, b.bytes, b.compared), "{name}");
        }
    }
}

#[test]
fn every_scenario_that_can_be_told_there_shows_the_same() {
    if !peer::qemu() {
        return;
    }
    let folder = Folder::new();
    let image = format!("image={}", folder.file("disk.img", &bytes(7, 3 << 20)).display());
    let (mut passed, mut skipped) = (0, Vec::new());
    for entry in Kit::STOCK.entries() {
        let sets = if entry.text.contains("image = \"\"") { vec![image.as_str()] } else { Vec::new() };
        let scenario = embedded(entry.name, &sets);
        let Ok(expected) = WireKind::Qemu.expects(&scenario) else {
            assert!(matches!(lab(&scenario), Err(LabError::Skip { .. })), "{}", entry.name);
            // Stories of allocators have no device that QEMU could stand in for.
            if !scenario.device.is_empty() {
                skipped.push(entry.name);
            }
            continue;
        };
        let theirs = lab(&scenario).unwrap_or_else(|error| panic!("{}: {error}", entry.name)).run();
        let wrong = check(&expected, &theirs);
        assert!(wrong.is_empty(), "{}: {wrong:?}", entry.name);
        assert_same(entry.name, &run(&scenario, 3), &theirs);
        passed += 1;
    }
    assert_eq!(skipped, SKIPPED);
    assert!(passed >= LEAST, "only {passed} passed");
}

#[test]
fn what_a_device_is_told_is_what_it_offers() {
    if !peer::qemu() {
        return;
    }
    let story = "story = 'x'\n[machine]\nram = '512M'\ncpus = 4\n[[device]]\nname = 'vda'\nkind = 'virtio-blk'\n\
        size = '16M'\nqueues = 4\nqueue_size = 64\nevent_idx = true\nindirect = true\naccess_platform = true\n\
        [driver]\nmsix = true\n[[step]]\nprobe = {}\n\
        [[step]]\nio = { device = 'vda', requests = 1000, bytes = '4K', depth = 128 }\n[[step]]\nremove = {}\n";
    for sets in [&[][..], &["event_idx=false", "indirect=false"], &["access_platform=false"], &["msix=false"]] {
        let scenario = text(story, sets);
        let (ours, theirs) = (run(&scenario, 3), lab(&scenario).unwrap().run());
        assert!(check(&scenario.expect, &theirs).is_empty(), "{sets:?}: {:?}", check(&scenario.expect, &theirs));
        assert_same(&format!("{sets:?}"), &ours, &theirs);
        assert_eq!(theirs.queues.len(), 4);
        let indirect: u64 = theirs.queues.iter().map(|queue| queue.indirect).sum();
        assert_eq!(indirect == 0, sets.contains(&"indirect=false"), "{sets:?}: 32 requests don't fit 64 entries else");
        assert_eq!((theirs.devices[0].requests, findings(&theirs).len()), (1000, 0), "{sets:?}");
        assert!(theirs.devices[0].interrupts > 0);
    }
}

#[test]
fn read_only_and_a_large_block_are_passed_on() {
    if !peer::qemu() {
        return;
    }
    let story = "story = 'x'\n[[device]]\nname = 'vda'\nkind = 'virtio-blk'\nsize = '1M'\nread_only = true\nblk_size = 512\n\
        [[step]]\nprobe = {}\n[[step]]\nraw_read = { device = 'vda', memory = 'low' }\n[[step]]\nremove = {}\n";
    for sets in [&[][..], &["blk_size=4096"]] {
        let run = lab(&text(story, sets)).unwrap().run();
        assert_eq!((run.failed_requests, run.errors.len(), run.leaks.len()), (0, 0, 0), "{sets:?}: {run:?}");
    }
}
