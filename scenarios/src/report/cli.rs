//! `lowzone report`, and the `--report` of other commands.
//!
//! Exit codes: 0 written, 2 a broken file or a wrong one. Of a broken trace the page shows what was readable, and says
//! where that ended. A page is written beside its place and then moved there, so that no half of one is ever left.
//! Neighbours: `cli`, `pack`.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::campaign::{self, Sort};
use super::collect::{Thinned, collect};
use super::columns::Tables;
use super::error::ReportError;
use super::pack;
use super::scan::{FindingRow, Plots, Scan};
use super::totals::Totals;
use crate::trace::export::output::Output;
use crate::trace::{End, Header, Reader, TraceError, twice};

/// Write one HTML page of a trace or of a campaign's JSON: it needs no network and no other file.
///
/// Of a trace it shows every DMA transaction on a timeline: who mapped it, which descriptor led there, when the device
/// touched it and what came back. Beyond 100,000 events the page keeps every fault and the longest transactions, thins
/// the rest, and says so.
#[derive(Args)]
pub(crate) struct Report {
    /// A trace (`run --trace FILE`), or what `explore --json` or `mutants --json` printed.
    input: PathBuf,
    /// The page.
    #[arg(short, long, value_name = "OUT.html")]
    output: PathBuf,
}

/// What a run's result adds to its trace.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Verdict {
    /// The scenario's story.
    pub(crate) story: String,
    /// What was not as the scenario expects.
    pub(crate) wrong: Vec<String>,
    /// What was left over.
    pub(crate) leaks: Vec<String>,
}

/// The data of a trace's page, but for its columns.
#[derive(Serialize)]
struct Traced<'a> {
    sort: &'static str,
    file: String,
    header: &'a Header,
    /// As texts: a script's numbers end at 2^53.
    seed: String,
    digest: Option<String>,
    end: Option<End>,
    broken: Option<String>,
    verdict: Option<&'a Verdict>,
    totals: Totals,
    live: u64,
    span: (u64, u64),
    too_many: bool,
    thinned: Thinned,
    findings: Vec<FindingRow>,
    plots: Plots,
    tables: Tables,
}

/// The data of any other page.
#[derive(Serialize)]
struct Told<'a, T> {
    sort: &'static str,
    file: String,
    told: &'a T,
}

/// Runs the command.
pub(crate) fn run(options: &Report) -> Result<ExitCode, ReportError> {
    let read = |source| ReportError::Read { name: options.input.display().to_string(), source };
    twice(&options.input)?;
    let mut begins = [0; 1];
    let mut file = File::open(&options.input).map_err(read)?;
    let got = file.read(&mut begins).map_err(read)?;
    let json = got == 1 && matches!(begins, [b'{' | b'[' | b' ' | b'\n' | b'\t' | b'\r']);
    if json {
        let text = std::fs::read(&options.input).map_err(read)?;
        told(&options.input, &text, &options.output)?;
    } else {
        traced(&options.input, &base_name(&options.input), None, &options.output)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the page of what a campaign or bench has to tell.
pub(crate) fn campaign<T: Serialize>(sort: Sort, told: &T, output: &Path) -> Result<(), ReportError> {
    write(output, &[], &Told { sort: sort.name(), file: String::new(), told }, &[])
}

/// Writes the page of what a campaign printed as JSON.
fn told(input: &Path, text: &[u8], output: &Path) -> Result<(), ReportError> {
    let name = input.display().to_string();
    let (sort, value) = campaign::read(&name, text)?;
    write(output, &[input], &Told { sort: sort.name(), file: base_name(input), told: &value }, &[])
}

/// Writes the page of a trace; one that is broken is shown as far as it can be read, and then its error is returned.
///
/// `shown` is what the page calls the trace; empty if it doesn't outlive the page.
pub(crate) fn traced(input: &Path, shown: &str, verdict: Option<&Verdict>, output: &Path) -> Result<(), ReportError> {
    let open = || Reader::open(input);
    let mut reader = open()?;
    let (mut scan, broken) = Scan::of(&mut reader);
    let (columns, thinned) = collect(open, &scan)?;
    let (tables, bytes) = columns.finish();
    let page = Traced {
        sort: "trace",
        file: shown.to_owned(),
        header: reader.header(),
        seed: reader.header().seed.to_string(),
        digest: reader.end().filter(|end| end.digest != 0).map(|end| format!("{:016x}", end.digest)),
        end: reader.end().copied(),
        broken: broken.as_ref().map(TraceError::to_string),
        verdict,
        totals: std::mem::take(&mut scan.totals),
        live: scan.live,
        span: scan.span,
        too_many: scan.too_many,
        thinned,
        findings: std::mem::take(&mut scan.findings),
        plots: scan.plots(),
        tables,
    };
    write(output, &[input], &page, &bytes)?;
    broken.map_or(Ok(()), |error| Err(error.into()))
}

/// Where a run's trace lies that only a page is made of: beside the page, and gone in the end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn beside(page: &Path) -> Self {
        let own = format!("{}.lzt.part", std::process::id());
        // Beside a pipe or a device there may be no room for files.
        if std::fs::metadata(page).is_ok_and(|data| !data.is_file()) {
            return Self(std::env::temp_dir().join(format!("lowzone.{own}")));
        }
        let mut path = page.as_os_str().to_owned();
        path.push(format!(".{own}"));
        Self(path.into())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The last part of a path: pages of the same file are the same wherever it lies.
pub(crate) fn base_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Says at once if no page can be written there.
pub(crate) fn writable(output: Option<&Path>) -> Result<(), ReportError> {
    output.map_or(Ok(()), |output| Output::open(output, &[], false).map(drop).map_err(ReportError::from))
}

fn write<T: Serialize>(output: &Path, inputs: &[&Path], meta: &T, columns: &[u8]) -> Result<(), ReportError> {
    let place = Output::open(output, inputs, false)?;
    let page = pack::page(meta, columns).map_err(std::io::Error::from).map_err(place.fail())?;
    let mut stream = place.stream()?;
    stream.write_all(page.as_ref()).and_then(|()| stream.flush()).map_err(place.fail())?;
    drop(stream);
    Ok(place.finish()?)
}
