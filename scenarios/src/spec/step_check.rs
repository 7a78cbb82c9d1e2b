//! The checks of steps: their devices exist, their requests fit, the driver is bound where it must be.
//!
//! Neighbours: `check`, whose helpers it uses. Left out: devices whose size only their image tells.

use super::check::{Checked, Fault, PAGE, SECTOR, bytes_within, known_device, multiple, require, within};
use super::kind::{Kinds, find};
use super::nearest::nearest;
use super::path::KeyPath;
use super::{ClearStep, CopyStep, IoStep, Memory, Pattern, Problem, Scenario, Size, Step, StoreSpec, StoryStep};

/// What `kmalloc` gives at most; a request has one buffer.
const MOST_REQUEST: u64 = 4 << 20;
/// Days of work; more is a slip of the keyboard.
const MOST_REQUESTS: u64 = 1_000_000_000;
/// What QEMU's device can take ([`lowzone_driver::edu::MOST`]).
const MOST_DMA: u64 = lowzone_driver::edu::MOST as u64;
/// Where zone DMA32 ends.
const MOST_HOLD: u64 = 4 << 30;
const MOST_DEPTH: u64 = 65536;
/// What stays small in memory.
const MOST_BLOCKS: u64 = 65536;
const MOST_CLEAR: u64 = 1 << 30;

/// Checks all steps, in order.
pub(super) fn steps(scenario: &Scenario, kinds: &Kinds) -> Checked {
    let list = KeyPath::default().key("step");
    require(!scenario.step.is_empty(), &list, || Problem::NoSteps)?;
    let driver = &scenario.driver.kind;
    let kind = find(&kinds.drivers, driver);
    let (disks, engine) = (kind.is_some_and(|kind| kind.disks), kind.is_some_and(|kind| kind.engine));
    let mut bound = false;
    for (i, step) in scenario.step.iter().enumerate() {
        let verb = step.verb();
        let at = list.index(i).key(verb);
        match step {
            Step::Probe(_) => {
                require(!bound, &at, || Problem::BoundTwice { step: i })?;
                bound = true;
            }
            Step::Canary(_) | Step::Hold(_) | Step::Story(_) | Step::Recover(_) => {}
            _ => require(bound, &at, || Problem::NotBound { step: i, verb })?,
        }
        bound &= !matches!(step, Step::Remove(_));
        if matches!(step, Step::Io(_) | Step::Copy(_) | Step::Clear(_) | Step::RawRead(_) | Step::IrqAlloc(_)) {
            require(disks, &at, || Problem::NoDisks { verb, driver: driver.clone() })?;
        }
        if matches!(step, Step::Dma(_)) {
            require(engine, &at, || Problem::NoEngine { verb, driver: driver.clone() })?;
        }
        if matches!(step, Step::Packets(_) | Step::RawPacket(_)) {
            let packets = kind.is_some_and(|kind| kind.packets);
            require(packets, &at, || Problem::NoPackets { verb, driver: driver.clone() })?;
        }
        let device = |key: &str, name: &str| known_device(&at.key(key), name, &scenario.device, false);
        match step {
            Step::Probe(_) | Step::InFlight(_) | Step::Shutdown(_) | Step::Remove(_) | Step::Recover(_) => {}
            Step::Io(io) => {
                device("device", &io.device)?;
                io_step(&at, io, scenario)?;
            }
            Step::Exercise(exercise) => {
                device("device", &exercise.device)?;
                within(&at.key("times"), exercise.times, 1, MOST_REQUESTS)?;
            }
            Step::Dma(dma) => {
                device("device", &dma.device)?;
                bytes_within(&at.key("bytes"), dma.bytes, 1, MOST_DMA)?;
                dma.mask.map_or(Ok(()), |mask| within(&at.key("mask"), mask, 1, 64))?;
            }
            Step::Packets(packets) => {
                device("device", &packets.device)?;
                within(&at.key("count"), packets.count, 1, MOST_REQUESTS)?;
                within(&at.key("burst"), packets.burst, 1, 1024)?;
                within(&at.key("pieces"), packets.pieces, 1, lowzone_driver::net::FRAGS as u64)?;
            }
            Step::RawPacket(raw) => device("device", &raw.device)?,
            Step::Story(told) => story_step(&at, told, kinds)?,
            Step::Hold(hold) => bytes_within(&at.key("below"), hold.below, PAGE, MOST_HOLD)?,
            Step::Copy(copy) => {
                device("from", &copy.from)?;
                device("to", &copy.to)?;
                copy_step(&at, copy, scenario)?;
            }
            Step::Clear(clear) => {
                device("device", &clear.device)?;
                clear_step(&at, clear, scenario)?;
            }
            Step::RawRead(raw) => {
                device("device", &raw.device)?;
                require(raw.memory != Memory::Coherent, &at.key("memory"), || Problem::RawCoherent)?;
            }
            Step::IrqAlloc(irq) => device("device", &irq.device)?,
            Step::Canary(canary) => device("device", &canary.device)?,
        }
    }
    Ok(())
}

/// The story exists, and so does the mistake.
fn story_step(at: &KeyPath, told: &StoryStep, kinds: &Kinds) -> Checked {
    let names: Vec<_> = kinds.stories.iter().map(|story| story.name).collect();
    let Some(story) = kinds.stories.iter().find(|story| story.name == told.name) else {
        return Err(unknown(at, "name", &told.name, &names));
    };
    match &told.mistake {
        Some(mistake) if !story.mistakes.contains(&mistake.as_str()) => {
            Err(unknown(at, "mistake", mistake, story.mistakes))
        }
        _ => Ok(()),
    }
}

fn unknown(at: &KeyPath, key: &str, value: &str, valid: &[&str]) -> Fault {
    let problem = Problem::UnknownValue {
        key: key.to_owned(),
        value: value.to_owned(),
        near: nearest(value, valid.iter().copied()).map(str::to_owned),
        valid: valid.iter().map(|&name| name.to_owned()).collect(),
    };
    Fault::new(problem, vec![at.key(key)])
}

fn io_step(at: &KeyPath, io: &IoStep, scenario: &Scenario) -> Checked {
    within(&at.key("requests"), io.requests, 1, MOST_REQUESTS)?;
    within(&at.key("depth"), io.depth, 1, MOST_DEPTH)?;
    io.submitters.map_or(Ok(()), |most| within(&at.key("submitters"), most, 1, scenario.machine.cpus.into()))?;
    multiple(&at.key("start"), io.start, SECTOR)?;
    let (foreign, pattern): (&[_], _) = match io.pattern {
        Pattern::WriteRead => (&[("min_bytes", io.min_bytes), ("max_bytes", io.max_bytes)], "write-read"),
        Pattern::Random => (&[("bytes", io.bytes)], "random"),
    };
    for &(key, value) in foreign {
        require(value.is_none(), &at.key(key), || Problem::OtherPattern { key, pattern })?;
    }
    let seeded = io.pattern == Pattern::Random || io.seed.is_none();
    require(seeded, &at.key("seed"), || Problem::OtherPattern { key: "seed", pattern })?;
    lengths(at, io)?;
    let writable = scenario.device(&io.device).is_none_or(|device| !device.read_only);
    require(writable, &at.key("device"), || Problem::ReadOnly { verb: "io", device: io.device.clone() })?;
    fits(at, io, scenario)
}

/// The lengths of requests are sectors, and in order.
fn lengths(at: &KeyPath, io: &IoStep) -> Checked {
    let (min, max) = io.lengths().into_inner();
    let random = io.pattern == Pattern::Random;
    let keys = if random { ["min_bytes", "max_bytes"] } else { ["bytes", "bytes"] };
    for (key, bytes) in keys.into_iter().zip([min, max]) {
        bytes_within(&at.key(key), Size(bytes), SECTOR, MOST_REQUEST)?;
    }
    if min > max {
        let problem = Problem::Reversed { min: Size(min), max: Size(max) };
        return Err(Fault::new(problem, keys.map(|key| at.key(key)).to_vec()));
    }
    let requests = io.requests;
    require(random || requests.is_multiple_of(2), &at.key("requests"), || Problem::OddRequests { requests })
}

/// The requests lie on the device, where its size is known.
fn fits(at: &KeyPath, io: &IoStep, scenario: &Scenario) -> Checked {
    let Some(size) = size_of(&io.device, scenario) else { return Ok(()) };
    let longest = *io.lengths().end();
    let span = match io.pattern {
        Pattern::WriteRead => longest.saturating_mul(io.requests / 2),
        Pattern::Random => longest,
    };
    let end = io.start.0.saturating_add(span);
    if end <= size {
        return Ok(());
    }
    let mut paths: Vec<KeyPath> = ["requests", "bytes", "max_bytes", "start"].map(|key| at.key(key)).to_vec();
    if io.pattern == Pattern::Random {
        paths.swap(0, 2);
    }
    let place = scenario.device.iter().position(|device| device.name == io.device).unwrap_or_default();
    paths.push(KeyPath::default().key("device").index(place).key("size"));
    Err(Fault::new(Problem::PastEnd { device: io.device.clone(), end, size }, paths))
}

fn copy_step(at: &KeyPath, copy: &CopyStep, scenario: &Scenario) -> Checked {
    within(&at.key("depth"), copy.depth, 1, MOST_DEPTH)?;
    bytes_within(&at.key("bytes_per_request"), copy.bytes_per_request, SECTOR, MOST_REQUEST)?;
    let to = at.key("to");
    require(copy.from != copy.to, &to, || Problem::SameDevice { device: copy.to.clone() })?;
    let writable = scenario.device(&copy.to).is_none_or(|device| !device.read_only);
    require(writable, &to, || Problem::ReadOnly { verb: "copy", device: copy.to.clone() })?;
    let (Some(need), Some(room)) = (size_of(&copy.from, scenario), size_of(&copy.to, scenario)) else { return Ok(()) };
    let (from, onto) = (copy.from.clone(), copy.to.clone());
    require(need <= room, &to, || Problem::CopyTooLarge { from, to: onto, need, room })
}

fn clear_step(at: &KeyPath, clear: &ClearStep, scenario: &Scenario) -> Checked {
    within(&at.key("blocks"), clear.blocks, 2, MOST_BLOCKS)?;
    bytes_within(&at.key("bytes"), clear.bytes, SECTOR, MOST_REQUEST)?;
    multiple(&at.key("start"), clear.start, SECTOR)?;
    let all = clear.blocks * clear.bytes.bytes();
    let end = clear.start.0.saturating_add(all);
    let size = size_of(&clear.device, scenario).unwrap_or(u64::MAX).min(clear.start.0.saturating_add(MOST_CLEAR));
    if end > size {
        let paths = ["blocks", "bytes", "start"].map(|key| at.key(key)).to_vec();
        return Err(Fault::new(Problem::PastEnd { device: clear.device.clone(), end, size }, paths));
    }
    let writable = scenario.device(&clear.device).is_none_or(|device| !device.read_only);
    let device = clear.device.clone();
    require(writable, &at.key("device"), || Problem::ReadOnly { verb: "clear", device })
}

/// The bytes of a device, unless its image must tell.
fn size_of(name: &str, scenario: &Scenario) -> Option<u64> {
    let mut name = name;
    // A `size_of` names an earlier device, so this ends; the bound is for scenarios made by hand.
    for _ in 0..=scenario.device.len() {
        match scenario.device(name)?.store()? {
            StoreSpec::Memory(bytes) => return Some(bytes),
            StoreSpec::Image(_) => return None,
            StoreSpec::SizeOf(other) => name = other,
        }
    }
    None
}
