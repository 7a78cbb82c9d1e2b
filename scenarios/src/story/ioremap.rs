//! `ioremap`: registers claimed, mapped, written and read back on a machine that posts writes.
//!
//! The card here has a DMA engine that stores a byte whenever it gets its turn, until its control register says stop.
//! The mistakes: its memory unmapped without reading back, so that the stop arrives too late; a register touched after
//! `iounmap`, one outside the window, a window over RAM, a claim given back twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lowzone_guest_mem::dma::{DmaDevice, DmaPort, FromDevice, dma_bit_mask};
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::iomem::{ioremap, ioremap_np, iounmap, misuse, request_mem_region};
use lowzone_guest_mem::iospace::{IoSpace, Width};
use lowzone_guest_mem::{KBuf, PhysAddr};
use vm_memory::{Bytes, GuestAddress};

use super::{StoryError, Telling};

const BAR: PhysAddr = PhysAddr::new(0xfe00_0000);
const LEN: u64 = 4096;
const ID: u64 = 0x00;
const TARGET: u64 = 0x08;
const CONTROL: u64 = 0x10;
const RUN: u32 = 1;
const CARD: u32 = 0x10ca_4d01;

/// The card's registers.
#[derive(Default)]
struct Card {
    target: AtomicU64,
    control: AtomicU64,
}

impl Card {
    /// The card's turn: it stores a byte if it runs; whether it does.
    fn turn(&self, port: &DmaPort) -> Result<bool, StoryError> {
        let runs = self.control.load(Ordering::Relaxed) == u64::from(RUN);
        if runs {
            port.write_slice(&[0xda], GuestAddress(self.target.load(Ordering::Relaxed)))?;
        }
        Ok(runs)
    }
}

impl IoSpace for Card {
    fn read(&self, at: PhysAddr, width: Width) -> u64 {
        match (at.get().wrapping_sub(BAR.get()), width) {
            (ID, Width::B4) => CARD.into(),
            (TARGET, Width::B8) => self.target.load(Ordering::Relaxed),
            (CONTROL, Width::B4) => self.control.load(Ordering::Relaxed),
            _ => width.ones(),
        }
    }

    fn write(&self, at: PhysAddr, width: Width, value: u64) {
        match (at.get().wrapping_sub(BAR.get()), width) {
            (TARGET, Width::B8) => self.target.store(value, Ordering::Relaxed),
            (CONTROL, Width::B4) => self.control.store(value, Ordering::Relaxed),
            _ => {}
        }
    }
}

/// Tells it.
pub(super) fn tell(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let card = Arc::new(Card::default());
    cpu.kernel().set_io_space(card.clone());
    let claim = request_mem_region(cpu, BAR, LEN, "card")?;
    let second = request_mem_region(cpu, BAR, LEN, "another driver").is_ok();
    telling.expect("request_mem_region by another driver", false, second)?;
    let regs = ioremap(cpu, BAR, LEN)?;
    telling.expect("readl(ID)", format_args!("{CARD:#x}"), format_args!("{:#x}", regs.readl(cpu, ID)))?;
    telling.expect("readl of a register that isn't there", "0xffffffff", format!("{:#x}", regs.readl(cpu, 0x800)))?;

    let device = DmaDevice::new(cpu.kernel_ref(), "card");
    device.set_mask_and_coherent(cpu, dma_bit_mask(64))?;
    let port = DmaPort::new(&device);
    let mapped = device.map_single::<FromDevice>(cpu, KBuf::kmalloc(cpu, 64, GFP_KERNEL)?)?;
    regs.writeq(cpu, TARGET, mapped.dma_addr().get());
    regs.writel(cpu, CONTROL, RUN);
    let posted = cpu.kernel().config().posted_writes;
    telling.expect(
        "the card runs right after writel(CONTROL, RUN), unless that is posted",
        !posted,
        card.turn(&port)?,
    )?;
    telling.expect("readl(CONTROL), which pushes it", RUN, regs.readl(cpu, CONTROL))?;
    telling.expect("the card runs", true, card.turn(&port)?)?;
    regs.writel(cpu, CONTROL, 0);
    if !telling.makes("no-read-back") {
        telling.expect("readl(CONTROL) after writel(CONTROL, 0)", 0, regs.readl(cpu, CONTROL))?;
    }
    let mut byte = [0];
    mapped.unmap(cpu).read_at(0, &mut byte)?;
    telling.expect("what the card stored", "0xda", format!("{:#x}", byte[0]))?;
    telling.fact("the card stores a byte after its memory was unmapped", card.turn(&port)?);
    // It must not run on when the story is over.
    regs.readl(cpu, CONTROL);

    crimes(telling, &regs)?;
    let non_posted = ioremap_np(cpu, BAR, LEN).is_ok();
    telling.expect("ioremap_np, which x86 doesn't have", false, non_posted)?;
    iounmap(cpu, regs);
    drop(claim);
    if telling.makes("double-release") {
        misuse::release_mem_region(cpu, BAR, LEN);
    }
    if telling.makes("ram") {
        let page = KBuf::pages(cpu, 0, GFP_KERNEL)?;
        telling.expect("ioremap of a page of RAM", false, ioremap(cpu, page.phys(), 4096).is_ok())?;
    }
    Ok(())
}

/// Registers touched where they may not be.
fn crimes(telling: &Telling<'_, '_>, regs: &lowzone_guest_mem::iomem::IoMem) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    if telling.makes("outside") {
        telling.expect("readl beyond the window", u32::MAX, regs.readl(cpu, LEN))?;
    }
    if telling.makes("after-iounmap") {
        let window = ioremap(cpu, BAR, LEN)?;
        misuse::iounmap(cpu, &window);
        telling.expect("readl after iounmap", u32::MAX, window.readl(cpu, ID))?;
    }
    Ok(())
}
