//! What an injector is asked: one allocation, mapping or access that may be made to fail.
//!
//! Neighbours: [`super::FaultAttr`] decides it; every [`crate::env::Point`] carries one. Left out: the stack of the
//! caller.

use crate::env::Class;
use crate::gfp::{GFP_KERNEL, Gfp};
use crate::slab::CacheId;

/// Who makes a request, as far as an injector cares.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Caller {
    /// A task (`in_task`).
    #[default]
    Task,
    /// A task whose `make-it-fail` is set.
    MarkedTask,
    /// A softirq or interrupt handler: belongs to no task, so neither `fail-nth` nor a mark reaches it.
    Interrupt,
}

/// One request at a place that can fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The kind of place.
    pub class: Class,
    /// What `space` counts: the *object* size of a slab's cache, 1 << order of pages, else bytes.
    pub size: u64,
    /// The order of a block of pages, else 0.
    pub order: u8,
    /// The mask that reaches the allocator, else empty.
    pub gfp: Gfp,
    /// The slab cache's name, if it has one.
    pub cache: Option<&'static str>,
    /// Who asks.
    pub caller: Caller,
}

impl Request {
    /// A task's request of a class that knows no mask, for so many bytes.
    pub const fn new(class: Class, size: u64) -> Self {
        Self { class, size, order: 0, gfp: Gfp::empty(), cache: None, caller: Caller::Task }
    }

    /// A task's request for 2^`order` pages.
    pub const fn pages(order: u8, gfp: Gfp) -> Self {
        // A wider shift than the number has bits is no block, and counts as the largest.
        let size = match 1_u64.checked_shl(order as u32) {
            Some(size) => size,
            None => u64::MAX,
        };
        Self { order, gfp, ..Self::new(Class::Page, size) }
    }

    /// A task's request for an object of a slab cache.
    pub const fn slab(object_size: u64, gfp: Gfp, cache: Option<&'static str>) -> Self {
        Self { gfp, cache, ..Self::new(Class::Slab, object_size) }
    }

    /// A task's request for an object of a `kmalloc` cache.
    pub(crate) fn object_of(id: CacheId, gfp: Gfp) -> Self {
        Self::slab(id.size().into(), gfp, Some(id.name()))
    }

    /// A task's request for the object that describes an area of vmalloc's (`struct vm_struct`).
    pub const fn of_descriptor() -> Self {
        Self::slab(64, GFP_KERNEL, Some("kmalloc-64"))
    }

    /// The same request made by another.
    pub const fn by(self, caller: Caller) -> Self {
        Self { caller, ..self }
    }
}
