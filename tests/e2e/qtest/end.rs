//! How it ends: in order, by death, by silence, and when it never begins.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lowzone_driver::blk::{BlkDriver, BlkOptions, Data, Request};
use lowzone_driver::driver::{bind, unbind};
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::iospace::{IoSpace, Width};
use lowzone_guest_mem::kernel::{Machine, MachineConfig};
use lowzone_guest_mem::{KBuf, PhysAddr};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::{Rig, end, small};
use lowzone::wire::InProc;
use lowzone::wire::qtest::{BlkPeer, Drive, Peer, Qemu, QtestError};
use lowzone_tests::peer;

fn pid(rig: &Rig) -> Pid {
    Pid::from_raw(i32::try_from(rig.bus.process_id()).unwrap()).unwrap()
}

fn start(machine: &Machine, peers: &[Peer]) -> Result<Qemu, QtestError> {
    let kernel = machine.kernel_ref();
    Qemu::start(kernel, Arc::new(InProc::new(kernel, 2)), peers)
}

fn disk() -> Peer {
    Peer::Blk { drive: Drive::Null { bytes: 1 << 20 }, options: BlkPeer::default() }
}

#[test]
fn it_ends_with_the_bus_and_leaves_ram_clean() {
    if !peer::qemu() {
        return;
    }
    let config = MachineConfig { ram: 192 << 20, low: 192 << 20, ..MachineConfig::default() };
    let rig = Rig::new(config, &[disk()]);
    let pid = pid(&rig);
    assert!(test_kill_process(pid).is_ok());
    let ram = rig.machine.kernel().ram();
    // Written by QEMU alone: no dirty map knows of it.
    let at = PhysAddr::new(0x30_0000);
    rig.bus.write(at, Width::B4, 0x5eed_5eed);
    assert_eq!(ram.load::<u32>(at).unwrap(), 0x5eed_5eed);
    assert_eq!(end(rig), "");
    assert!(test_kill_process(pid).is_err(), "killed and reaped");
    let again = Machine::acquire(MachineConfig { cpus: 1, ..config }).unwrap();
    assert_eq!(again.kernel().ram().load::<u32>(at).unwrap(), 0, "the next loan begins with zeros");
}

#[test]
fn its_death_is_one_error_and_hangs_nobody() {
    if !peer::qemu() {
        return;
    }
    let rig = Rig::new(small(), &[disk()]);
    let (cpu, devices) = (rig.cpu(), rig.devices());
    let driver = BlkDriver::new(BlkOptions { timeout: 50_000_000, ..BlkOptions::default() });
    assert!(bind(&cpu, &driver, &devices[0]).unwrap());
    let disk = driver.disk(Qemu::place(0)).unwrap();
    kill_process(pid(&rig), Signal::KILL).unwrap();
    let begun = Instant::now();
    let buf = KBuf::kmalloc(&cpu, 4096, GFP_KERNEL).unwrap();
    let pending = disk.submit(&cpu, 0, Request::read(0, Data::Streaming(buf)));
    let ok = pending.is_ok_and(|pending| disk.wait(&cpu, pending).result.is_ok());
    assert!(!ok, "a dead emulator answered");
    assert_eq!(devices[0].config_read(0, Width::B4), u32::MAX);
    drop(disk);
    unbind(&cpu, &driver, &devices[0]);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let failure = rig.bus.failure().unwrap();
    assert_eq!(failure, "QEMU ended: signal: 9 (SIGKILL)");
}

#[test]
fn what_qemu_refuses_is_quoted() {
    if !peer::qemu() {
        return;
    }
    let machine = Machine::acquire(small()).unwrap();
    let image = Drive::Image { path: PathBuf::from("/nowhere/a,b") };
    let peer = Peer::Blk { drive: image, options: BlkPeer::default() };
    let error = start(&machine, &[peer]).err().unwrap().to_string();
    assert!(error.starts_with("QEMU ended: exit status: 1: "), "{error}");
    assert!(error.contains("Could not open '/nowhere/a,b': No such file or directory"), "{error}");
    let peer =
        Peer::Blk { drive: Drive::Null { bytes: 1 << 20 }, options: BlkPeer { queue_size: 3, ..BlkPeer::default() } };
    let error = start(&machine, &[peer]).err().unwrap().to_string();
    assert!(error.contains("queue-size"), "{error}");
}

#[test]
fn a_machine_that_qemu_cant_lay_out_is_refused() {
    if !peer::qemu() {
        return;
    }
    let config = MachineConfig { ram: 6 << 30, low: 0xe000_0000, ..MachineConfig::default() };
    let machine = Machine::acquire(config).unwrap();
    let error = start(&machine, &[]).err().unwrap();
    assert!(matches!(error, QtestError::Split { low: 0xe000_0000, .. }), "{error}");
}
