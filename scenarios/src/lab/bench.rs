//! `Bench`: what the bodies on the CPUs share with the lab, and its devices' slots.
//!
//! Neighbours: `step`, whose bodies use it; the parent, which makes it and takes the result out. Left out: the world and
//! the machine, which bodies reach through their CPU only.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowzone_device::Counters;
use lowzone_device::misbehave::Script;
use lowzone_driver::blk::Disk;
use lowzone_driver::bus::{Bdf, PciBus};
use lowzone_driver::pci::PciDevice;
use lowzone_driver::virtio::VirtioDevice;
use lowzone_guest_mem::KBuf;
use lowzone_guest_mem::dma::DmaDevice;
use lowzone_guest_mem::kernel::Kernel;
use lowzone_guest_mem::page::Pages;

use super::control::Control;
use crate::kit::LabDriver;
use crate::result::RunResult;

/// How data that was read is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Verify {
    /// Byte by byte and by SHA-256, which the result shows.
    #[default]
    Sha256,
    /// Byte by byte: for measuring everything but the hash.
    Bytes,
}

/// One plugged device.
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) at: Bdf,
    pub(crate) dma: DmaDevice,
    /// How it is reached if no bus finds it.
    pub(crate) virtio: Option<VirtioDevice>,
    pub(crate) counters: Option<Arc<Counters>>,
    pub(crate) script: Option<Arc<Script>>,
    pub(crate) image: Option<PathBuf>,
    /// Bytes of its store when it was opened.
    pub(crate) capacity: u64,
    pub(crate) width: u8,
    /// Bytes that may hold what somebody wrote; elsewhere are zeros.
    pub(crate) written: Mutex<Vec<Range<u64>>>,
}

impl Slot {
    /// What to say if the image has another size by now; its requests have failed since it changed.
    pub(super) fn resized(&self) -> Option<String> {
        let path = self.image.as_ref()?;
        let now = std::fs::metadata(path).map_or(0, |file| file.len());
        let (name, was) = (&self.name, self.capacity);
        (now != was).then(|| format!("{name}: image {} changed from {was} to {now} bytes while in use", path.display()))
    }
}

/// What the bodies on the CPUs share with the lab.
pub(crate) struct Bench {
    pub(crate) kernel: &'static Kernel,
    pub(crate) bus: Arc<dyn PciBus>,
    pub(crate) driver: Arc<dyn LabDriver>,
    /// Where it is bound.
    pub(crate) bound: Mutex<Vec<Bdf>>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) found: Mutex<Vec<Arc<PciDevice>>>,
    pub(crate) control: Arc<Control>,
    pub(crate) verify: Verify,
    pub(crate) seed: u64,
    /// The buffer whose low alias carries the canary, and that alias's address.
    pub(crate) canary: Mutex<Option<Canary>>,
    /// What `hold` steps took.
    pub(crate) held: Mutex<Vec<Pages>>,
    /// What the last `dma` step left in a device's buffer, where that is known.
    pub(crate) sent: Mutex<BTreeMap<String, Vec<u8>>>,
    /// A span that every step opens first: a campaign's phases.
    pub(crate) phase: Mutex<Option<&'static str>>,
    pub(crate) result: Mutex<RunResult>,
}

/// Marked memory that a wrapped access would hit.
pub(crate) struct Canary {
    /// The buffer above the device's reach; the next raw step uses it.
    pub(crate) buffer: Option<KBuf>,
    pub(crate) alias: lowzone_guest_mem::PhysAddr,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bench {
    pub(crate) fn slot(&self, name: &str) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.name == name)
    }

    pub(crate) fn disk(&self, name: &str) -> Option<Arc<Disk>> {
        self.driver.disk(self.slot(name)?.at)
    }

    pub(crate) fn is_bound(&self, at: Bdf) -> bool {
        lock(&self.bound).contains(&at)
    }

    /// Notes that a step could not do its work.
    pub(crate) fn failed(&self, text: String) {
        lock(&self.result).errors.push(text);
    }
}
