//! `threaded-irq`: a card whose line stays high until somebody who may sleep has looked after it.
//!
//! The mistakes: the sleeping work done in the handler itself; a line that isn't masked until the thread has run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::env::{IrqHandler, IrqReturn};
use lowzone_guest_mem::irq::{IrqFlags, IrqThread, irq_set_level, request_threaded_irq, synchronize_irq};
use lowzone_guest_mem::lock::{Locked, Mutex};
use lowzone_guest_mem::wait::{Completion, sleep};

use super::{StoryError, Telling};

/// What can be done wrong.
pub(super) const MISTAKES: &[&str] = &["mutex-in-primary", "no-oneshot"];

const IRQ: u32 = 10;
const SECONDS: u64 = 1_000_000_000;

/// The driver's side of the card.
struct Card {
    state: Mutex<u32>,
    hasty: bool,
    interrupts: AtomicU32,
    handler: Locked<String>,
    thread: Locked<String>,
    done: Completion,
}

impl Card {
    fn new(hasty: bool) -> Self {
        Self {
            state: Mutex::new(0),
            hasty,
            interrupts: AtomicU32::new(0),
            handler: Locked::default(),
            thread: Locked::default(),
            done: Completion::new(),
        }
    }

    fn work(&self, cpu: &Cpu<'_>) {
        *self.state.lock(cpu) += 1;
    }
}

impl IrqHandler for Card {
    fn hardirq(&self, cpu: &Cpu<'_>) -> IrqReturn {
        *self.handler.lock() = cpu.context().to_string();
        if self.interrupts.fetch_add(1, Ordering::Relaxed) == 0 && self.hasty {
            self.work(cpu);
        }
        IrqReturn::WakeThread
    }
}

impl IrqThread for Card {
    fn thread(&self, cpu: &Cpu<'_>) -> IrqReturn {
        *self.thread.lock() = cpu.context().to_string();
        self.work(cpu);
        // As over a slow bus, on the far side of which the card lets go of its line.
        let slept = sleep(cpu, 1_000);
        irq_set_level(cpu, IRQ, false);
        self.done.complete(cpu);
        if slept.is_ok() { IrqReturn::Handled } else { IrqReturn::None }
    }
}

/// Tells it.
pub(super) fn tell(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let card = Arc::new(Card::new(telling.makes("mutex-in-primary")));
    let alone = request_threaded_irq(cpu, IRQ, None, Some(card.clone()), IrqFlags::empty(), "card");
    let refused = alone.err().map_or(0, |error| error.errno());
    // Under a fault it may be no memory.
    telling.fact("a thread without a handler and without IRQF_ONESHOT", refused);

    let flags = if telling.makes("no-oneshot") { IrqFlags::empty() } else { IrqFlags::ONESHOT };
    let line = request_threaded_irq(cpu, IRQ, Some(card.clone()), Some(card.clone()), flags, "card")?;
    irq_set_level(cpu, IRQ, true);
    let told = first(telling, &card);
    let told = told.and_then(|()| if telling.makes("no-oneshot") { Ok(()) } else { second(telling, &card) });
    irq_set_level(cpu, IRQ, true);
    line.free(cpu);
    irq_set_level(cpu, IRQ, false);
    told
}

/// One interrupt, and what became of it.
fn first(telling: &Telling<'_, '_>, card: &Card) -> Result<(), StoryError> {
    card.done.wait_timeout(telling.cpu(), 20 * SECONDS)?;
    let (handler, thread) = (card.handler.lock().clone(), card.thread.lock().clone());
    telling.expect("the handler", "in a hard-interrupt handler", handler)?;
    telling.expect("its thread, with a mutex, asleep", "in process context", thread)?;
    telling.fact("interrupts until the thread had quietened the card", card.interrupts.load(Ordering::Relaxed));
    Ok(())
}

/// Another, which is waited for.
fn second(telling: &Telling<'_, '_>, card: &Card) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    telling.expect("interrupts of the first", 1, card.interrupts.load(Ordering::Relaxed))?;
    irq_set_level(cpu, IRQ, true);
    sleep(cpu, 100)?;
    synchronize_irq(cpu, IRQ);
    telling.expect("done when synchronize_irq returns", true, card.done.try_wait())
}
