//! Many CPUs at once: locks, waits, timers, requests, and a device that is pulled out among them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use lowzone::world::{Body, Exit, Random, Threads};
use lowzone_device::blk::BlkOptions as DeviceOptions;
use lowzone_driver::blk::{BlkDriver, BlkOptions, Data, Request};
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::kernel::MachineConfig;
use lowzone_guest_mem::lock::{Mutex, SpinLock};
use lowzone_guest_mem::timer::{Timer, TimerCallback};
use lowzone_guest_mem::wait::{Completion, sleep};
use lowzone_guest_mem::{Cpu, KBuf};
use lowzone_tests::rig::{Rig, Serve};
use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};

const CPUS: usize = 6;
const SECOND: u64 = 1_000_000_000;

fn rig(cpus: usize, serve: Serve) -> Rig<Threads> {
    let config = MachineConfig { cpus: u32::try_from(cpus).unwrap(), ..MachineConfig::default() };
    Rig::threads(config, DeviceOptions { queues: 2, ..DeviceOptions::default() }, vec![0; 1 << 20], serve)
}

/// A ring of CPUs, and what they share.
struct Circle {
    spin: SpinLock<u64>,
    slept: Mutex<u64>,
    done: Vec<Completion>,
    fired: AtomicU64,
}

impl TimerCallback for Circle {
    fn expired(&self, cpu: &Cpu<'_>) {
        *self.spin.lock_irqsave(cpu) += 1;
        self.fired.fetch_add(1, Ordering::Relaxed);
        self.done[0].complete(cpu);
    }
}

/// Each turn: wait for the CPU before, count under both locks, maybe pause, complete the next; once, wait for a timer.
fn turns(cpu: &Cpu<'_>, circle: &Arc<Circle>, me: usize, rounds: u64, mut random: Random) {
    for round in 0..rounds {
        circle.done[me].wait_timeout(cpu, 20 * SECOND).unwrap();
        *circle.spin.lock_irqsave(cpu) += 1;
        *circle.slept.lock(cpu) += 1;
        match random.below(12) {
            0 => sleep(cpu, random.below(50_000)).unwrap(),
            1 => std::thread::yield_now(),
            _ => {}
        }
        if me == CPUS - 1 && random.below(4) == 0 {
            // The token goes round by way of a timer, which any CPU may take.
            let timer = Timer::new(cpu, circle.clone());
            timer.modify(cpu, cpu.now() + random.below(30_000));
            let before = circle.fired.load(Ordering::Relaxed);
            while circle.fired.load(Ordering::Relaxed) == before {
                sleep(cpu, 10_000).unwrap();
            }
            timer.delete_sync(cpu);
        } else if me < CPUS - 1 || round + 1 < rounds {
            circle.done[(me + 1) % CPUS].complete(cpu);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, max_shrink_iters: 0, ..ProptestConfig::default() })]

    /// A token goes round a circle of CPUs, beside a crowd at two locks: one wake-up lost and it would stop for good.
    #[test]
    fn no_wake_up_is_lost(seed: u64, rounds in 50_u64..400) {
        let mut rig = rig(CPUS, Serve::Nobody);
        let circle = Arc::new(Circle {
            spin: SpinLock::new(0),
            slept: Mutex::new(0),
            done: std::iter::repeat_with(Completion::new).take(CPUS).collect(),
            fired: AtomicU64::new(0),
        });
        let bodies = (0..CPUS).map(|me| -> Body {
            let circle = circle.clone();
            Box::new(move |cpu| {
                if me == 0 {
                    circle.done[0].complete(cpu);
                }
                turns(cpu, &circle, me, rounds, Random::new(seed ^ me as u64));
            })
        });
        prop_assert_eq!(rig.world.run(bodies.collect()), vec![Exit::Finished; CPUS]);
        prop_assert!(rig.kernel().findings().is_empty(), "{:?}", rig.findings());
        let (circle, fired) = (circle.clone(), circle.fired.load(Ordering::Relaxed));
        let sums: Body = Box::new(move |cpu| {
            assert_eq!(*circle.slept.lock(cpu), rounds * CPUS as u64);
            assert_eq!(*circle.spin.lock(cpu), rounds * CPUS as u64 + fired);
        });
        prop_assert_eq!(rig.world.run(vec![sums]), [Exit::Finished]);
        prop_assert!(rig.leaks().is_empty());
    }
}

#[test]
fn all_cpus_at_one_lock_and_one_allocator_lose_nothing() {
    let mut rig = rig(CPUS, Serve::Nobody);
    let total = Arc::new(Mutex::new(0_u64));
    let bodies = (0..CPUS).map(|_| -> Body {
        let total = total.clone();
        Box::new(move |cpu| {
            for n in 0..2000_usize {
                let buffer = KBuf::kmalloc(cpu, 64 + n % 4000, GFP_KERNEL).unwrap();
                *total.lock(cpu) += 1;
                drop(buffer);
            }
        })
    });
    assert_eq!(rig.world.run(bodies.collect()), [Exit::Finished; CPUS]);
    let sum: Body = Box::new(move |cpu| assert_eq!(*total.lock(cpu), 2000 * CPUS as u64));
    assert_eq!(rig.world.run(vec![sum]), [Exit::Finished]);
    rig.assert_clean("after the crowd");
}

/// Writes until it fails or the plan is done; how many writes failed.
fn write_on(cpu: &Cpu<'_>, disk: &lowzone_driver::blk::Disk, queue: u16, failed: &AtomicU32) {
    for n in 0..20_000_u64 {
        let data = KBuf::kmalloc(cpu, 4096, GFP_KERNEL).unwrap();
        let pending = match disk.submit(cpu, queue, Request::write(n % 64 * 8, Data::Streaming(data))) {
            Ok(pending) => pending,
            Err(_) => {
                failed.fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        if disk.wait(cpu, pending).result.is_err() {
            failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
    }
}

#[test]
fn a_device_pulled_out_under_load_ends_every_request_and_comes_back() {
    for round in 0..6_u64 {
        let mut rig = rig(3, Serve::Device);
        let driver = Arc::new(BlkDriver::new(BlkOptions { timeout: SECOND / 5, ..BlkOptions::default() }));
        let pci = rig.disk();
        let bind = |rig: &mut Rig<Threads>| {
            let (driver, pci) = (driver.clone(), pci.clone());
            let body: Body = Box::new(move |cpu| assert!(lowzone_driver::bind(cpu, &*driver, &pci).unwrap()));
            assert_eq!(rig.world.run(vec![body]), [Exit::Finished], "{:?}", rig.kernel().findings());
        };
        let unbind = |rig: &mut Rig<Threads>| {
            let (driver, pci) = (driver.clone(), pci.clone());
            let body: Body = Box::new(move |cpu| lowzone_driver::unbind(cpu, &*driver, &pci));
            assert_eq!(rig.world.run(vec![body]), [Exit::Finished], "{:?}", rig.kernel().findings());
        };
        bind(&mut rig);
        let failed = Arc::new(AtomicU32::new(0));
        let disk = driver.disk(pci.at()).unwrap();
        let writes = |queue: u16| -> Body {
            let (disk, failed) = (disk.clone(), failed.clone());
            Box::new(move |cpu| write_on(cpu, &disk, queue, &failed))
        };
        let bus = rig.bus.clone();
        let pulls: Body = Box::new(move |cpu| {
            sleep(cpu, 2_000_000 + round * 300_000).unwrap();
            bus.unplug_all();
        });
        assert_eq!(rig.world.run(vec![writes(0), writes(1), pulls]), [Exit::Finished; 3]);
        assert_eq!(failed.load(Ordering::Relaxed), 2, "each queue's writer was told");
        drop(disk);
        unbind(&mut rig);
        rig.assert_clean("after the removal");
        assert!(rig.bus.replug_all());
        let pci = rig.disk();
        let (driver, again) = (driver.clone(), pci.clone());
        let body: Body = Box::new(move |cpu| {
            assert!(lowzone_driver::bind(cpu, &*driver, &again).unwrap());
            let disk = driver.disk(again.at()).unwrap();
            let data = KBuf::kmalloc(cpu, 4096, GFP_KERNEL).unwrap();
            let pending = disk.submit(cpu, 1, Request::write(8, Data::Streaming(data))).ok().unwrap();
            disk.wait(cpu, pending).result.unwrap();
            drop(disk);
            lowzone_driver::unbind(cpu, &*driver, &again);
        });
        assert_eq!(rig.world.run(vec![body]), [Exit::Finished], "{:?}", rig.kernel().findings());
        rig.assert_clean("after it came back");
    }
}
