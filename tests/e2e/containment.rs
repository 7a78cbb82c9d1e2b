//! Drivers that die so that nothing in their process could go on: each death is one case's verdict, and the campaign
//! ends complete, the same for any number of jobs.

use std::process::Command;

use lowzone_tests::program::Outcome;
use serde_json::Value;

fn dying(args: &[&str]) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dying"));
    Outcome::of(&command.args(args).env("NO_COLOR", "1").output().unwrap())
}

fn explore(how: &str, jobs: &str) -> Outcome {
    dying(&["explore", "dying", "--json", "--jobs", jobs, "--set", &format!("driver.options.how=\"{how}\"")])
}

/// The verdict of the cases in which the driver dies, once or for good: they differ by their faults only.
fn verdict(how: &str) -> String {
    let one = explore(how, "1");
    assert_eq!(one.code, Some(1), "{}", one.stderr);
    assert_eq!(one.stdout, explore(how, "2").stdout);
    let json = one.json();
    assert_eq!(json["missing"], Value::Array(Vec::new()), "not complete");
    assert!(json["cases"].as_u64() > Some(200));
    let wrong: Vec<_> = json["wrong"].as_array().unwrap().iter().collect();
    let whys: Vec<_> = wrong.iter().map(|case| case["why"][0].as_str().unwrap().to_owned()).collect();
    // The object itself, or the page of its slab.
    let memory = |token: &str| token.contains(":slab:") || token.contains(":page:");
    assert!(wrong.iter().all(|case| memory(case["token"].as_str().unwrap())), "{wrong:?}");
    assert!((1..=6).contains(&whys.len()), "{whys:?}");
    assert!(whys.iter().all(|why| *why == whys[0]), "{whys:?}");
    whys[0].clone()
}

/// Wrong cases carry the record before the fault, unless their process died with it.
#[test]
fn containment_shows_the_record_of_what_could_be_asked() {
    let text = |how| {
        let how = format!("driver.options.how=\"{how}\"");
        dying(&["explore", "dying", "--set", &how]).stdout
    };
    let (alive, dead) = (text("destructor"), text("overflow"));
    let last = |text: &str| text.lines().filter(|line| line.trim_start().starts_with("-1 ")).count();
    assert!(last(&alive) >= 1 && alive.contains("dying replay 'dying@"), "{alive}");
    assert_eq!(last(&dead), 0, "{dead}");
}

#[test]
fn containment_of_a_stack_overflow() {
    assert_eq!(verdict("overflow"), "it died of SIGSEGV: a stack overflow");
}

#[test]
fn containment_of_an_endless_loop() {
    assert_eq!(verdict("loop"), "it ran on without passing a point: an endless loop");
}

#[test]
fn containment_of_a_panic_in_a_destructor() {
    assert_eq!(verdict("destructor"), "the driver panicked");
}

#[test]
fn containment_of_a_panic_in_a_destructor_while_unwinding() {
    assert_eq!(verdict("both"), "it died of SIGABRT: a panic while unwinding");
}
