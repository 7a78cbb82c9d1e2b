//! Looking at what a driver counts while it works: `ethtool -S`, `iostat`, sysfs.
//!
//! Whoever looks holds nothing back and is held back by nothing, not even by the device's removal. Neighbours: `flight` and
//! `packets`, beside whose work it goes on. Left out: what the counters say; the results do that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lowzone_driver::blk::Disk;
use lowzone_driver::net::NetDevice;
use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::wait::WaitQueue;

use crate::lab::{Bench, Slot};
use crate::world::Body;

/// Between the first two looks, in nanoseconds; each time an eighth more, since a driver may wait for half a minute.
const BETWEEN: u64 = 200;

/// Whether the work that is watched is over.
#[derive(Clone, Default)]
pub(super) struct Over(Arc<(AtomicBool, WaitQueue)>);

impl Over {
    /// Tells whoever watches.
    pub(super) fn tell(&self, cpu: &Cpu<'_>) {
        self.0.0.store(true, Ordering::Release);
        self.0.1.wake_up_all(cpu);
    }

    fn is(&self) -> bool {
        self.0.0.load(Ordering::Acquire)
    }

    /// Leaves the CPU to others for a moment; whether the work is over.
    fn rest(&self, cpu: &Cpu<'_>, between: u64) -> bool {
        let _ = self.0.1.wait_event_timeout(cpu, between, || self.is());
        self.is()
    }
}

/// The driver of a device, as far as it counts something.
pub(super) struct Counted {
    disk: Option<Arc<Disk>>,
    net: Option<Arc<NetDevice>>,
}

impl Counted {
    /// What the driver of this device counts now and after its removal.
    pub(super) fn of(bench: &Bench, slot: &Slot) -> Self {
        Self { disk: bench.driver.disk(slot.at), net: bench.driver.net(slot.at) }
    }

    /// Looks once at the counters and at the places of the rings. Any context.
    pub(super) fn look(&self, cpu: &Cpu<'_>) {
        if let Some(disk) = &self.disk {
            drop((disk.stats(cpu), disk.ring_places(cpu)));
        }
        if let Some(net) = &self.net {
            let _ = net.stats(cpu);
        }
    }

    /// Looks again and again until the work is over. Process context.
    pub(super) fn watch(&self, cpu: &Cpu<'_>, over: &Over) {
        let mut between = BETWEEN;
        while !over.rest(cpu, between) {
            self.look(cpu);
            between += between / 8;
        }
    }
}

/// A body, and one for another CPU that watches the device meanwhile.
pub(super) fn watched(bench: &Arc<Bench>, device: &str, body: Body) -> Vec<Body> {
    let Some(slot) = bench.slot(device).filter(|_| bench.kernel.config().cpus > 1) else { return vec![body] };
    let (counted, over) = (Counted::of(bench, slot), Over::default());
    let seen = over.clone();
    let watch: Body = Box::new(move |cpu| {
        let _span = cpu.span("watch");
        counted.watch(cpu, &seen);
    });
    let first: Body = Box::new(move |cpu| {
        body(cpu);
        over.tell(cpu);
    });
    vec![first, watch]
}
