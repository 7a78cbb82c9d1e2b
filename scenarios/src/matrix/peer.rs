//! The other side of a wire: whether it is installed, which version it is, and a disk of it for one run.
//!
//! Neighbours: `wire::qtest`, which starts QEMU itself.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::host::{find, memory_file, path_of};
use crate::spec::{Device, StoreSpec};

/// How long the daemon may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);
/// The disk of a device that has no size of its own.
const BYTES: u64 = 8 << 20;

/// Whether a program is installed.
pub(super) fn is_here(program: &str) -> bool {
    find(program).is_some()
}

/// What a program says of its version.
pub(super) fn version(program: &str) -> Option<String> {
    let output = Command::new(find(program)?).arg("--version").stdin(Stdio::null()).output().ok()?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
}

/// A disk of qemu-storage-daemon's in memory, at a socket; it ends when dropped.
pub(super) struct StorageDaemon {
    child: Child,
    socket: PathBuf,
    /// Opened by the daemon through `/proc`.
    _disk: File,
}

impl StorageDaemon {
    /// Starts it with a disk like a scenario's.
    pub(super) fn start(device: &Device) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let socket = std::env::temp_dir().join(format!("lowzone-{}-{number}.sock", std::process::id()));
        let bytes = if let Some(StoreSpec::Memory(bytes)) = device.store() { bytes } else { BYTES };
        let disk = memory_file("lowzone-disk", bytes)?;
        let path = path_of(&disk);
        let mut command = Command::new("qemu-storage-daemon");
        command.arg("--blockdev").arg(format!("driver=file,filename={path},node-name=d0,locking=off"));
        command.arg("--export").arg(format!(
            "type=vhost-user-blk,id=e0,node-name=d0,writable=on,num-queues={},addr.type=unix,addr.path={}",
            device.queues,
            socket.display()
        ));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut daemon = Self { child, socket, _disk: disk };
        let begun = Instant::now();
        while !daemon.socket.exists() {
            if daemon.child.try_wait()?.is_some() || begun.elapsed() > PATIENCE {
                return Err(io::Error::other("qemu-storage-daemon does not listen"));
            }
            std::thread::sleep(super::POLL);
        }
        Ok(daemon)
    }

    /// Where it listens.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        // One that is gone already needs no more.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}
