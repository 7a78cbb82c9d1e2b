//! `Row`: one job's figures on all sides, and the goals that they are held against.

use crate::job::{Job, Kind};

/// A limit on the ratio of our time to another's.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    pub name: &'static str,
    /// The side compared with; `None`: the fastest of the others.
    pub against: Option<&'static str>,
    pub most: f64,
}

/// One job's figures; ours are the first side's.
pub struct Row {
    pub job: Job,
    names: Vec<&'static str>,
    goals: &'static [Goal],
    rounds: Vec<Vec<f64>>,
}

impl Row {
    pub fn new(job: Job, names: Vec<&'static str>, goals: &'static [Goal]) -> Self {
        Self { job, names, goals, rounds: Vec::new() }
    }

    /// Adds a round: a figure for each side.
    pub fn round(&mut self, nanos: Vec<f64>) {
        self.rounds.push(nanos);
    }

    fn label(&self) -> String {
        let what = match self.job.kind {
            Kind::Pair => "pair",
            Kind::Batch => "1000, random frees",
            Kind::Handoff => "freed by another",
        };
        format!("{} {what}, {} CPU", self.job.size, self.job.threads)
    }

    /// Smallest, middle and largest of one figure over the rounds.
    fn spread(&self, pick: impl Fn(&[f64]) -> f64) -> [f64; 3] {
        let mut all: Vec<f64> = self.rounds.iter().map(|round| pick(round)).collect();
        all.sort_by(f64::total_cmp);
        [all[0], all[all.len() / 2], all[all.len() - 1]]
    }

    /// How a goal came out: the ratio, round by round, and whether its middle is no more than the limit.
    fn judge(&self, goal: &Goal) -> String {
        let rival = |round: &[f64]| match goal.against {
            Some(name) => round[self.names.iter().position(|known| *known == name).unwrap()],
            None => round[1..].iter().copied().fold(f64::INFINITY, f64::min),
        };
        let [low, middle, high] = self.spread(|round| round[0] / rival(round));
        let verdict = if middle <= goal.most { "met" } else { "missed" };
        let against = goal.against.unwrap_or("the fastest other");
        format!("{} {verdict}: {middle:.2} [{low:.2} {high:.2}] of {against}, goal {:.3}", goal.name, goal.most)
    }
}

/// Prints medians for each job and side, then each goal.
pub fn print(title: &str, rows: &[Row]) {
    let Some(first) = rows.first() else { return };
    println!("{title}; medians of {} rounds", first.rounds.len());
    print!("  {:<28}", "size, what, CPUs");
    first.names.iter().for_each(|name| print!("{name:>18}"));
    println!();
    for row in rows {
        print!("  {:<28}", row.label());
        for side in 0..row.names.len() {
            let [_, middle, _] = row.spread(|round| round[side]);
            print!("{middle:>18.1}");
        }
        println!();
    }
    for row in rows {
        row.goals.iter().for_each(|goal| println!("  {:<28} {}", row.label(), row.judge(goal)));
    }
    println!();
}
