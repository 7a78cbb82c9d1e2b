//! The campaign: a scenario run once for each point that can fail.
//!
//! First the points are counted, until two runs agree; then each is struck, once alone and once with all later ones of
//! its class; then the device's side: every register read as all-ones, the device pulled out at every register access,
//! every interrupt and every completion gone wrong in each way. After each case an oracle looks: did what failed fail
//! right, is nothing left, does the same driver work again on the same kernel? Cases run in child processes, so that a
//! driver that overflows its stack or loops for ever costs one case and not the campaign.
//!
//! `place` names points; `observer` counts and strikes; `case` runs and judges one; `detector` names who told that one
//! was wrong; `inventory` counts; `campaign` does them all; `worker` is the child, `heartbeat` its pulse; `journal`
//! keeps what is done; `token` names a case for ever; `phases` lists a case's steps; `shrink` makes it short; `orders` lists
//! orders of events;
//! `report` prints.

pub mod campaign;
pub mod case;
pub(crate) mod cli;
pub mod detector;
pub(crate) mod heartbeat;
pub mod inventory;
pub(crate) mod journal;
pub mod observer;
mod orders;
mod phases;
pub mod place;
mod report;
pub(crate) mod shrink;
pub mod token;
pub(crate) mod worker;
