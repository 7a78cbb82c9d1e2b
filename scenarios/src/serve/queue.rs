//! One queue as the peer sets it up: size, place, base, doorbells; and the thread that serves it while it may.
//!
//! A queue runs when it has a place and a doorbell and is enabled. Everything that changes what it runs on stops it
//! first and starts it where it was: then nothing is in flight. Neighbours: [`super::vhost_user`] sets it up,
//! [`super::poller`] is the thread. Mirrors the section "Starting and stopping rings" of vhost-user.rst.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use lowzone_device::blk::BlkQueues;
use lowzone_device::pci::{Beyond, BusMaster, BusMasterGate};
use lowzone_device::virtio::{QueueConfig, QueueShared};
use lowzone_device::{Counters, Script};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use thiserror::Error;

use super::config::Config;
use super::error::ServeError;
use super::memory::Memory;
use super::poller::{Bell, Halt, Poller};
use super::tap::QueueTap;

/// A queue that can't be set up as the peer wants it.
#[derive(Debug, Error)]
pub(crate) enum QueueError {
    #[error("a size of {size}: a power of two up to {limit}")]
    Size { size: u32, limit: u16 },
    #[error("a base of {base:#x}: 16 bits")]
    Base { base: u32 },
    #[error("its {what} lies at {user:#x} in the peer, which is in no memory region")]
    Place { what: &'static str, user: u64 },
    #[error("its {what} lies at {at:#x}: a multiple of {align} is needed")]
    Align { what: &'static str, at: u64, align: u64 },
    #[error("its {what} is no eventfd but {found}")]
    NoEventFd { what: &'static str, found: String },
    #[error("the log of writes is not served")]
    Logged,
    #[error("{what}: {source}")]
    System { what: &'static str, source: io::Error },
}

/// Where a ring's parts are, as addresses of the peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
}

/// The doorbell.
#[derive(Clone, Default)]
enum Kick {
    /// None was sent: the queue is not started.
    #[default]
    Unset,
    /// The peer rings none.
    None,
    File(Arc<File>),
}

/// What all queues of a connection have in common.
pub(super) struct Shared {
    pub config: Config,
    pub counters: Arc<Counters>,
}

/// One queue.
pub(super) struct Vring {
    index: u16,
    size: u16,
    base: u16,
    place: Option<Place>,
    kick: Kick,
    enabled: bool,
    bell: Arc<Bell>,
    tap: QueueTap,
    device: BlkQueues,
    running: Option<(Arc<Halt>, JoinHandle<u16>)>,
}

/// How the system names every eventfd.
const EVENTFD: &str = "anon_inode:[eventfd]";

/// Takes an eventfd of the peer's; reading and writing it never waits. Anything else is refused: a file would be ready
/// for ever, and be written to.
fn eventfd(what: &'static str, file: Option<File>) -> Result<Option<File>, QueueError> {
    let failed = |source: io::Error| QueueError::System { what, source };
    if let Some(file) = &file {
        let name = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(failed)?;
        if name.as_os_str() != EVENTFD {
            return Err(QueueError::NoEventFd { what, found: name.display().to_string() });
        }
        let flags = fcntl_getfl(file).map_err(|error| failed(error.into()))?;
        fcntl_setfl(file, flags | OFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
    }
    Ok(file)
}

impl Vring {
    /// A queue that is not set up, over a store of its own.
    pub fn new(shared: &Shared, index: u16, tap: QueueTap) -> Result<Self, ServeError> {
        let bell = Arc::new(Bell::new(tap.clone()));
        let options = shared.config.options();
        let store = Arc::new(shared.config.open()?);
        let script = Arc::new(Script::new());
        let device = BlkQueues::new(&options, store, bell.clone(), shared.counters.clone(), script)?;
        let (size, base, place, kick) = (shared.config.queue_size, 0, None, Kick::Unset);
        Ok(Self { index, size, base, place, kick, enabled: false, bell, tap, device, running: None })
    }

    pub fn set_size(&mut self, size: u32, limit: u16) -> Result<(), QueueError> {
        let fits = u16::try_from(size).ok().filter(|size| size.is_power_of_two() && *size <= limit);
        self.stop();
        self.size = fits.ok_or(QueueError::Size { size, limit })?;
        Ok(())
    }

    pub fn set_base(&mut self, base: u32) -> Result<(), QueueError> {
        self.stop();
        self.base = u16::try_from(base).map_err(|_| QueueError::Base { base })?;
        Ok(())
    }

    pub fn set_place(&mut self, place: Place) {
        self.stop();
        self.place = Some(place);
    }

    /// The doorbell; the queue is started by it, if it is enabled.
    pub fn set_kick(&mut self, file: Option<File>) -> Result<(), QueueError> {
        self.stop();
        self.kick = eventfd("doorbell", file)?.map_or(Kick::None, |file| Kick::File(Arc::new(file)));
        Ok(())
    }

    pub fn set_call(&self, file: Option<File>) -> Result<(), QueueError> {
        self.bell.set_call(eventfd("call", file)?);
        Ok(())
    }

    pub fn set_error(&self, file: Option<File>) -> Result<(), QueueError> {
        self.bell.set_error(eventfd("error signal", file)?);
        Ok(())
    }

    pub fn set_enabled(&mut self, enabled: bool) {
        if !enabled {
            self.stop();
        }
        self.enabled = enabled;
    }

    /// Stops the queue for good and says where it was.
    pub fn end(&mut self) -> u16 {
        self.stop();
        self.kick = Kick::Unset;
        self.base
    }

    /// How often the driver was told.
    pub fn calls(&self) -> u64 {
        self.bell.calls()
    }

    /// Stops the queue, if it runs, once everything on its ring is answered.
    pub fn stop(&mut self) {
        if let Some((halt, thread)) = self.running.take() {
            halt.ask();
            // A thread that panicked said so; its ring is where it began.
            self.base = thread.join().unwrap_or(self.base);
        }
    }

    /// Starts the queue if it may run and does not.
    pub fn start(&mut self, shared: &Shared, memory: &Memory, features: u64) -> Result<(), ServeError> {
        let index = usize::from(self.index);
        let wrong = |source| ServeError::Queue { index, source };
        let kick = match (&self.kick, &self.running) {
            (Kick::Unset, _) | (_, Some(_)) => return Ok(()),
            (Kick::None, None) => None,
            (Kick::File(file), None) => Some(file.clone()),
        };
        let Some(place) = self.place.filter(|_| self.enabled) else { return Ok(()) };
        let state = Arc::new(QueueShared::default());
        state.activate(self.ring(place, memory, features).map_err(wrong)?);
        let gate = Arc::new(BusMasterGate::default());
        gate.set(true);
        let mem = BusMaster::new(memory.map(), shared.config.width, Beyond::Refuse, gate, self.tap.clone())?;
        let worker = self.device.worker(self.index, state, mem);
        let system = |what| move |source| wrong(QueueError::System { what, source });
        let halt = Arc::new(Halt::new().map_err(system("an eventfd"))?);
        let (counters, tap) = (shared.counters.clone(), self.tap.clone());
        let poller = Poller { queue: self.index, worker, kick, halt: halt.clone(), tap, counters };
        let name = format!("queue-{index}");
        let thread = std::thread::Builder::new().name(name).spawn(move || poller.run()).map_err(system("a thread"))?;
        self.running = Some((halt, thread));
        Ok(())
    }

    fn ring(&self, place: Place, memory: &Memory, features: u64) -> Result<QueueConfig, QueueError> {
        let guest = |what, user, align| {
            let guest = memory.guest(user).ok_or(QueueError::Place { what, user })?;
            if guest.is_multiple_of(align) { Ok(guest) } else { Err(QueueError::Align { what, at: guest, align }) }
        };
        Ok(QueueConfig {
            index: self.index,
            size: self.size,
            desc: guest("descriptor table", place.desc, 16)?,
            avail: guest("available ring", place.avail, 2)?,
            used: guest("used ring", place.used, 4)?,
            features,
            start: self.base,
        })
    }
}
