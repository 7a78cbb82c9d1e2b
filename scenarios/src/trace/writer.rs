//! Writing a trace: pages of records in, blocks out.
//!
//! The recorder hands full pages to a [`Writer`] (through a `Joined`), which writes what their numbers mean before
//! them, when it first appears. Sites and scopes get numbers of the file's own, in the order they appear, so that the
//! same run gives the same bytes in any process. It allocates nothing once its buffers have grown; the first failed
//! write ends the file, and what comes later is counted as lost.
//!
//! Neighbours: `format`, `reader`, `lab`. Left out: several runs in one file.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use lowzone_guest_mem::kernel::KernelRef;
use lowzone_guest_mem::trace::{Kind, PAGE, Producer, Record, Sink, owner_of};

use super::error::TraceError;
use super::event::Raw;
use super::feed::{Losses, lose};
use super::format::{BlockKind, End, Header, MAGIC, ORDER_MARK, Table, VERSION, block_header};

/// Bytes of a table block after which another is begun.
const TABLE_FULL: usize = 128 << 10;
/// The longest text of an entry; a longer one is cut.
const TEXT: usize = 32 << 10;

/// Numbers of this process and what they are in the file, from 1 in the order they appeared.
#[derive(Default)]
struct Numbers(BTreeMap<u32, u32>);

impl Numbers {
    /// The file's number, and whether it is new.
    fn of(&mut self, here: u32) -> (u32, bool) {
        let next = u32::try_from(self.0.len() + 1).unwrap_or(u32::MAX);
        if here == 0 {
            return (0, false);
        }
        match self.0.get(&here) {
            Some(&known) => (known, false),
            None => {
                self.0.insert(here, next);
                (next, true)
            }
        }
    }
}

/// A record as the file has it.
fn put(page: &mut Vec<u8>, raw: &Raw) {
    page.extend(raw.ts.to_le_bytes());
    page.extend(raw.addr.to_le_bytes());
    page.extend(raw.tag.to_le_bytes());
    page.extend(raw.len.to_le_bytes());
    page.extend(raw.kind.to_le_bytes());
    page.extend(raw.dev.to_le_bytes());
    page.extend(raw.who.to_le_bytes());
}

/// A trace being written.
pub struct Writer<W: Write> {
    out: W,
    /// Where findings can be looked up.
    kernel: Option<KernelRef>,
    blocks: u32,
    sites: Numbers,
    scopes: Numbers,
    table: Vec<u8>,
    page: Vec<u8>,
    end: End,
    /// The number of the next event: there are gaps for those that were lost.
    next: u64,
    losses: Losses,
    failed: Option<io::Error>,
}

impl<W: Write> Writer<W> {
    /// Begins a trace; `devices` are a device's number in records, its place on the bus and its name.
    ///
    /// # Errors
    /// [`TraceError::Write`].
    pub fn new(
        out: W,
        header: &Header,
        devices: &[(u16, String, String)],
        kernel: Option<KernelRef>,
    ) -> Result<Self, TraceError> {
        let mut writer = Self {
            out,
            kernel,
            blocks: 0,
            sites: Numbers::default(),
            scopes: Numbers::default(),
            table: Vec::new(),
            page: Vec::new(),
            end: End::default(),
            next: 0,
            losses: Losses::new(),
            failed: None,
        };
        writer.begin(header, devices).map_err(|source| TraceError::Write { lost: 0, source })?;
        Ok(writer)
    }

    fn begin(&mut self, header: &Header, devices: &[(u16, String, String)]) -> io::Result<()> {
        self.out.write_all(&MAGIC)?;
        self.out.write_all(&ORDER_MARK.to_le_bytes())?;
        self.out.write_all(&VERSION.to_le_bytes())?;
        self.out.write_all(&[0; 2])?;
        let json = serde_json::to_vec(header)?;
        self.block(BlockKind::Head, &json)?;
        for (index, place, name) in devices {
            self.entry(Table::Device, u32::from(*index), &format!("{place}\n{name}"));
        }
        self.flush_table()
    }

    fn block(&mut self, kind: BlockKind, payload: &[u8]) -> io::Result<()> {
        self.out.write_all(&block_header(kind, self.blocks, payload))?;
        self.out.write_all(payload)?;
        self.blocks = self.blocks.wrapping_add(1);
        Ok(())
    }

    fn entry(&mut self, table: Table, number: u32, text: &str) {
        let mut cut = text.len().min(TEXT);
        while !text.is_char_boundary(cut) {
            cut -= 1;
        }
        let text = &text.as_bytes()[..cut];
        self.table.extend((table as u16).to_le_bytes());
        self.table.extend(number.to_le_bytes());
        self.table.extend(u32::try_from(text.len()).unwrap_or(0).to_le_bytes());
        self.table.extend(text);
    }

    fn flush_table(&mut self) -> io::Result<()> {
        if self.table.is_empty() {
            return Ok(());
        }
        let table = std::mem::take(&mut self.table);
        let written = self.block(BlockKind::Table, &table);
        self.table = table;
        self.table.clear();
        written
    }

    /// The tag as the file has it; what its numbers mean goes to the table when they are new.
    fn tag(&mut self, record: &Record) -> u64 {
        if record.kind == Kind::Finding {
            let number = usize::try_from(record.len).unwrap_or(usize::MAX);
            let finding = self.kernel.and_then(KernelRef::get).and_then(|kernel| kernel.finding(number));
            if let Some(finding) = finding {
                self.entry(Table::Finding, record.len, &format!("{}\n{finding}", finding.kind.name()));
            }
        }
        if record.kind == Kind::Refused {
            let text = self.kernel.and_then(KernelRef::get).and_then(|kernel| kernel.refusal_text(record.len));
            if let Some(text) = text {
                self.entry(Table::Refusal, record.len, &text);
            }
        }
        if !record.kind.tag_is_owner() {
            return record.tag;
        }
        let owner = owner_of(record.tag);
        let (site, new_site) = self.sites.of(owner.site.index());
        if new_site {
            self.entry(Table::Site, site, &owner.site.to_string());
        }
        let (scope, new_scope) = self.scopes.of(owner.scope.index());
        if new_scope {
            self.entry(Table::Scope, scope, &owner.scope.to_string());
        }
        u64::from(site) | u64::from(scope) << 32
    }

    /// Adds an entry of a table, before the records that need it.
    pub(super) fn name(&mut self, table: Table, number: u32, text: &str) {
        self.entry(table, number, text);
        if self.table.len() >= TABLE_FULL
            && let Err(error) = self.flush_table()
        {
            self.failed.get_or_insert(error);
        }
    }

    /// Writes the next records, whose numbers are the file's own already.
    pub(super) fn raw_page(&mut self, records: &[Raw]) {
        if records.is_empty() || self.failed.is_some() {
            return;
        }
        let mut page = self.next.to_le_bytes().to_vec();
        records.iter().for_each(|raw| put(&mut page, raw));
        match self.flush_table().and_then(|()| self.block(BlockKind::Events, &page)) {
            Ok(()) => self.count(records.iter().filter(|raw| !raw.is_detail()).count() as u64, records.len()),
            Err(error) => self.failed = Some(error),
        }
    }

    fn count(&mut self, events: u64, records: usize) {
        self.end.events += events;
        self.next += events;
        self.end.records += records as u64;
    }

    fn records(&mut self, records: &[(Producer, Record)]) -> io::Result<()> {
        let mut page = std::mem::take(&mut self.page);
        page.clear();
        page.extend(self.next.to_le_bytes());
        let (mut written, mut events) = (Ok(()), 0);
        for (who, record) in records {
            let tag = self.tag(record);
            if self.table.len() >= TABLE_FULL {
                written = written.and(self.flush_table());
            }
            put(&mut page, &Raw { tag, ..Raw::of(*who, record) });
            events += u64::from(!record.kind.is_detail());
        }
        written = written.and_then(|()| self.flush_table()).and_then(|()| self.block(BlockKind::Events, &page));
        self.page = page;
        if written.is_ok() {
            self.count(events, records.len());
        }
        written
    }

    /// Writes the next records.
    pub fn page(&mut self, records: &[(Producer, Record)]) {
        records.chunks(PAGE).for_each(|chunk| self.chunk(chunk));
    }

    fn chunk(&mut self, records: &[(Producer, Record)]) {
        if self.failed.is_none() {
            match self.records(records) {
                Ok(()) => return,
                Err(error) => self.failed = Some(error),
            }
        }
        lose(&mut self.losses, records);
    }

    /// So many events were lost where the next page begins; [`Writer::lost`] is told whose.
    pub(super) fn skip(&mut self, events: u64) {
        self.next += events;
    }

    /// These events were lost, by producer.
    pub(super) fn lost(&mut self, losses: Losses) {
        losses.into_iter().for_each(|(who, events)| *self.losses.entry(who).or_default() += events);
    }

    /// Events that were made and are not in the file, by producer.
    pub(crate) fn losses(&self) -> &Losses {
        &self.losses
    }

    /// The producers and how many events of theirs were lost, if any were.
    fn write_losses(&mut self) -> io::Result<()> {
        if self.losses.is_empty() {
            return Ok(());
        }
        let entry = |(who, events): (&u16, &u64)| who.to_le_bytes().into_iter().chain(events.to_le_bytes());
        let payload: Vec<u8> = self.losses.iter().flat_map(entry).collect();
        self.block(BlockKind::Lost, &payload)
    }

    /// Ends the trace with the run's digest and last clock, and gives back what it was written to.
    ///
    /// # Errors
    /// [`TraceError::Write`] if this or any earlier write failed.
    pub fn finish(mut self, digest: u64, ts: u64) -> Result<W, TraceError> {
        let end = End { digest, ts, lost: self.losses.values().sum(), ..self.end };
        let lost = end.lost;
        let failed = |source| TraceError::Write { lost, source };
        if let Some(source) = self.failed.take() {
            return Err(failed(source));
        }
        self.write_losses()
            .and_then(|()| self.block(BlockKind::End, &end.to_bytes()))
            .and_then(|()| self.out.flush())
            .map_err(failed)?;
        Ok(self.out)
    }
}

/// A writer that a recorder feeds while somebody else keeps it, to end it.
pub(crate) struct Joined<W: Write>(Arc<Mutex<Option<Writer<W>>>>);

impl<W: Write> Clone for Joined<W> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<W: Write> Joined<W> {
    pub(crate) fn new(writer: Writer<W>) -> Self {
        Self(Arc::new(Mutex::new(Some(writer))))
    }

    /// Takes the writer; pages that come later go nowhere.
    pub(crate) fn take(&self) -> Option<Writer<W>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<W: Write + Send> Sink for Joined<W> {
    fn page(&mut self, page: &[(Producer, Record)]) {
        if let Some(writer) = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            writer.page(page);
        }
    }
}
