//! The `[fault.CLASS]` tables and `--fault SPEC`: Linux's fault-injection attributes, class by class.
//!
//! Names are those of Linux's files (`ignore-gfp-wait`), in both forms, so that one can be copied to the other. What
//! could never fail anything is refused. Neighbours: `guest_mem::fault`, which has values, defaults and decisions;
//! `check`, which asks for the tables' problems. Left out: faults in chosen places, which are the campaign's.

use lowzone_guest_mem::env::Class;
use lowzone_guest_mem::fault::{self, Attribute, CacheFilter, FaultAttr, FaultSpec, ValueError};
use lowzone_guest_mem::slab::CacheId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::check::{Checked, Fault};
use super::path::KeyPath;
use super::{Problem, SpecError, nearest::nearest};

/// Which requests are made to fail, by class. Default: none.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case", expecting = "a [fault] table of classes")]
pub struct Faults {
    /// Page allocations (`fail_page_alloc`); of coherent memory and of slabs too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<FaultTable>,
    /// Slab objects, `kmalloc` up to 8192 bytes (`failslab`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slab: Option<FaultTable>,
    /// Coherent DMA memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coherent: Option<FaultTable>,
    /// Streaming DMA mappings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<FaultTable>,
    /// Places in the bounce pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swiotlb_slot: Option<FaultTable>,
    /// `ioremap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ioremap: Option<FaultTable>,
    /// Interrupt vectors and `request_irq`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub irq_vector: Option<FaultTable>,
    /// DMA masks, refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<FaultTable>,
    /// Per-CPU variables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percpu: Option<FaultTable>,
    /// Register reads, which then give all-ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mmio: Option<FaultTable>,
}

/// The attributes of one class; those left out are as Linux boots.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case", expecting = "a table of fault attributes")]
pub struct FaultTable {
    /// Percent of the requests that fail. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probability: Option<u32>,
    /// Only each so-many-th request may fail. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<u64>,
    /// The most failures, or -1 for no limit. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1, max = 2_147_483_647))]
    pub times: Option<i64>,
    /// Bytes, or pages, that pass before anything fails. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 2_147_483_647))]
    pub space: Option<u32>,
    /// What the kernel's log gets of a failure: 0 nothing, 1 the message, 2 the caller too. Default 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 2))]
    pub verbose: Option<u8>,
    /// Spares what interrupt handlers ask for; the tasks of the steps are marked. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_filter: Option<bool>,
    /// Spares masks that may sleep, such as `GFP_KERNEL`. Default true for slab and page, else false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_gfp_wait: Option<bool>,
    /// Spares masks with `__GFP_HIGHMEM`. Default true for page, else false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_gfp_highmem: Option<bool>,
    /// Spares blocks of a lower order. Default 1 for page, else 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 10))]
    pub min_order: Option<u8>,
    /// Spares all slab caches but these, such as ["kmalloc-64"]. Default: none is spared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_filter: Option<Vec<String>>,
    /// Fails the so-many-th request that isn't spared, whatever the other attributes say. Default 0: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail_nth: Option<u32>,
}

/// Why a table, or a text, makes no injector.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum FaultError {
    /// The text is none.
    #[error(transparent)]
    Text(#[from] fault::SpecError),
    /// A value that its attribute doesn't take, or an attribute that the class doesn't have.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// Nothing of the class could ever fail.
    #[error("[fault.{class}] would never fail anything: it needs probability or fail-nth, and times that is not 0")]
    NothingFails {
        /// The class.
        class: Class,
    },
    /// A cache filter names a cache of `kmalloc`'s that there is none of, so that nothing could fail.
    #[error("there is no slab cache '{name}'")]
    NoCache {
        /// The name.
        name: String,
    },
}

impl FaultError {
    /// What would mend it, where that can be said.
    pub fn help(&self) -> Option<String> {
        let classes = || Class::INJECTABLE.map(Class::name).to_vec();
        let (wrong, valid) = match self {
            Self::Text(fault::SpecError::UnknownClass { text, .. }) => (text.as_str(), classes()),
            Self::Text(fault::SpecError::NeverFails { .. }) => ("", classes()),
            Self::Text(fault::SpecError::UnknownAttribute { text, .. }) => {
                (text.as_str(), Attribute::ALL.map(Attribute::name).to_vec())
            }
            Self::Text(fault::SpecError::Missing { .. }) => {
                return Some("for instance --fault slab:probability=50,times=-1,ignore-gfp-wait=N".to_owned());
            }
            Self::NoCache { name } => (name.as_str(), CacheId::all().map(CacheId::name).collect()),
            _ => return None,
        };
        let near = nearest(wrong, valid.iter().copied());
        Some(near.map_or_else(|| format!("there is: {}", valid.join(", ")), |near| format!("did you mean '{near}'?")))
    }
}

impl FaultTable {
    /// What the table sets, as the attributes' files take it.
    fn settings(&self) -> impl Iterator<Item = (Attribute, String)> {
        let flag = |on: bool| if on { "Y" } else { "N" }.to_owned();
        let text = |number: Option<u32>| number.map(|number| number.to_string());
        let caches = self.cache_filter.as_ref().map(|names| names.join("+"));
        [
            (Attribute::Probability, text(self.probability)),
            (Attribute::Interval, self.interval.map(|number| number.to_string())),
            (Attribute::Times, self.times.map(|number| number.to_string())),
            (Attribute::Space, text(self.space)),
            (Attribute::Verbose, text(self.verbose.map(Into::into))),
            (Attribute::TaskFilter, self.task_filter.map(flag)),
            (Attribute::IgnoreGfpWait, self.ignore_gfp_wait.map(flag)),
            (Attribute::IgnoreGfpHighmem, self.ignore_gfp_highmem.map(flag)),
            (Attribute::MinOrder, text(self.min_order.map(Into::into))),
            (Attribute::CacheFilter, caches),
            (Attribute::FailNth, text(self.fail_nth)),
        ]
        .into_iter()
        .filter_map(|(attribute, value)| Some((attribute, value?)))
    }

    /// The injector; an error comes with the attribute that is to blame, if it is one.
    fn attr(&self, class: Class) -> Result<FaultAttr, (FaultError, Option<Attribute>)> {
        let mut attr = FaultAttr::new(class);
        for (attribute, value) in self.settings() {
            attr.set(attribute, &value).map_err(|error| (error.into(), Some(attribute)))?;
        }
        known_caches(&attr).map_err(|error| (error, Some(Attribute::CacheFilter)))?;
        if attr.can_strike() { Ok(attr) } else { Err((FaultError::NothingFails { class }, None)) }
    }
}

impl Faults {
    fn tables(&self) -> impl Iterator<Item = (Class, &FaultTable)> {
        let table = |class| match class {
            Class::Page => self.page.as_ref(),
            Class::Slab => self.slab.as_ref(),
            Class::Coherent => self.coherent.as_ref(),
            Class::Map => self.map.as_ref(),
            Class::SwiotlbSlot => self.swiotlb_slot.as_ref(),
            Class::Ioremap => self.ioremap.as_ref(),
            Class::IrqVector => self.irq_vector.as_ref(),
            Class::Mask => self.mask.as_ref(),
            Class::PerCpu => self.percpu.as_ref(),
            Class::Mmio => self.mmio.as_ref(),
            _ => None,
        };
        Class::INJECTABLE.into_iter().filter_map(move |class| Some((class, table(class)?)))
    }

    /// Whether nothing is made to fail.
    pub fn is_empty(&self) -> bool {
        self.tables().next().is_none()
    }

    /// The injectors.
    ///
    /// # Errors
    /// [`FaultError`]; a scenario that was loaded has none.
    ///
    /// ```
    /// let text = "[slab]\nprobability = 50\ntimes = -1\nignore-gfp-wait = false";
    /// let faults: lowzone::spec::Faults = toml::from_str(text).unwrap();
    /// assert_eq!(faults.spec().unwrap().to_string(), "slab:probability=50,times=-1,ignore-gfp-wait=N");
    /// ```
    pub fn spec(&self) -> Result<FaultSpec, FaultError> {
        self.tables().try_fold(FaultSpec::default(), |spec, (class, table)| {
            table.attr(class).map(|attr| spec.with(attr)).map_err(|(error, _)| error)
        })
    }
}

/// Checks every `[fault.CLASS]` table.
pub(super) fn check(faults: &Faults) -> Checked {
    for (class, table) in faults.tables() {
        if let Err((error, attribute)) = table.attr(class) {
            let at = KeyPath::default().key("fault").key(class.name());
            let path = attribute.map_or_else(|| at.clone(), |attribute| at.key(attribute.name()));
            return Err(Fault::new(Problem::Fault(error), vec![path]));
        }
    }
    Ok(())
}

/// Reads the texts of `--fault`, of which each class may be in one only.
///
/// # Errors
/// [`SpecError`] shows the text and the place in it.
///
/// ```
/// let texts = ["slab:probability=50,times=-1".to_owned(), "map:fail-nth=3".to_owned()];
/// assert_eq!(lowzone::spec::faults(&texts).unwrap().attrs().len(), 2);
/// let error = lowzone::spec::faults(&["slap:times=1".to_owned()]).unwrap_err();
/// assert_eq!(error.problem().help().as_deref(), Some("did you mean 'slab'?"));
/// ```
pub fn faults(texts: &[String]) -> Result<FaultSpec, SpecError> {
    let mut all = FaultSpec::default();
    for text in texts {
        let refused = |error, offset: usize| SpecError::in_argument("--fault", Problem::Fault(error), text, offset);
        let spec = FaultSpec::parse(text).map_err(|error| {
            let offset = error.offset();
            refused(error.into(), offset)
        })?;
        for attr in spec.attrs() {
            known_caches(attr).map_err(|error| refused(error, text.find("cache-filter").unwrap_or(0)))?;
            let class = attr.class();
            if all.attr(class).is_some() {
                let offset = text.find(class.name()).unwrap_or(0);
                return Err(refused(fault::SpecError::RepeatedClass { class, offset }.into(), offset));
            }
            all = all.with(attr.clone());
        }
    }
    Ok(all)
}

/// A filter whose caches don't exist would spare everything. A driver may create one of any name, so only what looks like
/// a name of `kmalloc`'s, or nearly, is held against its caches.
fn known_caches(attr: &FaultAttr) -> Result<(), FaultError> {
    let CacheFilter::Only(names) = &attr.cache_filter else { return Ok(()) };
    let names_of_kmalloc = || CacheId::all().map(CacheId::name);
    let misspelt = |name: &str| {
        let family = ["kmalloc-", "dma-kmalloc-"].iter().any(|family| name.starts_with(family));
        family || nearest(name, names_of_kmalloc()).is_some()
    };
    let known = |name: &str| names_of_kmalloc().any(|known| known == name) || !misspelt(name);
    match names.iter().find(|name| !known(name)) {
        Some(name) => Err(FaultError::NoCache { name: name.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_filter_takes_a_driver_s_caches_and_no_misspelt_one_of_kmalloc_s() {
        let attr = |name: &str| {
            let mut attr = FaultAttr::new(Class::Slab);
            attr.set(Attribute::CacheFilter, name).unwrap();
            known_caches(&attr)
        };
        for name in ["scullc", "request", "kmem_cache", "kmalloc-64", "kmalloc-rcl-8+dma-kmalloc-1k+scullc"] {
            assert_eq!(attr(name), Ok(()), "{name}");
        }
        for name in ["kmalloc-65", "kmaloc-64", "dma-kmalloc-3", "scullc+kmalloc-rcl-7"] {
            let wrong = name.rsplit('+').next().unwrap().to_owned();
            assert_eq!(attr(name), Err(FaultError::NoCache { name: wrong }));
        }
    }
}
