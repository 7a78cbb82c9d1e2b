//! One barrier or lock that isn't there, to see whether the lab tells.
//!
//! A call that can be taken out asks [`here`]. The answer is no, unless the build has `--cfg lowzone_mutants` and the
//! environment variable `LOWZONE_REMOVED` names the caller's line, such as `driver/src/virtio/ring.rs:264`, once for the
//! whole process. Neighbours: `cpu`, whose barriers ask; `lock`. Left out: several at once;
//! syncs, of which the virtio drivers have none.

/// Whether the caller's call is the one that isn't there.
#[cfg(not(lowzone_mutants))]
#[inline]
pub(crate) const fn here() -> bool {
    false
}

/// Whether the caller's call is the one that isn't there.
#[cfg(lowzone_mutants)]
#[track_caller]
pub(crate) fn here() -> bool {
    use std::panic::Location;
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<Option<(String, u32)>> = OnceLock::new();
    let read = || {
        let named = std::env::var("LOWZONE_REMOVED").ok()?;
        let (file, line) = named.rsplit_once(':')?;
        Some((file.to_owned(), line.parse().ok()?))
    };
    let caller = Location::caller();
    CHOSEN
        .get_or_init(read)
        .as_ref()
        .is_some_and(|(file, line)| *line == caller.line() && caller.file().ends_with(file.as_str()))
}
