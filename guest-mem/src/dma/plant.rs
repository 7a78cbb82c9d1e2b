//! Faults planted into the DMA API: one rule broken on purpose, to see whether the long runs tell.
//!
//! Where a rule can be broken the model asks `planted!(NAME)`, which is `false` and nothing else but in this crate's own
//! tests. There a thread plants one for itself with [`with`]. Neighbours: `property`, which finds each of them. Left
//! out: two at once.

/// Whether a rule is broken.
#[cfg(not(test))]
macro_rules! planted {
    ($plant:ident) => {
        false
    };
}

#[cfg(test)]
macro_rules! planted {
    ($plant:ident) => {
        crate::dma::plant::is(crate::dma::plant::Plant::$plant)
    };
}

/// A rule that is broken.
#[cfg(test)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Plant {
    /// An unmap copies nothing back from the bounce slot.
    NoCopyBack,
    /// A map copies nothing into it.
    NoCopyIn,
    /// A sync for the device copies nothing into it.
    NoCopyAgain,
    /// Copies between slot and buffer are a byte short.
    CopyShort,
    /// They are a byte long.
    CopyLong,
    /// A sync of a part copies the whole.
    SyncWhole,
    /// An unmap copies back in spite of `DMA_ATTR_SKIP_CPU_SYNC`.
    SkipIgnored,
    /// A slot is not given back.
    SlotKept,
    /// A slot is given back at a sync, and again at the unmap.
    SlotTwice,
    /// A scatterlist that fails leaves its first entry where it was placed.
    RollbackShort,
    /// A scatterlist's entry joins the segment before it wherever that ends.
    MergeAny,
    /// What was synced for the CPU counts as the device's to the CPU's own accesses.
    WindowIgnored,
    /// A CPU's write looks at no other byte of its cache lines.
    NeighbourIgnored,
    /// What is out of the mask's reach is mapped in place.
    AnyMask,
    /// An unmap leaves the mapping in the ledger.
    EntryKept,
    /// The ledger does not remember the dead.
    DeadForgotten,
    /// The ledger lets the device read what it may write only, and the other way round.
    AnyDirection,
    /// The ledger lets the device have what the CPU was lent.
    AlwaysDevices,
    /// The ledger lets an access end a byte late.
    EndLate,
    /// The ledger does not see two mappings in one cache line.
    LinesApart,
    /// The CPU's accesses to what a device owns are not judged.
    CpuUnjudged,
    /// That a device has written is forgotten.
    UnseenForgotten,
    /// Frees of mapped memory are not judged.
    FreedQuietly,
    /// The IOMMU lets the device read and write what is mapped for the other.
    AnyAccess,
    /// An unmap of several pages leaves the last in the domain.
    PageKept,
    /// A lazy domain never flushes.
    NeverFlushed,
    /// Invalidation leaves the last line.
    InvalidateShort,
    /// Cleaning leaves the last line.
    CleanShort,
    /// Coherent memory is not cleared.
    NotZeroed,
    /// An access behind the IOMMU goes on in the first page's neighbour.
    OnePiece,
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Plant>> = const { std::cell::Cell::new(None) };
}

/// Whether this thread has planted that.
#[cfg(test)]
pub(crate) fn is(plant: Plant) -> bool {
    PLANTED.get() == Some(plant)
}

/// Does something with a rule broken.
#[cfg(test)]
pub(crate) fn with<T>(plant: Plant, act: impl FnOnce() -> T) -> T {
    PLANTED.set(Some(plant));
    let done = act();
    PLANTED.set(None);
    done
}
