//! Our block driver on QEMU's virtio-blk-pci.

use lowzone_driver::blk::{BlkDriver, BlkOptions, ClearError, Data, Disk, Op, Request, SectorRange, SubmitError};
use lowzone_driver::driver::{bind, unbind};
use lowzone_driver::virtio::{F_ACCESS_PLATFORM, F_EVENT_IDX, F_INDIRECT_DESC};
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::kernel::MachineConfig;
use lowzone_guest_mem::{Cpu, KBuf};

use super::{Rig, small};
use lowzone::wire::qtest::{BlkPeer, Drive, Peer, Qemu};
use lowzone_tests::image::Folder;
use lowzone_tests::peer;

const BYTES: usize = 4096;

fn submit(cpu: &Cpu<'_>, disk: &Disk, queue: u16, request: Request) -> Result<Data, String> {
    let pending = disk.submit(cpu, queue, request).map_err(|SubmitError { why, .. }| why.to_string())?;
    let done = disk.wait(cpu, pending);
    done.result.map_err(|error| error.to_string())?;
    Ok(done.data.unwrap_or(Data::None))
}

fn streaming(data: Data) -> KBuf {
    match data {
        Data::Streaming(buf) => buf,
        other => panic!("{other:?}"),
    }
}

fn block(round: usize) -> Vec<u8> {
    (0..BYTES).map(|i| u8::try_from((i * 13 + round * 101) % 251).unwrap()).collect()
}

/// Writes and reads `rounds` blocks on every queue, each compared.
pub(super) fn round_trips(cpu: &Cpu<'_>, disk: &Disk, rounds: usize) {
    for round in 0..rounds {
        let queue = u16::try_from(round).unwrap() % disk.queues();
        let sector = 8 * round as u64;
        let mut buf = KBuf::kmalloc(cpu, BYTES, GFP_KERNEL).unwrap();
        buf.write_at(0, &block(round)).unwrap();
        drop(submit(cpu, disk, queue, Request::write(sector, Data::Streaming(buf))).unwrap());
        let buf = KBuf::kmalloc(cpu, BYTES, GFP_KERNEL).unwrap();
        let buf = streaming(submit(cpu, disk, queue, Request::read(sector, Data::Streaming(buf))).unwrap());
        let mut bytes = vec![0; BYTES];
        buf.read_at(0, &mut bytes).unwrap();
        assert!(bytes == block(round), "round {round} on queue {queue}");
    }
    submit(cpu, disk, 0, Request::flush()).unwrap();
}

/// Has the device clear sectors in the middle of others, by both kinds of request, and looks at all of them.
pub(super) fn clears(cpu: &Cpu<'_>, disk: &Disk) {
    let (sectors, filled) = (BYTES / 512, vec![0x5a; BYTES]);
    let read = |at| {
        let buf = KBuf::kmalloc(cpu, BYTES, GFP_KERNEL).unwrap();
        let buf = streaming(submit(cpu, disk, 0, Request::read(at, Data::Streaming(buf))).unwrap());
        let mut bytes = vec![0; BYTES];
        buf.read_at(0, &mut bytes).unwrap();
        bytes
    };
    for at in [0, disk.capacity() - sectors as u64] {
        let mut buf = KBuf::kmalloc(cpu, BYTES, GFP_KERNEL).unwrap();
        buf.write_at(0, &filled).unwrap();
        drop(submit(cpu, disk, 0, Request::write(at, Data::Streaming(buf))).unwrap());
        for unmap in [false, true] {
            let range = SectorRange { sector: at + 2 + u64::from(unmap), sectors: 1 };
            drop(submit(cpu, disk, 0, disk.write_zeroes(cpu, &[range], unmap).unwrap()).unwrap());
        }
        let range = SectorRange { sector: at + 6, sectors: 1 };
        drop(submit(cpu, disk, 0, disk.discard(cpu, &[range]).unwrap()).unwrap());
        let seen = read(at);
        assert!(seen[..1024] == filled[..1024] && seen[2048..3072] == filled[2048..3072]);
        assert!(seen[1024..2048].iter().all(|byte| *byte == 0));
        assert!(seen[3584..] == filled[3584..], "what is behind the discarded sector stays");
    }
}

/// Probes the driver, runs `body` on the disk, and removes it; nothing may be left.
pub(super) fn with_disk(config: MachineConfig, peer: Peer, options: BlkOptions, body: impl FnOnce(&Cpu<'_>, &Disk)) {
    let rig = Rig::new(config, &[peer]);
    let (cpu, devices) = (rig.cpu(), rig.devices());
    let driver = BlkDriver::new(options);
    assert!(bind(&cpu, &driver, &devices[0]).unwrap_or_else(|error| panic!("{error}")));
    let disk = driver.disk(Qemu::place(0)).unwrap();
    body(&cpu, &disk);
    drop(disk);
    unbind(&cpu, &driver, &devices[0]);
    drop(devices);
    rig.assert_clean();
}

fn memory(options: BlkPeer) -> Peer {
    Peer::Blk { drive: Drive::Memory { bytes: 8 << 20 }, options }
}

#[test]
fn every_offer_of_the_device_works() {
    if !peer::qemu() {
        return;
    }
    for (access_platform, event_idx, indirect) in [(true, true, true), (false, true, false), (true, false, true)] {
        let options = BlkPeer { access_platform, event_idx, indirect, queues: 2, ..BlkPeer::default() };
        with_disk(small(), memory(options), BlkOptions::default(), |cpu, disk| {
            let has = |bit| disk.features() & bit != 0;
            assert_eq!((has(F_ACCESS_PLATFORM), has(F_EVENT_IDX)), (access_platform, event_idx));
            assert_eq!(has(F_INDIRECT_DESC), indirect);
            assert_eq!((disk.capacity(), disk.queues()), (16384, 2));
            round_trips(cpu, disk, 40);
            clears(cpu, disk);
        });
    }
    let options = BlkPeer { discard: false, ..BlkPeer::default() };
    with_disk(small(), memory(options), BlkOptions::default(), |cpu, disk| {
        let range = [SectorRange { sector: 0, sectors: 1 }];
        let refused = disk.discard(cpu, &range).unwrap_err();
        assert_eq!(refused, ClearError::NotOffered { what: "DISCARD" });
        let refused = disk.write_zeroes(cpu, &range, true).unwrap_err();
        assert_eq!(refused, ClearError::NotOffered { what: "WRITE_ZEROES" });
    });
}

#[test]
fn memory_above_4_gib_is_bounced_through_what_qemu_sees() {
    if !peer::qemu() {
        return;
    }
    with_disk(MachineConfig::default(), memory(BlkPeer::default()), BlkOptions::default(), |cpu, disk| {
        let buf = KBuf::kmalloc(cpu, BYTES, GFP_KERNEL).unwrap();
        assert!(buf.phys().get() >= 1 << 32, "kmalloc takes from the top: {}", buf.phys());
        drop(buf);
        round_trips(cpu, disk, 20);
        assert!(cpu.kernel().swiotlb_usage().1 > 0, "something was bounced");
    });
}

#[test]
fn the_pin_serves_as_well() {
    if !peer::qemu() {
        return;
    }
    let options = BlkOptions { msix: false, ..BlkOptions::default() };
    with_disk(small(), memory(BlkPeer::default()), options, |cpu, disk| {
        assert_eq!(disk.irqs(), [17]);
        round_trips(cpu, disk, 20);
    });
}

#[test]
fn an_image_is_read_and_kept_and_a_null_device_gives_zeros() {
    if !peer::qemu() {
        return;
    }
    let folder = Folder::new();
    // A comma parts QEMU's options.
    let path = folder.file("an,image", &[block(7), block(8)].concat());
    let options = BlkPeer { read_only: true, ..BlkPeer::default() };
    let peer = Peer::Blk { drive: Drive::Image { path }, options };
    let read = |cpu: &Cpu<'_>, disk: &Disk| {
        let mut buf = KBuf::kmalloc(cpu, BYTES, GFP_KERNEL).unwrap();
        buf.write_at(0, &[0xaa; BYTES]).unwrap();
        let buf = streaming(submit(cpu, disk, 0, Request::read(0, Data::Streaming(buf))).unwrap());
        let mut bytes = vec![0; BYTES];
        buf.read_at(0, &mut bytes).unwrap();
        bytes
    };
    with_disk(small(), peer, BlkOptions::default(), |cpu, disk| {
        assert_eq!(read(cpu, disk), block(7));
        let buf = KBuf::kmalloc(cpu, BYTES, GFP_KERNEL).unwrap();
        let refused = submit(cpu, disk, 0, Request::write(0, Data::Streaming(buf)));
        assert!(refused.is_err(), "a read-only image was written");
    });
    let peer = Peer::Blk { drive: Drive::Null { bytes: 1 << 20 }, options: BlkPeer::default() };
    with_disk(small(), peer, BlkOptions::default(), |cpu, disk| {
        assert_eq!(read(cpu, disk), vec![0; BYTES]);
    });
}

#[test]
fn past_the_end_is_an_error_of_that_request_alone() {
    if !peer::qemu() {
        return;
    }
    with_disk(small(), memory(BlkPeer::default()), BlkOptions::default(), |cpu, disk| {
        let buf = KBuf::kmalloc(cpu, BYTES, GFP_KERNEL).unwrap();
        let request = Request { op: Op::Read, sector: disk.capacity(), data: Data::Streaming(buf) };
        assert!(submit(cpu, disk, 0, request).is_err());
        round_trips(cpu, disk, 3);
    });
}

#[test]
fn many_requests_in_flight_come_back_once_each() {
    if !peer::qemu() {
        return;
    }
    with_disk(small(), memory(BlkPeer::default()), BlkOptions::default(), |cpu, disk| {
        for _ in 0..20 {
            let pending: Vec<_> = (0..32_u64)
                .map(|i| {
                    let mut buf = KBuf::kmalloc(cpu, BYTES, GFP_KERNEL).unwrap();
                    buf.write_at(0, &block(usize::try_from(i).unwrap())).unwrap();
                    disk.submit_more(cpu, 0, Request::write(8 * i, Data::Streaming(buf))).unwrap()
                })
                .collect();
            disk.commit(cpu, 0);
            for one in pending {
                disk.wait(cpu, one).result.unwrap();
            }
        }
        let submitted: u64 = disk.stats(cpu).iter().map(|queue| queue.submitted).sum();
        assert_eq!((submitted, disk.peak_in_flight()), (640, 32));
    });
}
