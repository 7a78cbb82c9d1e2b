//! `hold`: takes low memory, as others on the machine would have before the driver comes.
//!
//! It takes blocks from the largest down while the allocator, which prefers the lowest, still gives one below the
//! address: after it not a page of zone DMA32 is free there. Zone DMA stays as it is.

use std::sync::Arc;

use lowzone_guest_mem::PhysAddr;
use lowzone_guest_mem::gfp::{__GFP_NOWARN, GFP_DMA32, GFP_KERNEL};
use lowzone_guest_mem::page::alloc_pages;
use lowzone_guest_mem::zone::ZoneKind;

use crate::lab::{Bench, lock};
use crate::spec::HoldStep;
use crate::world::Body;

/// The order of the largest block.
const LARGEST: u8 = 10;

/// Takes the memory; the lab gives it back at the end.
pub(super) fn body(bench: &Arc<Bench>, step: &HoldStep) -> Body {
    let (bench, below) = (bench.clone(), PhysAddr::new(step.below.bytes()));
    Box::new(move |cpu| {
        let _span = cpu.span("hold");
        for order in (0..=LARGEST).rev() {
            // What lies higher goes back at once.
            while let Ok(pages) = alloc_pages(cpu, order, GFP_KERNEL | GFP_DMA32 | __GFP_NOWARN) {
                if pages.phys() >= below || pages.zone() != ZoneKind::Dma32 {
                    break;
                }
                lock(&bench.held).push(pages);
            }
        }
    })
}
