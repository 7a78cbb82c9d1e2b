use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use super::VhostUserError;
use super::link::Link;

/// What a peer does with the one connection it takes.
fn peer(name: &str, with: impl FnOnce(UnixStream) + Send + 'static) -> (PathBuf, std::thread::JoinHandle<()>) {
    let path = std::env::temp_dir().join(format!("lowzone-{name}-{}.sock", std::process::id()));
    drop(std::fs::remove_file(&path));
    let listener = UnixListener::bind(&path).unwrap();
    (path, std::thread::spawn(move || with(listener.accept().unwrap().0)))
}

fn refused(name: &str, with: impl FnOnce(UnixStream) + Send + 'static) -> VhostUserError {
    let (path, thread) = peer(name, with);
    let error = Link::connect(&path).err().unwrap();
    thread.join().unwrap();
    std::fs::remove_file(path).unwrap();
    error
}

/// The header of a reply to a request, and a number.
fn reply(request: u32, value: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = [request, 0x5, 8].iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(value.to_le_bytes());
    bytes
}

#[test]
fn nobody_there_is_told_with_the_path() {
    let error = Link::connect("/nowhere/disk.sock".as_ref()).err().unwrap();
    assert!(matches!(error, VhostUserError::Connect { .. }));
    assert!(error.to_string().starts_with("vhost-user socket /nowhere/disk.sock: No such file"), "{error}");
    let long = format!("/{}", "x".repeat(200));
    assert!(matches!(Link::connect(long.as_ref()).err().unwrap(), VhostUserError::LongPath { len: 201, .. }));
    let error = Link::connect("/proc/version".as_ref()).err().unwrap();
    assert_eq!(error.to_string(), "vhost-user socket /proc/version: is there and no socket");
}

#[test]
fn a_peer_that_hangs_up_or_speaks_something_else_is_told() {
    let error = refused("hangs-up", drop);
    assert!(matches!(error, VhostUserError::Closed { .. } | VhostUserError::Protocol { .. }), "{error}");
    let error = refused("other", |mut stream| {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\nHTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        // Until the front end hangs up.
        drop(stream.read_to_end(&mut Vec::new()));
    });
    assert!(matches!(error, VhostUserError::Protocol { request: "GET_FEATURES", .. }), "{error}");
}

#[test]
fn a_peer_that_is_silent_is_given_up() {
    let error = refused("silent", |mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    assert!(matches!(error, VhostUserError::Silent { seconds: 5, .. }), "{error}");
}

#[test]
fn a_peer_without_a_config_space_is_refused() {
    let error = refused("plain", |mut stream| {
        stream.write_all(&reply(1, 1 << 32)).unwrap();
        drop(stream.read_to_end(&mut Vec::new()));
    });
    assert!(error.to_string().contains("does not offer VHOST_USER_F_PROTOCOL_FEATURES"), "{error}");
    let error = refused("no-config", |mut stream| {
        stream.write_all(&[reply(1, 1 << 32 | 1 << 30), reply(15, 1)].concat()).unwrap();
        drop(stream.read_to_end(&mut Vec::new()));
    });
    assert!(error.to_string().contains("does not offer VHOST_USER_PROTOCOL_F_CONFIG (it offers 0x1)"), "{error}");
}
