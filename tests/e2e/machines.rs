//! The nine machines: each scenario shows on each what its file says, in both worlds, and clean drivers nothing.

use lowzone_tests::image::Folder;
use lowzone_tests::program::lowzone;
use serde_json::Value;

/// Each, with the least number of rows that pass on it in each world.
const MACHINES: [(&str, usize); 9] = [
    ("identity", 119),
    ("bridge-offset", 119),
    ("iommu-strict", 118),
    ("iommu-lazy", 118),
    ("swiotlb-force", 119),
    ("non-coherent", 115),
    ("highmem", 109),
    ("ram1g", 115),
    ("no-swiotlb", 113),
];
/// The share of all rows that must pass on each, in hundredths; the others say why their story can't be told there.
const SHARE: usize = 85;
/// Drivers that make no mistake.
const CLEAN: [&str; 9] = [
    "dma/ledger",
    "block/low-zone",
    "block/write-zeroes",
    "edu/selftest",
    "net/loop-back",
    "net/mixed",
    "alloc/scullc",
    "alloc/scullp",
    "alloc/scullv",
];

/// Where each column is: a machine in a world.
fn place(json: &Value, machine: &str, world: &str) -> usize {
    let mut columns = json["columns"].as_array().unwrap().iter();
    columns.position(|column| column["column"] == machine && column["world"] == world).unwrap()
}

/// What came of a scenario there.
fn cell<'a>(json: &'a Value, scenario: &str, column: usize) -> &'a Value {
    let row = json["rows"].as_array().unwrap().iter().find(|row| row["scenario"] == scenario);
    &row.unwrap_or_else(|| panic!("no row of {scenario}"))["cells"][column]
}

#[test]
fn every_scenario_shows_on_every_machine_in_both_worlds_what_its_file_says() {
    let seen = lowzone(["matrix", "--machines", "--json"]);
    assert_eq!(seen.code, Some(0), "{}{}", seen.stdout, seen.stderr);
    let json = seen.json();
    let (rows, columns) = (json["rows"].as_array().unwrap(), json["columns"].as_array().unwrap());
    let listed = lowzone(["list"]).stdout.lines().count();
    assert_eq!((rows.len(), columns.len()), (listed, 2 * MACHINES.len()));
    for (machine, least) in MACHINES {
        for world in ["lockstep", "threads"] {
            let column = place(&json, machine, world);
            let state = |wanted: &str| rows.iter().filter(|row| row["cells"][column]["state"] == wanted).count();
            let passed = state("passed");
            assert_eq!(passed + state("exempt"), rows.len(), "{machine} in {world}");
            assert!(passed >= least && passed * 100 >= rows.len() * SHARE, "{machine} in {world}: {passed}");
            assert_eq!((&columns[column]["passed"], &columns[column]["failed"]), (&passed.into(), &0.into()));
            for row in rows.iter().filter(|row| row["cells"][column]["state"] == "exempt") {
                assert!(row["cells"][column]["why"].as_str().unwrap().len() > 10, "{row}");
            }
            for clean in CLEAN {
                // Zeros that are written from memory out of reach need a pool.
                let told = (machine, clean) != ("no-swiotlb", "block/write-zeroes");
                let wanted = if told { "passed" } else { "exempt" };
                assert_eq!(cell(&json, clean, column)["state"], wanted, "{clean} on {machine} in {world}");
            }
        }
    }
}

/// A scenario that says something wrong of one machine, and of another that it can't be told there.
const WRONG: &str = r#"
story = "x"
[[device]]
name = "eth0"
kind = "virtio-net"
[driver]
kind = "virtio-net"
[[step]]
probe = {}
[[step]]
packets = { device = "eth0", count = 4 }
[[step]]
remove = {}
[on.iommu-lazy]
why = "it is wrong"
expect = { failed_requests = 3 }
[on.highmem]
why = "it is not told"
[on.no-swiotlb]
why = "memory above 4 GiB is out of reach"
expect = { failed_requests = 4 }
"#;

#[test]
fn a_file_that_says_something_wrong_of_one_machine_fails_there_alone() {
    let folder = Folder::new();
    let path = folder.file("wrong.toml", WRONG.as_bytes()).display().to_string();
    let seen = lowzone(["matrix", "--machines", "--json", &path]);
    assert_eq!(seen.code, Some(1), "{seen:?}");
    let json = seen.json();
    for (machine, _) in MACHINES {
        for world in ["lockstep", "threads"] {
            let cell = cell(&json, &path, place(&json, machine, world));
            let (state, why) = match machine {
                "iommu-lazy" => ("failed", "expected 3 seen 0"),
                "highmem" => ("exempt", "it is not told"),
                _ => ("passed", ""),
            };
            assert_eq!(cell["state"], state, "{machine} in {world}: {cell}");
            assert!(cell["why"].as_str().unwrap_or_default().contains(why), "{cell}");
        }
    }
    let text = lowzone(["matrix", "--machines", &path]);
    assert_eq!(text.code, Some(1), "{text:?}");
    let row = text.stdout.lines().find(|line| line.starts_with(&path)).unwrap();
    let cells: Vec<_> = row.split_whitespace().skip(1).collect();
    assert_eq!(cells, ["passed", "passed", "passed", "FAILED", "passed", "passed", "exempt", "passed", "passed"]);
    assert!(text.stdout.contains(&format!("exempt {path} on highmem: it is not told")), "{}", text.stdout);
    assert!(text.stdout.contains(&format!("failed {path} on iommu-lazy: not as expected")), "{}", text.stdout);
    let mixed = lowzone(["matrix", "--machines", "--wire", "qemu"]);
    assert_eq!(mixed.code, Some(2), "{mixed:?}");
}
