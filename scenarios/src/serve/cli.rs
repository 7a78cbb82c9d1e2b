//! `lowzone serve …` on the command line.
//!
//! Exit codes: 0 ended by Ctrl-C, 2 nothing could be served. Neighbours: `cli`, which has the other commands.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use lowzone_device::store::ImageStore;

use super::config::{Config, StoreAt};
use super::error::ServeError;
use super::server::{self, Served};
use super::{session, tap};
use crate::spec::Size;
use crate::trace::TraceError;

/// Be a device for a driver in another process: a virtual machine, a library.
#[derive(Args)]
pub(crate) struct Serve {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Serve a disk over vhost-user, one connection after another, until Ctrl-C.
    VirtioBlk(VirtioBlk),
    /// Serve one connection; the server runs this.
    #[command(hide = true)]
    Connection {
        /// What to serve, as JSON.
        words: String,
    },
}

#[derive(Args)]
struct VirtioBlk {
    /// The socket to listen at; a dead server's is replaced.
    #[arg(long, value_name = "SOCKET")]
    vhost_user: PathBuf,
    #[command(flatten)]
    store: StoreArgs,
    /// Queues, each served by a thread.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    queues: u16,
    /// The largest size of a queue, a power of two.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = queue_size)]
    queue_size: u16,
    /// Refuse writes.
    #[arg(long)]
    read_only: bool,
    /// Offer neither DISCARD nor WRITE_ZEROES; a disk that refuses writes never does.
    #[arg(long)]
    no_discard: bool,
    /// Write a record of every access to the peer's memory to this file, for `lowzone trace`.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Address bits the device decodes; what lies beyond is refused.
    #[arg(long, value_name = "BITS", default_value_t = 64, value_parser = clap::value_parser!(u8).range(1..=64))]
    width: u8,
    /// Append what is written and flushed to this file.
    #[arg(long, value_name = "FILE", hide = true, requires = "image")]
    write_log: Option<PathBuf>,
    /// Let a flush do nothing.
    #[arg(long, hide = true, requires = "write_log")]
    no_flush: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct StoreArgs {
    /// Keep the data in this raw image file.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Keep the data in memory: this many bytes, gone with the server.
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// Keep nothing: reads give zeroes.
    #[arg(long, value_name = "SIZE")]
    null: Option<Size>,
}

fn queue_size(text: &str) -> Result<u16, String> {
    let size = text.parse::<u16>().ok().filter(|size| (4..=32768).contains(size) && size.is_power_of_two());
    size.ok_or_else(|| "a power of two from 4 to 32768".to_owned())
}

/// Serves until asked to stop, or one connection.
pub(crate) fn run(serve: &Serve) -> Result<ExitCode, ServeError> {
    match &serve.what {
        What::Connection { words } => {
            let outcome = session::run(words);
            Ok(outcome.map_or_else(
                |error| {
                    session::complain(&crate::cli::with_causes(&error));
                    ExitCode::from(1)
                },
                |()| ExitCode::SUCCESS,
            ))
        }
        What::VirtioBlk(options) => {
            let served = virtio_blk(options)?;
            summary(&served).map_err(ServeError::system("standard output"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn virtio_blk(options: &VirtioBlk) -> Result<Served, ServeError> {
    let VirtioBlk { queues, queue_size, read_only, width, .. } = *options;
    let file = match &options.store {
        StoreArgs { image: Some(path), .. } => {
            // Opened as a store first, for its checks.
            ImageStore::open(path, read_only)?;
            let open = OpenOptions::new().read(true).write(!read_only).open(path);
            Some(open.map_err(ServeError::system("the image"))?)
        }
        StoreArgs { memory: Some(size), .. } => Some(server::memory(size.0)?),
        _ => None,
    };
    let (log, no_flush) = (options.write_log.clone(), options.no_flush);
    let store = match &file {
        Some(file) => StoreAt::File { fd: server::keep(file)?, log, no_flush },
        None => StoreAt::Null(options.store.null.unwrap_or(Size(0)).0),
    };
    let trace = options.trace.as_ref().map(|path| {
        let name = || path.display().to_string();
        File::create(path).map_err(|source| TraceError::Open { name: name(), source })
    });
    let trace = trace.transpose()?;
    let (number, began, discard) = (0, tap::monotonic(), !options.no_discard);
    let config = Config { number, queues, queue_size, read_only, discard, width, store, trace: trace.is_some(), began };
    // A store that can't be opened is told before anybody connects.
    config.open()?;
    server::run(&options.vhost_user, config, trace)
}

fn summary(served: &Served) -> std::io::Result<()> {
    let Served { connections, counts } = served;
    let mut out = anstream::stdout();
    writeln!(
        out,
        "{connections} connections: {} requests, {} failed; {} bytes read, {} written, {} flushes; \
         {} interrupts, {} faults",
        counts.requests,
        counts.failed,
        counts.bytes_read,
        counts.bytes_written,
        counts.flushes,
        counts.calls,
        counts.faults
    )
}
