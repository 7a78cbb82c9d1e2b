//! Every point of a probe that may fail, failed in turn: nothing stays behind, and the next probe works.

use std::sync::{Arc, Mutex};

use lowzone::explore::observer::Observer;
use lowzone::world::Exit;
use lowzone_device::blk::BlkOptions as DeviceOptions;
use lowzone_driver::blk::{BlkDriver, BlkOptions, Data, Request};
use lowzone_driver::pci::PciDevice;
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::kernel::MachineConfig;
use lowzone_guest_mem::{Cpu, KBuf};
use lowzone_tests::rig::{Rig, Serve};

const BYTES: usize = 1 << 20;

/// What became of one probe.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Probe {
    Bound { irqs: usize },
    Failed { errno: i32, text: String },
}

fn rig(seed: u64) -> Rig {
    let options = DeviceOptions { queues: 2, ..DeviceOptions::default() };
    Rig::new(MachineConfig::default(), options, vec![0; BYTES], Serve::Device, seed)
}

fn bind(rig: &mut Rig, driver: &Arc<BlkDriver>, pci: &Arc<PciDevice>) -> Probe {
    let outcome = Arc::new(Mutex::new(None));
    let (driver, pci, told) = (driver.clone(), pci.clone(), outcome.clone());
    let exit = rig.run(Box::new(move |cpu| {
        let probed = match lowzone_driver::bind(cpu, &*driver, &pci) {
            Ok(bound) => {
                assert!(bound, "the id matches");
                Probe::Bound { irqs: driver.disk(pci.at()).unwrap().irqs().len() }
            }
            Err(error) => Probe::Failed { errno: error.errno(), text: error.to_string() },
        };
        *told.lock().unwrap() = Some(probed);
    }));
    assert_eq!(exit, Exit::Finished);
    outcome.lock().unwrap().take().expect("an outcome")
}

fn on_cpu(rig: &mut Rig, work: impl FnOnce(&Cpu<'_>) + Send + 'static) {
    assert_eq!(rig.run(Box::new(work)), Exit::Finished);
}

fn unbind(rig: &mut Rig, driver: &Arc<BlkDriver>, pci: &Arc<PciDevice>) {
    let (driver, pci) = (driver.clone(), pci.clone());
    on_cpu(rig, move |cpu| lowzone_driver::unbind(cpu, &*driver, &pci));
}

/// Writes sectors of every queue and reads them back.
fn round_trip(rig: &mut Rig, driver: &Arc<BlkDriver>, pci: &Arc<PciDevice>) {
    let disk = driver.disk(pci.at()).unwrap();
    on_cpu(rig, move |cpu| {
        for queue in 0..disk.queues() {
            let content = [0x50 + u8::try_from(queue).unwrap(); 4096];
            let mut buffer = KBuf::kmalloc(cpu, 4096, GFP_KERNEL).unwrap();
            buffer.write_at(0, &content).unwrap();
            let write = Request::write(u64::from(queue) * 8, Data::Streaming(buffer));
            let written = disk.wait(cpu, disk.submit(cpu, queue, write).unwrap());
            assert_eq!(written.result, Ok(()));
            let buffer = KBuf::kmalloc(cpu, 4096, GFP_KERNEL).unwrap();
            let read = Request::read(u64::from(queue) * 8, Data::Streaming(buffer));
            let completed = disk.wait(cpu, disk.submit(cpu, queue, read).unwrap());
            assert_eq!(completed.result, Ok(()));
            let Some(Data::Streaming(buffer)) = completed.data else { panic!("the buffer came back") };
            let mut seen = [0; 4096];
            buffer.read_at(0, &mut seen).unwrap();
            assert_eq!(seen, content);
        }
    });
}

/// Fails point after point of a probe; how many failed it, and how many it absorbed.
fn fail_each_point(options: BlkOptions, seed: u64) -> (u64, u64) {
    let mut rig = rig(seed);
    let pci = rig.disk();
    let (mut failed, mut absorbed) = (0, 0);
    for n in 0.. {
        let driver = Arc::new(BlkDriver::new(options));
        rig.world.observe(Some(Observer::failing(n)));
        let probed = bind(&mut rig, &driver, &pci);
        let reached = rig.world.observe(None).unwrap().reached();
        let what = format!("point {n} of the probe: {probed:?}");
        match &probed {
            Probe::Failed { errno, text } => {
                assert!(reached, "{what}: failed of itself");
                assert!([-5, -12, -28].contains(errno) && !text.is_empty(), "{what}");
                assert!(driver.disk(pci.at()).is_none(), "{what}: a disk is there");
                failed += 1;
            }
            Probe::Bound { irqs } => {
                if reached {
                    assert_eq!(*irqs, 1, "{what}: a vector was refused, so the pin is used");
                    absorbed += 1;
                }
                round_trip(&mut rig, &driver, &pci);
                unbind(&mut rig, &driver, &pci);
            }
        }
        rig.assert_clean(&what);
        let again = Arc::new(BlkDriver::new(options));
        assert!(matches!(bind(&mut rig, &again, &pci), Probe::Bound { .. }), "{what}: the next probe");
        round_trip(&mut rig, &again, &pci);
        unbind(&mut rig, &again, &pci);
        rig.assert_clean(&what);
        if !reached {
            break;
        }
    }
    (failed, absorbed)
}

#[test]
fn probe_unwinds_whichever_point_fails() {
    for seed in [1, 2] {
        let (failed, absorbed) = fail_each_point(BlkOptions::default(), seed);
        println!("seed {seed}: {failed} points fail the probe, {absorbed} are absorbed");
        assert!(failed >= 10, "{failed} points fail a probe");
        assert!(absorbed >= 3, "each vector refused is absorbed: {absorbed}");
    }
}

#[test]
fn probe_unwinds_with_interrupts_by_pin_too() {
    let (failed, absorbed) = fail_each_point(BlkOptions { msix: false, ..BlkOptions::default() }, 3);
    assert!(failed >= 8, "{failed}");
    assert_eq!(absorbed, 0, "there is nothing to fall back to");
}

#[test]
fn probe_unwinds_requests_that_fail_at_any_point_are_failed_or_retried_and_nothing_is_lost() {
    let mut rig = rig(1);
    let pci = rig.disk();
    let driver = Arc::new(BlkDriver::new(BlkOptions::default()));
    bind(&mut rig, &driver, &pci);
    for n in 0.. {
        rig.world.observe(Some(Observer::failing(n)));
        let disk = driver.disk(pci.at()).unwrap();
        on_cpu(&mut rig, move |cpu| {
            let Ok(mut buffer) = KBuf::kmalloc(cpu, 4096, GFP_KERNEL) else { return };
            buffer.write_at(0, &[7; 4096]).unwrap();
            match disk.submit(cpu, 0, Request::write(0, Data::Streaming(buffer))) {
                Ok(pending) => assert_eq!(disk.wait(cpu, pending).result, Ok(())),
                Err(error) => {
                    assert!(error.why.is_temporary(), "{error}");
                    let retried = disk.submit(cpu, 0, Request::write(0, error.data)).unwrap();
                    assert_eq!(disk.wait(cpu, retried).result, Ok(()), "the data came back and goes again");
                }
            }
        });
        if !rig.world.observe(None).unwrap().reached() {
            break;
        }
    }
    unbind(&mut rig, &driver, &pci);
    rig.assert_clean("after requests that failed");
}
