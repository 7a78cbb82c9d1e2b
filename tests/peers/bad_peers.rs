//! Peers and places that are not what they should be: one clear error each, and the server goes on.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use lowzone_tests::image::Folder;
use lowzone_tests::program::{Outcome, command};

use crate::raw::{
    ADD_MEM_REG, REM_MEM_REG, Raw, SET_FEATURES, SET_MEM_TABLE, SET_OWNER, SET_VRING_ADDR, SET_VRING_ENABLE,
    SET_VRING_KICK, SET_VRING_NUM, halves, words,
};
use crate::server::Server;
use lowzone_tests::disk::{Disk, Wait};
use lowzone_tests::pages::Pages;

fn refused<A: AsRef<OsStr>>(socket: &Path, args: impl IntoIterator<Item = A>) -> String {
    let mut command = command(["serve", "virtio-blk", "--vhost-user"].map(OsStr::new));
    let outcome = Outcome::of(&command.arg(socket).args(args).output().unwrap());
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""), "{outcome:?}");
    outcome.stderr
}

#[test]
fn a_socket_that_cannot_be_had_is_an_error_and_a_dead_servers_is_taken_over() {
    let folder = Folder::new();
    let null = ["--null", "1M"];
    let at = |name: &str| folder.path().join(name);
    let text = refused(&at(&"x".repeat(120)), null);
    assert!(text.contains("a socket's path has at most 107 bytes"), "{text}");
    fs::write(at("file"), "precious").unwrap();
    let text = refused(&at("file"), null);
    assert!(text.contains("is there and no socket; it is left alone"), "{text}");
    assert_eq!(fs::read(at("file")).unwrap(), b"precious");
    let text = refused(&at("nowhere/s"), null);
    assert!(text.contains("nowhere/s: No such file"), "{text}");
    drop(UnixListener::bind(at("s")).unwrap());
    let server = Server::start_in(folder, null);
    let text = refused(&server.socket(), null);
    assert!(text.contains("another server listens there"), "{text}");
    let folder = server.kill();
    assert!(folder.path().join("s").exists(), "a killed server leaves its socket");
    let server = Server::start_in(folder, null);
    assert_eq!(Disk::connect(&server.socket(), 1, 4096, Wait::EventFd).unwrap().capacity(), 1 << 20);
    let (outcome, folder) = server.stop();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(!folder.path().join("s").exists());
}

#[test]
fn a_store_that_cannot_be_opened_is_an_error() {
    let folder = Folder::new();
    let socket = folder.path().join("s");
    let odd = folder.file("odd.img", &[0; 700]);
    let missing = folder.path().join("missing.img");
    for (args, wanted) in [
        (vec!["--image", odd.to_str().unwrap()], "odd.img: 700 bytes: an image holds one or more whole sectors"),
        (vec!["--image", missing.to_str().unwrap()], "missing.img: can't be opened"),
        (vec!["--memory", "0"], "a store holds one or more whole sectors"),
        (vec!["--null", "1M", "--memory", "1M"], "cannot be used with"),
        (vec![], "required"),
        (vec!["--null", "1M", "--width", "65"], "65 is not in 1..=64"),
        (vec!["--null", "1M", "--queue-size", "100"], "a power of two from 4 to 32768"),
        (vec!["--null", "1M", "--trace", "/nowhere/t.lzt"], "/nowhere/t.lzt: No such file"),
    ] {
        let text = refused(&socket, &args);
        assert!(text.contains(wanted), "{args:?}: {text}");
        assert!(!socket.exists());
    }
}

/// What a peer does, and what is said of it.
type Crime = (&'static str, fn(&Path));

const WIDE: [u64; 4] = [0x1_0000, 0x4000, 0x7f00_0000_0000, 0];

const CRIMES: &[Crime] = &[
    ("no vhost-user: a message begins with 0x20544547, 0x5448202f", |s| {
        let mut raw = Raw::connect(s);
        raw.send(b"GET / HTTP/1.1\r\nHost: disk\r\n\r\n", &[]);
        raw.wait_to_be_left();
    }),
    ("the peer was gone in the middle of a message, after 5 bytes", |s| {
        Raw::connect(s).send(&[1, 0, 0, 0, 1], &[]);
    }),
    ("the peer was gone in the middle of a message, after 12 bytes", |s| {
        Raw::connect(s).send(&halves(&[SET_FEATURES, 1, 8]), &[]);
    }),
    ("the peer sent 7 bytes of a message and then nothing for 5 s", |s| {
        let mut raw = Raw::connect(s);
        raw.send(&[3, 0, 0, 0, 1, 0, 0], &[]);
        raw.wait_to_be_left();
    }),
    ("message 4242 is none that this device knows", |s| {
        let mut raw = Raw::greeted(s);
        raw.say(4242, &[]);
        raw.wait_to_be_left();
    }),
    ("IOTLB messages are not served: the peer put the device behind a vIOMMU", |s| {
        let mut raw = Raw::greeted(s);
        raw.say(22, &words(&[0, 0, 0, 0]));
        raw.wait_to_be_left();
    }),
    ("message SET_MEM_TABLE claims 1000000 bytes: at most 4096", |s| {
        let mut raw = Raw::greeted(s);
        raw.send(&halves(&[SET_MEM_TABLE, 1, 1_000_000]), &[]);
        raw.wait_to_be_left();
    }),
    ("message SET_MEM_TABLE: invalid message", |s| {
        let mut raw = Raw::greeted(s);
        raw.say(SET_MEM_TABLE, &halves(&[1000, 0]));
        raw.wait_to_be_left();
    }),
    ("message SET_OWNER: invalid message", |s| {
        let mut raw = Raw::connect(s);
        raw.say(SET_OWNER, &[1, 2, 3]);
        raw.wait_to_be_left();
    }),
    ("message SET_FEATURES: features 0x400000000 were not offered", |s| {
        let mut raw = Raw::connect(s);
        raw.say(SET_FEATURES, &words(&[1 << 34 | 1 << 32]));
        raw.wait_to_be_left();
    }),
    ("memory: the region at 0x10000 needs 0x4000 bytes of a file that has 0x1000", |s| {
        let mut raw = Raw::greeted(s);
        raw.add(WIDE, &Pages::new(0x1000));
        raw.wait_to_be_left();
    }),
    ("memory: regions of 0x4000 bytes at 0x12000 and of 0x4000 at 0x10000 overlap", |s| {
        let (mut raw, pages) = (Raw::greeted(s), Pages::new(0x4000));
        raw.add(WIDE, &pages);
        raw.add([0x1_2000, 0x4000, 0x7e00_0000_0000, 0], &pages);
        raw.wait_to_be_left();
    }),
    ("memory: the region of 0x4000000000000000 bytes at 0x0 can't be mapped", |s| {
        let (mut raw, pages) = (Raw::greeted(s), Pages::new(0x1000));
        pages.file.set_len(1 << 62).unwrap();
        raw.add([0, 1 << 62, 0, 0], &pages);
        raw.wait_to_be_left();
    }),
    ("memory: no region of 0x4000 bytes at 0x10000 to remove", |s| {
        let mut raw = Raw::greeted(s);
        let [guest, size, user, offset] = WIDE;
        raw.say(REM_MEM_REG, &words(&[0, guest, size, user, offset]));
        raw.wait_to_be_left();
    }),
    ("message ADD_MEM_REG: invalid parameters", |s| {
        let mut raw = Raw::greeted(s);
        let [guest, size, user, offset] = WIDE;
        raw.say(ADD_MEM_REG, &words(&[0, guest, size, user, offset]));
        raw.wait_to_be_left();
    }),
    ("queue 99 of 2", |s| {
        let mut raw = Raw::greeted(s);
        raw.say(SET_VRING_NUM, &halves(&[99, 128]));
        raw.wait_to_be_left();
    }),
    ("queue 0: a size of 100: a power of two up to 256", |s| {
        let mut raw = Raw::greeted(s);
        raw.say(SET_VRING_NUM, &halves(&[0, 100]));
        raw.wait_to_be_left();
    }),
    ("queue 1: its used ring lies at 0x7f0000004000 in the peer, which is in no memory region", |s| {
        let (mut raw, pages) = (Raw::greeted(s), Pages::new(0x4000));
        raw.add(WIDE, &pages);
        let at = WIDE[2];
        let mut body = halves(&[1, 0]);
        body.extend(words(&[at, at + 0x4000, at + 0x2000, 0]));
        raw.say(SET_VRING_ADDR, &body);
        raw.say_with(SET_VRING_KICK, &words(&[1]), &[pages.file.as_fd()]);
        raw.say(SET_VRING_ENABLE, &halves(&[1, 1]));
        raw.wait_to_be_left();
    }),
];

#[test]
fn each_bad_peer_is_told_of_once_and_the_server_goes_on() {
    let server = Server::start(["--memory", "1M", "--queues", "2"]);
    for (nth, (_, crime)) in (0u64..).zip(CRIMES) {
        crime(&server.socket());
        // A good one, in between; what it wrote stays.
        let mut disk = Disk::connect(&server.socket(), 1, 8192, Wait::EventFd).unwrap();
        if nth > 0 {
            disk.read(0, (nth - 1) * 512, 0, 512, 1);
            assert_eq!(disk.one(0), 0);
            assert_eq!(disk.pages.get(0, 8), nth.to_le_bytes());
        }
        disk.pages.put(4096, &(nth + 1).to_le_bytes());
        disk.write(0, nth * 512, 4096, 512, 1);
        assert_eq!(disk.one(0), 0);
    }
    let (outcome, _) = server.stop();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let lines: Vec<_> = outcome.stderr.lines().collect();
    assert_eq!(lines.len(), CRIMES.len(), "{lines:#?}");
    for (nth, (line, (wanted, _))) in lines.iter().zip(CRIMES).enumerate() {
        let begin = format!("lowzone: serve: connection {}: {wanted}", nth * 2 + 1);
        assert!(line.starts_with(&begin), "{line}\nwanted {begin}");
    }
}

#[test]
fn memory_that_is_cut_while_in_use_ends_its_connection_and_nothing_else() {
    let server = Server::start(["--null", "1M"]);
    for _ in 0..3 {
        let mut disk = Disk::connect(&server.socket(), 1, 4096, Wait::EventFd).unwrap();
        disk.pages.file.set_len(0).unwrap();
        disk.read(0, 0, 0, 4096, 1);
        disk.kick(0);
        assert_eq!(disk.reap(0, Duration::from_millis(300), &mut Vec::new()), 0);
    }
    let mut disk = Disk::connect(&server.socket(), 1, 4096, Wait::EventFd).unwrap();
    disk.read(0, 0, 0, 4096, 1);
    assert_eq!(disk.one(0), 0);
    drop(disk);
    let (outcome, _) = server.stop();
    let cut = "ended: the file behind its memory was cut while it was in use (SIGBUS)";
    let lines: Vec<_> = (1..4).map(|nth| format!("lowzone: serve: connection {nth}: {cut}")).collect();
    assert_eq!(outcome.stderr.lines().collect::<Vec<_>>(), lines);
    assert!(outcome.code == Some(0) && outcome.stdout.contains("4 connections: 1 requests"), "{outcome:?}");
}

#[test]
fn an_image_takes_no_harm_from_memory_that_is_cut_or_a_peer_that_is_gone() {
    let folder = Folder::new();
    let image = folder.file("disk.img", &[5; 1 << 20]);
    let server = Server::start(["--image", image.to_str().unwrap()]);
    let mut disk = Disk::connect(&server.socket(), 1, 8192, Wait::EventFd).unwrap();
    disk.pages.put(0, &[6; 4096]);
    disk.write(0, 4096, 0, 4096, 1);
    assert_eq!(disk.one(0), 0);
    // The second page of what is to be written isn't there any more: the host's write fails, the device does not.
    disk.pages.file.set_len(4096).unwrap();
    disk.write(0, 65536, 4096, 4096, 2);
    assert_eq!(disk.one(0), -5);
    // Gone with a request on the ring.
    disk.write(0, 8192, 0, 4096, 3);
    disk.kick(0);
    drop(disk);
    drop(Disk::connect(&server.socket(), 1, 4096, Wait::EventFd).unwrap());
    let (outcome, _) = server.stop();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
    let bytes = fs::read(&image).unwrap();
    assert!(bytes[..4096] == [5; 4096] && bytes[4096..8192] == [6; 4096]);
    assert!(bytes[8192..12288] == [5; 4096] || bytes[8192..12288] == [6; 4096]);
    assert!(bytes[12288..].iter().all(|byte| *byte == 5));
}

#[test]
fn ctrl_c_answers_what_is_on_the_ring_and_ends_well() {
    let server = Server::start(["--memory", "1M"]);
    let mut disk = Disk::connect(&server.socket(), 1, 4096, Wait::Poll).unwrap();
    for tag in 0..40 {
        disk.write(0, tag * 512, 0, 512, tag);
    }
    disk.kick(0);
    let (outcome, folder) = server.stop();
    let mut done = Vec::new();
    while disk.reap(0, Duration::from_millis(100), &mut done) > 0 {}
    assert_eq!(done.len(), 40);
    assert!(done.iter().all(|(_, ret)| *ret == 0));
    assert!(outcome.stdout.contains("1 connections: 40 requests, 0 failed"), "{outcome:?}");
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
    assert!(folder.names().is_empty(), "the socket is removed");
}
