//! `VhostUser`: the front end of a vhost-user device, as a virtio transport.
//!
//! DMA addresses are the machine's own: the memory table says where they are in the RAM's file. A reset stops every
//! queue (GET_VRING_BASE) and keeps the connection. When the peer goes, requests of the driver fail; the next
//! [`Transport::negotiate`], hence the next probe, connects anew, trying for two seconds. Neighbours: `link`, `lines`.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowzone_driver::virtio::transport::{MakeQueue, NO_VECTOR, QueueLayout, Transport};
use lowzone_driver::virtio::{F_ACCESS_PLATFORM, F_VERSION_1, VirtioError};
use lowzone_guest_mem::kernel::KernelRef;
use lowzone_guest_mem::ram::HIGH_START;
use lowzone_guest_mem::wait::sleep;
use lowzone_guest_mem::{Cpu, PhysAddr};
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};

use super::VhostUserError;
use super::lines::Lines;
use super::link::{F_PROTOCOL, Link};
use crate::wire::InProc;

/// The most entries of a queue: the protocol leaves the choice to us, and this is what QEMU gives its virtio-blk.
const QUEUE_SIZE: u16 = 256;
/// `VHOST_F_LOG_ALL`: between front end and back end only.
const F_LOG_ALL: u64 = 1 << 26;
/// How often a peer that went away is tried again, and how long after each other.
const RECONNECTS: u32 = 40;
const RECONNECT_NS: u64 = 50_000_000;

/// The connection, if there is one, and what it was told.
struct State {
    link: Option<Link>,
    /// Queues that the peer knows of.
    set_up: Vec<u16>,
    /// Why the last connection ended.
    failure: Option<VhostUserError>,
}

/// A device behind a vhost-user socket.
pub struct VhostUser {
    kernel: KernelRef,
    path: PathBuf,
    lines: Arc<Lines>,
    state: Mutex<State>,
}

impl VhostUser {
    /// Connects to the peer that listens at `path`; its interrupts go to `controller`.
    ///
    /// # Errors
    /// [`VhostUserError`], whatever is there.
    pub fn connect(kernel: KernelRef, controller: Arc<InProc>, path: &Path) -> Result<Self, VhostUserError> {
        let link = Link::connect(path)?;
        let lines = Arc::new(Lines::new(kernel, controller, link.queues)?);
        link.tell(&lines);
        let state = Mutex::new(State { link: Some(link), set_up: Vec::new(), failure: None });
        Ok(Self { kernel, path: path.to_owned(), lines, state })
    }

    /// The interrupt number of each vector: that of config changes, then one a queue.
    pub fn irqs(&self) -> Arc<[u32]> {
        self.lines.irqs()
    }

    /// Calls `told` whenever a connection ends; the first one that asks is told.
    pub fn on_failure(&self, told: impl Fn() + Send + Sync + 'static) {
        self.lines.on_end(Box::new(told));
        if self.failure().is_some() {
            self.lines.ended();
        }
    }

    /// Why the connection ended, if it did and there is no new one.
    pub fn failure(&self) -> Option<String> {
        let mut state = self.state();
        state.note_end();
        state.failure.as_ref().map(ToString::to_string)
    }

    /// Bytes of the block device behind the socket, as it says.
    ///
    /// # Errors
    /// [`VhostUserError`]: why it doesn't say.
    pub fn capacity(&self) -> Result<u64, VhostUserError> {
        let mut sectors = [0; 8];
        if self.config(0, &mut sectors).is_err() {
            let failure = self.state().failure.take();
            return Err(failure.unwrap_or_else(|| VhostUserError::Closed { path: self.path.clone() }));
        }
        Ok(u64::from_le_bytes(sectors).saturating_mul(512))
    }

    fn config(&self, offset: u64, to: &mut [u8]) -> Result<(), VirtioError> {
        let bad = VirtioError::BadConfig { field: "offset", value: offset };
        let start = usize::try_from(offset).map_err(|_| bad)?;
        let zeros = vec![0; start.checked_add(to.len()).ok_or(bad)?];
        let size = u32::try_from(zeros.len()).map_err(|_| bad)?;
        // From the beginning: back ends made on libvhost-user ignore the offset.
        let ask = |front: &mut Frontend| front.get_config(0, size, VhostUserConfigFlags::empty(), &zeros);
        let (_, bytes) = self.state().request("GET_CONFIG", ask)?;
        to.copy_from_slice(bytes.get(start..start + to.len()).ok_or(bad)?);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that lives: the one there is, or a new one.
    fn revive(&self, cpu: &Cpu<'_>) -> Result<(), VirtioError> {
        for _ in 0..RECONNECTS {
            {
                let mut state = self.state();
                state.note_end();
                if state.link.is_some() {
                    return Ok(());
                }
                match Link::connect(&self.path) {
                    Ok(link) => {
                        link.tell(&self.lines);
                        *state = State { link: Some(link), set_up: Vec::new(), failure: None };
                        return Ok(());
                    }
                    Err(error) => state.failure = Some(error),
                }
            }
            sleep(cpu, RECONNECT_NS)?;
        }
        Err(VirtioError::Gone)
    }

    /// Stops what may run, agrees on features and hands RAM over.
    fn agree(&self, wanted: u64) -> Result<u64, VirtioError> {
        let regions = self.regions();
        let mut state = self.state();
        self.lines.end();
        state.stop_queues()?;
        let offered = state.link()?.features & !(F_LOG_ALL | F_PROTOCOL | F_ACCESS_PLATFORM);
        let features = offered & (wanted | F_VERSION_1);
        if features & F_VERSION_1 == 0 {
            return Err(VirtioError::NotModern { features: offered });
        }
        state.request("SET_FEATURES", |front| front.set_features(features | F_PROTOCOL))?;
        state.request("SET_MEM_TABLE", |front| front.set_mem_table(&regions))?;
        Ok(features)
    }

    /// All RAM, as the device addresses it.
    fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let Some(kernel) = self.kernel.get() else { return Vec::new() };
        let (ram, offset) = (kernel.ram(), kernel.config().dma_offset);
        let region = |start: u64, memory_size: u64, mmap_offset: u64| VhostUserMemoryRegionInfo {
            guest_phys_addr: start + offset,
            memory_size,
            // Rings are told by this address; with the device's own there is one kind of address on this wire.
            userspace_addr: start + offset,
            mmap_offset,
            mmap_handle: ram.file().as_raw_fd(),
        };
        let high = ram.total() - ram.low();
        let mut regions = vec![region(0, ram.low(), 0)];
        if high > 0 {
            regions.push(region(HIGH_START, high, ram.low()));
        }
        regions
    }
}

impl State {
    /// Lets go of a connection that has ended.
    fn note_end(&mut self) {
        if let Some(link) = self.link.take_if(|link| link.gone()) {
            // What a request saw was the first reason; that the socket closed then is no other.
            self.failure = self.failure.take().or(link.take_failure());
            self.set_up.clear();
        }
    }

    /// The connection, if it lives.
    fn link(&mut self) -> Result<&Link, VirtioError> {
        self.note_end();
        self.link.as_ref().ok_or(VirtioError::Gone)
    }

    /// One request; that it failed is noted.
    fn request<T>(
        &mut self,
        name: &'static str,
        ask: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T, VirtioError> {
        self.link()?.request(name, ask).map_err(|error| {
            self.failure = Some(error);
            VirtioError::Gone
        })
    }

    fn stop_queues(&mut self) -> Result<(), VirtioError> {
        while let Some(queue) = self.set_up.pop() {
            let index = usize::from(queue);
            self.request("SET_VRING_ENABLE", |front| front.set_vring_enable(index, false))?;
            self.request("GET_VRING_BASE", |front| front.get_vring_base(index))?;
        }
        Ok(())
    }
}

impl Transport for VhostUser {
    fn negotiate(&self, cpu: &Cpu<'_>, wanted: u64) -> Result<u64, VirtioError> {
        self.revive(cpu)?;
        match self.agree(wanted) {
            // Its end may not have been heard of when the connection was looked at.
            Err(VirtioError::Gone) => {
                self.revive(cpu)?;
                self.agree(wanted)
            }
            done => done,
        }
    }

    fn config_read(&self, _cpu: &Cpu<'_>, offset: u64, to: &mut [u8]) -> Result<(), VirtioError> {
        self.config(offset, to)
    }

    fn setup_queue(
        &self,
        _cpu: &Cpu<'_>,
        index: u16,
        vector: u16,
        make: &mut MakeQueue<'_>,
    ) -> Result<(), VirtioError> {
        let queues = self.state().link()?.queues;
        let pair = self.lines.pairs.get(usize::from(index)).filter(|_| index < queues);
        let pair = pair.ok_or(VirtioError::NoQueue { index, size: 0 })?;
        if vector != index + 1 && vector != NO_VECTOR {
            return Err(VirtioError::NoVector { index, vector });
        }
        let QueueLayout { size, desc, avail, used } = make(QUEUE_SIZE)?;
        let mut state = self.state();
        let addresses = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: size,
            flags: 0,
            desc_table_addr: desc.get(),
            used_ring_addr: used.get(),
            avail_ring_addr: avail.get(),
            log_addr: None,
        };
        // From here on the peer may know of the ring: a reset has to stop it.
        state.set_up.push(index);
        let offset = self.kernel.get().map_or(0, |kernel| kernel.config().dma_offset);
        // One that interrupts nobody has its descriptor all the same, which ends a sleep early at worst.
        if vector != NO_VECTOR {
            pair.used.begins(PhysAddr::new(used.get().wrapping_sub(offset)));
        }
        let at = usize::from(index);
        state.request("SET_VRING_NUM", |front| front.set_vring_num(at, size))?;
        state.request("SET_VRING_BASE", |front| front.set_vring_base(at, 0))?;
        state.request("SET_VRING_ADDR", |front| front.set_vring_addr(at, &addresses))?;
        state.request("SET_VRING_CALL", |front| front.set_vring_call(at, &pair.call))?;
        state.request("SET_VRING_KICK", |front| front.set_vring_kick(at, &pair.kick))
    }

    fn driver_ok(&self, _cpu: &Cpu<'_>, _config_vector: u16) -> Result<(), VirtioError> {
        let mut state = self.state();
        for queue in state.set_up.clone() {
            let at = usize::from(queue);
            state.request("SET_VRING_ENABLE", |front| front.set_vring_enable(at, true))?;
        }
        Ok(())
    }

    fn notify(&self, _cpu: &Cpu<'_>, index: u16) {
        if let Some(pair) = self.lines.pairs.get(usize::from(index)) {
            // It can only fail when 2^64 - 2 kicks were not heard; then the peer has enough of them.
            let _ = pair.kick.write(1);
        }
    }

    fn isr(&self, _cpu: &Cpu<'_>) -> u8 {
        0
    }

    fn needs_reset(&self, _cpu: &Cpu<'_>) -> bool {
        self.state().link().is_err()
    }

    fn reset(&self, _cpu: &Cpu<'_>) -> Result<(), VirtioError> {
        let mut state = self.state();
        self.lines.end();
        state.link()?;
        state.stop_queues()
    }
}

impl Drop for VhostUser {
    fn drop(&mut self) {
        // A peer that is gone has stopped; one that lives must not write to RAM that is given back.
        let _ = self.state().stop_queues();
    }
}
