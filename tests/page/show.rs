//! One browser for all tests, one after the other; and the pages that they look at.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lowzone_tests::browser::Browser;
use lowzone_tests::image::Folder;
use lowzone_tests::program::{Outcome, lowzone};
use serde_json::Value;

static BROWSER: Mutex<Option<Browser>> = Mutex::new(None);

/// The browser, while it is this test's, and a folder for the files of the test.
pub struct Show {
    pub browser: Turn,
    pub folder: Folder,
}

impl Show {
    pub fn new() -> Self {
        Self { browser: Turn::take(), folder: Folder::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a scenario with a trace, and makes the page of that: the run's own result, and where the page lies.
    pub fn page_of(&self, scenario: &str, more: &[&str]) -> (Value, PathBuf) {
        let (trace, page) = (self.path("t.lzt"), self.path("t.html"));
        let args = ["run", scenario, "--json", "--trace", trace.to_str().unwrap()];
        let run = lowzone(args.iter().chain(more));
        assert_eq!(run.code, Some(0), "{run:?}");
        let report = report(&trace, &page);
        assert_eq!((report.code, report.stderr.as_str()), (Some(0), ""), "{report:?}");
        (run.json(), page)
    }

    /// Opens a page; it must have asked for itself alone, and complained of nothing.
    pub fn open(&mut self, page: &Path, theme: &str) {
        self.browser.open(page, (1500, 1000), theme);
        assert_eq!(self.browser.requests().len(), 1, "{:?}", self.browser.requests());
        assert!(self.browser.complaints().is_empty(), "{:?}", self.browser.complaints());
    }

    /// The text of the first element that a selector names.
    pub fn text(&mut self, selector: &str) -> String {
        let text = self.browser.eval(&format!("document.querySelector({selector:?})?.innerText ?? 'nothing'"));
        text.as_str().unwrap().to_owned()
    }
}

/// The browser of all tests: it ends with this process, whose pipe it listens to.
pub struct Turn(MutexGuard<'static, Option<Browser>>);

impl Turn {
    fn take() -> Self {
        let mut turn = BROWSER.lock().unwrap_or_else(PoisonError::into_inner);
        turn.get_or_insert_with(|| {
            let profile = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page-profile");
            // Of the run before; the first has none.
            let _ = std::fs::remove_dir_all(&profile);
            Browser::start(&profile)
        });
        Self(turn)
    }
}

impl Deref for Turn {
    type Target = Browser;

    fn deref(&self) -> &Browser {
        self.0.as_ref().unwrap()
    }
}

impl DerefMut for Turn {
    fn deref_mut(&mut self) -> &mut Browser {
        self.0.as_mut().unwrap()
    }
}

pub fn report(input: &Path, page: &Path) -> Outcome {
    lowzone(["report", input.to_str().unwrap(), "-o", page.to_str().unwrap()])
}
