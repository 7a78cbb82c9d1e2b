//! Why was it refused: what each zone, or the bounce pool, had to say to a request that failed for want of memory.
//!
//! Linux returns NULL, and under some masks prints a page of numbers. A [`Refused`] is the answer itself: for each
//! zone that the request might have used, how much was free, which mark it had to leave and why it could not. It is
//! booked where it happens, once for each request that really found nothing (a failure that was injected is none), and
//! shown by `lowzone run -v` and in its report.
//!
//! Neighbours: `page` and the DMA mappings book, [`crate::kernel`] keeps. Left out: kmalloc's own account, since what
//! it lacks are pages.

use std::fmt;

use crate::addr::PAGE_SIZE;
use crate::gfp::Gfp;
use crate::lock::Locked;
use crate::site::Owner;
use crate::zone::{Pass, ZoneKind, ZoneStats};

/// Refusals that a kernel keeps; later ones are only counted.
pub const KEPT: usize = 256;
/// Texts that a trace can be told; later refusals have none.
const TOLD: usize = 4096;

/// Why a zone gave nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// The free pages, less the block, do not exceed mark and reserve.
    Mark,
    /// There are pages enough, but no free block that large.
    Fragmented,
    /// Others freed something in the meantime.
    Late,
}

impl Why {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mark => "mark",
            Self::Fragmented => "fragmented",
            Self::Late => "late",
        }
    }
}

/// One zone's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZoneAnswer {
    /// The zone.
    pub zone: ZoneKind,
    /// Its free pages.
    pub free: u64,
    /// The mark they had to exceed: the lowest that the request's mask allows.
    pub mark: u64,
    /// What the zone keeps from requests that a higher one could serve, on top.
    pub reserve: u64,
    /// The order of its largest free block.
    pub largest: Option<u8>,
    /// Pages that lie on lists of CPUs, where they count for nobody.
    pub listed: u64,
    /// Why it gave nothing.
    pub why: Why,
}

/// What a request that failed was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// By the page allocator.
    Pages {
        /// The order that was asked for.
        order: u8,
        /// The mask.
        gfp: Gfp,
        /// Every zone that it allows, in the order in which they were asked.
        zones: Vec<ZoneAnswer>,
    },
    /// By the bounce pool.
    Slots {
        /// The bytes to be bounced.
        bytes: u64,
        /// The slots they take.
        wanted: u64,
        /// The slots of the pool.
        total: u32,
        /// Those in use.
        used: u32,
    },
}

/// A refusal, and who got it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// When, in the world's nanoseconds.
    pub at: u64,
    /// Who asked.
    pub owner: Owner,
    /// The device for which it was asked, if one.
    pub device: Option<String>,
    /// What the answer was.
    pub refusal: Refusal,
}

impl Refusal {
    /// The answers to a request for pages, from the numbers of all zones and of the pages on lists.
    pub(crate) fn pages(order: u8, gfp: Gfp, highest: ZoneKind, zones: &[ZoneStats], listed: &[u64]) -> Self {
        let pass = Pass::all(gfp).last().unwrap_or(Pass::Low);
        let asked = zones.iter().zip(listed).take(highest.index() + 1).rev().filter(|(zone, _)| zone.managed > 0);
        let answers = asked.map(|(zone, &listed)| {
            let largest =
                (0..).zip(&zone.free_by_order).filter(|(_, blocks)| **blocks > 0).map(|(order, _)| order).last();
            let (mark, reserve) = match pass {
                Pass::NoMark => (0, 0),
                pass => (pass.mark(zone.marks), zone.protection[highest.index()]),
            };
            let why = match largest {
                _ if !pass.admits(zone.free, order, zone.marks, reserve) => Why::Mark,
                Some(largest) if largest >= order => Why::Late,
                _ => Why::Fragmented,
            };
            ZoneAnswer { zone: zone.zone, free: zone.free, mark, reserve, largest, listed, why }
        });
        Self::Pages { order, gfp, zones: answers.collect() }
    }
}

impl fmt::Display for ZoneAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { zone, free, mark, reserve, listed, .. } = self;
        write!(f, "{zone}: {free} pages free, mark {mark}, reserve {reserve}, ")?;
        match self.largest {
            Some(order) => write!(f, "largest block {} KiB (order {order})", (PAGE_SIZE << order) / 1024)?,
            None => f.write_str("no block")?,
        }
        if *listed > 0 {
            write!(f, ", {listed} on CPUs' lists")?;
        }
        f.write_str(match self.why {
            Why::Mark => ": at its mark",
            Why::Fragmented => ": no block that large",
            Why::Late => ": freed meanwhile",
        })
    }
}

impl fmt::Display for Refusal {
    /// A line that says what was asked, then one for each answer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pages { order, gfp, zones } => {
                write!(f, "order {order}, {gfp} refused")?;
                zones.iter().try_for_each(|zone| write!(f, "\n  {zone}"))
            }
            Self::Slots { bytes, wanted, total, used } => {
                write!(f, "{bytes} bytes of the bounce pool refused\n  swiotlb: {wanted} slots in a row wanted, ")?;
                write!(f, "{used} of {total} used")
            }
        }
    }
}

#[derive(Default)]
struct State {
    kept: Vec<Refused>,
    /// What the trace was told, of any request.
    told: Vec<String>,
    dropped: u64,
}

/// A kernel's refusals, oldest first.
#[derive(Default)]
pub(crate) struct Refusals(Locked<State>);

impl Refusals {
    pub(crate) fn book(&self, refused: Refused) {
        let mut state = self.0.lock();
        if state.kept.len() < KEPT {
            state.kept.push(refused);
        } else {
            state.dropped += 1;
        }
    }

    /// Keeps a text for the trace: its number from 1, or 0 if there are [`TOLD`] already.
    pub(crate) fn tell(&self, text: String) -> u32 {
        let mut state = self.0.lock();
        if state.told.len() == TOLD {
            return 0;
        }
        state.told.push(text);
        u32::try_from(state.told.len()).unwrap_or(0)
    }

    /// The text of a number.
    pub(crate) fn told(&self, number: u32) -> Option<String> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        self.0.lock().told.get(index).cloned()
    }

    /// Those that are kept, and how many more there were.
    pub(crate) fn all(&self) -> (Vec<Refused>, u64) {
        let state = self.0.lock();
        (state.kept.clone(), state.dropped)
    }

    pub(crate) fn reset(&self) {
        *self.0.lock() = State::default();
    }
}
