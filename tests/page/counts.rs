//! What the page counts is what the kernel and the devices counted, which know nothing of the recorder.

use serde_json::Value;

use crate::show::Show;

fn count(show: &mut Show, name: &str) -> u64 {
    let value = show.browser.eval(&format!("Number(document.querySelector('[data-count={name}]').dataset.value)"));
    value.as_u64().unwrap()
}

#[test]
fn a_page_asks_for_itself_alone_and_counts_what_the_run_counted() {
    let mut show = Show::new();
    for (scenario, more) in
        [("block/low-zone", &[][..]), ("net/loop-back", &[]), ("block/use-after-unmap", &["--world", "threads"])]
    {
        let (run, page) = show.page_of(scenario, more);
        show.open(&page, "light");
        let verdict = if scenario == "block/use-after-unmap" { "✕ 1 thing found" } else { "✓ nothing wrong" };
        assert_eq!(show.text("#verdict"), verdict, "{scenario}");
        for name in ["events", "transactions"] {
            assert_eq!(Value::from(count(&mut show, name)), run[name], "{scenario}: {name}");
        }
        assert_eq!(count(&mut show, "findings"), run["findings"].as_array().unwrap().len() as u64, "{scenario}");
        let devices = show
            .browser
            .eval("[...document.querySelectorAll('[data-device]')].map((d) => JSON.parse(d.dataset.device))");
        for (device, counted) in devices.as_array().unwrap().iter().zip(run["devices"].as_array().unwrap()) {
            assert_eq!(device["name"], counted["name"]);
            let pairs = [
                ("maps", "maps"),
                ("coherent", "coherent"),
                ("bounced", "bounces"),
                ("bounced_bytes", "bounced_bytes"),
                ("refused", "map_failures"),
            ];
            for (shown, kept) in pairs {
                assert_eq!(device[shown], counted[kept], "{scenario}: {shown} of {device}");
            }
        }
        assert_eq!(devices.as_array().unwrap().len(), run["devices"].as_array().unwrap().len());
    }
}
