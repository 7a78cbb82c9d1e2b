//! `lowzone inspect`: live mappings, bounce slots and IOMMU domains of three machines, each held against the others.

use std::collections::BTreeSet;

use lowzone_tests::program::lowzone;
use serde_json::Value;

const PAGE: u64 = 4096;
/// The files that are about DMA.
const FILES: [&str; 6] = ["--file", "mappings", "--file", "swiotlb", "--file", "iommu"];

fn inspect(args: &[&str]) -> Value {
    let seen = lowzone(["inspect"].iter().chain(args).chain(&FILES).chain(&["--json"]));
    assert_eq!(seen.code, Some(0), "{}", seen.stderr);
    seen.json()
}

fn rows(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn number(row: &Value, key: &str) -> u64 {
    row[key].as_u64().unwrap_or_else(|| panic!("no {key} in {row}"))
}

fn sum(rows: &[Value], of: impl Fn(&Value) -> u64) -> u64 {
    rows.iter().map(of).sum()
}

/// The pages around some bytes.
fn pages(at: u64, bytes: u64) -> impl Iterator<Item = u64> {
    at / PAGE..(at + bytes).div_ceil(PAGE)
}

/// The pages of what is live, and of a domain's runs that are stale or not.
fn live_pages(json: &Value) -> BTreeSet<u64> {
    let live = rows(&json["mappings"][0]["live"]).iter();
    live.flat_map(|mapping| pages(number(mapping, "dma"), number(mapping, "bytes"))).collect()
}

fn domain_pages(json: &Value, stale: bool) -> BTreeSet<u64> {
    let runs = rows(&json["iommu"][0]["runs"]).iter().filter(|run| run["stale"] == stale);
    runs.flat_map(|run| pages(number(run, "dma"), number(run, "bytes"))).collect()
}

#[test]
fn on_a_machine_that_bounces_the_taken_slots_are_the_bounced_mappings() {
    let json = inspect(&["net/loop-back", "--machine", "swiotlb-force", "--after", "2"]);
    let (live, pool) = (rows(&json["mappings"][0]["live"]), &json["swiotlb"]);
    let bounced: Vec<_> = live.iter().filter(|mapping| mapping["bounced"] == true).collect();
    assert!(bounced.len() > 100, "the receive ring is full of buffers: {}", bounced.len());
    for mapping in live {
        let coherent = mapping["kind"] == "coherent";
        assert_eq!(mapping["bounced"], !coherent, "{mapping}");
        let (direction, site) = if coherent {
            ("DMA_BIDIRECTIONAL", "driver/src/virtio/ring.rs:")
        } else {
            ("DMA_FROM_DEVICE", "driver/src/net/rx.rs:")
        };
        assert_eq!(mapping["direction"], direction);
        for by in ["mapped_by", "allocated_by"] {
            assert!(mapping[by].as_str().unwrap().starts_with(site), "{mapping}");
        }
    }
    let place = |row: &Value| (number(row, "phys"), number(row, "buffer"), number(row, "bytes"));
    let held: BTreeSet<_> = bounced.iter().map(|mapping| place(mapping)).collect();
    let (taken, areas) = (rows(&pool["taken"]), rows(&pool["areas"]));
    assert_eq!(taken.iter().map(place).collect::<BTreeSet<_>>(), held);
    let used = number(pool, "used");
    assert_eq!((sum(taken, |row| number(row, "slots")), sum(areas, |area| number(area, "used"))), (used, used));
    let free = |area: &Value| sum(rows(&area["free_runs"]), |run| number(run, "slots") * number(run, "runs"));
    assert_eq!(used + sum(areas, free), number(pool, "slots"));
    assert!(number(pool, "high_water") > used && json["iommu"] == Value::Array(Vec::new()), "{pool}");
    let after = inspect(&["net/loop-back", "--machine", "swiotlb-force"]);
    let gone = (rows(&after["mappings"][0]["live"]).len(), &after["swiotlb"]["used"], &after["swiotlb"]["taken"]);
    assert_eq!(gone, (0, &0.into(), &Value::Array(Vec::new())));
    assert!(number(&after["swiotlb"], "high_water") >= number(pool, "high_water"));
}

#[test]
fn a_strict_domain_holds_the_pages_of_what_is_live_and_no_other() {
    let json = inspect(&["net/loop-back", "--machine", "iommu-strict", "--after", "2"]);
    let domain = &json["iommu"][0];
    assert_eq!(
        (&domain["mode"], &domain["stale_pages"], &json["swiotlb"]),
        (&"strict".into(), &0.into(), &Value::Null)
    );
    assert!(live_pages(&json).len() > 100);
    assert_eq!(domain_pages(&json, false), live_pages(&json));
    assert_eq!(number(domain, "mapped_pages"), live_pages(&json).len() as u64);
    assert!(domain_pages(&json, true).is_empty());
}

#[test]
fn a_lazy_domain_holds_what_was_unmapped_until_it_is_flushed() {
    let json = inspect(&["block/low-zone", "--machine", "iommu-lazy", "--after", "2"]);
    let (domain, stale) = (&json["iommu"][0], domain_pages(&json, true));
    assert_eq!(domain["mode"], "lazy");
    // 32 requests of two pages are done with, each with one mapping; the rings are not.
    assert_eq!((stale.len(), number(domain, "stale_pages"), number(domain, "flushes")), (64, 64, 0));
    assert!(stale.is_disjoint(&live_pages(&json)) && !live_pages(&json).is_empty());
    assert_eq!(domain_pages(&json, false), live_pages(&json));
    let words = |stale: bool| {
        let runs = rows(&domain["runs"]).iter().filter(move |run| run["stale"] == stale);
        runs.map(|run| (run["read"] == true, run["write"] == true)).collect::<BTreeSet<_>>()
    };
    assert_eq!(words(true), BTreeSet::from([(true, false), (false, true)]), "writes and reads of a disk");
    assert_eq!(words(false), BTreeSet::from([(true, true)]), "rings");
}

#[test]
fn people_read_the_same() {
    let text = |machine: &str| {
        let args = ["inspect", "block/low-zone", "--machine", machine, "--after", "2"];
        let seen = lowzone(args.iter().chain(&FILES));
        assert_eq!(seen.code, Some(0), "{}", seen.stderr);
        seen.stdout
    };
    let bounced = text("identity");
    for line in ["==> mappings <==", "vda: 3 live, 0 of them bounced; mask 0xffffffff, coherent 0xffffffff", "no IOMMU"]
    {
        assert!(bounced.lines().any(|seen| seen == line), "{line}: {bounced}");
    }
    // 16 requests of 8 KiB were in flight at once.
    assert!(bounced.contains("64 MiB at 0xbc000000: 32768 slots of 2048 bytes, 0 taken, 64 at most"), "{bounced}");
    let lazy = text("iommu-lazy");
    assert!(
        lazy.contains("vda: lazy; 4 pages mapped, 64 stale, 0 flushes") && lazy.contains("no bounce pool"),
        "{lazy}"
    );
    assert!(lazy.contains("unmapped, not flushed"), "{lazy}");
}
