//! What a driver wrote into a page's own record, and the pages that were found in a bad state when they were freed.
//!
//! A page that is freed must have no mapping, no reference and none of the flags that say it is in use; Linux looks,
//! prints `BUG: Bad page state` and never uses the page again. Such state is rare, so it lies beside the frame table:
//! as long as there is none, a free costs one load.
//!
//! Mirrors `free_page_is_bad`, `page_bad_reason` and `bad_page` of `mm/page_alloc.c`. Neighbours: [`super::Shared`] holds
//! it, `page` and [`crate::pcp`] ask. Left out: memory cgroups, page pools, the look at a page that is handed out, the
//! limit of 60 reports a minute.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use bitflags::bitflags;

use crate::lock::Locked;

bitflags! {
    /// Flags of `struct page` that none may have when it is freed (`PAGE_FLAGS_CHECK_AT_FREE`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct PageFlags: u8 {
        /// `PG_locked`.
        const LOCKED = 1;
        /// `PG_lru`.
        const LRU = 2;
        /// `PG_private`.
        const PRIVATE = 4;
        /// `PG_writeback`.
        const WRITEBACK = 8;
        /// `PG_reserved`, as a driver sets it that lets user space map the page.
        const RESERVED = 16;
        /// `PG_active`.
        const ACTIVE = 32;
        /// `PG_unevictable`.
        const UNEVICTABLE = 64;
    }
}

/// What a driver may write into `struct page`; all of it must be gone when the page is freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageState {
    /// User space has it mapped (`_mapcount`).
    pub mapped: bool,
    /// `mapping` points at something.
    pub mapping: bool,
    /// References that somebody holds to a page that is not the first of its block.
    pub refs: u32,
    /// Its flags.
    pub flags: PageFlags,
}

/// Why a page that is freed is in a bad state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadReason {
    /// It is mapped.
    Mapcount,
    /// It has a mapping.
    Mapping,
    /// Somebody has a reference to it.
    Refcount,
    /// It has a flag that says it is in use.
    Flags,
}

impl fmt::Display for BadReason {
    /// As Linux prints it behind `page dumped because`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mapcount => "nonzero mapcount",
            Self::Mapping => "non-NULL mapping",
            Self::Refcount => "nonzero _refcount",
            Self::Flags => "PAGE_FLAGS_CHECK_AT_FREE flag(s) set",
        })
    }
}

impl PageState {
    /// What is wrong with it in a page that is freed: of several, what Linux looks at last.
    pub fn bad_reason(&self) -> Option<BadReason> {
        let wrong = [
            (!self.flags.is_empty(), BadReason::Flags),
            (self.refs > 0, BadReason::Refcount),
            (self.mapping, BadReason::Mapping),
            (self.mapped, BadReason::Mapcount),
        ];
        wrong.into_iter().find(|(is, _)| *is).map(|(_, reason)| reason)
    }
}

/// Pages whose record was written to.
#[derive(Default)]
pub(crate) struct Odd {
    any: AtomicBool,
    table: Locked<Table>,
}

#[derive(Default)]
struct Table {
    states: BTreeMap<u32, PageState>,
    /// Found at a free and not yet told.
    found: Vec<(u32, BadReason)>,
}

impl Odd {
    /// Whether there is any such page; false until a driver writes to one.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Writes a page's state.
    pub(crate) fn set(&self, pfn: u32, state: PageState) {
        self.change(|table| match state == PageState::default() {
            true => drop(table.states.remove(&pfn)),
            false => drop(table.states.insert(pfn, state)),
        });
    }

    /// Looks at pages that are freed; notes the bad ones and tells whether there are. What was written is gone then.
    pub(crate) fn strike(&self, pages: Range<u32>) -> bool {
        self.any()
            && self.change(|table| {
                let before = table.found.len();
                let bad = table.states.range(pages).filter_map(|(&pfn, state)| Some((pfn, state.bad_reason()?)));
                table.found.extend(bad);
                for (pfn, _) in &table.found[before..] {
                    table.states.remove(pfn);
                }
                table.found.len() > before
            })
    }

    /// Takes what was found.
    pub(crate) fn take_found(&self) -> Vec<(u32, BadReason)> {
        if self.any() { self.change(|table| std::mem::take(&mut table.found)) } else { Vec::new() }
    }

    /// Forgets everything.
    pub(super) fn reset(&self) {
        self.change(|table| *table = Table::default());
    }

    fn change<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        let mut table = self.table.lock();
        let out = change(&mut table);
        self.any.store(!table.states.is_empty() || !table.found.is_empty(), Ordering::Relaxed);
        out
    }
}
