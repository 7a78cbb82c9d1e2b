//! What the long runs share: dice that fall the same each time, and a shadow of who owns which byte.
//!
//! A buffer that is handed out must share no byte with one that is held; it is then filled with its owner's bytes, and
//! holds them until it is given back. Neighbours: the property tests of each allocator.

use std::collections::BTreeMap;

use crate::cpu::Cpu;
use crate::gfp::{__GFP_NOWARN, GFP_ATOMIC};
use crate::kbuf::KBuf;
use crate::kernel::MachineConfig;
use crate::page::{Pages, alloc_pages};
use crate::vmalloc::VBuf;

/// How many operations a long run does, and after how many all is looked at.
pub(crate) const OPERATIONS: u32 = 1_000_000;
pub(crate) const EVERY: u32 = 1000;
/// Operations until memory gets short, and until it is there again.
pub(crate) const PHASE: u32 = 50_000;

/// The machine of the long runs: 64 MiB, four CPUs with their lists of pages.
pub(crate) fn small() -> MachineConfig {
    MachineConfig { ram: 64 << 20, low: 64 << 20, cpus: 4, pcp: true, ..MachineConfig::default() }
}

/// xorshift64*.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number below `sides`.
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    /// A place below `len`.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.roll(len as u64)).unwrap()
    }

    /// Once in `times`.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.roll(times) == 0
    }
}

/// All memory that nobody has, in the phases in which nobody gets any.
#[derive(Default)]
pub(crate) struct Rest(Vec<Pages>);

impl Rest {
    /// Takes what is left, or gives it back.
    pub(crate) fn turn(&mut self, cpu: &Cpu<'_>) {
        if !self.is_there() {
            return self.0.clear();
        }
        for order in [9, 4, 0] {
            self.0.extend(std::iter::from_fn(|| alloc_pages(cpu, order, GFP_ATOMIC | __GFP_NOWARN).ok()));
        }
    }

    /// Whether there is memory.
    pub(crate) fn is_there(&self) -> bool {
        self.0.is_empty()
    }
}

/// Memory whose bytes are copied.
pub(crate) trait Bytes {
    fn start(&self) -> u64;
    fn size(&self) -> usize;
    fn read(&self, at: usize, to: &mut [u8]);
    fn write(&mut self, at: usize, from: &[u8]);
}

impl Bytes for KBuf {
    fn start(&self) -> u64 {
        self.phys().get()
    }

    fn size(&self) -> usize {
        self.len()
    }

    fn read(&self, at: usize, to: &mut [u8]) {
        self.read_at(at, to).unwrap();
    }

    fn write(&mut self, at: usize, from: &[u8]) {
        self.write_at(at, from).unwrap();
    }
}

impl Bytes for VBuf {
    fn start(&self) -> u64 {
        self.virt().get()
    }

    fn size(&self) -> usize {
        self.len()
    }

    fn read(&self, at: usize, to: &mut [u8]) {
        self.read_at(at, to).unwrap();
    }

    fn write(&mut self, at: usize, from: &[u8]) {
        self.write_at(at, from).unwrap();
    }
}

const PIECE: usize = 256;

/// An owner's bytes: its number, four bytes of it again and again.
fn mark(owner: u32) -> [u8; PIECE] {
    let word = owner.wrapping_mul(0x9e37_79b9).to_le_bytes();
    std::array::from_fn(|at| word[at % 4])
}

/// Asserts that bytes of a buffer repeat `piece`, which begins at the buffer's first byte.
pub(crate) fn holds(buf: &impl Bytes, bytes: std::ops::Range<usize>, piece: &[u8; PIECE], whose: &str) {
    let mut found = [0; PIECE];
    let mut at = bytes.start;
    while at < bytes.end {
        let within = at % PIECE;
        let len = (PIECE - within).min(bytes.end - at);
        buf.read(at, &mut found[..len]);
        assert_eq!(found[..len], piece[within..within + len], "{:#x}: byte {at:#x} on is not {whose}", buf.start());
        at += len;
    }
}

/// Fills a buffer with `piece` again and again.
pub(crate) fn fill(buf: &mut impl Bytes, piece: &[u8; PIECE]) {
    for at in (0..buf.size()).step_by(PIECE) {
        buf.write(at, &piece[..PIECE.min(buf.size() - at)]);
    }
}

/// A buffer that is handed out.
struct Held<B> {
    buf: B,
    owner: u32,
    /// Bytes from its start that nobody else may have.
    reach: u64,
}

/// Who owns which byte.
pub(crate) struct Shadow<B> {
    held: Vec<Held<B>>,
    /// First byte to the one behind the last, of all that is held.
    spans: BTreeMap<u64, u64>,
    next: u32,
}

impl<B: Bytes> Shadow<B> {
    pub(crate) const fn new() -> Self {
        Self { held: Vec::new(), spans: BTreeMap::new(), next: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.held.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &B> {
        self.held.iter().map(|held| &held.buf)
    }

    /// Whether somebody owns a byte.
    pub(crate) fn owns(&self, at: u64) -> bool {
        self.spans.range(..=at).next_back().is_some_and(|(_, &end)| at < end)
    }

    /// Notes a buffer that was handed out, and `reach` bytes from its start that are its alone.
    pub(crate) fn take(&mut self, mut buf: B, reach: u64) {
        let (start, end) = (buf.start(), buf.start() + reach);
        let before = self.spans.range(..end).next_back().map_or(0, |(_, &end)| end);
        assert!(before <= start, "{start:#x} to {end:#x} was handed out while somebody owns up to {before:#x}");
        self.spans.insert(start, end);
        self.next += 1;
        fill(&mut buf, &mark(self.next));
        self.held.push(Held { buf, owner: self.next, reach });
    }

    /// Takes a buffer from its owner, who still finds each byte; the buffer and what it holds.
    pub(crate) fn give(&mut self, index: usize) -> (B, [u8; PIECE]) {
        let Held { buf, owner, reach } = self.held.swap_remove(index);
        let mark = mark(owner);
        holds(&buf, 0..buf.size(), &mark, "its owner's");
        assert_eq!(self.spans.remove(&buf.start()), Some(buf.start() + reach));
        (buf, mark)
    }

    /// Looks at the first and last bytes of a buffer.
    pub(crate) fn check(&self, index: usize) {
        let Held { buf, owner, .. } = &self.held[index];
        let (size, mark) = (buf.size(), mark(*owner));
        holds(buf, 0..size.min(64), &mark, "its owner's");
        holds(buf, size.saturating_sub(64)..size, &mark, "its owner's");
    }

    /// Looks at all buffers so.
    pub(crate) fn check_all(&self) {
        (0..self.held.len()).for_each(|index| self.check(index));
    }
}
