use std::sync::Arc;

use proptest::prelude::*;
use virtio_queue::QueueOwnedT;
use vm_memory::{Bytes, GuestMemoryMmap};

use super::*;
use crate::pci::{Beyond, BusMasterGate, Refusal};
use crate::testing::{DATA, HIGH, INDIRECT, Layout, NEXT, WRITE, ram};

struct Bench {
    ram: GuestMemoryMmap<()>,
    mem: BusMaster<GuestMemoryMmap<()>>,
    layout: Layout,
    ring: Ring,
    gate: Arc<BusMasterGate>,
}

fn bench(features: u64) -> Bench {
    let (memory, gate) = (ram(), Arc::<BusMasterGate>::default());
    gate.set(true);
    let mem = BusMaster::new(memory.clone(), 32, Beyond::Refuse, Arc::clone(&gate), ()).unwrap();
    let layout = Layout::new(0, 8);
    let Layout { size, desc, avail, used, .. } = layout;
    let ring = Ring::new(QueueConfig { index: 0, size, desc, avail, used, features, start: 0 }).unwrap();
    Bench { ram: memory, mem, layout, ring, gate }
}

impl Bench {
    /// Offers a chain made of raw descriptors from 0 on.
    fn raw(&mut self, descriptors: &[(u64, u32, u16, u16)]) {
        for (index, desc) in (0u16..).zip(descriptors) {
            self.layout.put(&self.ram, self.layout.desc, index, *desc);
        }
        self.layout.offer(&self.ram, 0);
    }

    fn pop(&mut self) -> Result<Option<Chain>, RingError> {
        self.ring.pop(&self.mem)
    }

    fn put16(&self, at: u64, value: u16) {
        self.ram.write_obj(value, GuestAddress(at)).unwrap();
    }
}

#[test]
fn a_direct_chain_comes_out_as_it_went_in() {
    let mut bench = bench(0);
    assert!(bench.pop().unwrap().is_none());
    let head = bench.layout.submit(&bench.ram, &[(DATA, 16, false), (DATA + 16, 512, true)]);
    let chain = bench.pop().unwrap().unwrap();
    let [first, second] =
        [(DATA, 16, false), (DATA + 16, 512, true)].map(|(addr, len, write)| Segment { addr, len, write });
    assert_eq!((chain.head, &chain.descs[..]), (head, &[first, second][..]));
    assert!(bench.pop().unwrap().is_none());
    bench.ring.publish(&bench.mem, chain.head, 513).unwrap();
    assert_eq!(bench.layout.used(&bench.ram), [(u32::from(head), 513)]);
}

#[test]
fn storage_is_reused() {
    let mut bench = bench(0);
    bench.layout.submit(&bench.ram, &[(DATA, 16, false), (DATA, 16, true)]);
    let chain = bench.pop().unwrap().unwrap();
    let place = chain.descs.as_ptr();
    bench.ring.recycle(chain);
    bench.layout.submit(&bench.ram, &[(DATA, 1, true)]);
    let chain = bench.pop().unwrap().unwrap();
    assert_eq!((chain.descs.as_ptr(), chain.descs.len()), (place, 1));
}

#[test]
fn an_indirect_table_is_followed_once_and_only_if_negotiated() {
    let table = DATA + 0x1000;
    let mut good = bench(INDIRECT_DESC);
    good.layout.put(&good.ram, table, 0, (DATA, 16, NEXT, 1));
    good.layout.put(&good.ram, table, 1, (DATA + 16, 1, WRITE, 0));
    good.raw(&[(DATA + 64, 8, NEXT, 1), (table, 32, INDIRECT, 0)]);
    assert_eq!(good.pop().unwrap().unwrap().descs.iter().map(|seg| seg.len).collect::<Vec<_>>(), [8, 16, 1]);

    let mut bare = bench(0);
    bare.raw(&[(table, 32, INDIRECT, 0)]);
    assert!(matches!(bare.pop(), Err(RingError::Indirect { head: 0, index: 0, flags: INDIRECT })));

    let mut nested = bench(INDIRECT_DESC);
    nested.layout.put(&nested.ram, table, 0, (table, 16, INDIRECT, 0));
    nested.raw(&[(table, 32, INDIRECT, 0)]);
    assert!(matches!(nested.pop(), Err(RingError::Indirect { .. })));

    for (len, flags) in [(0, INDIRECT), (24, INDIRECT), (16 << 16, INDIRECT), (16, INDIRECT | NEXT)] {
        let mut bad = bench(INDIRECT_DESC);
        bad.raw(&[(table, len, flags, 1)]);
        let error = bad.pop().unwrap_err();
        assert!(matches!(error, RingError::TableLength { .. } | RingError::Indirect { .. }), "{error}");
    }
}

#[test]
fn bad_chains_are_named() {
    let pop = |descriptors: &[(u64, u32, u16, u16)]| {
        let mut bench = bench(0);
        bench.raw(descriptors);
        bench.pop().unwrap_err()
    };
    assert!(matches!(pop(&[(DATA, 1, NEXT, 0)]), RingError::TooLong { head: 0, size: 8 }));
    assert!(matches!(pop(&[(DATA, 1, NEXT, 8)]), RingError::Index { index: 8, entries: 8 }));
    assert!(matches!(pop(&[(DATA, 0, 0, 0)]), RingError::Empty { head: 0, index: 0 }));
    let huge = pop(&[(0, u32::MAX, NEXT, 1), (0, 1, 0, 0)]);
    assert!(matches!(huge, RingError::TooManyBytes { head: 0 }));
    let turned = pop(&[(DATA, 1, WRITE | NEXT, 1), (DATA, 1, 0, 0)]);
    assert!(matches!(turned, RingError::ReadableAfterWritable { head: 0, index: 1 }));
}

#[test]
fn a_head_or_an_index_beyond_the_ring_is_named() {
    let mut beyond = bench(0);
    beyond.layout.offer(&beyond.ram, 8);
    assert!(matches!(beyond.pop(), Err(RingError::Index { index: 8, entries: 8 })));
    let mut ahead = bench(0);
    ahead.put16(ahead.layout.avail + 2, 9);
    assert!(matches!(ahead.pop(), Err(RingError::AvailIndex { index: 9, next: 0, size: 8 })));
}

#[test]
fn a_fault_is_an_error_and_not_an_empty_ring_or_a_shorter_chain() {
    let mut off = bench(EVENT_IDX);
    off.layout.submit(&off.ram, &[(DATA, 1, true)]);
    off.gate.set(false);
    let is_off = |error: RingError| matches!(error, RingError::Fault(fault) if fault.why == Refusal::BusMasterOff);
    assert!(is_off(off.pop().unwrap_err()));
    assert!(is_off(off.ring.publish(&off.mem, 0, 1).unwrap_err()));
    assert!(is_off(off.ring.needs_interrupt(&off.mem).unwrap_err()));
    assert!(is_off(off.ring.arm(&off.mem).unwrap_err()));

    let mut table = bench(INDIRECT_DESC);
    table.raw(&[(HIGH, 32, INDIRECT, 0)]);
    let error = table.pop().unwrap_err();
    assert!(matches!(error, RingError::Fault(fault) if fault.addr == HIGH && fault.len == 16 && !fault.write));
}

#[test]
fn no_interrupt_is_obeyed_without_event_idx() {
    let bench = &mut bench(0);
    assert!(bench.ring.needs_interrupt(&bench.mem).unwrap());
    bench.put16(bench.layout.avail, 1);
    assert!(!bench.ring.needs_interrupt(&bench.mem).unwrap());
}

#[test]
fn event_idx_decides_interrupts_and_doorbells_across_the_wrap() {
    let bench = &mut bench(EVENT_IDX);
    let used_event = bench.layout.avail + 4 + 2 * 8;
    let avail_event = GuestAddress(bench.layout.used + 4 + 8 * 8);
    // NO_INTERRUPT means nothing here.
    bench.put16(bench.layout.avail, 1);
    for turn in 0..=0x1_0003u32 {
        let [low, high, ..] = turn.to_le_bytes();
        let turn = u16::from_le_bytes([low, high]);
        let wanted = turn % 3 == 1;
        bench.put16(used_event, if wanted { turn } else { turn.wrapping_add(1) });
        bench.layout.submit(&bench.ram, &[(DATA, 1, true)]);
        let chain = bench.ring.pop(&bench.mem).unwrap().unwrap();
        bench.ring.publish(&bench.mem, chain.head, 1).unwrap();
        bench.ring.recycle(chain);
        assert_eq!(bench.ring.needs_interrupt(&bench.mem).unwrap(), wanted, "turn {turn}");
        assert!(!bench.ring.arm(&bench.mem).unwrap());
        assert_eq!(bench.ram.read_obj::<u16>(avail_event).unwrap(), turn.wrapping_add(1));
    }
    bench.layout.submit(&bench.ram, &[(DATA, 1, true)]);
    assert!(bench.ring.arm(&bench.mem).unwrap(), "one came before the doorbell was armed");
}

proptest! {
    /// Where virtio-queue finds a whole chain and the rules hold, both agree on it.
    #[test]
    fn chains_agree_with_virtio_queue(
        descriptors in prop::collection::vec((0u64..0x8000, 0u32..64, 0u16..8, 0u16..10), 8)
    ) {
        let mut bench = bench(INDIRECT_DESC);
        // Offsets into RAM are spread so that tables may lie in the descriptor table itself.
        let spread: Vec<_> =
            descriptors.iter().map(|(addr, len, flags, next)| (0x10000 + addr / 64, *len, *flags, *next)).collect();
        bench.raw(&spread);
        let Layout { desc, avail, used, .. } = bench.layout;
        let mut twin = Queue::new(8).unwrap();
        twin.try_set_desc_table_address(GuestAddress(desc)).unwrap();
        twin.try_set_avail_ring_address(GuestAddress(avail)).unwrap();
        twin.try_set_used_ring_address(GuestAddress(used)).unwrap();
        twin.set_ready(true);
        let chain: Vec<_> = twin.iter(&bench.ram).unwrap().next().unwrap()
            .map(|desc| Segment { addr: desc.addr().0, len: desc.len(), write: desc.is_write_only() }).collect();
        if let Ok(popped) = bench.pop() {
            prop_assert_eq!(popped.unwrap().descs, chain);
        }
    }
}
