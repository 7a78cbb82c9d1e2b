//! Where code runs, as preempt_count counts it, and what a call that may sleep gives where sleeping is forbidden.

use std::sync::Arc;

use lowzone::wire::InProc;
use lowzone::world::Lockstep;
use lowzone_guest_mem::dma::DmaDevice;
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::kernel::{Machine, MachineConfig};
use lowzone_guest_mem::lock::{Locked, SpinLock};
use lowzone_guest_mem::tasklet::Tasklet;
use lowzone_guest_mem::vmalloc::vmalloc;
use lowzone_guest_mem::{Cpu, KBuf};

use crate::table::{Golden, Outputs};

const STATE: Golden = Golden {
    name: "sleep_state",
    text: include_str!("sleep_state.tsv"),
    inputs: &["boot", "where"],
    compare: &["preempt_count", "in_atomic", "irqs_disabled", "in_interrupt"],
};

/// Runs `body` on a machine's first CPU; what it gave, and the names of the findings.
pub fn on_cpu<T: Send + 'static>(body: impl FnOnce(&Cpu<'_>) -> T + Send + 'static) -> (T, Vec<&'static str>) {
    let machine = Machine::acquire(MachineConfig::default()).unwrap();
    let bus = Arc::new(InProc::new(machine.kernel_ref(), 2));
    let mut world = Lockstep::new(machine.kernel_ref(), bus, Vec::new(), 1);
    let kept: Arc<Locked<Option<T>>> = Arc::new(Locked::new(None));
    let keep = kept.clone();
    world.run(vec![Box::new(move |cpu| {
        let seen = body(cpu);
        *keep.lock() = Some(seen);
    })]);
    let findings = machine.kernel().findings().iter().map(|finding| finding.kind.name()).collect();
    let seen = kept.lock().take().unwrap();
    (seen, findings)
}

fn state(cpu: &Cpu<'_>) -> Outputs {
    let flag = |set| u32::from(set).to_string();
    vec![
        ("preempt_count", format!("{:#x}", cpu.preempt_count())),
        ("in_atomic", flag(cpu.in_atomic())),
        ("irqs_disabled", flag(cpu.irqs_disabled())),
        ("in_interrupt", flag(cpu.in_interrupt())),
    ]
}

fn seen(place: &str, cpu: &Cpu<'_>) -> Outputs {
    let lock = SpinLock::new(());
    match place {
        "process" => state(cpu),
        "spin_lock" => Some(lock.lock(cpu)).map(|_held| state(cpu)).unwrap(),
        "spin_lock_irqsave" => Some(lock.lock_irqsave(cpu)).map(|_held| state(cpu)).unwrap(),
        "local_bh_disable" => Some(cpu.local_bh_disable()).map(|_off| state(cpu)).unwrap(),
        "rcu_read_lock" => Some(cpu.rcu_read_lock()).map(|_read| state(cpu)).unwrap(),
        "tasklet" => {
            let seen: Arc<Locked<Outputs>> = Arc::default();
            let keep = seen.clone();
            let tasklet = Tasklet::new(cpu, move |cpu| *keep.lock() = state(cpu));
            tasklet.schedule(cpu);
            tasklet.kill(cpu);
            std::mem::take(&mut *seen.lock())
        }
        other => panic!("no such place: {other}"),
    }
}

#[test]
fn golden_sleep_state() {
    STATE.run(|row| {
        let place = row.get("where").to_owned();
        on_cpu(move |cpu| seen(&place, cpu)).0
    });
}

const RET: Golden =
    Golden { name: "sleep_ret", text: include_str!("sleep_ret.tsv"), inputs: &["boot", "call"], compare: &["ret"] };

fn ret(call: &str, cpu: &Cpu<'_>) -> bool {
    let (lock, device) = (SpinLock::new(()), DmaDevice::new(cpu.kernel_ref(), "edu"));
    let _held = lock.lock(cpu);
    match call {
        "kmalloc_KERNEL" => KBuf::kmalloc(cpu, 64, GFP_KERNEL).is_ok(),
        "vmalloc" => vmalloc(cpu, 65536).is_ok(),
        "dma_alloc_coherent_KERNEL" => device.alloc_coherent(cpu, 4096, GFP_KERNEL).is_ok(),
        other => panic!("no such call: {other}"),
    }
}

/// Each is told, and each gives memory all the same.
#[test]
fn golden_sleep_ret() {
    RET.run(|row| {
        let call = row.get("call").to_owned();
        let (given, findings) = on_cpu(move |cpu| ret(&call, cpu));
        assert_eq!(findings, ["sleep-in-atomic"], "{}", row.get("call"));
        vec![("ret", if given { "ptr" } else { "NULL" }.to_owned())]
    });
}
