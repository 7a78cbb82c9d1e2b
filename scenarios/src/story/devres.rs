//! `devres`: what a probe takes with `devm_` forms, and the order in which it goes when the driver lets go.
//!
//! The mistake: `kfree` of managed memory, which lies behind its note and is no object of its own.

use std::sync::Arc;

use lowzone_guest_mem::devres::Devres;
use lowzone_guest_mem::dma::{DmaDevice, misuse};
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::lock::Locked;

use super::{StoryError, Telling};

/// Tells it.
pub(super) fn tell(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let (cpu, devres) = (telling.cpu(), Devres::default());
    let told = probe(telling, &devres);
    // As the bus does when a probe fails, and at unbind.
    telling.fact("released", devres.release_all(cpu).len());
    told
}

fn probe(telling: &Telling<'_, '_>, devres: &Devres) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let device = DmaDevice::new(cpu.kernel_ref(), "managed");
    let order = Arc::new(Locked::new(Vec::new()));
    let noted = |name: &'static str| {
        let order = order.clone();
        move |_: &lowzone_guest_mem::Cpu<'_>| order.lock().push(name)
    };
    devres.add_action(cpu, "pci_disable_device", noted("disable the device"))?;
    let buf = devres.kzalloc(cpu, 100, GFP_KERNEL)?;
    if telling.makes("manual-free") {
        misuse::kfree(cpu, buf.phys());
    }
    let group = devres.open_group();
    drop(devres.alloc_coherent(cpu, &device, 4096, GFP_KERNEL)?);
    devres.add_action(cpu, "stop_dma", noted("stop its DMA"))?;
    telling.expect(
        "taken",
        "pci_disable_device, devm_kmalloc, dmam_alloc_coherent, stop_dma",
        devres.held().join(", "),
    )?;
    telling.expect(
        "released with the group",
        "stop_dma, dmam_alloc_coherent",
        devres.release_group(cpu, group).join(", "),
    )?;
    telling.expect("left", "pci_disable_device, devm_kmalloc", devres.held().join(", "))?;
    drop(buf);
    devres.release_all(cpu);
    let order = order.lock().join(", then ");
    telling.expect("actions", "stop its DMA, then disable the device", order)
}
