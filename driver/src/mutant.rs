//! Seeded bugs: what driver authors really get wrong, one at a time, to see whether the lab finds it.
//!
//! Most are bugs of Linux drivers, by the row of the project's list of them ([`Mutant::row`]); the rest are made by
//! hand, two of them fixes that went too far. Compiled only with `--cfg lowzone_mutants`: the shipped program has none
//! of it. A driver asks [`is`] at the place of the bug. Which one is in is said by the environment variable
//! [`VARIABLE`] once for the whole process, so that the children of a campaign have it too. Neighbours:
//! `guest_mem::dma::misuse`, for what Rust's types prevent. Left out: two bugs at once.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use thiserror::Error;

/// The environment variable that names the bug.
pub const VARIABLE: &str = "LOWZONE_MUTANT";

macro_rules! mutants {
    ($($variant:ident = $name:literal, $row:literal, $driver:literal, $machine:literal, $story:literal;)*) => {
        /// A seeded bug.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Mutant {
            $(#[doc = concat!("In ", $driver, ": ", $story, ".")] $variant,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The row of the list of real bugs; `None` if it is made by hand.
            pub const fn row(self) -> Option<u32> {
                let row = match self { $(Self::$variant => $row,)* };
                if row == 0 { None } else { Some(row) }
            }

            /// Where it is: a driver, or the part of the kernel.
            pub const fn driver(self) -> &'static str {
                match self { $(Self::$variant => $driver,)* }
            }

            /// Which machine shows it.
            pub const fn machine(self) -> &'static str {
                match self { $(Self::$variant => $machine,)* }
            }

            /// What is wrong, in one line.
            pub const fn story(self) -> &'static str {
                match self { $(Self::$variant => $story,)* }
            }
        }
    };
}

// Name, row of the list (0: made by hand), place, machine, what is wrong.
mutants! {
    MissingNullCheck = "missing-null-check", 1, "blk", "any",
        "dma_alloc_coherent's result is cleared without asking whether it is NULL";
    MissingCheckInIoctl = "missing-check-in-ioctl", 3, "blk", "any",
        "a discard's list of ranges is filled in without asking whether kmalloc gave one";
    MapErrorLeak = "map-error-leak", 9, "net", "any",
        "a receive buffer whose mapping fails is forgotten";
    ThirdUnwindLeak = "third-unwind-leak", 12, "blk", "any",
        "of registers, ring, tables and headers, a failed probe forgets the third";
    UninitSkipUnmap = "uninit-skip-unmap", 16, "net", "any",
        "whether a packet's pieces are unmapped is read from memory that nobody wrote";
    GfpKernelUnderLock = "gfp-kernel-under-lock", 21, "net", "any",
        "an allocation with GFP_KERNEL under the queue's spinlock";
    GfpKernelInTimer = "gfp-kernel-in-timer", 24, "net", "any",
        "the refill that waited runs in a timer, with GFP_KERNEL";
    DoubleFreeOnMapError = "double-free-on-map-error", 29, "net", "any",
        "a receive buffer whose mapping fails is freed, and again with its slot";
    DoubleFreeInRetry = "double-free-in-retry", 31, "blk", "any",
        "a failed mapping frees the data, and the same data is tried again";
    RemoveFreesPrivateFirst = "remove-frees-private-first", 32, "edu", "any",
        "remove frees its private memory, then reads from it where the registers are";
    TouchAfterXmitError = "touch-after-xmit-error", 36, "net", "any",
        "a packet that can't be mapped is freed, then read for its time stamp";
    MappingErrorUnchecked = "mapping-error-unchecked", 38, "blk", "any",
        "nobody asks dma_mapping_error: the device gets whatever came back";
    CoherentWrongSize = "coherent-wrong-size", 41, "blk", "any",
        "the ring is freed without the two bytes that EVENT_IDX added to it";
    UnmapUnpaddedLength = "unmap-unpadded-length", 44, "net", "any",
        "a piece is mapped padded to whole words, and unmapped with the length it had before";
    UnmapWrongDirection = "unmap-wrong-direction", 45, "blk", "any",
        "what is lost at a reset is unmapped as if the device had written it";
    NeverUnmapped = "never-unmapped", 48, "net", "any",
        "the header of a packet is never unmapped, so that it is not unmapped twice";
    UnmapUnguarded = "unmap-unguarded", 50, "blk", "any",
        "a request without data is unmapped like one that has some";
    FreeAfterLateOpen = "free-after-late-open", 51, "net", "any",
        "an open that fails late frees buffers and rings of a device that runs";
    NoResetAtShutdown = "no-reset-at-shutdown", 52, "blk", "any",
        "shutdown leaves the device running into the next kernel's memory";
    StopDoesNotWait = "stop-does-not-wait", 53, "edu", "any",
        "a transfer whose time is up is unmapped while the engine still moves it";
    DmaToStack = "dma-to-stack", 56, "edu", "any",
        "a buffer on the caller's stack is mapped";
    MaskTooWide = "mask-too-wide", 59, "blk", "RAM above 4 GiB",
        "a device that decodes 32 bits, whose driver says 64";
    MaskOverridden = "mask-overridden", 61, "edu", "RAM above 256 MiB",
        "the mask that the device needs, overridden by what it claims";
    UnmapSampledOnce = "unmap-sampled-once", 64, "net", "any that bounces",
        "whether pieces need an unmap is asked once, for the first of them";
    MissingSyncForCpu = "missing-sync-for-cpu", 65, "net", "any",
        "a received header is read while the device still owns its buffer";
    SwiotlbInfoLeak = "swiotlb-info-leak", 68, "swiotlb", "bouncing",
        "a slot for the device to write into begins with what was in it before";
    UsedReadUnordered = "used-read-unordered", 69, "virtio", "weak",
        "a used element is read without a barrier after the index that tells of it";
    KfreeOfKvmalloc = "kfree-of-kvmalloc", 73, "scull", "any",
        "what kvmalloc gave is freed by kfree";
    ElementUndersized = "element-undersized", 75, "blk", "any",
        "a list of ranges is given half the bytes that are written into it";
    DmaPoolLeak = "dma-pool-leak", 76, "edu", "any",
        "a probe that fails after dma_pool_create forgets the pool";
    IoremapLeak = "ioremap-leak", 77, "blk", "any",
        "a probe that fails forgets the mapping of its registers";
    IounmapBeforeStop = "iounmap-before-stop", 78, "edu", "any",
        "remove unmaps the registers, then stops the device through them";
    PercpuNull = "percpu-null", 80, "net", "any",
        "alloc_percpu's NULL is offset for this CPU and used";
    PercpuPreemptible = "percpu-preemptible", 82, "net", "any",
        "this_cpu_ptr where the task may move to another CPU";
    DescriptorOffByOne = "descriptor-off-by-one", 84, "net", "any",
        "room for as many descriptors as a packet has pieces, and not for one more";
    FalseSuccess = "false-success", 0, "blk", "any",
        "the status byte is ignored: every completion is a success";
    FreeBeforeStop = "free-before-stop", 0, "blk", "any",
        "remove frees the rings, then resets the device";
    UnmapBeforeStop = "unmap-before-stop", 0, "blk", "any",
        "remove unmaps what is in flight, then resets the device";
    IrqNotFreed = "irq-not-freed", 0, "blk", "any",
        "the interrupt of config changes is requested and never freed";
    GfpKernelInHandler = "gfp-kernel-in-handler", 0, "blk", "any",
        "the interrupt handler allocates with GFP_KERNEL";
    RemoveWithoutStop = "remove-without-stop", 0, "blk", "any",
        "remove neither waits for requests nor resets the device";
    CheckThenSleep = "check-then-sleep", 0, "scull", "any",
        "a slot is seen empty, an allocation sleeps, the slot is filled whoever filled it meanwhile";
    UnwindFreesTwice = "unwind-frees-twice", 0, "blk", "any",
        "the fix of third-unwind-leak: a failed probe frees the tables, and again with the ring";
    RingsNeverFreed = "rings-never-freed", 0, "blk", "any",
        "the fix of free-before-stop: remove frees no rings at all";
}

impl Mutant {
    /// Of a bug that only some orders of events show, or that goes with them: its driver's scenario, and whether memory is
    /// weak there.
    pub const fn race(self) -> Option<(&'static str, bool)> {
        match self {
            Self::RemoveFreesPrivateFirst | Self::StopDoesNotWait | Self::IounmapBeforeStop => {
                Some(("edu/selftest", false))
            }
            Self::FreeAfterLateOpen => Some(("net/source", false)),
            Self::UsedReadUnordered => Some(("block/low-zone", true)),
            Self::UnmapBeforeStop => Some(("block/low-zone", false)),
            Self::CheckThenSleep => Some(("alloc/scullc", false)),
            _ => None,
        }
    }
}

/// A name that no seeded bug has.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{VARIABLE}: no seeded bug is called '{name}': {}", known())]
pub struct UnknownMutant {
    /// What was given.
    pub name: String,
}

fn known() -> String {
    Mutant::ALL.iter().map(|mutant| mutant.name()).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mutant {
    type Err = UnknownMutant;

    fn from_str(name: &str) -> Result<Self, UnknownMutant> {
        let found = Self::ALL.iter().copied().find(|mutant| mutant.name() == name);
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
        for &mutant in Mutant::ALL {
            assert_eq!(mutant.name().parse(), Ok(mutant));
        }
        let error = "irq-freed".parse::<Mutant>().unwrap_err().to_string();
        assert!(error.contains("'irq-freed'") && error.contains("irq-not-freed"), "{error}");
    }
}
