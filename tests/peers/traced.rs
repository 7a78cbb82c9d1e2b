//! What a server records of its peers' memory, read by `lowzone trace`.

use lowzone_tests::program::lowzone;

use crate::server::Server;
use lowzone_tests::disk::{Disk, Wait};

#[test]
fn every_access_of_the_device_is_in_the_trace() {
    let folder = lowzone_tests::image::Folder::new();
    let trace = folder.path().join("t.lzt");
    let path = trace.to_str().unwrap();
    let server = Server::start(["--memory", "1M", "--queues", "2", "--trace", path]);
    let mut buffers = Vec::new();
    for queue in 0..2 {
        let mut disk = Disk::connect(&server.socket(), 2, 8192, Wait::EventFd).unwrap();
        for tag in 0..100 {
            disk.write(queue, tag * 512, 0, 512, tag);
            assert_eq!(disk.one(queue), 0);
        }
        disk.read(queue, 0, 4096, 4096, 1);
        assert_eq!(disk.one(queue), 0);
        buffers.push(disk.pages.at(4096) as usize);
    }
    let (outcome, _) = server.stop();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
    let stat = lowzone(["trace", "stat", path, "--json"]);
    assert_eq!(stat.code, Some(0), "{stat:?}");
    let stat = stat.json();
    assert_eq!(stat["scenario"], "serve virtio-blk");
    for kind in ["virtq:take", "virtq:give"] {
        assert_eq!(stat["kinds"][kind]["events"], 202, "{kind}: {stat}");
    }
    for queue in ["q0", "q1"] {
        assert!(stat["devices"][queue]["events"].as_u64().unwrap() > 101 * 8, "{queue}: {stat}");
    }
    // The data that was read, by the address the driver gave: one write of 4096 bytes by each queue.
    for (queue, buffer) in buffers.iter().enumerate() {
        let name = format!("q{queue}");
        let shown = lowzone(["trace", "show", path, "--kind", "port:write", "--dev", &name, "--json"]);
        let hits = shown.stdout.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let hits = hits.filter(|event| event["len"] == 4096).collect::<Vec<_>>();
        assert_eq!(hits.len(), 1, "{name}: {hits:?}");
        assert_eq!(hits[0]["addr"], *buffer as u64, "{name}");
    }
    let first = lowzone(["trace", "show", path, "--count", "5"]);
    assert!(first.code == Some(0) && first.stdout.lines().count() >= 5, "{first:?}");
}

/// A driver's run and the server's record of it are one file in which the device's accesses belong to the driver's maps.
#[test]
fn the_records_of_driver_and_server_are_joined() {
    let folder = lowzone_tests::image::Folder::new();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (driver, device, joined) = (at("driver.lzt"), at("device.lzt"), at("joined.lzt"));
    let server = Server::start(["--memory", "64M", "--queues", "2", "--trace", &device]);
    let wire = format!("vhost-user={}", server.socket().display());
    let run = lowzone(["run", "block/low-zone", "--wire", &wire, "--trace", &driver]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:?}");
    assert_eq!(server.stop().0.code, Some(0));
    let join = lowzone(["trace", "join", &driver, &device, "-o", &joined]);
    assert_eq!((join.code, join.stderr.as_str()), (Some(0), ""), "{join:?}");
    // Nothing is left out or told twice.
    let events = |path: &str| lowzone(["trace", "stat", path, "--json"]).json()["events"].as_u64().unwrap();
    assert_eq!(events(&joined), events(&driver) + events(&device));
    let lines = lowzone(["trace", "tx", &joined, "--json"]).stdout;
    let all: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let data: Vec<_> = all.iter().filter(|t| t["coherent"] == false).collect();
    assert_eq!(data.len(), 64, "{lines}");
    for t in &data {
        let time = |name: &str| t[name].as_u64().unwrap_or_else(|| panic!("{name}: {t}"));
        let request = &t["requests"][0];
        assert_eq!((&t["touched"], t["chains"].as_u64()), (&t["bytes"], Some(1)), "{t}");
        assert!(time("mapped_ns") < time("first_ns") && time("last_ns") < time("unmapped_ns"), "{t}");
        let turn = |name: &str| request[name].as_u64().unwrap_or_else(|| panic!("{name}: {t}"));
        assert!(turn("added_ns") <= turn("taken_ns") && turn("taken_ns") <= turn("given_ns"), "{t}");
        assert!(turn("given_ns") <= turn("used_ns"), "{t}");
    }
    let life = lowzone(["trace", "tx", &joined, &data[0]["id"].to_string()]);
    let words =
        ["mapped:", "posted:", "vda:q", "the device takes the chain", "the device reads 8192 bytes", "unmapped:"];
    assert!(words.iter().all(|word| life.stdout.contains(word)), "{life:?}");
    let swapped = lowzone(["trace", "join", &device, &driver, "-o", &joined]);
    assert!(swapped.code == Some(2) && swapped.stderr.contains("the first file is the driver's record"), "{swapped:?}");
    let lockstep = at("lockstep.lzt");
    assert_eq!(lowzone(["run", "block/low-zone", "--trace", &lockstep]).code, Some(0));
    let refused = lowzone(["trace", "join", &lockstep, &device, "-o", &joined]);
    assert!(refused.code == Some(2) && refused.stderr.contains("when its clock began"), "{refused:?}");
}
