use super::*;
use crate::env::Class;
use crate::finding::Resource as Kind;
use crate::testing::{Lab, handler};

/// In this world a task runs to its end while the CPU waits; threads that wait are tested in the worlds.
#[test]
fn it_runs_as_a_task_of_its_own_and_tells_what_it_returned() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let thread = kthread_run(&cpu, 1, |cpu, current| {
        assert_eq!((cpu.id(), cpu.task(), cpu.in_task(), current.should_stop()), (1, 1, true, true));
        assert!(!current.sleep(cpu, 5) && !current.wait(cpu, || false), "it is to stop");
        -5
    });
    let thread = thread.unwrap();
    assert_eq!(lab.leaks(), [Kind::Vmalloc, Kind::Thread]);
    assert!(!thread.ended());
    assert_eq!(thread.stop(&cpu), -5);
    assert!(lab.leaks().is_empty() && lab.findings().is_empty());
}

#[test]
fn a_world_without_room_leaves_nothing() {
    let lab = Lab::new();
    assert_eq!(kthread_run(&lab.cpu(), 64, |_, _| 0).err(), Some(KthreadError::NoTask { cpu: 64 }));
    assert!(lab.leaks().is_empty());
}

#[test]
fn one_that_unwinds_has_ended_and_holds_nothing() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let thread = kthread_run(&cpu, 0, |_, _| std::panic::resume_unwind(Box::new("oops"))).unwrap();
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| crate::wait::sleep(&cpu, 1)));
    assert!(unwound.is_err() && thread.ended() && lab.leaks().is_empty());
    assert_eq!(thread.stop(&cpu), 0);
}

#[test]
fn starting_and_stopping_may_sleep() {
    let lab = Lab::new();
    lab.solo.raise(handler(|cpu| {
        kthread_run(cpu, 0, |_, _| 0).unwrap().stop(cpu);
    }));
    let _ = lab.cpu().point(Class::Release, 0);
    let findings = lab.findings();
    assert!(findings.len() >= 2 && findings.iter().all(|name| *name == "sleep-in-atomic"), "{findings:?}");
}

#[test]
fn a_variable_on_a_stack_of_ones_own_is_no_memory_for_a_device_and_gone_afterwards() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(64));
    let mapped = misuse::with_variable(&cpu, 16, |variable| {
        assert_eq!(variable.write(&cpu, &[1; 16]), 16);
        misuse::map_single(&cpu, &device, variable, crate::dma::Dir::ToDevice)
    });
    assert!(mapped.unwrap().is_err() && lab.leaks().is_empty());
    assert_eq!(lab.findings(), ["map-vmalloc"]);
    assert!(misuse::with_variable(&cpu, 1 << 20, |_| ()).is_none(), "more than a stack has");
}
