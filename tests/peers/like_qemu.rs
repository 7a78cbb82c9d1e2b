//! A front end that talks as QEMU does: a table of two regions around 4 GiB, replaced while the queue runs; the bit
//! for the DMA API; a queue stopped and started where it was. Its ring is laid out by hand.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::raw::{
    Raw, SET_BACKEND_REQ_FD, SET_FEATURES, SET_MEM_TABLE, SET_OWNER, SET_PROTOCOL_FEATURES, SET_VRING_ADDR,
    SET_VRING_BASE, SET_VRING_CALL, SET_VRING_ENABLE, SET_VRING_KICK, SET_VRING_NUM, halves, words,
};
use crate::server::Server;
use lowzone_tests::image::Folder;
use lowzone_tests::pages::Pages;

const GET_FEATURES: u32 = 1;
const GET_VRING_BASE: u32 = 11;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_CONFIG: u32 = 24;

const LOW: u64 = 0x10_0000;
const HIGH: u64 = 1 << 32;
const USER: u64 = 0x7f12_3450_0000;
const SIZE: usize = 0x10_0000;
const RING: u16 = 8;
/// Where things lie in the region above 4 GiB; data is in the low one.
const DESC: usize = 0;
const AVAIL: usize = 0x1000;
const USED: usize = 0x2000;
const HEADER: usize = 0x3000;
const STATUS: usize = 0x3100;

struct Front {
    raw: Raw,
    low: Pages,
    high: Pages,
    kick: File,
    call: File,
    next: u16,
}

impl Front {
    /// One that has agreed on everything, with its queue running.
    fn running(server: &Server) -> Self {
        let mut raw = Raw::greeted(&server.socket());
        raw.ask(GET_FEATURES, &[]);
        raw.tell(SET_FEATURES, &words(&[1 << 32 | 1 << 30]), &[]);
        let (low, high) = (Pages::new(SIZE), Pages::new(SIZE));
        let mut front = Self { raw, low, high, kick: bell(), call: bell(), next: 0 };
        front.table(0);
        front.start(0, 0);
        front
    }

    /// Sends the table; `shift` moves where the regions seem to be in this process.
    fn table(&mut self, shift: u64) {
        let mut body = halves(&[2, 0]);
        let size = SIZE as u64;
        body.extend(words(&[LOW, size, USER + shift, 0, HIGH, size, USER + shift + size, 0]));
        self.raw.tell(SET_MEM_TABLE, &body, &[self.low.file.as_fd(), self.high.file.as_fd()]);
    }

    /// Sets the queue up at `base`.
    fn start(&mut self, base: u16, shift: u64) {
        let at = |within: usize| USER + shift + SIZE as u64 + within as u64;
        self.raw.tell(SET_VRING_NUM, &halves(&[0, RING.into()]), &[]);
        self.raw.tell(SET_VRING_BASE, &halves(&[0, base.into()]), &[]);
        let mut body = halves(&[0, 0]);
        body.extend(words(&[at(DESC), at(USED), at(AVAIL), 0]));
        self.raw.tell(SET_VRING_ADDR, &body, &[]);
        self.raw.tell(SET_VRING_KICK, &words(&[0]), &[self.kick.as_fd()]);
        self.raw.tell(SET_VRING_CALL, &words(&[0]), &[self.call.as_fd()]);
        self.raw.tell(SET_VRING_ENABLE, &halves(&[0, 1]), &[]);
    }

    fn stop(&mut self) -> u16 {
        let answer = self.raw.ask(GET_VRING_BASE, &halves(&[0, 0]));
        assert_eq!(answer[..4], [0; 4]);
        u16::from_le_bytes([answer[4], answer[5]])
    }

    /// One request for 512 bytes of data below 4 GiB; its status.
    fn request(&mut self, write: bool, sector: u64) -> u8 {
        let high = |within: usize| HIGH + within as u64;
        let put = |index: usize, addr: u64, len: u32, flags: u32| {
            self.high.put(DESC + 16 * index, &words(&[addr, u64::from(len) | u64::from(flags) << 32]));
        };
        let next = |index: u32| 1 | index << 16;
        put(0, high(HEADER), 16, next(1));
        put(1, LOW, 512, next(2) | if write { 0 } else { 2 });
        put(2, high(STATUS), 1, 2);
        self.high.put(HEADER, &words(&[u64::from(write), sector]));
        self.high.put(STATUS, &[0xff]);
        self.high.put(AVAIL + 4 + 2 * usize::from(self.next % RING), &0_u16.to_le_bytes());
        self.next = self.next.wrapping_add(1);
        self.high.put(AVAIL + 2, &self.next.to_le_bytes());
        self.kick.write_all(&1_u64.to_ne_bytes()).unwrap();
        let begun = Instant::now();
        while self.high.get(USED + 2, 2) != self.next.to_le_bytes() {
            assert!(begun.elapsed() < Duration::from_secs(10), "no answer");
            std::thread::yield_now();
        }
        self.high.get(STATUS, 1)[0]
    }
}

fn bell() -> File {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap().into()
}

#[test]
fn memory_changes_under_a_running_queue_and_a_stopped_one_goes_on_where_it_was() {
    let server = Server::start(["--memory", "1M"]);
    let mut raw = Raw::connect(&server.socket());
    raw.say(SET_OWNER, &[]);
    let word = |bytes: Vec<u8>| u64::from_le_bytes(*bytes.first_chunk().unwrap());
    let offered = word(raw.ask(GET_FEATURES, &[]));
    let wanted = 1 << 33 | 1 << 32 | 1 << 30 | 1 << 9;
    assert_eq!(offered & wanted, wanted, "{offered:#x}");
    // QEMU keeps the bit for the DMA API to itself, but asks for these two before it offers it to a guest.
    assert_eq!(word(raw.ask(GET_PROTOCOL_FEATURES, &[])) & (1 << 3 | 1 << 5), 1 << 3 | 1 << 5);
    raw.say(SET_PROTOCOL_FEATURES, &words(&[1 << 3 | 1 << 5 | 1 << 9]));
    let (requests, _other) = UnixStream::pair().unwrap();
    raw.tell(SET_BACKEND_REQ_FD, &[], &[requests.as_fd()]);
    let mut question = halves(&[0, 60, 0]);
    question.extend([0; 60]);
    let answer = raw.ask(GET_CONFIG, &question);
    assert_eq!((answer.len(), word(answer[12..].to_vec())), (72, 2048));
    raw.tell(SET_FEATURES, &words(&[1 << 32 | 1 << 30 | 1 << 9]), &[]);
    let (low, high) = (Pages::new(SIZE), Pages::new(SIZE));
    let mut front = Front { raw, low, high, kick: bell(), call: bell(), next: 0 };
    front.table(0);
    front.start(0, 0);
    front.low.put(0, &[0xab; 512]);
    assert_eq!(front.request(true, 7), 0);
    // Other files at the same places: what the queue does next it does there.
    front.low = Pages::new(SIZE);
    let old = std::mem::replace(&mut front.high, Pages::new(SIZE));
    front.high.put(0, &old.get(0, SIZE));
    front.table(0);
    assert_eq!(front.request(false, 7), 0);
    assert_eq!(front.low.get(0, 512), [0xab; 512]);
    assert_eq!(front.request(false, 2048), 1, "past the end");
    assert_eq!(front.stop(), 3);
    // The peer's own addresses move too, as they do when a peer starts anew.
    front.table(0x1000_0000);
    front.start(3, 0x1000_0000);
    assert_eq!(front.request(false, 0), 0);
    assert_eq!(front.low.get(0, 512), [0; 512]);
    assert_eq!(front.stop(), 4);
    front.call.read_exact(&mut [0; 8]).unwrap();
    drop(front);
    let (outcome, _) = server.stop();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
    assert!(outcome.stdout.contains("4 requests, 1 failed; 1024 bytes read, 512 written"), "{outcome:?}");
}

#[test]
fn a_ring_whose_file_is_cut_ends_its_connection_and_the_image_has_what_was_done() {
    let folder = Folder::new();
    let image = folder.file("disk.img", &[5; 1 << 20]);
    let server = Server::start(["--image", image.to_str().unwrap()]);
    for sector in 0..3 {
        let mut front = Front::running(&server);
        front.low.put(0, &[0xc0 + u8::try_from(sector).unwrap(); 512]);
        assert_eq!(front.request(true, sector), 0);
        // The device looks at the ring when it is told, and the ring isn't there any more.
        front.high.file.set_len(0).unwrap();
        front.kick.write_all(&1_u64.to_ne_bytes()).unwrap();
        front.raw.wait_to_be_left();
    }
    // A good one reads what the others wrote.
    let mut front = Front::running(&server);
    for sector in 0..3 {
        assert_eq!(front.request(false, sector), 0);
        assert_eq!(front.low.get(0, 512), [0xc0 + u8::try_from(sector).unwrap(); 512]);
    }
    assert_eq!(front.stop(), 3);
    drop(front);
    let (outcome, _) = server.stop();
    let cut = "ended: the file behind its memory was cut while it was in use (SIGBUS)";
    let lines: Vec<_> = (1..4).map(|nth| format!("lowzone: serve: connection {nth}: {cut}")).collect();
    assert_eq!(outcome.stderr.lines().collect::<Vec<_>>(), lines);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let bytes = std::fs::read(&image).unwrap();
    let wanted = [[0xc0; 512], [0xc1; 512], [0xc2; 512]].concat();
    assert!(bytes[..1536] == wanted && bytes[1536..].iter().all(|byte| *byte == 5));
}
