//! The common configuration of virtio over PCI: status, features, queue registers.
//!
//! A pure state machine: a write that means more than storing a value returns an [`Effect`] for the function to
//! carry out. The driver's order is held up: features freeze at FEATURES_OK, queues at DRIVER_OK, a queue's layout
//! when it is enabled, and status bits only ever get set until a reset. Mirrors virtio 1.2 sections 2.1 and
//! 4.1.4.3. Left out: notification data, queue reset, the administration queue.

use super::queue::QueueConfig;
use super::{VERSION_1, VirtioDevice};
use crate::pci::Width;
use crate::pci::msix::{NO_VECTOR, halves, join};

/// Bytes of the structure.
pub const LEN: u32 = 56;

/// The driver has seen the device.
pub const ACKNOWLEDGE: u8 = 1;
/// The driver can drive it.
pub const DRIVER: u8 = 2;
/// The driver is ready, the device may run.
pub const DRIVER_OK: u8 = 4;
/// Both sides agree on the features.
pub const FEATURES_OK: u8 = 8;
/// The device can't go on.
pub const NEEDS_RESET: u8 = 0x40;
/// The driver has given up.
pub const FAILED: u8 = 0x80;

/// What a register write asks the function to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing beyond the register.
    None,
    /// The driver is ready: the enabled queues become active.
    Activate,
    /// The device must be reset.
    Reset,
}

#[derive(Debug, Clone, Copy)]
struct QueueRegisters {
    size: u16,
    vector: u16,
    enabled: bool,
    desc: u64,
    avail: u64,
    used: u64,
}

impl QueueRegisters {
    fn at_reset(max_size: u16) -> Self {
        Self { size: max_size, vector: NO_VECTOR, enabled: false, desc: 0, avail: 0, used: 0 }
    }

    /// Whether a worker could run on it: virtio 1.2, 2.7 and 4.1.4.3.2.
    fn usable(&self, max_size: u16) -> bool {
        self.size.is_power_of_two()
            && self.size <= max_size
            && self.desc.is_multiple_of(16)
            && self.avail.is_multiple_of(2)
            && self.avail != 0
            && self.used.is_multiple_of(4)
    }
}

/// The registers of the common configuration.
#[derive(Debug)]
pub struct CommonConfig {
    offered: u64,
    max_size: u16,
    vectors: u16,
    device_select: u32,
    driver_select: u32,
    accepted: u64,
    /// The driver acknowledged a bit above the 64 there are.
    overreach: bool,
    config_vector: u16,
    status: u8,
    selected: u16,
    queues: Vec<QueueRegisters>,
}

impl CommonConfig {
    /// The registers of `device` after a reset, with `vectors` MSI-X vectors to choose from.
    pub fn new(device: &dyn VirtioDevice, vectors: u16) -> Self {
        let max_size = device.queue_size();
        Self {
            offered: device.features(),
            max_size,
            vectors,
            device_select: 0,
            driver_select: 0,
            accepted: 0,
            overreach: false,
            config_vector: NO_VECTOR,
            status: 0,
            selected: 0,
            queues: vec![QueueRegisters::at_reset(max_size); usize::from(device.queues())],
        }
    }

    /// Puts every register back to its value after a reset.
    pub fn reset(&mut self) {
        self.device_select = 0;
        self.driver_select = 0;
        self.accepted = 0;
        self.overreach = false;
        self.config_vector = NO_VECTOR;
        self.status = 0;
        self.selected = 0;
        self.queues.fill(QueueRegisters::at_reset(self.max_size));
    }

    /// The status register.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// Sets NEEDS_RESET. Returns whether the driver must be told: it runs and did not know.
    pub fn set_needs_reset(&mut self) -> bool {
        let news = self.status & DRIVER_OK != 0 && self.status & NEEDS_RESET == 0;
        self.status |= NEEDS_RESET;
        news
    }

    /// The MSI-X vector of configuration changes.
    pub fn config_vector(&self) -> u16 {
        self.config_vector
    }

    /// The MSI-X vector of `queue`, [`NO_VECTOR`] if it has none.
    pub fn queue_vector(&self, queue: u16) -> u16 {
        self.queues.get(usize::from(queue)).map_or(NO_VECTOR, |regs| regs.vector)
    }

    /// The configuration of `queue` if the driver has enabled it.
    pub fn queue_config(&self, queue: u16) -> Option<QueueConfig> {
        let regs = self.queues.get(usize::from(queue)).filter(|regs| regs.enabled)?;
        let QueueRegisters { size, desc, avail, used, .. } = *regs;
        Some(QueueConfig { index: queue, size, desc, avail, used, features: self.accepted, start: 0 })
    }

    fn queue_count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    fn current(&self) -> QueueRegisters {
        // A queue that does not exist shows size zero (4.1.5.1.3).
        self.queues.get(usize::from(self.selected)).copied().unwrap_or(QueueRegisters::at_reset(0))
    }

    /// Reads the register at `offset`; `None` if there is none of that width there.
    pub fn read(&self, offset: u64, width: Width) -> Option<u32> {
        let queue = self.current();
        Some(match (offset, width) {
            (0, Width::B4) => self.device_select,
            (4, Width::B4) => window(self.offered, self.device_select),
            (8, Width::B4) => self.driver_select,
            (12, Width::B4) => window(self.accepted, self.driver_select),
            (16, Width::B2) => self.config_vector.into(),
            (18, Width::B2) => self.queue_count().into(),
            (20, Width::B1) => self.status.into(),
            // Nothing in the configuration of our devices changes while they run.
            (21, Width::B1) => 0,
            (22, Width::B2) => self.selected.into(),
            (24, Width::B2) => queue.size.into(),
            (26, Width::B2) => queue.vector.into(),
            (28, Width::B2) => queue.enabled.into(),
            (30, Width::B2) => self.selected.into(),
            (32, Width::B4) => halves(queue.desc)[0],
            (36, Width::B4) => halves(queue.desc)[1],
            (40, Width::B4) => halves(queue.avail)[0],
            (44, Width::B4) => halves(queue.avail)[1],
            (48, Width::B4) => halves(queue.used)[0],
            (52, Width::B4) => halves(queue.used)[1],
            _ => return None,
        })
    }

    /// Writes the register at `offset`; `None` if there is none of that width there. A write that comes too late,
    /// or goes to a read-only register, is ignored as hardware does.
    pub fn write(&mut self, offset: u64, width: Width, value: u64) -> Option<Effect> {
        let [low, _] = halves(value);
        let word = u16::try_from(low & 0xffff).unwrap_or(u16::MAX);
        match (offset, width) {
            (0, Width::B4) => self.device_select = low,
            (8, Width::B4) => self.driver_select = low,
            (12, Width::B4) => self.write_features(low),
            (16, Width::B2) => self.config_vector = self.vector(word),
            (20, Width::B1) => return Some(self.write_status(low.to_le_bytes()[0])),
            (22, Width::B2) => self.selected = word,
            (24..=52, _) => return self.write_queue(offset, width, low, word),
            (4, Width::B4) | (18, Width::B2) | (21, Width::B1) => {}
            _ => return None,
        }
        Some(Effect::None)
    }

    fn vector(&self, wanted: u16) -> u16 {
        if wanted < self.vectors { wanted } else { NO_VECTOR }
    }

    fn write_features(&mut self, value: u32) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        let [low, high] = halves(self.accepted);
        match self.driver_select {
            0 => self.accepted = join([value, high]),
            1 => self.accepted = join([low, value]),
            _ => self.overreach = value != 0,
        }
    }

    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let mut news = value & (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED) & !self.status;
        let agreed = self.accepted & !self.offered == 0 && self.accepted & VERSION_1 != 0 && !self.overreach;
        if !agreed {
            news &= !FEATURES_OK;
        }
        if (self.status | news) & FEATURES_OK == 0 {
            news &= !DRIVER_OK;
        }
        self.status |= news;
        if news & DRIVER_OK != 0 { Effect::Activate } else { Effect::None }
    }

    fn write_queue(&mut self, offset: u64, width: Width, low: u32, word: u16) -> Option<Effect> {
        let vector = self.vector(word);
        let max_size = self.max_size;
        let running = self.status & DRIVER_OK != 0;
        let mut absent = QueueRegisters::at_reset(0);
        let queue = self.queues.get_mut(usize::from(self.selected)).filter(|_| !running).unwrap_or(&mut absent);
        let mut fixed = *queue;
        // An enabled queue was checked: its layout can't change under the check.
        let layout = if queue.enabled { &mut fixed } else { &mut *queue };
        match (offset, width) {
            (24, Width::B2) => layout.size = word,
            (26, Width::B2) => queue.vector = vector,
            (28, Width::B2) => queue.enabled |= word == 1 && queue.usable(max_size),
            (30, Width::B2) => {}
            (32, Width::B4) => layout.desc = join([low, halves(layout.desc)[1]]),
            (36, Width::B4) => layout.desc = join([halves(layout.desc)[0], low]),
            (40, Width::B4) => layout.avail = join([low, halves(layout.avail)[1]]),
            (44, Width::B4) => layout.avail = join([halves(layout.avail)[0], low]),
            (48, Width::B4) => layout.used = join([low, halves(layout.used)[1]]),
            (52, Width::B4) => layout.used = join([halves(layout.used)[0], low]),
            _ => return None,
        }
        Some(Effect::None)
    }
}

/// The 32 feature bits that `select` shows; zero beyond the 64 there are.
fn window(features: u64, select: u32) -> u32 {
    match select {
        0 => halves(features)[0],
        1 => halves(features)[1],
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
