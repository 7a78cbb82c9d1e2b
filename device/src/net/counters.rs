//! What became of the packets of a network device, cause by cause.
//!
//! Live counters sit in [`crate::Counters`]; [`Packets`] are the numbers at one moment. They begin at zero each time the
//! driver becomes ready. Neighbours: `worker`, which counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a packet did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The driver had posted no buffer for it.
    NoBuffer,
    /// The buffer that was its turn had no room for it.
    TooSmall,
    /// What the driver sent is no packet: shorter than a header, or longer than one may be.
    NoPacket,
    /// Memory was refused while it was read or written.
    Fault,
    /// Sent to a device that has a source instead of a wire.
    NoWire,
}

/// Packets that did not arrive, by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drops {
    /// The driver had posted no buffer.
    pub no_buffer: u64,
    /// The buffer had no room.
    pub too_small: u64,
    /// What was sent is no packet.
    pub no_packet: u64,
    /// Memory was refused.
    pub fault: u64,
    /// Sent where there is no wire.
    pub no_wire: u64,
}

impl Drops {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.no_buffer + self.too_small + self.no_packet + self.fault + self.no_wire
    }
}

/// What became of the packets since the driver last became ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packets {
    /// Taken off the transmit ring.
    pub sent: u64,
    /// Made by the source.
    pub made: u64,
    /// Put into the driver's buffers.
    pub delivered: u64,
    /// Lost.
    pub dropped: Drops,
}

/// The live counters.
#[derive(Debug, Default)]
pub(crate) struct PacketCounters {
    pub sent: AtomicU64,
    pub made: AtomicU64,
    pub delivered: AtomicU64,
    drops: [AtomicU64; 5],
}

impl PacketCounters {
    pub(crate) fn drop(&self, cause: Cause) {
        self.drops[cause as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn restart(&self) {
        let all = [&self.sent, &self.made, &self.delivered].into_iter().chain(&self.drops);
        all.for_each(|counter| counter.store(0, Ordering::Relaxed));
    }

    /// The numbers now. Each is exact; together they are one moment only while the device rests.
    pub(crate) fn now(&self) -> Packets {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let [no_buffer, too_small, no_packet, fault, no_wire] = self.drops.each_ref().map(get);
        Packets {
            sent: get(&self.sent),
            made: get(&self.made),
            delivered: get(&self.delivered),
            dropped: Drops { no_buffer, too_small, no_packet, fault, no_wire },
        }
    }
}
