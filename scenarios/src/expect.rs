//! Expectations: what a scenario says must be seen, held against what was.
//!
//! Neighbours: `spec::Expect`, `result`. A scenario that commits a crime expects its finding: exactly that.

use crate::result::{IoRow, RunResult};
use crate::spec::{CanaryState, Expect};

/// An expectation that doesn't hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// What was looked at.
    pub what: String,
    /// What should have been seen.
    pub expected: String,
    /// What was seen.
    pub seen: String,
}

/// Everything that is not as expected; nothing if all is.
pub fn check(expect: &Expect, result: &RunResult) -> Vec<Mismatch> {
    let mut wrong = Vec::new();
    let mut compare = |what: &str, expected: String, seen: String| {
        if expected != seen {
            wrong.push(Mismatch { what: what.to_owned(), expected, seen });
        }
    };
    let mut wanted = expect.findings.clone();
    let mut found: Vec<String> = result.findings.iter().map(|row| row.name.clone()).collect();
    wanted.sort();
    found.sort();
    compare("findings", list(&wanted), list(&found));
    compare("leaks", expect.leaks.to_string(), result.leaks.len().to_string());
    if !result.interrupted {
        compare("failed requests", expect.failed_requests.to_string(), result.failed_requests.to_string());
    }
    // What was stopped before anything was read back can't be judged, nor what failed from the first request to the
    // last: the count of failed requests does that.
    let judged = |row: &&IoRow| row.compared > 0 || !(result.interrupted || row.requests == 0 && row.failed > 0);
    for row in result.io.iter().filter(judged) {
        compare(&format!("data of {}", row.label), "verified".to_owned(), verified(row.verified));
    }
    for row in result.clears.iter().filter(|row| !result.interrupted || row.compared > 0) {
        let right = row.mismatched == 0 && row.compared > 0;
        compare(&format!("data of {}", row.label), "verified".to_owned(), verified(right));
    }
    for row in &result.exercises {
        compare(&format!("results of {}", row.label), "none wrong".to_owned(), wrong_results(row.wrong));
    }
    for row in result.packets.iter().filter(|_| !result.interrupted) {
        compare(&format!("packets of {}", row.label), "none wrong".to_owned(), wrong_results(row.wrong));
        let known = row.delivered + row.lost.total();
        compare(&format!("packets of {} accounted for", row.label), row.offered.to_string(), known.to_string());
    }
    let wrong_data = result.dma.iter().filter(|row| row.wrong).count();
    compare("wrong data", expect.wrong_data.to_string(), wrong_data.to_string());
    for row in result.copies.iter().filter(|_| !result.interrupted) {
        compare(&format!("SHA-256 of {} on its way", row.from), row.source.clone(), row.read.clone());
        compare(&format!("SHA-256 of {}", row.to), row.source.clone(), row.copy.clone());
    }
    if let Some(canary) = expect.canary {
        compare("canary", word(Some(canary)), word(result.canary));
    }
    compare("errors", list(&[]), list(&result.errors));
    wrong
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn verified(yes: bool) -> String {
    if yes { "verified" } else { "not what was written" }.to_owned()
}

fn wrong_results(wrong: u64) -> String {
    if wrong == 0 { "none wrong".to_owned() } else { format!("{wrong} wrong") }
}

fn word(canary: Option<CanaryState>) -> String {
    match canary {
        Some(CanaryState::Hit) => "hit",
        Some(CanaryState::Intact) => "intact",
        None => "not placed",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{ClearRow, ExerciseRow, FindingRow};

    fn found(name: &str) -> FindingRow {
        FindingRow { name: name.to_owned(), text: String::new() }
    }

    #[test]
    fn exactly_the_expected_findings_pass() {
        let expect = Expect { findings: vec!["leak".into(), "after-unmap".into()], ..Expect::default() };
        let mut result = RunResult { findings: vec![found("after-unmap"), found("leak")], ..RunResult::default() };
        assert!(check(&expect, &result).is_empty());
        result.findings.push(found("leak"));
        let wrong = check(&expect, &result);
        assert_eq!(wrong.len(), 1);
        assert_eq!((wrong[0].what.as_str(), wrong[0].seen.as_str()), ("findings", "after-unmap, leak, leak"));
        result.findings.clear();
        assert_eq!(check(&expect, &result)[0].seen, "none");
    }

    #[test]
    fn a_step_of_failures_alone_is_judged_by_their_count_and_one_that_did_nothing_is_wrong() {
        let row = IoRow { label: "a".into(), failed: 2, ..IoRow::default() };
        let result = RunResult { io: vec![row.clone()], failed_requests: 2, ..RunResult::default() };
        assert_eq!(check(&Expect::default(), &result)[0].what, "failed requests");
        assert!(check(&Expect { failed_requests: 2, ..Expect::default() }, &result).is_empty());
        for row in [IoRow { requests: 1, ..row.clone() }, IoRow { failed: 0, ..row }] {
            let result = RunResult { io: vec![row], ..RunResult::default() };
            assert_eq!(check(&Expect::default(), &result)[0].what, "data of a");
        }
    }

    #[test]
    fn wrong_data_leaks_and_failures_are_told_apart() {
        let result = RunResult {
            io: vec![IoRow { label: "a".into(), verified: false, ..IoRow::default() }],
            exercises: vec![ExerciseRow { label: "b".into(), wrong: 1, ..ExerciseRow::default() }],
            clears: vec![
                ClearRow { label: "c".into(), compared: 4, mismatched: 1, ..ClearRow::default() },
                ClearRow { label: "d".into(), ..ClearRow::default() },
                ClearRow { label: "e".into(), compared: 4, ..ClearRow::default() },
            ],
            leaks: vec!["one".into()],
            failed_requests: 2,
            ..RunResult::default()
        };
        let what: Vec<_> = check(&Expect::default(), &result).into_iter().map(|m| m.what).collect();
        assert_eq!(what, ["leaks", "failed requests", "data of a", "data of c", "data of d", "results of b"]);
    }
}
