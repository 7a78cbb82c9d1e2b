//! The journal of a campaign: a line of JSON as each case ends, so that a campaign that was killed can go on.
//!
//! The first line says whose cases they are, as a token without faults; every other names the child that ran a case,
//! and holds its record. Lines are flushed one by one: what a killed campaign leaves behind is whole but for its last
//! line. Neighbours: `campaign`, whose records it holds; `cli`, which takes them as done.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::campaign::Record;
use super::token::Token;

/// Why a journal can't be used.
#[derive(Debug, Error)]
pub enum JournalError {
    /// It can't be written or read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A line is not whole.
    #[error("{path}:{line}: not a whole line of a journal; without it and what follows, the journal can be resumed")]
    Torn {
        /// The file.
        path: String,
        /// The line.
        line: usize,
    },
    /// It is of other cases.
    #[error("{path}: the journal is of '{found}', the campaign is '{wanted}'")]
    Foreign {
        /// The file.
        path: String,
        /// Scenario, fingerprint and seed that it was written for.
        found: String,
        /// Those of the campaign.
        wanted: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Head {
    campaign: String,
}

#[derive(Deserialize)]
struct Line {
    record: Record,
}

/// A journal that is being written.
pub(super) struct Journal {
    path: String,
    file: Mutex<BufWriter<File>>,
    failed: Mutex<Option<io::Error>>,
}

impl Journal {
    /// Begins the journal of the campaign with this clean run.
    pub(super) fn create(path: &str, clean: &Token) -> Result<Self, JournalError> {
        let failed = |source| JournalError::File { path: path.to_owned(), source };
        let mut file = BufWriter::new(File::create(path).map_err(failed)?);
        let head = serde_json::to_string(&Head { campaign: clean.to_string() }).map_err(io::Error::from);
        head.and_then(|head| writeln!(file, "{head}")).and_then(|()| file.flush()).map_err(failed)?;
        Ok(Self { path: path.to_owned(), file: Mutex::new(file), failed: Mutex::default() })
    }

    /// Adds a case; a failure is told by [`Journal::check`].
    pub(super) fn write(&self, record: &Record, child: u32) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let json = serde_json::json!({ "child": child, "record": record });
        if let Err(error) = writeln!(file, "{json}").and_then(|()| file.flush()) {
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }

    /// Whether all of it was written.
    pub(super) fn check(&self) -> Result<(), JournalError> {
        match self.failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(source) => Err(JournalError::File { path: self.path.clone(), source }),
            None => Ok(()),
        }
    }
}

/// The cases that a journal of the campaign with this clean run holds as done.
pub(super) fn read(path: &str, clean: &Token) -> Result<Vec<Record>, JournalError> {
    let text = std::fs::read_to_string(path).map_err(|source| JournalError::File { path: path.to_owned(), source })?;
    let torn = |line| JournalError::Torn { path: path.to_owned(), line };
    let mut lines = (1..).zip(text.lines());
    let head = lines.next().and_then(|(_, text)| serde_json::from_str::<Head>(text).ok()).ok_or_else(|| torn(1))?;
    let wanted = clean.to_string();
    if head.campaign != wanted {
        return Err(JournalError::Foreign { path: path.to_owned(), found: head.campaign, wanted });
    }
    lines.map(|(at, text)| Ok(serde_json::from_str::<Line>(text).map_err(|_| torn(at))?.record)).collect()
}
