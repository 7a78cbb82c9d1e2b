//! What an injector is asked: one allocation, mapping or access that may be made to fail.
//!
//! Neighbours: [`super::FaultAttr`] decides it; the allocators' doors describe themselves with it. Left out: the
//! stack of the caller.

use crate::env::Class;
use crate::gfp::{GFP_SLAB_BUG_MASK, Gfp};
use crate::slab::{CacheId, get_order};

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
pub struct Request<'a> {
    /// The kind of place.
    pub class: Class,
    /// What `space` counts: the *object* size of a slab's cache, 1 << order of pages, else bytes.
    pub size: u64,
    /// The order of a block of pages, else 0.
    pub order: u8,
    /// The mask that reaches the allocator, else empty.
    pub gfp: Gfp,
    /// The slab cache's name, if it has one.
    pub cache: Option<&'a str>,
    /// Who asks.
    pub caller: Caller,
}

impl<'a> Request<'a> {
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
    pub const fn slab(object_size: u64, gfp: Gfp, cache: Option<&'a str>) -> Self {
        Self { gfp, cache, ..Self::new(Class::Slab, object_size) }
    }

    /// What a task's `kmalloc` asks first; `None` for 0 bytes, which ask nobody.
    ///
    /// Up to 8192 bytes that is `failslab`, with the size of the class; above, pages are taken and `failslab` is
    /// never asked. `cache` is the name of the cache that serves the request, if there is one.
    ///
    /// ```
    /// use lowzone_guest_mem::env::Class;
    /// use lowzone_guest_mem::fault::Request;
    /// use lowzone_guest_mem::gfp::GFP_KERNEL;
    /// let asked = |len| Request::kmalloc(len, GFP_KERNEL, None).map(|request| (request.class, request.size));
    /// assert_eq!(asked(50), Some((Class::Slab, 64)));
    /// assert_eq!(asked(8193), Some((Class::Page, 4)));
    /// assert_eq!(asked(0), None);
    /// ```
    pub fn kmalloc(len: usize, gfp: Gfp, cache: Option<&'a str>) -> Option<Self> {
        if len == 0 {
            return None;
        }
        Some(match CacheId::serving(len, gfp) {
            Some(id) => Self::slab(id.size().into(), gfp, cache),
            None => {
                let order = get_order(u64::try_from(len).unwrap_or(u64::MAX));
                Self::pages(order, (gfp - GFP_SLAB_BUG_MASK) | Gfp::COMP)
            }
        })
    }

    /// The same request made by another.
    pub const fn by(self, caller: Caller) -> Self {
        Self { caller, ..self }
    }
}
