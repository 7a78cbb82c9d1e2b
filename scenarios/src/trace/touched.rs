//! Which bytes of a transaction were touched, each counted once.
//!
//! Neighbours: `transaction`. Left out: when, and by whom.

/// Stretches of touched bytes kept apart in one transaction; beyond it gaps count as touched.
const STRETCHES: usize = 1024;

/// Bytes that were touched, as stretches that don't meet: `(from, to)`, rising.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Touched(Vec<(u64, u64)>);

impl Touched {
    pub(super) fn add(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let first = self.0.partition_point(|&(_, end)| end < from);
        let meets = self.0.iter().skip(first).take_while(|&&(begin, _)| begin <= to).count();
        let mut last = first + meets;
        if meets == 0 && self.0.len() >= STRETCHES {
            last = (first + 1).min(self.0.len());
        }
        let first = if last == first && self.0.len() >= STRETCHES { first.saturating_sub(1) } else { first };
        let joined =
            self.0[first..last].iter().fold((from, to), |(from, to), &(begin, end)| (from.min(begin), to.max(end)));
        self.0.splice(first..last, [joined]);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|(from, to)| to - from).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Touched bytes are a set, whatever the order and overlap of the accesses.
        #[test]
        fn touched_bytes_are_counted_once(accesses in prop::collection::vec((0_u64..200, 0_u64..30), 0..60)) {
            let (mut touched, mut shadow) = (Touched::default(), vec![false; 256]);
            for (from, len) in accesses {
                touched.add(from, from + len);
                (from..from + len).for_each(|at| shadow[usize::try_from(at).unwrap()] = true);
            }
            prop_assert_eq!(touched.bytes(), shadow.iter().filter(|&&on| on).count() as u64);
            prop_assert!(touched.0.windows(2).all(|pair| pair[0].1 < pair[1].0), "{:?}", touched);
        }
    }

    #[test]
    fn too_many_stretches_are_joined_and_never_forgotten() {
        let mut touched = Touched::default();
        (0..3000_u64).rev().for_each(|n| touched.add(n * 4, n * 4 + 1));
        (3000..5000_u64).for_each(|n| touched.add(n * 4, n * 4 + 1));
        assert!(touched.0.len() <= STRETCHES);
        assert!(touched.bytes() >= 5000);
        assert_eq!((touched.0[0].0, touched.0[touched.0.len() - 1].1), (0, 4999 * 4 + 1));
    }
}
