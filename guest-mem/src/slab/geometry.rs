//! How a cache lays out its objects and cuts its slabs.
//!
//! Without debugging an object is its bytes, rounded up. With it there is a zone before and behind that nobody may
//! write, a place for the free pointer behind the object, two records of users and padding, all of it in guest RAM, so
//! that a device's stray write meets it too:
//!
//! | from the object's first byte | what |
//! |---|---|
//! | `-red_left` | left red zone |
//! | `0` | the object, `object_size` bytes |
//! | `object_size` | right red zone, to `inuse` |
//! | `inuse` | free pointer, user records, padding to the next object |
//!
//! Mirrors `calculate_alignment` of `mm/slab_common.c`, `calculate_sizes` and `calculate_order` of `mm/slub.c`, x86-64.
//! Neighbours: [`super::CacheId`] (the classes of kmalloc), [`crate::kmem_cache`]. Left out: random and encoded free
//! pointers, the red zone of a request's unused tail (6.2).

use super::SlabFlags;
use crate::addr::PAGE_SIZE;

/// The largest order a slab has by choice.
const MAX_SLAB_ORDER: u8 = 3;
/// A pointer's bytes, to which everything is rounded.
const WORD: u32 = 8;
/// The record of one user (`struct track`).
const TRACK: u32 = 32;
/// The record of a request's size in a `kmalloc` cache with user records.
const ORIG_SIZE: u32 = 4;
/// Bytes of a cache line.
const CACHE_LINE: u32 = 64;

/// How a slab is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Binary logarithm of its pages.
    pub order: u8,
    /// Objects in it.
    pub objects: u16,
}

impl Shape {
    /// The slab of objects that take `size` bytes each, on a machine with so many CPUs.
    ///
    /// More CPUs want more objects in a slab; a slab should waste no more than a sixteenth, then an eighth, then a
    /// quarter of itself.
    pub fn preferred(size: u32, cpus: u32) -> Self {
        let wanted = 4 * (u32::BITS - cpus.leading_zeros() + 1);
        let most = Self::of(size, altered!(MAX_SLAB_ORDER)).objects;
        for objects in (2..=wanted.min(u32::from(most))).rev() {
            for fraction in [16, 8, 4] {
                let first = get_order(u64::from(size) * u64::from(objects));
                let fits = |&order: &u8| {
                    let bytes = PAGE_SIZE << order;
                    bytes % u64::from(size) <= bytes / fraction
                };
                if let Some(order) = (first..=altered!(MAX_SLAB_ORDER)).find(fits) {
                    return Self::of(size, order);
                }
            }
        }
        Self::smallest(size)
    }

    /// The slab that is tried when no pages are there for the preferred one: the fewest pages an object fits.
    pub fn smallest(size: u32) -> Self {
        Self::of(size, get_order(u64::from(size)))
    }

    fn of(size: u32, order: u8) -> Self {
        Self { order, objects: u16::try_from((PAGE_SIZE << order) / u64::from(size)).unwrap_or(u16::MAX) }
    }
}

/// The order of the smallest block that holds so many bytes; 0 for none.
pub const fn get_order(bytes: u64) -> u8 {
    let pages = bytes.div_ceil(PAGE_SIZE);
    if pages <= 1 {
        return 0;
    }
    // At most 52, so the byte holds it.
    (u64::BITS - (pages - 1).leading_zeros()).to_le_bytes()[0]
}

/// What a cache is asked to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Bytes of an object, 1 to 4 MiB.
    pub object_size: u32,
    /// The alignment given, or 0.
    pub align: u32,
    /// Flags, those of the machine's boot line included.
    pub flags: SlabFlags,
    /// Whether objects are constructed.
    pub ctor: bool,
    /// Whether it is one of `kmalloc`'s own.
    pub kmalloc: bool,
}

/// The layout of one cache; all lengths in bytes. Names are those of `struct kmem_cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// What the cache was asked for.
    pub object_size: u32,
    /// From one object to the next.
    pub size: u32,
    /// Where what belongs to the object ends: its right red zone or its padding to a word.
    pub inuse: u32,
    /// Every object's address is a multiple of this.
    pub align: u32,
    /// Where a free object holds its free pointer. (The lab's own list lies out of band.)
    pub offset: u32,
    /// The left red zone.
    pub red_left: u32,
    /// Where the padding behind the user records begins, from the object.
    pub info_end: u32,
    /// How a slab is cut that got the pages it wanted.
    pub shape: Shape,
    /// How the smallest one is cut.
    pub smallest: Shape,
    /// Empty slabs that are kept.
    pub min_partial: u32,
    /// Objects that Linux would keep on per-CPU partial lists.
    pub cpu_partial: u32,
    /// The same in slabs.
    pub cpu_partial_slabs: u32,
    /// Its flags.
    pub flags: SlabFlags,
    /// Whether free objects keep their bytes: a constructor made them, or readers may still look.
    pub keeps: bool,
    /// Whether free objects hold the poison: not those that keep their bytes.
    pub poisoned: bool,
}

impl Geometry {
    /// The layout of a cache on a machine with so many CPUs.
    pub(crate) fn new(wish: &Wish, cpus: u32) -> Self {
        let Wish { object_size, flags, .. } = *wish;
        let red = flags.contains(SlabFlags::RED_ZONE);
        let align = alignment(wish);
        let mut inuse = object_size.next_multiple_of(WORD);
        if red && inuse == object_size {
            inuse += WORD;
        }
        let keeps = wish.ctor || flags.contains(SlabFlags::TYPESAFE_BY_RCU);
        let outside = keeps || flags.contains(SlabFlags::POISON) || (red && object_size < WORD);
        let mut info_end = if outside { inuse + WORD } else { inuse };
        let offset = if outside { inuse } else { object_size / 2 / WORD * WORD };
        if flags.contains(SlabFlags::STORE_USER) {
            info_end += 2 * altered!(TRACK) + if wish.kmalloc { ORIG_SIZE } else { 0 };
        }
        let red_left = if red { WORD.next_multiple_of(align) } else { 0 };
        let size = (info_end + red_left + if red { WORD } else { 0 }).next_multiple_of(align);
        let shape = Shape::preferred(size, cpus);
        let cpu_partial = match size {
            _ if flags.intersects(SlabFlags::DEBUG) => 0,
            4096.. => 6,
            1024.. => 24,
            256.. => 52,
            _ => 120,
        };
        Self {
            object_size,
            size,
            inuse,
            align,
            offset,
            red_left,
            info_end,
            shape,
            smallest: Shape::smallest(size),
            min_partial: (size.ilog2() / 2).clamp(5, 10),
            cpu_partial,
            cpu_partial_slabs: (2 * cpu_partial).div_ceil(u32::from(shape.objects)),
            flags,
            keeps,
            poisoned: flags.contains(SlabFlags::POISON) && !keeps,
        }
    }

    /// The bytes of an object that may be used (`slab_ksize`).
    pub const fn ksize(&self) -> u32 {
        if self.flags.intersects(SlabFlags::RED_ZONE.union(SlabFlags::POISON)) {
            self.object_size
        } else if self.flags.intersects(SlabFlags::TYPESAFE_BY_RCU.union(SlabFlags::STORE_USER)) {
            self.inuse
        } else {
            self.size
        }
    }

    /// Whether any byte around or in its objects is to be watched.
    pub const fn is_watched(&self) -> bool {
        self.flags.intersects(SlabFlags::RED_ZONE.union(SlabFlags::POISON))
    }
}

/// `calculate_alignment`; for `kmalloc`, powers of two are aligned to themselves.
fn alignment(wish: &Wish) -> u32 {
    let mut align = wish.align;
    if wish.flags.contains(SlabFlags::HWCACHE_ALIGN) {
        let mut line = altered!(CACHE_LINE);
        while wish.object_size <= line / 2 {
            line /= 2;
        }
        align = align.max(line);
    }
    if wish.kmalloc && wish.object_size.is_power_of_two() {
        align = wish.object_size;
    }
    align.max(WORD).next_multiple_of(WORD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::CLASSES;

    #[test]
    fn slabs_are_cut_as_slub_cuts_them() {
        let cut = |cpus| CLASSES.map(|size| Shape::preferred(size.into(), cpus)).map(|s| (s.order, s.objects));
        let small = [(0, 512), (0, 256), (0, 128), (0, 64), (0, 42), (0, 32), (0, 21), (0, 16)];
        let two = [&small[..], &[(1, 16), (2, 16), (3, 16), (3, 8), (3, 4)]].concat();
        assert_eq!(cut(2).as_slice(), two);
        assert_eq!(cut(4).as_slice(), two);
        let one = [&small[..], &[(0, 8), (1, 8), (2, 8), (3, 8), (3, 4)]].concat();
        assert_eq!(cut(1).as_slice(), one);
        assert_eq!(Shape::smallest(8192), Shape { order: 1, objects: 1 });
        assert_eq!(Shape::smallest(96), Shape { order: 0, objects: 42 });
        assert_eq!([0, 1, 4096, 4097, 12288, 12289, u64::MAX].map(get_order), [0, 0, 0, 1, 2, 2, 52]);
    }

    #[test]
    fn kmalloc_with_slub_debug_has_the_known_strides() {
        let of = |object_size| {
            let wish = Wish { object_size, align: 0, flags: SlabFlags::DEBUG, ctor: false, kmalloc: true };
            let geometry = Geometry::new(&wish, 2);
            (geometry.size, geometry.shape.order, geometry.shape.objects)
        };
        let strides = [8, 64, 96, 128, 1024, 4096].map(of);
        let known = [(112, 0, 36), (256, 0, 16), (200, 0, 20), (384, 1, 21), (3072, 3, 10), (12288, 3, 2)];
        assert_eq!(strides, known);
    }

    #[test]
    fn what_may_be_used_ends_before_what_is_watched() {
        let ksize =
            |flags| Geometry::new(&Wish { object_size: 100, align: 0, flags, ctor: false, kmalloc: false }, 2).ksize();
        let all = [SlabFlags::empty(), SlabFlags::POISON, SlabFlags::STORE_USER, SlabFlags::TYPESAFE_BY_RCU];
        assert_eq!(all.map(ksize), [104, 100, 104, 104]);
        assert_eq!(ksize(SlabFlags::HWCACHE_ALIGN), 128);
    }
}
