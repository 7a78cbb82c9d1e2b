use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::blk::{BlkOptions, BlkQueues, BlkWorker};
use crate::counters::Counters;
use crate::misbehave::{Mishap, Script};
use crate::pci::{Beyond, BusMaster, BusMasterGate};
use crate::store::{MemoryStore, Store};
use crate::testing::{DATA, Layout, NEXT, ram};
use crate::virtio::{EVENT_IDX, QueueConfig, QueueHost, QueueShared, RingError, VERSION_1};
use crate::worker::Worker;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;

#[derive(Default)]
struct Host {
    told: AtomicUsize,
    broken: AtomicUsize,
}

impl QueueHost for Host {
    fn used_buffers(&self, _queue: u16) {
        self.told.fetch_add(1, Ordering::Relaxed);
    }
    fn needs_reset(&self) {
        self.broken.fetch_add(1, Ordering::Relaxed);
    }
    fn reset_done(&self, _queue: u16) {}
}

struct Bench {
    ram: GuestMemoryMmap<()>,
    layout: Layout,
    worker: BlkWorker<GuestMemoryMmap<()>>,
    host: Arc<Host>,
    counters: Arc<Counters>,
    script: Arc<Script>,
    store: Arc<Store>,
    shared: Arc<QueueShared>,
}

fn bench(features: u64, start: u16) -> Bench {
    let (ram, host, counters) = (ram(), Arc::<Host>::default(), Arc::<Counters>::default());
    let (script, store) = (Arc::<Script>::default(), Arc::new(Store::Memory(MemoryStore::zeroed(1 << 20).unwrap())));
    let options = BlkOptions { queue_size: 64, ..BlkOptions::default() };
    let queues = BlkQueues::new(&options, store.clone(), host.clone(), counters.clone(), script.clone()).unwrap();
    let gate = Arc::<BusMasterGate>::default();
    gate.set(true);
    let mem = BusMaster::new(ram.clone(), 64, Beyond::Refuse, gate, ()).unwrap();
    let shared = Arc::<QueueShared>::default();
    let mut layout = Layout::new(0, 64);
    (layout.avail_idx, layout.seen) = (start, start);
    ram.write_obj(start, GuestAddress(layout.avail + 2)).unwrap();
    let Layout { size, desc, avail, used, .. } = layout;
    shared.activate(QueueConfig { index: 0, size, desc, avail, used, features: VERSION_1 | features, start });
    let worker = queues.worker(0, shared.clone(), mem);
    Bench { ram, layout, worker, host, counters, script, store, shared }
}

impl Bench {
    /// Submits a request with its own header, 512 bytes of data and status in slot `slot`.
    fn submit(&mut self, slot: u64, kind: u32, sector: u64) -> u16 {
        let at = DATA + slot * 0x400;
        self.ram.write_obj(kind, GuestAddress(at)).unwrap();
        self.ram.write_obj(sector, GuestAddress(at + 8)).unwrap();
        self.ram.write_obj(0xffu8, GuestAddress(at + 16)).unwrap();
        let mut segments = vec![(at, 16, false), (at + 0x200, 512, kind == IN), (at + 16, 1, true)];
        if kind == FLUSH {
            segments.remove(1);
        }
        self.layout.submit(&self.ram, &segments)
    }

    fn fill(&self, slot: u64, byte: u8) {
        self.ram.write_slice(&[byte; 512], GuestAddress(DATA + slot * 0x400 + 0x200)).unwrap();
    }

    fn status(&self, slot: u64) -> u8 {
        self.ram.read_obj(GuestAddress(DATA + slot * 0x400 + 16)).unwrap()
    }

    fn used(&mut self) -> Vec<(u32, u32)> {
        self.layout.used(&self.ram.clone())
    }
}

#[test]
fn a_batch_is_done_in_order_shown_together_and_told_once() {
    let mut bench = bench(0, 0);
    let heads: Vec<_> = (0..6)
        .map(|slot| {
            bench.fill(slot, u8::try_from(slot).unwrap() + 1);
            bench.submit(slot, if slot == 5 { FLUSH } else { OUT }, slot)
        })
        .collect();
    assert!(bench.worker.waiting());
    assert_eq!(bench.worker.batch(4, 0), 4);
    let lens = |heads: &[u16]| heads.iter().map(|head| (u32::from(*head), 1)).collect::<Vec<_>>();
    assert_eq!(bench.used(), lens(&heads[..4]));
    assert_eq!(bench.worker.batch(4, 0), 2);
    assert_eq!(bench.used(), lens(&heads[4..]));
    assert_eq!(bench.worker.batch(4, 0), 0);
    assert_eq!(bench.host.told.load(Ordering::Relaxed), 2);
    assert_eq!((0..6).map(|slot| bench.status(slot)).collect::<Vec<_>>(), [0; 6]);
    let mut sector = [0; 512];
    bench.store.read_at(4 * 512, &vm_memory::VolatileSlice::from(&mut sector[..])).unwrap();
    assert_eq!(sector, [5; 512]);
    let totals = bench.counters.totals();
    assert_eq!((totals.requests, totals.bytes_written, totals.flushes), (6, 5 * 512, 1));
    assert!(!bench.worker.waiting() && !bench.worker.ready());
}

#[test]
fn a_ring_that_was_stopped_goes_on_where_it_was() {
    let mut bench = bench(EVENT_IDX, 0xfffe);
    assert_eq!(bench.worker.next(), Some(0xfffe));
    let heads: Vec<_> = (0..3).map(|slot| bench.submit(slot, IN, slot)).collect();
    assert_eq!(bench.worker.batch(9, 0), 3);
    assert_eq!(bench.worker.next(), Some(1));
    assert_eq!(bench.used(), heads.iter().map(|head| (u32::from(*head), 513)).collect::<Vec<_>>());
}

#[test]
fn with_event_idx_a_batch_tells_only_whom_it_passes() {
    let mut bench = bench(EVENT_IDX, 0);
    let event = bench.layout.avail + 4 + 2 * 64;
    for (slot, (wish, told)) in (0..).zip([(0u16, 1), (9, 1), (9, 1), (3, 2)]) {
        bench.ram.write_obj(wish, GuestAddress(event)).unwrap();
        bench.submit(slot, IN, 0);
        assert_eq!(bench.worker.batch(1, 0), 1);
        assert_eq!(bench.host.told.load(Ordering::Relaxed), told, "slot {slot}");
    }
}

#[test]
fn doorbells_are_off_while_the_caller_looks_and_on_before_it_sleeps() {
    let mut bench = bench(0, 0);
    let flags = bench.layout.used;
    let read = |bench: &Bench| bench.ram.read_obj::<u16>(GuestAddress(flags)).unwrap();
    bench.worker.disarm();
    assert_eq!(read(&bench), 1);
    assert!(!bench.worker.arm());
    assert_eq!(read(&bench), 0);
    bench.worker.disarm();
    bench.submit(0, IN, 0);
    assert!(bench.worker.arm(), "one came before the doorbell was on");
}

#[test]
fn a_broken_chain_stops_the_queue_and_what_came_before_it_is_given_back() {
    let mut bench = bench(0, 0);
    let head = bench.submit(0, IN, 0);
    bench.layout.put(&bench.ram, bench.layout.desc, 40, (DATA, 16, NEXT, 40));
    bench.layout.offer(&bench.ram, 40);
    bench.submit(1, IN, 0);
    bench.worker.batch(8, 0);
    assert_eq!(bench.used(), [(head.into(), 513)]);
    assert!(bench.worker.is_stopped() && bench.host.broken.load(Ordering::Relaxed) == 1);
    assert!(matches!(bench.counters.take_ring_error(), Some(RingError::TooLong { head: 40, .. })));
    assert_eq!((bench.worker.batch(8, 0), bench.worker.waiting(), bench.worker.arm()), (0, false, false));
    bench.shared.begin_reset();
    bench.worker.service(0);
    assert!(!bench.worker.is_stopped());
}

#[test]
fn mishaps_strike_in_a_batch_as_they_do_one_phase_at_a_time() {
    let mut bench = bench(0, 0);
    bench.script.plan(1, Mishap::IoError, false);
    bench.script.plan(2, Mishap::CompletionNever, false);
    bench.script.plan(3, Mishap::CompletionTwice, false);
    let heads: Vec<u32> = (0..5).map(|slot| bench.submit(slot, IN, 0).into()).collect();
    assert_eq!(bench.worker.batch(8, 0), 5);
    let order: Vec<_> = bench.used().into_iter().map(|(head, _)| head).collect();
    assert_eq!(order, [heads[0], heads[1], heads[3], heads[3], heads[4]]);
    assert_eq!([bench.status(0), bench.status(1), bench.status(2)], [0, 1, 0xff]);
}
