//! What campaigns print as JSON, recognised by its keys.
//!
//! Neighbours: `cli` reads the file, `explore::report` and `mutants::report` wrote it. Left out: what any of it
//! means, which `page/campaign.js` shows.

use serde_json::Value;

use super::error::ReportError;

/// What the page is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sort {
    Explore,
    Mutants,
    Bench,
}

impl Sort {
    /// The name in the page's data.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Explore => "explore",
            Self::Mutants => "mutants",
            Self::Bench => "bench",
        }
    }
}

/// Reads a result and says what it is.
pub(super) fn read(name: &str, text: &[u8]) -> Result<(Sort, Value), ReportError> {
    let value: Value =
        serde_json::from_slice(text).map_err(|source| ReportError::Json { name: name.to_owned(), source })?;
    let list = |key: &str| value.get(key).is_some_and(Value::is_array);
    let sort = if list("verdicts") && list("rows") && list("wrong") {
        Sort::Explore
    } else if list("mutants") {
        Sort::Mutants
    } else {
        let run = value.get("digest").is_some() && list("findings");
        let hint = if run { "; of a run give the trace that `run --trace FILE` writes" } else { "" };
        return Err(ReportError::Unknown { name: name.to_owned(), hint });
    };
    Ok((sort, value))
}
