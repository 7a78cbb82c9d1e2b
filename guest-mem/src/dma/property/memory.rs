//! The shadow's memory: what lies in RAM and what the CPUs see of it, byte for byte.
//!
//! Two flat planes. On a coherent machine only the first counts. On another a line is there or not, dirty or not: a CPU
//! that touches a line takes a copy, and only cleaning and invalidating move bytes between the planes.

/// Bytes of a page, and of a line.
pub(super) const PAGE: u64 = 4096;
const LINE: u64 = 64;
/// Where RAM goes on above the hole.
pub(super) const HIGH: u64 = 1 << 32;

/// A page: both planes, and a bit for each of its lines.
struct Page {
    ram: [u8; 4096],
    cpu: [u8; 4096],
    there: u64,
    dirty: u64,
}

pub(super) struct Memory {
    pages: Vec<Option<Box<Page>>>,
    low: u64,
    end: u64,
    coherent: bool,
}

/// The pages of a range: first byte in the page, how many.
fn by_page(at: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    by(PAGE, at, len)
}

/// The stretches of a range that lie in one unit each: the unit's address, first byte in it, how many.
fn by(unit: u64, mut at: u64, mut len: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    std::iter::from_fn(move || {
        let within = at % unit;
        let step = len.min(unit - within);
        let part = (at - within, within as usize, step as usize);
        (at, len) = (at + step, len - step);
        (step > 0).then_some(part)
    })
}

impl Memory {
    pub(super) fn new(total: u64, low: u64, coherent: bool) -> Self {
        let low = low.min(total);
        let end = if total > low { HIGH + total - low } else { low };
        Self { pages: (0..total / PAGE).map(|_| None).collect(), low, end, coherent }
    }

    /// How many of `len` bytes from `at` on are RAM before the first that is none.
    pub(super) fn there(&self, at: u64, len: u64) -> u64 {
        let end = if at < self.low {
            self.low
        } else if at >= HIGH {
            self.end
        } else {
            0
        };
        end.saturating_sub(at).min(len)
    }

    fn page(&mut self, at: u64) -> &mut Page {
        let index = if at >= HIGH { at - HIGH + self.low } else { at } / PAGE;
        let fresh = || Box::new(Page { ram: [0; 4096], cpu: [0; 4096], there: 0, dirty: 0 });
        self.pages[index as usize].get_or_insert_with(fresh)
    }

    /// What a device reads: RAM.
    pub(super) fn device_reads(&mut self, at: u64, to: &mut [u8]) {
        let mut done = 0;
        for (page, from, step) in by_page(at, to.len() as u64) {
            to[done..done + step].copy_from_slice(&self.page(page).ram[from..from + step]);
            done += step;
        }
    }

    pub(super) fn device_writes(&mut self, at: u64, bytes: &[u8]) {
        let mut done = 0;
        for (page, from, step) in by_page(at, bytes.len() as u64) {
            self.page(page).ram[from..from + step].copy_from_slice(&bytes[done..done + step]);
            done += step;
        }
    }

    pub(super) fn cpu_reads(&mut self, at: u64, to: &mut [u8]) {
        if self.coherent {
            return self.device_reads(at, to);
        }
        let mut done = 0;
        for (page, from, step) in by_page(at, to.len() as u64) {
            let page = self.page(page);
            page.fetch(from, step);
            to[done..done + step].copy_from_slice(&page.cpu[from..from + step]);
            done += step;
        }
    }

    pub(super) fn cpu_writes(&mut self, at: u64, bytes: &[u8]) {
        if self.coherent {
            return self.device_writes(at, bytes);
        }
        let mut done = 0;
        for (page, from, step) in by_page(at, bytes.len() as u64) {
            let page = self.page(page);
            page.dirty |= page.fetch(from, step);
            page.cpu[from..from + step].copy_from_slice(&bytes[done..done + step]);
            done += step;
        }
    }

    /// A CPU copies from one place to another.
    pub(super) fn copy(&mut self, from: u64, to: u64, len: u64) {
        let mut bytes = vec![0; len as usize];
        self.cpu_reads(from, &mut bytes);
        self.cpu_writes(to, &bytes);
    }

    /// Dirty lines go to RAM.
    pub(super) fn clean(&mut self, at: u64, len: u64) {
        if self.coherent {
            return;
        }
        for (line, ..) in by(LINE, at, len) {
            self.page(line).write_back(line);
        }
    }

    /// Lines are dropped; of one that has other bytes too, what is dirty goes to RAM first.
    pub(super) fn invalidate(&mut self, at: u64, len: u64) {
        if self.coherent {
            return;
        }
        for (line, _, step) in by(LINE, at, len) {
            let page = self.page(line);
            if step < LINE as usize {
                page.write_back(line);
            }
            let bit = 1 << (line % PAGE / LINE);
            page.there &= !bit;
            page.dirty &= !bit;
        }
    }

    /// Zeros that nobody has cached.
    pub(super) fn clear(&mut self, at: u64, len: u64) {
        for (page, from, step) in by_page(at, len) {
            self.page(page).ram[from..from + step].fill(0);
        }
        if self.coherent {
            return;
        }
        for (line, ..) in by(LINE, at, len) {
            let bit = 1 << (line % PAGE / LINE);
            let page = self.page(line);
            page.there &= !bit;
            page.dirty &= !bit;
        }
    }

    /// Every page that was ever touched: its address and what lies in RAM there.
    pub(super) fn touched(&self) -> impl Iterator<Item = (u64, &[u8; 4096])> {
        let (low, pages) = (self.low, (0..).zip(&self.pages));
        pages.filter_map(move |(index, page): (u64, _)| {
            let at = index * PAGE;
            Some((if at >= low { at - low + HIGH } else { at }, &page.as_ref()?.ram))
        })
    }
}

impl Page {
    /// Takes copies of the lines of a stretch that are not there; the bits of all its lines.
    fn fetch(&mut self, from: usize, len: usize) -> u64 {
        let (first, last) = (from / 64, (from + len - 1) / 64);
        let bits = (u64::MAX >> (63 - (last - first))) << first;
        for line in (first..=last).filter(|line| self.there & (1 << line) == 0) {
            let line = line * 64..line * 64 + 64;
            self.cpu[line.clone()].copy_from_slice(&self.ram[line]);
        }
        self.there |= bits;
        bits
    }

    fn write_back(&mut self, line: u64) {
        let from = (line % PAGE) as usize;
        let bit = 1 << (from / 64);
        if self.dirty & bit != 0 {
            self.dirty &= !bit;
            self.ram[from..from + 64].copy_from_slice(&self.cpu[from..from + 64]);
        }
    }
}
