//! What the kernel prints about slabs, and the finding beside it.
//!
//! Mirrors `slab_bug`, `print_trailer`, `slab_fix`, `slab_out_of_memory` of `mm/slub.c` and `kmem_cache_destroy` of
//! `mm/slab_common.c`. Neighbours: `object` sees it, [`crate::klog`] keeps the lines. Left out: stacks, ages and process
//! numbers of users, the address of `struct page`.

use std::fmt::Write as _;

use crate::addr::{PAGE_SIZE, PhysAddr};
use crate::cpu::Cpu;
use crate::finding::{Finding, FindingKind, SlabDamage};
use crate::gfp::Gfp;
use crate::kernel::{Kernel, Memory};
use crate::site::{Owner, Site};
use crate::slab::{Damage, Geometry, KfreeError, LARGE, Object, Remaining, SlabFlags, Spot, Watched};

/// What becomes of an object that was found wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fix {
    /// Nothing but that its bytes are restored.
    None,
    /// It is not handed out, nor anything else of its slab.
    AllUsed,
    /// It is not freed.
    NotFreed,
}

/// An object whose watched bytes were overwritten, as it was found.
pub(crate) struct SlabReport {
    object: Object,
    damage: Damage,
    /// Whether users are remembered.
    track: bool,
    slab: PhysAddr,
    objects: u16,
    used: u16,
    allocated: Owner,
    freed: Option<Owner>,
    fix: Fix,
    /// The dump: what each part is called, and its lines.
    dump: String,
}

impl SlabReport {
    /// Notes everything while the lock is held, before the bytes are mended.
    pub(crate) fn of(
        kernel: &Kernel,
        memory: &Memory,
        (spot, object): (Spot, &Object),
        geometry: Geometry,
        damage: Damage,
        fix: Fix,
    ) -> Self {
        let facts = memory.slabs.slab_facts(spot);
        let (slab, objects, used, previous, freed) = facts.unwrap_or((object.phys, 0, 0, Owner::default(), None));
        let track = geometry.flags.contains(SlabFlags::STORE_USER);
        let padding = damage.what == Watched::SlabPadding;
        let dump = match memory.slabs.slab_extent(spot).filter(|_| padding) {
            Some((_, bytes, _)) => dump_padding(kernel, slab, bytes, &geometry),
            None => dump(kernel, object.phys, slab, &geometry),
        };
        let (allocated, freed) = match fix {
            // No object's.
            _ if padding => (Owner::default(), None),
            // An object being handed out carries its new holder's name already.
            Fix::AllUsed => (previous, freed),
            _ => (object.owner, freed),
        };
        Self { object: *object, damage, track, slab, objects, used, allocated, freed, fix, dump }
    }

    /// As [`SlabReport::of`], of an object that is a block of pages.
    pub(crate) fn of_large(object: &Object, damage: Damage) -> Self {
        Self {
            object: *object,
            damage,
            track: false,
            slab: object.phys,
            objects: 1,
            used: 0,
            allocated: object.owner,
            freed: None,
            fix: Fix::None,
            dump: String::new(),
        }
    }

    /// Prints it and reports the finding.
    pub(crate) fn tell(self, kernel: &Kernel, found: (&'static str, Owner)) {
        let cache = self.object.cache.unwrap_or(LARGE);
        let Self { object, damage, track, slab, allocated, freed, fix, .. } = self;
        let finding =
            SlabDamage { cache, damage, object: object.phys, offset: damage.first.offset_from(slab).unwrap_or(0) };
        if damage.what != Watched::Quarantine {
            kernel.log().print(kernel.clock(), &self.text(&finding));
        }
        let mut sites = vec![("allocated at", allocated)];
        sites.extend(freed.filter(|_| track && fix != Fix::NotFreed).map(|freed| ("freed at", freed)));
        sites.push(found);
        sites.retain(|(_, owner)| *owner != Owner::default());
        kernel.report(Finding { kind: FindingKind::SlabDamage(finding), device: None, at: kernel.clock(), sites });
    }

    fn text(&self, finding: &SlabDamage) -> String {
        let Damage { what, first, last, found, expected } = self.damage;
        let (cache, offset) = (finding.cache, finding.offset);
        let range = format!("{}-{}", pointer(first), pointer(last));
        if what == Watched::SlabPadding {
            let text = frame(cache, &format!("Padding overwritten. {range} @offset={offset}"));
            let slab = format!("Slab {} objects={} used={}", pointer(self.slab), self.objects, self.used);
            return format!("{text}\n{slab}\n{}FIX {cache}: Restoring slab padding {range}={expected:#x}\n", self.dump);
        }
        let mut text = frame(cache, &format!("{what} overwritten"));
        // Infallible: it is a string.
        let _ = writeln!(text, "\n{range} @offset={offset}. First byte {found:#x} instead of {expected:#x}");
        if self.track {
            if self.allocated != Owner::default() {
                let _ = writeln!(text, "Allocated in {}", self.allocated);
            }
            if let Some(freed) = self.freed {
                let _ = writeln!(text, "Freed in {freed}");
            }
        }
        let at = self.object.phys.offset_from(self.slab).unwrap_or(0);
        let _ = writeln!(text, "Slab {} objects={} used={}", pointer(self.slab), self.objects, self.used);
        let _ = writeln!(text, "Object {} @offset={at}\n\n{}", pointer(self.object.phys), self.dump);
        let _ = writeln!(text, "FIX {cache}: Restoring {what} {range}={expected:#x}");
        let _ = match self.fix {
            Fix::None => Ok(()),
            Fix::AllUsed => writeln!(text, "FIX {cache}: Marking all objects used"),
            Fix::NotFreed => writeln!(text, "FIX {cache}: Object at {} not freed", pointer(self.object.phys)),
        };
        text
    }
}

/// The direct-map address, as `%p` prints it when addresses are not hidden.
fn pointer(phys: PhysAddr) -> String {
    format!("{:#x}", phys.direct_map())
}

/// The frame of every report.
fn frame(cache: &str, text: &str) -> String {
    let (double, single) = ("=".repeat(77), "-".repeat(77));
    format!("{double}\nBUG {cache} (Tainted: G           O      ): {text}\n{single}\n")
}

/// Lines of sixteen bytes of a slab (`print_section`).
fn section(text: &mut String, kernel: &Kernel, name: &str, at: PhysAddr, len: u64) {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    // Within the slab, hence RAM.
    let _ = kernel.ram().read(at, &mut bytes);
    for (row, bytes) in (0_u64..).zip(bytes.chunks(16)) {
        let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let shown = |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' };
        let ascii: String = bytes.iter().map(shown).collect();
        let at = at.wrapping_add(row * 16).direct_map();
        let _ = writeln!(text, "{name:<9}{at:x}: {:<47}  {ascii}", hex.join(" "));
    }
}

/// What lies behind a slab's last object.
fn dump_padding(kernel: &Kernel, slab: PhysAddr, bytes: u64, geometry: &Geometry) -> String {
    let (mut text, left) = (String::new(), bytes % u64::from(geometry.size));
    section(&mut text, kernel, "Padding", slab.wrapping_add(bytes - left), left);
    text
}

fn dump(kernel: &Kernel, object: PhysAddr, slab: PhysAddr, geometry: &Geometry) -> String {
    let mut text = String::new();
    let red = u64::from(geometry.red_left);
    let size = u64::from(geometry.object_size);
    let mut section = |name: &str, at: PhysAddr, len: u64| section(&mut text, kernel, name, at, len);
    if red > 0 {
        section("Redzone", PhysAddr::new(object.get() - red), red);
    } else if object > slab.wrapping_add(16) {
        section("Bytes b4", PhysAddr::new(object.get() - 16), 16);
    }
    section("Object", object, size.min(PAGE_SIZE));
    if red > 0 {
        section("Redzone", object.wrapping_add(size), u64::from(geometry.inuse) - size);
    }
    let (info_end, end) = (u64::from(geometry.info_end), u64::from(geometry.size) - red);
    section("Padding", object.wrapping_add(info_end), end - info_end);
    text
}

/// A free that a cache with consistency checks refuses, as it is printed; nothing without them.
pub(crate) fn bad_free(kernel: &Kernel, error: &KfreeError) {
    let (phys, cache, text) = match *error {
        KfreeError::Double { phys, cache, .. } => (phys, cache, "Object already free".to_owned()),
        KfreeError::Inside { phys, cache: Some(cache), .. } => {
            (phys, cache, format!("Invalid object pointer {}", pointer(phys)))
        }
        _ => return,
    };
    let checked = {
        let memory = kernel.memory.lock();
        let found = memory.slabs.stats().find(|stats| stats.cache == cache);
        found.is_some_and(|stats| stats.geometry.flags.contains(SlabFlags::CONSISTENCY_CHECKS))
    };
    if checked {
        let fix = format!("FIX {cache}: Object at {} not freed", pointer(phys));
        kernel.log().print(kernel.clock(), &(frame(cache, &text) + &fix));
    }
}

/// An object given to a cache that it is not of.
pub(crate) fn wrong_cache(kernel: &Kernel, (cache, of): (&'static str, &'static str), checked: bool, by: Owner) {
    let kind = FindingKind::WrongCache { cache, of };
    if checked {
        kernel.log().print(kernel.clock(), &kind.to_string());
    }
    kernel.report(Finding { kind, device: None, at: kernel.clock(), sites: vec![("freed at", by)] });
}

/// A cache that can't grow: three lines, at most ten times in five seconds.
pub(crate) fn out_of_memory(cpu: &Cpu<'_>, cache: u32, gfp: Gfp) {
    if gfp.contains(Gfp::NOWARN) {
        return;
    }
    let kernel = cpu.kernel();
    let described = kernel.memory.lock().slabs.numbers(cache);
    let Some(stats) = described else { return };
    let Geometry { object_size, size, shape, smallest, .. } = stats.geometry;
    kernel.log().ratelimited(cpu.now(), Site::caller(), || {
        format!("SLUB: Unable to allocate memory on node -1, gfp={:#x}({gfp})", gfp.bits())
    });
    kernel.log().ratelimited(cpu.now(), Site::caller(), || {
        format!(
            "  cache: {}, object size: {object_size}, buffer size: {size}, default order: {}, min order: {}",
            stats.cache, shape.order, smallest.order
        )
    });
    kernel.log().ratelimited(cpu.now(), Site::caller(), || {
        format!("  node 0: slabs: {}, objs: {}, free: {}", stats.slabs, stats.total, stats.total - stats.active)
    });
}

/// What is left in a cache that is destroyed.
pub(crate) fn still_busy(kernel: &Kernel, cache: &'static str, remaining: &[Remaining], by: Owner) {
    let mut text = String::new();
    for Remaining { slab, objects, used, live } in remaining {
        text += &frame(cache, &format!("Objects remaining in {cache} on __kmem_cache_shutdown()"));
        let _ = writeln!(text, "\nSlab {} objects={objects} used={used}", pointer(*slab));
        for object in live {
            let at = object.phys.offset_from(*slab).unwrap_or(0);
            let _ = writeln!(text, "Object {} @offset={at}", pointer(object.phys));
        }
    }
    let live: Vec<_> = remaining.iter().flat_map(|slab| &slab.live).collect();
    let kind = FindingKind::CacheBusy { cache, objects: live.len(), by };
    text += &kind.to_string();
    kernel.log().print(kernel.clock(), &text);
    let mut sites = vec![("destroyed at", by)];
    for object in live {
        if !sites.contains(&("allocated at", object.owner)) {
            sites.push(("allocated at", object.owner));
        }
    }
    kernel.report(Finding { kind, device: None, at: kernel.clock(), sites });
}
