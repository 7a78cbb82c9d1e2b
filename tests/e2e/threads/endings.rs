//! However a body ends, or does not: the step ends, it is told, and the process goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lowzone::explore::observer::Observer;
use lowzone::world::{Body, Exit, Threads};
use lowzone_device::blk::BlkOptions as DeviceOptions;
use lowzone_guest_mem::KBuf;
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::kernel::MachineConfig;
use lowzone_guest_mem::lock::{Mutex, SpinLock};
use lowzone_guest_mem::wait::{WaitQueue, sleep};
use lowzone_tests::rig::{Rig, Serve};

const MS: u64 = 1_000_000;

fn rig() -> Rig<Threads> {
    Rig::threads(MachineConfig::default(), DeviceOptions::default(), vec![0; 4096], Serve::Device)
}

/// The world is of use again.
fn assert_goes_on(rig: &mut Rig<Threads>) {
    let body = || -> Body { Box::new(|cpu| sleep(cpu, MS).unwrap()) };
    assert_eq!(rig.world.run(vec![body(), body()]), [Exit::Finished; 2]);
    assert!(rig.leaks().is_empty(), "{:?}", rig.leaks());
}

#[test]
fn a_body_that_panics_is_a_finding_and_the_others_finish() {
    let mut rig = rig();
    let panics: Body = Box::new(|cpu| {
        let _buffer = KBuf::kmalloc(cpu, 512, GFP_KERNEL).unwrap();
        let sectors: Vec<u8> = Vec::new();
        assert!(!sectors.is_empty(), "no sector at all");
    });
    let works: Body = Box::new(|cpu| sleep(cpu, 5 * MS).unwrap());
    assert_eq!(rig.world.run(vec![panics, works]), [Exit::Panicked, Exit::Finished]);
    let text = rig.kernel().findings()[0].to_string();
    assert!(text.contains("no sector at all at ") && text.contains("endings.rs:"), "{text}");
    assert_goes_on(&mut rig);
}

#[test]
fn two_cpus_that_wait_for_each_other_are_a_deadlock_at_once() {
    let mut rig = rig();
    let locks = Arc::new((Mutex::new(()), Mutex::new(())));
    let body = |turned: bool| -> Body {
        let locks = locks.clone();
        Box::new(move |cpu| {
            let (first, second) = if turned { (&locks.1, &locks.0) } else { (&locks.0, &locks.1) };
            let _first = first.lock(cpu);
            sleep(cpu, 20 * MS).unwrap();
            let _second = second.lock(cpu);
        })
    };
    let (begun, mut parked) = (Instant::now(), 0);
    let exits = rig.world.run_until(vec![body(false), body(true)], |n| parked = n);
    assert_eq!((parked, exits), (2, vec![Exit::TornDown; 2]));
    assert_eq!(rig.findings(), ["deadlock"]);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_goes_on(&mut rig);
}

#[test]
fn a_lock_taken_twice_halts_its_cpu_as_in_lockstep() {
    let mut rig = rig();
    let twice: Body = Box::new(|cpu| {
        let lock = SpinLock::new(0);
        let _first = lock.lock(cpu);
        let _second = lock.lock(cpu);
    });
    assert_eq!(rig.world.run(vec![twice]), [Exit::Halted]);
    assert_eq!(rig.findings(), ["self-deadlock"]);
    assert_goes_on(&mut rig);
}

#[test]
fn a_loop_of_points_runs_out_of_fuel() {
    let mut rig = rig();
    rig.world.set_fuel(50_000);
    let endless: Body = Box::new(|cpu| {
        let lock = SpinLock::new(0);
        loop {
            *lock.lock(cpu) += 1;
        }
    });
    assert_eq!(rig.world.run(vec![endless]), [Exit::Halted]);
    assert_eq!(rig.findings(), ["hang"]);
}

#[test]
fn a_step_in_which_nothing_moves_is_given_up_and_the_waits_end() {
    let mut rig = rig();
    rig.world.set_patience(Duration::from_millis(300));
    let polls: Body = Box::new(|cpu| while sleep(cpu, MS).is_ok() {});
    let waits: Body = Box::new(|cpu| assert!(WaitQueue::new().wait_event_timeout(cpu, u64::MAX, || false).is_err()));
    assert_eq!(rig.world.run(vec![polls, waits]), [Exit::TornDown; 2]);
    assert_eq!(rig.findings(), ["hang"]);
    assert_goes_on(&mut rig);
}

#[test]
fn a_loop_that_heeds_no_end_is_unwound() {
    let mut rig = rig();
    rig.world.set_patience(Duration::from_millis(300));
    let deaf: Body = Box::new(|cpu| {
        loop {
            let _ = sleep(cpu, MS);
        }
    });
    assert_eq!(rig.world.run(vec![deaf]), [Exit::TornDown]);
    assert_goes_on(&mut rig);
}

#[test]
fn a_loop_without_points_is_left_behind_with_its_machine() {
    let stop = Arc::new(AtomicBool::new(false));
    let mut rig = rig();
    rig.world.set_patience(Duration::from_millis(300));
    let kernel = rig.kernel();
    let loops: Body = Box::new({
        let stop = stop.clone();
        move |_| {
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    assert_eq!(rig.world.run(vec![loops]), [Exit::TornDown]);
    assert_eq!(rig.findings(), ["hang"]);
    assert_eq!(rig.world.run(vec![Box::new(|_| ())]), [Exit::TornDown], "this world runs nothing any more");
    drop(rig);
    let others: Vec<_> = (0..4).map(|_| self::rig()).collect();
    assert!(others.iter().all(|other| !std::ptr::eq(other.kernel(), kernel)), "nobody gets its machine");
    stop.store(true, Ordering::Relaxed);
}

#[test]
fn a_fault_that_was_planned_strikes_in_threads_too() {
    let mut rig = rig();
    // The first takes a page for its slab: slab, page, slab.
    rig.world.observe(Some(Observer::failing(2)));
    let body: Body = Box::new(|cpu| {
        let got: Vec<_> = (0..4).map(|_| KBuf::kmalloc(cpu, 64, GFP_KERNEL).is_ok()).collect();
        assert_eq!(got, [true, false, true, true]);
    });
    assert_eq!(rig.world.run(vec![body]), [Exit::Finished], "{:?}", rig.findings());
    assert!(rig.world.observe(None).unwrap().reached());
}
