//! The attributes by name: what each takes, which class has it, how it is written.
//!
//! Names are those of the files in Linux's debugfs (`/sys/kernel/debug/failslab/ignore-gfp-wait`) and, for
//! `fail-nth`, in `/proc`. Neighbours: [`super::FaultAttr`] holds the values, `spec` and scenario files set them.
//! Left out: `verbose_ratelimit_*` and the `stacktrace` attributes.

use std::fmt;
use std::ops::RangeInclusive;

use super::{CacheFilter, FaultAttr};
use crate::buddy::MAX_ORDER;
use crate::env::Class;

/// An attribute of an injector.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Attribute {
    /// [`FaultAttr::probability`], 0 to 2^32 - 1.
    Probability,
    /// [`FaultAttr::interval`], 0 to 2^64 - 1.
    Interval,
    /// [`FaultAttr::times`], -1 to 2^31 - 1.
    Times,
    /// [`FaultAttr::space`], 0 to 2^31 - 1.
    Space,
    /// [`FaultAttr::verbose`], 0 to 2.
    Verbose,
    /// [`FaultAttr::task_filter`], Y or N.
    TaskFilter,
    /// [`FaultAttr::ignore_gfp_wait`], Y or N.
    IgnoreGfpWait,
    /// [`FaultAttr::ignore_gfp_highmem`], Y or N.
    IgnoreGfpHighmem,
    /// [`FaultAttr::min_order`], 0 to 10.
    MinOrder,
    /// [`FaultAttr::cache_filter`], N or names of caches joined by `+`.
    CacheFilter,
    /// [`FaultAttr::fail_nth`], 0 to 2^32 - 1.
    FailNth,
}

/// Why an attribute didn't get its value; it keeps the old one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ValueError {
    /// Not a number, or one out of range.
    #[error("{attribute} takes a whole number from {least} to {most}, not `{text}`")]
    Number {
        /// The attribute.
        attribute: Attribute,
        /// What was written.
        text: String,
        /// The smallest number it takes.
        least: i128,
        /// The largest.
        most: i128,
    },
    /// Neither yes nor no.
    #[error("{attribute} takes Y or N, not `{text}`")]
    Flag {
        /// The attribute.
        attribute: Attribute,
        /// What was written.
        text: String,
    },
    /// Names of caches that no cache has: empty, or with a character that separates. A bare `Y` flags no cache.
    #[error("cache-filter takes N or the names of slab caches joined by +, as kmalloc-64+kmalloc-128, not `{text}`")]
    Caches {
        /// What was written.
        text: String,
    },
    /// An attribute that means nothing to the class.
    #[error("{class} has no {attribute}")]
    Foreign {
        /// The attribute.
        attribute: Attribute,
        /// The class.
        class: Class,
    },
}

impl Attribute {
    /// Every attribute, in the order in which they are written.
    pub const ALL: [Self; 11] = [
        Self::Probability,
        Self::Interval,
        Self::Times,
        Self::Space,
        Self::Verbose,
        Self::TaskFilter,
        Self::IgnoreGfpWait,
        Self::IgnoreGfpHighmem,
        Self::MinOrder,
        Self::CacheFilter,
        Self::FailNth,
    ];

    /// Its name, with Linux's hyphens.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Probability => "probability",
            Self::Interval => "interval",
            Self::Times => "times",
            Self::Space => "space",
            Self::Verbose => "verbose",
            Self::TaskFilter => "task-filter",
            Self::IgnoreGfpWait => "ignore-gfp-wait",
            Self::IgnoreGfpHighmem => "ignore-gfp-highmem",
            Self::MinOrder => "min-order",
            Self::CacheFilter => "cache-filter",
            Self::FailNth => "fail-nth",
        }
    }

    /// The attribute of this name, exactly.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|attribute| attribute.name() == name)
    }

    /// Whether a class has it: masks, orders and caches exist only where memory is allocated, and vectors and masks
    /// have no size.
    pub const fn applies_to(self, class: Class) -> bool {
        match self {
            Self::IgnoreGfpWait => matches!(class, Class::Page | Class::Slab | Class::Coherent),
            Self::IgnoreGfpHighmem | Self::MinOrder => matches!(class, Class::Page | Class::Coherent),
            Self::CacheFilter => matches!(class, Class::Slab),
            Self::Space => !matches!(class, Class::IrqVector | Class::Mask),
            _ => true,
        }
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FaultAttr {
    /// Sets an attribute from its text, as a write to its file in debugfs does.
    ///
    /// Numbers are decimal; yes and no are `Y y 1 on` and `N n 0 off`.
    ///
    /// ```
    /// use lowzone_guest_mem::env::Class;
    /// use lowzone_guest_mem::fault::{Attribute, FaultAttr, ValueError};
    /// let mut attr = FaultAttr::new(Class::Slab);
    /// attr.set(Attribute::IgnoreGfpWait, "N")?;
    /// assert!(!attr.ignore_gfp_wait);
    /// let error = attr.set(Attribute::MinOrder, "1");
    /// assert_eq!(error, Err(ValueError::Foreign { attribute: Attribute::MinOrder, class: Class::Slab }));
    /// # Ok::<(), ValueError>(())
    /// ```
    ///
    /// # Errors
    /// [`ValueError`]; nothing is changed then.
    pub fn set(&mut self, attribute: Attribute, text: &str) -> Result<(), ValueError> {
        const INT: i128 = i32::MAX as i128;
        const LONG: i128 = u32::MAX as i128;
        if !attribute.applies_to(self.class()) {
            return Err(ValueError::Foreign { attribute, class: self.class() });
        }
        match attribute {
            Attribute::Probability => self.probability = number(attribute, text, 0..=LONG)?,
            Attribute::Interval => self.interval = number(attribute, text, 0..=u64::MAX.into())?,
            Attribute::Times => self.times = number(attribute, text, -1..=INT)?,
            Attribute::Space => self.space = number(attribute, text, 0..=INT)?,
            Attribute::Verbose => self.verbose = number(attribute, text, 0..=2)?,
            Attribute::TaskFilter => self.task_filter = yes_or_no(attribute, text)?,
            Attribute::IgnoreGfpWait => self.ignore_gfp_wait = yes_or_no(attribute, text)?,
            Attribute::IgnoreGfpHighmem => self.ignore_gfp_highmem = yes_or_no(attribute, text)?,
            Attribute::MinOrder => self.min_order = number(attribute, text, 0..=MAX_ORDER.into())?,
            Attribute::CacheFilter => self.cache_filter = caches(text)?,
            Attribute::FailNth => self.fail_nth = number(attribute, text, 0..=LONG)?,
        }
        Ok(())
    }

    /// An attribute's present value, as its file in debugfs shows it; of a cache filter the names.
    pub fn show(&self, attribute: Attribute) -> String {
        let flag = |on| if on { "Y" } else { "N" }.to_owned();
        match attribute {
            Attribute::Probability => self.probability.to_string(),
            Attribute::Interval => self.interval.to_string(),
            Attribute::Times => self.times.to_string(),
            Attribute::Space => self.space.to_string(),
            Attribute::Verbose => self.verbose.to_string(),
            Attribute::TaskFilter => flag(self.task_filter),
            Attribute::IgnoreGfpWait => flag(self.ignore_gfp_wait),
            Attribute::IgnoreGfpHighmem => flag(self.ignore_gfp_highmem),
            Attribute::MinOrder => self.min_order.to_string(),
            Attribute::CacheFilter => match &self.cache_filter {
                CacheFilter::Only(names) if !names.is_empty() => names.join("+"),
                filter => flag(*filter != CacheFilter::Off),
            },
            Attribute::FailNth => self.fail_nth.to_string(),
        }
    }
}

impl fmt::Display for FaultAttr {
    /// The class and the attributes that are not as at boot: `slab:probability=100,times=3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let boot = Self::new(self.class());
        write!(f, "{}", self.class())?;
        let mut before = ':';
        for attribute in Attribute::ALL {
            let value = self.show(attribute);
            if value != boot.show(attribute) {
                write!(f, "{before}{attribute}={value}")?;
                before = ',';
            }
        }
        Ok(())
    }
}

fn number<T: TryFrom<i128>>(attribute: Attribute, text: &str, range: RangeInclusive<i128>) -> Result<T, ValueError> {
    let value = text.parse().ok().filter(|value| range.contains(value));
    value.and_then(|value| T::try_from(value).ok()).ok_or_else(|| ValueError::Number {
        attribute,
        text: text.to_owned(),
        least: *range.start(),
        most: *range.end(),
    })
}

fn yes_or_no(attribute: Attribute, text: &str) -> Result<bool, ValueError> {
    flag(text).ok_or_else(|| ValueError::Flag { attribute, text: text.to_owned() })
}

fn flag(text: &str) -> Option<bool> {
    match text {
        "Y" | "y" | "1" | "on" => Some(true),
        "N" | "n" | "0" | "off" => Some(false),
        _ => None,
    }
}

fn caches(text: &str) -> Result<CacheFilter, ValueError> {
    let names = || text.split('+').map(str::trim);
    let wrong = |name: &str| name.is_empty() || name.contains([',', ';']);
    match flag(text) {
        Some(false) => Ok(CacheFilter::Off),
        None if !names().any(wrong) => Ok(CacheFilter::Only(names().map(str::to_owned).collect())),
        _ => Err(ValueError::Caches { text: text.to_owned() }),
    }
}
