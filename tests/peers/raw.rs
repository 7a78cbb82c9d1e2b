//! A front end that says whatever it is told to.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use lowzone_tests::pages::Pages;

pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SET_BACKEND_REQ_FD: u32 = 21;
pub const SET_CONFIG: u32 = 25;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;

/// A connection.
pub struct Raw(pub UnixStream);

/// Numbers as they go into a message.
pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Pairs of 32 bits.
pub fn halves(halves: &[u32]) -> Vec<u8> {
    halves.iter().flat_map(|half| half.to_le_bytes()).collect()
}

impl Raw {
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(stream)
    }

    /// One that has come as far as talking of memory.
    pub fn greeted(socket: &Path) -> Self {
        let mut raw = Self::connect(socket);
        raw.say(SET_OWNER, &[]);
        raw.say(SET_FEATURES, &words(&[1 << 32 | 1 << 30]));
        // REPLY_ACK, BACKEND_REQ, CONFIG, CONFIGURE_MEM_SLOTS.
        raw.say(SET_PROTOCOL_FEATURES, &words(&[1 << 3 | 1 << 5 | 1 << 9 | 1 << 15]));
        raw
    }

    /// Sends bytes with files.
    pub fn send(&mut self, bytes: &[u8], files: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(files)));
        }
        // A server that has hung up already is what some of these tests want.
        let _ = sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    }

    pub fn say(&mut self, code: u32, body: &[u8]) {
        self.say_with(code, body, &[]);
    }

    pub fn say_with(&mut self, code: u32, body: &[u8], files: &[BorrowedFd<'_>]) {
        let mut message = halves(&[code, 1, u32::try_from(body.len()).unwrap()]);
        message.extend(body);
        self.send(&message, files);
    }

    /// Adds a region: guest address, length, address in this process, offset in the file.
    pub fn add(&mut self, region: [u64; 4], pages: &Pages) {
        let [guest, size, user, offset] = region;
        self.say_with(ADD_MEM_REG, &words(&[0, guest, size, user, offset]), &[pages.file.as_fd()]);
    }

    /// Waits until the server hangs up.
    pub fn wait_to_be_left(mut self) {
        let mut bytes = Vec::new();
        // Reset or closed: it makes no difference.
        if let Err(error) = self.0.read_to_end(&mut bytes) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the server goes on with this peer");
        }
    }
}

impl Raw {
    /// Says something and gives the answer's body.
    pub fn ask(&mut self, code: u32, body: &[u8]) -> Vec<u8> {
        self.say(code, body);
        self.answer(code)
    }

    /// Says something that wants an acknowledgement, and gets a good one.
    pub fn tell(&mut self, code: u32, body: &[u8], files: &[BorrowedFd<'_>]) {
        let mut message = halves(&[code, 1 | 1 << 3, u32::try_from(body.len()).unwrap()]);
        message.extend(body);
        self.send(&message, files);
        assert_eq!(self.answer(code), [0; 8], "message {code} is refused");
    }

    fn answer(&mut self, code: u32) -> Vec<u8> {
        let mut header = [0; 12];
        self.0.read_exact(&mut header).unwrap();
        let (words, _) = header.as_chunks::<4>();
        let [found, flags, size] = [0, 1, 2].map(|at| u32::from_le_bytes(words[at]));
        assert_eq!((found, flags), (code, 5), "an answer to {code}");
        let mut body = vec![0; usize::try_from(size).unwrap()];
        self.0.read_exact(&mut body).unwrap();
        body
    }
}
