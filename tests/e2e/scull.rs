//! LDD3's memory devices against a plain file in memory, and under every failure.

use std::sync::mpsc::{Sender, channel};

use lowzone::world::{Body, Random};
use lowzone_device::blk::BlkOptions;
use lowzone_driver::scull::{Backing, Scull, ScullError};
use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::kernel::MachineConfig;
use lowzone_tests::program::lowzone;
use lowzone_tests::rig::{Rig, Serve};

const STEPS: usize = 3000;
/// The file's largest size: beyond one item of every device but scullv's.
const SPAN: u64 = 3 << 20;

/// Random writes, reads and trims of one device, each compared with a vector of bytes. What the vector has and nobody
/// wrote is a hole: the device gives nothing there.
fn play(cpu: &Cpu<'_>, backing: Backing) -> Result<usize, ScullError> {
    let (scull, mut random) = (Scull::new(backing), Random::new(7));
    let quantum = scull.quantum() as u64;
    let (mut file, mut there, mut compared) = (Vec::new(), std::collections::BTreeSet::new(), 0);
    for step in 0..STEPS {
        let (at, len) = (random.next() % SPAN, usize::try_from(random.next() % 9000).unwrap() + 1);
        let room = usize::try_from(quantum - at % quantum).unwrap();
        if step % 1000 == 999 {
            scull.trim(cpu);
            (file, there) = (Vec::new(), std::collections::BTreeSet::new());
        } else if random.next() % 2 == 0 {
            let mut bytes = vec![0; len];
            random.fill(&mut bytes);
            let done = scull.write(cpu, at, &bytes)?;
            assert_eq!(done, len.min(room), "a write ends with its quantum");
            let end = usize::try_from(at).unwrap() + done;
            file.resize(file.len().max(end), 0);
            file[usize::try_from(at).unwrap()..end].copy_from_slice(&bytes[..done]);
            there.insert(at / quantum);
        } else {
            let mut bytes = vec![0xee; len];
            let done = scull.read(cpu, at, &mut bytes)?;
            let left = file.len().saturating_sub(usize::try_from(at).unwrap());
            let expected = if there.contains(&(at / quantum)) { len.min(room).min(left) } else { 0 };
            assert_eq!(done, expected, "at {at}");
            let from = usize::try_from(at).unwrap().min(file.len());
            assert_eq!(bytes[..done], file[from..from + done], "at {at}");
            compared += done;
        }
        assert_eq!(scull.size(cpu), file.len() as u64);
        assert_eq!(scull.counts(cpu).1, there.len());
    }
    scull.remove(cpu);
    Ok(compared)
}

#[test]
fn scull_holds_what_was_written_over_each_backing() {
    let backings: [fn(&Cpu<'_>) -> Backing; 3] =
        [|cpu| Backing::scullc(cpu).unwrap(), |_| Backing::scullp(), |_| Backing::scullv()];
    for (number, backing) in backings.into_iter().enumerate() {
        let config = MachineConfig { ram: 256 << 20, swiotlb: 0, ..MachineConfig::default() };
        let (tell, told) = channel();
        let body =
            |tell: Sender<usize>| -> Body { Box::new(move |cpu| tell.send(play(cpu, backing(cpu)).unwrap()).unwrap()) };
        let mut rig = Rig::new(config, BlkOptions::default(), vec![0; 512], Serve::Nobody, 1);
        rig.run(body(tell.clone()));
        rig.assert_clean("scull");
        let mut threads = Rig::threads(config, BlkOptions::default(), vec![0; 512], Serve::Nobody);
        threads.world.run(vec![body(tell)]);
        threads.assert_clean("scull in threads");
        let compared: Vec<_> = told.try_iter().collect();
        assert!(compared.len() == 2 && compared.iter().all(|&bytes| bytes > 1 << 17), "{number}: {compared:?}");
    }
}

#[test]
fn scull_passes_every_failure_of_its_allocations() {
    for name in ["alloc/scullc", "alloc/scullp", "alloc/scullv"] {
        let seen = lowzone(["explore", name]);
        assert_eq!(seen.code, Some(0), "{}{}", seen.stdout, seen.stderr);
        assert!(seen.stdout.contains(", 0 wrong, 0 not carried out"), "{}", seen.stdout);
        let cases =
            seen.stdout.lines().find_map(|line| line.strip_prefix("result   ")?.split(' ').next()?.parse().ok());
        assert!(cases >= Some(10_u32), "{}", seen.stdout);
    }
}
