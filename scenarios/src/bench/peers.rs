//! `lowzone bench peers`: requests a second, ours beside those of programs that nobody of this project wrote.
//!
//! Our device and qemu-storage-daemon's, with nothing behind either, under the crate `virtio-driver`; our driver and that
//! crate on qemu-storage-daemon's. Rounds are interleaved and each gives a ratio: on a machine that does other things too
//! only those mean something. The crate's load is a program of its own, since its calls are unsafe. Neighbours: `load`,
//! our driver's.

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::load::{self, LoadError};
use crate::cli::CliError;
use crate::host::find;

/// Bytes of a request.
pub(super) const BLOCK: usize = 4096;
/// Bytes of the disk.
pub(super) const DISK: u64 = 1 << 30;
/// Each round measures every row once, on both sides.
const ROUNDS: u32 = 9;
/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);
/// The crate's load, built by the tests' package.
const LOADER: &str = "lowzone-peer-load";
const DAEMON: &str = "qemu-storage-daemon";

/// Why nothing can be compared.
#[derive(Debug, Error)]
pub(crate) enum PeersError {
    #[error("{DAEMON} is not installed: apt-get install qemu-system-common")]
    NoDaemon,
    #[error("{} is not there: cargo build --release -p lowzone-tests", .0.display())]
    NoLoader(PathBuf),
    #[error("{what}: {source}")]
    Start { what: &'static str, source: io::Error },
    #[error("{0} does not listen")]
    Deaf(&'static str),
}

/// Why a row has no figure: what makes the exit code 1.
#[derive(Debug, Error)]
enum Failure {
    #[error("our driver: {0}")]
    Ours(#[from] LoadError),
    #[error("virtio-driver: {0}")]
    Theirs(String),
}

/// What was done in which time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) requests: u64,
    pub(super) nanos: u128,
}

impl Load {
    fn per_second(self) -> u128 {
        u128::from(self.requests) * 1_000_000_000 / self.nanos.max(1)
    }
}

/// Which half is compared, ours and the other's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Device,
    /// In memory that the device shares all the time, as the other driver's is.
    Driver,
    /// In buffers that are mapped for their request, which the other driver can't.
    Mapping,
}

/// How the two drivers of a row wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Both sleep at once, until the eventfd is written.
    Sleeping,
    /// Ours looks before it sleeps, as it does unless told; the crate, which can't, sleeps at once.
    Looking,
    /// Both look at the ring until there is something: ours a queue without interrupts.
    Polling,
}

/// One comparison.
#[derive(Clone, Copy)]
struct Row {
    half: Half,
    depth: usize,
    wait: Wait,
}

const fn row(half: Half, depth: usize, wait: Wait) -> Row {
    Row { half, depth, wait }
}

const ROWS: [Row; 12] = [
    row(Half::Device, 1, Wait::Sleeping),
    row(Half::Device, 64, Wait::Sleeping),
    row(Half::Device, 1, Wait::Polling),
    row(Half::Device, 64, Wait::Polling),
    row(Half::Driver, 1, Wait::Sleeping),
    row(Half::Driver, 64, Wait::Sleeping),
    row(Half::Driver, 1, Wait::Looking),
    row(Half::Driver, 64, Wait::Looking),
    row(Half::Driver, 1, Wait::Polling),
    row(Half::Driver, 64, Wait::Polling),
    row(Half::Mapping, 1, Wait::Looking),
    row(Half::Mapping, 64, Wait::Looking),
];

impl Row {
    fn name(self) -> &'static str {
        match self.half {
            Half::Device => "device",
            Half::Driver => "driver",
            Half::Mapping => "mapping",
        }
    }

    fn waits(self) -> &'static str {
        match self.wait {
            Wait::Sleeping => "sleeping",
            Wait::Looking => "looking",
            Wait::Polling => "polling",
        }
    }
}

/// A server at a socket; it ends when dropped.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    fn socket(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("lowzone-bench-{}-{name}.sock", std::process::id()))
    }

    /// `lowzone serve`, with nothing behind it.
    fn ours(program: &Path) -> Result<Self, PeersError> {
        let (socket, what) = (Self::socket("ours"), "lowzone serve");
        let mut command = Command::new(program);
        command.args(["serve", "virtio-blk", "--null"]).arg(DISK.to_string()).arg("--vhost-user").arg(&socket);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut server = Self { child: child.map_err(|source| PeersError::Start { what, source })?, socket };
        let mut line = String::new();
        if let Some(out) = server.child.stdout.take() {
            // The first line says that it listens; the last one is for nobody, but the pipe must outlive it.
            let mut out = BufReader::new(out);
            let _ = out.read_line(&mut line);
            server.child.stdout = Some(out.into_inner());
        }
        if line.starts_with("serving ") { Ok(server) } else { Err(PeersError::Deaf(what)) }
    }

    /// qemu-storage-daemon, with nothing behind it.
    fn daemon(name: &str, zeroes: &str) -> Result<Self, PeersError> {
        let socket = Self::socket(name);
        let blockdev = format!("driver=null-co,size={DISK},read-zeroes={zeroes},node-name=d0");
        let address = format!("addr.type=unix,addr.path={}", socket.display());
        let export = format!("type=vhost-user-blk,id=e0,node-name=d0,{address},writable=on,num-queues=1");
        let mut command = Command::new(DAEMON);
        command.args(["--blockdev", &blockdev, "--export", &export]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut server = Self { child: child.map_err(|source| PeersError::Start { what: DAEMON, source })?, socket };
        let begun = Instant::now();
        while !server.socket.exists() {
            let ended = server.child.try_wait().map_or(true, |status| status.is_some());
            if ended || begun.elapsed() > PATIENCE {
                return Err(PeersError::Deaf(DAEMON));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that is gone already needs no more.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Everything that is measured with.
struct Stand {
    ours: Server,
    /// Reads zeroes, as ours does.
    zeroes: Server,
    /// Leaves what is read as it was.
    daemon: Server,
    loader: PathBuf,
    time: Duration,
}

impl Stand {
    fn new(time: Duration) -> Result<Self, PeersError> {
        if find(DAEMON).is_none() {
            return Err(PeersError::NoDaemon);
        }
        let program = std::env::current_exe().map_err(|source| PeersError::Start { what: "this program", source })?;
        let loader = program.with_file_name(LOADER);
        if !loader.is_file() {
            return Err(PeersError::NoLoader(loader));
        }
        let (zeroes, daemon) = (Server::daemon("zeroes", "on")?, Server::daemon("nothing", "off")?);
        Ok(Self { ours: Server::ours(&program)?, zeroes, daemon, loader, time })
    }

    /// One side of a row, once.
    fn measure(&self, row: Row, ours: bool) -> Result<Load, Failure> {
        let Row { half, depth, wait } = row;
        match (half, ours) {
            (Half::Device, true) => self.crate_on(&self.ours, row),
            (Half::Device, false) => self.crate_on(&self.zeroes, row),
            (_, false) => self.crate_on(&self.daemon, row),
            (_, true) => Ok(load::run(&self.daemon.socket, (depth, half == Half::Mapping), wait, self.time)?),
        }
    }

    /// `virtio-driver` on a server.
    fn crate_on(&self, server: &Server, row: Row) -> Result<Load, Failure> {
        let wait = if row.wait == Wait::Polling { "poll" } else { "eventfd" };
        let mut command = Command::new(&self.loader);
        command.arg(&server.socket).args([&row.depth.to_string(), wait, &self.time.as_millis().to_string()]);
        let output = command.stdin(Stdio::null()).output().map_err(|error| Failure::Theirs(error.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut numbers = text.split_whitespace();
        let requests = numbers.next().and_then(|word| word.parse().ok());
        let nanos = numbers.next().and_then(|word| word.parse().ok());
        match (output.status.success(), requests, nanos) {
            (true, Some(requests), Some(nanos)) => Ok(Load { requests, nanos }),
            _ => Err(Failure::Theirs(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        }
    }
}

/// What the rounds of one row gave.
#[derive(Default)]
struct Seen {
    ours: Vec<u128>,
    theirs: Vec<u128>,
    /// Ours by theirs, in hundredths.
    ratios: Vec<u128>,
}

impl Seen {
    fn add(&mut self, ours: Load, theirs: Load) {
        let (ours, theirs) = (ours.per_second(), theirs.per_second());
        self.ours.push(ours);
        self.theirs.push(theirs);
        self.ratios.push(ours * 100 / theirs.max(1));
    }
}

/// The least, the median and the most.
fn spread(values: &[u128]) -> [u128; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let at = |index: usize| sorted.get(index).copied().unwrap_or(0);
    [at(0), at(sorted.len() / 2), at(sorted.len().saturating_sub(1))]
}

/// Compares for about so many seconds.
pub(crate) fn run(seconds: u64) -> Result<ExitCode, CliError> {
    let sides = u32::try_from(ROWS.len()).unwrap_or(1) * 2;
    let stand = Stand::new(Duration::from_secs(seconds) / (ROUNDS * sides))?;
    let mut seen: Vec<Seen> = ROWS.iter().map(|_| Seen::default()).collect();
    for round in 0..ROUNDS {
        for (row, seen) in ROWS.iter().zip(&mut seen) {
            let first = round % 2 == 0;
            let pair = stand.measure(*row, first).and_then(|one| Ok((one, stand.measure(*row, !first)?)));
            match pair {
                Ok((one, two)) if first => seen.add(one, two),
                Ok((one, two)) => seen.add(two, one),
                Err(failure) => {
                    writeln!(anstream::stderr(), "{} at depth {}: {failure}", row.name(), row.depth)?;
                    return Ok(ExitCode::from(1));
                }
            }
        }
    }
    print(&mut anstream::stdout(), &stand, &seen)?;
    Ok(ExitCode::SUCCESS)
}

fn print(out: &mut impl Write, stand: &Stand, seen: &[Seen]) -> io::Result<()> {
    let ms = stand.time.as_millis();
    writeln!(
        out,
        "random reads of {BLOCK} bytes a second, one queue, EVENT_IDX; medians of {ROUNDS} rounds of {ms} ms"
    )?;
    writeln!(out, "device   ours and {DAEMON}'s under the crate virtio-driver; both read zeroes")?;
    writeln!(out, "driver   ours and virtio-driver on {DAEMON}'s, which reads nothing; memory shared for good")?;
    writeln!(out, "mapping  the same, but ours maps a buffer for each request and takes it back")?;
    writeln!(
        out,
        "sleeping both until the eventfd is written; looking: ours, as it is unless told, for at most 200 us first"
    )?;
    writeln!(out, "polling  both look at the ring until there is something\n")?;
    writeln!(out, "{:<8}{:>6}  {:<10}{:>9}{:>9}  ratio [min max]", "", "depth", "waiting", "ours", "theirs")?;
    for (row, seen) in ROWS.iter().zip(seen) {
        let ([_, ours, _], [_, theirs, _]) = (spread(&seen.ours), spread(&seen.theirs));
        let [low, ratio, high] = spread(&seen.ratios);
        let hundredths = |value: u128| format!("{}.{:02}", value / 100, value % 100);
        let verdict = if ratio >= 100 { "reached" } else { "MISSED" };
        writeln!(
            out,
            "{:<8}{:>6}  {:<10}{ours:>9}{theirs:>9}  {} [{} {}]  goal {verdict}",
            row.name(),
            row.depth,
            row.waits(),
            hundredths(ratio),
            hundredths(low),
            hundredths(high),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_one_round_and_the_middle_one_counts() {
        let mut seen = Seen::default();
        let load = |requests| Load { requests, nanos: 500_000_000 };
        [(100, 50), (100, 400), (300, 200)].into_iter().for_each(|(ours, theirs)| seen.add(load(ours), load(theirs)));
        assert_eq!(spread(&seen.ratios), [25, 150, 200]);
        assert_eq!(spread(&seen.ours), [200, 200, 600]);
        assert_eq!(spread(&[]), [0; 3]);
    }
}
