//! Peers that `lowzone run --wire` meets and that are not what they should be: one clear error each, nothing left over.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use lowzone_tests::daemon::{self, Backing, Daemon};
use lowzone_tests::image::Folder;
use lowzone_tests::program::{Outcome, command, path};

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const GET_VRING_BASE: u32 = 11;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_QUEUE_NUM: u32 = 17;
const GET_CONFIG: u32 = 24;
/// The wish for a reply, in a request's flags.
const NEED_REPLY: u32 = 1 << 3;

fn halves(halves: &[u32]) -> Vec<u8> {
    halves.iter().flat_map(|half| half.to_le_bytes()).collect()
}

/// A reply of version 1 to a request.
fn reply(code: u32, body: &[u8]) -> Vec<u8> {
    [halves(&[code, 5, u32::try_from(body.len()).unwrap()]), body.to_vec()].concat()
}

/// What a disk of 8 MiB answers, if anything.
fn right(code: u32, flags: u32, body: &[u8]) -> Option<Vec<u8>> {
    let word = |word: u64| Some(reply(code, &word.to_le_bytes()));
    match code {
        GET_FEATURES => word(1 << 32 | 1 << 30 | 1 << 9),
        // CONFIG, REPLY_ACK, MQ.
        GET_PROTOCOL_FEATURES => word(1 << 9 | 1 << 3 | 1),
        GET_QUEUE_NUM => word(1),
        GET_VRING_BASE => Some(reply(code, &body[..8])),
        GET_CONFIG => Some(reply(code, &config(body, 16384))),
        _ => (flags & NEED_REPLY != 0).then(|| reply(code, &[0; 8])),
    }
}

/// The configuration that was asked for, of a disk with so many sectors.
fn config(asked: &[u8], sectors: u64) -> Vec<u8> {
    let mut answer = asked.to_vec();
    answer[12..20].copy_from_slice(&sectors.to_le_bytes());
    answer
}

/// Answers one front end until it goes; `wrong` may answer instead, and an empty answer is the end.
fn serve(mut peer: UnixStream, wrong: fn(u32, &[u8]) -> Option<Vec<u8>>) {
    let mut header = [0; 12];
    while peer.read_exact(&mut header).is_ok() {
        let (words, _) = header.as_chunks::<4>();
        let [code, flags, size] = [0, 1, 2].map(|at| u32::from_le_bytes(words[at]));
        let mut body = vec![0; usize::try_from(size).unwrap()];
        peer.read_exact(&mut body).unwrap();
        let answer = wrong(code, &body).or_else(|| right(code, flags, &body));
        // A front end that has hung up is what some of these tests want.
        match answer {
            Some(bytes) if bytes.is_empty() => return,
            Some(bytes) => drop(peer.write_all(&bytes)),
            None => {}
        }
    }
}

fn run(socket: &Path) -> Outcome {
    let wire = format!("vhost-user={}", socket.display());
    Outcome::of(&command(["run", "block/low-zone", "--wire", &wire]).output().unwrap())
}

/// One error that says this, and no result.
#[track_caller]
fn assert_refused(seen: &Outcome, says: &str) {
    assert_eq!((seen.code, seen.stdout.as_str(), seen.stderr.lines().count()), (Some(2), "", 1), "{says}: {seen:?}");
    assert!(seen.stderr.contains(says), "{says}: {seen:?}");
}

/// What a back end says instead of what is right, and what is said of it.
type Lie = (&'static str, fn(u32, &[u8]) -> Option<Vec<u8>>);

const LIES: &[Lie] = &[
    ("GET_FEATURES: ", |code, _| (code == GET_FEATURES).then(|| reply(99, &[0; 8]))),
    ("GET_FEATURES: ", |code, _| (code == GET_FEATURES).then(|| halves(&[code, 1, 8, 0, 0]))),
    ("GET_FEATURES: ", |code, _| (code == GET_FEATURES).then(|| halves(&[code, 6, 8, 0, 0]))),
    ("does not offer VHOST_USER_F_PROTOCOL_FEATURES (it offers 0x0)", |code, _| {
        (code == GET_FEATURES).then(|| reply(code, &[0; 16]))
    }),
    ("GET_PROTOCOL_FEATURES: ", |code, _| {
        (code == GET_PROTOCOL_FEATURES).then(|| [halves(&[code, 5, u32::MAX]), vec![0; 64]].concat())
    }),
    ("closed the connection", |code, _| (code == GET_QUEUE_NUM).then(Vec::new)),
    ("GET_QUEUE_NUM: it has no queues", |code, _| (code == GET_QUEUE_NUM).then(|| reply(code, &[0; 8]))),
    ("GET_CONFIG: ", |code, asked| (code == GET_CONFIG).then(|| reply(code, &vec![0; asked.len()]))),
    ("its disk has 0 bytes, and the scenario's has 8388608", |code, asked| {
        (code == GET_CONFIG).then(|| reply(code, &config(asked, 0)))
    }),
];

#[test]
fn each_lie_of_a_back_end_is_one_error() {
    let folder = Folder::new();
    let socket = folder.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    for (says, lie) in LIES {
        let seen = std::thread::scope(|scope| {
            scope.spawn(|| serve(listener.accept().unwrap().0, *lie));
            run(&socket)
        });
        assert_refused(&seen, says);
        assert!(
            seen.stderr.starts_with(&format!("lowzone: wire: vhost-user peer at {}", socket.display())),
            "{seen:?}"
        );
    }
}

/// What goes wrong once the scenario runs is a run that failed, with the reason and nothing left over.
#[test]
fn a_back_end_that_refuses_in_the_middle_fails_the_run_with_its_reason() {
    let lies: &[Lie] = &[
        ("SET_MEM_TABLE", |code, _| (code == SET_MEM_TABLE).then(|| reply(code, &[1, 0, 0, 0, 0, 0, 0, 0]))),
        ("SET_FEATURES", |code, _| (code == SET_FEATURES).then(|| reply(code, &[1, 0, 0, 0, 0, 0, 0, 0]))),
        ("SET_VRING_NUM", |code, _| (code == SET_VRING_NUM).then(|| reply(99, &[0; 8]))),
        ("closed the connection", |code, _| (code == SET_MEM_TABLE).then(Vec::new)),
        ("capacity is 36028797018963968 in the device's config", |code, asked| {
            (code == GET_CONFIG).then(|| reply(code, &config(asked, 1 << 55)))
        }),
    ];
    let folder = Folder::new();
    for (nth, (says, lie)) in lies.iter().enumerate() {
        let socket = folder.path().join(format!("s{nth}"));
        let listener = UnixListener::bind(&socket).unwrap();
        // The driver may come back for another connection; the process that this is ends with the test.
        std::thread::spawn(move || listener.incoming().flatten().for_each(|peer| serve(peer, *lie)));
        let seen = run(&socket);
        assert_eq!(seen.code, Some(1), "{says}: {seen:?}");
        assert!(seen.stderr.contains(says), "{says}: {seen:?}");
        assert!(seen.stdout.contains("0 leaks") && !seen.stderr.contains("panicked"), "{says}: {seen:?}");
    }
}

#[test]
fn a_socket_that_is_none_of_a_back_ends_is_one_error() {
    let folder = Folder::new();
    let at = |name: &str| folder.path().join(name);
    assert_refused(&run(&at(&"x".repeat(120))), "a socket's path has at most 107 bytes, this one has ");
    fs::write(at("file"), "precious").unwrap();
    assert_refused(&run(&at("file")), "file: is there and no socket");
    assert_eq!(fs::read(at("file")).unwrap(), b"precious");
    assert_refused(&run(&at("missing")), "missing: No such file or directory");
    drop(UnixListener::bind(at("dead")).unwrap());
    assert_refused(&run(&at("dead")), "dead: Connection refused");
    let _letters = UnixDatagram::bind(at("letters")).unwrap();
    assert_refused(&run(&at("letters")), "letters: Protocol wrong type for socket");
    let web = UnixListener::bind(at("web")).unwrap();
    let seen = std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut peer, _) = web.accept().unwrap();
            peer.write_all(&b"HTTP/1.1 400 Bad Request\r\n\r\n".repeat(3)).unwrap();
            // Until the front end hangs up.
            drop(peer.read_to_end(&mut Vec::new()));
        });
        run(&at("web"))
    });
    assert_refused(&seen, "GET_FEATURES: ");
}

#[test]
fn a_back_end_that_serves_another_is_given_up_and_the_other_is_not_disturbed() {
    if !daemon::is_here() {
        return;
    }
    let folder = Folder::new();
    let socket = folder.path().join("s");
    let daemon = Daemon::start(&socket, Backing::File(folder.file("disk.img", &[0; 8 << 20])), 1);
    let other = UnixStream::connect(daemon.socket()).unwrap();
    // Built by now: what follows is about time.
    path();
    let begun = Instant::now();
    assert_refused(&run(&socket), "no answer for 5 s; one that serves another front end gives none");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    drop(other);
    assert_eq!(run(&socket).code, Some(0), "it is free now");
}

/// Hours of work, but for a daemon that dies.
const LONG: &str = "story = 'x'\n[machine]\nram = '512M'\n[[device]]\nname = 'vda'\nkind = 'virtio-blk'\nsize = '8M'\n\
    [[step]]\nprobe = {}\n[[step]]\nio = { device = 'vda', requests = 100000000, pattern = 'random', depth = 16 }\n\
    [[step]]\nremove = {}\n";

#[test]
fn a_daemon_that_dies_ends_the_run_with_one_clear_error_and_serves_the_next() {
    if !daemon::is_here() {
        return;
    }
    let folder = Folder::new();
    let image = folder.file("disk.img", &[0; 8 << 20]);
    let mut daemon = Daemon::start(&folder.path().join("s"), Backing::File(image), 1);
    let wire = format!("vhost-user={}", daemon.socket().display());
    let long = folder.file("long.toml", LONG.as_bytes());
    let child = command(["run", long.to_str().unwrap(), "--wire", &wire]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(700));
    let begun = Instant::now();
    daemon.kill();
    let seen = Outcome::of(&child.wait_with_output().unwrap());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(seen.code, Some(1), "{seen:?}");
    assert_eq!(seen.stderr.matches("closed the connection").count(), 1, "{seen:?}");
    assert!(seen.stdout.contains("0 leaks"), "{seen:?}");
    daemon.restart();
    assert_eq!(run(daemon.socket()).code, Some(0));
}

/// Programs that are called like the emulator and are none.
#[test]
fn an_emulator_that_is_none_is_one_error() {
    for (script, says) in [
        ("echo no such machine >&2; exit 3", "QEMU ended: exit status: 3: no such machine"),
        ("echo HELLO >&0; sleep 60", "QEMU answered 'HELLO' to '"),
        ("echo 'FAIL Unknown command' >&0; sleep 60", "QEMU answered 'FAIL Unknown command' to '"),
        ("echo OK >&0; echo 'OK 0x123456789abcdef0123' >&0; sleep 60", "QEMU answered 'OK 0x123456789abcdef0123' to '"),
    ] {
        let folder = Folder::new();
        let program =
            folder.file("qemu-system-x86_64", format!("#!/bin/sh\nPATH=/bin:/usr/bin\n{script}\n").as_bytes());
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        path();
        let begun = Instant::now();
        let output = command(["run", "block/low-zone", "--wire", "qemu"]).env("PATH", folder.path()).output().unwrap();
        let seen = Outcome::of(&output);
        assert_refused(&seen, says);
        assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    }
}
