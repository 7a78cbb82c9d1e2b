//! The README says what the program does: its output is the program's, its example runs.

use std::fs;

use lowzone_tests::program::{lowzone, workspace};
use lowzone_tests::scenario;

/// The fenced blocks of the README: `(language, text)`.
fn blocks() -> Vec<(String, String)> {
    let text = fs::read_to_string(workspace().join("README.md")).unwrap();
    let fences = text.split("\n```").skip(1).step_by(2);
    fences
        .map(|block| {
            let (language, body) = block.split_once('\n').unwrap();
            (language.to_owned(), body.to_owned())
        })
        .collect()
}

#[test]
fn readme_shows_what_the_program_prints() {
    let seen = lowzone::<&str>([]);
    assert_eq!(seen.code, Some(0), "{seen:?}");
    let shown = blocks().into_iter().find(|(_, body)| body.starts_with("block/low-zone")).unwrap().1;
    assert_eq!(shown.trim_end(), seen.stdout.trim_end(), "put the new output into README.md");
}

#[test]
fn readme_has_an_example_that_runs_as_expected() {
    let (_, toml) = blocks().into_iter().find(|(language, _)| language == "toml").unwrap();
    let file = scenario::text(&toml, &[]);
    let result = scenario::run(&file, 1);
    assert_eq!(lowzone::expect::check(&file.expect, &result), []);
    assert_eq!(result.io[0].requests, 1000);
}
