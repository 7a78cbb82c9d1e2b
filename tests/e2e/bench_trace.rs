//! `lowzone bench trace`: nanoseconds of an event, of each way to record it.

use lowzone_tests::program::lowzone;

#[test]
fn every_way_to_record_is_timed_and_keeps_its_events() {
    let seen = lowzone(["bench", "trace", "--seconds", "1"]);
    assert!(seen.code == Some(0) && seen.stdout.contains("every event kept that should be"), "{seen:?}");
    let figures = |line: &str| {
        let words = line.split_whitespace().rev().take(4);
        words.map(|word| word.parse::<f64>().unwrap()).collect::<Vec<_>>()
    };
    for way in ["copied", "its kind masked out", "recorded ", "streamed into a trace", "several threads"] {
        let line = seen.stdout.lines().find(|line| line.contains(way)).unwrap_or_else(|| panic!("{way}: {seen:?}"));
        // From the right: of the copy, million a second, fastest, the median.
        let figures = figures(line);
        assert!(figures.iter().all(|&figure| figure > 0.0) && figures[2] <= figures[3], "{line}");
    }
}
