//! The emulator as a process: started with everything it needs on inherited or in-memory files, and never left behind.
//!
//! The qtest socket is its standard input; firmware and scratch disks are memfds that it opens through `/proc`; what it
//! prints goes to one more, to be quoted when it dies. So there is no file on disk to clean up.
//! It has a process group of its own, so that Ctrl-C reaches the lab alone, which ends it in order; and where `setpriv`
//! (util-linux) is there it dies with the thread that started it. Left out: restarting.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::QtestError;
use crate::host::{find, memory_file, path_of};

/// The emulator.
const PROGRAM: &str = "qemu-system-x86_64";
/// The smallest firmware QEMU takes.
const FIRMWARE: usize = 64 << 10;
/// The x86 reset vector, in firmware of that size.
const RESET: usize = 0xfff0;
/// `cli; hlt; jmp .-1`: the virtual clock runs, which it would not with `-S`, and the CPU does nothing.
const HALT: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];
/// How long it may take to end when asked to.
const QUIT: Duration = Duration::from_secs(2);
/// The most of its output that is quoted.
const QUOTED: usize = 4096;

/// A running emulator; killed and reaped when dropped.
pub struct Process {
    child: Child,
    output: File,
    /// What its command line names by descriptor.
    _files: Vec<File>,
}

impl Process {
    /// Starts it with these options and files, and gives the other end of its qtest socket.
    ///
    /// # Errors
    /// [`QtestError::Missing`] if it isn't installed, [`QtestError::Host`] if the host refuses.
    pub fn start(mut args: Vec<String>, mut files: Vec<File>) -> Result<(Self, UnixStream), QtestError> {
        let program = find(PROGRAM).ok_or(QtestError::Missing { program: PROGRAM })?;
        let firmware = scratch("firmware", FIRMWARE as u64)?;
        firmware.write_all_at(&HALT, RESET as u64).map_err(host("firmware"))?;
        args.extend(["-bios".to_owned(), path_of(&firmware)]);
        files.push(firmware);
        let (ours, theirs) = UnixStream::pair().map_err(host("socket"))?;
        let output = scratch("output", 0)?;
        let copy = || output.try_clone().map_err(host("output"));
        let mut command = match find("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args([OsStr::new("--pdeathsig"), OsStr::new("KILL"), program.as_os_str()]);
                command
            }
            None => Command::new(program),
        };
        command.args(["-chardev", "socket,id=qtest,fd=0", "-qtest", "chardev:qtest", "-qtest-log", "none"]);
        command.args(args).process_group(0);
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::from(copy()?)).stderr(Stdio::from(copy()?));
        let child = command.spawn().map_err(host(PROGRAM))?;
        Ok((Self { child, output, _files: files }, ours))
    }

    /// What it printed so far, at most the last few kilobytes.
    pub fn said(&self) -> String {
        let len = self.output.metadata().map_or(0, |meta| meta.len());
        let from = len.saturating_sub(QUOTED as u64);
        let mut bytes = vec![0; QUOTED];
        let read = self.output.read_at(&mut bytes, from).unwrap_or(0);
        bytes.truncate(read);
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }

    /// What to say once it has closed its socket: how it ended and what it printed.
    pub fn obituary(&mut self) -> String {
        let status = self.wait(QUIT).map_or_else(|| "it closed its socket".to_owned(), |status| status.to_string());
        match self.said() {
            said if said.is_empty() => status,
            said => format!("{status}: {said}"),
        }
    }

    /// Ends it in order, so that what it prints is all there; kills it if it takes too long.
    pub fn quit(&mut self) {
        if self.wait(Duration::ZERO).is_some() {
            return;
        }
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by now, which is as good.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        if self.wait(QUIT).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// Its number, for tests that end it.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn wait(&mut self, limit: Duration) -> Option<std::process::ExitStatus> {
        let begun = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            if begun.elapsed() >= limit {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.quit();
    }
}

/// A file in memory of so many zeros.
pub(super) fn scratch(what: &'static str, bytes: u64) -> Result<File, QtestError> {
    memory_file(what, bytes).map_err(host(what))
}

fn host(what: &'static str) -> impl Fn(std::io::Error) -> QtestError {
    move |source| QtestError::Host { what, source }
}
