//! The bus of an emulator's devices: config space by the PC's two ports, registers by physical address.
//!
//! One mutex around the socket. When QEMU dies, does not answer or answers nonsense, the first failure is kept for
//! whoever asks ([`Qemu::failure`]), and from then on every read gives all-ones and every write is lost, as with a
//! device that was pulled out. Every message is sent once more, so that drivers look; what waits for a pin runs into
//! its own deadline. While it lives, an address that nothing decodes reads as QEMU reads it: zero, not all-ones.
//! A keeper thread starts the emulator, looks for interrupts for as long as the bus lives, and ends it.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use lowzone_driver::bus::{Bdf, PciBus, Vector};
use lowzone_guest_mem::PhysAddr;
use lowzone_guest_mem::iospace::{IoSpace, Width};
use lowzone_guest_mem::kernel::KernelRef;
use lowzone_guest_mem::ram::{LOW_LIMIT, Ram};

use super::QtestError;
use super::mailbox::{INPUTS, Mailbox};
use super::peer::Peer;
use super::process::Process;
use super::protocol::{Client, Failure, LIMIT};
use crate::host::path_of;
use crate::wire::InProc;

/// Where BARs may be placed: from the top of possible low RAM to the I/O APIC.
const WINDOW: (u64, u64) = (LOW_LIMIT, 0xfec0_0000 - LOW_LIMIT);
/// The most low RAM of a machine that has RAM above 4 GiB (`gigabyte_align` in hw/i386/pc_piix.c).
const LOW_MOST: u64 = 3 << 30;
/// The ports of config space (PCI 3.0, 3.2.2.3.2).
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const COMMAND: u16 = 0x04;
const INTERRUPT_PIN: u16 = 0x3d;
/// The ISA bridge, and its routes from PCI lines to interrupts (PIIX3, 2.3.9).
const ISA_BRIDGE: Bdf = Bdf { bus: 0, device: 1, function: 0 };
const ROUTES: u16 = 0x60;
/// Rounds without an interrupt after which the keeper naps, and after which it sleeps; a register write wakes it up.
const NAP_AFTER: u32 = 100;
const SLEEP_AFTER: u32 = 10_000;
const NAP: Duration = Duration::from_micros(50);
const SLEEP: Duration = Duration::from_millis(1);

type OnFailure = Box<dyn Fn() + Send + Sync>;

/// What the keeper and the CPUs share.
struct Shared {
    client: Mutex<Client>,
    process: Mutex<Process>,
    mailbox: Mailbox,
    failure: Mutex<Option<QtestError>>,
    on_failure: OnceLock<OnFailure>,
    dead: AtomicBool,
    stop: AtomicBool,
    /// Rounds in which the keeper found nothing.
    idle: AtomicU32,
}

/// A PCI bus whose functions are QEMU's; the emulator ends with it.
pub struct Qemu {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Qemu {
    /// Starts an emulator with these devices over the RAM of a machine, whose interrupts go to `controller`.
    ///
    /// # Errors
    /// [`QtestError`]: it isn't installed, can't lay RAM out like the machine's, or refuses its options.
    pub fn start(kernel: KernelRef, controller: Arc<InProc>, peers: &[Peer]) -> Result<Self, QtestError> {
        let refused = |said: &str| QtestError::Ended { said: said.to_owned() };
        let ram = kernel.get().ok_or_else(|| refused("the machine is gone"))?.ram();
        let mut args = machine_args(ram)?;
        let mut files = Vec::new();
        for (index, peer) in peers.iter().enumerate() {
            args.extend(peer.args(index, &mut files)?);
        }
        let (tell, told) = mpsc::sync_channel(1);
        // The emulator dies with the thread that starts it, hence the keeper does.
        let keeper = std::thread::Builder::new().name("qemu".to_owned()).spawn(move || {
            match Shared::start((kernel, controller), args, files) {
                Ok(shared) => {
                    let shared = Arc::new(shared);
                    if tell.send(Ok(shared.clone())).is_ok() {
                        shared.keep();
                    }
                    lock(&shared.process).quit();
                }
                // Nobody listens only if the caller is gone.
                Err(error) => drop(tell.send(Err(error))),
            }
        });
        let keeper = keeper.map_err(|source| QtestError::Host { what: "thread", source })?;
        let shared = told.recv().unwrap_or_else(|_| Err(refused("its thread ended")))?;
        Ok(Self { shared, keeper: Some(keeper) })
    }

    /// The place of the device with this number, from 0.
    pub fn place(index: usize) -> Bdf {
        Peer::place(index)
    }

    /// What went wrong first; then the bus is dead and there will be nothing more.
    pub fn failure(&self) -> Option<String> {
        lock(&self.shared.failure).as_ref().map(ToString::to_string)
    }

    /// Calls `told` when something goes wrong, or now if it has; the first one that asks is told.
    pub fn on_failure(&self, told: impl Fn() + Send + Sync + 'static) {
        self.shared.on_failure.get_or_init(|| Box::new(told));
        if self.failure().is_some() {
            told_of(&self.shared.on_failure);
        }
    }

    /// What QEMU printed so far; its standard output comes late, when it ends.
    pub fn said(&self) -> String {
        lock(&self.shared.process).said()
    }

    /// The emulator's process number.
    pub fn process_id(&self) -> u32 {
        lock(&self.shared.process).id()
    }

    /// Ends the emulator and gives everything that it printed.
    pub fn quit(mut self) -> String {
        self.end();
        self.said()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(keeper) = self.keeper.take() {
            // It doesn't panic; and if it did, the emulator died with it.
            let _ = keeper.join();
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.end();
    }
}

fn told_of(on_failure: &OnceLock<OnFailure>) {
    if let Some(told) = on_failure.get() {
        told();
    }
}

/// The machine: RAM of the lab's layout in the lab's file.
fn machine_args(ram: &Ram) -> Result<Vec<String>, QtestError> {
    let (total, low) = (ram.total(), ram.low());
    if total > low && low > LOW_MOST {
        return Err(QtestError::Split { ram: total, low });
    }
    // Where all RAM is low QEMU wants a limit above it.
    let limit = if total > low { low } else { LOW_LIMIT };
    let path = path_of(ram.file());
    let args = [
        "-machine",
        &format!("pc,memory-backend=ram,max-ram-below-4g={limit}"),
        "-accel",
        "tcg",
        "-m",
        &format!("size={total}B"),
        "-object",
        &format!("memory-backend-file,id=ram,share=on,size={total}B,mem-path={path}"),
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
    ];
    Ok(args.map(str::to_owned).to_vec())
}

impl Shared {
    fn start(
        (kernel, controller): (KernelRef, Arc<InProc>),
        args: Vec<String>,
        files: Vec<File>,
    ) -> Result<Self, QtestError> {
        let (process, stream) = Process::start(args, files)?;
        let client = Client::new(stream, LIMIT).map_err(|source| QtestError::Host { what: "socket", source })?;
        let shared = Self {
            client: Mutex::new(client),
            process: Mutex::new(process),
            mailbox: Mailbox::new(kernel, controller),
            failure: Mutex::default(),
            on_failure: OnceLock::new(),
            dead: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            idle: AtomicU32::new(0),
        };
        shared.ask(|client| client.intercept("ioapic"));
        for (offset, input) in (ROUTES..).zip(INPUTS) {
            shared.config_write(ISA_BRIDGE, offset, Width::B1, u32::from(input));
        }
        let failure = lock(&shared.failure).take();
        failure.map_or(Ok(shared), Err)
    }

    /// One exchange; `None` if the emulator is dead, or has just been found to be.
    fn ask<T>(&self, exchange: impl FnOnce(&mut Client) -> Result<T, Failure>) -> Option<T> {
        if self.dead.load(Ordering::Relaxed) {
            return None;
        }
        let mut client = lock(&self.client);
        let answer = exchange(&mut client);
        client.take_lines().for_each(|line| self.mailbox.set_line(line));
        drop(client);
        answer.map_err(|failure| self.fail(failure)).ok()
    }

    fn fail(&self, failure: Failure) {
        if self.dead.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut process = lock(&self.process);
        let error = match failure {
            Failure::Closed => QtestError::Ended { said: process.obituary() },
            Failure::Answer { command, answer } => QtestError::Answer { command, answer },
            Failure::Silent { command, limit } => {
                let said = process.said();
                let said = if said.is_empty() { said } else { format!("; it said: {said}") };
                QtestError::Silent { command, limit, said }
            }
        };
        process.quit();
        drop(process);
        *lock(&self.failure) = Some(error);
        told_of(&self.on_failure);
        self.mailbox.alarm();
    }

    /// Looks for interrupts until the bus is dropped.
    fn keep(&self) {
        while !self.stop.load(Ordering::Relaxed) && !self.dead.load(Ordering::Relaxed) {
            // Whoever has the socket now reads what came, too.
            if let Ok(client) = self.client.try_lock() {
                drop(client);
                self.ask(Client::listen);
            }
            if self.mailbox.collect() {
                self.idle.store(0, Ordering::Relaxed);
            }
            match self.idle.fetch_add(1, Ordering::Relaxed) {
                0..NAP_AFTER => std::thread::yield_now(),
                NAP_AFTER..SLEEP_AFTER => std::thread::sleep(NAP),
                _ => {
                    self.idle.store(SLEEP_AFTER, Ordering::Relaxed);
                    std::thread::sleep(SLEEP);
                }
            }
        }
    }

    fn config_read(&self, at: Bdf, offset: u16, width: Width) -> u32 {
        let absent = u32::try_from(width.ones()).unwrap_or(u32::MAX);
        let Some((select, port)) = config_ports(at, offset) else { return absent };
        let answer = self.ask(|client| client.select_in((CONFIG_ADDRESS, select), port, width));
        answer.and_then(|value| u32::try_from(value).ok()).unwrap_or(absent)
    }

    fn config_write(&self, at: Bdf, offset: u16, width: Width, value: u32) {
        if let Some((select, port)) = config_ports(at, offset) {
            self.ask(|client| client.select_out((CONFIG_ADDRESS, select), port, width, value));
        }
    }
}

/// What to select, and the port that then is the register; there is no config space beyond 256 bytes here.
fn config_ports(at: Bdf, offset: u16) -> Option<(u32, u16)> {
    let offset = u32::from(u8::try_from(offset).ok()?);
    let place = u32::from(at.bus) << 16 | u32::from(at.device & 31) << 11 | u32::from(at.function & 7) << 8;
    let port = CONFIG_DATA + u16::try_from(offset & 3).unwrap_or(0);
    Some((1 << 31 | place | offset & !3, port))
}

impl PciBus for Qemu {
    fn config_read(&self, at: Bdf, offset: u16, width: Width) -> u32 {
        self.shared.config_read(at, offset, width)
    }

    fn config_write(&self, at: Bdf, offset: u16, width: Width, value: u32) {
        self.shared.config_write(at, offset, width, value);
    }

    fn window(&self) -> (PhysAddr, u64) {
        (PhysAddr::new(WINDOW.0), WINDOW.1)
    }

    fn alloc_vector(&self, cpu: u32) -> Option<Vector> {
        self.shared.mailbox.alloc(cpu)
    }

    fn free_vector(&self, irq: u32) {
        self.shared.mailbox.free(irq);
    }

    fn intx(&self, at: Bdf) -> Option<u32> {
        let pin = u8::try_from(self.config_read(at, INTERRUPT_PIN, Width::B1)).ok()?;
        (1..=4).contains(&pin).then(|| self.shared.mailbox.line_of(at, pin - 1))
    }

    fn take_irq(&self, cpu: u32) -> Option<u32> {
        self.shared.mailbox.take_irq(cpu)
    }

    /// QEMU's functions have no reset of their own on a conventional bus (no FLR): decoding and DMA are turned off.
    fn reset(&self, at: Bdf) {
        self.config_write(at, COMMAND, Width::B2, 0);
    }
}

impl IoSpace for Qemu {
    fn read(&self, at: PhysAddr, width: Width) -> u64 {
        self.shared.ask(|client| client.read(at.get(), width)).unwrap_or_else(|| width.ones())
    }

    fn write(&self, at: PhysAddr, width: Width, value: u64) {
        self.shared.ask(|client| client.write(at.get(), width, value));
        // An answer by interrupt may be on its way.
        self.shared.idle.store(0, Ordering::Relaxed);
    }
}
