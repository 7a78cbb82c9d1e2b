//! Requests a second on qemu-storage-daemon's null device: our driver and the crate `virtio-driver`, in turns.

use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use lowzone::world::Random;
use lowzone_driver::blk::{BlkOptions, Data, Request};
use lowzone_guest_mem::KBuf;
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_tests::front::FrontRig;

use crate::disk::Wait;
use crate::server::Server;
use crate::speed::{BLOCK, DISK, iops, middle};

const ROUNDS: usize = 7;
const TIME: Duration = Duration::from_millis(700);

/// The same as [`iops`] by our driver: random reads of 4 KiB with `depth` in flight, in buffers used again.
fn ours(socket: &Path, depth: usize) -> f64 {
    let mut rig = FrontRig::new(socket, 1, BlkOptions { dma_mask: 64, coherent_mask: 64, ..BlkOptions::default() });
    let disk = rig.bind();
    let (tell, told) = channel();
    let reader = disk.clone();
    rig.run(vec![Box::new(move |cpu| {
        let mut random = Random::new(depth as u64);
        let mut next = |buf| {
            let block = random.next() % (DISK / BLOCK as u64);
            reader.submit_more(cpu, 0, Request::read(block * 8, Data::Streaming(buf))).ok().unwrap()
        };
        let mut flights: Vec<_> =
            (0..depth).map(|_| Some(next(KBuf::kmalloc(cpu, BLOCK, GFP_KERNEL).unwrap()))).collect();
        let (mut count, begun) = (0_u64, Instant::now());
        while begun.elapsed() < TIME {
            reader.commit(cpu, 0);
            for flight in &mut flights {
                let done = reader.wait(cpu, flight.take().unwrap());
                done.result.unwrap();
                let Some(Data::Streaming(buf)) = done.data else { panic!("no buffer") };
                *flight = Some(next(buf));
                count += 1;
            }
        }
        tell.send(count as f64 / begun.elapsed().as_secs_f64()).unwrap();
        reader.commit(cpu, 0);
        flights.into_iter().flatten().for_each(|flight| drop(reader.wait(cpu, flight)));
    })]);
    drop(disk);
    rig.unbind();
    rig.assert_clean();
    told.recv().unwrap()
}

/// The goal, no slower than `virtio-driver`, is not reached: the figures are printed, and that every request went well is
/// asserted.
#[test]
fn our_driver_beside_virtio_driver() {
    if std::env::var_os("LOWZONE_LONG").is_none() {
        return;
    }
    let Some(qemu) = Server::qemu_null(DISK) else {
        panic!("qemu-storage-daemon is not installed (Debian: qemu-system-common)");
    };
    for depth in [1, 64] {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let mut measure = |mine: bool| match mine {
                true => here.push(ours(&qemu.socket(), depth)),
                false => there.push(iops(&qemu.socket(), depth, Wait::EventFd, TIME)),
            };
            measure(round % 2 == 0);
            measure(round % 2 == 1);
        }
        let [low, mid, high] = middle(here.iter().zip(&there).map(|(a, b)| a / b).collect());
        let ([a0, a1, a2], [b0, b1, b2]) = (middle(here), middle(there));
        println!("depth {depth:>2}: ours {a1:.0} [{a0:.0} {a2:.0}], virtio-driver {b1:.0} [{b0:.0} {b2:.0}]");
        println!("          ratio {mid:.2} [{low:.2} {high:.2}]");
    }
}
