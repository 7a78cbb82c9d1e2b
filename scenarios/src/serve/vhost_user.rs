//! The back end of vhost-user: what a peer says, carried out.
//!
//! The `vhost` crate takes messages and their files off the socket; this is the state they change. What is wrong with a
//! message is kept as [`ServeError`], for the crate's own errors don't say it, and ends the connection. Neighbours:
//! [`super::session`] calls, [`super::memory`] and [`super::queue`] hold the state. Mirrors vhost-user.rst and virtio
//! 1.2 section 5.2. Left out: everything whose feature isn't offered.

use std::fs::File;
use std::sync::Arc;

use lowzone_device::Counters;
use lowzone_device::virtio::ACCESS_PLATFORM;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Backend as Requests, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::config::Config;
use super::error::ServeError;
use super::link::{Counts, Link};
use super::memory::{Memory, SLOTS, Wanted};
use super::queue::{Place, QueueError, Shared, Vring};
use super::tap::QueueTap;

/// The bit by which a peer says that it knows of protocol features.
const PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
/// The largest configuration space a peer may ask for.
const CONFIG_SPACE: usize = 256;

fn protocol() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
}

/// The device, for one connection.
pub(super) struct Backend {
    shared: Shared,
    offered: u64,
    accepted: u64,
    space: Vec<u8>,
    memory: Memory,
    queues: Vec<Vring>,
    /// What was wrong with the last message.
    trouble: Option<ServeError>,
    /// The way to send requests to the peer; nothing is asked of it, but it wants to be taken.
    requests: Option<Requests>,
}

impl Backend {
    /// The device that `config` tells of, not set up.
    pub fn new(config: Config, link: &Arc<Link>) -> std::result::Result<Self, ServeError> {
        let options = config.options();
        let store = config.open()?;
        let offered = options.features(&store) | PROTOCOL;
        let mut space = options.space(&store).to_vec();
        space.resize(CONFIG_SPACE, 0);
        let shared = Shared { config, counters: Arc::new(Counters::default()) };
        let tap = |queue| {
            let Config { trace, began, .. } = shared.config;
            if trace { QueueTap::recording(link.clone(), queue, began) } else { QueueTap::default() }
        };
        let queues = (0..shared.config.queues).map(|queue| Vring::new(&shared, queue, tap(queue)));
        let queues = queues.collect::<std::result::Result<Vec<_>, _>>()?;
        let (accepted, memory) = (0, Memory::default());
        Ok(Self { shared, offered, accepted, space, memory, queues, trouble: None, requests: None })
    }

    /// What was wrong with the last message, if this side found it.
    pub fn take_trouble(&mut self) -> Option<ServeError> {
        self.trouble.take()
    }

    /// Stops every queue, once everything on the rings is answered, and makes the data durable.
    pub fn end(&mut self) -> std::result::Result<(), ServeError> {
        self.queues.iter_mut().for_each(Vring::stop);
        Ok(self.shared.config.open()?.flush()?)
    }

    /// What was done.
    pub fn counts(&self) -> Counts {
        Counts::new(&self.shared.counters.totals(), self.queues.iter().map(Vring::calls).sum())
    }

    fn told<T>(&mut self, outcome: std::result::Result<T, ServeError>) -> Result<T> {
        outcome.map_err(|error| {
            self.trouble = Some(error);
            Error::InvalidParam
        })
    }

    fn stop_all(&mut self) {
        self.queues.iter_mut().for_each(Vring::stop);
    }

    /// Starts what may run.
    fn start_all(&mut self) -> std::result::Result<(), ServeError> {
        let features = self.accepted & !PROTOCOL;
        self.queues.iter_mut().try_for_each(|queue| queue.start(&self.shared, &self.memory, features))
    }

    /// Changes one queue and starts it, if it may run then.
    fn change<R>(
        &mut self,
        index: u32,
        change: impl FnOnce(&mut Vring, &Config) -> std::result::Result<R, QueueError>,
    ) -> Result<R> {
        let queues = self.queues.len();
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        let changed = match self.queues.get_mut(at) {
            None => Err(ServeError::NoQueue { index, queues }),
            Some(queue) => change(queue, &self.shared.config).map_err(|source| ServeError::Queue { index: at, source }),
        };
        let changed = changed.and_then(|result| self.start_all().map(|()| result));
        self.told(changed)
    }

    /// Changes the memory under the queues: they stop first and go on where they were.
    fn remap(&mut self, change: impl FnOnce(&mut Memory) -> std::result::Result<(), ServeError>) -> Result<()> {
        self.stop_all();
        let changed = change(&mut self.memory).and_then(|()| self.start_all());
        self.told(changed)
    }

    fn unserved<T>(&mut self, what: &'static str) -> Result<T> {
        Err(Error::InvalidOperation(what))
    }
}

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.queues.iter_mut().for_each(|queue| {
            queue.end();
        });
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.unserved("a reset of the device was not offered")
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        // A front end without a vIOMMU keeps ACCESS_PLATFORM to itself; whether it says so changes nothing here.
        let wanted = features & !(self.offered | ACCESS_PLATFORM);
        if wanted != 0 {
            return self.told(Err(ServeError::Features { name: "SET_FEATURES", wanted }));
        }
        self.stop_all();
        self.accepted = features;
        if features & PROTOCOL == 0 {
            // Such a peer knows no SET_VRING_ENABLE.
            self.queues.iter_mut().for_each(|queue| queue.set_enabled(true));
        }
        let started = self.start_all();
        self.told(started)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let table: Vec<_> = regions
            .iter()
            .map(|region| Wanted {
                guest: region.guest_phys_addr,
                user: region.user_addr,
                size: region.memory_size,
                offset: region.mmap_offset,
            })
            .zip(files)
            .collect();
        self.remap(|memory| {
            *memory = Memory::default();
            table.into_iter().try_for_each(|(region, file)| Ok(memory.add(region, file)?))
        })?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.change(index, |queue, config| queue.set_size(num, config.queue_size))
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        desc: u64,
        used: u64,
        avail: u64,
        _log: u64,
    ) -> Result<()> {
        self.change(index, |queue, _| {
            if !flags.is_empty() {
                return Err(QueueError::Logged);
            }
            queue.set_place(Place { desc, avail, used });
            Ok(())
        })
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.change(index, |queue, _| queue.set_base(base))
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.change(index, |queue, _| Ok(queue.end()))?;
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.change(index.into(), |queue, _| queue.set_kick(file))
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.change(index.into(), |queue, _| queue.set_call(file))
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.change(index.into(), |queue, _| queue.set_error(file))
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(protocol())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        match features & !protocol().bits() {
            0 => Ok(()),
            wanted => self.told(Err(ServeError::Features { name: "SET_PROTOCOL_FEATURES", wanted })),
        }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.queues.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.change(index, |queue, _| {
            queue.set_enabled(enable);
            Ok(())
        })
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let range = usize::try_from(offset).ok().zip(usize::try_from(size).ok());
        let bytes = range.and_then(|(start, len)| self.space.get(start..start.checked_add(len)?));
        bytes.map(<[u8]>::to_vec).ok_or(Error::InvalidParam)
    }

    fn set_config(&mut self, _offset: u32, _bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        self.unserved("nothing in the configuration can be written")
    }

    fn set_backend_req_fd(&mut self, requests: Requests) {
        self.requests = Some(requests);
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        self.unserved("this is no display")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        self.unserved("shared objects were not offered")
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        self.unserved("in-flight tracking was not offered")
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        self.unserved("in-flight tracking was not offered")
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(SLOTS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let at = Wanted {
            guest: region.guest_phys_addr,
            user: region.user_addr,
            size: region.memory_size,
            offset: region.mmap_offset,
        };
        self.remap(|memory| Ok(memory.add(at, file)?))?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let (guest, user, size) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        self.remap(|memory| Ok(memory.remove(guest, user, size)?))
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        self.unserved("migration was not offered")
    }

    fn check_device_state(&mut self) -> Result<()> {
        self.unserved("migration was not offered")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        self.unserved("shared memory was not offered")
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        self.unserved("the log of writes was not offered")
    }
}
