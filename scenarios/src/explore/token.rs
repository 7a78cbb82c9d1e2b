//! Tokens: one case as a line of text that repeats it, in another process, on another day.
//!
//! `block/low-zone@1f3a9c02d4:1:slab:io#2+map:io#3` is scenario, fingerprint of its text, seed, faults; the token of
//! the clean run has the word `clean` for its faults. A point is named without its source line, so a token outlives
//! the fix that moves it. A token of another scenario or of a point that is not passed any more is refused with the
//! reason. Neighbours: `place`, the command line.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use thiserror::Error;

use super::case::Prepared;
use super::place::{Strike, StrikeError};

/// What a token has in place of faults if there are none.
pub const CLEAN: &str = "clean";

/// One case, by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    /// The scenario's name or path.
    pub scenario: String,
    /// The fingerprint of what the scenario says.
    pub fingerprint: String,
    /// The world's seed.
    pub seed: u64,
    /// The faults; none for the clean run.
    pub strikes: Vec<Strike>,
}

/// The faults of a case as its token has them.
pub(crate) fn faults(strikes: &[Strike]) -> String {
    if strikes.is_empty() {
        return CLEAN.to_owned();
    }
    strikes.iter().map(ToString::to_string).collect::<Vec<_>>().join("+")
}

/// The case of a token's faults.
pub(crate) fn strikes(faults: &str) -> Result<Vec<Strike>, StrikeError> {
    match faults {
        CLEAN => Ok(Vec::new()),
        faults => faults.split('+').map(str::parse).collect(),
    }
}

/// A token that can't be used.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum TokenError {
    /// Not a token.
    #[error("'{0}' is no token: want SCENARIO@FINGERPRINT:SEED:FAULT[+FAULT] or SCENARIO@FINGERPRINT:SEED:clean")]
    Form(String),
    /// A fault that can't be read.
    #[error(transparent)]
    Strike(#[from] StrikeError),
    /// The scenario says something else now.
    #[error("the token is of another version of {scenario}: it has fingerprint {token}, the scenario now has {now}")]
    Stale {
        /// The scenario.
        scenario: String,
        /// The token's fingerprint.
        token: String,
        /// The scenario's.
        now: String,
    },
    /// The point is not passed any more.
    #[error("{0} is not reached any more: the driver or the scenario has changed")]
    NotReached(String),
}

/// Ten hexadecimal digits over everything that decides what a scenario does.
pub fn fingerprint(prepared: &Prepared) -> String {
    // All of a scenario serialises; the text of a failure would only make a fingerprint that fits nothing.
    let text = serde_json::to_string(&prepared.scenario).unwrap_or_default();
    let hash = format!("{:x}", Sha256::digest(text.as_bytes()));
    hash.get(..10).unwrap_or_default().to_owned()
}

impl Token {
    /// The token of a case.
    pub fn new(prepared: &Prepared, strikes: &[Strike]) -> Self {
        Self {
            scenario: prepared.name.clone(),
            fingerprint: fingerprint(prepared),
            seed: prepared.seed,
            strikes: strikes.to_vec(),
        }
    }

    /// Whether it is of this scenario as it stands.
    ///
    /// # Errors
    /// [`TokenError::Stale`].
    pub fn check(&self, prepared: &Prepared) -> Result<(), TokenError> {
        let now = fingerprint(prepared);
        if self.fingerprint == now {
            return Ok(());
        }
        Err(TokenError::Stale { scenario: self.scenario.clone(), token: self.fingerprint.clone(), now })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}:{}", self.scenario, self.fingerprint, self.seed, faults(&self.strikes))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let form = || TokenError::Form(text.to_owned());
        let (scenario, rest) = text.split_once('@').ok_or_else(form)?;
        let mut parts = rest.splitn(3, ':');
        let (Some(fingerprint), Some(seed), Some(strikes)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(form());
        };
        let strikes = self::strikes(strikes)?;
        let seed = seed.parse().map_err(|_| form())?;
        Ok(Self { scenario: scenario.to_owned(), fingerprint: fingerprint.to_owned(), seed, strikes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_as_itself() {
        for text in [
            "block/low-zone@0123456789:7:slab:io#2",
            "a.toml@00:1:removal@mmio:probe/x#3+irq-lost#0*",
            "block/low-zone@0123456789:7:clean",
        ] {
            assert_eq!(text.parse::<Token>().unwrap().to_string(), text);
        }
        for text in ["", "x", "x@y", "x@y:z:slab:io#0", "x@y:1", "x@y:1:", "x@y:1:clean+slab:io#2", "x@y:1:what#1"] {
            assert!(text.parse::<Token>().is_err(), "{text}");
        }
    }
}
