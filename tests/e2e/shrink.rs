//! `lowzone shrink`: a failing case as a file that is as short as it can be.

use std::fs;

use lowzone_tests::image::Folder;
use lowzone_tests::program::{Outcome, command_of, lowzone, mutants};

/// Seeded bugs and who tells of each.
const BUGS: [(&str, &str); 7] = [
    ("missing-null-check", "oops: null-dereference"),
    ("gfp-kernel-in-handler", "context: sleep-in-atomic"),
    ("mapping-error-unchecked", "ledger: map-error-unchecked"),
    ("free-before-stop", "port: after-unmap"),
    ("double-free-in-retry", "allocator: bad-free"),
    ("irq-not-freed", "leak"),
    ("false-success", "false-success"),
];

fn seeded(mutant: &str, args: &[&str]) -> Outcome {
    let mut command = command_of(mutants(), args);
    Outcome::of(&command.env("LOWZONE_MUTANT", mutant).output().expect("the program starts"))
}

#[test]
fn shrink_makes_files_of_at_most_five_steps_that_fail_in_the_same_way() {
    let folder = Folder::new();
    for (bug, detected) in BUGS {
        let found = seeded(bug, &["explore", "block/low-zone", "--first", "--json"]).json();
        let first = &found["wrong"][0];
        let token = first["token"].as_str().unwrap();
        let path = folder.path().join(format!("{bug}.toml"));
        let file = path.to_str().unwrap();
        let shrunk = seeded(bug, &["shrink", token, "-o", file]);
        assert_eq!(shrunk.code, Some(0), "{bug}: {shrunk:?}");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(detected), "{text}");
        assert!(text.matches("[[step]]").count() <= 5 && text.lines().count() <= 25, "{text}");
        let again = seeded(bug, &["run", file]);
        assert_eq!(again.code, Some(1), "{bug}: {again:?}");
        let why = first["why"][0].as_str().unwrap();
        let name = first["detector"]["finding"].as_str().unwrap_or(why.split(':').next().unwrap());
        assert!(
            (again.stdout.clone() + &again.stderr).contains(name),
            "{bug}: {name} in\n{}\n{}",
            again.stdout,
            again.stderr
        );
        // Without the bug the same file is a scenario in which nothing is wrong.
        let honest = lowzone(["run", file]);
        assert_eq!(honest.code, Some(0), "{bug}: {honest:?}");
    }
}

#[test]
fn shrink_is_part_of_a_campaign_and_refuses_what_is_handled_right() {
    let whole = seeded("false-success", &["explore", "block/low-zone", "--first", "--shrink"]);
    assert_eq!(whole.code, Some(1), "{whole:?}");
    assert!(whole.stdout.contains("strikes = [\"dma-fault#0\"]"), "{}", whole.stdout);
    let token =
        whole.stdout.lines().find_map(|line| line.split_once(" replay ")).unwrap().1.trim_matches('\'').to_owned();
    let right = lowzone(["shrink", &token]);
    assert_eq!((right.code, right.stdout.as_str()), (Some(2), ""), "{right:?}");
    assert!(right.stderr.contains("nothing to shrink"), "{}", right.stderr);
}

#[test]
fn shrink_files_name_their_strikes_and_a_wrong_name_has_its_line() {
    let folder = Folder::new();
    let path = folder.path().join("a.toml");
    let run = |strikes: &str| {
        let steps = "[[step]]\nprobe = {}\n[[step]]\nio = { device = \"vda\", requests = 2 }\n[[step]]\nremove = { under_io = true }\n";
        let device = "[[device]]\nname = \"vda\"\nkind = \"virtio-blk\"\nsize = \"8M\"\n";
        fs::write(&path, format!("story = \"a\"\nstrikes = [{strikes}]\n{device}{steps}")).unwrap();
        lowzone(["run", path.to_str().unwrap()])
    };
    for strikes in ["\"slab:io#0\"", "\"schedule#3\"", "\"order#2=1\", \"map:io#0*\""] {
        let seen = run(strikes);
        assert_eq!(seen.code, Some(0), "{strikes}: {seen:?}");
    }
    let wrong = run("\"slab:io\"");
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.stderr.contains("a.toml:2:") && wrong.stderr.contains("'slab:io' is no fault"), "{}", wrong.stderr);
    let absent = run("\"slab:io#99\"");
    assert_eq!(absent.code, Some(2));
    assert!(absent.stderr.contains("slab:io#99 is not reached"), "{}", absent.stderr);
    let campaign = lowzone(["explore", path.to_str().unwrap()]);
    assert!(campaign.code == Some(2) && campaign.stderr.contains("strikes of its own"), "{campaign:?}");
}
