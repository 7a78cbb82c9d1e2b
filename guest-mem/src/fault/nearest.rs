//! The nearest of some names to one that was mistyped.
//!
//! Neighbours: the errors of `spec`. Left out: weights by keyboard distance.

/// The longest text compared, in characters: beyond it nobody mistyped a name, and the work is quadratic.
const LONGEST: usize = 64;

/// The name nearest to `wrong`, if at most a third of its characters, rounded up, must change. The first of equals.
pub(super) fn nearest(wrong: &str, names: impl IntoIterator<Item = &'static str>) -> Option<&'static str> {
    let wrong: Vec<char> = wrong.to_lowercase().replace('_', "-").chars().take(LONGEST).collect();
    let near = |name: &'static str| {
        let away = distance(&wrong, name);
        let longer = wrong.len().max(name.len());
        (away <= longer.div_ceil(3) && away < longer).then_some((away, name))
    };
    names.into_iter().filter_map(near).min_by_key(|(away, _)| *away).map(|(_, name)| name)
}

/// Insertions, removals and changes that make one text of the other.
fn distance(a: &[char], b: &str) -> usize {
    let mut last: Vec<usize> = (0..=a.len()).collect();
    for (row, right) in b.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut last[0], row + 1);
        for (at, &left) in a.iter().enumerate() {
            let changed = diagonal + usize::from(left != right);
            diagonal = last[at + 1];
            last[at + 1] = changed.min(diagonal + 1).min(last[at] + 1);
        }
    }
    last[a.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, away) in [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("slab", "slabs", 1), ("a", "b", 1)]
        {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            assert_eq!((distance(&chars(a), b), distance(&chars(b), a)), (away, away), "{a} {b}");
        }
    }

    #[test]
    fn the_near_is_offered_and_the_far_is_not() {
        let names = ["page", "slab", "swiotlb-slot", "map", "mask"];
        for (wrong, right) in [
            ("slap", Some("slab")),
            ("SWIOTLB_SLOT", Some("swiotlb-slot")),
            ("pages", Some("page")),
            ("mas", Some("map")),
            ("frobnicate", None),
            ("", None),
        ] {
            assert_eq!(nearest(wrong, names), right, "{wrong}");
        }
        assert_eq!(nearest(&"slab".repeat(100_000), names), None);
    }
}
