//! Who did it: call sites and scope paths as two small numbers.
//!
//! Every allocation, mapping and finding knows its [`Owner`]: the source line that asked for it ([`Site`]) and the
//! path of named spans that was open then ([`Scope`], set by `Cpu::span`). Both are indices into tables that only
//! grow, so that an owner is eight bytes, copied freely and held in a page frame. Interning the same line or span
//! again gives the same number; numbers differ between runs of the program and never appear in results.
//!
//! Neighbours: every allocator, the ledger, findings. Left out: whole stacks (a captured one costs microseconds).

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::panic::Location;
use std::sync::{LazyLock, PoisonError, RwLock};

/// A source line, interned.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Site(u32);

/// A path of spans such as `probe/virtqueue`, interned.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Scope(u32);

/// The line and the scope path that own a resource.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Owner {
    /// The source line.
    pub site: Site,
    /// The spans that were open.
    pub scope: Scope,
}

#[derive(Default)]
struct Sites {
    /// Index 0 is "no site".
    list: Vec<&'static Location<'static>>,
    by_place: HashMap<(&'static str, u32, u32), u32>,
}

#[derive(Default)]
struct Scopes {
    /// `(parent, name)`; index 0 is the empty path.
    list: Vec<(u32, &'static str)>,
    by_step: HashMap<(u32, &'static str), u32>,
}

static SITES: LazyLock<RwLock<Sites>> = LazyLock::new(RwLock::default);
static SCOPES: LazyLock<RwLock<Scopes>> = LazyLock::new(RwLock::default);

const CACHE: usize = 256;

thread_local! {
    /// Address of a `Location` to its number: one compare on the path of every allocation.
    static SITE_CACHE: Cell<[(usize, u32); CACHE]> = const { Cell::new([(0, 0); CACHE]) };
}

impl Site {
    /// The line that called this; inside `#[track_caller]` functions, the line that called the outermost of them.
    #[track_caller]
    pub fn caller() -> Self {
        Self::of(Location::caller())
    }

    /// The number of a given place.
    pub fn of(place: &'static Location<'static>) -> Self {
        let key = std::ptr::from_ref(place).addr();
        let slot = (key >> 3) % CACHE;
        SITE_CACHE.with(|cache| {
            let entry = cache.as_array_of_cells();
            let (known, id) = entry[slot].get();
            if known == key {
                return Self(id);
            }
            let id = intern_site(place);
            entry[slot].set((key, id));
            Self(id)
        })
    }

    /// The place in the source, or `None` for the empty site.
    pub fn place(self) -> Option<&'static Location<'static>> {
        let sites = SITES.read().unwrap_or_else(PoisonError::into_inner);
        let index = usize::try_from(self.0).ok()?.checked_sub(1)?;
        sites.list.get(index).copied()
    }

    /// The raw index, to be packed into a page frame or a record.
    pub const fn index(self) -> u32 {
        self.0
    }

    /// The site with this raw index; one that was never interned prints as `?`.
    pub const fn from_index(index: u32) -> Self {
        Self(index)
    }
}

fn intern_site(place: &'static Location<'static>) -> u32 {
    let mut sites = SITES.write().unwrap_or_else(PoisonError::into_inner);
    let key = (place.file(), place.line(), place.column());
    if let Some(&id) = sites.by_place.get(&key) {
        return id;
    }
    sites.list.push(place);
    let id = u32::try_from(sites.list.len()).unwrap_or(u32::MAX);
    sites.by_place.insert(key, id);
    id
}

impl Scope {
    /// The path with nothing open.
    pub const ROOT: Self = Self(0);

    /// The path one span deeper.
    pub fn enter(self, name: &'static str) -> Self {
        {
            let scopes = SCOPES.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(&id) = scopes.by_step.get(&(self.0, name)) {
                return Self(id);
            }
        }
        let mut scopes = SCOPES.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(&id) = scopes.by_step.get(&(self.0, name)) {
            return Self(id);
        }
        scopes.list.push((self.0, name));
        let id = u32::try_from(scopes.list.len()).unwrap_or(u32::MAX);
        scopes.by_step.insert((self.0, name), id);
        Self(id)
    }

    /// The raw index, to be packed into a page frame or a record.
    pub const fn index(self) -> u32 {
        self.0
    }

    /// The scope with this raw index.
    pub const fn from_index(index: u32) -> Self {
        Self(index)
    }
}

impl fmt::Display for Site {
    /// `file:line`, with the file's path from the crate's folder on (`driver/src/blk.rs:120`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place() {
            Some(place) => write!(f, "{}:{}", place.file(), place.line()),
            None => f.write_str("?"),
        }
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Site({self})")
    }
}

impl fmt::Display for Scope {
    /// `probe/virtqueue`; the empty path prints as `-`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scopes = SCOPES.read().unwrap_or_else(PoisonError::into_inner);
        let mut names = Vec::new();
        let mut at = self.0;
        while let Some(&(parent, name)) =
            usize::try_from(at).ok().and_then(|i| i.checked_sub(1)).and_then(|i| scopes.list.get(i))
        {
            names.push(name);
            at = parent;
        }
        if names.is_empty() {
            return f.write_str("-");
        }
        names.reverse();
        f.write_str(&names.join("/"))
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({self})")
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.scope == Scope::ROOT {
            write!(f, "{}", self.site)
        } else {
            write!(f, "{} in {}", self.site, self.scope)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_has_one_number_and_prints_as_file_and_line() {
        let (a, b) = (Site::caller(), Site::caller());
        assert_ne!(Site::default(), a);
        assert_eq!(a, Site::of(a.place().unwrap()));
        assert_ne!(a, b, "two columns of one line are two sites");
        assert!(a.to_string().contains("site.rs:"), "{a}");
        assert_eq!(Site::from_index(a.index()), a);
    }

    #[test]
    fn scopes_nest_and_print_as_a_path() {
        let probe = Scope::ROOT.enter("probe");
        let ring = probe.enter("virtqueue");
        assert_eq!(ring, Scope::ROOT.enter("probe").enter("virtqueue"));
        assert_eq!(ring.to_string(), "probe/virtqueue");
        assert_eq!(Scope::ROOT.to_string(), "-");
    }
}
