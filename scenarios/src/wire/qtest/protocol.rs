//! The qtest protocol: one line asks, one line answers, and lines about interrupts come in between.
//!
//! Mirrors softmmu/qtest.c of QEMU 7.2. Commands that need no answer in between travel together, so that a config
//! access by the two ports costs one round trip. Neighbours: `bus`, which is the only caller. Left out: everything but
//! memory, ports and interrupts.

use std::fmt::{self, Write as _};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use lowzone_guest_mem::iospace::Width;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long an answer may take.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
/// Longer than any line of the protocol that is asked for here.
const LINE: usize = 512;

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Failure {
    /// The other side is gone.
    Closed,
    /// Nothing came in time.
    Silent { command: String, limit: Duration },
    /// Something else came.
    Answer { command: String, answer: String },
}

/// A change of an interrupt line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Line {
    pub(super) number: usize,
    pub(super) high: bool,
}

/// One line of QEMU's.
enum Heard {
    /// An answer, and its value if it has one.
    Value(u64),
    /// A change of an interrupt line.
    Line,
    /// Something else.
    Nonsense(String),
}

/// Our end of the socket.
pub(super) struct Client {
    stream: UnixStream,
    limit: Duration,
    asked: String,
    /// What was read; `start..end` is not yet used.
    buffer: [u8; LINE],
    start: usize,
    end: usize,
    /// Changes of lines that came since they were last taken, oldest first.
    lines: Vec<Line>,
}

impl Client {
    /// A client on this socket, whose answers may take so long.
    pub(super) fn new(stream: UnixStream, limit: Duration) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        let asked = String::with_capacity(LINE);
        Ok(Self { stream, limit, asked, buffer: [0; LINE], start: 0, end: 0, lines: Vec::with_capacity(16) })
    }

    /// Reads guest-physical memory or registers.
    pub(super) fn read(&mut self, at: u64, width: Width) -> Result<u64, Failure> {
        self.exchange(1, format_args!("read{} {at:#x}\n", letter(width)))
    }

    /// Writes guest-physical memory or registers.
    pub(super) fn write(&mut self, at: u64, width: Width, value: u64) -> Result<(), Failure> {
        self.exchange(1, format_args!("write{} {at:#x} {value:#x}\n", letter(width))).map(drop)
    }

    /// Writes one port and reads another.
    pub(super) fn select_in(&mut self, select: (u16, u32), port: u16, width: Width) -> Result<u64, Failure> {
        let (at, what) = select;
        self.exchange(2, format_args!("outl {at:#x} {what:#x}\nin{} {port:#x}\n", letter(width)))
    }

    /// Writes one port and then another.
    pub(super) fn select_out(
        &mut self,
        select: (u16, u32),
        port: u16,
        width: Width,
        value: u32,
    ) -> Result<(), Failure> {
        let (at, what) = select;
        let asked = format_args!("outl {at:#x} {what:#x}\nout{} {port:#x} {value:#x}\n", letter(width));
        self.exchange(2, asked).map(drop)
    }

    /// Asks to be told of every change of a device's input lines.
    pub(super) fn intercept(&mut self, device: &str) -> Result<(), Failure> {
        self.exchange(1, format_args!("irq_intercept_in {device}\n")).map(drop)
    }

    /// Reads what came unasked, without waiting.
    pub(super) fn listen(&mut self) -> Result<(), Failure> {
        loop {
            while let Some(heard) = self.buffered() {
                if let Heard::Value(_) | Heard::Nonsense(_) = heard {
                    return Err(self.nonsense(heard));
                }
            }
            let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
            match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
                Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(()),
                Ok(_) => self.fill()?,
                Err(_) => return Err(Failure::Closed),
            }
        }
    }

    /// The changes of lines so far.
    pub(super) fn take_lines(&mut self) -> std::vec::Drain<'_, Line> {
        self.lines.drain(..)
    }

    /// Sends commands; the value of the last of `answers` answers, 0 where it has none.
    fn exchange(&mut self, answers: usize, commands: fmt::Arguments<'_>) -> Result<u64, Failure> {
        self.asked.clear();
        // Writing to a string can't fail.
        let _ = self.asked.write_fmt(commands);
        self.stream.write_all(self.asked.as_bytes()).map_err(|error| self.failure(&error))?;
        let mut value = 0;
        for _ in 0..answers {
            value = self.answer()?;
        }
        Ok(value)
    }

    fn answer(&mut self) -> Result<u64, Failure> {
        loop {
            match self.buffered() {
                Some(Heard::Value(value)) => return Ok(value),
                Some(Heard::Line) => {}
                Some(nonsense) => return Err(self.nonsense(nonsense)),
                None => self.fill()?,
            }
        }
    }

    /// The next whole line in the buffer; a change of an interrupt line is kept.
    fn buffered(&mut self) -> Option<Heard> {
        let unread = &self.buffer[self.start..self.end];
        let len = unread.iter().position(|&byte| byte == b'\n')?;
        self.start += len + 1;
        let text = std::str::from_utf8(&unread[..len]).unwrap_or("(no text)").trim_end();
        if let Some(change) = text.strip_prefix("IRQ ").and_then(change) {
            self.lines.push(change);
            return Some(Heard::Line);
        }
        let value = match text.strip_prefix("OK") {
            Some("") => Some(0),
            Some(rest) => rest.strip_prefix(" 0x").and_then(|hex| u64::from_str_radix(hex, 16).ok()),
            None => None,
        };
        Some(value.map_or_else(|| Heard::Nonsense(text.to_owned()), Heard::Value))
    }

    fn nonsense(&self, heard: Heard) -> Failure {
        let answer = match heard {
            Heard::Nonsense(text) => text,
            Heard::Value(value) => format!("OK {value:#x}"),
            Heard::Line => String::new(),
        };
        Failure::Answer { command: self.command(), answer }
    }

    /// Waits for more bytes.
    fn fill(&mut self) -> Result<(), Failure> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == LINE {
            if self.start == 0 {
                let answer = String::from_utf8_lossy(&self.buffer).into_owned();
                return Err(Failure::Answer { command: self.command(), answer });
            }
            self.buffer.copy_within(self.start.., 0);
            (self.start, self.end) = (0, LINE - self.start);
        }
        loop {
            match self.stream.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(Failure::Closed),
                Ok(read) => {
                    self.end += read;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failure(&error)),
            }
        }
    }

    fn failure(&self, error: &std::io::Error) -> Failure {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                Failure::Silent { command: self.command(), limit: self.limit }
            }
            _ => Failure::Closed,
        }
    }

    fn command(&self) -> String {
        self.asked.trim_end().replace('\n', "; ")
    }
}

/// `raise 10` or `lower 10`.
fn change(event: &str) -> Option<Line> {
    let (what, number) = event.split_once(' ')?;
    let high = what == "raise";
    (high || what == "lower").then_some(Line { number: number.parse().ok()?, high })
}

fn letter(width: Width) -> char {
    match width {
        Width::B1 => 'b',
        Width::B2 => 'w',
        Width::B4 => 'l',
        Width::B8 => 'q',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client whose other side says `script` whatever it is asked, and then hangs up.
    fn client(script: &str) -> Client {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(script.as_bytes()).unwrap();
        // Kept open for writing by the client: closed now for reading by it.
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        std::mem::forget(theirs);
        Client::new(ours, LIMIT).unwrap()
    }

    #[test]
    fn answers_are_found_among_interrupts() {
        let mut client = client("IRQ raise 10\nOK 0x00000000000000ff\nIRQ lower 10\nIRQ raise 5\nOK\nIRQ lower 5\n");
        assert_eq!(client.read(0x1000, Width::B4), Ok(0xff));
        assert_eq!(client.write(0x1000, Width::B4, 1), Ok(()));
        let line = |number, high| Line { number, high };
        assert_eq!(client.take_lines().collect::<Vec<_>>(), [line(10, true), line(10, false), line(5, true)]);
        assert_eq!(client.listen(), Err(Failure::Closed));
        assert_eq!(client.take_lines().collect::<Vec<_>>(), [line(5, false)], "what came before the end is there");
    }

    #[test]
    fn two_commands_have_two_answers_and_the_last_counts() {
        let mut client = client("OK\nOK 0x1234\n");
        assert_eq!(client.select_in((0xcf8, 1 << 31), 0xcfc, Width::B2), Ok(0x1234));
        assert_eq!(client.select_in((0xcf8, 1 << 31), 0xcfc, Width::B2), Err(Failure::Closed));
    }

    #[test]
    fn nonsense_is_refused_with_what_was_asked() {
        for (script, seen) in [
            ("FAIL Unknown command 'readl'\n", "FAIL Unknown command 'readl'"),
            ("OK 0xxyz\n", "OK 0xxyz"),
            ("OKAY\n", "OKAY"),
            ("OK 0x1ffffffffffffffff\n", "OK 0x1ffffffffffffffff"),
            ("IRQ explode 7\n", "IRQ explode 7"),
            ("IRQ raise many\n", "IRQ raise many"),
            ("\n", ""),
        ] {
            let answer = Failure::Answer { command: "readl 0x1000".to_owned(), answer: seen.to_owned() };
            assert_eq!(client(script).read(0x1000, Width::B4), Err(answer), "{script:?}");
        }
        let long = "x".repeat(4 * LINE);
        assert!(matches!(client(&long).read(0, Width::B1), Err(Failure::Answer { .. })));
        assert!(matches!(client("OK\n").listen(), Err(Failure::Answer { .. })), "an answer to nothing");
    }

    #[test]
    fn silence_has_a_limit() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let limit = Duration::from_millis(20);
        let mut client = Client::new(ours, limit).unwrap();
        let silent = Failure::Silent { command: "outl 0xcf8 0x80000000; inw 0xcfe".to_owned(), limit };
        assert_eq!(client.select_in((0xcf8, 1 << 31), 0xcfe, Width::B2), Err(silent));
        drop(theirs);
    }

    #[test]
    fn a_line_may_come_in_pieces() {
        let pieces = "IRQ raise 1\n".repeat(100) + "OK 0x0000000000000007\n";
        let mut client = client(&pieces);
        assert_eq!(client.read(0, Width::B8), Ok(7));
        assert_eq!(client.take_lines().count(), 100);
    }
}
