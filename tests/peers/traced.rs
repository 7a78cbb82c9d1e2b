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
