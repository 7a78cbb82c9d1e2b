//! Schedules: how the lockstep world picks who goes on.
//!
//! A CPU's tasks, a device's queues, a CPU's interrupts and the timers are actors. `Uniform` is the plain way of a seed:
//! at one point in four another actor gets its turn, and interrupts are taken as they come. The other two ask at every
//! point, and after every register write, who goes on, and hold interrupts back:
//! * `Pct` gives each actor a random priority and changes one at random points (probabilistic concurrency testing,
//!   Burckhardt and others, 2010). There the length of a run is measured and `d - 1` changes are spread over it; here
//!   the gap between two changes is drawn for each step of the scenario, so a shortened scenario keeps its schedule.
//! * `Choices` is plain but for listed exceptions: whoever runs goes on until it waits. Exceptions are counted as in
//!   delay-bounded scheduling, not preemptions as in CHESS: choices where somebody waits are free there, and too many.
//!
//! An actor that goes on and on loses its turn: a loop that polls must see its end. Neighbours: the scheduler, which
//! asks; `explore::place`, which names schedules.

use crate::world::Random;

/// At one point in this many another actor gets its turn, in a plain run.
const YIELD_ONE_IN: u64 = 4;
/// Turns in a row after which an actor comes last.
const PATIENCE: u32 = 256;
/// Powers of two that the gap between two changes of priority may have.
const GAPS: u64 = 10;
/// Priorities that are drawn begin here; below are those that were taken away.
const DRAWN: u64 = 1 << 63;

/// An actor, as schedules know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Who {
    /// A CPU's first task, or another task.
    Task(usize),
    /// A queue of a device.
    Device(usize),
    /// The interrupts of a CPU.
    Irq(usize),
    /// The timers.
    Timer,
}

/// Where another actor was preferred to the one that comes first: the choice point, and which of the others.
pub type Exception = (u32, u32);

/// How the next actor is picked.
pub enum Schedule {
    /// By chance, at one point in four.
    Uniform,
    /// By priorities that change at random.
    Pct(Pct),
    /// In order, but for exceptions.
    Choices(Choices),
}

impl Schedule {
    /// The `nth` schedule of priorities of this seed.
    pub fn pct(seed: u64, nth: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5c4e_d01e);
        let stream = random.next() ^ nth.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self::Pct(Pct { stream, ..Pct::default() })
    }

    /// In order, but for these exceptions.
    pub fn choices(exceptions: &[Exception]) -> Self {
        Self::Choices(Choices { exceptions: exceptions.to_vec(), ..Choices::default() })
    }

    /// A step of the scenario begins.
    pub(super) fn begin(&mut self) {
        if let Self::Pct(pct) = self {
            pct.begin();
        }
    }

    /// Whether whoever passes a point gives way there.
    pub(super) fn asks(&self, random: &mut Random) -> bool {
        match self {
            Self::Uniform => random.below(YIELD_ONE_IN) == 0,
            Self::Pct(_) | Self::Choices(_) => true,
        }
    }

    /// Whether others may run before a register write returns.
    pub(super) fn is_uniform(&self) -> bool {
        matches!(self, Self::Uniform)
    }

    /// Which of `n` actors goes on; `who` names them.
    pub(super) fn pick(&mut self, n: usize, random: &mut Random, who: impl Fn(usize) -> Who) -> usize {
        match self {
            Self::Uniform => usize::try_from(random.below(u64::try_from(n).unwrap_or(0))).unwrap_or(0),
            Self::Pct(pct) => pct.pick(n, who),
            Self::Choices(choices) => choices.pick(n, who),
        }
    }

    /// Whether a CPU that runs `running` takes a pending interrupt here.
    pub(super) fn interrupts(&mut self, running: Who, by: Who) -> bool {
        match self {
            Self::Uniform => true,
            Self::Pct(pct) => pct.priority(by) > pct.priority(running),
            Self::Choices(choices) => choices.takes(running),
        }
    }

    /// How many could go on at each choice point so far, at most 9 each.
    pub(super) fn widths(&self) -> &[u8] {
        match self {
            Self::Choices(choices) => &choices.widths,
            Self::Uniform | Self::Pct(_) => &[],
        }
    }
}

/// Who has had its turn how often in a row.
#[derive(Default)]
struct Streak {
    who: Option<Who>,
    turns: u32,
}

impl Streak {
    /// Whether this turn is one too many.
    fn ends(&mut self, who: Who) -> bool {
        if self.who != Some(who) {
            *self = Self { who: Some(who), turns: 0 };
        }
        self.turns += 1;
        let over = self.turns > PATIENCE;
        if over {
            self.turns = 0;
        }
        over
    }
}

/// Priorities, and when the next one changes.
pub struct Pct {
    stream: u64,
    steps: u64,
    random: Random,
    priorities: Vec<(Who, u64)>,
    /// The next priority that is taken away: below all others.
    lowest: u64,
    gap: u64,
    left: u64,
    streak: Streak,
}

impl Default for Pct {
    fn default() -> Self {
        Self {
            stream: 0,
            steps: 0,
            random: Random::new(0),
            priorities: Vec::new(),
            lowest: DRAWN - 1,
            gap: 1,
            left: 1,
            streak: Streak::default(),
        }
    }
}

impl Pct {
    fn begin(&mut self) {
        let mut random = Random::new(self.stream.wrapping_add(self.steps));
        let gap = 1 << random.below(GAPS);
        let left = 1 + random.below(2 * gap);
        *self = Self { stream: self.stream, steps: self.steps + 1, random, gap, left, ..Self::default() };
    }

    fn priority(&mut self, who: Who) -> u64 {
        if let Some((_, priority)) = self.priorities.iter().find(|(known, _)| *known == who) {
            return *priority;
        }
        let drawn = DRAWN | self.random.next();
        self.priorities.push((who, drawn));
        drawn
    }

    fn set(&mut self, who: Who, priority: u64) {
        if let Some(known) = self.priorities.iter_mut().find(|(known, _)| *known == who) {
            known.1 = priority;
        }
    }

    fn demote(&mut self, who: Who) {
        let lowest = self.lowest;
        self.lowest -= 1;
        self.set(who, lowest);
    }

    fn first(&mut self, n: usize, who: &impl Fn(usize) -> Who) -> usize {
        (0..n).max_by_key(|&at| (self.priority(who(at)), n - at)).unwrap_or(0)
    }

    fn pick(&mut self, n: usize, who: impl Fn(usize) -> Who) -> usize {
        let first = who(self.first(n, &who));
        self.left -= 1;
        if self.left == 0 {
            self.left = 1 + self.random.below(2 * self.gap);
            if self.random.below(2) == 0 {
                self.demote(first);
            } else {
                let drawn = DRAWN | self.random.next();
                self.set(first, drawn);
            }
        } else if self.streak.ends(first) {
            self.demote(first);
        }
        self.first(n, &who)
    }
}

/// What was chosen, and what there was to choose from.
#[derive(Default)]
pub struct Choices {
    exceptions: Vec<Exception>,
    widths: Vec<u8>,
    running: Option<Who>,
    streak: Streak,
    /// How often in a row an interrupt was held back.
    held: Streak,
}

impl Choices {
    /// Which of `n` is chosen at the next choice point.
    fn choose(&mut self, n: usize) -> usize {
        let at = u32::try_from(self.widths.len()).unwrap_or(u32::MAX);
        self.widths.push(u8::try_from(n).unwrap_or(9).min(9));
        let other = self.exceptions.iter().find(|(point, _)| *point == at).map_or(0, |(_, other)| *other);
        usize::try_from(other).unwrap_or(0).min(n.saturating_sub(1))
    }

    /// An interrupt waits until the CPU does, but for an exception.
    fn takes(&mut self, running: Who) -> bool {
        self.choose(2) == 1 || self.held.ends(running)
    }

    /// Whoever runs goes on, else the first; the others follow in their order.
    fn pick(&mut self, n: usize, who: impl Fn(usize) -> Who) -> usize {
        let running = (0..n).find(|&at| Some(who(at)) == self.running);
        let patient = running.is_none_or(|at| !self.streak.ends(who(at)));
        let first = match running {
            Some(at) if patient => at,
            Some(at) => (at + 1) % n.max(1),
            None => 0,
        };
        let chosen = if n > 1 { self.choose(n) } else { 0 };
        let at = match chosen {
            0 => first,
            other if other <= first => other - 1,
            other => other,
        };
        self.running = (at < n).then(|| who(at));
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picks(schedule: &mut Schedule, n: usize, turns: usize) -> Vec<usize> {
        let mut random = Random::new(1);
        schedule.begin();
        (0..turns).map(|_| schedule.pick(n, &mut random, Who::Task)).collect()
    }

    #[test]
    fn a_schedule_repeats_itself_and_its_neighbour_differs() {
        let of = |nth| picks(&mut Schedule::pct(7, nth), 3, 500);
        assert_eq!(of(3), of(3));
        assert!((0..20).any(|nth| of(nth) != of(nth + 1)));
    }

    #[test]
    fn nobody_is_passed_over_for_ever() {
        for nth in 0..50 {
            let seen = picks(&mut Schedule::pct(1, nth), 3, 3 * usize::try_from(PATIENCE).unwrap() + 3);
            assert!((0..3).all(|actor| seen.contains(&actor)), "{nth}");
        }
        let seen = picks(&mut Schedule::choices(&[]), 2, 2 * usize::try_from(PATIENCE).unwrap());
        assert!(seen.contains(&1) && seen[..200].iter().all(|&at| at == 0), "{seen:?}");
    }

    #[test]
    fn every_first_actor_and_either_answer_to_an_interrupt_occurs() {
        let firsts: Vec<_> = (0..50).map(|nth| picks(&mut Schedule::pct(1, nth), 3, 1)[0]).collect();
        assert!((0..3).all(|actor| firsts.contains(&actor)), "{firsts:?}");
        let taken: Vec<_> = (0..50)
            .map(|nth| {
                let mut schedule = Schedule::pct(1, nth);
                schedule.begin();
                schedule.interrupts(Who::Task(0), Who::Irq(0))
            })
            .collect();
        assert!(taken.contains(&true) && taken.contains(&false));
    }

    #[test]
    fn an_exception_is_made_where_it_is_listed_and_whoever_runs_goes_on() {
        let mut schedule = Schedule::choices(&[(2, 1), (4, 2)]);
        assert_eq!(picks(&mut schedule, 3, 6), [0, 0, 1, 1, 2, 2]);
        assert_eq!(schedule.widths(), [3; 6]);
        let mut alone = Schedule::choices(&[(0, 1)]);
        assert_eq!(picks(&mut alone, 1, 3), [0; 3]);
        assert_eq!(alone.widths(), [0_u8; 0]);
    }
}
