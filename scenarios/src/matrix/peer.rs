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

/// A disk of qemu-storage-daemon's, at a socket; it ends when dropped.
pub(super) struct StorageDaemon {
    child: Child,
    socket: PathBuf,
    /// The device that it stands for.
    device: String,
    bytes: u64,
    /// Opened by the daemon through `/proc`, where the disk is in memory.
    _disk: Option<File>,
}

impl StorageDaemon {
    /// Starts it with a disk like a scenario's; `earlier` are those of the devices before it.
    pub(super) fn start(device: &Device, earlier: &[Self]) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let socket = std::env::temp_dir().join(format!("lowzone-{}-{number}.sock", std::process::id()));
        let (bytes, image) = match device.store() {
            Some(StoreSpec::Memory(bytes)) => (bytes, None),
            Some(StoreSpec::SizeOf(name)) => {
                (earlier.iter().find(|other| other.device == name).map_or(BYTES, |other| other.bytes), None)
            }
            Some(StoreSpec::Image(path)) => (std::fs::metadata(path)?.len(), Some(path)),
            None => (BYTES, None),
        };
        let disk = if image.is_none() { Some(memory_file("lowzone-disk", bytes)?) } else { None };
        let path = disk.as_ref().map_or_else(|| image.unwrap_or_default().to_owned(), path_of);
        let mut command = Command::new("qemu-storage-daemon");
        command.arg("--blockdev").arg(format!(
            "driver=file,filename={path},node-name=d0,locking=off,discard=unmap,read-only={}",
            if device.read_only { "on" } else { "off" }
        ));
        command.arg("--export").arg(format!(
            "type=vhost-user-blk,id=e0,node-name=d0,writable={},num-queues={},addr.type=unix,addr.path={}",
            if device.read_only { "off" } else { "on" },
            device.queues,
            socket.display()
        ));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut daemon = Self { child, socket, device: device.name.clone(), bytes, _disk: disk };
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
