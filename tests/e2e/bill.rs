//! `lowzone run --bill`: bills that can be reckoned by hand, held against the devices' own counters.

use std::fs;

use lowzone::bill::{Bill, Cost, DeviceBill, Wider};
use lowzone::result::RunResult;
use lowzone::spec::{NamedMachine, Scenario, Source, load};
use lowzone::world::WorldKind;
use lowzone_tests::image::Folder;
use lowzone_tests::program::{lowzone, workspace};
use lowzone_tests::scenario::{embedded, lab_in};

/// One run and its bill, in a world.
fn billed(scenario: &Scenario, world: WorldKind) -> (RunResult, Bill) {
    let mut lab = lab_in(world, scenario, 1);
    lab.keep_bill();
    let result = lab.run();
    let bill = lab.take_bill().unwrap();
    assert_eq!(bill.devices.len(), result.devices.len());
    for (device, counted) in bill.devices.iter().zip(&result.devices) {
        assert_adds_up(device);
        let cost = &device.cost;
        let copied = cost.copied_in + cost.copied_back + device.unbooked_bytes;
        let seen = (cost.maps, cost.refused, cost.bounces, cost.coherent, copied);
        let counters = (counted.maps, counted.map_failures, counted.bounces, counted.coherent, counted.bounced_bytes);
        // A list that failed bounced entries that are no mappings.
        if device.unbooked_slots == 0 {
            assert_eq!(seen, counters, "{}", device.device);
        }
        assert!(device.whole && copied == counted.bounced_bytes, "{device:?} {counted:?}");
        assert!(cost.slots_at_once <= bill.pool.map_or(0, |pool| pool.high_water.into()), "{device:?}");
    }
    (result, bill)
}

/// The device is the sum of its sites, but for what was not at once.
fn assert_adds_up(device: &DeviceBill) {
    let sum = |of: fn(&Cost) -> u64| {
        assert_eq!(of(&device.cost), device.sites.iter().map(|site| of(&site.cost)).sum::<u64>())
    };
    let sums: [fn(&Cost) -> u64; 12] = [
        |cost| cost.maps,
        |cost| cost.refused,
        |cost| cost.bounces,
        |cost| cost.bounced,
        |cost| cost.copied_in,
        |cost| cost.copied_back,
        |cost| cost.slots,
        |cost| cost.slot_waste,
        |cost| cost.object_waste,
        |cost| cost.coherent_bytes,
        |cost| cost.coherent_pages,
        |cost| cost.coherent_waste,
    ];
    sums.into_iter().for_each(sum);
    for cost in device.sites.iter().map(|site| &site.cost).chain([&device.cost]) {
        assert_eq!(cost.slots * 2048, cost.bounced + cost.slot_waste);
        assert_eq!(cost.coherent_pages * 4096, cost.coherent_bytes + cost.coherent_waste);
    }
}

const WORLDS: [WorldKind; 2] = [WorldKind::Lockstep, WorldKind::Threads];
const KIB: u64 = 1024;

#[test]
fn the_bill_of_32_bits_is_that_of_each_request_in_high_memory() {
    for world in WORLDS {
        let (result, bill) = billed(&embedded("block/low-zone", &[]), world);
        let (device, pool) = (&bill.devices[0], bill.pool.unwrap());
        // 16 writes and 16 reads of 8 KiB each bounce: all are copied in, the reads back too, and each takes 4 slots.
        let cost = &device.cost;
        assert_eq!((cost.maps, cost.bounces, cost.bounced), (64, 32, 256 * KIB));
        assert_eq!((cost.copied_in, cost.copied_back, cost.slots, cost.slot_waste), (256 * KIB, 128 * KIB, 128, 0));
        assert_eq!((result.swiotlb_peak, pool.slots, pool.slot_bytes), (pool.high_water, 32768, 2048));
        assert_eq!(cost.slots_at_once, u64::from(pool.high_water));
        assert!(world == WorldKind::Threads || pool.high_water == 64, "16 requests of 4 slots are in flight at most");
        let bounced: Vec<_> = device.sites.iter().filter(|site| site.cost.bounces > 0).collect();
        assert_eq!(bounced.len(), 2, "one that reads, one that writes: {:?}", device.sites);
        for (site, copied) in bounced.into_iter().zip([256 * KIB, 128 * KIB]) {
            assert!(site.site.starts_with("driver/src/blk/queue.rs:"), "{}", site.site);
            assert_eq!(site.wider, Some(Wider { bits: 33, maps: 16, bytes: copied, slots: 64 }));
        }
        assert_eq!(device.wider, Some(Wider { bits: 33, maps: 32, bytes: 384 * KIB, slots: 128 }));
        // Rings and headers of a queue, and a buffer of 8 KiB for each request of the step in coherent memory.
        let rings = 3342 + 8192 + 2176;
        assert_eq!((cost.coherent_bytes, cost.coherent_pages), (rings + 32 * 8 * KIB, 4 + 32 * 2));
        assert!(cost.coherent_pages_at_once > 4 && cost.coherent_pages_at_once <= 4 + 64);
    }
}

#[test]
fn nothing_bounces_within_a_mask_of_64_bits_and_no_wider_one_helps() {
    for world in WORLDS {
        let (_, bill) = billed(&embedded("block/low-zone", &["driver.dma_mask=64", "device.width=64"]), world);
        let Cost { maps, bounces, copied_in, copied_back, slots, slots_at_once, .. } = bill.devices[0].cost;
        assert_eq!((maps, bounces, copied_in, copied_back, slots, slots_at_once), (64, 0, 0, 0, 0, 0));
        assert_eq!((bill.devices[0].wider, bill.pool.unwrap().high_water), (None, 0));
        assert!(bill.devices[0].sites.iter().all(|site| site.wider.is_none()));
    }
}

#[test]
fn a_mask_of_28_bits_pays_in_pages_and_in_what_is_refused() {
    for world in WORLDS {
        let (_, bill) = billed(&embedded("edu/three-lows", &[]), world);
        let cost = &bill.devices[0].cost;
        // One page below 4 GiB is out of reach, and so is the pool: its map fails.
        assert_eq!((cost.maps, cost.refused, cost.bounces, cost.slots), (8, 1, 0, 0));
        // Three times 1 KiB, one after the other, and the driver's own page.
        assert_eq!((cost.coherent, cost.coherent_bytes, cost.coherent_pages), (4, 3 * KIB + 4096, 4));
        assert_eq!((cost.coherent_pages_at_once, cost.coherent_waste), (2, 9 * KIB));
    }
}

#[test]
fn where_all_bounces_a_mask_saves_nothing_and_small_objects_waste_most_of_their_slots() {
    let source = Source::embedded("net/loop-back").unwrap();
    for world in WORLDS {
        let scenario = load(&source, &NamedMachine::SwiotlbForce.sets()).unwrap();
        let (_, bill) = billed(&scenario, world);
        let device = &bill.devices[0];
        assert!(bill.forced && device.wider.is_none() && device.sites.iter().all(|site| site.wider.is_none()));
        assert_eq!(device.cost.maps, device.cost.bounces);
        let receive: Vec<_> = device.sites.iter().filter(|site| site.site.contains("net/rx.rs")).collect();
        assert!(receive.iter().map(|site| site.cost.maps).sum::<u64>() > 2000, "{:?}", device.sites);
        for cost in receive.into_iter().map(|site| &site.cost).filter(|cost| cost.bounces > 0) {
            // 1526 bytes, in an object and in a slot of 2 KiB.
            assert_eq!((cost.bounced, cost.slots, cost.objects), (cost.maps * 1526, cost.maps, cost.maps));
            assert_eq!((cost.slot_waste, cost.object_waste), (cost.maps * 522, cost.maps * 522));
        }
    }
}

#[test]
fn the_bill_of_every_scenario_with_devices_is_what_the_counters_say_on_every_machine_that_bounces() {
    let names = lowzone(["list"]).stdout;
    let names = names.lines().filter_map(|line| line.split_whitespace().next());
    // An image is given to one, and a million packets are enough elsewhere.
    let names = names.filter(|&name| !["block/copy-image", "net/pressure"].contains(&name));
    let mut seen = 0;
    for name in names {
        let source = Source::embedded(name).unwrap();
        for machine in [NamedMachine::Identity, NamedMachine::SwiotlbForce, NamedMachine::IommuLazy] {
            let scenario = load(&source, &machine.sets()).unwrap();
            if let Ok(scenario) = scenario.on(machine).map_err(|why| assert!(!why.is_empty())) {
                let (_, bill) = billed(&scenario, WorldKind::Lockstep);
                seen += usize::from(bill.devices.iter().any(|device| device.cost.maps > 0));
            }
        }
    }
    assert!(seen >= 60, "{seen}");
}

/// Texts without the numbers of source lines, which come and go.
fn without_lines(text: &str) -> String {
    let mut parts = text.split(".rs:");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + ".rs:N" + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

#[test]
fn the_readme_shows_it_and_a_trace_beside_it_is_the_same() {
    let folder = Folder::new();
    let [alone, beside] = ["alone.lzt", "beside.lzt"].map(|name| folder.file(name, b"").display().to_string());
    let plain = lowzone(["run", "block/low-zone", "--trace", &alone]);
    let seen = lowzone(["run", "block/low-zone", "--bill", "--trace", &beside]);
    assert_eq!((plain.code, seen.code), (Some(0), Some(0)), "{seen:?}");
    let bill = seen.stdout.strip_prefix(&plain.stdout).expect("the bill comes last").trim();
    assert!(fs::read(alone).unwrap() == fs::read(beside).unwrap(), "the bill takes nothing from the trace");
    let readme = without_lines(&fs::read_to_string(workspace().join("README.md")).unwrap());
    assert!(readme.contains(&without_lines(bill)), "put this into README.md:\n{bill}");
    let json = lowzone(["run", "block/low-zone", "--bill", "--json"]).json();
    let device = &json["bill"]["devices"][0];
    assert_eq!(
        (&device["bounces"], &device["wider"]["bits"], &device["whole"]),
        (&32.into(), &33.into(), &true.into())
    );
    assert!(lowzone(["run", "block/low-zone", "--json"]).json().get("bill").is_none());
}
