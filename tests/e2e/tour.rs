//! `lowzone tour` and `lowzone inspect`: cells that follow the machine, and the texts of `/proc`.

use lowzone_tests::program::lowzone;
use serde_json::Value;

fn tour(sets: &[&str]) -> Value {
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let seen = lowzone(["tour", "--json"].into_iter().chain(sets));
    assert_eq!(seen.code, Some(0), "{}{}", seen.stdout, seen.stderr);
    let mut json = seen.json();
    // The host's nanoseconds are the one column that no two runs share.
    for row in json["table"].as_array_mut().unwrap() {
        assert!(row["cost_ns"].take().as_u64() > Some(0));
    }
    json
}

fn cell<'a>(tour: &'a Value, allocator: &str, column: &str) -> &'a str {
    let rows = tour["table"].as_array().unwrap();
    let row = rows.iter().find(|row| row["allocator"] == allocator).unwrap_or_else(|| panic!("no row {allocator}"));
    row[column].as_str().unwrap()
}

fn stop<'a>(tour: &'a Value, title: &str) -> Option<&'a Vec<Value>> {
    tour["stops"].as_array().unwrap().iter().find(|stop| stop["title"] == title)?["did"].as_array()
}

#[test]
fn tour_is_the_same_twice_but_for_its_cost_column() {
    assert_eq!(tour(&[]), tour(&[]));
}

#[test]
fn tour_on_another_machine_has_other_cells() {
    let (usual, small) = (tour(&[]), tour(&["machine.ram=1G"]));
    let (high, listed) = (tour(&["machine.arch=x86-32"]), tour(&["machine.pcp=true"]));
    for allocator in ["kmalloc", "alloc_pages", "kmem_cache", "mempool"] {
        assert_eq!(cell(&usual, allocator, "zone"), "Normal");
        assert_eq!(cell(&usual, allocator, "dma"), "33 bits, 32 bounces", "{allocator}");
        assert_eq!(cell(&small, allocator, "zone"), "DMA32", "1 GiB has no zone Normal");
        assert!(cell(&small, allocator, "dma").ends_with("32 too"), "{allocator}");
        assert_eq!(cell(&high, allocator, "zone"), "Normal", "and below 896 MiB");
        assert!(cell(&high, allocator, "dma").ends_with("32 too"), "{allocator}");
    }
    assert_ne!(cell(&usual, "vmalloc", "largest"), cell(&small, "vmalloc", "largest"));
    assert_eq!(cell(&usual, "dma_alloc_coherent", "zone"), "DMA32");
    // Addresses, not zones, tell contiguity: the same everywhere.
    for machine in [&usual, &small, &high, &listed] {
        assert_eq!(cell(machine, "kmalloc", "physical"), "yes");
        assert_eq!((cell(machine, "vmalloc", "physical"), cell(machine, "vmalloc", "virt")), ("no", "yes"));
        assert_eq!(
            (cell(machine, "alloc_percpu", "physical"), cell(machine, "alloc_percpu", "largest")),
            ("each copy", "32 KiB")
        );
        for (allocator, sleeps) in [("kmalloc", "by mask"), ("mempool", "by mask"), ("vmalloc", "always")] {
            assert_eq!(cell(machine, allocator, "sleeps"), sleeps);
        }
        for allocator in ["alloc_pages", "dma_alloc_coherent"] {
            assert_eq!(cell(machine, allocator, "alignment"), "its size");
        }
        assert_eq!(stop(machine, "ioremap").unwrap()[1]["got"], "0x10000ed");
    }
    assert!(stop(&usual, "high memory").is_none());
    let walked = stop(&high, "high memory").unwrap();
    let got: Vec<_> = walked.iter().map(|did| did["got"].as_str().unwrap()).collect();
    assert_eq!(got[..3], ["HighMem", "NULL", "an address"]);
    // The first page takes a whole batch from its zone where CPUs keep lists.
    assert_eq!(stop(&usual, "pages").unwrap()[0]["zones"], "Normal -1");
    assert_ne!(stop(&usual, "pages"), stop(&listed, "pages"));
}

#[test]
fn tour_refuses_a_machine_that_there_is_not() {
    let seen = lowzone(["tour", "--set", "machine.arch=arm"]);
    assert_eq!(seen.code, Some(2));
    assert!(seen.stderr.contains("x86-32"), "{}", seen.stderr);
}

#[test]
fn inspect_shows_what_a_step_holds_and_that_it_is_back_at_the_end() {
    let show = |args: &[&str]| {
        let seen = lowzone(["inspect", "block/low-zone"].iter().chain(args));
        assert_eq!(seen.code, Some(0), "{}", seen.stderr);
        seen.stdout
    };
    let (held, back) = (show(&["--after", "1", "--file", "buddyinfo"]), show(&["--file", "buddyinfo"]));
    assert!(held.lines().all(|line| line.starts_with("Node 0, zone ")) && held.lines().count() == 3, "{held}");
    assert_ne!(held, back, "the rings are held after probe");
    let all = show(&[]);
    for file in ["buddyinfo", "zoneinfo", "slabinfo", "vmallocinfo"] {
        assert!(all.contains(&format!("==> /proc/{file} <==")), "{all}");
    }
    assert!(all.contains("slabinfo - version: 2.1") && all.contains("        protection: (0, "), "{all}");
    let beyond = lowzone(["inspect", "block/low-zone", "--after", "9"]);
    assert_eq!((beyond.code, beyond.stderr.contains("there is no step 9")), (Some(2), true), "{beyond:?}");
}

#[test]
fn leaks_are_told_by_call_site_with_what_each_left_in_all() {
    for world in ["lockstep", "threads"] {
        let seen = lowzone(["run", "alloc/sanitizers-forgotten", "--world", world]);
        assert_eq!(seen.code, Some(0), "{}{}", seen.stdout, seen.stderr);
        let lines: Vec<_> = seen.stdout.lines().map(str::trim).collect();
        assert_eq!(lines.iter().filter(|line| line.starts_with("leak")).count(), 1, "{}", seen.stdout);
        assert!(lines.contains(&"3 of this call site, 300 bytes in all"), "{}", seen.stdout);
        assert!(
            lines.iter().any(|line| line.ends_with("3 leaks, in threads") || line.contains("3 leaks, digest")),
            "{}",
            seen.stdout
        );
    }
}
