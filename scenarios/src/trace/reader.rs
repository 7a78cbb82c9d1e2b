//! Reading a trace: blocks in, events out, one block in memory at a time.
//!
//! Nothing a file says is believed before its checksum and its bounds are checked, so a foreign or broken file costs
//! an error and never a panic or more memory than a block and the tables. What came before the broken place has been
//! given by then. Blocks of kinds that this version doesn't know are skipped.
//!
//! Neighbours: `format`, `event`, `names`; every view. Left out: seeking.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use super::error::TraceError;
use super::event::{Event, Raw};
use super::feed::Losses;
use super::format::{
    BLOCK_HEADER, BlockKind, End, Header, LOSS, MAGIC, MAX_PAYLOAD, ORDER_MARK, PAGE_HEADER, PREFIX, RECORD, VERSION,
    checksum, u16_at, u32_at, u64_at,
};
use super::names::Names;

/// Why a block can't be used.
enum Fault {
    Cut,
    Damaged(&'static str),
    Io(io::Error),
}

/// A trace being read.
pub struct Reader<R> {
    name: String,
    input: R,
    /// Bytes read so far.
    offset: u64,
    /// Where the current block begins.
    begin: u64,
    blocks: u32,
    header: Header,
    names: Names,
    payload: Vec<u8>,
    /// The next record in `payload`; its length if none is left.
    next: usize,
    events: u64,
    ahead: Option<Raw>,
    losses: Losses,
    end: Option<End>,
    error: Option<TraceError>,
    stopped: bool,
}

impl Reader<BufReader<File>> {
    /// Opens a trace file.
    ///
    /// # Errors
    /// [`TraceError`]: it can't be opened, or is no trace that this version reads.
    pub fn open(path: &Path) -> Result<Self, TraceError> {
        let name = path.display().to_string();
        let directory = || io::Error::from(io::ErrorKind::IsADirectory);
        let open = || if path.is_dir() { Err(directory()) } else { File::open(path) };
        let file = open().map_err(|source| TraceError::Open { name: name.clone(), source })?;
        Self::new(name, BufReader::new(file))
    }
}

/// Refuses a pipe, for whoever must read a trace twice.
///
/// # Errors
/// [`TraceError::NoFile`].
pub(crate) fn twice(path: &Path) -> Result<(), TraceError> {
    // What is not there, and folders, have errors of their own.
    let pipe = std::fs::metadata(path).is_ok_and(|data| !data.is_file() && !data.is_dir());
    if pipe { Err(TraceError::NoFile { name: path.display().to_string() }) } else { Ok(()) }
}

impl<R: Read> Reader<R> {
    /// Reads a trace from anywhere; `name` is what errors call it.
    ///
    /// # Errors
    /// [`TraceError`]: no trace that this version reads.
    pub fn new(name: String, input: R) -> Result<Self, TraceError> {
        let mut reader = Self {
            name,
            input,
            offset: 0,
            begin: 0,
            blocks: 0,
            header: Header::default(),
            names: Names::default(),
            payload: Vec::new(),
            next: 0,
            events: 0,
            ahead: None,
            losses: Losses::new(),
            end: None,
            error: None,
            stopped: false,
        };
        let version = reader.prefix()?;
        let head = reader.head();
        if version > VERSION {
            let program = head.map_or_else(|_| "a later program".to_owned(), |()| reader.header.program.clone());
            return Err(TraceError::Newer { name: reader.name, found: version, program });
        }
        head?;
        reader.names = Names::new(&reader.header);
        Ok(reader)
    }

    /// What the file says about itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What numbers mean, as far as it was read.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// What errors call the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Events that were made and are not in the file, by producer; known once the end was reached.
    pub(super) fn losses(&self) -> &Losses {
        &self.losses
    }

    /// The end block, once it was reached.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    fn prefix(&mut self) -> Result<u16, TraceError> {
        let mut prefix = [0; PREFIX];
        let got = self.fill(&mut prefix).map_err(|fault| self.fail(fault))?;
        let differs = prefix.iter().zip(MAGIC).take(got).position(|(&a, b)| a != b);
        if let Some(at) = differs.or((got == 0).then_some(0)) {
            return Err(TraceError::Foreign { name: self.name.clone(), offset: at as u64 });
        }
        if got < PREFIX {
            return Err(self.fail(Fault::Cut));
        }
        let mark = u32_at(&prefix, 8).unwrap_or(0);
        if mark != ORDER_MARK {
            return Err(TraceError::Endian { name: self.name.clone(), found: mark });
        }
        Ok(u16_at(&prefix, 12).unwrap_or(0))
    }

    fn head(&mut self) -> Result<(), TraceError> {
        let kind = self.block().map_err(|fault| self.fail(fault))?;
        if kind != Some(BlockKind::Head) {
            let cut = kind.is_none();
            return Err(self.fail(if cut { Fault::Cut } else { Fault::Damaged("the first block is no HEAD") }));
        }
        self.header =
            serde_json::from_slice(&self.payload).map_err(|_| self.fail(Fault::Damaged("HEAD is not its JSON")))?;
        let header = &mut self.header;
        for text in [&mut header.program, &mut header.scenario, &mut header.clock] {
            *text = text.replace('\n', "\\n");
        }
        self.next = self.payload.len();
        Ok(())
    }

    /// Reads as many bytes as there are, at most the buffer's.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        let mut got = 0;
        while got < buffer.len() {
            match self.input.read(&mut buffer[got..]) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Io(error)),
            }
        }
        self.offset += got as u64;
        Ok(got)
    }

    fn fail(&self, fault: Fault) -> TraceError {
        let name = self.name.clone();
        match fault {
            Fault::Cut if self.offset == self.begin => TraceError::NoEnd { name, offset: self.offset },
            Fault::Cut => TraceError::Truncated { name, offset: self.begin, at: self.offset },
            Fault::Damaged(what) => TraceError::Damaged { name, offset: self.begin, what },
            Fault::Io(source) => TraceError::Read { name, offset: self.offset, source },
        }
    }

    /// Reads the next block into `payload`; `None` where the file ends before it.
    fn block(&mut self) -> Result<Option<BlockKind>, Fault> {
        self.begin = self.offset;
        let mut header = [0; BLOCK_HEADER];
        let got = self.fill(&mut header)?;
        if got < BLOCK_HEADER {
            return if got == 0 { Ok(None) } else { Err(Fault::Cut) };
        }
        let field = |at| u32_at(&header, at).unwrap_or(0);
        let length = field(4);
        if length > MAX_PAYLOAD {
            return Err(Fault::Damaged("its length is beyond the longest block"));
        }
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(usize::try_from(length).unwrap_or(0), 0);
        let got = self.fill(&mut payload);
        self.payload = payload;
        self.next = self.payload.len();
        if got? < self.payload.len() {
            return Err(Fault::Cut);
        }
        if checksum(&header[..12], &self.payload) != field(12) {
            return Err(Fault::Damaged("its checksum is wrong"));
        }
        if field(8) != self.blocks {
            return Err(Fault::Damaged("a block is missing before it"));
        }
        self.blocks = self.blocks.wrapping_add(1);
        let [a, b, c, d, ..] = header;
        Ok(Some(BlockKind::of([a, b, c, d])))
    }

    /// Reads blocks until there are records or the end; whether there are records.
    fn advance(&mut self) -> Result<bool, Fault> {
        loop {
            let Some(kind) = self.block()? else {
                return if self.end.is_some() { Ok(false) } else { Err(Fault::Cut) };
            };
            if self.end.is_some() {
                return Err(Fault::Damaged("it comes after the end"));
            }
            match kind {
                BlockKind::Table => self.table()?,
                BlockKind::Events => {
                    let first = u64_at(&self.payload, 0).filter(|&first| first >= self.events);
                    self.events = first.ok_or(Fault::Damaged("its first event's number goes back"))?;
                    if !(self.payload.len() - PAGE_HEADER).is_multiple_of(RECORD) {
                        return Err(Fault::Damaged("it ends in the middle of a record"));
                    }
                    self.next = PAGE_HEADER;
                    if self.next < self.payload.len() {
                        return Ok(true);
                    }
                }
                BlockKind::Lost => {
                    for entry in self.payload.chunks_exact(LOSS) {
                        if let (Some(who), Some(events)) = (u16_at(entry, 0), u64_at(entry, 2)) {
                            let lost = self.losses.entry(who).or_default();
                            *lost = lost.saturating_add(events);
                        }
                    }
                }
                BlockKind::End => {
                    let end = End::from_bytes(&self.payload).ok_or(Fault::Damaged("the end block is too short"))?;
                    self.end = Some(end);
                }
                BlockKind::Head => return Err(Fault::Damaged("a second HEAD")),
                BlockKind::Unknown => {}
            }
        }
    }

    fn table(&mut self) -> Result<(), Fault> {
        let mut at = 0;
        while at < self.payload.len() {
            let fields = (u16_at(&self.payload, at), u32_at(&self.payload, at + 2), u32_at(&self.payload, at + 6));
            let (Some(table), Some(number), Some(length)) = fields else {
                return Err(Fault::Damaged("an entry of a table is cut"));
            };
            let text = usize::try_from(length).ok().and_then(|n| self.payload.get(at + 10..)?.get(..n));
            let text = text.ok_or(Fault::Damaged("a text of a table is cut"))?;
            self.names.add(table, number, &String::from_utf8_lossy(text));
            at += 10 + text.len();
        }
        Ok(())
    }

    fn raw(&mut self) -> Result<Option<Raw>, Fault> {
        if let Some(raw) = self.ahead.take() {
            return Ok(Some(raw));
        }
        if self.next >= self.payload.len() && !self.advance()? {
            return Ok(None);
        }
        let record = self.payload.get(self.next..).unwrap_or_default();
        let word = |at| u64_at(record, at);
        let half = |at| u16_at(record, at);
        let raw = (|| {
            Some(Raw {
                ts: word(0)?,
                addr: word(8)?,
                tag: word(16)?,
                len: u32_at(record, 24)?,
                kind: half(28)?,
                dev: half(30)?,
                who: half(32)?,
            })
        })();
        self.next += RECORD;
        raw.map(Some).ok_or(Fault::Damaged("it ends in the middle of a record"))
    }

    /// The next record, event or detail; not to be mixed with [`Reader::next_event`].
    ///
    /// # Errors
    /// As [`Reader::next_event`].
    pub(super) fn next_record(&mut self) -> Result<Option<Raw>, TraceError> {
        if self.stopped {
            return Ok(None);
        }
        self.raw().map_err(|fault| {
            let error = self.fail(fault);
            self.stop(error)
        })
    }

    /// The next event; `None` after the last of a file that has its end block.
    ///
    /// # Errors
    /// [`TraceError`], once: where the file is cut or damaged. Afterwards there are no more events.
    pub fn next_event(&mut self) -> Result<Option<Event>, TraceError> {
        if let Some(error) = self.error.take() {
            return Err(self.stop(error));
        }
        while !self.stopped {
            let raw = match self.raw() {
                Ok(Some(raw)) => raw,
                Ok(None) => return Ok(None),
                Err(fault) => {
                    let error = self.fail(fault);
                    return Err(self.stop(error));
                }
            };
            if raw.is_detail() {
                // Of an event that is not there: only a foreign writer does that.
                continue;
            }
            let mut event = Event::new(self.events, raw);
            self.events = self.events.saturating_add(1);
            self.details(&mut event);
            return Ok(Some(event));
        }
        Ok(None)
    }

    /// Takes the details that follow an event; an error among them waits for the next call.
    fn details(&mut self, event: &mut Event) {
        loop {
            match self.raw() {
                Ok(Some(raw)) if raw.is_detail() && raw.who == event.raw.who => event.add(&raw),
                Ok(next) => {
                    self.ahead = next;
                    break;
                }
                Err(fault) => {
                    self.error = Some(self.fail(fault));
                    break;
                }
            }
        }
    }

    /// Nothing follows an error.
    fn stop(&mut self, error: TraceError) -> TraceError {
        self.stopped = true;
        self.ahead = None;
        error
    }
}
