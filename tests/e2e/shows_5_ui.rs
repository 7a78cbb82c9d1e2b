//! What the types forbid does not compile; one line apart, it does.
//!
//! The twins are modules of this very test, so that a twin that doesn't compile fails the build; checking alone is
//! left to do for the crimes, which is far quicker than linking.

use std::fs;

use lowzone_tests::program::workspace;

macro_rules! twins {
    ($($twin:ident $path:literal;)*) => {$(
        #[path = $path]
        #[allow(dead_code, reason = "it compiles: that is all")]
        mod $twin;
    )*};
}

twins! {
    write_to "../ui/cpu_writes_to_device_buffer_twin.rs";
    read_from "../ui/cpu_reads_from_device_buffer_twin.rs";
    write_from "../ui/cpu_writes_from_device_buffer_twin.rs";
    unmap "../ui/second_unmap_twin.rs";
    window "../ui/buffer_used_during_its_window_twin.rs";
    after_map "../ui/buffer_used_after_map_twin.rs";
}

/// What each file that must not compile must fail with.
const CODES: [(&str, &str); 6] = [
    ("cpu_writes_to_device_buffer", "E0599"),
    ("cpu_reads_from_device_buffer", "E0599"),
    ("cpu_writes_from_device_buffer", "E0599"),
    ("second_unmap", "E0382"),
    ("buffer_used_during_its_window", "E0502"),
    ("buffer_used_after_map", "E0382"),
];

#[test]
fn shows_5_each_crime_pins_its_error_code_and_its_twin_compiles() {
    {
        // The cases run when this drops.
        let cases = trybuild::TestCases::new();
        for (name, _) in CODES {
            cases.compile_fail(format!("ui/{name}.rs"));
        }
    }
    let ui = workspace().join("tests/ui");
    for (name, code) in CODES {
        let pinned = fs::read_to_string(ui.join(format!("{name}.stderr"))).unwrap();
        assert!(pinned.contains(&format!("error[{code}]")), "{name}: {code} in\n{pinned}");
        assert_eq!(pinned.matches("error[").count(), 1, "{name} fails for one reason:\n{pinned}");
        let source = |suffix: &str| fs::read_to_string(ui.join(format!("{name}{suffix}.rs"))).unwrap();
        let (bad, good) = (source(""), source("_twin"));
        let lines = bad.lines().count().max(good.lines().count());
        assert!(lines - same_lines(&bad, &good) <= 1, "{name} and its twin are one line apart");
    }
}

/// Lines that both have, in order, from both ends.
fn same_lines(a: &str, b: &str) -> usize {
    let (a, b): (Vec<_>, Vec<_>) = (a.lines().collect(), b.lines().collect());
    let front = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let rest = (a.len() - front).min(b.len() - front);
    let back = a.iter().rev().zip(b.iter().rev()).take(rest).take_while(|(x, y)| x == y).count();
    front + back
}
