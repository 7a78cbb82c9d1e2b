//! The socket that peers connect to: made, taken over from a dead server, removed.
//!
//! A socket file outlives the server that made it. One that nobody answers at is replaced; one that somebody answers
//! at, and anything that is no socket, is left alone. Neighbours: [`super::server`]. Left out: a name given by
//! systemd.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::error::ServeError;

/// Bytes of the longest path: `sun_path` less its terminating zero.
const LIMIT: usize = 107;

/// A listening socket; the file goes when it drops, if it is still the same.
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file.
    id: (u64, u64),
}

fn id(path: &Path) -> io::Result<(u64, u64)> {
    path.symlink_metadata().map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Socket {
    /// Listens at `path`.
    pub fn bind(path: &Path) -> Result<Self, ServeError> {
        let len = path.as_os_str().len();
        if len > LIMIT {
            return Err(ServeError::LongPath { path: path.to_owned(), len, limit: LIMIT });
        }
        clear(path)?;
        let failed = |source: io::Error| match source.kind() {
            // Somebody was faster.
            io::ErrorKind::AddrInUse => ServeError::InUse { path: path.to_owned() },
            _ => ServeError::Socket { path: path.to_owned(), source },
        };
        let listener = UnixListener::bind(path).map_err(failed)?;
        let id = id(path).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), id })
    }

    /// What connections come in at.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if id(&self.path).is_ok_and(|now| now == self.id) {
            // Nothing can be done about a file that stays; the next server replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the socket of a dead server.
fn clear(path: &Path) -> Result<(), ServeError> {
    let failed = |source: io::Error| ServeError::Socket { path: path.to_owned(), source };
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ServeError::NotASocket { path: path.to_owned() });
    }
    let address = SocketAddrUnix::new(path).map_err(|error| failed(error.into()))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(|e| failed(e.into()))?;
    match connect(&probe, &address) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(failed),
        // Connected, or a server too busy to take another, or a socket of another type.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(ServeError::InUse { path: path.to_owned() }),
        Err(error) => Err(failed(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("lowzone-socket-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_dead_servers_socket_is_replaced_and_a_live_ones_is_not() {
        let path = place("live");
        drop(UnixListener::bind(&path).unwrap());
        let first = Socket::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path), Err(ServeError::InUse { .. })));
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_stays_and_a_successors_socket_too() {
        let path = place("file");
        fs::write(&path, "mine").unwrap();
        assert!(matches!(Socket::bind(&path), Err(ServeError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        fs::remove_file(&path).unwrap();
        let old = Socket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let new = Socket::bind(&path).unwrap();
        drop(old);
        assert!(path.exists());
        drop(new);
    }

    #[test]
    fn a_path_too_long_is_told_with_both_lengths() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
        let text = Socket::bind(&path).map(|_| ()).unwrap_err().to_string();
        assert!(text.ends_with("at most 107 bytes, this one has 125"), "{text}");
    }
}
