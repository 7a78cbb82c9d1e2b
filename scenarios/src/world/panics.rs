//! Panics of a driver: caught, kept quiet, and told with their place.
//!
//! While a world runs, the process-wide panic hook keeps what a panic says instead of printing it; everywhere else the
//! hook that was there before goes on. Neighbours: `lockstep`, which turns the text into a finding.

use std::cell::{Cell, RefCell};
use std::panic;
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics on this thread are kept, not printed, while this lives.
#[must_use = "panics are printed again when this is dropped"]
pub struct Quiet(bool);

impl Quiet {
    /// Begins to keep this thread's panics.
    pub fn begin() -> Self {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                if QUIET.with(Cell::get) {
                    let text = info.payload_as_str().unwrap_or("a panic without a message");
                    let place = info.location().map(|at| format!(" at {}:{}", at.file(), at.line()));
                    LAST.with(|last| *last.borrow_mut() = Some(format!("{text}{}", place.unwrap_or_default())));
                } else {
                    before(info);
                }
            }));
        });
        Self(QUIET.with(|quiet| quiet.replace(true)))
    }

    /// What the last panic on this thread said, with its place.
    pub fn take_last() -> Option<String> {
        LAST.with(|last| last.borrow_mut().take())
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        QUIET.with(|quiet| quiet.set(self.0));
    }
}
