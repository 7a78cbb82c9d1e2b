use super::*;
use crate::dma::misuse;
use crate::env::IrqReturn;
use crate::gfp::GFP_ATOMIC;
use crate::testing::{Lab, handler};

/// A thread with nothing to do.
struct Idle;

impl IrqThread for Idle {
    fn thread(&self, _cpu: &Cpu<'_>) -> IrqReturn {
        IrqReturn::None
    }
}

fn noting(order: &Arc<Locked<Vec<u32>>>, number: u32) -> impl FnOnce(&Cpu<'_>) + Send + 'static {
    let order = order.clone();
    move |_| order.lock().push(number)
}

#[test]
fn everything_goes_in_the_reverse_order_and_nothing_is_left() {
    let lab = Lab::new();
    let (cpu, device, devres) = (lab.cpu(), lab.device(32), Devres::default());
    let order = Arc::new(Locked::new(Vec::new()));
    devres.add_action(&cpu, "disable", noting(&order, 1)).unwrap();
    let buf = devres.kzalloc(&cpu, 100, GFP_KERNEL).unwrap();
    let mut seen = [1; 100];
    buf.read_at(0, &mut seen).unwrap();
    assert_eq!((seen, buf.len(), buf.is_empty()), ([0; 100], 100, false));
    buf.write_at(90, &[7; 10]).unwrap();
    assert!(buf.write_at(91, &[7; 10]).is_err());
    drop(buf);
    drop(devres.alloc_coherent(&cpu, &device, 4096, GFP_KERNEL).unwrap());
    devres.request_irq(&cpu, 5, handler(|_| {})).unwrap();
    let thread: Arc<dyn IrqThread> = Arc::new(Idle);
    devres.request_threaded_irq(&cpu, 6, None, Some(thread), IrqFlags::ONESHOT, "card").unwrap();
    devres.add_action_or_reset(&cpu, "stop", noting(&order, 2)).unwrap();
    let irqs = ["devm_request_irq", "devm_request_threaded_irq"];
    let held = [&["disable", "devm_kmalloc", "dmam_alloc_coherent"][..], &irqs, &["stop"]].concat();
    assert_eq!(devres.held(), held);
    assert!(order.lock().is_empty());
    let reverse: Vec<_> = held.into_iter().rev().collect();
    assert_eq!((devres.release_all(&cpu), devres.release_all(&cpu)), (reverse, vec![]));
    assert_eq!(*order.lock(), [2, 1]);
    assert!(lab.leaks().is_empty() && lab.findings().is_empty());
}

#[test]
fn a_group_goes_early_and_alone() {
    let lab = Lab::new();
    let (cpu, devres, order) = (lab.cpu(), Devres::default(), Arc::new(Locked::new(Vec::new())));
    devres.add_action(&cpu, "disable", noting(&order, 1)).unwrap();
    let group = devres.open_group();
    devres.add_action(&cpu, "disable", noting(&order, 2)).unwrap();
    devres.add_action(&cpu, "disable", noting(&order, 3)).unwrap();
    assert_eq!((devres.release_group(&cpu, group).len(), order.lock().clone()), (2, vec![3, 2]));
    devres.release_all(&cpu);
    assert_eq!(*order.lock(), [3, 2, 1]);
}

#[test]
fn each_call_fails_for_want_of_its_note_and_only_reset_runs_the_action() {
    let lab = Lab::new();
    let (cpu, device, devres) = (lab.cpu(), lab.device(32), Devres::default());
    let order = Arc::new(Locked::new(Vec::new()));
    let warm = Devres::note(&cpu).unwrap();
    let idle = || Some(Arc::new(Idle) as Arc<dyn IrqThread>);
    let calls: [&dyn Fn() -> bool; 6] = [
        &|| devres.kmalloc(&cpu, 100, GFP_ATOMIC).is_err(),
        &|| devres.alloc_coherent(&cpu, &device, 64, GFP_KERNEL).is_err(),
        &|| devres.request_irq(&cpu, 5, handler(|_| {})).is_err(),
        &|| devres.request_threaded_irq(&cpu, 5, None, idle(), IrqFlags::ONESHOT, "card").is_err(),
        &|| devres.ioremap(&cpu, PhysAddr::new(0xf000_0000), 64).is_err(),
        &|| devres.add_action(&cpu, "disable", noting(&order, 1)).is_err(),
    ];
    for (index, call) in calls.iter().enumerate() {
        lab.solo.fail_nth(0);
        assert!(call(), "call {index}");
    }
    assert!(order.lock().is_empty());
    lab.solo.fail_nth(0);
    assert!(devres.add_action_or_reset(&cpu, "stop", noting(&order, 2)).is_err());
    assert_eq!((order.lock().clone(), devres.held().len()), (vec![2], 0));
    // The second point of the call is the resource's own: its note goes again.
    lab.solo.fail_nth(1);
    assert!(devres.alloc_coherent(&cpu, &device, 64, GFP_KERNEL).is_err());
    lab.solo.fail_nth(u64::MAX);
    drop(warm);
    assert!(lab.leaks().is_empty() && lab.findings().is_empty());
}

#[test]
fn managed_memory_is_no_object_that_kfree_knows() {
    let lab = Lab::new();
    let (cpu, devres) = (lab.cpu(), Devres::default());
    let buf = devres.kmalloc(&cpu, 100, GFP_KERNEL).unwrap();
    misuse::kfree(&cpu, buf.phys());
    assert_eq!(lab.findings(), ["bad-free"]);
    let other = buf.clone();
    assert!(devres.kfree(&cpu, buf) && !devres.kfree(&cpu, other));
    assert!(lab.leaks().is_empty());
}
