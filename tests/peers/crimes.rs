//! What bad front ends do, each with what is said of it. `bad_peers` commits them one after another.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::event::{EventfdFlags, eventfd};

use crate::raw::{
    ADD_MEM_REG, REM_MEM_REG, Raw, SET_BACKEND_REQ_FD, SET_CONFIG, SET_FEATURES, SET_MEM_TABLE, SET_OWNER,
    SET_PROTOCOL_FEATURES, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_CALL, SET_VRING_ENABLE, SET_VRING_ERR,
    SET_VRING_KICK, SET_VRING_NUM, halves, words,
};
use lowzone_tests::pages::Pages;

/// What a peer does, and what is said of it.
pub type Crime = (&'static str, fn(&Path));

/// A region: guest address, bytes, address in the peer, offset in its file.
const WIDE: [u64; 4] = [0x1_0000, 0x4000, USER, 0];
const USER: u64 = 0x7f00_0000_0000;
const GET_VRING_BASE: u32 = 11;
const NET_SET_MTU: u32 = 20;
const IOTLB_MSG: u32 = 22;
const GET_INFLIGHT_FD: u32 = 31;

/// A peer that knows how to behave says one wrong thing.
fn says(socket: &Path, code: u32, body: &[u8], files: &[BorrowedFd<'_>]) {
    let mut raw = Raw::greeted(socket);
    raw.say_with(code, body, files);
    raw.wait_to_be_left();
}

/// It sends bytes that are none of its messages.
fn sends(socket: &Path, bytes: &[u8]) {
    let mut raw = Raw::connect(socket);
    raw.send(bytes, &[]);
    raw.wait_to_be_left();
}

/// It hands over regions, all of one file of so many bytes, one by one; the last is wrong.
fn adds(socket: &Path, bytes: u64, regions: &[[u64; 4]]) {
    let (mut raw, pages) = (Raw::greeted(socket), Pages::new(0x4000));
    pages.file.set_len(bytes).unwrap();
    regions.iter().for_each(|region| raw.add(*region, &pages));
    raw.wait_to_be_left();
}

/// It hands over a whole table: the number that it claims, the regions and the files.
fn tables(socket: &Path, claims: u32, regions: &[[u64; 4]], files: usize) {
    let pages = Pages::new(0x4000);
    let mut body = halves(&[claims, 0]);
    regions.iter().for_each(|region| body.extend(words(region)));
    says(socket, SET_MEM_TABLE, &body, &vec![pages.file.as_fd(); files]);
}

/// It sets queue 1 up with these places of descriptors, available and used ring, and starts it.
fn starts(socket: &Path, [desc, avail, used]: [u64; 3]) {
    let (mut raw, pages) = (Raw::greeted(socket), Pages::new(0x4000));
    raw.add(WIDE, &pages);
    let mut body = halves(&[1, 0]);
    body.extend(words(&[desc, used, avail, 0]));
    raw.say(SET_VRING_ADDR, &body);
    raw.say_with(SET_VRING_KICK, &words(&[1]), &[bell().as_fd()]);
    raw.say(SET_VRING_ENABLE, &halves(&[1, 1]));
    raw.wait_to_be_left();
}

fn bell() -> File {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap().into()
}

fn null() -> File {
    File::options().read(true).write(true).open("/dev/null").unwrap()
}

const NO_MESSAGES: &[Crime] = &[
    ("no vhost-user: a message begins with 0x20544547, 0x5448202f", |s| {
        sends(s, b"GET / HTTP/1.1\r\nHost: disk\r\n\r\n")
    }),
    ("no vhost-user: a message begins with 0x1, 0x2, where a request of version 1", |s| sends(s, &halves(&[1, 2, 0]))),
    ("no vhost-user: a message begins with 0x1, 0x5, where a request of version 1", |s| {
        // A peer that is a back end itself.
        sends(s, &halves(&[1, 5, 8, 0, 0]));
    }),
    ("the peer was gone in the middle of a message, after 5 bytes", |s| Raw::connect(s).send(&[1, 0, 0, 0, 1], &[])),
    ("the peer was gone in the middle of a message, after 12 bytes", |s| {
        Raw::connect(s).send(&halves(&[SET_FEATURES, 1, 8]), &[]);
    }),
    ("the peer was gone in the middle of a message, after 32 bytes", |s| {
        let pages = Pages::new(0x4000);
        let message = halves(&[SET_MEM_TABLE, 1, 40, 1, 0, 0x1_0000, 0, 0x4000]);
        Raw::greeted(s).send(&message, &[pages.file.as_fd()]);
    }),
    ("the peer sent 7 bytes of a message and then nothing for 5 s", |s| sends(s, &[3, 0, 0, 0, 1, 0, 0])),
    ("message SET_MEM_TABLE claims 1000000 bytes: at most 4096", |s| sends(s, &halves(&[SET_MEM_TABLE, 1, 1_000_000]))),
    ("message SET_FEATURES claims 4294967295 bytes: at most 4096", |s| sends(s, &halves(&[SET_FEATURES, 1, u32::MAX]))),
];

const UNKNOWN: &[Crime] = &[
    ("message 4242 is none that this device knows", |s| says(s, 4242, &[], &[])),
    ("message 0 is none that this device knows", |s| says(s, 0, &[], &[])),
    ("IOTLB messages are not served: the peer put the device behind a vIOMMU", |s| {
        says(s, IOTLB_MSG, &words(&[0, 0, 0, 0]), &[]);
    }),
    ("message NET_SET_MTU is not served: nothing of the kind was offered", |s| {
        says(s, NET_SET_MTU, &words(&[1500]), &[])
    }),
    ("message GET_INFLIGHT_FD is not served", |s| says(s, GET_INFLIGHT_FD, &[0; 24], &[])),
    ("message SET_CONFIG is not served", |s| {
        says(s, SET_CONFIG, &[halves(&[0, 8, 0]), vec![1; 8]].concat(), &[]);
    }),
    ("message SET_FEATURES: features 0x400000000 were not offered", |s| {
        says(s, SET_FEATURES, &words(&[1 << 34 | 1 << 32]), &[]);
    }),
    ("message SET_PROTOCOL_FEATURES: features 0x1000 were not offered", |s| {
        says(s, SET_PROTOCOL_FEATURES, &words(&[1 << 12]), &[]);
    }),
];

const LENGTHS_AND_FILES: &[Crime] = &[
    ("message SET_OWNER of 3 bytes: its length or what is in it is wrong", |s| says(s, SET_OWNER, &[1, 2, 3], &[])),
    ("message SET_FEATURES of 4 bytes: its length", |s| says(s, SET_FEATURES, &halves(&[1]), &[])),
    ("message GET_VRING_BASE of 16 bytes: its length", |s| says(s, GET_VRING_BASE, &words(&[0, 0]), &[])),
    ("message ADD_MEM_REG of 24 bytes: its length", |s| {
        says(s, ADD_MEM_REG, &words(&[0, 1, 2]), &[Pages::new(0x1000).file.as_fd()]);
    }),
    ("message SET_OWNER: 1 files came with it, and 0 belong to it", |s| says(s, SET_OWNER, &[], &[bell().as_fd()])),
    ("message ADD_MEM_REG: 0 files came with it, and 1 belong to it", |s| {
        let [guest, size, user, offset] = WIDE;
        says(s, ADD_MEM_REG, &words(&[0, guest, size, user, offset]), &[]);
    }),
    ("message SET_MEM_TABLE: 1 files came with it, and 2 belong to it", |s| {
        tables(s, 2, &[WIDE, [0x10_0000, 0x1000, USER + (1 << 20), 0]], 1);
    }),
    ("message SET_MEM_TABLE: 3 files came with it, and 1 belong to it", |s| tables(s, 1, &[WIDE], 3)),
    ("message SET_VRING_KICK: 0 files came with it, and 1 belong to it", |s| {
        says(s, SET_VRING_KICK, &words(&[0]), &[])
    }),
    ("message SET_VRING_KICK: 2 files came with it, and 1 belong to it", |s| {
        let bell = bell();
        says(s, SET_VRING_KICK, &words(&[0]), &[bell.as_fd(), bell.as_fd()]);
    }),
    ("message SET_VRING_CALL: 1 files came with it, and 0 belong to it", |s| {
        says(s, SET_VRING_CALL, &words(&[0x100]), &[bell().as_fd()]);
    }),
    ("message SET_BACKEND_REQ_FD: ", |s| says(s, SET_BACKEND_REQ_FD, &[], &[bell().as_fd()])),
];

const MEMORY: &[Crime] = &[
    ("memory: a table of 1000 regions in 8 bytes: 1 to 32", |s| tables(s, 1000, &[], 1)),
    ("memory: a table of 0 regions in 8 bytes: 1 to 32", |s| tables(s, 0, &[], 0)),
    ("memory: a table of 2 regions in 40 bytes: 1 to 32", |s| tables(s, 2, &[WIDE], 2)),
    ("memory: a table of 33 regions in 1064 bytes: 1 to 32", |s| tables(s, 33, &[WIDE; 33], 1)),
    ("memory: more than 32 regions", |s| {
        let region = |nth: u64| [nth << 20, 0x1000, USER + (nth << 20), 0];
        adds(s, 0x4000, &(0..33).map(region).collect::<Vec<_>>());
    }),
    ("memory: regions of 0x4000 bytes at 0x12000 and of 0x4000 at 0x10000 overlap", |s| {
        adds(s, 0x4000, &[WIDE, [0x1_2000, 0x4000, USER - (1 << 40), 0]]);
    }),
    (
        "memory: regions of 0x1000 bytes at 0x90000 and of 0x4000 at 0x10000 overlap in the peer, at 0x7f0000003000",
        |s| {
            adds(s, 0x4000, &[WIDE, [0x9_0000, 0x1000, USER + 0x3000, 0]]);
        },
    ),
    ("memory: regions of 0x4000 bytes at 0x10000 and of 0x4000 at 0x10000 overlap", |s| tables(s, 2, &[WIDE; 2], 2)),
    ("memory: a region of no bytes at 0x10000", |s| adds(s, 0x4000, &[[0x1_0000, 0, USER, 0]])),
    ("memory: a region of no bytes at 0x80000", |s| tables(s, 2, &[WIDE, [0x8_0000, 0, USER << 1, 0]], 2)),
    ("memory: the region of 0x4000 bytes at 0xfffffffffffff000 (in the peer at 0x7f0000000000) goes beyond", |s| {
        adds(s, 0x4000, &[[u64::MAX - 0xfff, 0x4000, USER, 0]]);
    }),
    ("memory: the region of 0x4000 bytes at 0x10000 (in the peer at 0xfffffffffffff000) goes beyond", |s| {
        adds(s, 0x4000, &[[0x1_0000, 0x4000, u64::MAX - 0xfff, 0]]);
    }),
    ("memory: the region of 0x4000 bytes at 0x10000 (in the peer at 0x7f0000000000) goes beyond", |s| {
        adds(s, 0x4000, &[[0x1_0000, 0x4000, USER, u64::MAX - 0xfff]]);
    }),
    ("memory: the region at 0x10000 begins at byte 0x800 of its file", |s| {
        adds(s, 0x8000, &[[0x1_0000, 0x4000, USER, 0x800]])
    }),
    ("memory: the region at 0x10000 needs 0x4000 bytes of a file that has 0x1000", |s| adds(s, 0x1000, &[WIDE])),
    ("memory: the region at 0x10000 needs 0x5000 bytes of a file that has 0x4fff", |s| {
        adds(s, 0x4fff, &[[0x1_0000, 0x4000, USER, 0x1000]]);
    }),
    ("memory: the region at 0x10000 needs 0x4000 bytes of a file that has 0x0", |s| {
        says(s, ADD_MEM_REG, &[words(&[0]), words(&WIDE)].concat(), &[null().as_fd()]);
    }),
    ("memory: the region of 0x4000000000000000 bytes at 0x0 can't be mapped", |s| {
        adds(s, 1 << 62, &[[0, 1 << 62, 0, 0]]);
    }),
    ("memory: the region of 0x1000 bytes at 0x10000 can't be mapped", |s| {
        let program = File::open("/proc/self/exe").unwrap();
        says(s, ADD_MEM_REG, &words(&[0, 0x1_0000, 0x1000, USER, 0]), &[program.as_fd()]);
    }),
    ("memory: no region of 0x4000 bytes at 0x10000 to remove", |s| {
        says(s, REM_MEM_REG, &[words(&[0]), words(&WIDE)].concat(), &[]);
    }),
];

const QUEUES: &[Crime] = &[
    ("queue 99 of 2", |s| says(s, SET_VRING_NUM, &halves(&[99, 128]), &[])),
    ("queue 2 of 2", |s| says(s, SET_VRING_ENABLE, &halves(&[2, 1]), &[])),
    ("queue 255 of 2", |s| says(s, SET_VRING_KICK, &words(&[255]), &[bell().as_fd()])),
    ("queue 0: a size of 100: a power of two up to 256", |s| says(s, SET_VRING_NUM, &halves(&[0, 100]), &[])),
    ("queue 0: a size of 0: a power of two up to 256", |s| says(s, SET_VRING_NUM, &halves(&[0, 0]), &[])),
    ("queue 1: a size of 512: a power of two up to 256", |s| says(s, SET_VRING_NUM, &halves(&[1, 512]), &[])),
    ("queue 0: a size of 65792: a power of two up to 256", |s| says(s, SET_VRING_NUM, &halves(&[0, 0x1_0100]), &[])),
    ("queue 0: a size of 2147483648: a power of two up to 256", |s| {
        says(s, SET_VRING_NUM, &halves(&[0, 1 << 31]), &[]);
    }),
    ("queue 0: a base of 0x10000: 16 bits", |s| says(s, SET_VRING_BASE, &halves(&[0, 0x1_0000]), &[])),
    ("queue 1: its descriptor table lies at 0x1000 in the peer, which is in no memory region", |s| {
        starts(s, [0x1000, USER + 0x1000, USER + 0x2000]);
    }),
    ("queue 1: its available ring lies at 0x7effffffffff000 in the peer, which is in no memory region", |s| {
        starts(s, [USER, 0x07ef_ffff_ffff_f000, USER + 0x2000]);
    }),
    ("queue 1: its used ring lies at 0x7f0000004000 in the peer, which is in no memory region", |s| {
        starts(s, [USER, USER + 0x2000, USER + 0x4000]);
    }),
    ("queue 1: its descriptor table lies at 0x7f0000000008: a multiple of 16 is needed", |s| {
        starts(s, [USER + 8, USER + 0x1000, USER + 0x2000]);
    }),
    ("queue 1: its available ring lies at 0x7f0000001001: a multiple of 2 is needed", |s| {
        starts(s, [USER, USER + 0x1001, USER + 0x2000]);
    }),
    ("queue 1: its used ring lies at 0x7f0000002002: a multiple of 4 is needed", |s| {
        starts(s, [USER, USER + 0x1000, USER + 0x2002]);
    }),
    ("queue 0: the log of writes is not served", |s| {
        let body = [halves(&[0, 1]), words(&[USER, USER + 0x1000, USER + 0x2000, 0])].concat();
        says(s, SET_VRING_ADDR, &body, &[]);
    }),
    ("queue 0: its doorbell is no eventfd but /memfd:pages", |s| {
        says(s, SET_VRING_KICK, &words(&[0]), &[Pages::new(0x1000).file.as_fd()]);
    }),
    ("queue 1: its call is no eventfd but /dev/null", |s| says(s, SET_VRING_CALL, &words(&[1]), &[null().as_fd()])),
    ("queue 0: its error signal is no eventfd but socket:[", |s| {
        let (here, _there) = UnixStream::pair().unwrap();
        says(s, SET_VRING_ERR, &words(&[0]), &[here.as_fd()]);
    }),
];

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Crime> {
    [NO_MESSAGES, UNKNOWN, LENGTHS_AND_FILES, MEMORY, QUEUES].into_iter().flatten()
}
