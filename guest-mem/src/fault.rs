//! Fault injection with Linux's attributes: which request fails, and what the kernel's log would say.
//!
//! A [`FaultAttr`] holds the attributes of one [`Class`] and decides, request by request, in the order of Linux's
//! `should_fail`. For pages and slab objects it is `fail_page_alloc` and `failslab` with their defaults, which spare
//! masks that may sleep and single pages; the other classes have no injector in Linux, obey the same attributes and
//! spare nothing by default. [`FaultSpec`] is a set of them and its text.
//!
//! A pure data structure: no lock, no CPU, no clock; chance comes from the caller. Mirrors `lib/fault-inject.c`,
//! `mm/failslab.c` and `mm/fail_page_alloc.c` of 6.1. Neighbours: `attribute` knows names and values, `request` what
//! is asked at each [`crate::env::Point`], `spec` the text; a world asks it. Left out: filters by stack (off on x86-64 in 6.1), limits
//! on the rate of messages (none by default), `fail-nth` shared by all injectors of a task (here each class has its
//! own).

use std::fmt;

use crate::env::Class;
use crate::gfp::Gfp;

mod attribute;
#[cfg(test)]
mod golden;
mod request;
mod spec;
#[cfg(test)]
mod tests;

pub use attribute::{Attribute, ValueError};
pub use request::{Caller, Request};
pub use spec::{FaultSpec, SpecError};

/// `verbose_ratelimit_burst` as Linux has it; without effect while the interval is 0.
pub const VERBOSE_RATELIMIT_BURST: u32 = 10;
/// `verbose_ratelimit_interval_ms` as Linux has it: 0, messages are never suppressed.
pub const VERBOSE_RATELIMIT_INTERVAL_MS: u32 = 0;

/// Which slab caches may fail (`cache-filter`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum CacheFilter {
    /// All of them (`N`).
    #[default]
    Off,
    /// Those whose `failslab` flag is set (`Y`): these, by name.
    Only(Vec<String>),
}

impl CacheFilter {
    fn admits(&self, cache: Option<&str>) -> bool {
        match self {
            Self::Off => true,
            Self::Only(names) => cache.is_some_and(|cache| names.iter().any(|name| name == cache)),
        }
    }
}

/// How many requests an injector saw since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Requests of its class.
    pub requests: u64,
    /// Those that mask, order and cache let through, so that an attribute decided.
    pub eligible: u64,
    /// Those that were made to fail.
    pub forced: u64,
}

/// The fault-injection attributes of one class (`struct fault_attr`), and their counters.
///
/// ```
/// use lowzone_guest_mem::env::Class;
/// use lowzone_guest_mem::fault::{FaultAttr, Request};
/// use lowzone_guest_mem::gfp::{GFP_ATOMIC, GFP_KERNEL};
/// let mut failslab = FaultAttr::new(Class::Slab);
/// (failslab.probability, failslab.times) = (100, 1);
/// let mut never_drawn = || 0;
/// assert!(!failslab.should_fail(&Request::slab(64, GFP_KERNEL, None), &mut never_drawn), "ignore-gfp-wait is Y");
/// assert!(failslab.should_fail(&Request::slab(64, GFP_ATOMIC, None), &mut never_drawn));
/// assert!(!failslab.should_fail(&Request::slab(64, GFP_ATOMIC, None), &mut never_drawn), "times is used up");
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FaultAttr {
    class: Class,
    /// Percent of the requests that fail; 0 = none, 100 and more = each.
    pub probability: u32,
    /// Of the requests that come so far, only each so-many-th may fail; 0 is as 1.
    pub interval: u64,
    /// Failures still to inject; -1 = no limit.
    pub times: i64,
    /// Sizes, in the units of [`Request::size`], that pass before anything fails.
    pub space: i64,
    /// What the log gets: 0 nothing, 1 the message, 2 a stack too.
    pub verbose: u8,
    /// Only marked tasks fail (`/proc/PID/make-it-fail`).
    pub task_filter: bool,
    /// Blocks of a lower order are spared.
    pub min_order: u8,
    /// Masks that may sleep are spared.
    pub ignore_gfp_wait: bool,
    /// Masks with `__GFP_HIGHMEM` are spared.
    pub ignore_gfp_highmem: bool,
    /// Which caches may fail.
    pub cache_filter: CacheFilter,
    /// The so-many-th eligible request of a task fails, whatever the attributes say; counts down, 0 = off
    /// (`/proc/PID/fail-nth`).
    pub fail_nth: u64,
    /// Requests that `interval` counted; never reset by writing an attribute.
    pub count: u64,
    tally: Tally,
}

impl FaultAttr {
    /// The attributes of a class as they are at boot: nothing fails.
    pub const fn new(class: Class) -> Self {
        let of_linux = matches!(class, Class::Slab | Class::Page);
        let of_pages = matches!(class, Class::Page);
        Self {
            class,
            probability: 0,
            interval: 1,
            times: 1,
            space: 0,
            verbose: 2,
            task_filter: false,
            min_order: if of_pages { 1 } else { 0 },
            ignore_gfp_wait: of_linux,
            ignore_gfp_highmem: of_pages,
            cache_filter: CacheFilter::Off,
            fail_nth: 0,
            count: 0,
            tally: Tally { requests: 0, eligible: 0, forced: 0 },
        }
    }

    /// The class whose requests it decides.
    pub const fn class(&self) -> Class {
        self.class
    }

    /// What it saw and did so far.
    pub const fn tally(&self) -> Tally {
        self.tally
    }

    /// Whether any request can fail from here on.
    pub const fn can_strike(&self) -> bool {
        self.fail_nth > 0 || (self.probability > 0 && self.times != 0)
    }

    /// Decides a request (`should_fail`); `true` = it fails. A request of another class always passes.
    ///
    /// `random` gives evenly distributed bits and is called once at most, when chance decides: also at 100 percent.
    pub fn should_fail(&mut self, request: &Request, random: &mut dyn FnMut() -> u32) -> bool {
        self.inject(request, random).is_some()
    }

    /// [`FaultAttr::should_fail`], telling of a failure what the log gets. `None` = the request passes.
    pub fn inject(&mut self, request: &Request, random: &mut dyn FnMut() -> u32) -> Option<Forced> {
        if request.class != self.class {
            return None;
        }
        self.tally.requests = self.tally.requests.wrapping_add(1);
        if self.spares(request) {
            return None;
        }
        self.tally.eligible = self.tally.eligible.wrapping_add(1);
        if !self.strikes(request, random) {
            return None;
        }
        self.tally.forced = self.tally.forced.wrapping_add(1);
        let silent = self.verbose == 0 || request.gfp.contains(Gfp::NOWARN);
        let message = (!silent).then(|| self.message());
        if !matches!(self.times, -1 | 0) {
            self.times = self.times.saturating_sub(1);
        }
        Some(Forced { message })
    }

    /// What the injector never touches (`__should_failslab`, `__should_fail_alloc_page`): no counter moves.
    fn spares(&self, request: &Request) -> bool {
        request.gfp.contains(Gfp::NOFAIL)
            || (self.ignore_gfp_wait && request.gfp.may_sleep())
            || (self.ignore_gfp_highmem && request.gfp.contains(Gfp::HIGHMEM))
            || request.order < self.min_order
            || !self.cache_filter.admits(request.cache)
    }

    /// The tests of `should_fail_ex`, in its order: each may move a counter that the next ones don't see.
    fn strikes(&mut self, request: &Request, random: &mut dyn FnMut() -> u32) -> bool {
        if self.fail_nth > 0 && request.caller != Caller::Interrupt {
            self.fail_nth -= 1;
            return self.fail_nth == 0;
        }
        if self.probability == 0 || (self.task_filter && request.caller != Caller::MarkedTask) || self.times == 0 {
            return false;
        }
        let size = i64::try_from(request.size).unwrap_or(i64::MAX);
        if self.space > size {
            self.space -= size;
            return false;
        }
        if self.interval > 1 {
            self.count = self.count.wrapping_add(1);
            if !self.count.is_multiple_of(self.interval) {
                return false;
            }
        }
        u64::from(self.probability) > percent(random())
    }

    fn message(&self) -> Message {
        Message {
            injector: injector(self.class),
            interval: self.interval,
            probability: self.probability,
            space: self.space,
            times: self.times,
            stack: self.verbose > 1,
        }
    }
}

/// A number from 0 to 99 out of random bits, as Linux scales them.
fn percent(bits: u32) -> u64 {
    (u64::from(bits) * 100) >> u32::BITS
}

/// What messages call a class's injector: its directory in Linux's debugfs, or for classes of the lab's own a name
/// of the same make.
pub const fn injector(class: Class) -> &'static str {
    match class {
        Class::Slab => "failslab",
        Class::Page => "fail_page_alloc",
        Class::Coherent => "fail_coherent",
        Class::Map => "fail_map",
        Class::SwiotlbSlot => "fail_swiotlb_slot",
        Class::Ioremap => "fail_ioremap",
        Class::IrqVector => "fail_irq_vector",
        Class::Mask => "fail_mask",
        Class::PerCpu => "fail_percpu",
        Class::Mmio => "fail_mmio",
        Class::MmioWrite => "fail_mmio_write",
        Class::Lock => "fail_lock",
        Class::Wait => "fail_wait",
        Class::Release => "fail_release",
    }
}

/// A failure that was injected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forced {
    /// What the log gets; nothing with `__GFP_NOWARN` or `verbose` 0.
    pub message: Option<Message>,
}

/// What Linux prints when it forces a failure (`fail_dump`); [`Display`](fmt::Display) is its two lines.
///
/// ```
/// use lowzone_guest_mem::env::Class;
/// use lowzone_guest_mem::fault::{FaultAttr, Request};
/// let mut attr = FaultAttr::new(Class::Map);
/// (attr.probability, attr.times) = (100, 3);
/// let message = attr.inject(&Request::new(Class::Map, 512), &mut || 0).and_then(|forced| forced.message);
/// let text = message.map(|message| message.to_string());
/// let wanted = "FAULT_INJECTION: forcing a failure.\nname fail_map, interval 1, probability 100, space 0, times 3";
/// assert_eq!(text.as_deref(), Some(wanted));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// [`injector`] of the class.
    pub injector: &'static str,
    /// `interval` as set: 0 is printed as 0.
    pub interval: u64,
    /// `probability`.
    pub probability: u32,
    /// `space` that is left.
    pub space: i64,
    /// `times` before this failure is counted.
    pub times: i64,
    /// Whether the caller's stack follows.
    pub stack: bool,
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { injector, interval, probability, space, times, .. } = self;
        f.write_str("FAULT_INJECTION: forcing a failure.\n")?;
        write!(f, "name {injector}, interval {interval}, probability {probability}, space {space}, times {times}")
    }
}
