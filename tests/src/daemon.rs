//! qemu-storage-daemon: a vhost-user-blk device that nobody of this project wrote.
//!
//! Neighbours: `peer`, which says whether it is installed. It is killed when this is dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::peer;

/// How long a daemon may take to listen; it takes milliseconds on a machine that has nothing else to do.
const START: Duration = Duration::from_secs(60);

/// Whether it is installed.
///
/// # Panics
/// As [`peer::is_here`].
#[track_caller]
pub fn is_here() -> bool {
    peer::is_here("qemu-storage-daemon", "qemu-system-common")
}

/// What it exports.
#[derive(Clone, Debug)]
pub enum Backing {
    /// A raw file.
    File(PathBuf),
    /// So many bytes that read as zeros and forget what is written, at once.
    Null(u64),
}

/// One daemon with one disk.
pub struct Daemon {
    backing: Backing,
    queues: u16,
    socket: PathBuf,
    child: Child,
}

impl Daemon {
    /// Starts one that listens at `socket`.
    ///
    /// # Panics
    /// If it doesn't.
    pub fn start(socket: &Path, backing: Backing, queues: u16) -> Self {
        let child = launch(socket, &backing, queues);
        let mut daemon = Self { backing, queues, socket: socket.to_owned(), child };
        daemon.await_socket();
        daemon
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends it as `kill -9` does.
    ///
    /// # Panics
    /// If the host can't.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after [`Daemon::kill`].
    ///
    /// # Panics
    /// If it does not listen.
    pub fn restart(&mut self) {
        std::fs::remove_file(&self.socket).unwrap();
        self.child = launch(&self.socket, &self.backing, self.queues);
        self.await_socket();
    }

    fn await_socket(&mut self) {
        let begun = Instant::now();
        while !self.socket.exists() {
            assert!(self.child.try_wait().unwrap().is_none(), "the daemon ended");
            assert!(begun.elapsed() < START, "the daemon does not listen");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have been killed before.
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_file(&self.socket));
    }
}

fn launch(socket: &Path, backing: &Backing, queues: u16) -> Child {
    let blockdev = match backing {
        Backing::File(path) => format!("driver=file,filename={},node-name=d0", path.display()),
        Backing::Null(bytes) => format!("driver=null-co,size={bytes},read-zeroes=off,node-name=d0"),
    };
    let address = format!("addr.type=unix,addr.path={}", socket.display());
    let export = format!("type=vhost-user-blk,id=e0,node-name=d0,{address},writable=on,num-queues={queues}");
    Command::new("qemu-storage-daemon")
        .args(["--blockdev", &blockdev, "--export", &export])
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}
