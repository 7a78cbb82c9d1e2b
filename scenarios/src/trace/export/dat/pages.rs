//! The pages of ftrace's ring buffer: events of one producer, packed as the kernel packs them.
//!
//! A page has the time of its first event and the length of its data; an event has its distance in time from the one
//! before in 27 bits, more than that in an event of its own (`RINGBUF_TYPE_TIME_EXTEND`, 59 bits). Neighbours: `dat`,
//! which puts pages where they belong. Left out: lost events, which no ring that went into a trace has.

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
/// Bytes before a page's data: its time and the length of the data.
const HEADER: usize = 16;
/// Bits of a time in an event's own header.
const DELTA: u32 = 27;
/// Bits of a time in a time extend and its header.
const EXTENDED: u32 = DELTA + 32;
/// `type_len` of a time extend.
const TIME_EXTEND: u32 = 30;
/// The most bytes, in words of 4, whose number fits into `type_len`.
const SHORT: usize = 28 * 4;
/// The longest payload that every page takes; of an event of ours, whose texts are cut, a fraction.
#[cfg(test)]
pub(super) const LONGEST: usize = PAGE - HEADER - 8 - 8;

/// The page that a producer's events go to.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// Time and data of the page; its length is put in when it is full.
    page: Vec<u8>,
    last: u64,
    /// Pages that were filled.
    filled: u64,
}

impl Pages {
    /// Adds an event of at most [`LONGEST`] bytes. If it begins a new page, `full` gets the number of the one before and
    /// its bytes.
    pub(super) fn push<E>(
        &mut self,
        ts: u64,
        payload: &[u8],
        full: impl FnOnce(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        // A clock that goes back, or far ahead, is told by a new page's own time.
        let delta = ts.checked_sub(self.last).filter(|delta| delta >> EXTENDED == 0);
        let room = PAGE.saturating_sub(self.page.len());
        let begins = match delta {
            Some(delta) if !self.page.is_empty() => size(delta, payload.len()) > room,
            _ => true,
        };
        if begins {
            self.turn(full)?;
            self.page.extend(ts.to_le_bytes());
            self.page.extend([0; 8]);
        }
        self.event(if begins { 0 } else { delta.unwrap_or(0) }, payload);
        self.last = ts;
        Ok(())
    }

    /// Gives the page away that is being filled, if there is one.
    pub(super) fn turn<E>(&mut self, full: impl FnOnce(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        if self.page.is_empty() {
            return Ok(());
        }
        let data = (self.page.len() - HEADER) as u64;
        self.page.iter_mut().skip(8).zip(data.to_le_bytes()).for_each(|(to, from)| *to = from);
        self.page.resize(PAGE, 0);
        let given = full(self.filled, &self.page);
        self.page.clear();
        self.filled += 1;
        given
    }

    /// Pages that were given away so far.
    pub(super) const fn filled(&self) -> u64 {
        self.filled
    }

    fn event(&mut self, delta: u64, payload: &[u8]) {
        let (near, far) = split(delta);
        if far > 0 {
            self.word(TIME_EXTEND | near << 5);
            self.word(far);
        }
        let near = if far > 0 { 0 } else { near };
        let padded = payload.len().next_multiple_of(4);
        if padded > SHORT || padded == 0 {
            self.word(near << 5);
            self.word(number(padded + 4));
        } else {
            self.word(number(padded / 4) | near << 5);
        }
        self.page.extend(payload);
        self.page.resize(self.page.len() + padded - payload.len(), 0);
    }

    fn word(&mut self, word: u32) {
        self.page.extend(word.to_le_bytes());
    }
}

/// Bytes that an event takes.
fn size(delta: u64, payload: usize) -> usize {
    let extend = if split(delta).1 > 0 { 8 } else { 0 };
    let padded = payload.next_multiple_of(4);
    extend + if padded > SHORT || padded == 0 { 8 } else { 4 } + padded
}

/// A time's low 27 bits and the 32 above.
fn split(delta: u64) -> (u32, u32) {
    let low = delta & ((1 << DELTA) - 1);
    (u32::try_from(low).unwrap_or(0), u32::try_from(delta >> DELTA).unwrap_or(u32::MAX))
}

fn number(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
