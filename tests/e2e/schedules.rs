//! `lowzone explore --schedules`: the order of events changed, run by run.

use lowzone_tests::program::{Outcome, command_of, lowzone, mutants};

/// The digest that a replay prints.
fn digest(token: &str) -> String {
    let seen = lowzone(["replay", token]);
    assert_eq!(seen.code, Some(0), "{seen:?}");
    seen.stdout.lines().rev().find_map(|line| line.strip_prefix("digest   ")).unwrap().to_owned()
}

#[test]
fn schedules_of_a_clean_driver_report_nothing_and_come_after_the_faults() {
    let seen = lowzone(["explore", "block/low-zone", "--schedules", "40", "--json"]);
    let json = seen.json();
    assert_eq!((seen.code, &json["wrong"]), (Some(0), &serde_json::json!([])), "{}", seen.stdout);
    assert_eq!(json["schedules"], serde_json::json!({ "run": 40, "until_found": null }));
    let names: Vec<_> = json["verdicts"].as_array().unwrap().iter().map(|row| row[0].as_str().unwrap()).collect();
    let (faults, schedules) = names.split_at(names.len() - 40);
    assert!(faults.len() > 500 && !faults.iter().any(|name| name.contains("schedule")));
    for (nth, name) in schedules.iter().enumerate() {
        let own = format!("schedule#{nth}");
        assert!(name.starts_with(&own) && name.contains('+') == (nth % 4 == 3), "{name}");
    }
    let alone = lowzone(["explore", "net/source", "--only-schedules", "--schedules", "40", "--json"]).json();
    assert_eq!(
        (&alone["cases"], &alone["wrong"], &alone["missing"]),
        (&40.into(), &serde_json::json!([]), &serde_json::json!([]))
    );
}

#[test]
fn schedules_differ_from_each_other_and_each_repeats_itself() {
    let json = lowzone(["explore", "block/low-zone", "--only-schedules", "--schedules", "1", "--json"]).json();
    let token = |faults: &str| format!("block/low-zone@{}:1:{faults}", json["fingerprint"].as_str().unwrap());
    let clean = digest(&token("clean"));
    let mut orders: Vec<_> = ["schedule#0", "schedule#1", "order#"].map(|order| digest(&token(order))).into();
    // Most exceptions give an idle CPU its turn, which changes nothing that is recorded.
    let exceptions = (0..300).step_by(10).map(|at| digest(&token(&format!("order#{at}=1"))));
    orders.extend(exceptions.into_iter().find(|order| *order != orders[2]));
    assert_eq!(orders.len(), 4, "no exception changed anything");
    for (at, order) in orders.iter().enumerate() {
        assert!(*order != clean && !orders[..at].contains(order), "{orders:?}");
    }
    assert_eq!(orders[0], digest(&token("schedule#0")));
}

#[test]
fn first_ends_a_campaign_with_its_first_wrong_case_whatever_the_children_do() {
    let run = |jobs: &str, more: &[&str]| {
        let args = [&["explore", "block/low-zone", "--json", "--jobs", jobs], more].concat();
        let mut command = command_of(mutants(), &args);
        Outcome::of(&command.env("LOWZONE_MUTANT", "false-success").output().expect("the program starts"))
    };
    let whole = run("2", &[]).json();
    let first = run("1", &["--first"]);
    assert_eq!((first.code, &first.stdout), (Some(1), &run("3", &["--first"]).stdout));
    let first = first.json();
    assert_eq!(first["wrong"].as_array().unwrap().len(), 1);
    assert_eq!(first["wrong"][0]["token"], whole["wrong"][0]["token"]);
    let (some, all) = (first["verdicts"].as_array().unwrap(), whole["verdicts"].as_array().unwrap());
    assert!(some.len() < all.len() && some[..] == all[..some.len()], "{} of {}", some.len(), all.len());
}

#[test]
fn schedules_exhausted_are_all_orders_with_so_many_exceptions() {
    let run = |exceptions: &str| {
        let args =
            ["explore", "edu/selftest", "--set", "explore.requests=2", "--only-schedules", "--json", "--exhaustive"];
        let seen = lowzone([&args[..], &[exceptions]].concat());
        assert_eq!(seen.code, Some(0), "{seen:?}");
        seen.json()
    };
    let (none, one) = (run("0"), run("1"));
    assert_eq!(none["orders"], serde_json::json!({ "exceptions": 0, "run": 1, "complete": true }));
    let orders = &one["orders"];
    assert!(orders["run"].as_u64() > Some(20) && orders["complete"] == true, "{orders}");
    let mut names: Vec<_> = one["verdicts"].as_array().unwrap().iter().map(|row| row[0].as_str().unwrap()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(Some(names.len() as u64), orders["run"].as_u64());
}
