//! A program with a driver that does not survive its own error path: what containment is tested against.
//!
//! It wraps the stock driver. Where one small allocation of its own fails, it dies as its option `how` says.
#![forbid(unsafe_code)]
#![allow(clippy::panic, reason = "that is what it is for")]

use std::hint::black_box;
use std::sync::Arc;

use lowzone::kit::{DriverKind, DriverSpec, Entry, ExerciseError, Kind, Kit, LabDriver, MakeError};
use lowzone_driver::blk::{BlkDriver, BlkOptions};
use lowzone_driver::pci::{PciDevice, PciId};
use lowzone_driver::{Driver, ProbeError};
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::{Cpu, KBuf};

const SCENARIO: &str = "story = 'A driver that dies where its own allocation fails'
step = [{ probe = {} }, { exercise = { device = 'a', times = 1 } }, { remove = {} }]
[driver]
kind = 'dying'
options = { how = 'overflow' }
[[device]]
name = 'a'
kind = 'virtio-blk'
size = '64K'
";

const KIT: Kit = Kit::new("dying")
    .scenarios(&[Entry { name: "dying", text: SCENARIO }])
    .drivers(&[DriverKind { kind: Kind::new("dying").options(&["how"]).disks(), make }]);

lowzone::main!(KIT);

fn make(spec: &DriverSpec) -> Result<Arc<dyn LabDriver>, MakeError> {
    let how = spec.options.text("how", "overflow")?.to_owned();
    Ok(Arc::new(Dying { inner: BlkDriver::new(BlkOptions::default()), how }))
}

struct Dying {
    inner: BlkDriver,
    how: String,
}

/// Its destructor finds an error path that nobody thought of.
struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        panic!("a destructor that panics");
    }
}

fn deeper(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if black_box(depth) == u64::MAX { 0 } else { deeper(depth + 1) + frame[7] }
}

impl Dying {
    fn die(&self) {
        match self.how.as_str() {
            "overflow" => drop(black_box(deeper(0))),
            "loop" => loop {
                std::hint::spin_loop();
            },
            "destructor" => drop(Guard),
            _ => {
                let _guard = Guard;
                panic!("a panic with a destructor that panics on the way");
            }
        }
    }
}

impl Driver for Dying {
    fn name(&self) -> &'static str {
        "dying"
    }

    fn ids(&self) -> &'static [PciId] {
        self.inner.ids()
    }

    fn probe(&self, cpu: &Cpu<'_>, device: &Arc<PciDevice>) -> Result<(), ProbeError> {
        self.inner.probe(cpu, device)
    }

    fn remove(&self, cpu: &Cpu<'_>, device: &PciDevice) {
        self.inner.remove(cpu, device);
    }

    fn shutdown(&self, cpu: &Cpu<'_>, device: &PciDevice) {
        self.inner.shutdown(cpu, device);
    }
}

impl LabDriver for Dying {
    fn exercise(&self, cpu: &Cpu<'_>, device: &PciDevice, nth: u64) -> Result<u64, ExerciseError> {
        let _span = cpu.span("dying");
        let scratch = KBuf::kmalloc(cpu, 64, GFP_KERNEL);
        if scratch.is_err() {
            self.die();
        }
        drop(scratch);
        self.inner.exercise(cpu, device, nth)
    }
}
