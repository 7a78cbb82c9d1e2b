//! The crimes that a C driver could commit with kmap and types here would not allow.
//!
//! Neighbours: [`super`] reports them. Left out: what the guards can do by themselves, such as dropping in any order.

use super::{KmapError, frame_of, unmap};
use crate::cpu::Cpu;
use crate::page::Pages;

/// Unmaps a page, whoever mapped it and whether or not anybody did (`kunmap` takes the page). Process
/// context.
///
/// # Errors
/// [`KmapError::NoPage`].
#[track_caller]
pub fn kunmap(cpu: &Cpu<'_>, pages: &Pages, index: u64) -> Result<(), KmapError> {
    let owner = cpu.owner();
    cpu.might_sleep("kunmap");
    unmap(cpu.kernel(), frame_of(pages, index)?, owner);
    cpu.wake(cpu.kernel().kmap_waiters, 1);
    Ok(())
}
