//! The sandwich: our driver, QEMU's PCI transport and vhost-user front end, our device in a process of its own.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Child;

use lowzone_driver::blk::BlkOptions;
use lowzone_driver::virtio::{F_ACCESS_PLATFORM, F_EVENT_IDX};
use lowzone_guest_mem::kernel::MachineConfig;
use lowzone_tests::image::Folder;
use lowzone_tests::peer;
use lowzone_tests::program::{Outcome, command};
use rustix::process::{Pid, Signal, kill_process};

use super::blk::{clears, round_trips, with_disk};
use super::small;
use lowzone::wire::qtest::{BlkPeer, Peer};

/// `lowzone serve` at work.
struct Server {
    child: Child,
    folder: Folder,
}

impl Server {
    fn start() -> Self {
        let folder = Folder::new();
        let mut command = command(["serve", "virtio-blk", "--memory", "8M", "--queues", "2", "--vhost-user"]);
        let mut child = command.arg(folder.path().join("s")).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert!(line.starts_with("serving "), "{line}");
        child.stdout = Some(out.into_inner());
        Self { child, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// Ctrl-C, and how it ended.
    fn stop(self) -> Outcome {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        Outcome::of(&self.child.wait_with_output().unwrap())
    }
}

#[test]
fn our_driver_and_our_device_meet_with_qemu_in_between() {
    if !peer::qemu() {
        return;
    }
    let server = Server::start();
    let machines = [(small(), true, true), (small(), false, false), (MachineConfig::default(), true, true)];
    for (config, access_platform, event_idx) in machines {
        let options = BlkPeer { queues: 2, access_platform, event_idx, ..BlkPeer::default() };
        let peer = Peer::VhostUserBlk { socket: server.socket(), options };
        with_disk(config, peer, BlkOptions::default(), |cpu, disk| {
            let has = |bit| disk.features() & bit != 0;
            assert_eq!((has(F_ACCESS_PLATFORM), has(F_EVENT_IDX)), (access_platform, event_idx));
            assert_eq!((disk.capacity(), disk.queues()), (16384, 2));
            round_trips(cpu, disk, 60);
            clears(cpu, disk);
        });
    }
    let outcome = server.stop();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
}
