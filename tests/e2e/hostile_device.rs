//! Devices that lie: in the used ring, in the status byte, in their registers. No panic, no hang, no false success.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use lowzone::world::{Exit, Random};
use lowzone_device::blk::BlkOptions as DeviceOptions;
use lowzone_device::pci::{AccessError, PciFunction, Width};
use lowzone_driver::blk::{BlkDriver, BlkError, BlkOptions, Completed, Data, Op, Request};
use lowzone_driver::bus::PciBus;
use lowzone_driver::pci::enumerate;
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::kernel::MachineConfig;
use lowzone_guest_mem::{Cpu, KBuf};
use lowzone_tests::played::{Chain, Played};
use lowzone_tests::rig::{Rig, Serve};
use proptest::prelude::*;

const QUEUE: u16 = 16;
const BYTES: usize = 512;
/// Where a message to CPU 0 goes.
const MSI: u64 = 0xfee0_0000;

/// What the device does with one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    Honest,
    /// Returns a number that is no descriptor.
    BadId(u32),
    /// Returns a descriptor in the middle of a chain.
    NotAHead,
    /// Claims more bytes than it was given.
    TooLong(u32),
    /// Claims success and fewer bytes than asked for.
    Short,
    /// Leaves this status.
    Status(u8),
    /// Writes no status at all.
    NoStatus,
    /// Returns the chain twice.
    Twice,
    /// Never returns it.
    Keep,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => Just(Act::Honest),
        1 => (u32::from(QUEUE)..).prop_map(Act::BadId),
        1 => Just(Act::NotAHead),
        1 => (1_u32..1 << 31).prop_map(Act::TooLong),
        1 => Just(Act::Short),
        1 => (1_u8..).prop_map(Act::Status),
        1 => Just(Act::NoStatus),
        1 => Just(Act::Twice),
        1 => Just(Act::Keep),
    ]
}

/// What the driver may say about a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Good,
    Short,
    Status(u8),
    /// The queue was broken by a lie, this one's or an earlier one's.
    Dead,
    TimedOut,
}

/// What the driver must say, by request: a lie about the ring breaks the queue from there on.
fn fates(acts: impl Iterator<Item = Act>, overrun: bool) -> Vec<Fate> {
    let mut broken = overrun;
    let mut fates = Vec::new();
    for act in acts {
        let fate = match act {
            Act::Keep => Fate::TimedOut,
            Act::BadId(_) | Act::NotAHead | Act::TooLong(_) => Fate::Dead,
            _ if broken => Fate::Dead,
            // The first of two returns is true.
            Act::Honest | Act::Twice => Fate::Good,
            Act::Short => Fate::Short,
            Act::Status(status) => Fate::Status(status),
            Act::NoStatus => Fate::Status(0xff),
        };
        broken |= matches!(act, Act::BadId(_) | Act::NotAHead | Act::TooLong(_) | Act::Twice);
        fates.push(fate);
    }
    // A queue that is broken is so for everybody who still waits.
    for fate in &mut fates {
        if broken && *fate == Fate::TimedOut {
            *fate = Fate::Dead;
        }
    }
    fates
}

fn content(index: usize) -> [u8; BYTES] {
    [u8::try_from(index).unwrap() + 1; BYTES]
}

fn play(device: &mut Played, chain: &Chain, index: usize, act: Act) {
    let status = chain.descs.last().unwrap().addr;
    if !matches!(act, Act::Keep | Act::NoStatus) {
        for desc in chain.data().iter().filter(|desc| desc.write) {
            device.write(desc.addr, &content(index));
        }
        device.write(status, &[if let Act::Status(status) = act { status } else { 0 }]);
    }
    let id = u32::from(chain.head);
    match act {
        Act::Keep => {}
        Act::BadId(id) => device.push(id, chain.room()),
        // Chains are three descriptors in a row, or one with a table: the one after a head heads nothing.
        Act::NotAHead => device.push((id + 1) % u32::from(QUEUE), 1),
        Act::TooLong(more) => device.push(id, chain.room().saturating_add(more)),
        Act::Short => device.push(id, chain.room() - 1),
        Act::Twice => {
            device.push(id, chain.room());
            device.push(id, chain.room());
        }
        Act::Honest | Act::Status(_) | Act::NoStatus => device.push(id, chain.room()),
    }
}

fn fate_of(completed: &Completed, op: Op, index: usize) -> Fate {
    match completed.result {
        Ok(()) => {
            let Some(Data::Streaming(buffer)) = &completed.data else { panic!("success without its data") };
            let mut seen = [0; BYTES];
            buffer.read_at(0, &mut seen).unwrap();
            assert!(op == Op::Write || seen == content(index), "false success of request {index}");
            Fate::Good
        }
        Err(BlkError::Short { .. }) => Fate::Short,
        Err(BlkError::Io) => Fate::Status(1),
        Err(BlkError::Unsupported) => Fate::Status(2),
        Err(BlkError::BadStatus(status)) => Fate::Status(status),
        Err(BlkError::Dead) => Fate::Dead,
        Err(BlkError::Wait(_)) => Fate::TimedOut,
    }
}

/// Submits everything, lets the device answer, interrupts, collects.
fn converse(
    cpu: &Cpu<'_>,
    rig: (&BlkDriver, &Arc<lowzone_driver::pci::PciDevice>),
    raise: &dyn Fn(u32),
    acts: &[(Op, Act)],
    more: u16,
) -> Vec<Fate> {
    let (driver, pci) = rig;
    assert!(lowzone_driver::bind(cpu, driver, pci).unwrap());
    let disk = driver.disk(pci.at()).unwrap();
    let ring = disk.ring_places(cpu).into_iter().find(|place| place.what == "ring").unwrap();
    let mut device = Played::new(cpu.kernel(), ring.phys, QUEUE);
    let mut pending = Vec::new();
    for &(op, _) in acts {
        let data = Data::Streaming(KBuf::kmalloc(cpu, BYTES, GFP_KERNEL).unwrap());
        pending.push(disk.submit(cpu, 0, Request { op, sector: 0, data }).unwrap());
    }
    let chains = device.take();
    assert_eq!(chains.len(), acts.len());
    for (index, (chain, &(_, act))) in chains.iter().zip(acts).enumerate() {
        play(&mut device, chain, index, act);
    }
    device.publish(more);
    raise(*disk.irqs().last().unwrap());
    let fates = pending.into_iter().zip(acts).enumerate();
    let fates = fates.map(|(index, (pending, &(op, _)))| fate_of(&disk.wait(cpu, pending), op, index)).collect();
    drop(disk);
    lowzone_driver::unbind(cpu, driver, pci);
    fates
}

fn run(acts: Vec<(Op, Act)>, more: u16, seed: u64) {
    let config = MachineConfig { cpus: 1, ..MachineConfig::default() };
    let options = DeviceOptions { queue_size: QUEUE, ..DeviceOptions::default() };
    let mut rig = Rig::new(config, options, vec![0; 4096], Serve::Nobody, seed);
    rig.world.set_fuel(1_000_000);
    let (pci, sink) = (rig.disk(), rig.sink.clone());
    let kept = acts.iter().filter(|(_, act)| *act == Act::Keep).count();
    let twice = acts.iter().filter(|(_, act)| *act == Act::Twice).count();
    // A claim of more than was returned must be one of more than is in flight, or it would be a chain returned early.
    let more = if more > 0 { more + u16::try_from(kept).unwrap() } else { 0 };
    let overrun = usize::from(more) + twice > kept;
    let wanted = fates(acts.iter().map(|&(_, act)| act), overrun);
    let told = Arc::new(Mutex::new(Vec::new()));
    let seen = told.clone();
    let given = acts.clone();
    let exit = rig.run(Box::new(move |cpu| {
        let driver = BlkDriver::new(BlkOptions { timeout: 1_000_000, ..BlkOptions::default() });
        let raise = |irq| sink.msi(1, MSI, irq);
        *told.lock().unwrap() = converse(cpu, (&driver, &pci), &raise, &given, more);
    }));
    let panics: Vec<_> = rig.kernel().findings().iter().map(ToString::to_string).collect();
    assert_eq!(exit, Exit::Finished, "{acts:?}: {panics:?}");
    assert_eq!(*seen.lock().unwrap(), wanted, "{acts:?}, {more} more, overrun {overrun}");
    rig.assert_clean(&format!("{acts:?}"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_device_lies_in_the_used_ring_are_never_believed(
        acts in prop::collection::vec((prop_oneof![Just(Op::Read), Just(Op::Write)], act()), 1..5),
        more in prop_oneof![4 => Just(0_u16), 1 => 1..60_000_u16],
        seed: u64,
    ) {
        run(acts, more, seed);
    }
}

/// A function whose registers answer garbage now and then.
struct Liar {
    inner: Arc<dyn PciFunction>,
    random: Mutex<Random>,
    one_in: u64,
    lies: Arc<AtomicU32>,
}

impl Liar {
    fn bend(&self, truth: u64) -> u64 {
        let mut random = self.random.lock().unwrap();
        if random.below(self.one_in) != 0 {
            return truth;
        }
        self.lies.fetch_add(1, Ordering::Relaxed);
        match random.below(4) {
            0 => 0,
            1 => u64::MAX,
            2 => truth ^ (1 << random.below(64)),
            _ => random.next(),
        }
    }
}

impl PciFunction for Liar {
    fn config_read(&self, offset: u16, width: Width) -> u32 {
        let lie = self.bend(u64::from(self.inner.config_read(offset, width))) & width.all_ones();
        u32::try_from(lie & u64::from(u32::MAX)).unwrap()
    }

    fn config_write(&self, offset: u16, width: Width, value: u32) {
        self.inner.config_write(offset, width, value);
    }

    fn decode(&self, addr: u64, width: Width) -> Option<(u8, u64)> {
        self.inner.decode(addr, width)
    }

    fn bar_read(&self, bar: u8, offset: u64, width: Width) -> Result<u64, AccessError> {
        self.inner.bar_read(bar, offset, width).map(|truth| self.bend(truth) & width.all_ones())
    }

    fn bar_write(&self, bar: u8, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        self.inner.bar_write(bar, offset, width, value)
    }

    fn reset(&self) {
        self.inner.reset();
    }
}

/// Probes, reads a sector and removes; whether the probe went well.
fn try_out(cpu: &Cpu<'_>, driver: &BlkDriver, pci: &Arc<lowzone_driver::pci::PciDevice>) -> bool {
    if !matches!(lowzone_driver::bind(cpu, driver, pci), Ok(true)) {
        return false;
    }
    let disk = driver.disk(pci.at()).unwrap();
    let data = Data::Streaming(KBuf::kmalloc(cpu, BYTES, GFP_KERNEL).unwrap());
    if let Ok(pending) = disk.submit(cpu, 0, Request::read(0, data)) {
        let completed = disk.wait(cpu, pending);
        if let (Ok(()), Some(Data::Streaming(buffer))) = (completed.result, completed.data) {
            let mut seen = [0; BYTES];
            buffer.read_at(0, &mut seen).unwrap();
            assert_eq!(seen, [0x5a; BYTES], "false success");
        }
    }
    drop(disk);
    lowzone_driver::unbind(cpu, driver, pci);
    true
}

#[test]
fn hostile_device_registers_that_answer_garbage_fail_the_probe_or_the_request_and_nothing_else() {
    let (mut bound, mut lies_told) = (0, 0);
    for seed in 0..600_u64 {
        let lies = Arc::new(AtomicU32::new(0));
        let one_in = [4, 20, 100][usize::try_from(seed % 3).unwrap()];
        let counted = lies.clone();
        let wrap = move |inner| -> Arc<dyn PciFunction> {
            Arc::new(Liar { inner, random: Mutex::new(Random::new(seed)), one_in, lies: counted.clone() })
        };
        let store = vec![0x5a; 1 << 20];
        let config = MachineConfig::default();
        let mut rig = Rig::wrapped(config, DeviceOptions::default(), store, Serve::Device, seed, &wrap);
        rig.world.set_fuel(10_000_000);
        let bus: Arc<dyn PciBus> = rig.bus.clone();
        let dma = rig.dma.clone();
        let found = enumerate(&bus, |_| Some(dma.clone())).unwrap_or_default();
        let Some(pci) = found.into_iter().next() else { continue };
        let went_well = Arc::new(AtomicU32::new(0));
        let well = went_well.clone();
        let exit = rig.run(Box::new(move |cpu| {
            let options = BlkOptions { timeout: 1_000_000_000, ..BlkOptions::default() };
            well.store(u32::from(try_out(cpu, &BlkDriver::new(options), &pci)), Ordering::Relaxed);
        }));
        let texts: Vec<_> = rig.kernel().findings().iter().map(ToString::to_string).collect();
        assert_eq!(exit, Exit::Finished, "seed {seed}: {texts:?}");
        let bad = ["driver-panic", "hang", "deadlock", "out-of-bounds", "bad-free", "lab-lock-held", "pending-dma"];
        assert!(rig.findings().iter().all(|name| !bad.contains(name)), "seed {seed}: {texts:?}");
        assert!(rig.leaks().is_empty() && rig.bus.vectors() == 0, "seed {seed}: {:?}", rig.leaks());
        rig.kernel().validate().unwrap();
        bound += went_well.load(Ordering::Relaxed);
        lies_told += lies.load(Ordering::Relaxed);
    }
    println!("{lies_told} lies told, {bound} of 600 probes went well in spite of them");
    assert!(bound > 0 && lies_told > 600);
}
