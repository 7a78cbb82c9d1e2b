//! The text of a set of injectors, as `--fault SPEC` takes it, and the set.
//!
//! ```text
//! spec  = part { ";" part }            slab:probability=100,times=3;page:fail-nth=7,min-order=0
//! part  = class ":" set { "," set }
//! set   = attribute "=" value
//! ```
//!
//! Classes are those of [`Class::INJECTABLE`], attributes those of [`Attribute`]; blanks around a piece don't count.
//! A part that could never fail anything is refused. Neighbours: [`FaultAttr`] decides, `attribute` reads values.
//! Left out: faults in chosen places, which are the campaign's.

use std::fmt;
use std::str::FromStr;

use super::{Attribute, FaultAttr, Forced, Request, ValueError};
use crate::env::Class;

/// Why a text is no [`FaultSpec`]; offsets are in bytes from its begin.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpecError {
    /// A piece is empty.
    #[error("{what} is missing at offset {offset}")]
    Missing {
        /// What should be there.
        what: &'static str,
        /// Where.
        offset: usize,
    },
    /// No class has this name.
    #[error("there is no class `{text}` (offset {offset})")]
    UnknownClass {
        /// What was written.
        text: String,
        /// Where.
        offset: usize,
    },
    /// A class whose points can be reordered but never fail.
    #[error("a {class} never fails (offset {offset})")]
    NeverFails {
        /// The class.
        class: Class,
        /// Where.
        offset: usize,
    },
    /// A class comes twice.
    #[error("the class {class} comes a second time at offset {offset}")]
    RepeatedClass {
        /// The class.
        class: Class,
        /// Where it comes again.
        offset: usize,
    },
    /// No attribute has this name.
    #[error("there is no attribute `{text}` (offset {offset})")]
    UnknownAttribute {
        /// What was written.
        text: String,
        /// Where.
        offset: usize,
    },
    /// An attribute is set twice for one class.
    #[error("{attribute} is set a second time at offset {offset}")]
    RepeatedAttribute {
        /// The attribute.
        attribute: Attribute,
        /// Where it is set again.
        offset: usize,
    },
    /// An attribute without a value.
    #[error("{attribute} has no value (offset {offset}): write {attribute}=VALUE")]
    NoValue {
        /// The attribute.
        attribute: Attribute,
        /// Where it is.
        offset: usize,
    },
    /// A value that the attribute doesn't take, or an attribute that the class doesn't have.
    #[error("{problem} (offset {offset})")]
    Value {
        /// What is wrong with it.
        problem: ValueError,
        /// Where the value is, or the attribute.
        offset: usize,
    },
    /// Nothing of the class can ever fail.
    #[error("{class} would never fail (offset {offset}): it needs probability or fail-nth, and times that is not 0")]
    NothingFails {
        /// The class.
        class: Class,
        /// Where its part begins.
        offset: usize,
    },
}

impl SpecError {
    /// Where in the text it is.
    pub const fn offset(&self) -> usize {
        match self {
            Self::Missing { offset, .. }
            | Self::UnknownClass { offset, .. }
            | Self::NeverFails { offset, .. }
            | Self::RepeatedClass { offset, .. }
            | Self::UnknownAttribute { offset, .. }
            | Self::RepeatedAttribute { offset, .. }
            | Self::NoValue { offset, .. }
            | Self::Value { offset, .. }
            | Self::NothingFails { offset, .. } => *offset,
        }
    }
}

/// Injectors of several classes, one of each at most. The default fails nothing.
///
/// ```
/// use lowzone_guest_mem::env::Class;
/// use lowzone_guest_mem::fault::{FaultSpec, Request};
/// use lowzone_guest_mem::gfp::GFP_ATOMIC;
/// let mut spec = FaultSpec::parse("slab: probability=100, interval=2; page: fail-nth=7")?;
/// assert_eq!(spec.to_string(), "slab:probability=100,interval=2;page:fail-nth=7");
/// let request = Request::slab(64, GFP_ATOMIC, None);
/// assert_eq!([0; 4].map(|bits| spec.should_fail(&request, &mut || bits)), [false, true, false, false]);
/// assert_eq!(spec.attr(Class::Slab).map(|attr| attr.times), Some(0));
/// let error = FaultSpec::parse("slap:times=1").map_err(|error| error.to_string());
/// assert_eq!(error, Err("there is no class `slap` (offset 0)".into()));
/// # Ok::<(), lowzone_guest_mem::fault::SpecError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FaultSpec {
    attrs: Vec<FaultAttr>,
}

impl FaultSpec {
    /// Reads a text.
    ///
    /// # Errors
    /// [`SpecError`] for the first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let mut spec = Self::default();
        for (offset, part) in pieces(text, 0, ';') {
            let attr = part_at(offset, part)?;
            if spec.attr(attr.class()).is_some() {
                return Err(SpecError::RepeatedClass { class: attr.class(), offset });
            }
            spec.attrs.push(attr);
        }
        Ok(spec)
    }

    /// The set with this injector in it, in the place of one of its class.
    #[must_use]
    pub fn with(mut self, attr: FaultAttr) -> Self {
        match self.attrs.iter_mut().find(|old| old.class() == attr.class()) {
            Some(old) => *old = attr,
            None => self.attrs.push(attr),
        }
        self
    }

    /// Its injectors, in the order in which they were written.
    pub fn attrs(&self) -> &[FaultAttr] {
        &self.attrs
    }

    /// The injector of a class.
    pub fn attr(&self, class: Class) -> Option<&FaultAttr> {
        self.attrs.iter().find(|attr| attr.class() == class)
    }

    /// Whether it has no injector.
    pub const fn is_empty(&self) -> bool {
        self.attrs.is_empty()
    }

    /// Decides a request by the injector of its class: see [`FaultAttr::should_fail`].
    ///
    /// Coherent memory is pages, so a request for it that passes is put to the injector of pages too, as in Linux.
    pub fn should_fail(&mut self, request: &Request, random: &mut dyn FnMut() -> u32) -> bool {
        self.inject(request, random).is_some()
    }

    /// [`FaultSpec::should_fail`], telling of a failure what the log gets: see [`FaultAttr::inject`].
    pub fn inject(&mut self, request: &Request, random: &mut dyn FnMut() -> u32) -> Option<Forced> {
        let own = self.ask(request, random);
        match request.class {
            Class::Coherent if own.is_none() => self.ask(&Request { class: Class::Page, ..*request }, random),
            Class::Ioremap if own.is_none() => self.ask(&Request::of_descriptor().by(request.caller), random),
            _ => own,
        }
    }

    fn ask(&mut self, request: &Request, random: &mut dyn FnMut() -> u32) -> Option<Forced> {
        self.attrs.iter_mut().find(|attr| attr.class() == request.class)?.inject(request, random)
    }
}

impl fmt::Display for FaultSpec {
    /// The text of the present values: of a set that decided nothing yet, one that parses to an equal set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, attr) in self.attrs.iter().enumerate() {
            f.write_str(if at > 0 { ";" } else { "" })?;
            write!(f, "{attr}")?;
        }
        Ok(())
    }
}

impl FromStr for FaultSpec {
    type Err = SpecError;

    /// [`FaultSpec::parse`].
    fn from_str(text: &str) -> Result<Self, SpecError> {
        Self::parse(text)
    }
}

/// The pieces of a text without the blanks around them, each with its offset; `offset` is that of the text.
fn pieces(text: &str, offset: usize, by: char) -> impl Iterator<Item = (usize, &str)> {
    let mut next = offset;
    text.split(by).map(move |piece| {
        let begin = next;
        next += piece.len() + by.len_utf8();
        trimmed(begin, piece)
    })
}

fn trimmed(offset: usize, text: &str) -> (usize, &str) {
    let rest = text.trim_start();
    (offset + text.len() - rest.len(), rest.trim_end())
}

fn part_at(offset: usize, part: &str) -> Result<FaultAttr, SpecError> {
    let (name, sets) = match part.split_once(':') {
        Some((name, sets)) => (name, Some((offset + name.len() + 1, sets))),
        None => (part, None),
    };
    let class = class_at(offset, name.trim_end())?;
    let mut attr = FaultAttr::new(class);
    let mut seen = [false; Attribute::ALL.len()];
    if let Some((begin, sets)) = sets {
        for (at, set) in pieces(sets, begin, ',') {
            set_at(&mut attr, &mut seen, at, set)?;
        }
    }
    if attr.can_strike() { Ok(attr) } else { Err(SpecError::NothingFails { class, offset }) }
}

fn class_at(offset: usize, name: &str) -> Result<Class, SpecError> {
    if name.is_empty() {
        return Err(SpecError::Missing { what: "a class", offset });
    }
    match name.parse() {
        Ok(class) if Class::INJECTABLE.contains(&class) => Ok(class),
        Ok(class) => Err(SpecError::NeverFails { class, offset }),
        Err(_) => Err(SpecError::UnknownClass { text: name.to_owned(), offset }),
    }
}

fn set_at(
    attr: &mut FaultAttr,
    seen: &mut [bool; Attribute::ALL.len()],
    offset: usize,
    set: &str,
) -> Result<(), SpecError> {
    if set.is_empty() {
        return Err(SpecError::Missing { what: "an attribute", offset });
    }
    let (name, value) = match set.split_once('=') {
        Some((name, value)) => (name.trim_end(), Some(trimmed(offset + name.len() + 1, value))),
        None => (set, None),
    };
    let Some(attribute) = Attribute::named(name) else {
        return Err(SpecError::UnknownAttribute { text: name.to_owned(), offset });
    };
    if std::mem::replace(&mut seen[attribute as usize], true) {
        return Err(SpecError::RepeatedAttribute { attribute, offset });
    }
    let (at, value) = value.ok_or(SpecError::NoValue { attribute, offset })?;
    attr.set(attribute, value).map_err(|problem| match problem {
        ValueError::Foreign { .. } => SpecError::Value { problem, offset },
        _ => SpecError::Value { problem, offset: at },
    })
}
