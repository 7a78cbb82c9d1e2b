//! The server: a socket, a store, and one connection after another.
//!
//! It holds what outlives a connection and touches no memory of a peer's. Ctrl-C (or SIGTERM) ends the connection with
//! everything on its rings answered, and the server; a second one ends it at once. Neighbours: [`super::socket`],
//! [`super::session`], [`super::link`].

use std::fs::File;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lowzone_device::store::NullStore;
use lowzone_guest_mem::trace::Kind;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};

use super::config::Config;
use super::error::ServeError;
use super::link::{Counts, Frame, next};
use super::session::NUMBER_IN;
use super::socket::Socket;
use crate::trace::{Header, Writer};

/// How long a connection may take to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(10);

/// The store's file, kept open for all connections and inherited by them.
pub(super) fn keep(file: &File) -> Result<i32, ServeError> {
    fcntl_setfd(file, FdFlags::empty()).map_err(|error| ServeError::system("the store")(error.into()))?;
    Ok(file.as_raw_fd())
}

/// A store in memory that outlives connections.
pub(super) fn memory(size: u64) -> Result<File, ServeError> {
    // What is no size for this is none for any store.
    NullStore::new(size)?;
    let system = || ServeError::system("memory for the store");
    let file: File = memfd_create("lowzone-store", MemfdFlags::CLOEXEC).map_err(|error| system()(error.into()))?.into();
    file.set_len(size).map_err(system())?;
    Ok(file)
}

/// The end, once somebody asks for it.
struct Stop {
    asked: OwnedFd,
    /// The connection that is served: its link and its process.
    current: Mutex<Option<(UnixStream, Pid)>>,
}

impl Stop {
    fn is_asked(&self) -> bool {
        let mut fds = [PollFd::new(&self.asked, PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Asks for the end: of the connection too.
    fn ask(&self) {
        // The counter can't be full, and the thread that waits for it never reads it.
        let _ = rustix::io::write(&self.asked, &1_u64.to_ne_bytes());
        if let Some((link, _)) = &*self.current.lock().unwrap_or_else(PoisonError::into_inner) {
            // A process that is gone needs no asking.
            let _ = link.shutdown(Shutdown::Write);
        }
    }

    fn kill(&self) {
        if let Some((_, pid)) = &*self.current.lock().unwrap_or_else(PoisonError::into_inner) {
            // It has not been waited for, so the number is still its own.
            let _ = kill_process(*pid, Signal::KILL);
        }
    }

    fn set(&self, current: Option<(UnixStream, Pid)>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = current;
        if self.is_asked() {
            self.ask();
        }
    }
}

/// Waits for Ctrl-C or SIGTERM, in a thread of its own.
fn listen(stop: &Arc<Stop>) -> Result<(), ServeError> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(ServeError::system("signals"))?;
    let stop = stop.clone();
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        let listen = |kind| signal(kind).map_err(ServeError::system("signals"));
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?)
    };
    let wait = move || {
        runtime.block_on(async {
            let mut one = async || tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} };
            one().await;
            stop.ask();
            // Asked twice, or asked in vain.
            let _ = tokio::time::timeout(PATIENCE, one()).await;
            stop.kill();
        });
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map_err(ServeError::system("a thread"))?;
    Ok(())
}

/// What was served.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Served {
    pub connections: u64,
    pub counts: Counts,
}

/// Listens at `socket` and serves until asked to stop.
pub(super) fn run(socket: &Path, config: Config, trace: Option<File>) -> Result<Served, ServeError> {
    let socket = Socket::bind(socket)?;
    let system = ServeError::system;
    let asked = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| system("an eventfd")(error.into()))?;
    let stop = Arc::new(Stop { asked, current: Mutex::new(None) });
    listen(&stop)?;
    let trace = trace.map(|file| header(file, config.began)).transpose()?;
    let mut server = Server { config, stop, trace, served: Served::default() };
    announce(&server.config, socket.listener())?;
    loop {
        let mut fds = [PollFd::new(socket.listener(), PollFlags::IN), PollFd::new(&server.stop.asked, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(system("waiting for a connection")(error.into())),
        }
        let (ready, over) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if over {
            break;
        }
        if ready {
            let (peer, _) = socket.listener().accept().map_err(system("a connection"))?;
            server.connection(peer)?;
        }
    }
    if let Some(writer) = server.trace.take() {
        writer.finish(0, super::tap::monotonic().saturating_sub(server.config.began))?;
    }
    Ok(server.served)
}

fn announce(config: &Config, listener: &std::os::unix::net::UnixListener) -> Result<(), ServeError> {
    let at = listener.local_addr().ok();
    let path = at.as_ref().and_then(|at| at.as_pathname()).unwrap_or(Path::new("?")).display();
    let (bytes, queues) = (config.open()?.capacity(), config.queues);
    let plural = if queues == 1 { "" } else { "s" };
    let mut out = anstream::stdout();
    writeln!(out, "serving {} on {path}: {queues} queue{plural}; Ctrl-C ends it", crate::spec::Size(bytes))
        .and_then(|()| out.flush())
        .map_err(ServeError::system("standard output"))
}

struct Server {
    config: Config,
    stop: Arc<Stop>,
    trace: Option<Writer<io::BufWriter<File>>>,
    served: Served,
}

fn header(file: File, began: u64) -> Result<Writer<io::BufWriter<File>>, ServeError> {
    let kinds = Kind::ALL.iter().map(|kind| (kind.number(), kind.name().to_owned())).collect();
    let program = format!("lowzone {}", env!("CARGO_PKG_VERSION"));
    let scenario = "serve virtio-blk".to_owned();
    let header = Header {
        program,
        scenario,
        seed: 0,
        clock: "monotonic-ns".to_owned(),
        began: Some(began),
        cpus: 0,
        kinds,
        only: Vec::new(),
    };
    let devices: Vec<_> = (1..=MAX_TRACED).map(|n| (n, format!("queue {}", n - 1), format!("q{}", n - 1))).collect();
    Ok(Writer::new(io::BufWriter::new(file), &header, &devices, None)?)
}

/// Queues that have a name in a trace.
const MAX_TRACED: u16 = 64;

impl Server {
    /// Serves one connection to its end.
    fn connection(&mut self, peer: UnixStream) -> Result<(), ServeError> {
        self.served.connections += 1;
        self.config.number = self.served.connections;
        let system = ServeError::system;
        let (mut here, there) = UnixStream::pair().map_err(system("a link"))?;
        let asker = here.try_clone().map_err(system("a link"))?;
        let mut child = match spawn(&self.config, peer, there) {
            Ok(child) => child,
            Err(error) => {
                self.complain(&format!("no process for it: {error}"));
                return Ok(());
            }
        };
        let pid = Pid::from_child(&child);
        self.stop.set(Some((asker, pid)));
        let mut counted = false;
        while let Some(frame) = next(&mut here) {
            match frame {
                Frame::Counts(counts) => {
                    self.served.counts.add(&counts);
                    counted = true;
                }
                Frame::Records(records) => {
                    if let Some(writer) = &mut self.trace {
                        writer.page(&records);
                    }
                }
            }
        }
        let status = child.wait().map_err(system("a process"))?;
        self.stop.set(None);
        if let Some(text) = death(status, counted) {
            self.complain(&text);
        }
        Ok(())
    }

    fn complain(&self, text: &str) {
        let number = self.config.number;
        // With standard error gone there is nobody to tell.
        let _ = io::stderr().write_all(format!("lowzone: serve: connection {number}: {text}\n").as_bytes());
    }
}

fn spawn(config: &Config, peer: UnixStream, link: UnixStream) -> io::Result<Child> {
    let words = serde_json::to_string(config)?;
    // The program that runs, even if its file was replaced meanwhile.
    Command::new("/proc/self/exe")
        .args(["serve", "connection", &words])
        .env(NUMBER_IN, config.number.to_string())
        .stdin(Stdio::from(OwnedFd::from(peer)))
        .stdout(Stdio::from(OwnedFd::from(link)))
        // Ctrl-C is for the server, which passes it on.
        .process_group(0)
        .spawn()
}

/// What to say of how a connection's process ended; nothing if it spoke for itself.
fn death(status: ExitStatus, counted: bool) -> Option<String> {
    match status.signal() {
        Some(7) => Some("ended: the file behind its memory was cut while it was in use (SIGBUS)".to_owned()),
        Some(signal) => Some(format!("its process died of signal {signal}")),
        None if !counted && status.success() => Some("its process ended without a word".to_owned()),
        None => None,
    }
}
