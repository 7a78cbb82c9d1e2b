//! `lowzone serve`, or another back end, as a process of its own.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use lowzone_tests::image::Folder;
use lowzone_tests::program::{Outcome, command};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// A running server and its folder, in which the socket lies.
pub struct Server {
    child: Option<Child>,
    pub folder: Folder,
}

impl Server {
    /// Starts `lowzone serve virtio-blk` with these arguments besides the socket.
    pub fn start<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Self {
        Self::start_in(Folder::new(), args)
    }

    /// The same, in a folder that is there.
    pub fn start_in<A: AsRef<OsStr>>(folder: Folder, args: impl IntoIterator<Item = A>) -> Self {
        let socket = folder.path().join("s");
        let mut command = command(["serve", "virtio-blk", "--vhost-user"].map(OsStr::new));
        command.arg(&socket).args(args).process_group(0);
        let mut child = command.spawn().unwrap();
        // The first line says that it listens.
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        if !line.starts_with("serving ") {
            panic!("not serving: {line}{:?}", Outcome::of(&child.wait_with_output().unwrap()));
        }
        child.stdout = Some(out.into_inner());
        Self { child: Some(child), folder }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    /// Ctrl-C, and how it ended.
    pub fn stop(mut self) -> (Outcome, Folder) {
        kill_process(self.pid(), Signal::INT).unwrap();
        let child = self.child.take().unwrap();
        (Outcome::of(&child.wait_with_output().unwrap()), std::mem::take(&mut self.folder))
    }

    /// kill -9, of the connection's process too.
    pub fn kill(mut self) -> Folder {
        let connection = connection_of(self.pid());
        kill_process(self.pid(), Signal::KILL).unwrap();
        self.child.take().unwrap().wait().unwrap();
        let begun = Instant::now();
        while connection.iter().any(|pid| alive(pid)) {
            assert!(begun.elapsed() < Duration::from_secs(10), "the connection's process outlives the server");
            std::thread::yield_now();
        }
        std::mem::take(&mut self.folder)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            let _ = child.wait();
        }
    }
}

/// The processes that a process has started.
pub fn connection_of(pid: Pid) -> Vec<PathBuf> {
    let path = format!("/proc/{0}/task/{0}/children", pid.as_raw_nonzero());
    let children = std::fs::read_to_string(path).unwrap();
    children.split_whitespace().map(|pid| Path::new("/proc").join(pid)).collect()
}

fn alive(process: &Path) -> bool {
    std::fs::read_to_string(process.join("stat")).is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
}
