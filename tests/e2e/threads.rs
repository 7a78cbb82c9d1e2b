//! The threads world: the same data and verdicts as in lockstep, no wake-up lost, and an end whatever a body does.

mod both_worlds;
mod endings;
mod stress;
