//! What a point is told, if anybody wants to tell it something: an observer, injectors.
//!
//! While nobody does, that costs one load a point. Neighbours: `explore::observer`; `cpu_env`, which asks. Which point
//! is the nth is another one in every run here: campaigns are the lockstep world's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lowzone_guest_mem::env::{Point, Verdict};
use lowzone_guest_mem::fault::FaultSpec;
use lowzone_guest_mem::kernel::Kernel;

use crate::explore::observer::{Answer, Observer};
use crate::wire::InProc;
use crate::world::inject::Injectors;

struct Orders {
    observer: Option<Observer>,
    injectors: Injectors,
}

/// Decides points.
pub(super) struct Decider {
    armed: AtomicBool,
    orders: Mutex<Orders>,
}

impl Decider {
    /// One that lets everything pass; `seed` is the injectors' chance.
    pub(super) fn new(seed: u64) -> Self {
        let orders = Orders { observer: None, injectors: Injectors::new(seed) };
        Self { armed: AtomicBool::new(false), orders: Mutex::new(orders) }
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<R>(&self, change: impl FnOnce(&mut Orders) -> R) -> R {
        let mut orders = self.orders();
        let result = change(&mut orders);
        let armed = orders.observer.is_some() || !orders.injectors.is_empty();
        self.armed.store(armed, Ordering::Release);
        result
    }

    /// From now on this observer sees every point; the one before it comes back.
    pub(super) fn observe(&self, observer: Option<Observer>) -> Option<Observer> {
        self.change(|orders| std::mem::replace(&mut orders.observer, observer))
    }

    /// From now on these injectors decide what nobody else fails; the ones before them come back.
    pub(super) fn inject(&self, spec: FaultSpec) -> FaultSpec {
        self.change(|orders| orders.injectors.replace(spec))
    }

    /// The injectors, with what they counted so far.
    pub(super) fn injectors(&self) -> FaultSpec {
        self.orders().injectors.spec().clone()
    }

    /// Decides a point.
    pub(super) fn ask(&self, point: &Point, cpu: usize, kernel: &Kernel, bus: &InProc) -> Verdict {
        if !self.armed.load(Ordering::Acquire) {
            return Verdict::Pass;
        }
        let mut orders = self.orders();
        let answer = orders.observer.as_mut().map_or(Answer::Pass, |observer| {
            let answer = observer.pass(point);
            if answer != Answer::Pass {
                observer.keep_before_hit(kernel.trace());
            }
            answer
        });
        if answer == Answer::Fail {
            return Verdict::Fail;
        }
        let verdict = orders.injectors.ask(point, cpu, Some(kernel));
        drop(orders);
        if answer == Answer::Remove {
            bus.unplug_all();
        }
        verdict
    }
}
