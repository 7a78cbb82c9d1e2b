//! Campaigns, as a user runs them: complete by count, the same for any number of jobs, repeatable by token.

use std::fs;

use lowzone::explore::case::{Keep, Prepared};
use lowzone::explore::inventory::{Inventory, InventoryError};
use lowzone::explore::place::Place;
use lowzone_guest_mem::env::Class;
use lowzone_tests::program::{lowzone, workspace};
use lowzone_tests::scenario::embedded;

#[test]
fn explore_counts_what_the_kernel_recorded() {
    // Buffers from slabs, which take pages of their own, and buffers that are too large for them.
    for bytes in ["step[1].io.bytes=8K", "step[1].io.bytes=16K"] {
        let prepared = Prepared::new("block/low-zone", &embedded("block/low-zone", &[bytes]), 1);
        let inventory = Inventory::count(&prepared).unwrap();
        let observed = prepared.observe(&[], Keep { points: true, events: true, stop_at: None }).unwrap();
        let events = observed.recorded();
        inventory.agree_with(&events).unwrap();
        let of_io = |place: &Place| place.class == Class::Slab && place.scope.starts_with("io");
        let in_slabs = inventory.points.iter().any(|point| of_io(&point.place));
        assert_eq!(in_slabs, bytes.ends_with("8K"), "{bytes}");
        let mut short = inventory.clone();
        short.points.pop();
        assert!(matches!(short.agree_with(&events), Err(InventoryError::Incomplete { .. })));
    }
}

#[test]
fn explore_finds_nothing_wrong_in_a_driver_that_shares_a_pin() {
    // Registers that read as all-ones acknowledge no interrupt, and a pin that stays asserted interrupts for ever.
    let seen = lowzone(["explore", "block/low-zone", "--set", "msix=false", "--jobs", "2", "--json"]);
    assert_eq!(seen.code, Some(0), "{}", seen.stdout);
    let json = seen.json();
    let rows = json["rows"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["wrong"] == 0), "{json}");
    assert!(rows.iter().any(|row| row["class"] == "mmio" && row["scope"] == "io"), "the handler's read is among them");
}

#[test]
fn explore_passes_every_allocation_site_of_the_driver() {
    let prepared = Prepared::new("block/low-zone", &embedded("block/low-zone", &[]), 1);
    let inventory = Inventory::count(&prepared).unwrap();
    let sites: Vec<_> = inventory.points.iter().map(|point| point.site.to_string()).collect();
    let calls = [
        "alloc_coherent(cpu",
        ".map_single::<",
        "request_irq(cpu",
        ".map_bar(cpu",
        ".set_mask(cpu",
        ".set_coherent_mask(cpu",
    ];
    let mut found = 0;
    for file in ["driver/src/blk/queue.rs", "driver/src/blk/disk.rs", "driver/src/virtio/ring.rs"] {
        let text = fs::read_to_string(workspace().join(file)).unwrap();
        for (number, line) in (1..).zip(text.lines()) {
            // The pin is asked for only where there is no MSI-X, a device without PCI is on another wire, and a seeded
            // bug's own call is in another build.
            let elsewhere = ["Arc::new(Intx", "device.dma.set", "Arc::new(Dangling"];
            let elsewhere = elsewhere.iter().any(|part| line.contains(part));
            if calls.iter().any(|call| line.contains(call)) && !elsewhere {
                found += 1;
                let site = format!("{file}:{number}");
                assert!(sites.contains(&site), "{site} is never passed: {line}");
            }
        }
    }
    assert!(found >= 6, "the scan found only {found} calls");
}

#[test]
fn explore_is_the_same_for_any_number_of_jobs_and_finds_a_clean_driver_clean() {
    let one = lowzone(["explore", "block/low-zone", "--jobs", "1", "--json"]);
    let two = lowzone(["explore", "block/low-zone", "--jobs", "2", "--json"]);
    assert_eq!(one.code, Some(0), "{}", one.stderr);
    assert_eq!(one.stdout, two.stdout);
    let json = one.json();
    assert_eq!((json["wrong"].as_array().map(Vec::len), json["missing"].as_array().map(Vec::len)), (Some(0), Some(0)));
    assert!(json["cases"].as_u64() > Some(500), "{}", json["cases"]);
}

#[test]
fn explore_lets_go_of_disks_that_are_busy() {
    let prepared = Prepared::new("block/low-zone", &embedded("block/low-zone", &[]), 1);
    let inventory = Inventory::count(&prepared).unwrap();
    let maps = |scope: &str| {
        let here = inventory.points.iter().filter(|point| point.place.scope == scope);
        here.filter(|point| point.place.class == Class::Map).count()
    };
    assert_eq!((maps("in_flight"), maps("rebind/in_flight")), (2, 2), "before the removal, and before the shutdown");
    let mapped = inventory.points.iter().rposition(|point| point.place.scope == "in_flight").unwrap();
    let next = inventory.points[mapped + 1].place.to_string();
    assert!(next.starts_with("mmio") && next.contains(":remove#"), "nothing lies between them: {next}");
}

#[test]
fn explore_is_red_when_a_case_is_left_out() {
    let seen = lowzone(["explore", "block/low-zone", "--omit", "3"]);
    assert_eq!(seen.code, Some(1));
    assert!(seen.stdout.contains("1 not carried out"), "{}", seen.stdout);
}

#[test]
fn explore_replays_a_case_and_refuses_a_stale_token() {
    let json = lowzone(["explore", "block/low-zone", "--json"]).json();
    let mark = json["fingerprint"].as_str().unwrap().to_owned();
    let good = lowzone(["replay", &format!("block/low-zone@{mark}:1:coherent:probe/init_vqs#0")]);
    assert_eq!(good.code, Some(0), "{}", good.stderr);
    assert!(good.stdout.contains("FailedRight") && good.stdout.contains("parts from the clean run"), "{}", good.stdout);
    for (token, told) in [
        ("block/low-zone@0000000000:1:slab:io#0".to_owned(), "another version of block/low-zone"),
        (format!("block/low-zone@{mark}:1:slab:nowhere#0"), "not reached any more"),
        (format!("block/low-zone@{mark}:1:slob:io#0"), "is no fault"),
        ("what".to_owned(), "is no token"),
    ] {
        let bad = lowzone(["replay", &token]);
        assert_eq!(bad.code, Some(2), "{token}");
        assert!(bad.stderr.contains(told), "{}", bad.stderr);
    }
}

fn journal(name: &str) -> String {
    let path = std::env::temp_dir().join(format!("lowzone-journal-{}-{name}", std::process::id()));
    path.to_str().unwrap().to_owned()
}

#[test]
fn explore_with_two_jobs_has_two_children_at_work() {
    for jobs in [1, 2] {
        let path = journal(&format!("jobs-{jobs}"));
        let seen = lowzone(["explore", "block/low-zone", "--jobs", &jobs.to_string(), "--journal", &path]);
        assert_eq!(seen.code, Some(0), "{}", seen.stderr);
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let lines = text.lines().skip(1).map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let children: std::collections::BTreeSet<_> = lines.map(|line| line["child"].as_u64().unwrap()).collect();
        assert_eq!(children.len(), jobs, "{children:?}");
        assert!(!children.contains(&u64::from(std::process::id())));
    }
}

#[test]
fn explore_goes_on_where_a_journal_ends_and_refuses_one_that_is_torn_or_foreign() {
    let (whole, cut) = (journal("whole"), journal("cut"));
    let full = lowzone(["explore", "block/low-zone", "--json", "--journal", &whole]);
    let text = fs::read_to_string(&whole).unwrap();
    let half: Vec<_> = text.lines().take(300).collect();
    fs::write(&cut, half.join("\n") + "\n").unwrap();
    let again = lowzone(["explore", "block/low-zone", "--json", "--resume", &cut, "--journal", &cut]);
    assert_eq!((again.code, &again.stdout), (Some(0), &full.stdout));
    // Numbers count the cases of a run; what was done and how it ended is what must be there.
    let cases = |text: &str| {
        let lines = text.lines().skip(1).map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let records = lines.map(|line| format!("{} {}", line["record"]["faults"], line["record"]["outcome"]));
        records.collect::<std::collections::BTreeSet<_>>()
    };
    assert!(cases(&fs::read_to_string(&cut).unwrap()) == cases(&text), "the journal is not complete again");

    fs::write(&cut, &text[..text.len() - 20]).unwrap();
    let refusal = |args: &[&str], told: &str| {
        let seen = lowzone(args);
        assert_eq!(seen.code, Some(2), "{told}");
        assert!(seen.stderr.contains(told), "{}", seen.stderr);
    };
    let last = format!("{cut}:{}: not a whole line", text.lines().count());
    refusal(&["explore", "block/low-zone", "--resume", &cut], &last);
    refusal(&["explore", "block/low-zone", "--seed", "2", "--resume", &whole], "the journal is of 'block/low-zone@");
    fs::write(&cut, "").unwrap();
    refusal(&["explore", "block/low-zone", "--resume", &cut], ":1: not a whole line");
    refusal(&["explore", "block/low-zone", "--resume", "/nowhere/journal"], "/nowhere/journal: ");
    fs::remove_file(&whole).unwrap();
    fs::remove_file(&cut).unwrap();
}
