//! Seeded bugs: what driver authors really get wrong, one at a time, to see whether the lab finds it.
//!
//! Compiled only with `--cfg lowzone_mutants`: the shipped program has none of it. A driver asks [`is`] at the place
//! of the bug. Which one is in is said by the environment variable [`VARIABLE`] once for the whole process, so that
//! the children of a campaign have it too. Neighbours: `guest_mem::dma::misuse`, for what Rust's types prevent.
//! Left out: two bugs at once.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use thiserror::Error;

/// The environment variable that names the bug.
pub const VARIABLE: &str = "LOWZONE_MUTANT";

/// A seeded bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// Coherent memory that is used without asking whether there is any.
    MissingNullCheck,
    /// A `goto` chain with one label missing.
    ThirdUnwindLeak,
    /// A status that is never looked at.
    FalseSuccess,
    /// A buffer that its error path frees and its retry uses.
    DoubleFreeInRetry,
    /// `dma_map_single` without `dma_mapping_error`.
    MappingErrorUnchecked,
    /// Memory given back while the device still has it.
    FreeBeforeStop,
    /// `request_irq` without `free_irq`.
    IrqNotFreed,
    /// An allocation that may sleep, in hardirq context.
    GfpKernelInHandler,
    /// A length at the free that is not the one at the allocation.
    CoherentWrongSize,
    /// A removal that forgets the device.
    RemoveWithoutStop,
}

/// A name that no seeded bug has.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{VARIABLE}: no seeded bug is called '{name}': {}", Mutant::ALL.map(Mutant::name).join(", "))]
pub struct UnknownMutant {
    /// What was given.
    pub name: String,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::MissingNullCheck,
        Self::ThirdUnwindLeak,
        Self::FalseSuccess,
        Self::DoubleFreeInRetry,
        Self::MappingErrorUnchecked,
        Self::FreeBeforeStop,
        Self::IrqNotFreed,
        Self::GfpKernelInHandler,
        Self::CoherentWrongSize,
        Self::RemoveWithoutStop,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MissingNullCheck => "missing-null-check",
            Self::ThirdUnwindLeak => "third-unwind-leak",
            Self::FalseSuccess => "false-success",
            Self::DoubleFreeInRetry => "double-free-in-retry",
            Self::MappingErrorUnchecked => "mapping-error-unchecked",
            Self::FreeBeforeStop => "free-before-stop",
            Self::IrqNotFreed => "irq-not-freed",
            Self::GfpKernelInHandler => "gfp-kernel-in-handler",
            Self::CoherentWrongSize => "coherent-wrong-size",
            Self::RemoveWithoutStop => "remove-without-stop",
        }
    }

    /// What is wrong, in one line.
    pub const fn story(self) -> &'static str {
        match self {
            Self::MissingNullCheck => "dma_alloc_coherent's result is cleared without asking whether it is NULL",
            Self::ThirdUnwindLeak => "of registers, ring, tables and headers, a failed probe forgets the third",
            Self::FalseSuccess => "the status byte is ignored: every completion is a success",
            Self::DoubleFreeInRetry => "a failed mapping frees the data, and the same data is tried again",
            Self::MappingErrorUnchecked => "nobody asks dma_mapping_error: the device gets whatever came back",
            Self::FreeBeforeStop => "remove frees the rings, then resets the device",
            Self::IrqNotFreed => "the interrupt of config changes is requested and never freed",
            Self::GfpKernelInHandler => "the interrupt handler allocates with GFP_KERNEL",
            Self::CoherentWrongSize => "the ring is freed without the two bytes that EVENT_IDX added to it",
            Self::RemoveWithoutStop => "remove neither waits for requests nor resets the device",
        }
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mutant {
    type Err = UnknownMutant;

    fn from_str(name: &str) -> Result<Self, UnknownMutant> {
        let found = Self::ALL.into_iter().find(|mutant| mutant.name() == name);
        found.ok_or_else(|| UnknownMutant { name: name.to_owned() })
    }
}

/// The bug that is in, read from the environment at the first call; none if the variable is unset or empty.
///
/// # Errors
/// [`UnknownMutant`].
pub fn chosen() -> Result<Option<Mutant>, UnknownMutant> {
    static CHOSEN: OnceLock<Result<Option<Mutant>, UnknownMutant>> = OnceLock::new();
    let read = || match std::env::var_os(VARIABLE) {
        Some(name) if !name.is_empty() => name.to_string_lossy().parse().map(Some),
        _ => Ok(None),
    };
    CHOSEN.get_or_init(read).clone()
}

/// Whether this bug is in.
pub fn is(mutant: Mutant) -> bool {
    chosen() == Ok(Some(mutant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_an_unknown_one_is_told_with_those_there_are() {
        for mutant in Mutant::ALL {
            assert_eq!(mutant.name().parse(), Ok(mutant));
        }
        let error = "irq-freed".parse::<Mutant>().unwrap_err().to_string();
        assert!(error.contains("'irq-freed'") && error.contains("irq-not-freed"), "{error}");
    }
}
