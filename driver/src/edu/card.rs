//! One `edu` in service: probe, factorials by interrupt, transfers, and the end of it.
//!
//! The registers decide whether a piece of work is over, the interrupt only says when to look: one that is lost,
//! late or not ours does no harm. The device has no reset register, so one that does not end is reset as a function;
//! if that doesn't stop it either it is cut off from the bus. What a probe takes is managed (`pcim_`, `devm_`), so none
//! of its failures has a path of its own. Teardown: no work left, DMA off, then the reverse of the probe: interrupt,
//! vector, memory, registers. Neighbours: `registers`, `pci`. Left out: errors of a transfer, of which the device can't
//! tell.

use std::sync::Arc;
#[cfg(lowzone_mutants)]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[cfg(lowzone_mutants)]
use lowzone_guest_mem::devres::DevmBuf;
use lowzone_guest_mem::dma::{Coherent, Direction, FromDevice, MapError, ToDevice, dma_bit_mask};
#[cfg(lowzone_mutants)]
use lowzone_guest_mem::dma::{Dir, misuse};
use lowzone_guest_mem::env::{IrqHandler, IrqReturn};
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::iomem::IoMem;
#[cfg(lowzone_mutants)]
use lowzone_guest_mem::iomem::misuse::iounmap;
#[cfg(lowzone_mutants)]
use lowzone_guest_mem::kthread::misuse as stack;
#[cfg(lowzone_mutants)]
use lowzone_guest_mem::lock::Locked;
use lowzone_guest_mem::lock::Mutex;
use lowzone_guest_mem::wait::{WaitError, WaitQueue};
use lowzone_guest_mem::{Cpu, DmaAddr, KBuf};

use super::registers::{
    ACKNOWLEDGE, BUFFER, BUSY, BYTES, CAUSES, COMPUTED, DMA_COMMAND, DMA_COUNT, DMA_DESTINATION, DMA_SOURCE, FACTORIAL,
    ID, ID_MARK, ID_MASK, INTERRUPT, LIVENESS, MOVED, RUN, STATUS, TO_MEMORY, WITH_INTERRUPT,
};
use super::{EduError, EduOptions, MOST, TransferError};
use crate::driver::ProbeError;
#[cfg(lowzone_mutants)]
use crate::mutant::{self, Mutant};
use crate::pci::PciDevice;

/// What is written to see whether the device answers.
const PATTERNS: [u32; 2] = [0x1234_5678, 0xedcb_a987];
/// Bytes of the driver's own coherent buffer.
const COHERENT_BYTES: usize = 4096;
const EIO: i32 = -5;

/// Which way bytes move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From memory into the device's buffer.
    ToDevice,
    /// From the device's buffer into memory.
    FromDevice,
}

/// A transfer that went well.
#[derive(Debug)]
pub struct Moved {
    /// The buffer.
    pub buf: KBuf,
    /// Where the device was told that it lies.
    pub at: DmaAddr,
    /// Whether it went through the bounce pool.
    pub bounced: bool,
}

/// What the interrupt handler needs.
struct Core {
    pci: Arc<PciDevice>,
    regs: Arc<IoMem>,
    causes: AtomicU32,
    changed: WaitQueue,
}

impl IrqHandler for Core {
    fn hardirq(&self, cpu: &Cpu<'_>) -> IrqReturn {
        let causes = self.regs.readl(cpu, CAUSES);
        if causes == u32::MAX {
            // No device, or one that does not answer now: if it is its pin that is up, nobody could lower it.
            self.pci.set_intx(false);
        }
        if causes == 0 || causes == u32::MAX {
            return IrqReturn::None; // The pin may be shared.
        }
        self.regs.writel(cpu, ACKNOWLEDGE, causes);
        self.causes.fetch_or(causes, Ordering::Release);
        self.changed.wake_up_all(cpu);
        IrqReturn::Handled
    }
}

impl Core {
    fn idle(&self, cpu: &Cpu<'_>) -> bool {
        self.regs.readl(cpu, STATUS) & BUSY == 0 && self.regs.readq(cpu, DMA_COMMAND) & RUN == 0
    }
}

/// A device in service.
pub struct Edu {
    core: Arc<Core>,
    buffer: Arc<Coherent>,
    /// Held for a whole piece of work: there is one of everything in the device.
    turn: Mutex<()>,
    bus_master: bool,
    timeout: u64,
    missed: AtomicU64,
    #[cfg(lowzone_mutants)]
    private: Locked<Option<DevmBuf>>,
    #[cfg(lowzone_mutants)]
    stopping: AtomicBool,
}

impl Edu {
    pub(super) fn probe(cpu: &Cpu<'_>, pci: &Arc<PciDevice>, options: &EduOptions) -> Result<Self, ProbeError> {
        let _span = cpu.span("start");
        pci.pcim_enable(cpu)?;
        pci.dma().set_mask(cpu, dma_bit_mask(options.dma_mask))?;
        pci.dma().set_coherent_mask(cpu, dma_bit_mask(options.coherent_mask))?;
        let regs = pci.pcim_iomap(cpu, 0, BYTES)?;
        identify(cpu, &regs)?;
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::MaskOverridden) {
            // The register keeps 64 bits: so the device says.
            regs.writeq(cpu, DMA_SOURCE, u64::MAX);
            pci.dma().set_mask_and_coherent(cpu, regs.readq(cpu, DMA_SOURCE))?;
        }
        #[cfg(lowzone_mutants)]
        let private = mutant::is(Mutant::RemoveFreesPrivateFirst).then(|| pci.devres().kzalloc(cpu, 64, GFP_KERNEL));
        #[cfg(lowzone_mutants)]
        let private = private.transpose()?;
        let buffer = pci.devres().alloc_coherent(cpu, pci.dma(), COHERENT_BYTES, GFP_KERNEL)?;
        let core = Arc::new(Core { pci: pci.clone(), regs, causes: AtomicU32::new(0), changed: WaitQueue::new() });
        let msi = if options.msi { pci.pcim_enable_msi(cpu).ok() } else { None };
        let irq = msi.map_or_else(|| pci.intx(), Ok)?;
        pci.set_intx(true);
        pci.devres().request_irq(cpu, irq, core.clone())?;
        if options.bus_master {
            pci.set_master();
        }
        Ok(Self {
            core,
            buffer,
            turn: Mutex::new(()),
            bus_master: options.bus_master,
            timeout: options.timeout,
            missed: AtomicU64::new(0),
            #[cfg(lowzone_mutants)]
            private: Locked::new(private),
            #[cfg(lowzone_mutants)]
            stopping: AtomicBool::new(false),
        })
    }

    /// The function it is made of.
    pub fn pci(&self) -> &Arc<PciDevice> {
        &self.core.pci
    }

    /// The driver's own coherent memory, 4 KiB, for whoever moves bytes with [`Edu::transfer`].
    pub fn buffer(&self) -> &Coherent {
        &self.buffer
    }

    /// Pieces of work that were found done only when their time was up: their interrupt never came.
    pub fn missed_interrupts(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Has the device compute `n!` modulo 2^32, and waits for its interrupt. Process context.
    ///
    /// # Errors
    /// [`EduError`]: busy, gone, or no end within the driver's timeout.
    pub fn factorial(&self, cpu: &Cpu<'_>, n: u32) -> Result<u32, EduError> {
        let (what, regs) = ("factorial", &self.core.regs);
        let _span = cpu.span(what);
        let _turn = self.turn.lock(cpu);
        match regs.readl(cpu, STATUS) {
            u32::MAX => return Err(EduError::Gone { what }),
            status if status & BUSY != 0 => return Err(EduError::Busy { what }),
            _ => {}
        }
        regs.writel(cpu, STATUS, INTERRUPT);
        self.core.causes.fetch_and(!COMPUTED, Ordering::Relaxed);
        regs.writel(cpu, FACTORIAL, n);
        self.wait(cpu, what, COMPUTED, || regs.readl(cpu, STATUS) & BUSY == 0)?;
        match regs.readl(cpu, FACTORIAL) {
            // No factorial but 1 is odd.
            u32::MAX => Err(EduError::Gone { what }),
            value => Ok(value),
        }
    }

    /// Moves the first `len` bytes of a buffer into the device's, from its beginning. Process context.
    ///
    /// # Errors
    /// [`TransferError`] with the buffer and the reason.
    pub fn dma_to_device(&self, cpu: &Cpu<'_>, buf: KBuf, len: usize) -> Result<Moved, TransferError> {
        self.streaming::<ToDevice>(cpu, Way::ToDevice, buf, len)
    }

    /// Moves the first `len` bytes of the device's buffer into another. Process context.
    ///
    /// # Errors
    /// [`TransferError`] with the buffer and the reason.
    pub fn dma_from_device(&self, cpu: &Cpu<'_>, buf: KBuf, len: usize) -> Result<Moved, TransferError> {
        self.streaming::<FromDevice>(cpu, Way::FromDevice, buf, len)
    }

    fn streaming<D: Direction>(&self, cpu: &Cpu<'_>, way: Way, buf: KBuf, len: usize) -> Result<Moved, TransferError> {
        let _span = cpu.span("streaming");
        if len > buf.len() {
            return Err(TransferError { buf, why: EduError::Length { len } });
        }
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::DmaToStack) && way == Way::ToDevice {
            return self.send_from_stack(cpu, buf, len);
        }
        let failed = |error: MapError<KBuf>| TransferError { buf: error.buf, why: error.why.into() };
        let mapped = self.core.pci.dma().map_single::<D>(cpu, buf).map_err(failed)?;
        let (at, bounced) = (mapped.dma_addr(), mapped.bounced());
        let moved = self.transfer(cpu, way, at, len);
        let buf = mapped.unmap(cpu);
        match moved {
            Ok(()) => Ok(Moved { buf, at, bounced }),
            Err(why) => Err(TransferError { buf, why }),
        }
    }

    /// The bug [`DmaToStack`](Mutant::DmaToStack): what is sent lies in a local variable.
    #[cfg(lowzone_mutants)]
    fn send_from_stack(&self, cpu: &Cpu<'_>, buf: KBuf, len: usize) -> Result<Moved, TransferError> {
        let dma = self.core.pci.dma();
        let sent = stack::with_variable(cpu, len, |message| {
            let mut bytes = vec![0; message.len()];
            let _ = buf.read_at(0, &mut bytes);
            message.write(cpu, &bytes);
            let raw = stack::map_single(cpu, dma, message, Dir::ToDevice)?;
            let moved = self.transfer(cpu, Way::ToDevice, raw.dma, len);
            misuse::unmap_single(cpu, dma, raw.dma, raw.len, Dir::ToDevice);
            moved.map(|()| raw)
        });
        match sent.unwrap_or(Err(EduError::Length { len })) {
            Ok(raw) => Ok(Moved { buf, at: raw.dma, bounced: raw.bounced }),
            Err(why) => Err(TransferError { buf, why }),
        }
    }

    /// Moves `len` bytes between memory that the device sees at `at`, coherent or mapped by the caller, and the
    /// beginning of the device's buffer. Once it returns the device is done with the memory. Process context.
    ///
    /// # Errors
    /// [`EduError`]: a length it can't move, busy, gone, or no end within the driver's timeout.
    pub fn transfer(&self, cpu: &Cpu<'_>, way: Way, at: DmaAddr, len: usize) -> Result<(), EduError> {
        let (what, regs) = ("transfer", &self.core.regs);
        let _span = cpu.span(what);
        if !(1..=MOST).contains(&len) {
            return Err(EduError::Length { len });
        }
        let _turn = self.turn.lock(cpu);
        #[cfg(lowzone_mutants)]
        if self.stopping.swap(false, Ordering::Relaxed) {
            self.stop(cpu); // It had its time.
        }
        match regs.readq(cpu, DMA_COMMAND) {
            u64::MAX => return Err(EduError::Gone { what }),
            command if command & RUN != 0 => return Err(EduError::Busy { what }),
            _ => {}
        }
        let (source, destination, direction) = match way {
            Way::ToDevice => (at.get(), BUFFER, 0),
            Way::FromDevice => (BUFFER, at.get(), TO_MEMORY),
        };
        regs.writeq(cpu, DMA_SOURCE, source);
        regs.writeq(cpu, DMA_DESTINATION, destination);
        regs.writeq(cpu, DMA_COUNT, len as u64);
        self.core.causes.fetch_and(!MOVED, Ordering::Relaxed);
        cpu.wmb(); // What the device is to read is in memory before it is told.
        regs.writeq(cpu, DMA_COMMAND, RUN | WITH_INTERRUPT | direction);
        self.wait(cpu, what, MOVED, || regs.readq(cpu, DMA_COMMAND) & RUN == 0)?;
        cpu.dma_rmb(); // What it wrote is read after the register that says so.
        Ok(())
    }

    /// Waits for an interrupt of this cause with the register agreeing; when time is up the register alone counts.
    fn wait(&self, cpu: &Cpu<'_>, what: &'static str, cause: u32, over: impl Fn() -> bool) -> Result<(), EduError> {
        let told = || self.core.causes.load(Ordering::Acquire) & cause != 0 && over();
        match self.core.changed.wait_event_timeout(cpu, self.timeout, told) {
            Ok(()) => Ok(()),
            Err(WaitError::TimedOut { .. }) if over() => {
                self.core.pci.set_intx(true);
                self.missed.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            #[cfg(lowzone_mutants)]
            Err(why) if cause == MOVED && mutant::is(Mutant::StopDoesNotWait) => {
                self.core.regs.writeq(cpu, DMA_COMMAND, 0);
                self.stopping.store(true, Ordering::Relaxed);
                Err(EduError::NoEnd { what, why })
            }
            Err(why) => {
                self.stop(cpu);
                Err(EduError::NoEnd { what, why })
            }
        }
    }

    /// Ends whatever the device does: by a reset, or, where that is of no use, by cutting it off.
    fn stop(&self, cpu: &Cpu<'_>) {
        let (_span, pci) = (cpu.span("stop"), &self.core.pci);
        pci.disable();
        if pci.reset().is_err() {
            return;
        }
        pci.enable();
        pci.set_intx(true);
        if !self.core.idle(cpu) {
            pci.disable();
        } else if self.bus_master {
            pci.set_master();
        }
    }

    /// The bug [`RemoveFreesPrivateFirst`](Mutant::RemoveFreesPrivateFirst): where the registers are is asked of it then.
    #[cfg(lowzone_mutants)]
    pub(super) fn free_private(&self, cpu: &Cpu<'_>) {
        if let Some(private) = self.private.lock().take() {
            let at = private.phys();
            self.core.pci.devres().kfree(cpu, private);
            misuse::load(cpu, at, &mut [0; 8]);
        }
    }

    /// The bug [`IounmapBeforeStop`](Mutant::IounmapBeforeStop): what comes after it uses them still.
    #[cfg(lowzone_mutants)]
    pub(super) fn unmap_registers(&self, cpu: &Cpu<'_>) {
        iounmap(cpu, &self.core.regs);
    }

    /// Stops everything that could reach memory; what was taken goes after it, as managed resources do.
    pub(super) fn quiesce(&self, cpu: &Cpu<'_>) {
        // Whoever is at work comes to an end first.
        let _turn = self.turn.lock(cpu);
        // Nobody will acknowledge any more, and the pin may be shared.
        self.core.regs.writel(cpu, STATUS, 0);
        let causes = self.core.regs.readl(cpu, CAUSES);
        self.core.regs.writel(cpu, ACKNOWLEDGE, causes);
        self.core.pci.disable();
    }
}

/// It is the device that this driver knows, and it answers.
fn identify(cpu: &Cpu<'_>, regs: &IoMem) -> Result<(), ProbeError> {
    let seen = regs.readl(cpu, ID);
    if seen & ID_MASK != ID_MARK {
        return Err(ProbeError::WrongId { seen });
    }
    for wrote in PATTERNS {
        regs.writel(cpu, LIVENESS, wrote);
        let read = regs.readl(cpu, LIVENESS);
        if read != !wrote {
            return Err(ProbeError::own(EIO, EduError::NotAlive { wrote, read }));
        }
    }
    Ok(())
}
