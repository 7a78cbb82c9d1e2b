//! `Telling`: what a story's part is given, and what it puts down.
//!
//! A fact is a line of the result. It must be the same in every run of a seed and in both worlds: sizes, zones, names,
//! counts, errnos, but no addresses and no times. Neighbours: `result`, whose rows it fills.

use std::cell::RefCell;
use std::fmt::{self, Display};

use lowzone_guest_mem::Cpu;

use crate::result::FactRow;

/// Why a story ended early.
///
/// Any error of the kernel's becomes one with `?`: the story could not go on, and says so, which is right under a
/// fault. A fact that is not as expected never is.
#[derive(Debug)]
pub(crate) enum StoryError {
    /// The kernel refused something, in its words.
    Failed(String),
    /// A fact is not what it must be; it is put down as such.
    Unexpected(String),
}

impl Display for StoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(why) => write!(f, "could not go on: {why}"),
            Self::Unexpected(what) => write!(f, "{what} is not as expected"),
        }
    }
}

impl<E: std::error::Error> From<E> for StoryError {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

/// One CPU's part in a story.
pub(crate) struct Telling<'a, 'w> {
    cpu: &'a Cpu<'w>,
    mistake: Option<&'a str>,
    facts: RefCell<Vec<FactRow>>,
}

impl<'a, 'w> Telling<'a, 'w> {
    pub(crate) fn new(cpu: &'a Cpu<'w>, mistake: Option<&'a str>) -> Self {
        Self { cpu, mistake, facts: RefCell::default() }
    }

    /// The CPU that tells.
    pub(crate) fn cpu(&self) -> &'a Cpu<'w> {
        self.cpu
    }

    /// Whether this mistake is to be made.
    pub(crate) fn makes(&self, mistake: &str) -> bool {
        self.mistake == Some(mistake)
    }

    /// Puts down what was seen, whatever it is.
    pub(crate) fn fact(&self, what: impl Display, seen: impl Display) {
        self.put(what.to_string(), None, seen.to_string());
    }

    /// Puts down what was seen, and holds it against what must be seen.
    ///
    /// # Errors
    /// [`StoryError::Unexpected`] if it is something else.
    pub(crate) fn expect(
        &self,
        what: impl Display,
        expected: impl Display,
        seen: impl Display,
    ) -> Result<(), StoryError> {
        let (what, expected, seen) = (what.to_string(), expected.to_string(), seen.to_string());
        let right = expected == seen;
        self.put(what.clone(), Some(expected), seen);
        if right { Ok(()) } else { Err(StoryError::Unexpected(what)) }
    }

    fn put(&self, what: String, expected: Option<String>, seen: String) {
        self.facts.borrow_mut().push(FactRow { what, expected, seen });
    }

    /// What was put down.
    pub(crate) fn into_facts(self) -> Vec<FactRow> {
        self.facts.into_inner()
    }
}
