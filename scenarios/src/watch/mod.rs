//! `lowzone run --watch`: zones, rings, mappings and findings while a scenario runs.
//!
//! [`Live`] takes every record of the run and keeps sums; a thread beside the run draws them ten times a second, so the
//! lab waits for nobody's terminal. Neighbours: `progress`, whose thread it is; `guest_mem::trace`, whose sink [`Live`]
//! is. Left out: going back in time; `lowzone report` draws the whole run.

mod draw;
mod live;
mod screen;

pub(crate) use draw::Board;
pub(crate) use live::Live;
pub(crate) use screen::{NoScreen, Screen};
