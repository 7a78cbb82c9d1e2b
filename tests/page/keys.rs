//! Search, zoom, pan and choice, by keyboard and by mouse.

use serde_json::{Value, json};

use lowzone_tests::program::lowzone;

use crate::show::Show;

/// From where to where the timeline shows, once it has drawn what was asked for.
fn view(show: &mut Show) -> (f64, f64) {
    // Two frames: the one that was asked for, and the one that proves it is over.
    show.browser.eval("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))");
    let text = show.browser.eval("document.getElementById('timeline').dataset.view");
    let ends: Vec<f64> = text.as_str().unwrap().split(' ').map(|end| end.parse().unwrap()).collect();
    (ends[0], ends[1])
}

fn press(show: &mut Show, key: &str) -> (f64, f64) {
    show.browser.press(key);
    view(show)
}

fn chosen(show: &mut Show) -> Value {
    show.browser.eval("Number(document.getElementById('details').dataset.tx)")
}

fn search(show: &mut Show, text: &str) {
    show.browser.press("/");
    show.browser.eval("document.getElementById('search').select()");
    show.browser.enter(text);
}

#[test]
fn a_search_by_number_or_by_any_address_lands_on_the_transaction() {
    let mut show = Show::new();
    let (_, page) = show.page_of("block/low-zone", &[]);
    show.open(&page, "light");
    let trace = show.path("t.lzt");
    let trace = trace.to_str().unwrap();
    search(&mut show, "12");
    assert_eq!(chosen(&mut show), 12);
    let of = |args: &[&str]| -> Vec<Value> {
        let lines = lowzone(["trace"].iter().chain(args).chain(&["--json"])).stdout;
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let bounced = of(&["tx", trace]).into_iter().find(|tx| tx["bounced"] == true).unwrap();
    for key in ["dma", "buffer"] {
        let inside = format!("{:#x}", bounced[key].as_u64().unwrap() + 100);
        let known: Vec<_> = of(&["who", trace, &inside]).iter().map(|tx| tx["id"].clone()).collect();
        assert!(known.contains(&bounced["id"]));
        search(&mut show, &inside);
        assert!(known.contains(&chosen(&mut show)), "{key} {inside}: {known:?}");
        let found = show.browser.eval("document.querySelectorAll('#results button').length");
        assert_eq!(found, known.len().min(30), "{key} {inside}");
    }
    // It is in the picture, which shows little else.
    let (from, to) = view(&mut show);
    let whole = press(&mut show, "Home");
    assert!(to - from < (whole.1 - whole.0) / 2.0, "{from} {to} of {whole:?}");
    search(&mut show, "0xdead0000");
    assert!(show.text("#results").contains("Nobody had this address mapped"));
    search(&mut show, bounced["mapped_by"].as_str().unwrap());
    assert_eq!(show.browser.eval("document.querySelectorAll('#results button').length > 5"), true);
}

#[test]
fn the_timeline_obeys_keys_and_mouse() {
    let mut show = Show::new();
    let (_, page) = show.page_of("block/low-zone", &[]);
    show.open(&page, "dark");
    show.browser.eval("document.getElementById('timeline').focus()");
    let whole = view(&mut show);
    let closer = press(&mut show, "+");
    assert!(closer.1 - closer.0 < (whole.1 - whole.0) * 0.7, "{closer:?} of {whole:?}");
    let right = press(&mut show, "ArrowRight");
    assert!(right.0 > closer.0 && (right.1 - right.0 - (closer.1 - closer.0)).abs() < 1e-3 * whole.1, "{right:?}");
    assert!(press(&mut show, "ArrowLeft").0 < right.0);
    let out = press(&mut show, "-");
    assert!(out.1 - out.0 > (closer.1 - closer.0) * 1.3);
    let (first, second) = (press(&mut show, "n"), chosen(&mut show));
    assert!(second.as_u64().unwrap() > 0, "{first:?}");
    press(&mut show, "n");
    assert_ne!(chosen(&mut show), second);
    press(&mut show, "p");
    assert_eq!(chosen(&mut show), second);
    let home = press(&mut show, "Home");
    assert!((home.0 - whole.0).abs() + (home.1 - whole.1).abs() < 1e-6, "{home:?} is not {whole:?}");
    let by_time = show.text("[title*='(x)']");
    press(&mut show, "x");
    assert_ne!(show.text("[title*='(x)']"), by_time);
    press(&mut show, "t");
    assert_eq!(show.browser.eval("document.documentElement.dataset.theme"), "light");
    let before = press(&mut show, "Home");
    let at = show.browser.eval(
        "(() => { const t = document.getElementById('timeline'); t.scrollIntoView({ block: 'center' }); \
         const box = t.getBoundingClientRect(); return { x: box.x + box.width / 2, y: box.bottom - 40 }; })()",
    );
    let mouse = |more: Value| {
        let mut event = json!({ "x": at["x"], "y": at["y"], "button": "left", "clickCount": 1 });
        more.as_object().unwrap().iter().for_each(|(key, value)| event[key] = value.clone());
        event
    };
    show.browser.call(
        "Input.dispatchMouseEvent",
        mouse(json!({ "type": "mouseWheel", "deltaX": 0, "deltaY": -400, "button": "none" })),
    );
    show.browser.wait_for("document.getElementById('timeline').dataset.view.length > 0");
    let zoomed = view(&mut show);
    assert!(zoomed.1 - zoomed.0 < before.1 - before.0, "{zoomed:?} of {before:?}");
    for (sort, shift) in [("mousePressed", 0.0), ("mouseMoved", -120.0), ("mouseReleased", -120.0)] {
        let x = at["x"].as_f64().unwrap() + shift;
        show.browser.call("Input.dispatchMouseEvent", mouse(json!({ "type": sort, "x": x, "buttons": 1 })));
    }
    assert!(view(&mut show).0 > zoomed.0, "a drag to the left moves to the right");
}
