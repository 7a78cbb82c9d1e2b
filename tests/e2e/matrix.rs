//! Every scenario on every wire, peers of other projects included.

use lowzone_tests::image::Folder;
use lowzone_tests::peer;
use lowzone_tests::program::lowzone;
use serde_json::Value;

/// The least number of rows of block/* and edu/* that pass on each wire; what is exempt there is named below.
const LEAST: [(&str, usize); 4] = [("lockstep", 20), ("threads", 20), ("qemu", 16), ("vhost-user", 11)];
/// The stories that no peer can tell: they are about the finding of an access, which nobody sees there.
const SEES_DMA: [&str; 4] = ["block/too-wide", "block/too-wide-wrap", "block/use-after-unmap", "block/wrong-direction"];
/// What counts as not passed on a wire, and why: vhost-user is no PCI.
const NO_PCI: (&str, &str, &str) = ("vhost-user", "block/no-bus-master", "there is no bus-master bit without PCI");
/// The share of the others that must pass, in hundredths.
const SHARE: usize = 90;

/// The families of scenarios that a wire has devices for: there is no edu at a vhost-user socket.
fn families(wire: &str) -> &'static [&'static str] {
    if wire == "vhost-user" { &["block/"] } else { &["block/", "edu/"] }
}

/// Each scenario's cell in a column.
fn cells(json: &Value, column: usize) -> Vec<(&str, &Value)> {
    let rows = json["rows"].as_array().unwrap().iter();
    rows.map(|row| (row["scenario"].as_str().unwrap(), &row["cells"][column])).collect()
}

#[test]
fn matrix_passes_on_every_wire_and_names_what_can_not_be_told_there() {
    if !peer::qemu() {
        return;
    }
    let seen = lowzone(["matrix", "--require-peers", "--json"]);
    assert_eq!(seen.code, Some(0), "{}{}", seen.stdout, seen.stderr);
    let json = seen.json();
    for ((name, _), column) in LEAST.into_iter().zip(json["columns"].as_array().unwrap()) {
        assert_eq!(column["column"], name);
        assert_eq!((&column["failed"], &column["skipped"]), (&0.into(), &0.into()), "{column}");
        assert!(column["bytes"].as_u64() > Some(1 << 20), "{column}");
        assert_eq!(column["peer"].is_string(), ["qemu", "vhost-user"].contains(&name), "{column}");
    }
    for (column, (wire, least)) in LEAST.into_iter().enumerate() {
        let peer = json["columns"][column]["peer"].is_string();
        let told = |name: &str| families(wire).iter().any(|family| name.starts_with(family));
        let of_wire: Vec<_> = cells(&json, column).into_iter().filter(|(name, _)| told(name)).collect();
        let exempt: Vec<_> = of_wire.iter().filter(|(_, cell)| cell["state"] == "exempt").collect();
        for (name, cell) in &exempt {
            let why = cell["why"].as_str().unwrap();
            let wanted = if (wire, *name) == (NO_PCI.0, NO_PCI.1) { NO_PCI.2 } else { "needs sees_dma" };
            assert!(why.contains(wanted), "{name} on {wire}: {why}");
            assert!(*name == NO_PCI.1 || SEES_DMA.contains(name), "{name} on {wire}");
        }
        // Only what is about seeing a peer's DMA is left out of the count.
        let judged: Vec<_> = of_wire.iter().filter(|(name, _)| !(peer && SEES_DMA.contains(name))).collect();
        let passed = judged.iter().filter(|(_, cell)| cell["state"] == "passed").count();
        assert!(passed >= least, "{wire}: {passed}");
        assert!(passed * 100 >= judged.len() * SHARE, "{wire}: {passed} of {}", judged.len());
        assert!(wire == NO_PCI.0 || passed == judged.len(), "{wire}: {passed} of {}", judged.len());
    }
    for (name, cell) in cells(&json, 3).into_iter().filter(|(name, _)| name.starts_with("edu/")) {
        assert_eq!(cell["state"], "exempt", "{name}");
        assert!(cell["why"].as_str().unwrap().starts_with("can't be told over vhost-user: "), "{cell}");
    }
    // A network runs in both worlds, and no wire has one: each says why.
    for (name, _) in cells(&json, 0).into_iter().filter(|(name, _)| name.starts_with("net/")) {
        let states: Vec<_> = (0..4).map(|column| cells(&json, column)).collect();
        let cell = |column: usize| states[column].iter().find(|(other, _)| *other == name).unwrap().1;
        assert_eq!((&cell(0)["state"], &cell(1)["state"]), (&"passed".into(), &"passed".into()), "{name}");
        for (column, why) in [(2, "it is of kind 'virtio-net'"), (3, "is of kind 'virtio-blk', and so is its driver")] {
            assert!(cell(column)["why"].as_str().unwrap().contains(why), "{name}: {}", cell(column));
        }
    }
    // Stories of allocators have no device that a peer could stand in for, and run in both worlds.
    for (name, _) in cells(&json, 0).into_iter().filter(|(name, _)| name.starts_with("alloc/")) {
        let states: Vec<_> = (0..4).map(|column| cells(&json, column)).collect();
        let cell = |column: usize| states[column].iter().find(|(other, _)| *other == name).unwrap().1;
        assert_eq!((&cell(0)["state"], &cell(1)["state"]), (&"passed".into(), &"passed".into()), "{name}");
        for column in [2, 3] {
            assert!(cell(column)["why"].as_str().unwrap().contains("has no device"), "{name}");
        }
    }
}

#[test]
fn a_scenario_with_two_disks_wants_two_sockets_and_one_wire() {
    let folder = Folder::new();
    let image = format!("image={}", folder.file("disk.img", &[7; 1024]).display());
    for (sockets, told) in [(1, "has 2, and --wire vhost-user names 1"), (3, "has 2, and --wire vhost-user names 3")] {
        let mut args = vec!["run", "block/copy-image", "--set", &image];
        args.extend(["--wire", "vhost-user=/nowhere"].repeat(sockets));
        let seen = lowzone(args);
        assert_eq!((seen.code, seen.stderr.lines().count()), (Some(2), 1), "{seen:?}");
        assert!(seen.stderr.contains(told), "{seen:?}");
    }
    let mixed = lowzone(["run", "block/low-zone", "--wire", "qemu", "--wire", "vhost-user=/nowhere"]);
    assert_eq!(mixed.code, Some(2), "{mixed:?}");
    assert!(mixed.stderr.contains("one run has one wire, and qemu and vhost-user are two"), "{mixed:?}");
}

#[test]
fn matrix_without_a_peer_skips_and_is_red_only_where_peers_are_required() {
    let run = |args: &[&str]| {
        let mut command = lowzone_tests::program::command(args);
        let output = command.env("PATH", "/nowhere").output().unwrap();
        lowzone_tests::program::Outcome::of(&output)
    };
    let mild = run(&["matrix", "--wire", "qemu"]);
    assert_eq!(mild.code, Some(0), "{}", mild.stderr);
    assert!(
        mild.stdout
            .contains("skipped for want of block/low-zone on qemu: qemu-system-x86_64 (package qemu-system-x86)")
    );
    assert_eq!(run(&["matrix", "--wire", "qemu", "--require-peers"]).code, Some(1));
    let daemon = run(&["matrix", "--wire", "vhost-user"]);
    let wanted = "skipped for want of block/low-zone on vhost-user: qemu-storage-daemon (package qemu-system-common)";
    assert!(daemon.code == Some(0) && daemon.stdout.contains(wanted), "{daemon:?}");
    let bench = run(&["bench", "peers"]);
    assert_eq!((bench.code, bench.stderr.lines().count()), (Some(2), 1), "{bench:?}");
    assert!(bench.stderr.contains("qemu-storage-daemon is not installed: apt-get install qemu-system-common"));
}
