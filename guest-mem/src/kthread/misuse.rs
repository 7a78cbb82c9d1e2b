//! Raw calls that hand a thread's stack to a device, as C code does with the address of a local variable.
//!
//! Neighbours: [`super`], `dma::misuse`, `vmalloc::misuse`. Only scenarios, tests and drivers with a bug seeded into them
//! call this.

use super::stack::{OnStack, Region, Stack};
use crate::cpu::Cpu;
use crate::dma::ledger::Misuse;
use crate::dma::streaming::{Piece, Terms};
use crate::dma::{Dir, DmaDevice, MapFailure, RawMapping};
use crate::vmalloc;

/// Maps a variable by its address (`dma_map_single`). Any context.
///
/// A stack that vmalloc has is refused, as every address of vmalloc's; one of the direct map is mapped and reported.
///
/// # Errors
/// [`MapFailure`].
#[track_caller]
pub fn map_single(
    cpu: &Cpu<'_>,
    device: &DmaDevice,
    variable: &OnStack<'_>,
    dir: Dir,
) -> Result<RawMapping, MapFailure> {
    let len = variable.len() as u64;
    match variable.stack.region {
        Region::Mapped(_) => {
            vmalloc::misuse::map_single(cpu, device, variable.virt(cpu), len)?;
            Err(MapFailure::Vmalloc { len })
        }
        Region::Block(_) => map_page(cpu, device, variable, dir),
    }
}

/// Maps a variable by the page that its first byte lies in (`dma_map_page`): nothing stops it, and it is reported if
/// the stack is the caller's own. Any context.
///
/// What runs past the page goes to whatever lies behind it in memory.
///
/// # Errors
/// [`MapFailure`].
#[track_caller]
pub fn map_page(cpu: &Cpu<'_>, device: &DmaDevice, variable: &OnStack<'_>, dir: Dir) -> Result<RawMapping, MapFailure> {
    let len = variable.len() as u64;
    let phys = variable.phys(cpu).ok_or(MapFailure::Vmalloc { len })?;
    let raw = device.map_at(cpu, Piece { orig: phys, len, owner: variable.stack.owner() }, Terms::single(dir))?;
    if variable.stack.task == cpu.task() {
        let probable = if matches!(variable.stack.region, Region::Mapped(_)) { "probable " } else { "" };
        let misuse = Misuse::MapsStack { addr: variable.virt(cpu), probable };
        device.report(misuse, None, cpu.owner());
    }
    Ok(raw)
}

/// Gives the task at hand, which the lab may have started without one, a stack with a variable of `len` bytes, for as
/// long as `call` runs; `None` where there is no memory for the stack or no room on it. Process context.
#[track_caller]
pub fn with_variable<R>(cpu: &Cpu<'_>, len: usize, call: impl FnOnce(&OnStack<'_>) -> R) -> Option<R> {
    cpu.might_sleep("alloc_thread_stack_node");
    let stack = Stack::new(cpu, cpu.task()).ok()?;
    let variable = OnStack::new(&stack, len)?;
    Some(call(&variable))
}
