//! Bad input: one clear error each that names its place, exit code 2, nothing written.

use std::fs;
use std::path::{Path, PathBuf};

use lowzone_tests::image::Folder;
use lowzone_tests::program::{Outcome, command, path};

/// A scenario that is right, to be broken one line at a time.
const GOOD: &str = r#"story = "a test"

[machine]
ram = "2G"

[[device]]
name = "vda"
kind = "virtio-blk"
size = "1M"
width = 32

[[step]]
probe = {}

[[step]]
io = { device = "vda", requests = 4 }

[[step]]
remove = {}
"#;

/// Runs the program in a folder, which must hold the same afterwards, file for file and byte for byte.
fn run_in<S: AsRef<std::ffi::OsStr>>(folder: &Folder, args: impl IntoIterator<Item = S>) -> Outcome {
    let content = || -> Vec<(String, Option<Vec<u8>>)> {
        let read = |name: String| (name.clone(), fs::read(folder.path().join(name)).ok());
        folder.names().into_iter().map(read).collect()
    };
    let before = content();
    let output = command(args).current_dir(folder.path()).output().unwrap();
    assert!(content() == before, "something was written");
    Outcome::of(&output)
}

#[track_caller]
fn assert_refused(outcome: &Outcome, says: &[&str]) {
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert_eq!(outcome.stdout, "", "bad input has no result");
    let stderr = outcome.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    for say in says {
        assert!(stderr.contains(say), "{say} in\n{}", outcome.stderr);
    }
    assert!(!stderr.contains("panicked") && outcome.stderr.lines().count() <= 14, "one error:\n{}", outcome.stderr);
}

fn broken(folder: &Folder, from: &str, to: &str) -> PathBuf {
    assert!(GOOD.contains(from), "{from}");
    folder.file("bad.toml", GOOD.replacen(from, to, 1).as_bytes())
}

#[test]
fn bad_input_the_unbroken_file_runs() {
    let folder = Folder::new();
    folder.file("good.toml", GOOD.as_bytes());
    let outcome = run_in(&folder, ["run", "good.toml"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
}

#[test]
fn bad_input_toml_errors_name_file_line_column_the_line_and_the_nearest_key() {
    // What is broken, with what, and what the message says.
    let cases: [(&str, &str, &[&str]); 8] = [
        ("ram = \"2G\"", "rma = \"2G\"", &["bad.toml:4:1", "rma = \"2G\"", "unknown key 'rma'", "did you mean 'ram'"]),
        ("[machine]", "[mashine]", &["bad.toml:3:2", "mashine", "did you mean 'machine'"]),
        ("story = \"a test\"", "story = \"a test", &["bad.toml:1:", "story = \"a test", "not valid TOML"]),
        ("requests = 4", "reqests = 4", &["bad.toml:16:", "'reqests'", "did you mean 'requests'"]),
        ("probe = {}", "prob = {}", &["bad.toml:13:1", "'prob'", "did you mean 'probe'"]),
        ("width = 32", "width = \"wide\"", &["bad.toml:10:9", "wide", "a whole number from 1 to 64"]),
        ("device = \"vda\"", "device = \"vdb\"", &["bad.toml:16:", "no device 'vdb'", "'vda'"]),
        ("size = \"1M\"\n", "", &["bad.toml:", "stores its data nowhere", "'size', 'image' or 'size_of'"]),
    ];
    for (from, to, says) in cases {
        let folder = Folder::new();
        broken(&folder, from, to);
        assert_refused(&run_in(&folder, ["run", "bad.toml"]), says);
    }
}

#[test]
fn bad_input_numbers_out_of_their_limits() {
    let cases: [(&str, &str, &[&str]); 12] = [
        ("ram = \"2G\"", "ram = 0", &["bad.toml:4:7", "'ram' is 0"]),
        ("ram = \"2G\"", "ram = \"2000000001\"", &["bad.toml:4:7", "'ram' is 2000000001", "not a multiple of 4096"]),
        ("ram = \"2G\"", "ram = \"2T\"", &["bad.toml:4:7", "'ram' is 2T", "to 1T"]),
        ("width = 32", "width = 0", &["bad.toml:10:9", "'width' is 0", "from 1 to 64"]),
        ("width = 32", "width = 65", &["bad.toml:10:9", "'width' is 65", "from 1 to 64"]),
        ("width = 32", "width = 300", &["bad.toml:10:9", "300", "from 1 to 64"]),
        ("width = 32", "queue_size = 3", &["bad.toml:10:", "'queue_size' is 3", "not a power of two", "2 and 4 are"]),
        ("width = 32", "queue_size = 65536", &["bad.toml:10:", "65536", "32768"]),
        ("width = 32", "queue_size = 32769", &["bad.toml:10:", "'queue_size' is 32769", "to 32768"]),
        ("size = \"1M\"", "size = \"1000\"", &["bad.toml:9:", "'size' is 1000 bytes", "not a multiple of 512"]),
        ("requests = 4", "requests = 3", &["bad.toml:16:", "even number of requests"]),
        ("ram = \"2G\"", "cpus = 65", &["bad.toml:4:", "'cpus' is 65", "from 1 to 64"]),
    ];
    for (from, to, says) in cases {
        let folder = Folder::new();
        broken(&folder, from, to);
        assert_refused(&run_in(&folder, ["run", "bad.toml"]), says);
    }
}

#[test]
fn bad_input_from_the_command_line_is_blamed_on_it() {
    let folder = Folder::new();
    let cases: [(&[&str], &[&str]); 7] = [
        (&["run", "block/low-zome"], &["no scenario 'block/low-zome'", "did you mean 'block/low-zone'"]),
        (&["run", "missing.toml"], &["missing.toml", "No such file"]),
        (&["run", "--set", "machine.rma=2G"], &["machine.rma=2G", "'rma'", "did you mean 'ram'"]),
        (&["run", "--set", "machine.ram=0"], &["machine.ram=0", "'ram' is 0"]),
        (&["run", "--set", "ram"], &["'ram' is not of the form path=value"]),
        (&["run", "--set", "requests=4"], &["'requests' could be 3 things", "step[1].io.requests"]),
        (&["run", "--set", "width=65"], &["width=65", "from 1 to 64"]),
    ];
    for (args, says) in cases {
        assert_refused(&run_in(&folder, args), says);
    }
}

fn copy(folder: &Folder, image: &Path) -> Outcome {
    run_in(folder, ["run", "block/copy-image", "--set", &format!("image={}", image.display())])
}

#[test]
fn bad_input_images_that_are_none() {
    let folder = Folder::new();
    assert_refused(&run_in(&folder, ["run", "block/copy-image"]), &["needs an image file", "--set image=FILE"]);
    assert_refused(&copy(&folder, &folder.path().join("missing.img")), &["device vda", "missing.img", "No such file"]);
    assert_refused(&copy(&folder, folder.path()), &["device vda", "not a regular file"]);
    let odd = folder.file("odd.img", &[7; 1000]);
    assert_refused(&copy(&folder, &odd), &["device vda", "odd.img", "1000 bytes", "sectors of 512"]);
    let empty = folder.file("empty.img", &[]);
    assert_refused(&copy(&folder, &empty), &["device vda", "empty.img", "0 bytes", "sectors of 512"]);
}

#[test]
fn bad_input_an_image_that_is_a_pipe_is_refused_and_not_waited_for() {
    let folder = Folder::new();
    let pipe = folder.path().join("pipe.img");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let set = format!("image={}", pipe.display());
    let output = command(["run", "block/copy-image", "--set", &set]).output().unwrap();
    assert_refused(&Outcome::of(&output), &["device vda", "pipe.img", "not a regular file"]);
}

#[test]
fn bad_input_ram_beyond_the_model_or_the_host() {
    let folder = Folder::new();
    // The hole below 4 GiB pushes the last of it beyond what the page allocator can number.
    let outcome = run_in(&folder, ["run", "--set", "machine.ram=1T"]);
    assert_refused(&outcome, &["machine: RAM ends at 0x10040000000, above 0x10000000000"]);
    // A host that can't give the address space says so; one that can, as RAM is sparse, runs it.
    let script = format!("ulimit -v 4000000; exec {} run --set machine.ram=64G", path().display());
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_refused(&Outcome::of(&output), &["machine", "the host cannot map 68719476736 bytes of guest RAM"]);
}

#[test]
fn bad_input_a_failed_expectation_shows_both_sides_and_ends_with_1() {
    let folder = Folder::new();
    let text = format!("{GOOD}\n[expect]\nfindings = [\"leak\"]\nleaks = 2\n");
    folder.file("hopeful.toml", text.as_bytes());
    let outcome = run_in(&folder, ["run", "hopeful.toml"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let words: Vec<_> = outcome.stderr.split_whitespace().collect();
    let side_by_side = |wanted: &[&str]| words.windows(wanted.len()).any(|window| window == wanted);
    assert!(side_by_side(&["findings", "expected", "leak", "seen", "none"]), "{}", outcome.stderr);
    assert!(side_by_side(&["leaks", "expected", "2", "seen", "0"]), "{}", outcome.stderr);
}

/// Runs a command line that must fail with such a word, and leave these files as they are.
fn spares(args: &[&str], word: &str, files: &[&Path]) {
    let contents = || files.iter().map(|file| fs::read(file).unwrap()).collect::<Vec<_>>();
    let before = contents();
    let outcome = Outcome::of(&command(args).output().unwrap());
    assert!(outcome.code == Some(2) && outcome.stderr.contains(word), "{args:?}: {outcome:?}");
    assert!(before == contents(), "{args:?} changed a file");
}

#[test]
fn nothing_is_written_over_what_it_is_made_of() {
    let folder = Folder::new();
    let (scenario, image) = (folder.file("own.toml", GOOD.as_bytes()), folder.file("own.img", &[7; 1 << 20]));
    let (trace, again) = (folder.path().join("t.lzt"), folder.path().join("again.lzt"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (own, img, t) = (text(&scenario), text(&image), text(&trace));
    for file in [&trace, &again] {
        assert_eq!(Outcome::of(&command(["run", &own, "--trace", &text(file)]).output().unwrap()).code, Some(0));
    }
    let over = "would write over";
    spares(&["run", &own, "--trace", &own], over, &[&scenario]);
    spares(&["run", &own, "--report", &own], over, &[&scenario]);
    let image_of = format!("device.image={img}");
    let with_image = ["run", "block/copy-image", "--set", &image_of, "--trace", &img];
    spares(&with_image, over, &[&image]);
    spares(&["run", &own, "--trace", &t, "--report", &t], over, &[&trace]);
    let made_of = "would replace what it is made of";
    spares(&["report", &t, "-o", &t], made_of, &[&trace]);
    spares(&["trace", "join", &t, &text(&again), "-o", &text(&again)], made_of, &[&trace, &again]);
    let nowhere = folder.path().join("no/such/page.html");
    spares(&["explore", &own, "--report", &text(&nowhere)], "cannot write the page", &[&scenario]);
    spares(&["run", &own, "--report", &text(&nowhere)], "page.html", &[&scenario]);
    spares(&["run", &own, "--trace-kinds", "dma"], "add --trace FILE", &[&scenario]);
    // Two records of drivers are no driver's and device's.
    let joined = text(&folder.path().join("joined.lzt"));
    spares(&["trace", "join", &t, &t, "-o", &joined], "the second file is the device's", &[&trace]);
    // What was read once is gone.
    let piped = format!("cat {t} | {} report /dev/stdin -o {joined}", path().display());
    let outcome = Outcome::of(&std::process::Command::new("sh").args(["-c", &piped]).output().unwrap());
    assert!(outcome.code == Some(2) && outcome.stderr.contains("/dev/stdin is no file"), "{outcome:?}");
    assert!(!folder.names().iter().any(|name| name.starts_with("joined") || name.contains("part")));
}

#[test]
fn a_page_goes_through_a_link_and_into_a_pipe() {
    let folder = Folder::new();
    let (scenario, page) = (folder.file("own.toml", GOOD.as_bytes()), folder.file("page.html", b"old"));
    let link = folder.path().join("link.html");
    std::os::unix::fs::symlink(&page, &link).unwrap();
    let report = |to: &Path| {
        let args = ["run", scenario.to_str().unwrap(), "--report", to.to_str().unwrap()];
        Outcome::of(&command(args).output().unwrap())
    };
    assert_eq!(report(&link).code, Some(0));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink() && fs::read(&page).unwrap().starts_with(b"<!"));
    assert_eq!(report(Path::new("/dev/null")).code, Some(0));
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
}

#[test]
fn a_record_that_has_not_every_kind_says_so_and_has_no_digest() {
    let folder = Folder::new();
    let (scenario, trace) = (folder.file("own.toml", GOOD.as_bytes()), folder.path().join("t.lzt"));
    let (own, t) = (scenario.to_str().unwrap(), trace.to_str().unwrap());
    let run = |args: &[&str]| Outcome::of(&command(args).output().unwrap());
    assert_eq!(run(&["run", own, "--trace", t, "--trace-kinds", "port"]).code, Some(0));
    let stat = run(&["trace", "stat", t]);
    assert!(stat.code == Some(0) && !stat.stdout.contains("digest"), "{stat:?}");
    for question in [&["trace", "stat", t][..], &["trace", "tx", t], &["trace", "tx", t, "1"]] {
        let said = run(question).stdout;
        assert!(
            said.contains("# only these kinds were recorded") && said.contains("port:read"),
            "{question:?}: {said}"
        );
    }
    assert_eq!(run(&["run", own, "--trace", t]).code, Some(0));
    let stat = run(&["trace", "stat", t]).stdout;
    assert!(stat.contains("digest") && !stat.contains("# only"), "{stat}");
}
