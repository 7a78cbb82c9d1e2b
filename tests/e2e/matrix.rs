//! Every scenario on every wire, peers of other projects included.

use lowzone_tests::peer;
use lowzone_tests::program::lowzone;

/// The least number of rows that pass on each wire; what is exempt there is named below.
const LEAST: [(&str, u64); 4] = [("lockstep", 16), ("threads", 16), ("qemu", 12), ("vhost-user", 6)];
/// Why a row may be exempt: it is about allocators only, nobody sees a peer's DMA, or the wire has no such thing at all.
const REASONS: [&str; 4] = ["has no device", "needs sees_dma", "needs lockstep", "can't be told over vhost-user"];

#[test]
fn matrix_passes_on_every_wire_and_names_what_can_not_be_told_there() {
    if !peer::qemu() {
        return;
    }
    let seen = lowzone(["matrix", "--require-peers", "--json"]);
    assert_eq!(seen.code, Some(0), "{}{}", seen.stdout, seen.stderr);
    let json = seen.json();
    for ((name, least), column) in LEAST.into_iter().zip(json["columns"].as_array().unwrap()) {
        assert_eq!(column["column"], name);
        assert!(column["passed"].as_u64() >= Some(least), "{column}");
        assert_eq!((&column["failed"], &column["skipped"]), (&0.into(), &0.into()), "{column}");
        assert!(column["bytes"].as_u64() > Some(1 << 20), "{column}");
        assert_eq!(column["peer"].is_string(), ["qemu", "vhost-user"].contains(&name), "{column}");
    }
    let rows = json["rows"].as_array().unwrap();
    let cells = rows.iter().flat_map(|row| row["cells"].as_array().unwrap());
    for cell in cells.filter(|cell| cell["state"] == "exempt") {
        let why = cell["why"].as_str().unwrap();
        assert!(REASONS.iter().any(|reason| why.starts_with(reason)), "{why}");
    }
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
}
