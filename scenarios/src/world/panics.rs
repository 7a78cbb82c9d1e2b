//! Panics of a driver: caught, kept quiet, and told with their place.
//!
//! While a world runs, the process-wide panic hook keeps what a panic says instead of printing it; everywhere else the
//! hook that was there before goes on. Neighbours: the worlds, which report the findings.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic;
use std::sync::Once;

use lowzone_guest_mem::cpu::Halt;
use lowzone_guest_mem::finding::FindingKind;

use super::Exit;

/// What a panic carries.
pub(super) type Payload = Box<dyn Any + Send>;

/// How a body ended, and what to report of it.
pub(super) fn judge(result: Result<(), Payload>) -> (Exit, Option<FindingKind>) {
    match result {
        Ok(()) => (Exit::Finished, None),
        Err(payload) if payload.downcast_ref::<Halt>().is_some() => (Exit::Halted, None),
        Err(payload) => {
            let given = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let message = Quiet::take_last().or(given).unwrap_or_else(|| "a panic without a message".to_owned());
            (Exit::Panicked, Some(FindingKind::DriverPanic { message }))
        }
    }
}

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
