//! Peers and places that are not what they should be: one clear error each, and the server goes on.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use lowzone_tests::image::Folder;
use lowzone_tests::program::{Outcome, command};

use crate::crimes;
use crate::server::Server;
use lowzone_tests::disk::{Disk, Wait};

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
    assert_eq!(Disk::connect(&server.socket(), 1, 4096, Wait::EventFd).unwrap().capacity(), 1 << 20, "it goes on");
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

#[test]
fn each_bad_peer_is_told_of_once_and_the_server_goes_on() {
    let folder = Folder::new();
    let image = folder.file("disk.img", &[0x5a; 1 << 20]);
    let server = Server::start(["--image", image.to_str().unwrap(), "--queues", "2"]);
    for (nth, (_, crime)) in (0u64..).zip(crimes::all()) {
        crime(&server.socket());
        // A good one, in between; what it wrote stays.
        let mut disk = Disk::connect(&server.socket(), 1, 8192, Wait::EventFd).unwrap();
        if nth > 0 {
            disk.read(0, (nth - 1) * 512, 0, 512, 1);
            assert_eq!(disk.one(0), 0);
            assert_eq!(disk.pages.get(0, 512), sector(nth - 1));
        }
        disk.pages.put(4096, &sector(nth));
        disk.write(0, nth * 512, 4096, 512, 1);
        assert_eq!(disk.one(0), 0);
    }
    let (outcome, _) = server.stop();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let lines: Vec<_> = outcome.stderr.lines().collect();
    for (nth, (line, (wanted, _))) in lines.iter().zip(crimes::all()).enumerate() {
        let begin = format!("lowzone: serve: connection {}: {wanted}", nth * 2 + 1);
        assert!(line.starts_with(&begin), "{line}\nwanted {begin}");
    }
    let crimes = crimes::all().count();
    assert_eq!(lines.len(), crimes, "{lines:#?}");
    // Not a byte but the good peers' has changed.
    let mut wanted: Vec<u8> = (0..crimes as u64).flat_map(sector).collect();
    wanted.resize(1 << 20, 0x5a);
    assert!(fs::read(&image).unwrap() == wanted, "the image is not what the good peers made it");
}

/// What the good peer after this crime writes.
fn sector(nth: u64) -> Vec<u8> {
    (nth + 1).to_le_bytes().repeat(64)
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
