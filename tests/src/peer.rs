//! Programs that nobody of this project wrote and that tests talk to.
//!
//! A test whose peer isn't installed fails and names the package: a skip is not a pass. Only with `LOWZONE_NO_PEERS=1`
//! it says that it was skipped and ends there.

/// Whether `program` is there; `false` only where the environment allows tests to go without.
///
/// # Panics
/// If it isn't, with the Debian package that has it.
#[track_caller]
pub fn is_here(program: &str, package: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        return true;
    }
    let allowed = std::env::var_os("LOWZONE_NO_PEERS").is_some_and(|value| value == "1");
    assert!(allowed, "{program} is not installed: apt-get install {package} (or set LOWZONE_NO_PEERS=1)");
    println!("skipped: {program} is not installed");
    false
}

/// Whether QEMU is there.
///
/// # Panics
/// As [`is_here`].
#[track_caller]
pub fn qemu() -> bool {
    is_here("qemu-system-x86_64", "qemu-system-x86")
}
