//! The child process of a campaign: reads cases, runs them, writes what came out.
//!
//! Lines on standard input: a case's number, a space, its faults as a token has them. Lines on standard output: `begin N`
//! before a case and `done N JSON` after it, so that the parent knows which case a death belongs to.
//! Neighbours: `campaign`, the parent.

use std::io::{self, BufRead, Write};

use super::case::Prepared;
use super::heartbeat;
use super::token;
use crate::cli::CliError;

/// Serves cases until standard input ends.
pub(crate) fn serve(prepared: &Prepared) -> Result<(), CliError> {
    heartbeat::watch();
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let Some((number, faults)) = line.split_once(' ') else { continue };
        // Only the parent writes here; a line it could not have written is passed over.
        let Ok(strikes) = token::strikes(faults) else { continue };
        writeln!(out, "begin {number}")?;
        out.flush()?;
        let outcome = prepared.judge(&strikes)?;
        let json = serde_json::to_string(&outcome).map_err(io::Error::from)?;
        writeln!(out, "done {number} {json}")?;
        out.flush()?;
    }
    Ok(())
}
