//! From the recorder to the file: at once in lockstep, through a bounded queue where several threads make records.
//!
//! In threads nobody who makes records waits for the file. Full pages go to a thread that writes them; where
//! [`WAITING`] pages wait already a page is dropped, its events counted by producer, and the numbers of later events
//! leave a gap for it. Neighbours: `writer`, `lab`. Left out: pages that are not full, which the recorder keeps.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use lowzone_guest_mem::trace::{Producer, Record, Sink};

use super::writer::{Joined, Writer};

/// Pages that may wait for the file: 10 MB.
const WAITING: usize = 512;

/// Events that are not in the file, by producer.
pub(super) type Losses = BTreeMap<u16, u64>;

/// Records, and how many events were dropped before them.
type Page = (u64, Vec<(Producer, Record)>);

/// Counts the events of some records that go nowhere.
pub(super) fn lose(losses: &mut Losses, records: &[(Producer, Record)]) -> u64 {
    let events = records.iter().filter(|(_, record)| !record.kind.is_detail());
    events.map(|(who, _)| *losses.entry(who.0).or_default() += 1).count() as u64
}

/// What feeds a writer.
pub(crate) enum Feed<W: Write> {
    /// The recorder writes.
    Direct(Joined<W>),
    /// A thread writes.
    Queued(Queue<W>),
}

impl<W: Write + Send + 'static> Feed<W> {
    /// Feeds `writer`; `threads` if several of them make records.
    ///
    /// # Errors
    /// The system's, if there can be no thread that writes.
    pub(crate) fn new(writer: Writer<W>, threads: bool) -> std::io::Result<Self> {
        if threads { Queue::new(writer).map(Self::Queued) } else { Ok(Self::Direct(Joined::new(writer))) }
    }

    /// What the recorder is to be given; it must be gone before [`Feed::end`].
    pub(crate) fn sink(&self) -> Box<dyn Sink> {
        match self {
            Self::Direct(joined) => Box::new(joined.clone()),
            Self::Queued(queue) => Box::new(Mouth(queue.shared.clone())),
        }
    }

    /// Everything that was fed is written, and the writer comes back; `None` if its thread died.
    pub(crate) fn end(self) -> Option<Writer<W>> {
        match self {
            Self::Direct(joined) => joined.take(),
            Self::Queued(queue) => queue.end(),
        }
    }
}

/// The end of the queue that the recorder has.
struct Shared {
    sender: Option<SyncSender<Page>>,
    dropped: u64,
    losses: Losses,
}

/// A writer in a thread of its own.
pub(crate) struct Queue<W: Write> {
    shared: Arc<Mutex<Shared>>,
    thread: JoinHandle<Writer<W>>,
}

impl<W: Write + Send + 'static> Queue<W> {
    fn new(writer: Writer<W>) -> std::io::Result<Self> {
        let (sender, pages) = sync_channel(WAITING);
        let thread = std::thread::Builder::new().name("trace".into()).spawn(move || write(writer, &pages))?;
        let shared = Shared { sender: Some(sender), dropped: 0, losses: Losses::new() };
        Ok(Self { shared: Arc::new(Mutex::new(shared)), thread })
    }

    fn end(self) -> Option<Writer<W>> {
        let (dropped, losses) = {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.sender = None;
            (shared.dropped, std::mem::take(&mut shared.losses))
        };
        let mut writer = self.thread.join().ok()?;
        writer.skip(dropped);
        writer.lost(losses);
        Some(writer)
    }
}

fn write<W: Write>(mut writer: Writer<W>, pages: &Receiver<Page>) -> Writer<W> {
    for (dropped, page) in pages {
        writer.skip(dropped);
        writer.page(&page);
    }
    writer
}

struct Mouth(Arc<Mutex<Shared>>);

impl Sink for Mouth {
    fn page(&mut self, page: &[(Producer, Record)]) {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Shared { sender, dropped, losses } = &mut *shared;
        let sent = sender.as_ref().map(|sender| sender.try_send((*dropped, page.to_vec())));
        match sent {
            Some(Ok(())) => *dropped = 0,
            Some(Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) | None => *dropped += lose(losses, page),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use lowzone_guest_mem::trace::{Kind, PAGE, Recorder};

    use super::super::format::Header;
    use super::super::reader::Reader;
    use super::*;

    /// Whether the gate is open, and what the file has.
    type Gated = (Mutex<(bool, Vec<u8>)>, Condvar);

    /// A file that takes nothing until its gate is open.
    #[derive(Clone, Default)]
    struct Slow(Arc<Gated>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let (state, opened) = &*self.0;
            // The beginning of a file is written before anybody runs.
            let mut state = opened.wait_while(state.lock().unwrap(), |(open, has)| !*open && has.len() > 4096).unwrap();
            state.1.extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_slow_file_loses_events_and_every_one_is_counted_by_its_ring() {
        const EACH: u64 = (2 * WAITING * PAGE) as u64;
        let (file, recorder) = (Slow::default(), Recorder::default());
        let header = Header { cpus: 2, ..Header::default() };
        let feed = Feed::new(Writer::new(file.clone(), &header, &[], None).unwrap(), true).unwrap();
        recorder.share();
        recorder.stream(feed.sink());
        std::thread::scope(|scope| {
            for who in [0, 1, 7] {
                let recorder = &recorder;
                scope.spawn(move || {
                    let event = |n| Record { ts: n, addr: n, len: 1, kind: Kind::Step, dev: 0, tag: 0 };
                    (0..EACH + u64::from(who)).for_each(|n| recorder.emit(Producer(who), event(n)));
                });
            }
        });
        file.0.0.lock().unwrap().0 = true;
        file.0.1.notify_all();
        recorder.end_stream();
        drop(feed.end().unwrap().finish(0, 0).unwrap());
        let bytes = file.0.0.lock().unwrap().1.clone();
        let (mut reader, mut in_file, mut gaps, mut last) =
            (Reader::new("t".into(), &bytes[..]).unwrap(), Losses::new(), 0, None::<u64>);
        while let Some(event) = reader.next_event().unwrap() {
            *in_file.entry(event.raw.who).or_default() += 1;
            gaps += event.number - last.map_or(0, |last| last + 1);
            last = Some(event.number);
        }
        let lost = reader.losses();
        assert!(lost.values().sum::<u64>() > EACH, "two thirds of it find no room: {lost:?}");
        assert_eq!(reader.end().unwrap().lost, lost.values().sum::<u64>());
        for (who, made) in recorder.made() {
            let count = |of: &Losses| of.get(&who.0).copied().unwrap_or(0);
            assert_eq!((made, count(&in_file) + count(lost)), (EACH + u64::from(who.0), made), "{who:?}");
        }
        let after = recorder.events() - last.map_or(0, |last| last + 1);
        assert_eq!(gaps + after, lost.values().sum::<u64>(), "numbers leave room for what is lost");
    }
}
