//! The lab: a machine, its devices and its driver, built from a scenario, and the steps run on them.
//!
//! A [`Lab`] borrows a machine from the pool, joins the scenario's devices to it by a wire (`join`) and makes the
//! world. [`Lab::run`] does the steps and says what was seen; it judges nothing (`expect` does).
//! Neighbours: `spec`, `step`, `result`. Left out: peers in other processes.

mod bench;
mod control;
mod error;
mod join;
mod setting;

pub use bench::Verify;
pub(crate) use bench::{Bench, Canary, Slot, lock};
pub use control::Control;
pub use error::LabError;
pub use setting::Setting;

use std::io::Write;
use std::sync::{Arc, Mutex};

use lowzone_device::misbehave::Script;
use lowzone_driver::pci::PciDevice;
use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::dma::DmaDevice;
use lowzone_guest_mem::fault::FaultSpec;
use lowzone_guest_mem::kernel::{Kernel, Machine};
use lowzone_guest_mem::trace::{Kind, Producer, Record, Recorder, Sink};

use self::join::{Joined, Peer};
use crate::bill::{Bill, SharedBook};
use crate::kit::{Kit, LabDriver};
use crate::result::{FaultRow, RunResult};
use crate::serve::monotonic;
use crate::spec::{Need, Scenario, Step};
use crate::step;
use crate::trace::feed::Feed;
use crate::trace::{Header, Kinds, TraceError, Writer};
use crate::watch::{Board, Live};
use crate::wire::InProc;
use crate::world::{Body, Exit, World, WorldKind};

/// A scenario, set up and ready to run.
pub struct Lab {
    scenario: Scenario,
    wire: Arc<InProc>,
    peer: Option<Peer>,
    bench: Arc<Bench>,
    world: World,
    stream: Option<Feed<Box<dyn Write + Send>>>,
    book: Option<SharedBook>,
    live: Option<Live>,
    // Last: the machine is reset when it drops, after everything that lives on it.
    machine: Machine,
}

impl Lab {
    /// Sets a scenario up in a lockstep world of this seed, with the stock kinds of drivers and devices.
    ///
    /// # Errors
    /// [`LabError`] names the machine's or device's fault.
    pub fn new(
        name: &str,
        scenario: Scenario,
        seed: u64,
        verify: Verify,
        control: Arc<Control>,
    ) -> Result<Self, LabError> {
        Self::with_kit(&Kit::STOCK, name, scenario, seed, verify, control)
    }

    /// [`Lab::new`] with the kinds of a kit.
    ///
    /// # Errors
    /// [`LabError`] names the machine's, device's or driver's fault.
    pub fn with_kit(
        kit: &Kit,
        name: &str,
        scenario: Scenario,
        seed: u64,
        verify: Verify,
        control: Arc<Control>,
    ) -> Result<Self, LabError> {
        Self::in_world(WorldKind::Lockstep, kit, name, scenario, seed, verify, control)
    }

    /// [`Lab::with_kit`] in a world, or on a wire. In threads the seed gives the data of random steps, and no order.
    ///
    /// # Errors
    /// [`LabError`] names the machine's, device's or driver's fault, or what the scenario needs and is not there.
    pub fn in_world(
        setting: impl Into<Setting>,
        kit: &Kit,
        name: &str,
        scenario: Scenario,
        seed: u64,
        verify: Verify,
        control: Arc<Control>,
    ) -> Result<Self, LabError> {
        let setting = setting.into();
        let (world, wire) = (setting.world(), setting.wire());
        if let Err(skip) = wire.expects(&scenario) {
            return Err(LabError::Skip { scenario: name.to_owned(), skip });
        }
        if world == WorldKind::Threads && scenario.needs.contains(&Need::Lockstep) {
            let why = "its story depends on who runs when, which threads leave to chance";
            return Err(LabError::Needs { scenario: name.to_owned(), need: Need::Lockstep, why });
        }
        if world == WorldKind::Threads && scenario.machine.weak {
            let why = "weak memory is modelled there alone: on threads the host's own order is seen";
            return Err(LabError::Needs { scenario: name.to_owned(), need: Need::Lockstep, why });
        }
        let config = scenario.machine.config();
        let machine = Machine::acquire(config)?;
        let controller = Arc::new(InProc::new(machine.kernel_ref(), config.cpus));
        let Joined { bus, slots, workers, peer } = join::join(kit, &machine, &controller, &scenario, wire)?;
        if let Some(peer) = &peer {
            let control = control.clone();
            peer.on_failure(move || control.stop());
        }
        let driver = make_driver(kit, &scenario)?;
        let mut world = World::new(world, machine.kernel_ref(), controller.clone(), workers, seed)?;
        world.inject(scenario.fault.spec()?);
        let bench = Arc::new(Bench {
            kernel: machine.kernel(),
            bus,
            driver,
            bound: Mutex::default(),
            slots,
            found: Mutex::default(),
            control,
            verify,
            seed,
            canary: Mutex::default(),
            held: Mutex::default(),
            sent: Mutex::default(),
            phase: Mutex::default(),
            result: Mutex::new(RunResult::new(name, &scenario, seed, (world.kind(), wire))),
        });
        Ok(Self { scenario, wire: controller, peer, bench, world, stream: None, book: None, live: None, machine })
    }

    /// Has these injectors at work beside the scenario's, each in the place of one of its class.
    pub fn inject(&mut self, faults: &FaultSpec) {
        let all = faults.attrs().iter().cloned().fold(self.world.injectors(), FaultSpec::with);
        self.world.inject(all);
    }

    /// Keeps every event of the run in memory, for [`Lab::take_events`].
    pub fn capture(&self) {
        self.machine.kernel().trace().capture();
    }

    /// The events that were kept.
    pub fn take_events(&self) -> Vec<(Producer, Record)> {
        self.machine.kernel().trace().take_captured()
    }

    /// Streams every record from now on into a trace; [`Lab::end_stream`] completes it.
    ///
    /// # Errors
    /// [`TraceError::Write`] if not even the beginning can be written.
    pub fn stream_to(&mut self, out: Box<dyn Write + Send>) -> Result<(), TraceError> {
        let (kernel, threads) = (self.machine.kernel(), self.world.kind() == WorldKind::Threads);
        let header = Header {
            program: concat!("lowzone ", env!("CARGO_PKG_VERSION")).to_owned(),
            scenario: lock(&self.bench.result).scenario.clone(),
            seed: self.bench.seed,
            clock: self.world.kind().clock().to_owned(),
            began: threads.then(|| monotonic().saturating_sub(self.world.now())),
            cpus: kernel.config().cpus,
            kinds: Kind::ALL.iter().map(|kind| (kind.number(), kind.name().to_owned())).collect(),
            only: if kernel.trace().whole() { Vec::new() } else { recorded(kernel.trace()) },
        };
        let writer = Writer::new(out, &header, &self.devices(), Some(self.machine.kernel_ref()))?;
        let feed = Feed::new(writer, threads).map_err(|source| TraceError::Write { lost: 0, source })?;
        self.stream = Some(feed);
        self.watch();
        Ok(())
    }

    /// Records only these kinds from now on, findings and steps besides; the run has no digest then.
    pub fn record_only(&self, kinds: &Kinds) {
        self.machine.kernel().trace().mask(kinds.all());
    }

    /// Keeps the books of a DMA bill from now on, for [`Lab::take_bill`].
    pub fn keep_bill(&mut self) {
        self.book = Some(SharedBook::new(self.machine.kernel()));
        self.watch();
    }

    /// The bill of what was run since [`Lab::keep_bill`]; `None` without it.
    pub fn take_bill(&mut self) -> Option<Bill> {
        let book = self.book.take()?;
        // Who watched so far gets what it is due.
        self.watch();
        Some(book.bill(self.machine.kernel(), self.dma_devices()))
    }

    /// What a person who watches sees, from now on.
    pub(crate) fn board(&mut self) -> Board {
        let live = self.live.insert(Live::default()).clone();
        self.watch();
        let (result, seed) = (lock(&self.bench.result), self.bench.seed);
        let title = format!("{}  seed {seed}  {}", result.scenario, self.world.kind().clock());
        let devices = self.devices().into_iter().map(|(number, _, name)| (number, name)).collect();
        Board { title, kernel: self.machine.kernel(), live, devices }
    }

    /// Gives every record to those who want them all.
    fn watch(&self) {
        let trace = self.machine.kernel().trace();
        trace.end_stream();
        let stream = self.stream.iter().map(Feed::sink);
        let book = self.book.iter().map(|book| Box::new(book.clone()) as Box<dyn Sink>);
        let live = self.live.iter().map(|live| Box::new(live.clone()) as Box<dyn Sink>);
        let sinks: Vec<_> = stream.chain(book).chain(live).collect();
        if !sinks.is_empty() {
            trace.stream(Box::new(Sinks(sinks)));
        }
    }

    /// Completes the trace that [`Lab::stream_to`] began; nothing to do if none was. Whose events were lost, and how
    /// many: in threads those that come faster than the file takes them.
    ///
    /// # Errors
    /// [`TraceError::Write`] if it could not be written.
    pub fn end_stream(&mut self) -> Result<Vec<(String, u64)>, TraceError> {
        let trace = self.machine.kernel().trace();
        let stream = self.stream.take();
        self.watch();
        let Some(writer) = stream.and_then(Feed::end) else { return Ok(Vec::new()) };
        let lost: Vec<_> = writer.losses().iter().map(|(&who, &events)| (self.producer(who), events)).collect();
        // Of threads, and of a record that has not every kind, it would say nothing.
        let told = self.world.kind() == WorldKind::Lockstep && trace.whole();
        writer.finish(if told { trace.digest() } else { 0 }, self.world.now())?;
        Ok(lost)
    }

    /// Who makes records of this number: `cpu1`, or a device's name.
    fn producer(&self, who: u16) -> String {
        let device = self.bench.slots.iter().find(|slot| slot.dma.producer().0 == who);
        device.map_or_else(|| format!("cpu{who}"), |slot| slot.name.clone())
    }

    /// Each device's number in records, its place on the bus and its name.
    pub fn devices(&self) -> Vec<(u16, String, String)> {
        let slots = self.bench.slots.iter();
        slots.map(|slot| (slot.dma.index(), slot.at.to_string(), slot.name.clone())).collect()
    }

    /// Each device's name, and the device as the DMA API sees it.
    pub(crate) fn dma_devices(&self) -> impl Iterator<Item = (&str, &DmaDevice)> {
        self.bench.slots.iter().map(|slot| (slot.name.as_str(), &slot.dma))
    }

    /// The kernel it runs on.
    pub fn kernel(&self) -> &'static Kernel {
        self.machine.kernel()
    }

    /// The world, to be told which points to fail.
    pub fn world(&mut self) -> &mut World {
        &mut self.world
    }

    /// Does every step, in order, and tells what was seen. After a step whose driver died, only the leak check follows.
    pub fn run(&mut self) -> RunResult {
        self.run_to(usize::MAX);
        self.finish()
    }

    /// Does one step; how each CPU's body ended.
    pub(crate) fn step(&mut self, verb: &Step, number: u64) -> Vec<Exit> {
        self.world.mark(self.machine.kernel_ref(), number);
        self.run_bodies(step::bodies(&self.bench, verb, number))
    }

    /// Does one step that the record does not number.
    pub(crate) fn unnumbered(&mut self, verb: &Step) -> Vec<Exit> {
        self.run_bodies(step::bodies(&self.bench, verb, 0))
    }

    /// Does the first so many steps, or all of them, in order; stops early where a driver died.
    pub(crate) fn run_to(&mut self, last: usize) {
        let steps = self.scenario.step.clone();
        for (index, verb) in (1_u64..).zip(steps.iter().take(last)) {
            if self.step(verb, index).iter().any(|&exit| exit != Exit::Finished) {
                break;
            }
        }
    }

    /// Runs a body on CPU 0, with the devices that were found, after the first step and before the others; ends the run.
    pub(crate) fn run_after_first(
        &mut self,
        body: impl FnOnce(&Cpu<'_>, &[Arc<PciDevice>]) + Send + 'static,
    ) -> RunResult {
        let steps = self.scenario.step.clone();
        self.run_to(1);
        let found = lock(&self.bench.found).clone();
        self.run_bodies(vec![Box::new(move |cpu| body(cpu, &found))]);
        for (index, verb) in (1_u64..).zip(&steps).skip(1) {
            self.step(verb, index);
        }
        self.finish()
    }

    fn run_bodies(&mut self, bodies: Vec<Body>) -> Vec<Exit> {
        let phase = *lock(&self.bench.phase);
        let spanned = bodies.into_iter().map(|body| -> Body {
            match phase {
                Some(name) => Box::new(move |cpu| {
                    let _span = cpu.span(name);
                    body(cpu);
                }),
                None => body,
            }
        });
        self.world.run(spanned.collect())
    }

    /// The span that every later step opens first.
    pub(crate) fn set_phase(&self, phase: Option<&'static str>) {
        *lock(&self.bench.phase) = phase;
    }

    /// Where interrupts go, and the bus if the devices are in this process.
    pub(crate) fn wire(&self) -> &InProc {
        &self.wire
    }

    /// The scripts of the devices, by slot.
    pub(crate) fn scripts(&self) -> impl Iterator<Item = &Script> {
        self.bench.slots.iter().filter_map(|slot| slot.script.as_deref())
    }

    /// Puts pulled-out devices back; they will be found anew.
    pub(crate) fn replug(&self) {
        if self.wire.replug_all() {
            lock(&self.bench.found).clear();
        }
    }

    /// Ends the run: what was seen so far, and what is left over.
    pub(crate) fn finish(&mut self) -> RunResult {
        step::canary::check(&self.bench);
        lock(&self.bench.held).clear();
        let kernel = self.machine.kernel();
        let mut result = std::mem::take(&mut *lock(&self.bench.result));
        for slot in &self.bench.slots {
            let resized = slot.resized();
            result.input_changed |= resized.is_some();
            result.errors.extend(resized);
            result.add_device(slot);
        }
        result.errors.extend(self.peer.as_ref().and_then(Peer::failure));
        result.faults = self.world.injectors().attrs().iter().map(FaultRow::of).collect();
        result.conclude(kernel, self.world.now(), self.bench.control.stopped());
        result
    }
}

/// The names of the kinds that are recorded.
fn recorded(trace: &Recorder) -> Vec<String> {
    let events = Kind::ALL.iter().filter(|kind| !kind.is_detail() && trace.wants(**kind));
    events.map(|kind| kind.name().to_owned()).collect()
}

/// Several who want every record.
struct Sinks(Vec<Box<dyn Sink>>);

impl Sink for Sinks {
    fn page(&mut self, page: &[(Producer, Record)]) {
        self.0.iter_mut().for_each(|sink| sink.page(page));
    }
}

fn make_driver(kit: &Kit, scenario: &Scenario) -> Result<Arc<dyn LabDriver>, LabError> {
    let name = &scenario.driver.kind;
    let kind = kit.driver(name).ok_or_else(|| LabError::NoKind { what: "driver", kind: name.clone() })?;
    (kind.make)(&scenario.driver).map_err(|source| LabError::Driver { driver: name.clone(), source })
}
