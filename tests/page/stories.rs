//! The question of the page, answered on two crimes and a campaign; and pictures of what that looks like.

use lowzone_tests::program::{lowzone, workspace};
use serde_json::Value;

use crate::show::{Show, report};

fn picture(show: &mut Show, name: &str, height: u32) {
    show.browser.screenshot(&workspace().join("target/report").join(name), height);
}

/// The transaction that something is wrong with, as `trace tx` has it.
fn wrong(show: &Show) -> Value {
    let trace = show.path("t.lzt");
    let line = lowzone(["trace", "tx", trace.to_str().unwrap(), "--wrong", "--json"]).stdout;
    serde_json::from_str(line.trim()).unwrap()
}

/// What the page answers, one click from its finding.
fn answers(show: &mut Show, scenario: &str) -> (Value, Vec<String>) {
    let (_, page) = show.page_of(scenario, &[]);
    show.open(&page, "light");
    let tx = wrong(show);
    show.browser.press("n");
    assert_ne!(show.browser.eval("Number(document.getElementById('details').dataset.tx)"), tx["id"]);
    show.browser.eval("document.querySelector('[data-finding=\"0\"]').click()");
    assert_eq!(show.browser.eval("Number(document.getElementById('details').dataset.tx)"), tx["id"]);
    let said = show.browser.eval("[...document.querySelectorAll('#details .answers dd')].map((one) => one.innerText)");
    let said = said.as_array().unwrap().iter().map(|one| one.as_str().unwrap().replace('\u{a0}', " ")).collect();
    (tx, said)
}

#[test]
fn use_after_unmap_is_answered_one_click_away() {
    let mut show = Show::new();
    let (tx, said) = answers(&mut show, "block/use-after-unmap");
    let text = |key: &str| tx[key].as_str().unwrap().to_owned();
    assert!(said[0].contains(&text("mapped_by")) && said[0].contains("4 KiB") && said[0].contains("vda"), "{said:?}");
    assert!(said[0].contains(&text("allocated_by")), "{said:?}");
    assert!(said[1].contains("chain 0") && said[1].contains("queue 0") && said[1].contains("doorbell"), "{said:?}");
    assert!(said[2].contains("after its unmap") && said[2].contains("0x1004000"), "{said:?}");
    assert!(said[3].contains("after-unmap") && said[3].contains(&text("unmapped_by")), "{said:?}");
    assert!(said[3].contains("interrupt") && said[3].contains("freed"), "{said:?}");
    picture(&mut show, "use-after-unmap-light.png", 1350);
    let page = show.path("t.html");
    show.open(&page, "dark");
    picture(&mut show, "use-after-unmap-dark.png", 1350);
}

#[test]
fn too_wide_is_answered_one_click_away() {
    let mut show = Show::new();
    let (tx, said) = answers(&mut show, "block/too-wide");
    assert!(said[0].contains(tx["mapped_by"].as_str().unwrap()) && said[0].contains("0x100000000"), "{said:?}");
    assert!(said[1].contains("chain 0"), "{said:?}");
    assert!(said[2].contains("tried"), "{said:?}");
    assert!(said[3].contains("beyond-width") && said[3].contains(tx["unmapped_by"].as_str().unwrap()), "{said:?}");
    picture(&mut show, "too-wide-light.png", 1350);
}

#[test]
fn a_campaign_with_failures_is_answered_on_its_page() {
    let mut show = Show::new();
    let explore = lowzone(["explore", "block/use-after-unmap", "--json"]);
    assert_eq!(explore.code, Some(1), "{explore:?}");
    let (input, page) = (show.folder.file("explore.json", explore.stdout.as_bytes()), show.path("explore.html"));
    assert_eq!(report(&input, &page).code, Some(0));
    show.open(&page, "light");
    let wrong = &explore.json()["wrong"][0];
    let said = show.text(".finding .answers");
    let parts = ["raw.rs", "posted in chain 0 of queue 0", "port:violation", "after-unmap", "dma:dma_unmap_page"];
    parts.iter().for_each(|part| assert!(said.contains(part), "{part}: {said}"));
    let answer = |from: &str, to: &str| said.split_once(from).unwrap().1.split_once(to).unwrap().0.to_owned();
    let descriptor = answer("Which descriptor led there?", "When did the device touch it?");
    assert!(descriptor.contains("chain 0 of queue 0"), "{said}");
    assert!(show.text(".finding .token").contains(wrong["token"].as_str().unwrap()));
    picture(&mut show, "explore-light.png", 1200);
    let (_, page) = show.page_of("net/mixed", &[]);
    show.open(&page, "light");
    show.browser.press("/");
    show.browser.enter("5000");
    show.browser.wait_for("document.getElementById('timeline').dataset.draws > 1");
    picture(&mut show, "net-mixed-light.png", 1000);
}
