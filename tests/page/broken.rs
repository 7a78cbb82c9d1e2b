//! Broken, foreign and later files: what was readable, the offset, and never half a page.

use std::fs;

use lowzone_tests::program::lowzone;

use crate::show::{Show, report};

#[test]
fn a_cut_trace_gives_the_page_of_what_was_readable_and_names_the_offset() {
    let mut show = Show::new();
    show.page_of("block/low-zone", &[]);
    let whole = fs::read(show.path("t.lzt")).unwrap();
    let (input, page) = (show.folder.file("cut.lzt", &whole[..whole.len() * 2 / 3]), show.path("cut.html"));
    let outcome = report(&input, &page);
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    let offset = outcome.stderr.split("byte ").nth(1).unwrap().split(|c: char| !c.is_ascii_digit()).next().unwrap();
    assert!(offset.parse::<usize>().unwrap() > 1000, "{outcome:?}");
    show.open(&page, "light");
    let banner = show.text(".banner.bad");
    assert!(banner.contains(&format!("byte {offset}")) && banner.contains("cut.lzt"), "{banner}");
    assert_eq!(show.browser.eval("Number(document.querySelector('[data-count=events]').dataset.value) > 400"), true);
    assert!(!show.text("main").contains("Never unmapped"), "nobody knows what a cut trace left mapped");
}

#[test]
fn what_is_no_trace_gives_no_page_and_nothing_half() {
    let show = Show::new();
    let (_, page) = show.page_of("block/use-after-unmap", &[]);
    let first = fs::read(&page).unwrap();
    assert_eq!(report(&show.path("t.lzt"), &page).code, Some(0));
    assert!(first == fs::read(&page).unwrap(), "the same trace gives the same page");
    let whole = fs::read(show.path("t.lzt")).unwrap();
    let mut newer = whole.clone();
    newer[12] = 9;
    let cases: [(&str, &[u8], &str); 6] = [
        ("foreign", b"MZ and so on", "byte 0 differs"),
        ("empty", b"", "not a lowzone trace"),
        ("newer", &newer, "format version 9, written by lowzone"),
        ("json", b"{ \"verdicts\": [", "line 1"),
        ("run", b"{ \"digest\": \"\", \"findings\": [] }", "run --trace FILE"),
        ("other", b"[1, 2]", "explore --json"),
    ];
    for (name, bytes, said) in cases {
        let input = show.folder.file(name, bytes);
        let outcome = report(&input, &show.path("no.html"));
        assert_eq!(outcome.code, Some(2), "{name}: {outcome:?}");
        assert!(outcome.stderr.contains(said) && outcome.stderr.contains(name), "{name}: {outcome:?}");
    }
    let nowhere = report(&show.path("t.lzt"), &show.path("no/such/folder.html"));
    assert!(nowhere.code == Some(2) && nowhere.stderr.contains("cannot write the page"), "{nowhere:?}");
    let left = show.folder.names();
    assert!(left.iter().all(|name| !name.contains("no.html") && !name.ends_with(".part")), "{left:?}");
}

#[test]
fn commands_write_their_own_pages() {
    let mut show = Show::new();
    let page = show.path("own.html");
    let path = page.to_str().unwrap();
    let run = lowzone(["run", "block/leak", "--report", path]);
    assert_eq!(run.code, Some(0), "{run:?}");
    show.open(&page, "light");
    assert!(show.text("#verdict").contains("as expected"), "{}", show.text("#verdict"));
    assert!(show.text("main").contains("Left over"));
    assert!(show.text(".story").len() > 10);
    let explore = lowzone(["explore", "alloc/scullc", "--report", path, "--json"]);
    assert_eq!(explore.code, Some(0), "{explore:?}");
    show.open(&page, "light");
    let shown = show.browser.eval("Number(document.querySelector('[data-count=cases]').dataset.value)");
    assert_eq!(shown, explore.json()["cases"]);
    // Every case has its token in the tree, once its branches are open.
    let open = "(async () => { for (let n = 0; n < 4; n++) { document.querySelectorAll('.tree details').forEach((d) => { d.open = true; }); \
                await new Promise((done) => setTimeout(done, 30)); } return document.querySelectorAll('.tree .token').length; })()";
    assert_eq!(show.browser.eval(open), explore.json()["cases"]);
    let bench = lowzone(["bench", "dma", "--seconds", "1", "--no-count", "--report", path]);
    assert_eq!(bench.code, Some(0), "{bench:?}");
    show.open(&page, "dark");
    assert_eq!(show.browser.eval("document.querySelectorAll('.cost-row').length"), 7);
    let left = show.folder.names();
    assert_eq!(left, ["own.html"], "{left:?}");
}
