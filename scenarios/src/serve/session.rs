//! One connection, in a process of its own: takes messages until the peer goes or says something wrong.
//!
//! The peer's socket is standard input and the link to the server standard output. When the server closes its side of
//! the link the connection is ended: what is on the rings is answered first. A message's first bytes are looked at
//! before the `vhost` crate takes it, so that what is wrong with it can be told; so does [`super::claims`]. Neighbours: [`super::server`] starts
//! it, [`super::vhost_user`] is the device.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::{RecvFlags, recv};
use rustix::process::{Signal, set_parent_process_death_signal};
use vhost::vhost_user::message::FrontendReq;
use vhost::vhost_user::{BackendReqHandler, Error};

use super::claims;
use super::config::Config;
use super::error::ServeError;
use super::link::Link;
use super::vhost_user::Backend;

/// Bytes of a message's header: code, flags, size.
const HEADER: usize = 12;
/// The longest message.
const LIMIT: usize = 4096;
/// How long a message that has begun may take to go on.
const PATIENCE: Duration = Duration::from_secs(5);
/// The bits of a header's flags that a request of version 1 has: the version, and the wish for a reply.
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 1 << 3;

/// Says something on standard error, in one piece.
pub(super) fn complain(text: &str) {
    static NUMBER: OnceLock<u64> = OnceLock::new();
    let number = NUMBER.get_or_init(|| std::env::var(NUMBER_IN).ok().and_then(|text| text.parse().ok()).unwrap_or(0));
    // With standard error gone there is nobody to tell.
    let _ = io::stderr().write_all(format!("lowzone: serve: connection {number}: {text}\n").as_bytes());
}

/// Where a connection's number is, for what it says.
pub(super) const NUMBER_IN: &str = "LOWZONE_CONNECTION";

/// Serves the connection that the server's words tell of.
pub(super) fn run(words: &str) -> Result<(), ServeError> {
    let system = ServeError::system;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| system("prctl")(error.into()))?;
    let config: Config = serde_json::from_str(words).map_err(ServeError::Config)?;
    let socket = |fd: io::Result<std::os::fd::OwnedFd>| fd.map(UnixStream::from);
    let peer = socket(io::stdin().as_fd().try_clone_to_owned()).map_err(system("the connection"))?;
    let server = socket(io::stdout().as_fd().try_clone_to_owned()).map_err(system("the link"))?;
    let watched = (server.try_clone(), peer.try_clone());
    let link = Arc::new(Link::new(server));
    let backend = Arc::new(Mutex::new(Backend::new(config, &link)?));
    if let (Ok(server), Ok(peer)) = watched {
        let watch = move || watch(server, &peer);
        std::thread::Builder::new().name("server".into()).spawn(watch).map_err(system("a thread"))?;
    }
    let outcome = messages(peer, &backend);
    let mut backend = backend.lock().unwrap_or_else(PoisonError::into_inner);
    let ended = backend.end();
    // A server that is gone counts nothing.
    let _ = link.counts(&backend.counts());
    outcome.and(ended)
}

/// Ends the connection when the server closes the link.
fn watch(mut server: UnixStream, peer: &UnixStream) {
    while server.read(&mut [0; 64]).is_ok_and(|got| got > 0) {}
    // A peer that is gone already ended the connection.
    let _ = peer.shutdown(Shutdown::Both);
}

fn messages(peer: UnixStream, backend: &Arc<Mutex<Backend>>) -> Result<(), ServeError> {
    let seen = peer.try_clone().map_err(ServeError::system("the connection"))?;
    let mut handler = BackendReqHandler::from_stream(peer, backend.clone());
    while let Some(header) = header(&seen)? {
        let code = check(header)?;
        let size = header[2];
        claims::check(&seen, code, usize::try_from(size).unwrap_or(LIMIT))?;
        match handler.handle_request() {
            Ok(()) => {}
            Err(source) => {
                let trouble = backend.lock().unwrap_or_else(PoisonError::into_inner).take_trouble();
                return Err(trouble.unwrap_or(match source {
                    // Gone while it was answered.
                    Error::Disconnected | Error::SocketBroken(_) => return Ok(()),
                    Error::InvalidMessage | Error::InvalidParam => {
                        ServeError::Malformed { name: format!("{code:?}"), size }
                    }
                    source => ServeError::Message { name: format!("{code:?}"), source },
                }));
            }
        }
    }
    Ok(())
}

/// Waits for the next message, all of it, and looks at its header; `None` if the peer is gone.
fn header(peer: &UnixStream) -> Result<Option<[u32; 3]>, ServeError> {
    let mut bytes = [0; HEADER];
    let mut peek = || loop {
        match recv(peer, &mut bytes[..], RecvFlags::PEEK) {
            Ok((_, got)) => return Ok((got, bytes)),
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok((0, bytes)),
            Err(error) => return Err(ServeError::system("the connection")(error.into())),
        }
    };
    if peek()?.0 == 0 {
        return Ok(None);
    }
    let begun = Instant::now();
    wait_for(peer, HEADER, begun)?;
    let (_, bytes) = peek()?;
    let (words, _) = bytes.as_chunks::<4>();
    let word = |at: usize| words.get(at).map_or(0, |word| u32::from_le_bytes(*word));
    let header = [word(0), word(1), word(2)];
    check(header)?;
    wait_for(peer, HEADER + usize::try_from(header[2]).unwrap_or(LIMIT), begun)?;
    Ok(Some(header))
}

/// Waits until `needed` bytes of a message are there.
fn wait_for(peer: &UnixStream, needed: usize, begun: Instant) -> Result<(), ServeError> {
    loop {
        // Asked first: what was sent before the peer went is there then.
        let over = gone(peer);
        let got = ioctl_fionread(peer).map_err(|error| ServeError::system("the connection")(error.into()))?;
        let got = usize::try_from(got).unwrap_or(usize::MAX);
        if got >= needed {
            return Ok(());
        }
        if over {
            return Err(ServeError::Cut { got });
        }
        if begun.elapsed() > PATIENCE {
            return Err(ServeError::Stalled { got, seconds: PATIENCE.as_secs() });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether the peer has closed its side.
fn gone(peer: &UnixStream) -> bool {
    let mut fds = [PollFd::new(peer, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP)
}

/// The message of a header, if it may be handled.
fn check([code, flags, size]: [u32; 3]) -> Result<FrontendReq, ServeError> {
    if flags & !NEED_REPLY != VERSION {
        return Err(ServeError::Foreign { code, flags });
    }
    let known = FrontendReq::try_from(code).map_err(|_| ServeError::Unknown { code })?;
    if code == IOTLB {
        return Err(ServeError::Iotlb);
    }
    if usize::try_from(size).unwrap_or(usize::MAX) > LIMIT {
        return Err(ServeError::Oversized { name: format!("{known:?}"), size, limit: LIMIT });
    }
    if !is_served(known) {
        return Err(ServeError::Unserved { name: format!("{known:?}") });
    }
    Ok(known)
}

/// Whether a message belongs to what is offered.
const fn is_served(code: FrontendReq) -> bool {
    use FrontendReq as Req;
    matches!(
        code,
        Req::GET_FEATURES
            | Req::SET_FEATURES
            | Req::SET_OWNER
            | Req::RESET_OWNER
            | Req::SET_MEM_TABLE
            | Req::SET_VRING_NUM
            | Req::SET_VRING_ADDR
            | Req::SET_VRING_BASE
            | Req::GET_VRING_BASE
            | Req::SET_VRING_KICK
            | Req::SET_VRING_CALL
            | Req::SET_VRING_ERR
            | Req::GET_PROTOCOL_FEATURES
            | Req::SET_PROTOCOL_FEATURES
            | Req::GET_QUEUE_NUM
            | Req::SET_VRING_ENABLE
            | Req::SET_BACKEND_REQ_FD
            | Req::GET_CONFIG
            | Req::GET_MAX_MEM_SLOTS
            | Req::ADD_MEM_REG
            | Req::REM_MEM_REG
    )
}

/// VHOST_USER_IOTLB_MSG.
const IOTLB: u32 = 22;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_wrong_with_a_header_is_told() {
        let say = |header| check(header).unwrap_err().to_string();
        assert_eq!(check([1, 1, 0]).unwrap(), FrontendReq::GET_FEATURES);
        assert_eq!(check([2, 9, 8]).unwrap(), FrontendReq::SET_FEATURES);
        assert!(say([0x2054_4547, 0x5448_202f, 0]).starts_with("no vhost-user: a message begins with 0x20544547"));
        assert!(say([1, 5, 0]).starts_with("no vhost-user"), "a reply is no request");
        assert_eq!(say([4242, 1, 0]), "message 4242 is none that this device knows");
        assert!(say([22, 1, 0]).contains("vIOMMU"));
        assert_eq!(say([5, 1, 5000]), "message SET_MEM_TABLE claims 5000 bytes: at most 4096");
    }

    fn config() -> Config {
        let store = super::super::config::StoreAt::Null(1 << 20);
        Config {
            number: 1,
            queues: 2,
            queue_size: 64,
            read_only: false,
            discard: true,
            width: 64,
            store,
            trace: false,
            began: 0,
        }
    }

    proptest! {
        /// Any bytes at all, in or out of a message, end in an error or the end: no panic, no hang.
        #[test]
        fn any_bytes_are_survived(
            sent in prop::collection::vec((0u32..48, 0u32..16, prop::collection::vec(any::<u8>(), 0..64), any::<bool>()), 0..8),
            tail in prop::collection::vec(any::<u8>(), 0..16),
        ) {
            let (mut there, here) = UnixStream::pair().unwrap();
            for (code, flags, body, lie) in sent {
                let flags = if flags < 14 { 1 | (flags & 8) } else { flags };
                let size = u32::try_from(body.len()).unwrap() + u32::from(lie);
                for word in [code, flags, size] {
                    there.write_all(&word.to_le_bytes()).unwrap();
                }
                there.write_all(&body).unwrap();
            }
            there.write_all(&tail).unwrap();
            there.shutdown(Shutdown::Write).unwrap();
            let (link, _server) = UnixStream::pair().unwrap();
            let backend = Arc::new(Mutex::new(Backend::new(config(), &Arc::new(Link::new(link))).unwrap()));
            let _ = messages(here, &backend);
            prop_assert!(backend.lock().unwrap().end().is_ok());
        }
    }
}
