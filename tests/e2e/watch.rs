//! `run --watch`, on a terminal that `script` (of util-linux) makes: what is shown, and that it is given back.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use lowzone_tests::program::{self, lowzone};

const TAKEN: &str = "\u{1b}[?1049h";
const GIVEN_BACK: &str = "\u{1b}[?1049l";

/// What the terminal was sent, without its control sequences and without spaces.
fn plain(text: &str) -> String {
    let mut parts = text.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    let rest =
        parts.map(|part| part.trim_start_matches(|c: char| !c.is_ascii_alphabetic()).get(1..).unwrap_or_default());
    rest.fold(first, |text, part| text + part).replace(' ', "")
}

/// Runs a command line on a terminal, types `keys` once the screen is drawn; its output and its exit code.
fn on_terminal(program: &str, args: &str, keys: &str) -> (String, Option<i32>) {
    let line = format!("stty rows 40 cols 120; {program} {args}");
    let mut script = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("TERM", "xterm-256color")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script is here (apt-get install bsdutils)");
    let (mut keyboard, mut terminal) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
    let (mut seen, mut room, mut typed) = (Vec::new(), [0; 4096], false);
    while let Ok(n @ 1..) = terminal.read(&mut room) {
        seen.extend_from_slice(&room[..n]);
        if !typed && plain(&String::from_utf8_lossy(&seen)).contains("queue1") {
            typed = true;
            keyboard.write_all(keys.as_bytes()).unwrap();
            keyboard.flush().unwrap();
        }
    }
    drop(keyboard);
    (String::from_utf8_lossy(&seen).into_owned(), script.wait().unwrap().code())
}

#[test]
fn the_screen_shows_memory_mappings_rings_and_findings_and_q_ends_the_run() {
    let (seen, code) =
        on_terminal(&program::path().display().to_string(), "run net/loop-back --set count=100000000 --watch", "q");
    assert_eq!(code, Some(130), "{seen}");
    let (screen, after) = seen.split_once(GIVEN_BACK).expect("the terminal is given back");
    assert!(screen.contains(TAKEN), "{screen}");
    let drawn = plain(screen);
    for part in ["net/loop-back", "Memory", "DMA32", "swiotlb", "Mappings", "eth0", "Rings", "queue1", "nonesofar"] {
        assert!(drawn.contains(part), "{part}: {drawn}");
    }
    assert!(after.contains("loop-back") && after.contains("0 findings"), "the result comes after it: {after}");
    assert!(!after.contains(TAKEN));
}

#[test]
fn who_is_told_to_end_gives_the_terminal_back_first() {
    let program = format!("timeout --foreground -s TERM 1 {}", program::path().display());
    let (seen, code) = on_terminal(&program, "run net/loop-back --world threads --set count=100000000 --watch", "");
    assert_eq!((code, seen.matches(TAKEN).count(), seen.matches(GIVEN_BACK).count()), (Some(124), 1, 1), "{seen}");
}

#[test]
fn without_a_terminal_it_says_so() {
    let seen = lowzone(["run", "block/low-zone", "--watch"]);
    assert!(seen.code == Some(2) && seen.stderr.contains("standard error is none"), "{seen:?}");
}

#[test]
fn a_driver_that_dies_of_two_panics_gives_the_terminal_back_first() {
    let how = "--set 'driver.options.how=\"panic\"'";
    let fault = "--fault slab:probability=100,interval=6,times=1,ignore-gfp-wait=N,verbose=0";
    let (seen, code) = on_terminal(env!("CARGO_BIN_EXE_dying"), &format!("run dying --watch {how} {fault}"), "");
    let (screen, after) = seen.split_once(GIVEN_BACK).expect("the terminal is given back");
    assert!(code == Some(134) && screen.contains(TAKEN) && after.contains("aborting"), "{code:?} {seen}");
}
