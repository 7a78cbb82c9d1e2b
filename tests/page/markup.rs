//! Names with markup in them are shown, and never executed.

use std::fs;

use lowzone::guest_mem::site::{Owner, Scope, Site};
use lowzone::guest_mem::trace::{Kind, Producer, Record, owner_word};
use lowzone::trace::format::{BLOCK_HEADER, PREFIX, checksum};
use lowzone::trace::{Header, Writer};
use serde_json::json;

use crate::show::{Show, report};

const EVIL: &str = "</script><img src=x onerror=\"window.boom = 1\"><script>window.boom = 1</script>";
/// As long as the path of this file, which is what it takes the place of.
const SITE: &str = "<b onclick=boom()>xx";

/// A trace whose scenario, kinds, device and sites have markup for names.
fn trace() -> Vec<u8> {
    let kinds = Kind::ALL.iter().map(|kind| (kind.number(), kind.name().to_owned()));
    let kinds = kinds.map(|(number, name)| (number, if number == 40 { EVIL.to_owned() } else { name })).collect();
    let header = Header {
        program: EVIL.into(),
        scenario: EVIL.into(),
        seed: 1,
        clock: "virtual-ns".into(),
        began: None,
        cpus: 1,
        kinds,
        only: Vec::new(),
    };
    let mut writer = Writer::new(Vec::new(), &header, &[(1, "0000:00:01.0".into(), EVIL.into())], None).unwrap();
    let by = owner_word(Owner { site: Site::caller(), scope: Scope::ROOT });
    let record = |ts, kind, tag| (Producer(0), Record { ts, addr: 0x1000, tag, len: 64, kind, dev: 1 });
    writer.page(&[
        record(1, Kind::DmaMapPage, 5),
        record(1, Kind::By, by),
        record(2, Kind::VirtqAdd, 0),
        record(3, Kind::PortViolation, 5),
        record(4, Kind::DmaUnmapPage, 5),
    ]);
    let mut bytes = writer.finish(0, 5).unwrap();
    let (from, mut at) = (file!().as_bytes(), PREFIX);
    while at < bytes.len() {
        let length = u32::from_le_bytes(*bytes[at + 4..].first_chunk().unwrap());
        let end = at + BLOCK_HEADER + usize::try_from(length).unwrap();
        let block = &mut bytes[at..end];
        if let Some(found) = block.windows(from.len()).position(|part| part == from) {
            block[found..found + SITE.len()].copy_from_slice(SITE.as_bytes());
            let sum = checksum(&block[..12], &block[BLOCK_HEADER..]);
            block[12..16].copy_from_slice(&sum.to_le_bytes());
        }
        at = end;
    }
    assert_eq!(from.len(), SITE.len());
    assert!(bytes.windows(SITE.len()).any(|part| part == SITE.as_bytes()), "no site was replaced");
    bytes
}

fn shown_and_dead(show: &mut Show, texts: &[&str]) {
    show.browser.eval("document.querySelectorAll('details').forEach((one) => { one.open = true; })");
    show.browser.eval("new Promise((done) => setTimeout(done, 50))");
    assert_eq!(show.browser.eval("typeof window.boom"), "undefined");
    assert_eq!(show.browser.eval("document.querySelectorAll('img, b, script:not([id]) ~ script').length"), 0);
    for text in texts {
        let has = format!("document.body.textContent.includes({})", json!(text));
        assert_eq!(show.browser.eval(&has), true, "{text}");
    }
    assert!(show.browser.complaints().is_empty(), "{:?}", show.browser.complaints());
}

#[test]
fn names_with_markup_are_shown_and_never_executed() {
    let mut show = Show::new();
    let (input, page) = (show.folder.file("evil.lzt", &trace()), show.path("evil.html"));
    assert_eq!(report(&input, &page).code, Some(0));
    show.open(&page, "light");
    show.browser.press("/");
    show.browser.enter("5");
    shown_and_dead(&mut show, &[EVIL, SITE]);
    show.browser.press("/");
    show.browser.eval("document.getElementById('search').select()");
    show.browser.enter("onerror");
    shown_and_dead(&mut show, &[EVIL]);
    let campaign = json!({
        "scenario": EVIL, "fingerprint": "f", "seed": 1, "clean_digest": EVIL, "points": { EVIL: 1 }, "cases": 1, "missing": [EVIL],
        "rows": [{ "class": EVIL, "scope": EVIL, "site": EVIL, "cases": 1, "failed_right": 0, "absorbed": 0, "wrong": 1, "natural": 0 }],
        "wrong": [{ "token": EVIL, "site": EVIL, "natural": false, "detector": { "by": EVIL }, "why": [EVIL, EVIL], "record": [EVIL] }],
        "verdicts": [[format!("{EVIL}:{EVIL}"), "wrong"]],
    });
    let input = show.folder.file("evil.json", campaign.to_string().as_bytes());
    assert_eq!(report(&input, &page).code, Some(0));
    show.open(&page, "light");
    shown_and_dead(&mut show, &[EVIL]);
    let text = fs::read_to_string(&page).unwrap();
    assert_eq!(text.matches("</script>").count(), 2, "the data ends its element");
}
