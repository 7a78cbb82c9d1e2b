//! What callgrind counts for the test `trace_cost`: so many rounds that record an event, in the recorder or through a
//! CPU, or ask a CPU to record one whose kind is masked out, or do nothing.
#![forbid(unsafe_code)]

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;

use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::env::{Env, IrqHandler, Key, Point, Ticket, Verdict, Wake};
use lowzone_guest_mem::finding::Finding;
use lowzone_guest_mem::kernel::{Machine, MachineConfig};
use lowzone_guest_mem::trace::{Kind, Producer, Record, Recorder};

/// A world in which nothing happens.
struct Still;

impl Env for Still {
    fn now(&self) -> u64 {
        0
    }
    fn prepare(&self, _on: Key) -> Ticket {
        Ticket { number: 0, irqs_off: false, keeps_cpu: false }
    }
    fn park(&self, _ticket: Ticket, _until: Option<u64>) -> Wake {
        Wake::TimedOut
    }
    fn wake(&self, _on: Key, _n: usize) {}
    fn take_irq(&self) -> Option<Arc<dyn IrqHandler>> {
        None
    }
    fn point(&self, _point: Point) -> Verdict {
        Verdict::Pass
    }
    fn emit(&self, _finding: Finding) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let rounds = words.next().unwrap_or_default().parse()?;
    let machine = Machine::acquire(MachineConfig { ram: 64 << 20, swiotlb: 0, ..MachineConfig::default() })?;
    let recorder = machine.kernel().trace();
    let what = words.next().unwrap_or_default();
    if what == "masked" {
        recorder.mask([Kind::DmaMapPage]);
    }
    let cpu = Cpu::new(0, machine.kernel_ref(), &Still);
    let before = recorder.events();
    match what.as_str() {
        "none" => none(rounds),
        "recorder" => in_recorder(recorder, rounds),
        _ => through_cpu(&cpu, rounds),
    }
    println!("{}", recorder.events() - before);
    Ok(())
}

#[inline(never)]
fn none(rounds: u64) {
    for n in 0..rounds {
        black_box(n);
    }
}

#[inline(never)]
fn in_recorder(recorder: &Recorder, rounds: u64) {
    for n in 0..rounds {
        let n = black_box(n);
        recorder.emit(Producer(0), Record { ts: n, addr: n, len: 4096, kind: Kind::PortRead, dev: 1, tag: n });
    }
}

#[inline(never)]
fn through_cpu(cpu: &Cpu<'_>, rounds: u64) {
    for n in 0..rounds {
        let n = black_box(n);
        cpu.trace(Kind::PortRead, n, 4096, 1, n);
    }
}
