//! The nearest of some names to one that was mistyped.
//!
//! Neighbours: every error that can offer a better name. Left out: weights by keyboard distance.

/// The name in `names` nearest to `wrong`, if one is near enough to be meant.
///
/// Near is at most a third of the longer name's length in insertions, removals, changes and swaps of neighbours,
/// or one name beginning with the other. Of equally near names the first wins.
pub(super) fn nearest<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let wrong = plain(wrong);
    let mut best: Option<(usize, &str)> = None;
    for name in names {
        let right = plain(name);
        let length = wrong.chars().count().max(right.chars().count());
        let away = distance(&wrong, &right);
        let begins = wrong.len().min(right.len()) >= 3 && (right.starts_with(&wrong) || wrong.starts_with(&right));
        let near = begins || away <= length.div_ceil(3);
        if near && away < length && best.is_none_or(|(least, _)| away < least) {
            best = Some((away, name));
        }
    }
    best.map(|(_, name)| name)
}

/// Insertions, removals, changes and swaps of neighbours that make one text of the other.
fn distance(a: &str, b: &str) -> usize {
    // A key longer than this is no typing mistake, and the table is quadratic.
    const LONGEST: usize = 64;
    let a: Vec<char> = a.chars().take(LONGEST).collect();
    let b: Vec<char> = b.chars().take(LONGEST).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, &ca) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &cb) in b.iter().enumerate() {
            let mut least = (last[j] + usize::from(ca != cb)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && ca == b[j - 1] && a[i - 1] == cb {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, away) in
            [("", "", 0), ("abc", "", 3), ("ram", "rma", 1), ("kitten", "sitting", 3), ("probe", "prboe", 1)]
        {
            assert_eq!(distance(a, b), away, "{a} {b}");
            assert_eq!(distance(b, a), away, "{b} {a}");
        }
    }

    #[test]
    fn the_near_is_offered_and_the_far_is_not() {
        let keys = ["ram", "low", "cpus", "swiotlb"];
        assert_eq!(nearest("rma", keys), Some("ram"));
        assert_eq!(nearest("cpu", keys), Some("cpus"));
        assert_eq!(nearest("SWIOTLB", keys), Some("swiotlb"));
        assert_eq!(nearest("lo", keys), Some("low"));
        assert_eq!(nearest("dma_mask", keys), None);
        assert_eq!(nearest("x", keys), None);
        assert_eq!(nearest("queue-size", ["queues", "queue_size"]), Some("queue_size"));
        assert_eq!(nearest("", keys), None);
    }
}
