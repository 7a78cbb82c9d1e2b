//! MSI-X: the vector table, the pending bits, and what masking does to a message.
//!
//! The capability's control word lives in config space; the function passes its two bits on with
//! [`Msix::set_control`]. Neighbour: [`crate::virtio::pci`], which sends what [`Msix::raise`] and
//! [`Msix::take_pending`] give. Mirrors PCI 3.0 section 6.8.2. Plain MSI is [`super::msi`].

use super::function::Width;

/// Bytes of a table entry.
pub const ENTRY: u64 = 16;
/// The vector that stands for none (virtio 1.2, 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;
const MASKED: u32 = 1;

#[derive(Debug, Clone, Copy)]
struct Entry {
    addr: u64,
    data: u32,
    control: u32,
}

const AT_RESET: Entry = Entry { addr: 0, data: 0, control: MASKED };

/// A message ready to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// The vector it belongs to.
    pub vector: u16,
    /// Where it is written.
    pub addr: u64,
    /// What is written.
    pub data: u32,
}

/// The MSI-X state of one function.
#[derive(Debug)]
pub struct Msix {
    entries: Vec<Entry>,
    pending: Vec<u64>,
    enabled: bool,
    masked: bool,
}

impl Msix {
    /// A table of `vectors` entries, all masked, MSI-X off.
    pub fn new(vectors: u16) -> Self {
        let entries = vec![AT_RESET; usize::from(vectors)];
        let pending = vec![0; usize::from(vectors).div_ceil(64)];
        Self { entries, pending, enabled: false, masked: false }
    }

    /// How many entries the table has.
    pub fn vectors(&self) -> u16 {
        // The table was made from a 16-bit number.
        u16::try_from(self.entries.len()).unwrap_or(u16::MAX)
    }

    /// Whether messages replace the interrupt pin.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Takes over the enable and function-mask bits. Turning MSI-X off forgets what was pending.
    pub fn set_control(&mut self, enabled: bool, masked: bool) {
        if !enabled {
            self.forget_pending();
        }
        self.enabled = enabled;
        self.masked = masked;
    }

    /// Forgets the messages that wait for their mask to go.
    pub fn forget_pending(&mut self) {
        self.pending.fill(0);
    }

    /// Raises `vector`: the message to send now, or `None` if it is masked (then it is pending) or does not exist.
    pub fn raise(&mut self, vector: u16) -> Option<Message> {
        let entry = *self.entries.get(usize::from(vector))?;
        if !self.enabled {
            return None;
        }
        if self.masked || entry.control & MASKED != 0 {
            let (word, bit) = Self::bit(vector);
            self.pending[word] |= bit;
            return None;
        }
        Some(Message { vector, addr: entry.addr, data: entry.data })
    }

    /// Takes one pending message that nothing masks any more, the lowest vector first.
    pub fn take_pending(&mut self) -> Option<Message> {
        if !self.enabled || self.masked || self.pending.iter().all(|word| *word == 0) {
            return None;
        }
        for (vector, entry) in (0u16..).zip(&self.entries) {
            let (word, bit) = Self::bit(vector);
            if self.pending[word] & bit != 0 && entry.control & MASKED == 0 {
                self.pending[word] &= !bit;
                return Some(Message { vector, addr: entry.addr, data: entry.data });
            }
        }
        None
    }

    fn bit(vector: u16) -> (usize, u64) {
        (usize::from(vector / 64), 1 << (vector % 64))
    }

    fn dword(&self, offset: u64) -> Option<u32> {
        let entry = self.entries.get(usize::try_from(offset / ENTRY).ok()?)?;
        let [low, high] = halves(entry.addr);
        match offset % ENTRY {
            0 => Some(low),
            4 => Some(high),
            8 => Some(entry.data),
            12 => Some(entry.control),
            _ => None,
        }
    }

    fn set_dword(&mut self, offset: u64, value: u32) -> Option<()> {
        let index = usize::try_from(offset / ENTRY).ok()?;
        let entry = self.entries.get_mut(index)?;
        let [low, high] = halves(entry.addr);
        match offset % ENTRY {
            // The two lowest address bits are always zero: a message is an aligned dword.
            0 => entry.addr = join([value & !0b11, high]),
            4 => entry.addr = join([low, value]),
            8 => entry.data = value,
            12 => entry.control = value & MASKED,
            _ => return None,
        }
        Some(())
    }

    /// Reads the table at `offset`; `None` unless it is an aligned access of 4 or 8 bytes within it.
    pub fn read_table(&self, offset: u64, width: Width) -> Option<u64> {
        if !width.aligned(offset) {
            return None;
        }
        match width {
            Width::B4 => self.dword(offset).map(u64::from),
            Width::B8 => Some(join([self.dword(offset)?, self.dword(offset + 4)?])),
            Width::B1 | Width::B2 => None,
        }
    }

    /// Writes the table at `offset`; `None` unless it is an aligned access of 4 or 8 bytes within it.
    pub fn write_table(&mut self, offset: u64, width: Width, value: u64) -> Option<()> {
        let [low, high] = halves(value);
        match width {
            _ if !width.aligned(offset) => None,
            Width::B4 => self.set_dword(offset, low),
            Width::B8 => self.set_dword(offset, low).and_then(|()| self.set_dword(offset + 4, high)),
            Width::B1 | Width::B2 => None,
        }
    }

    /// Reads the pending bits at `offset`; `None` unless it is an aligned access of 4 or 8 bytes within them.
    pub fn read_pending(&self, offset: u64, width: Width) -> Option<u64> {
        let word = *self.pending.get(usize::try_from(offset / 8).ok()?)?;
        match width {
            Width::B8 if offset.is_multiple_of(8) => Some(word),
            Width::B4 if offset.is_multiple_of(4) => {
                Some(u64::from(halves(word)[usize::from(!offset.is_multiple_of(8))]))
            }
            _ => None,
        }
    }

    /// Masks and clears every entry, forgets what is pending, turns MSI-X off.
    pub fn reset(&mut self) {
        self.entries.fill(AT_RESET);
        self.set_control(false, false);
    }
}

/// The lower and the upper half of `value`.
pub(crate) fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

/// The value with these lower and upper halves.
pub(crate) fn join([low, high]: [u32; 2]) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programmed() -> Msix {
        let mut msix = Msix::new(70);
        msix.write_table(16, Width::B8, 0xfee0_1003).unwrap();
        msix.write_table(24, Width::B4, 0x41).unwrap();
        msix.write_table(28, Width::B4, 0).unwrap();
        msix.set_control(true, false);
        msix
    }

    #[test]
    fn an_unmasked_vector_is_sent_and_never_pending() {
        let mut msix = programmed();
        assert_eq!(msix.raise(1), Some(Message { vector: 1, addr: 0xfee0_1000, data: 0x41 }));
        assert_eq!((msix.read_pending(0, Width::B8), msix.take_pending()), (Some(0), None));
    }

    #[test]
    fn a_masked_message_waits_for_its_own_mask_and_the_functions() {
        let mut msix = programmed();
        msix.set_control(true, true);
        assert_eq!(msix.raise(1), None);
        assert_eq!(msix.raise(69), None);
        assert_eq!(msix.read_pending(0, Width::B4), Some(2));
        assert_eq!(msix.read_pending(8, Width::B8), Some(1 << 5));
        assert_eq!(msix.read_pending(12, Width::B4), Some(0));
        msix.set_control(true, false);
        assert_eq!(msix.take_pending().map(|message| message.vector), Some(1));
        assert_eq!(msix.take_pending(), None, "vector 69 is masked by itself");
        msix.write_table(69 * 16 + 12, Width::B4, 0).unwrap();
        assert_eq!(msix.take_pending().map(|message| message.vector), Some(69));
    }

    #[test]
    fn accesses_that_are_narrow_misaligned_or_beyond_are_not_answered() {
        let mut msix = programmed();
        assert_eq!(msix.read_table(16, Width::B2), None);
        assert_eq!(msix.read_table(18, Width::B4), None);
        assert_eq!(msix.read_table(20, Width::B8), None);
        assert_eq!(msix.read_table(70 * 16, Width::B4), None);
        assert_eq!(msix.write_table(u64::MAX - 7, Width::B8, 0), None);
        assert_eq!(msix.read_pending(16, Width::B8), None);
        assert_eq!(msix.raise(70), None);
        assert_eq!(msix.raise(NO_VECTOR), None);
    }

    #[test]
    fn turning_msix_off_forgets_and_reset_masks() {
        let mut msix = programmed();
        msix.set_control(true, true);
        msix.raise(1);
        msix.set_control(false, false);
        assert_eq!(msix.read_pending(0, Width::B8), Some(0));
        msix.reset();
        assert_eq!(msix.read_table(28, Width::B4), Some(1));
        assert_eq!(msix.read_table(16, Width::B8), Some(0));
    }
}
