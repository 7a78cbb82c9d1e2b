use proptest::prelude::*;
use vm_memory::{Bytes, GuestMemoryMmap};

use super::*;
use crate::testing::{HIGH, Log, RAM, Seen, ram};

type Port = BusMaster<GuestMemoryMmap<()>, Arc<Log>>;

fn port(width: u8, beyond: Beyond) -> (Port, GuestMemoryMmap<()>, Arc<Log>) {
    let (memory, log, gate) = (ram(), Arc::<Log>::default(), Arc::<BusMasterGate>::default());
    gate.set(true);
    let master = BusMaster::new(memory.clone(), width, beyond, gate, Arc::clone(&log)).unwrap();
    (master, memory, log)
}

#[test]
fn a_width_outside_1_to_64_is_an_error() {
    for width in [0, 65, 255] {
        let made = BusMaster::new(ram(), width, Beyond::Wrap, Arc::default(), ());
        assert_eq!(made.err(), Some(BusMasterError::Width { width }));
    }
}

#[test]
fn refuse_latches_the_first_fault_and_moves_nothing() {
    let (port, memory, log) = port(32, Beyond::Refuse);
    assert!(port.write_slice(&[1; 8], GuestAddress(HIGH)).is_err());
    assert!(port.read_obj::<u32>(GuestAddress(HIGH - 2)).is_err());
    let why = Refusal::BeyondWidth { width: 32 };
    let first = Fault { addr: HIGH, len: 8, write: true, why };
    assert_eq!((port.fault(), port.take_fault(), port.take_fault()), (Some(first), Some(first), None));
    assert_eq!(memory.read_obj::<u64>(GuestAddress(HIGH)).unwrap(), 0);
    assert_eq!(log.take(), [Seen::Refused(HIGH, 8, true, why), Seen::Refused(HIGH - 2, 4, false, why)]);
}

#[test]
fn wrap_hits_the_wrong_memory_and_says_which() {
    let (port, memory, log) = port(32, Beyond::Wrap);
    port.write_slice(&[7; 4], GuestAddress(HIGH + 0x100)).unwrap();
    assert_eq!(memory.read_obj::<u32>(GuestAddress(0x100)).unwrap(), 0x0707_0707);
    assert_eq!(memory.read_obj::<u32>(GuestAddress(HIGH + 0x100)).unwrap(), 0);
    let wrapped = Seen::Wrapped(HIGH + 0x100, 0x100, 4, true, 32);
    assert_eq!((port.fault(), log.take()), (None, vec![wrapped, Seen::Granted(0x100, 4, true)]));
}

#[test]
fn an_access_across_the_width_goes_on_at_zero() {
    let (port, memory, log) = port(16, Beyond::Wrap);
    port.write_slice(&[1, 2, 3, 4], GuestAddress(0x1fffe)).unwrap();
    assert_eq!(memory.read_obj::<u16>(GuestAddress(0xfffe)).unwrap(), 0x0201);
    assert_eq!(memory.read_obj::<u16>(GuestAddress(0)).unwrap(), 0x0403);
    let mut back = [0; 4];
    port.read_slice(&mut back, GuestAddress(0xfffe)).unwrap();
    assert_eq!(back, [1, 2, 3, 4]);
    port.moved(0xfffe, 4, false);
    assert!(log.take().ends_with(&[Seen::Moved(0xfffe, 2, false), Seen::Moved(0, 2, false)]));
}

#[test]
fn an_access_longer_than_the_device_can_address_is_refused() {
    let (port, _, _) = port(3, Beyond::Wrap);
    assert!(port.write_slice(&[0; 8], GuestAddress(3)).is_ok());
    assert!(port.write_slice(&[0; 9], GuestAddress(3)).is_err());
    assert_eq!(port.take_fault().map(|fault| fault.why), Some(Refusal::BeyondWidth { width: 3 }));
}

#[test]
fn an_address_that_overflows_is_refused_whatever_the_policy() {
    for beyond in [Beyond::Refuse, Beyond::Wrap] {
        let (port, _, _) = port(64, beyond);
        assert!(port.read_obj::<u64>(GuestAddress(u64::MAX - 6)).is_err());
        assert_eq!(port.take_fault().map(|fault| fault.why), Some(Refusal::BeyondWidth { width: 64 }));
        assert!(port.read_obj::<u64>(GuestAddress(u64::MAX - 7)).is_err());
        assert_eq!(port.take_fault().map(|fault| fault.why), Some(Refusal::Memory));
    }
}

#[test]
fn a_closed_gate_refuses_and_checking_a_range_latches_too() {
    let (port, _, _) = port(32, Beyond::Refuse);
    port.gate.set(false);
    assert!(!port.check_range(GuestAddress(0), 16, Permissions::Write));
    let fault = Fault { addr: 0, len: 16, write: true, why: Refusal::BusMasterOff };
    assert_eq!(port.take_fault(), Some(fault));
    port.gate.set(true);
    assert!(port.check_range(GuestAddress(0), 16, Permissions::Write));
    assert!(!port.check_range(GuestAddress(RAM as u64 - 8), 16, Permissions::Read));
    assert_eq!(port.take_fault().map(|fault| fault.why), Some(Refusal::Memory));
}

#[test]
fn memory_that_ends_within_an_access_is_a_fault_and_not_a_short_one() {
    let (port, _, _) = port(32, Beyond::Refuse);
    assert!(port.write_slice(&[1; 16], GuestAddress(RAM as u64 - 8)).is_err());
    let why = Refusal::Memory;
    assert_eq!(port.take_fault(), Some(Fault { addr: RAM as u64 - 8, len: 16, write: true, why }));
}

#[test]
fn no_bytes_are_no_access() {
    let (port, _, log) = port(32, Beyond::Refuse);
    port.gate.set(false);
    assert!(port.check_range(GuestAddress(HIGH), 0, Permissions::Read));
    assert_eq!(port.get_slices(GuestAddress(HIGH), 0, Permissions::Read).unwrap().count(), 0);
    assert_eq!((port.take_fault(), log.take()), (None, vec![]));
}

proptest! {
    #[test]
    fn a_wrapped_write_is_what_an_adder_of_that_width_would_do(
        width in 4u8..=19, addr in 0u64..1 << 24, data in prop::collection::vec(1u8.., 1..40)
    ) {
        let (port, memory, _) = port(width, Beyond::Wrap);
        let mask = (1u64 << width) - 1;
        let fits = data.len() as u64 <= mask + 1;
        prop_assert_eq!(port.write_slice(&data, GuestAddress(addr)).is_ok(), fits);
        let mut shadow = vec![0u8; 1 << width];
        if fits {
            for (nth, byte) in data.iter().enumerate() {
                shadow[usize::try_from((addr + nth as u64) & mask).unwrap()] = *byte;
            }
        }
        let mut real = vec![0; 1 << width];
        memory.read_slice(&mut real, GuestAddress(0)).unwrap();
        prop_assert!(real == shadow);
        prop_assert_eq!(port.take_fault().is_some(), !fits);
    }
}

#[test]
fn a_gate_that_is_gone_refuses_unseen_until_it_is_back() {
    let (gate, log) = (Arc::<BusMasterGate>::default(), Arc::<Log>::default());
    gate.set(true);
    let port = BusMaster::new(ram(), 32, Beyond::Refuse, Arc::clone(&gate), Arc::clone(&log)).unwrap();
    gate.remove();
    gate.set(true);
    assert!(gate.is_gone() && !gate.is_open());
    assert!(port.write_obj(1u8, GuestAddress(0)).is_err());
    assert!(!port.check_range(GuestAddress(0), 1, Permissions::Read));
    assert_eq!((port.take_fault(), log.take()), (None, vec![]));
    gate.restore();
    assert!(port.write_obj(1u8, GuestAddress(0)).is_err());
    assert_eq!(port.take_fault().map(|fault| fault.why), Some(Refusal::BusMasterOff));
    gate.set(true);
    assert!(port.write_obj(1u8, GuestAddress(0)).is_ok());
}
