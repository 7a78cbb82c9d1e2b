//! The nine machines: each scenario shows on each what its file says, and clean drivers nothing in either world.

use lowzone_tests::program::lowzone;

/// Each, and how many stories can't be told there at most.
const MACHINES: [(&str, usize); 9] = [
    ("identity", 0),
    ("bridge-offset", 0),
    ("iommu-strict", 1),
    ("iommu-lazy", 1),
    ("swiotlb-force", 0),
    ("non-coherent", 4),
    ("highmem", 10),
    ("ram1g", 4),
    ("no-swiotlb", 4),
];
/// Drivers that make no mistake.
const CLEAN: [&str; 7] = [
    "block/low-zone",
    "block/write-zeroes",
    "edu/selftest",
    "net/loop-back",
    "alloc/scullc",
    "alloc/scullp",
    "alloc/scullv",
];
/// Wants an image.
const NOT_ALONE: [&str; 1] = ["block/copy-image"];

/// Runs a scenario on a machine; whether its story could be told there.
fn told(name: &str, machine: &str, world: &str) -> bool {
    let seen = lowzone(["run", name, "--machine", machine, "--world", world]);
    assert_eq!(seen.code, Some(0), "{name} on {machine} in {world}: {}{}", seen.stdout, seen.stderr);
    !seen.stdout.starts_with("exempt")
}

#[test]
fn every_scenario_shows_on_every_machine_what_its_file_says() {
    let list = lowzone(["list"]);
    let names: Vec<_> = list.stdout.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let names: Vec<_> = names.into_iter().filter(|name| name.contains('/') && !NOT_ALONE.contains(name)).collect();
    assert!(names.len() >= 87, "{names:?}");
    for (machine, most) in MACHINES {
        let exempt: Vec<_> = names.iter().filter(|name| !told(name, machine, "lockstep")).collect();
        assert!(exempt.len() <= most, "{machine}: {exempt:?}");
    }
}

#[test]
fn clean_drivers_find_nothing_on_any_machine_in_threads_either() {
    for (machine, _) in MACHINES {
        let told = CLEAN.iter().filter(|name| told(name, machine, "threads")).count();
        // Zeros that are written from memory out of reach need a pool.
        assert_eq!(told, CLEAN.len() - usize::from(machine == "no-swiotlb"), "{machine}");
    }
}
