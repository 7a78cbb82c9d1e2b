//! Our driver under load on the disk at a vhost-user socket: random reads, so many in flight.
//!
//! The same work as the tests' program for the crate `virtio-driver`: 4 KiB a read, one queue, EVENT_IDX; what is done
//! is taken and replaced, then the device is told once. Buffers are coherent memory, or mapped for each request.
//! Neighbours: `peers`, which compares.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use lowzone_driver::ProbeError;
use lowzone_driver::blk::{BlkDriver, BlkError, BlkOptions, Data, Disk, Pending, Request, SubmitFailure};
use lowzone_driver::bus::Bdf;
use lowzone_driver::virtio::VirtioDevice;
use lowzone_guest_mem::dma::DmaDevice;
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::kernel::{Machine, MachineConfig, MachineError};
use lowzone_guest_mem::stats::leaks;
use lowzone_guest_mem::{Cpu, KBuf};
use thiserror::Error;

use super::peers::{BLOCK, DISK, Load, Wait};
use crate::wire::vhost_user::VhostUserError;
use crate::wire::{InProc, VhostUser};
use crate::world::{Body, Exit, Random, Threads, ThreadsError};

/// The name that the disk goes by.
const AT: Bdf = Bdf { bus: 0, device: 1, function: 0 };

/// Why there is no figure.
#[derive(Debug, Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Wire(#[from] VhostUserError),
    #[error(transparent)]
    World(#[from] ThreadsError),
    #[error("probe: {0}")]
    Probe(#[from] ProbeError),
    #[error("a request was not taken: {0}")]
    Submit(SubmitFailure),
    #[error("a request failed: {0}")]
    Request(#[from] BlkError),
    #[error("a request came back without its buffer")]
    NoBuffer,
    #[error("the driver has no disk")]
    NoDisk,
    #[error("no memory for {0} buffers")]
    NoMemory(usize),
    #[error("the driver's body ended so: {0:?}")]
    Body(Exit),
    #[error("{findings} findings and {leaks} leaks")]
    Unclean { findings: usize, leaks: usize },
}

/// Reads for so long, with `depth` in flight, in buffers that are `mapped` or shared all the time.
pub(super) fn run(
    socket: &Path,
    (depth, mapped): (usize, bool),
    wait: Wait,
    time: Duration,
) -> Result<Load, LoadError> {
    let machine = Machine::acquire(MachineConfig { cpus: 1, ..MachineConfig::default() })?;
    let kernel = machine.kernel_ref();
    let bus = Arc::new(InProc::new(kernel, 1));
    let wire = Arc::new(VhostUser::connect(kernel, bus.clone(), socket)?);
    let device = VirtioDevice { transport: wire.clone(), dma: DmaDevice::new(kernel, "virtio0"), irqs: wire.irqs() };
    let mut world = Threads::new(kernel, bus, Vec::new(), 1)?;
    world.set_looking(wait == Wait::Looking);
    let options =
        BlkOptions { dma_mask: 64, coherent_mask: 64, polled: wait == Wait::Polling, ..BlkOptions::default() };
    let driver = BlkDriver::new(options);
    let (tell, told) = channel();
    let body: Body = Box::new(move |cpu| {
        let load = driver.probe_virtio(cpu, AT, &device).map_err(LoadError::from);
        let load = load.and_then(|()| {
            let buffers = buffers(cpu, &device.dma, depth, mapped)?;
            pump(cpu, driver.disk(AT).as_deref(), buffers, time)
        });
        driver.remove_virtio(cpu, AT, &device);
        tell_of(&tell, load);
    });
    let exit = world.run(vec![body]).first().copied().unwrap_or(Exit::TornDown);
    let load = told.try_recv().unwrap_or(Err(LoadError::Body(exit)))?;
    let (findings, leaks) = (machine.kernel().findings().len(), leaks(machine.kernel()).len());
    if findings + leaks > 0 { Err(LoadError::Unclean { findings, leaks }) } else { Ok(load) }
}

fn tell_of(tell: &Sender<Result<Load, LoadError>>, load: Result<Load, LoadError>) {
    // The receiver waits for the body's end.
    let _ = tell.send(load);
}

fn buffers(cpu: &Cpu<'_>, dma: &DmaDevice, depth: usize, mapped: bool) -> Result<Vec<Data>, LoadError> {
    let one = |_| match mapped {
        true => KBuf::kmalloc(cpu, BLOCK, GFP_KERNEL).ok().map(Data::Streaming),
        false => dma.alloc_coherent(cpu, BLOCK, GFP_KERNEL).ok().map(Data::Shared),
    };
    (0..depth).map(one).collect::<Option<_>>().ok_or(LoadError::NoMemory(depth))
}

fn pump(cpu: &Cpu<'_>, disk: Option<&Disk>, buffers: Vec<Data>, time: Duration) -> Result<Load, LoadError> {
    let disk = disk.ok_or(LoadError::NoDisk)?;
    let depth = buffers.len();
    let mut random = Random::new(depth as u64);
    let mut next = |data: Data| {
        let block = random.next() % (DISK / BLOCK as u64);
        let request = Request::read(block * (BLOCK as u64 / 512), data);
        disk.submit_more(cpu, 0, request).map_err(|refused| LoadError::Submit(refused.why))
    };
    let mut flights: VecDeque<Pending> = VecDeque::with_capacity(depth);
    for data in buffers {
        flights.push_back(next(data)?);
    }
    let (mut requests, begun) = (0, Instant::now());
    while begun.elapsed() < time {
        disk.commit(cpu, 0);
        // The oldest is waited for; whatever else is done is taken with it.
        let mut taken = 0;
        while let Some(oldest) = flights.pop_front_if(|oldest| taken == 0 || oldest.is_done()) {
            flights.push_back(next(finish(cpu, disk, oldest)?)?);
            taken += 1;
        }
        requests += taken;
    }
    let load = Load { requests, nanos: begun.elapsed().as_nanos() };
    disk.commit(cpu, 0);
    flights.into_iter().try_for_each(|flight| finish(cpu, disk, flight).map(drop))?;
    Ok(load)
}

/// Waits for a request and takes its buffer back.
fn finish(cpu: &Cpu<'_>, disk: &Disk, flight: Pending) -> Result<Data, LoadError> {
    let done = disk.wait(cpu, flight);
    done.result?;
    done.data.ok_or(LoadError::NoBuffer)
}
