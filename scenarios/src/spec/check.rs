//! What a typed scenario must also fulfil: limits, and that its parts fit each other.
//!
//! The first problem found is reported. Neighbours: `step_check`, which does the steps; `load`, which finds the place
//! in the text. Left out: what depends on the host or on a file (image sizes), and on the kernel (masks too small).

use lowzone_guest_mem::arch::PAE_LIMIT;
use lowzone_guest_mem::ram::HIGH_START;

use super::kind::{Kind, Kinds, find};
use super::path::KeyPath;
use super::step_check::steps;
use super::{Arch, Device, Driver, Expect, Machine, Options, Problem, Scenario, Size, nearest::nearest};

/// A problem and the values it is about: the one to point at, then others that took part in it.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Fault {
    pub(super) problem: Box<Problem>,
    pub(super) paths: Vec<KeyPath>,
}

impl Fault {
    /// A problem about the first of some paths, in which the others took part.
    pub(super) fn new(problem: Problem, paths: Vec<KeyPath>) -> Self {
        Self { problem: Box::new(problem), paths }
    }
}

/// The outcome of one check.
pub(super) type Checked = Result<(), Fault>;

pub(super) const PAGE: u64 = 4096;
/// Data is measured in sectors of this many bytes.
pub(super) const SECTOR: u64 = 512;
/// More RAM, or a larger store, than any host here could back.
const MOST_BYTES: u64 = 1 << 40;
/// The PCI window starts here.
const MOST_LOW: u64 = 3584 << 20;
const MOST_QUEUE: u64 = 32768;
/// Slot 0 is the host bridge.
const MOST_DEVICES: usize = 31;

/// Checks a whole scenario of a program with these kinds.
pub(super) fn check(scenario: &Scenario, kinds: &Kinds) -> Checked {
    let root = KeyPath::default();
    let lines = scenario.story.lines().count();
    require(lines == 1 && !scenario.story.trim().is_empty(), &root.key("story"), || Problem::Story { lines })?;
    machine(&scenario.machine)?;
    devices(&scenario.device, &kinds.devices)?;
    driver(&scenario.driver, &kinds.drivers)?;
    steps(scenario, kinds)?;
    super::fault::check(&scenario.fault)?;
    expect(scenario, &scenario.expect)
}

/// Fails with a problem about one value unless the condition holds.
pub(super) fn require(holds: bool, path: &KeyPath, problem: impl FnOnce() -> Problem) -> Checked {
    if holds { Ok(()) } else { Err(Fault::new(problem(), vec![path.clone()])) }
}

/// Fails unless a number lies in its limits.
pub(super) fn within(path: &KeyPath, value: impl Into<u64>, min: u64, max: u64) -> Checked {
    let (key, value) = (path.leaf().to_owned(), value.into());
    require((min..=max).contains(&value), path, || Problem::OutOfRange { key, value, min, max })
}

/// Fails unless a number of bytes lies in its limits and is a multiple of the smallest.
pub(super) fn bytes_within(path: &KeyPath, value: Size, min: u64, max: u64) -> Checked {
    let key = path.leaf().to_owned();
    let problem = || Problem::SizeOutOfRange { key, value, min: Size(min), max: Size(max) };
    require((min..=max).contains(&value.0), path, problem)?;
    multiple(path, value, min)
}

/// Fails unless a number of bytes is a multiple of another.
pub(super) fn multiple(path: &KeyPath, value: Size, of: u64) -> Checked {
    let Size(value) = value;
    require(value.is_multiple_of(of), path, || Problem::NotMultiple { key: path.leaf().to_owned(), value, of })
}

fn power_of_two(path: &KeyPath, value: u64) -> Checked {
    require(value.is_power_of_two(), path, || Problem::NotPowerOfTwo { key: path.leaf().to_owned(), value })
}

fn machine(machine: &Machine) -> Checked {
    let at = KeyPath::default().key("machine");
    let (ram, low, pool) = (at.key("ram"), at.key("low"), at.key("swiotlb"));
    let most = match machine.arch {
        Arch::X86_64 => MOST_BYTES,
        Arch::X86_32 => PAE_LIMIT - HIGH_START + machine.low_bytes(),
    };
    bytes_within(&ram, machine.ram, PAGE, most)?;
    if let Some(bytes) = machine.low {
        bytes_within(&low, bytes, PAGE, MOST_LOW)?;
        if bytes > machine.ram {
            let problem = Problem::LowBeyondRam { low: bytes, ram: machine.ram };
            return Err(Fault::new(problem, vec![low, ram]));
        }
    }
    within(&at.key("cpus"), machine.cpus, 1, 64)?;
    if machine.dma_offset.0 > 0 {
        bytes_within(&at.key("dma_offset"), machine.dma_offset, PAGE, MOST_BYTES)?;
    }
    if machine.swiotlb.0 >= machine.lowmem_bytes() {
        let problem = Problem::PoolTooLarge { pool: machine.swiotlb, low: Size(machine.lowmem_bytes()) };
        return Err(Fault::new(problem, vec![pool, low, ram]));
    }
    Ok(())
}

fn devices(devices: &[Device], kinds: &[Kind]) -> Checked {
    let list = KeyPath::default().key("device");
    for (i, device) in devices.iter().enumerate() {
        let at = list.index(i);
        let (name, earlier) = (at.key("name"), devices.get(..i).unwrap_or_default());
        let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        require(!device.name.is_empty() && device.name.chars().all(usable), &name, || Problem::DeviceName {
            name: device.name.clone(),
        })?;
        require(earlier.iter().all(|other| other.name != device.name), &name, || Problem::DuplicateDevice {
            name: device.name.clone(),
        })?;
        let kind = known_kind(&at, &device.kind, &device.options, kinds)?;
        store(&at, device, earlier, kind)?;
        within(&at.key("width"), device.width, 1, 64)?;
        within(&at.key("queues"), device.queues, 1, 64)?;
        queue_size(&at.key("queue_size"), device.queue_size)?;
        within(&at.key("seg_max"), device.seg_max, 1, MOST_QUEUE - 2)?;
        within(&at.key("blk_size"), device.blk_size, SECTOR, PAGE)?;
        power_of_two(&at.key("blk_size"), device.blk_size.into())?;
    }
    let count = devices.len();
    require(count <= MOST_DEVICES, &list.index(MOST_DEVICES), || Problem::TooManyDevices { count, max: MOST_DEVICES })
}

/// The kind exists, and it knows every option.
fn known_kind<'a>(at: &KeyPath, name: &str, options: &Options, kinds: &'a [Kind]) -> Result<&'a Kind, Fault> {
    let Some(kind) = find(kinds, name) else {
        let names = || kinds.iter().map(|kind| kind.name);
        let problem = Problem::UnknownValue {
            key: "kind".to_owned(),
            value: name.to_owned(),
            near: nearest(name, names()).map(str::to_owned),
            valid: names().map(str::to_owned).collect(),
        };
        return Err(Fault::new(problem, vec![at.key("kind")]));
    };
    let Some(key) = options.keys().find(|key| !kind.options.contains(key)) else { return Ok(kind) };
    let problem = Problem::UnknownKey {
        key: key.to_owned(),
        near: nearest(key, kind.options.iter().copied()).map(str::to_owned),
        elsewhere: Vec::new(),
        valid: kind.options.iter().map(|&key| key.to_owned()).collect(),
    };
    Err(Fault::new(problem, vec![at.key("options").key(key)]))
}

/// A device whose kind stores data has exactly one store, and it can be made; another has none.
fn store(at: &KeyPath, device: &Device, earlier: &[Device], kind: &Kind) -> Checked {
    let name = || device.name.clone();
    let given =
        [("size", device.size.is_some()), ("image", device.image.is_some()), ("size_of", device.size_of.is_some())];
    let keys: Vec<&str> = given.iter().filter(|(_, there)| *there).map(|(key, _)| *key).collect();
    if let (false, Some(key)) = (kind.disks, keys.first()) {
        let problem = Problem::NeedlessStore { device: name(), kind: device.kind.clone() };
        return Err(Fault::new(problem, vec![at.key(key)]));
    }
    match keys.as_slice() {
        [] if !kind.disks => return Ok(()),
        [_] => {}
        [] => return require(false, at, || Problem::NoStore { device: name() }),
        many => {
            let problem =
                Problem::ManyStores { device: name(), keys: many.iter().map(|&key| key.to_owned()).collect() };
            return Err(Fault::new(problem, many.iter().rev().map(|key| at.key(key)).collect()));
        }
    }
    if let Some(size) = device.size {
        bytes_within(&at.key("size"), size, SECTOR, MOST_BYTES)?;
    }
    let unset = device.image.as_deref() == Some("");
    require(!unset, &at.key("image"), || Problem::ImageUnset { device: name() })?;
    device.size_of.as_deref().map_or(Ok(()), |other| known_device(&at.key("size_of"), other, earlier, true))
}

/// Fails unless a device of this name is there.
pub(super) fn known_device(path: &KeyPath, name: &str, devices: &[Device], earlier: bool) -> Checked {
    require(devices.iter().any(|device| device.name == name), path, || {
        let names = || devices.iter().map(|device| device.name.as_str());
        let near = nearest(name, names()).map(str::to_owned);
        Problem::NoDevice { device: name.to_owned(), earlier, near, valid: names().map(str::to_owned).collect() }
    })
}

fn queue_size(path: &KeyPath, size: u16) -> Checked {
    within(path, size, 1, MOST_QUEUE)?;
    power_of_two(path, size.into())
}

fn driver(driver: &Driver, kinds: &[Kind]) -> Checked {
    let at = KeyPath::default().key("driver");
    known_kind(&at, &driver.kind, &driver.options, kinds)?;
    within(&at.key("dma_mask"), driver.dma_mask, 1, 64)?;
    within(&at.key("coherent_mask"), driver.coherent_bits(), 1, 64)?;
    within(&at.key("queues"), driver.queues, 0, 64)?;
    if driver.queue_size != 0 {
        queue_size(&at.key("queue_size"), driver.queue_size)?;
    }
    within(&at.key("deadline_ms"), driver.deadline_ms, 1, 3_600_000)
}

fn expect(scenario: &Scenario, expect: &Expect) -> Checked {
    let at = KeyPath::default().key("expect");
    for (i, name) in expect.findings.iter().enumerate() {
        let word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let path = at.key("findings").index(i);
        require(name.split('-').all(word), &path, || Problem::FindingName { name: name.clone() })?;
    }
    let placed = scenario.step.iter().any(|step| matches!(step, super::Step::Canary(_)));
    require(expect.canary.is_none() || placed, &at.key("canary"), || Problem::NoCanary)
}
