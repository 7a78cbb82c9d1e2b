//! `thread-stack`: what a kernel thread has on its stack, and what it gives to a device instead.
//!
//! The mistakes: the address of a local variable handed to the DMA API; the page behind it.

use std::sync::Arc;

use lowzone_guest_mem::dma::{Dir, DmaDevice, ToDevice, dma_bit_mask, misuse as raw};
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::kthread::{Current, OnStack, kthread_run, misuse};
use lowzone_guest_mem::lock::Locked;
use lowzone_guest_mem::vmalloc::is_vmalloc_addr;
use lowzone_guest_mem::{Cpu, KBuf};

use super::{StoryError, Telling};

/// What can be done wrong.
pub(super) const MISTAKES: &[&str] = &["map-single", "map-page"];

const COMMAND: [u8; 16] = *b"a device command";
const EIO: i32 = -5;

/// What the thread is to do, and what it saw.
struct Errand {
    device: DmaDevice,
    by_address: bool,
    by_page: bool,
    seen: Locked<Vec<(&'static str, String)>>,
}

impl Errand {
    fn saw(&self, what: &'static str, seen: impl ToString) {
        self.seen.lock().push((what, seen.to_string()));
    }

    fn run(&self, cpu: &Cpu<'_>, current: &Current) -> i32 {
        let Some(command) = current.on_stack(COMMAND.len()) else { return EIO };
        self.saw("bytes written to a variable on the stack", command.write(cpu, &COMMAND));
        self.saw("is_vmalloc_addr of the variable", is_vmalloc_addr(cpu.kernel(), command.virt(cpu)));
        if self.by_address {
            let refused = misuse::map_single(cpu, &self.device, &command, Dir::ToDevice).is_err();
            self.saw("dma_map_single of its address is refused", refused);
        }
        if self.by_page
            && let Ok(mapped) = misuse::map_page(cpu, &self.device, &command, Dir::ToDevice)
        {
            self.saw("bytes mapped by its page", mapped.len);
            raw::unmap_single(cpu, &self.device, mapped.dma, mapped.len, Dir::ToDevice);
        }
        self.send(cpu, &command).unwrap_or(EIO)
    }

    /// What a device is given is a copy in memory of kmalloc's.
    fn send(&self, cpu: &Cpu<'_>, command: &OnStack<'_>) -> Option<i32> {
        let mut bytes = [0; COMMAND.len()];
        command.read(cpu, &mut bytes);
        let mut copy = KBuf::kmalloc(cpu, bytes.len(), GFP_KERNEL).ok()?;
        copy.write_at(0, &bytes).ok()?;
        let mapped = self.device.map_single::<ToDevice>(cpu, copy).ok()?;
        self.saw("bytes mapped of a copy from kmalloc", mapped.len());
        drop(mapped.unmap(cpu));
        Some(0)
    }
}

/// Tells it.
pub(super) fn tell(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let device = DmaDevice::new(cpu.kernel_ref(), "card");
    device.set_mask_and_coherent(cpu, dma_bit_mask(64))?;
    let (by_address, by_page) = (telling.makes("map-single"), telling.makes("map-page"));
    let errand = Arc::new(Errand { device, by_address, by_page, seen: Locked::default() });
    let its = errand.clone();
    let thread = kthread_run(cpu, 0, move |cpu, current| its.run(cpu, current))?;
    let returned = thread.stop(cpu);
    for (what, seen) in errand.seen.lock().iter() {
        telling.fact(what, seen);
    }
    telling.expect("the thread returned", 0, returned)
}
