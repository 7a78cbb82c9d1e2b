//! `canary`: marks the low memory that a too-high address would hit on a device that drops upper bits.
//!
//! The step takes a buffer above the device's reach and writes a pattern to its low alias: the address that is left
//! when the upper bits are gone. The next raw step uses that buffer; at the end the pattern tells what was hit.

use std::sync::Arc;

use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::{KBuf, PhysAddr};

use crate::lab::{Bench, Canary, lock};
use crate::spec::{CanaryState, CanaryStep};
use crate::world::Body;

const BYTES: usize = 4096;
const PATTERN: [u8; BYTES] = [0xca; BYTES];

/// Takes the buffer and marks its alias.
pub(super) fn place(bench: &Arc<Bench>, step: &CanaryStep) -> Body {
    let (bench, step) = (bench.clone(), step.clone());
    Box::new(move |cpu| {
        let Some(slot) = bench.slot(&step.device) else { return };
        let buffer = match KBuf::kmalloc(cpu, BYTES, GFP_KERNEL) {
            Ok(buffer) => buffer,
            Err(error) => return bench.failed(format!("canary: {error}")),
        };
        let reach = lowzone_guest_mem::dma::dma_bit_mask(slot.width);
        let alias = PhysAddr::new(buffer.phys().get() & reach);
        if alias == buffer.phys() {
            return bench.failed(format!("canary: {} reaches {}: nothing wraps", slot.name, buffer.phys()));
        }
        match bench.kernel.ram().write_uncached(alias, &PATTERN) {
            Ok(()) => *lock(&bench.canary) = Some(Canary { buffer: Some(buffer), alias }),
            Err(error) => bench.failed(format!("canary: {error}")),
        }
    })
}

/// Looks at the canary once the steps are over.
pub(crate) fn check(bench: &Bench) {
    let Some(canary) = lock(&bench.canary).take() else { return };
    let mut bytes = [0; BYTES];
    let intact = bench.kernel.ram().read_uncached(canary.alias, &mut bytes).is_ok() && bytes == PATTERN;
    lock(&bench.result).canary = Some(if intact { CanaryState::Intact } else { CanaryState::Hit });
}
