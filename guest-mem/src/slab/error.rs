//! Why an address was not freed, in Linux's words where it has any.
//!
//! Neighbours: [`super::SlabCaches`] returns these. Left out: what Linux corrupts when nobody looks.

use crate::addr::PhysAddr;
use crate::site::Owner;

/// Why an address was not freed; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KfreeError {
    /// The object was freed before. Linux: its list then hands one address out twice.
    #[error(
        "BUG {cache}: Object already free: {phys:#x} was freed before, {requested} bytes last allocated by {owner}"
    )]
    Double {
        /// The object.
        phys: PhysAddr,
        /// Its cache.
        cache: &'static str,
        /// The bytes it was last allocated for.
        requested: u32,
        /// Who had it last.
        owner: Owner,
        /// Who freed it, if the cache keeps users.
        freed: Option<Owner>,
    },
    /// The address lies inside an object or block. Linux: silent corruption.
    #[error("{}Invalid object pointer {phys:#x}: it lies inside the object at {object:#x}", bug(*cache))]
    Inside {
        /// The address.
        phys: PhysAddr,
        /// Where its object begins.
        object: PhysAddr,
        /// The object's cache, if it has one.
        cache: Option<&'static str>,
    },
    /// Nothing is allocated there: a second free whose pages are gone, or an address that was never given.
    #[error("nothing is allocated at {phys:#x}")]
    NotAllocated {
        /// The address.
        phys: PhysAddr,
    },
    /// The page was allocated as a page. Linux: a warning, and the page is freed.
    #[error("object pointer: {phys:#x} is a page of {owner}, not from kmalloc")]
    NotKmalloc {
        /// The address.
        phys: PhysAddr,
        /// Who has the page.
        owner: Owner,
    },
    /// No memory that is managed lies there.
    #[error("{phys:#x} is not RAM")]
    NotRam {
        /// The address.
        phys: PhysAddr,
    },
}

fn bug(cache: Option<&'static str>) -> String {
    cache.map_or_else(String::new, |cache| format!("BUG {cache}: "))
}
