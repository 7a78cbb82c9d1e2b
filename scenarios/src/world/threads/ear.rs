//! What a CPU's thread sleeps on: its own wake-up, and the descriptors by which peers interrupt it.
//!
//! One epoll set a CPU holds them all, edge-triggered, so nothing is ever read: a descriptor that is written again is
//! heard again. Between a peer's write and the CPU there is no other thread. The wake-up is written only while the CPU
//! sleeps: whoever rouses it sets what it looks at, then looks whether it sleeps; it says that it will sleep, then looks
//! once more. With a full fence between, one of the two always sees the other. Neighbours: `seat`, `bell`, `cpu_env`.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::wire::Outside;

/// What the set calls the wake-up; peers' descriptors go by their place.
const WAKE: u64 = u64::MAX;

/// One CPU's.
pub(super) struct Ear {
    epoll: Epoll,
    wake: EventFd,
    asleep: AtomicBool,
    outside: Vec<Arc<Outside>>,
}

impl Ear {
    /// One that hears these.
    ///
    /// # Errors
    /// The host's, out of descriptors for instance.
    pub(super) fn new(outside: Vec<Arc<Outside>>) -> io::Result<Self> {
        let (epoll, wake) = (Epoll::new()?, EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let add = |fd: RawFd, name| {
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, name);
            epoll.ctl(ControlOperation::Add, fd, event)
        };
        add(wake.as_raw_fd(), WAKE)?;
        for (name, line) in (0..).zip(&outside) {
            add(line.as_raw_fd(), name)?;
        }
        Ok(Self { epoll, wake, asleep: AtomicBool::new(false), outside })
    }

    /// Ends the sleep, if there is one.
    pub(super) fn rouse(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel) {
            // It can only fail when 2^64 - 2 of them were written; each of them was heard.
            let _ = self.wake.write(1);
        }
    }

    /// Sleeps until roused, a peer's interrupt, or for `most`, unless `over`. The host counts milliseconds.
    pub(super) fn sleep(&self, most: Option<Duration>, over: impl Fn() -> bool) {
        let ms = most.map_or(-1, |most| i32::try_from(most.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX));
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if over() {
            self.asleep.store(false, Ordering::Relaxed);
        } else {
            self.take(ms);
        }
    }

    /// Makes interrupts of what peers have done. No system call.
    pub(super) fn look(&self) {
        self.outside.iter().for_each(|line| line.look());
    }

    fn take(&self, ms: i32) {
        let mut events = [EpollEvent::default(); 8];
        // A signal, or a failure of the host's, is a sleep that was short.
        let heard = self.epoll.wait(ms, &mut events).unwrap_or(0);
        self.asleep.store(false, Ordering::Relaxed);
        for event in &events[..heard] {
            let line = usize::try_from(event.data()).ok().and_then(|name| self.outside.get(name));
            if let Some(line) = line {
                line.look();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use lowzone_device::pci::IrqSink;
    use lowzone_driver::bus::Vector;

    use super::*;
    use crate::wire::outside::Moved;

    #[derive(Default)]
    struct Heard(Mutex<Vec<u16>>);

    impl IrqSink for Heard {
        fn msi(&self, vector: u16, _addr: u64, _data: u32) {
            self.0.lock().unwrap().push(vector);
        }

        fn intx(&self, _level: bool) {}
    }

    #[test]
    fn a_sleeper_is_roused_and_one_that_is_awake_costs_no_write() {
        let ear = Ear::new(Vec::new()).unwrap();
        ear.rouse();
        assert!(ear.wake.read().is_err(), "nobody slept, so nothing was written");
        ear.sleep(None, || true);
        for _ in 0..3 {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !ear.asleep.load(Ordering::SeqCst) {
                        std::thread::yield_now();
                    }
                    ear.rouse();
                });
                ear.sleep(None, || false);
            });
        }
        assert_eq!(ear.wake.read().unwrap(), 3, "each sleep took a write, and none was read");
        ear.sleep(Some(Duration::from_millis(1)), || false);
    }

    #[test]
    fn what_a_peer_did_is_heard_once_asleep_or_awake() {
        let (fd, sink) = (Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()), Arc::new(Heard::default()));
        let vector = Vector { irq: 64, addr: 0, data: 64 };
        let done = Arc::new(AtomicBool::new(false));
        let moved = done.clone();
        let moved: Moved = Box::new(move || moved.swap(false, Ordering::SeqCst));
        let line = Outside::new((fd.clone(), moved), 0, (3, vector), sink.clone());
        let ear = Ear::new(vec![Arc::new(line)]).unwrap();
        ear.look();
        assert!(sink.0.lock().unwrap().is_empty());
        for times in 1..4 {
            done.store(true, Ordering::SeqCst);
            fd.write(1).unwrap();
            ear.sleep(None, || false);
            ear.look();
            assert_eq!(*sink.0.lock().unwrap(), vec![3; times]);
        }
        done.store(true, Ordering::SeqCst);
        ear.look();
        fd.write(1).unwrap();
        ear.sleep(None, || false);
        assert_eq!(*sink.0.lock().unwrap(), vec![3; 4], "it was seen before it was heard");
    }
}
