//! A device that lies: which completion goes wrong, and how.
//!
//! A [`Script`] is set from outside while the device runs, and asked by the workers once for each request they are
//! about to finish; [`crate::blk`] carries its answers out. What a driver must survive here is what virtio 1.2 lets
//! it expect of a broken or hostile device. Left out: lies about registers and lost or spurious interrupts, which
//! belong to the wire; removal of the whole device, which is [`crate::pci::Removable`].

use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use thiserror::Error;

use crate::lock;

/// How much later [`Mishap::CompletionLate`] is, in nanoseconds of the world's clock.
pub const LATE: u64 = 1_000_000;

/// A text that names no mishap.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MishapError {
    /// None of [`Mishap::ALL`] is called so.
    #[error("no mishap is called `{name}`: {}", Names)]
    Unknown {
        /// What was given.
        name: String,
    },
}

/// The names of all mishaps, for messages.
struct Names;

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, mishap) in Mishap::ALL.iter().enumerate() {
            write!(f, "{}{mishap}", if nth == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// What may go wrong with one completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mishap {
    /// Status and used element are written [`LATE`] nanoseconds later; other requests go on. `edu` is later than that.
    CompletionLate,
    /// The used ring gets the same element twice.
    CompletionTwice,
    /// The request is done but forgotten: neither status nor used element is ever written.
    CompletionNever,
    /// The used element has an id that heads nothing in flight: a later descriptor of the same chain, or one beyond
    /// the ring if the chain has no other.
    WrongId,
    /// The used element tells of one byte more than the request has room for.
    WrongLength,
    /// The status is IOERR though the store did its work.
    IoError,
    /// The platform seems to refuse the request's last access of data: that data does not move, the fault is latched
    /// and counted as a real one, the status is IOERR.
    DmaFault,
    /// The device sets DEVICE_NEEDS_RESET, tells the driver by a configuration interrupt, and the queue stops with
    /// everything on it.
    NeedsReset,
}

impl Mishap {
    /// Every mishap there is.
    pub const ALL: [Self; 8] = [
        Self::CompletionLate,
        Self::CompletionTwice,
        Self::CompletionNever,
        Self::WrongId,
        Self::WrongLength,
        Self::IoError,
        Self::DmaFault,
        Self::NeedsReset,
    ];

    /// Its name in scenario files and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CompletionLate => "completion-late",
            Self::CompletionTwice => "completion-twice",
            Self::CompletionNever => "completion-never",
            Self::WrongId => "wrong-id",
            Self::WrongLength => "wrong-length",
            Self::IoError => "io-error",
            Self::DmaFault => "dma-fault",
            Self::NeedsReset => "needs-reset",
        }
    }
}

/// Its [`name`](Mishap::name).
impl fmt::Display for Mishap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// From its [`name`](Mishap::name).
impl FromStr for Mishap {
    type Err = MishapError;

    fn from_str(name: &str) -> Result<Self, MishapError> {
        let found = Self::ALL.into_iter().find(|mishap| mishap.name() == name);
        found.ok_or_else(|| MishapError::Unknown { name: name.to_owned() })
    }
}

#[derive(Debug, Clone, Copy)]
struct Plan {
    nth: u64,
    what: Mishap,
    persistent: bool,
}

/// What one device is to get wrong, and how far it has come.
///
/// A completion is counted when the device is about to do the last thing for a request: move its last piece of data,
/// or, if it has none to move, write its status. Where nothing is planned it costs one counter and one relaxed load.
///
/// ```
/// use lowzone_device::misbehave::{Mishap, Script};
///
/// let script = Script::new();
/// script.plan(1, Mishap::WrongId, false);
/// assert_eq!([script.draw(), script.draw(), script.draw()], [None, Some(Mishap::WrongId), None]);
/// assert_eq!((script.completions(), script.struck()), (3, true));
/// ```
#[derive(Debug)]
pub struct Script {
    /// What the device can carry out.
    mishaps: &'static [Mishap],
    completions: AtomicU64,
    /// The first completion that a plan may strike.
    from: AtomicU64,
    struck: AtomicBool,
    plans: Mutex<Vec<Plan>>,
}

/// Plans nothing.
impl Default for Script {
    fn default() -> Self {
        Self {
            mishaps: &Mishap::ALL,
            completions: AtomicU64::new(0),
            from: AtomicU64::new(u64::MAX),
            struck: AtomicBool::new(false),
            plans: Mutex::new(Vec::new()),
        }
    }
}

impl Script {
    /// A script that plans nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A script of a device that can carry out only these; others are never planned.
    ///
    /// ```
    /// use lowzone_device::misbehave::{Mishap, Script};
    ///
    /// let script = Script::of(&[Mishap::IoError]);
    /// script.plan(0, Mishap::WrongId, true);
    /// assert_eq!((script.mishaps(), script.draw()), (&[Mishap::IoError][..], None));
    /// ```
    pub fn of(mishaps: &'static [Mishap]) -> Self {
        Self { mishaps, ..Self::default() }
    }

    /// What the device can carry out.
    pub fn mishaps(&self) -> &'static [Mishap] {
        self.mishaps
    }

    /// Plans `what` for the completion `nth`, from 0 over all queues since the script was made or cleared; if
    /// `persistent`, for every one from there on. A plan for one completion goes before a persistent one, an earlier
    /// plan before a later; one for a completion that is past, or that the device can't carry out, does nothing.
    pub fn plan(&self, nth: u64, what: Mishap, persistent: bool) {
        if !self.mishaps.contains(&what) {
            return;
        }
        let mut plans = lock(&self.plans);
        plans.push(Plan { nth, what, persistent });
        self.set_from(&plans);
    }

    /// Forgets every plan, counts completions from 0 again, and nothing has struck.
    pub fn clear(&self) {
        let mut plans = lock(&self.plans);
        plans.clear();
        self.set_from(&plans);
        self.completions.store(0, Ordering::Relaxed);
        self.struck.store(false, Ordering::Relaxed);
    }

    /// The completions so far.
    pub fn completions(&self) -> u64 {
        self.completions.load(Ordering::Relaxed)
    }

    /// Whether anything planned has happened.
    pub fn struck(&self) -> bool {
        self.struck.load(Ordering::Relaxed)
    }

    /// Counts a completion and says what goes wrong with it. A device asks once for each.
    pub fn draw(&self) -> Option<Mishap> {
        let nth = self.completions.fetch_add(1, Ordering::Relaxed);
        if nth < self.from.load(Ordering::Relaxed) { None } else { self.strike(nth) }
    }

    #[cold]
    fn strike(&self, nth: u64) -> Option<Mishap> {
        let mut plans = lock(&self.plans);
        let once = plans.iter().position(|plan| !plan.persistent && plan.nth == nth);
        let what = match once {
            Some(at) => plans.remove(at).what,
            None => plans.iter().find(|plan| plan.persistent && plan.nth <= nth)?.what,
        };
        self.set_from(&plans);
        self.struck.store(true, Ordering::Relaxed);
        Some(what)
    }

    fn set_from(&self, plans: &[Plan]) {
        let first = plans.iter().map(|plan| plan.nth).min().unwrap_or(u64::MAX);
        self.from.store(first, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_go_both_ways_and_an_unknown_one_is_named() {
        for mishap in Mishap::ALL {
            assert_eq!(mishap.name().parse(), Ok(mishap));
            assert_eq!(mishap.to_string(), mishap.name());
        }
        let error = "wrong_id".parse::<Mishap>().unwrap_err();
        assert!(error.to_string().starts_with("no mishap is called `wrong_id`: completion-late, completion-twice,"));
    }

    #[test]
    fn clearing_makes_it_new() {
        let script = Script::new();
        script.plan(0, Mishap::IoError, true);
        assert_eq!((script.draw(), script.draw()), (Some(Mishap::IoError), Some(Mishap::IoError)));
        script.clear();
        assert_eq!((script.completions(), script.struck(), script.draw()), (0, false, None));
        script.plan(1, Mishap::WrongId, false);
        assert_eq!((script.draw(), script.draw()), (Some(Mishap::WrongId), None));
    }

    proptest! {
        /// The model: of the plans not used up, the first for exactly this completion, else the first persistent one
        /// that has begun.
        #[test]
        fn every_completion_meets_what_was_planned_for_it(
            mut plans in prop::collection::vec((0u64..12, 0usize..8, any::<bool>()), 0..6),
        ) {
            let script = Script::new();
            for (nth, what, persistent) in &plans {
                script.plan(*nth, Mishap::ALL[*what], *persistent);
            }
            let mut struck = false;
            for now in 0..16u64 {
                let once = plans.iter().position(|(nth, _, persistent)| !persistent && *nth == now);
                let what = once.map(|at| plans.remove(at).1);
                let always = || plans.iter().find(|(nth, _, persistent)| *persistent && *nth <= now).map(|plan| plan.1);
                let expected = what.or_else(always).map(|what| Mishap::ALL[what]);
                prop_assert_eq!(script.draw(), expected);
                struck |= expected.is_some();
                prop_assert_eq!((script.completions(), script.struck()), (now + 1, struck));
            }
        }
    }
}
