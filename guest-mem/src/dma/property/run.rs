//! A machine, its shadow, and the steps that both take; after each they are compared.
//!
//! A step is one number, from which its dice fall: a run of a million is a seed, and one that goes wrong shrinks to the
//! few numbers that it needs. Neighbours: `maps`, `access` and `regions` have the steps.

use super::held::{Mem, Whole, peek};
use super::regions::Cut;
use super::shadow::{Check, Shadow, ensure};
use crate::addr::PhysAddr;
use crate::cpu::Cpu;
use crate::dma::coherent::Coherent;
use crate::dma::direction::Dir;
use crate::dma::pool::{Block, DmaPool, dma_pool_create};
use crate::dma::{DmaDevice, DmaPort, dma_bit_mask};
use crate::finding::FindingKind;
use crate::kernel::{Kernel, MachineConfig};
use crate::testing::Lab;
use crate::testing::shadow::Dice;

/// Buffers that are held at most, and mappings.
const BUFFERS: usize = 64;
pub(super) const MAPPINGS: usize = 64;
/// Steps after which the tables are compared, and all bytes.
const TABLES: u64 = 1000;
const BYTES: u64 = 50_000;

/// Memory that the driver holds.
pub(super) struct Buffer {
    /// `None` while a mapping owns it.
    pub(super) mem: Mem,
    pub(super) spans: Vec<(u64, u64)>,
    /// Raw mappings of parts of it.
    pub(super) parts: usize,
}

/// How a mapping is held.
pub(super) enum How {
    /// It owns its memory; whether a part of it can be lent.
    Whole(Box<dyn Whole>, bool),
    /// By numbers: of which buffer.
    Part(usize, bool),
}

/// A live mapping.
pub(super) struct Live {
    pub(super) how: How,
    pub(super) dev: usize,
    pub(super) dir: Dir,
    pub(super) ids: Vec<u64>,
    pub(super) spans: Vec<(u64, u64)>,
}

/// How often what was seen.
#[derive(Default, Debug)]
pub(super) struct Seen {
    pub(super) granted: u64,
    pub(super) moved: u64,
    pub(super) maps: u64,
    /// Entries of lists that joined the segment before them.
    pub(super) merged: u64,
    pub(super) bounced: u64,
    pub(super) failed: u64,
    pub(super) registers: u64,
    /// By name.
    pub(super) found: std::collections::BTreeMap<&'static str, u64>,
}

/// What a step is given.
pub(super) struct Turn<'a> {
    pub(super) lab: &'a Lab,
    pub(super) dice: Dice,
}

impl Turn<'_> {
    pub(super) fn kernel(&self) -> &'static Kernel {
        self.lab.kernel()
    }

    /// From 1 to `most`.
    pub(super) fn some(&mut self, most: usize) -> usize {
        1 + self.dice.index(most.max(1))
    }

    /// A part of `len` bytes: its first, and how many.
    pub(super) fn part(&mut self, len: usize, most: usize) -> (usize, usize) {
        let from = self.dice.index(len);
        (from, self.some((len - from).min(most)))
    }
}

/// All but the machine.
pub(super) struct State {
    pub(super) lives: Vec<Live>,
    pub(super) blocks: Vec<Block>,
    pub(super) pool: Option<DmaPool>,
    pub(super) cuts: Vec<Cut>,
    pub(super) regions: Vec<(usize, Coherent)>,
    pub(super) buffers: Vec<Option<Buffer>>,
    pub(super) ports: Vec<DmaPort>,
    pub(super) devices: Vec<DmaDevice>,
    pub(super) shadow: Shadow,
    pub(super) seen: Seen,
}

pub(super) struct Run {
    // Before the machine that it lives on.
    pub(super) state: State,
    lab: Lab,
    steps: u64,
}

/// Three devices: of 32 bits, of 64 that keep an offset in a page, of as few as the machine allows.
fn devices(lab: &Lab) -> Vec<DmaDevice> {
    let cpu = lab.cpu();
    let device = |name, bits: &[u8]| {
        let device = DmaDevice::new(lab.machine.kernel_ref(), name);
        let set = |&bits: &u8| device.set_mask_and_coherent(&cpu, dma_bit_mask(bits)).is_ok();
        assert!(bits.iter().any(set));
        device
    };
    let all = vec![device("0000:00:04.0", &[32]), device("0000:00:05.0", &[64]), device("0000:00:06.0", &[24, 28])];
    all[1].set_min_align_mask(0xfff).unwrap();
    all
}

impl Run {
    pub(super) fn new(config: MachineConfig) -> Self {
        let lab = Lab::of(config);
        let devices = devices(&lab);
        let bounce = lab.kernel().swiotlb.lock().as_ref().map(|pool| (pool.base().get(), pool.bytes()));
        let shadow = Shadow::new(config, &devices, bounce);
        let pool = dma_pool_create(&lab.cpu(), "blocks", &devices[0], super::regions::BLOCK, 0, 0).unwrap();
        let state = State {
            lives: Vec::new(),
            blocks: Vec::new(),
            pool: Some(pool),
            cuts: Vec::new(),
            regions: Vec::new(),
            buffers: (0..BUFFERS).map(|_| None).collect(),
            ports: devices.iter().map(DmaPort::new).collect(),
            devices,
            shadow,
            seen: Seen::default(),
        };
        Self { state, lab, steps: 0 }
    }

    /// One step, and what is wrong after it.
    pub(super) fn step(&mut self, draw: u64) -> Check {
        let Self { state, lab, steps } = self;
        let mut turn = Turn { lab, dice: Dice::new(draw) };
        let cpu = lab.cpu_number(u32::from(turn.dice.once_in(2)));
        state.step(&cpu, &mut turn)?;
        state.check_findings(lab.kernel())?;
        *steps += 1;
        if steps.is_multiple_of(TABLES) {
            lab.solo.requests();
            state.check_tables()?;
        }
        if steps.is_multiple_of(BYTES) {
            state.check_all(lab.kernel())?;
        }
        Ok(())
    }

    /// As many steps as are wanted from a seed; of a wrong one its number too.
    pub(super) fn steps(&mut self, seed: u64, count: u64) -> Check {
        let mut dice = Dice::new(seed);
        for step in 0..count {
            let draw = dice.roll(1 << 31) << 32 | dice.roll(1 << 31);
            self.step(draw).map_err(|why| format!("seed {seed}, step {step}: {why}"))?;
        }
        Ok(())
    }

    /// Everything goes back, and nothing is left.
    pub(super) fn finish(mut self) -> Result<Seen, String> {
        let (cpu, state) = (self.lab.cpu(), &mut self.state);
        let mut turn = Turn { lab: &self.lab, dice: Dice::new(1) };
        state.check_all(self.lab.kernel())?;
        while !state.lives.is_empty() {
            state.unmap(&cpu, &mut turn, 0)?;
        }
        state.free_regions(&cpu);
        state.buffers.clear();
        state.check_findings(self.lab.kernel())?;
        state.check_tables()?;
        state.check_all(self.lab.kernel())?;
        ensure!(self.lab.leaks().is_empty(), "left over: {:?}", self.lab.leaks());
        Ok(std::mem::take(&mut state.seen))
    }
}

impl State {
    fn step(&mut self, cpu: &Cpu<'_>, turn: &mut Turn<'_>) -> Check {
        match turn.dice.roll(100) {
            0..6 => self.alloc(cpu, turn),
            6..9 => self.free(cpu, turn),
            9..18 => self.touch(turn),
            18..32 => self.map(cpu, turn),
            32..42 => {
                let at = turn.dice.index(self.lives.len().max(1));
                if at < self.lives.len() { self.unmap(cpu, turn, at) } else { Ok(()) }
            }
            42..52 => self.sync(cpu, turn),
            52..90 => self.device(turn),
            90..94 => self.region(cpu, turn),
            94..98 => self.block(cpu, turn),
            _ => {
                let later = if turn.dice.once_in(40) { 10_000_000 } else { turn.dice.roll(300_000) };
                self.pass(turn, later)
            }
        }
    }

    /// Time passes.
    pub(super) fn pass(&mut self, turn: &Turn<'_>, later: u64) -> Check {
        self.shadow.now += later;
        turn.lab.solo.set_now(self.shadow.now);
        Ok(())
    }

    /// Exactly the findings that this step must make, and the slots that are left.
    fn check_findings(&mut self, kernel: &Kernel) -> Check {
        let found = kernel.take_findings();
        let name = |kind: &FindingKind| (kind.name(), kind.transaction());
        let alike = |(found, expected): (&crate::finding::Finding, &(&str, u64))| {
            let (name, id) = name(&found.kind);
            name == expected.0 && (expected.1 == 0 || id == expected.1)
        };
        let expected = std::mem::take(&mut self.shadow.expected);
        let right = found.len() == expected.len() && found.iter().zip(&expected).all(alike);
        ensure!(
            right,
            "found {:?}, expected {expected:?}",
            found.iter().map(|found| name(&found.kind)).collect::<Vec<_>>()
        );
        expected.iter().for_each(|(name, _)| *self.seen.found.entry(name).or_default() += 1);
        let (used, should) =
            (kernel.swiotlb_usage().0, self.shadow.slots.as_ref().map_or(0, super::slots::Slots::used));
        ensure!(u64::from(used) == should, "{used} bounce slots are in use, of {should} that are mapped");
        Ok(())
    }

    /// Books, pool and domains against the shadow's and against themselves.
    fn check_tables(&mut self) -> Check {
        let now = self.shadow.now;
        for (device, book) in self.devices.iter().zip(&mut self.shadow.books) {
            let ledger = device.state.ledger.lock();
            ledger.validate().map_err(|error| error.to_string())?;
            let mut should: Vec<_> = book.live.iter().map(|piece| (piece.dma, piece.len, piece.dir)).collect();
            should.sort_unstable();
            let mut booked: Vec<_> = ledger.live().map(|it| (it.dma.get(), it.len, it.dir)).collect();
            booked.sort_unstable();
            ensure!(booked == should, "{booked:?} is booked, {should:?} is mapped");
            drop(ledger);
            let Some((domain, shadow)) = device.domain().zip(book.domain.as_mut()) else { continue };
            let (stats, (mapped, stale)) = (domain.lock().stats_at(now), shadow.counts(now));
            ensure!((stats.mapped, stats.stale) == (mapped, stale), "{stats:?}, not {mapped} and {stale} pages");
            domain.lock().validate().map_err(|error| error.to_string())?;
        }
        if let Some(pool) = self.devices[0].kernel().swiotlb.lock().as_ref() {
            pool.validate().map_err(|error| error.to_string())?;
        }
        let broken = self.pool.as_ref().and_then(|pool| pool.validate().err());
        // A device that writes late breaks the links in the blocks, which is found when such a block is taken.
        ensure!(broken.is_none() || self.shadow_links_broken(), "the pool's list is broken at {broken:?}");
        Ok(())
    }

    /// Every byte of RAM that either touched, and every allocator's tables.
    fn check_all(&mut self, kernel: &Kernel) -> Check {
        let mut bytes = [0; 4096];
        for (at, should) in self.shadow.memory.touched() {
            kernel.ram().read_uncached(PhysAddr::new(at), &mut bytes).unwrap();
            if let Some(wrong) = (0..4096).find(|&i| bytes[i] != should[i]) {
                return Err(format!("RAM at {:#x} is not what it should be", at + wrong as u64));
            }
        }
        kernel.validate().map_err(|error| error.to_string())
    }

    /// The CPU's view of some bytes, and RAM right before and after them.
    pub(super) fn check_bytes(&mut self, kernel: &Kernel, at: u64, len: u64) -> Check {
        let (mut is, mut should) = (vec![0; len as usize], vec![1; len as usize]);
        peek(kernel, at, &mut is);
        self.shadow.memory.cpu_reads(at, &mut should);
        ensure!(is == should, "the CPU does not see what it should in {at:#x}+{len}");
        for around in [at.saturating_sub(64), at + len] {
            let there = self.shadow.memory.there(around, 64) as usize;
            if there == 0 {
                continue;
            }
            let (mut is, mut should) = ([0; 64], [1; 64]);
            kernel.ram().read_uncached(PhysAddr::new(around), &mut is[..there]).unwrap();
            self.shadow.memory.device_reads(around, &mut should[..there]);
            ensure!(is[..there] == should[..there], "RAM around {at:#x}+{len} is not what it should be");
        }
        Ok(())
    }
}
