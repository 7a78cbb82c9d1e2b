//! `Link`: one connection to a peer, and the thread that listens to it.
//!
//! Requests are answered one by one under a lock, each within [`PATIENCE`]: the thread shuts the socket of a peer that
//! is silent for longer, which ends the request. The same thread turns the end of the connection, whatever the reason,
//! into an interrupt of config changes, so that the driver looks. Those of queues are heard by the CPUs themselves.
//! Neighbours: `front`, which has one link after the other; `lines`.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol, VhostUserVirtioFeatures};
use vhost::vhost_user::{Error, Frontend, VhostUserFrontend};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::VhostUserError;
use super::lines::Lines;

/// Bytes of the longest path: `sun_path` less its terminating zero.
const LONGEST: usize = 107;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the thread looks for an answer that is late.
const TICK_MS: i32 = 500;
/// The most queues that are used: one a CPU of the largest machine.
const MOST_QUEUES: u16 = 64;
/// `VHOST_USER_F_PROTOCOL_FEATURES`.
pub(super) const F_PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// What the event loop calls its descriptors.
const STOP: u64 = u64::MAX;
const SOCKET: u64 = u64::MAX - 1;

/// What the thread and the callers share.
struct Watched {
    path: PathBuf,
    stream: UnixStream,
    epoll: Epoll,
    stop: EventFd,
    lines: OnceLock<Arc<Lines>>,
    /// When the answer that somebody waits for is late.
    late: Mutex<Option<Instant>>,
    gone: AtomicBool,
    failure: Mutex<Option<VhostUserError>>,
}

/// One connection.
pub(super) struct Link {
    front: Mutex<Frontend>,
    watched: Arc<Watched>,
    keeper: Option<JoinHandle<()>>,
    /// The features that the peer offers.
    pub(super) features: u64,
    /// How many queues it has, as far as they can be used.
    pub(super) queues: u16,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// Connects, and agrees on the protocol.
    ///
    /// # Errors
    /// [`VhostUserError`], whatever the peer is or does.
    pub(super) fn connect(path: &Path) -> Result<Self, VhostUserError> {
        let refused = |source| VhostUserError::Connect { path: path.to_owned(), source };
        let len = path.as_os_str().len();
        if len > LONGEST {
            return Err(VhostUserError::LongPath { path: path.to_owned(), len, limit: LONGEST });
        }
        if path.metadata().is_ok_and(|there| !there.file_type().is_socket()) {
            return Err(VhostUserError::NotASocket { path: path.to_owned() });
        }
        let stream = UnixStream::connect(path).map_err(refused)?;
        let front = Frontend::from_stream(stream.try_clone().map_err(refused)?, u64::from(MOST_QUEUES));
        let watched = Arc::new(Watched::new(path, stream)?);
        let keeper = std::thread::Builder::new().name("vhost-user".to_owned());
        let keeper = keeper.spawn({
            let watched = watched.clone();
            move || watched.keep()
        });
        let keeper = Some(keeper.map_err(VhostUserError::host("thread"))?);
        let mut link = Self { front: Mutex::new(front), watched, keeper, features: 0, queues: 1 };
        link.agree()?;
        Ok(link)
    }

    fn agree(&mut self) -> Result<(), VhostUserError> {
        let lacks = |missing, offered| VhostUserError::Lacks { path: self.watched.path.clone(), missing, offered };
        self.request("SET_OWNER", |front| front.set_owner())?;
        let features = self.request("GET_FEATURES", |front| front.get_features())?;
        if features & F_PROTOCOL == 0 {
            return Err(lacks("VHOST_USER_F_PROTOCOL_FEATURES", features));
        }
        let offered = self.request("GET_PROTOCOL_FEATURES", |front| front.get_protocol_features())?;
        if !offered.contains(Protocol::CONFIG) {
            return Err(lacks("VHOST_USER_PROTOCOL_F_CONFIG", offered.bits()));
        }
        let used = offered & (Protocol::CONFIG | Protocol::REPLY_ACK | Protocol::MQ);
        self.request("SET_PROTOCOL_FEATURES", |front| front.set_protocol_features(used))?;
        if used.contains(Protocol::REPLY_ACK) {
            lock(&self.front).set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let queues = match used.contains(Protocol::MQ) {
            true => self.request("GET_QUEUE_NUM", |front| front.get_queue_num())?,
            false => 1,
        };
        if queues == 0 {
            return Err(VhostUserError::NoQueues { path: self.watched.path.clone() });
        }
        self.queues = u16::try_from(queues).unwrap_or(u16::MAX).min(MOST_QUEUES);
        self.features = features;
        Ok(())
    }

    /// From now on its end is an interrupt on these lines.
    pub(super) fn tell(&self, lines: &Arc<Lines>) {
        self.watched.lines.get_or_init(|| lines.clone());
        if self.gone() {
            lines.ended();
        }
    }

    /// One request, with its answer if it has one; a failure is the end of the connection.
    ///
    /// # Errors
    /// [`VhostUserError`]: why it ended.
    pub(super) fn request<T>(
        &self,
        name: &'static str,
        ask: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T, VhostUserError> {
        let mut front = lock(&self.front);
        *lock(&self.watched.late) = Some(Instant::now() + PATIENCE);
        let answer = ask(&mut front);
        *lock(&self.watched.late) = None;
        answer.map_err(|source| {
            let path = self.watched.path.clone();
            let own = match source {
                vhost::Error::VhostUserProtocol(
                    Error::PartialMessage | Error::Disconnected | Error::SocketBroken(_),
                ) => VhostUserError::Closed { path: path.clone() },
                source => VhostUserError::Protocol { path: path.clone(), request: name, source },
            };
            self.watched.end(own);
            self.take_failure().unwrap_or(VhostUserError::Closed { path })
        })
    }

    /// Whether the connection has ended.
    pub(super) fn gone(&self) -> bool {
        self.watched.gone.load(Ordering::Acquire)
    }

    /// Why it ended, for the first one that asks.
    pub(super) fn take_failure(&self) -> Option<VhostUserError> {
        lock(&self.watched.failure).take()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // An eventfd that nobody reads takes more ones than there are links.
        let _ = self.watched.stop.write(1);
        if let Some(keeper) = self.keeper.take() {
            // It has no way to panic; if it did, the connection is over all the same.
            let _ = keeper.join();
        }
        let _ = self.watched.stream.shutdown(Shutdown::Both);
    }
}

impl Watched {
    fn new(path: &Path, stream: UnixStream) -> Result<Self, VhostUserError> {
        let watched = Self {
            path: path.to_owned(),
            stream,
            epoll: Epoll::new().map_err(VhostUserError::host("epoll"))?,
            stop: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(VhostUserError::host("eventfd"))?,
            lines: OnceLock::new(),
            late: Mutex::default(),
            gone: AtomicBool::new(false),
            failure: Mutex::default(),
        };
        watched.add(watched.stop.as_raw_fd(), EventSet::IN, STOP)?;
        watched.add(watched.stream.as_raw_fd(), EventSet::READ_HANG_UP, SOCKET)?;
        Ok(watched)
    }

    fn add(&self, fd: RawFd, events: EventSet, name: u64) -> Result<(), VhostUserError> {
        let added = self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, name));
        added.map_err(VhostUserError::host("room in an epoll"))
    }

    /// Listens until it is told to stop.
    fn keep(&self) {
        let mut events = [EpollEvent::default(); 2];
        loop {
            let heard = match self.epoll.wait(TICK_MS, &mut events) {
                Ok(heard) => heard,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(source) => return self.end(VhostUserError::Host { what: "events", source }),
            };
            for event in &events[..heard] {
                if event.data() == STOP {
                    return;
                }
                self.end(VhostUserError::Closed { path: self.path.clone() });
                // It would be heard again at once.
                let socket = self.stream.as_raw_fd();
                let _ = self.epoll.ctl(ControlOperation::Delete, socket, EpollEvent::default());
            }
            let late = lock(&self.late).is_some_and(|at| at <= Instant::now());
            if late {
                self.end(VhostUserError::Silent { path: self.path.clone(), seconds: PATIENCE.as_secs() });
            }
        }
    }

    /// Ends the connection, for the first reason that there was.
    fn end(&self, why: VhostUserError) {
        lock(&self.failure).get_or_insert(why);
        if !self.gone.swap(true, Ordering::AcqRel) {
            // A peer that still lives stops its queues when it sees this.
            let _ = self.stream.shutdown(Shutdown::Both);
            if let Some(lines) = self.lines.get() {
                lines.ended();
            }
        }
    }
}
