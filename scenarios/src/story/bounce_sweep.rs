//! `bounce-sweep`: buffers of every kind of size and place through the bounce pool, each byte and each slot counted.
//!
//! A device of 32 bits maps parts of a buffer above 4 GiB: from 1 byte to one more than a slot set holds, from each
//! offset of a page, in each direction, with and without address bits to keep. What `dma_max_mapping_size` promises is
//! served, what no slot set holds is refused, and between the two either may be. Where nothing bounces, the bytes must be
//! right all the same. Neighbours: `misuse::map_part`, which maps a part and leaves the buffer.

use lowzone_guest_mem::KBuf;
use lowzone_guest_mem::addr::DmaAddr;
use lowzone_guest_mem::dma::{Attrs, Dir, DmaDevice, DmaPort, RawMapping, dma_bit_mask, misuse};
use lowzone_guest_mem::gfp::GFP_KERNEL;
use vm_memory::{Bytes, GuestAddress};

use super::{StoryError, Telling};

/// Bytes of a slot, and of the largest mapping that a pool holds.
const SLOT: u64 = 2048;
const MOST: u64 = 256 << 10;
const PAGE: u64 = 4096;
/// Sizes around what lines, slots, pages and slot sets end at.
const SIZES: [u64; 25] = [
    1,
    2,
    63,
    64,
    65,
    511,
    512,
    2047,
    2048,
    2049,
    4095,
    4096,
    4097,
    6144,
    8191,
    16384,
    65535,
    65536,
    131_072,
    MOST - PAGE,
    MOST - SLOT,
    MOST - 1,
    MOST,
    MOST + 1,
    MOST - SLOT + 1,
];
const DIRECTIONS: [Dir; 3] = [Dir::ToDevice, Dir::FromDevice, Dir::Bidirectional];
const ALIGNED: u32 = 0xfff;
/// What the CPU and the device write.
const CPU: u8 = 0xc5;
const DEVICE: u8 = 0xd3;

/// What was seen in all.
#[derive(Default)]
struct Seen {
    mapped: u64,
    bounced: u64,
    refused: u64,
    broken_promises: u64,
    too_large: u64,
    wrong_bytes: u64,
    wrong_slots: u64,
    lost_bits: u64,
}

struct Sweep<'a, 'w> {
    telling: &'a Telling<'a, 'w>,
    device: DmaDevice,
    port: DmaPort,
    buf: KBuf,
    room: Vec<u8>,
    seen: Seen,
}

fn at(dma: DmaAddr) -> GuestAddress {
    GuestAddress(dma.get())
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

impl Sweep<'_, '_> {
    /// Maps one part, lets both sides do their work and counts what is wrong.
    fn one(&mut self, offset: u64, len: u64, dir: Dir) -> Result<(), StoryError> {
        let cpu = self.telling.cpu();
        let before = self.device.counters().bounced_slots;
        self.room.fill(CPU);
        self.buf.write_at(index(offset).saturating_sub(64), &self.room[..index(len) + 128])?;
        match misuse::map_part(cpu, &self.device, &self.buf, (offset, len), dir, Attrs::empty()) {
            Ok(raw) => {
                self.seen.mapped += 1;
                let slots = self.device.counters().bounced_slots - before;
                self.judge_place(raw, offset, slots);
                self.device_works(raw, dir)?;
                misuse::unmap_single(cpu, &self.device, raw.dma, len, dir);
                self.judge_bytes(offset, len, dir)?;
            }
            Err(_) => {
                self.seen.refused += 1;
                self.seen.broken_promises += u64::from(len <= self.device.max_mapping_size());
            }
        }
        Ok(())
    }

    fn judge_place(&mut self, raw: RawMapping, offset: u64, slots: u64) {
        let kept = self.buf.phys().get().wrapping_add(offset) & u64::from(self.device.min_align_mask());
        let expected = if raw.bounced { (raw.len + kept % SLOT).div_ceil(SLOT) } else { 0 };
        self.seen.bounced += u64::from(raw.bounced);
        self.seen.too_large += u64::from(raw.bounced && raw.len > MOST);
        self.seen.wrong_slots += u64::from(slots != expected);
        self.seen.lost_bits += u64::from(raw.dma.get() & u64::from(self.device.min_align_mask()) != kept);
    }

    /// The device sees what the CPU wrote, then writes.
    fn device_works(&mut self, raw: RawMapping, dir: Dir) -> Result<(), StoryError> {
        let bytes = &mut self.room[..index(raw.len)];
        if dir.device_reads() {
            bytes.fill(0);
            self.port.read_slice(bytes, at(raw.dma)).map_err(std::io::Error::other)?;
            self.seen.wrong_bytes += bytes.iter().map(|byte| u64::from(*byte != CPU)).sum::<u64>();
        }
        if dir.device_writes() {
            bytes.fill(DEVICE);
            self.port.write_slice(bytes, at(raw.dma)).map_err(std::io::Error::other)?;
        }
        Ok(())
    }

    /// The CPU sees what the device wrote, to the byte, and its own before and behind.
    fn judge_bytes(&mut self, offset: u64, len: u64, dir: Dir) -> Result<(), StoryError> {
        let (first, before) = (index(offset).saturating_sub(64), index(offset).min(64));
        let bytes = &mut self.room[..before + index(len) + 64];
        self.buf.read_at(first, bytes)?;
        let inside = before..before + index(len);
        let written = if dir.device_writes() { DEVICE } else { CPU };
        let wrong = |(at, byte): (usize, &u8)| *byte != if inside.contains(&at) { written } else { CPU };
        self.seen.wrong_bytes += bytes.iter().enumerate().map(|seen| u64::from(wrong(seen))).sum::<u64>();
        Ok(())
    }

    /// Each size, direction and mask from a few offsets, and each offset of a page with some of them.
    fn all(&mut self) -> Result<(), StoryError> {
        let dirs = DIRECTIONS.len();
        for (at, mask) in [(0, 0), (1, ALIGNED)] {
            self.device.set_min_align_mask(mask)?;
            for (nth, size) in SIZES.into_iter().enumerate() {
                for dir in DIRECTIONS {
                    for offset in [0, 1, 2047, 4095] {
                        self.one(offset, size, dir)?;
                    }
                }
                let some = (0..PAGE).skip(nth).step_by(SIZES.len());
                for (step, offset) in some.enumerate() {
                    self.one(offset, size, DIRECTIONS[(step + at) % dirs])?;
                }
            }
        }
        Ok(())
    }
}

/// Tells it.
pub(super) fn tell(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let device = DmaDevice::new(cpu.kernel_ref(), "card");
    device.set_mask_and_coherent(cpu, dma_bit_mask(32))?;
    let used = cpu.kernel().swiotlb_usage().0;
    let buf = KBuf::pages(cpu, 7, GFP_KERNEL)?;
    let room = vec![0; index(MOST + PAGE)];
    let port = DmaPort::new(&device);
    let mut sweep = Sweep { telling, device, port, buf, room, seen: Seen::default() };
    sweep.all()?;
    let seen = sweep.seen;
    telling.fact("parts mapped", seen.mapped);
    telling.fact("of them bounced", seen.bounced);
    telling.fact("parts refused", seen.refused);
    telling.expect("refused though dma_max_mapping_size promises them", 0, seen.broken_promises)?;
    telling.expect("served though no slot set holds them", 0, seen.too_large)?;
    telling.expect("wrong bytes", 0, seen.wrong_bytes)?;
    telling.expect("mappings with a wrong number of slots", 0, seen.wrong_slots)?;
    telling.expect("mappings that lost address bits to keep", 0, seen.lost_bits)?;
    telling.expect("slots still taken", used, cpu.kernel().swiotlb_usage().0)
}
