//! What recording costs, in instructions: the difference of two runs under callgrind, so that what is not recording
//! falls out.

use std::process::{Command, Stdio};

/// Events of the shorter run.
const EVENTS: u64 = 50_000;

/// Instructions of a run of so many rounds, and what it printed.
fn instructions(what: &str, rounds: u64) -> (u64, String) {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", env!("CARGO_BIN_EXE_trace-cost")]);
    let out = valgrind.args([&rounds.to_string(), what]).stdin(Stdio::null()).output();
    let out = out.expect("valgrind counts instructions (apt-get install valgrind)");
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{text}");
    let collected = text.lines().filter_map(|line| line.split_once("Collected :")).next_back();
    let number = collected.and_then(|(_, number)| number.trim().parse().ok());
    (number.unwrap_or_else(|| panic!("no count in {text}")), String::from_utf8(out.stdout).unwrap())
}

/// Hundredths of an instruction that a round costs.
fn per_round(what: &str, recorded: bool) -> u64 {
    let (once, twice) = (instructions(what, EVENTS), instructions(what, 2 * EVENTS));
    let events = |text: &str| text.trim().parse::<u64>().unwrap();
    let expected = if recorded { (EVENTS, 2 * EVENTS) } else { (0, 0) };
    assert_eq!((events(&once.1), events(&twice.1)), expected, "{what}");
    (twice.0 - once.0) * 100 / EVENTS
}

#[test]
fn an_event_costs_24_instructions_and_a_masked_one_two() {
    let none = per_round("none", false);
    let beyond = |what, recorded| per_round(what, recorded).saturating_sub(none);
    let (on, cpu, masked) = (beyond("recorder", true), beyond("cpu", true), beyond("masked", false));
    println!("hundredths of an instruction: {on}; {cpu} with a CPU and its clock; {masked} masked out; loop {none}");
    assert!((1000..=2400).contains(&on), "an event costs {on} hundredths of an instruction");
    assert!(masked <= 200, "a masked event costs {masked} hundredths of an instruction");
}
