//! What the control half and the worker of one queue share: a doorbell, a reset, a configuration.
//!
//! The control half writes it under its own lock, the worker looks at it between phases. The order of a reset is:
//! [`QueueShared::begin_reset`], then the worker's [`QueueShared::resetting`], drop everything,
//! [`QueueShared::finish_reset`], and only then its report to the [`crate::virtio::QueueHost`].

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::lock;

/// A queue as the driver set it up; valid when the worker sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// Its number at the device: what a tap calls it.
    pub index: u16,
    /// Entries, a power of two.
    pub size: u16,
    /// Address of the descriptor table, 16-byte aligned.
    pub desc: u64,
    /// Address of the available ring, 2-byte aligned, never zero.
    pub avail: u64,
    /// Address of the used ring, 4-byte aligned.
    pub used: u64,
    /// The negotiated features.
    pub features: u64,
    /// Where both indices stand when the queue starts: zero, or where it was stopped before.
    pub start: u16,
}

/// The state shared by both halves of one queue.
#[derive(Debug, Default)]
pub struct QueueShared {
    kicked: AtomicBool,
    resetting: AtomicBool,
    config: Mutex<Option<QueueConfig>>,
}

impl QueueShared {
    /// Rings the doorbell; it stays silent while the queue is not active.
    pub fn kick(&self) {
        if self.config().is_some() {
            self.kicked.store(true, Ordering::Release);
        }
    }

    /// Whether the worker has something to look at.
    pub fn attention(&self) -> bool {
        self.kicked.load(Ordering::Acquire) || self.resetting()
    }

    /// Takes the doorbell: true if it rang since it was last taken.
    pub fn take_kick(&self) -> bool {
        self.kicked.swap(false, Ordering::AcqRel)
    }

    /// The queue's configuration, `None` while it is not active.
    pub fn config(&self) -> Option<QueueConfig> {
        *lock(&self.config)
    }

    /// Makes the queue active.
    pub fn activate(&self, config: QueueConfig) {
        *lock(&self.config) = Some(config);
    }

    /// Takes the queue away from its worker. Returns false if it was not active: then there is no one to wait for.
    pub fn begin_reset(&self) -> bool {
        let active = lock(&self.config).take().is_some();
        if active {
            self.resetting.store(true, Ordering::Release);
        }
        active
    }

    /// Whether the worker must drop everything.
    pub fn resetting(&self) -> bool {
        self.resetting.load(Ordering::Acquire)
    }

    /// The worker has dropped everything; a doorbell from before the reset is forgotten too.
    pub fn finish_reset(&self) {
        self.kicked.store(false, Ordering::Release);
        self.resetting.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: QueueConfig =
        QueueConfig { index: 0, size: 8, desc: 0x1000, avail: 0x2000, used: 0x3000, features: 0, start: 0 };

    #[test]
    fn a_doorbell_before_activation_is_lost_and_one_after_is_taken_once() {
        let queue = QueueShared::default();
        queue.kick();
        assert!(!queue.attention());
        queue.activate(CONFIG);
        queue.kick();
        assert!(queue.attention() && queue.take_kick() && !queue.take_kick());
    }

    #[test]
    fn a_reset_waits_only_for_an_active_queue_and_forgets_its_doorbell() {
        let queue = QueueShared::default();
        assert!(!queue.begin_reset() && !queue.resetting());
        queue.activate(CONFIG);
        queue.kick();
        assert!(queue.begin_reset() && queue.resetting() && queue.config().is_none());
        queue.finish_reset();
        assert!(!queue.attention());
    }
}
